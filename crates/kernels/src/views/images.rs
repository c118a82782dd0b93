//! Images on a device, which get there piece by piece: the host never needs the room for all of them at once.

use candle_core::{Device, Result, Tensor, bail};

use super::ViewTable;

/// Images that lie on a device.
pub struct DeviceImages {
    #[cfg(feature = "cuda")]
    device: candle_core::CudaDevice,
    #[cfg(feature = "cuda")]
    bytes: candle_core::CudaStorage,
    /// The way of the tables.
    #[cfg(feature = "cuda")]
    transfers: crate::transfer::Transfers,
    filled: Filled,
}

/// How much of a room holds something: it is filled from the front on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Filled {
    room: usize,
    len: usize,
}

impl Filled {
    /// Where the next `more` bytes go.
    #[cfg(any(feature = "cuda", test))]
    fn place(self, more: usize) -> Result<std::ops::Range<usize>> {
        match self.len.checked_add(more).filter(|&end| end <= self.room) {
            Some(end) => Ok(self.len..end),
            None => bail!("views: {more} more bytes of images behind {}, and there is room for {}", self.len, self.room),
        }
    }
}

impl DeviceImages {
    /// Copies `bytes` to a CUDA device.
    ///
    /// # Errors
    /// Another device; no memory.
    pub fn new(device: &Device, bytes: &[u8]) -> Result<Self> {
        let mut images = Self::with_room(device, bytes.len())?;
        images.append(bytes)?;
        Ok(images)
    }

    /// Room for `room` bytes of images on a CUDA device, to be filled by [`DeviceImages::append`].
    ///
    /// # Errors
    /// Another device; no memory.
    pub fn with_room(device: &Device, room: usize) -> Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                use crate::cuda::{device::Gpu, launch::Engine};
                // What is not filled yet holds anything, and no table of images there is taken.
                let bytes = Gpu(cuda).alloc(candle_core::DType::U8, room)?;
                let transfers = crate::transfer::Transfers::new(device)?;
                Ok(Self { device: cuda.clone(), bytes, transfers, filled: Filled { room, len: 0 } })
            }
            other => bail!("views: {room} bytes of images can lie on a CUDA device only, not on {:?}", other.location()),
        }
    }

    /// Copies `bytes` behind what lies there already; they may go when this returns.
    ///
    /// # Errors
    /// More than there is room for; when CUDA fails.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        #[cfg(feature = "cuda")]
        {
            let place = self.filled.place(bytes.len())?;
            crate::cuda::device::copy_bytes(&self.device, bytes, &mut self.bytes, place.clone())?;
            self.filled.len = place.end;
            Ok(())
        }
        #[cfg(not(feature = "cuda"))]
        bail!("views: this program was built without CUDA, so that {} bytes of images have no place", bytes.len())
    }

    /// How many bytes lie there.
    pub fn len(&self) -> usize {
        self.filled.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The views of `table`: (count, channels, size, size) `f32`. The host does not wait for them.
    ///
    /// # Errors
    /// A table of images that do not lie here; when CUDA fails.
    pub fn render(&self, table: &ViewTable) -> Result<Tensor> {
        table.check_within(self.len())?;
        #[cfg(feature = "cuda")]
        {
            use crate::cuda::{device::Gpu, tensor::Reading, tensor::tensor, views::render};
            // The table goes as one page-locked copy, for which the host does not wait; in rooms of few sizes, so that they are used again.
            let words = table.words();
            let room = words.len().next_power_of_two();
            let mut buffer = self.transfers.buffer(room)?;
            buffer.as_mut_slice()?.iter_mut().zip(&words).for_each(|(to, &word)| *to = f32::from_bits(word));
            let words = self.transfers.send(buffer, room.into())?;
            let reading = Reading::of(&words)?;
            let gpu = Gpu(&self.device);
            let out = render(&gpu, &self.bytes, self.len(), table, reading.view()?, candle_core::DType::F32)?;
            Ok(tensor(out, (table.len(), table.channels(), table.size(), table.size())))
        }
        #[cfg(not(feature = "cuda"))]
        bail!("views: this program was built without CUDA")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_filled_from_the_front_and_not_beyond_its_end() -> Result<()> {
        let mut filled = Filled { room: 10, len: 0 };
        for (more, place) in [(4, 0..4), (0, 4..4), (6, 4..10), (0, 10..10)] {
            assert_eq!(filled.place(more)?, place);
            filled.len = place.end;
        }
        let told = filled.place(1).expect_err("full").to_string();
        assert!(told.contains("1 more bytes") && told.contains("room for 10"), "{told}");
        assert!(Filled { len: 3, ..filled }.place(usize::MAX).is_err());
        Ok(())
    }

    #[test]
    fn other_devices_are_refused() {
        let told = DeviceImages::with_room(&Device::Cpu, 7).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(told.contains("7 bytes") && told.contains("CUDA"), "{told}");
    }
}
