//! From the host's memory to the device's: batches are made in buffers that the device can copy from while it computes.
//!
//! On CUDA buffers are page-locked, used again and again, and copied on a stream of their own: the copy of the next batch runs beside the
//! step. On the processor a buffer is a vector that becomes the tensor; on other devices it is copied when it is wanted.

#[cfg(feature = "cuda")]
use std::collections::HashMap;
#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::DeviceId;
use candle_core::{Device, Result, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use crate::cuda::copies::{Begun, Copies, Pinned};

/// Memory for `f32` values on their way to a device.
pub struct HostBuffer(Kind);

enum Kind {
    Plain(Vec<f32>),
    #[cfg(feature = "cuda")]
    Pinned(Pinned),
}

/// Values that are on their way.
pub struct Upload(Way, Shape);

enum Way {
    /// The copy begins when the tensor is wanted.
    Later(Vec<f32>),
    #[cfg(feature = "cuda")]
    Begun(Begun),
}

/// The way to one device.
#[derive(Clone)]
pub struct Transfers {
    device: Device,
    #[cfg(feature = "cuda")]
    copies: Option<Arc<Copies>>,
}

impl Transfers {
    /// The way to `device`.
    ///
    /// # Errors
    /// When CUDA refuses another stream.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let copies = match device {
            Device::Cuda(device) => Some(Arc::new(Copies::new(device)?)),
            _ => None,
        };
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            copies,
        })
    }

    /// Whether copies run beside what the device computes, so that it pays to begin them early.
    pub fn are_apart(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.copies.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Memory for `len` values, which may hold anything. The host waits only where several rooms of this length wait for their copies.
    ///
    /// # Errors
    /// When CUDA has no page-locked memory left, or can't finish a copy.
    pub fn buffer(&self, len: usize) -> Result<HostBuffer> {
        #[cfg(feature = "cuda")]
        if let Some(copies) = &self.copies {
            return Ok(HostBuffer(Kind::Pinned(copies.buffer(len)?)));
        }
        Ok(HostBuffer(Kind::Plain(vec![0.0; len])))
    }

    /// Sends the values of `buffer` on their way to a tensor of `shape`; without waiting, where copies run beside the work.
    ///
    /// # Errors
    /// A shape of another number of elements; when CUDA fails.
    pub fn begin(&self, buffer: HostBuffer, shape: Shape) -> Result<Upload> {
        if buffer.len() != shape.elem_count() {
            bail!("transfer: {} values can't become a tensor of shape {:?}", buffer.len(), shape.dims());
        }
        Ok(match buffer.0 {
            Kind::Plain(values) => Upload(Way::Later(values), shape),
            #[cfg(feature = "cuda")]
            Kind::Pinned(values) => match &self.copies {
                Some(copies) => Upload(Way::Begun(copies.begin(values)?), shape),
                None => bail!("transfer: page-locked memory of another device"),
            },
        })
    }

    /// The tensor of `shape`, of a copy in the order of the device's work: for what is wanted at once, and small. The host does not wait.
    ///
    /// # Errors
    /// As [`Transfers::begin`] and [`Transfers::finish`].
    pub fn send(&self, buffer: HostBuffer, shape: Shape) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if buffer.len() == shape.elem_count()
            && let Some(copies) = &self.copies
        {
            return match buffer.0 {
                Kind::Pinned(values) => copies.send(values, shape),
                Kind::Plain(values) => Tensor::from_vec(values, shape, &self.device),
            };
        }
        self.finish(self.begin(buffer, shape)?)
    }

    /// The tensor. Work of the device on it comes after the copy; the host does not wait.
    ///
    /// # Errors
    /// When candle or CUDA fails.
    pub fn finish(&self, upload: Upload) -> Result<Tensor> {
        match upload.0 {
            Way::Later(values) => Tensor::from_vec(values, upload.1, &self.device),
            #[cfg(feature = "cuda")]
            Way::Begun(copy) => match &self.copies {
                Some(copies) => copies.finish(copy, upload.1),
                None => bail!("transfer: a copy to another device"),
            },
        }
    }
}

/// A tensor of numbers that the host made for a step: on CUDA by page-locked memory, so that the host does not wait for the device,
/// unless several tensors of this size wait for their copies; elsewhere as candle makes one.
///
/// # Errors
/// A shape of another number of elements; when candle or CUDA fails.
pub fn send(values: Vec<f32>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device
        && values.len() == shape.elem_count()
        && !values.is_empty()
    {
        let transfers = {
            let mut ways = WAYS.lock().unwrap_or_else(PoisonError::into_inner);
            let ways = ways.get_or_insert_default();
            match ways.get(&cuda.id()) {
                Some(transfers) => transfers.clone(),
                None => ways.entry(cuda.id()).or_insert(Transfers::new(device)?).clone(),
            }
        };
        let mut buffer = transfers.buffer(values.len())?;
        buffer.as_mut_slice()?.copy_from_slice(&values);
        return transfers.send(buffer, shape);
    }
    Tensor::from_vec(values, shape, device)
}

/// The ways of [`send`], one for each device, until the program ends.
#[cfg(feature = "cuda")]
static WAYS: Mutex<Option<HashMap<DeviceId, Transfers>>> = Mutex::new(None);

impl HostBuffer {
    /// The values, to be written.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn as_mut_slice(&mut self) -> Result<&mut [f32]> {
        match &mut self.0 {
            Kind::Plain(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Kind::Pinned(values) => values.as_mut_slice(),
        }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Plain(values) => values.len(),
            #[cfg(feature = "cuda")]
            Kind::Pinned(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_becomes_the_processors_tensor() -> Result<()> {
        let transfers = Transfers::new(&Device::Cpu)?;
        assert!(!transfers.are_apart());
        let mut buffer = transfers.buffer(6)?;
        buffer.as_mut_slice()?.copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let tensor = transfers.finish(transfers.begin(buffer, (2, 3).into())?)?;
        assert_eq!(tensor.to_vec2::<f32>()?, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        assert!(transfers.begin(transfers.buffer(5)?, (2, 3).into()).is_err());
        assert!(transfers.send(transfers.buffer(5)?, (2, 3).into()).is_err());
        assert_eq!(transfers.send(transfers.buffer(6)?, (2, 3).into())?.dims(), [2, 3]);
        assert!(transfers.buffer(0)?.is_empty());
        assert_eq!(send(vec![1.0, 2.0], 2, &Device::Cpu)?.to_vec1::<f32>()?, [1.0, 2.0]);
        assert!(send(vec![1.0], 2, &Device::Cpu).is_err() && send(Vec::new(), 0, &Device::Cpu)?.elem_count() == 0);
        Ok(())
    }
}
