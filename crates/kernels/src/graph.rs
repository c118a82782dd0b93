//! Operations whose results are there already, on any device, as nodes of candle's graph.

use std::sync::{Mutex, PoisonError};

#[cfg(any(feature = "cuda", feature = "emulation", test))]
use candle_core::CustomOp3;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail};

/// A result on its way into the graph, and its backward pass.
struct Handed<F> {
    name: &'static str,
    result: Mutex<Option<Tensor>>,
    back: F,
}

/// `result` as a function of two tensors; `back` gets them and the gradient to the result. A copy of the result enters the graph.
pub(crate) fn handed2<F>(name: &'static str, [a, b]: [&Tensor; 2], result: &Tensor, back: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
{
    a.apply_op2(b, Handed { name, result: Mutex::new(Some(result.detach())), back })
}

/// A result that nobody reads, and its backward pass.
#[cfg(any(feature = "cuda", feature = "emulation", test))]
struct Unread<F> {
    name: &'static str,
    back: F,
}

/// A tensor of one number, which is not to be read, as a function of three tensors; `back` gets them and the gradient to it.
#[cfg(any(feature = "cuda", feature = "emulation", test))]
pub(crate) fn unread3<F>(name: &'static str, [a, b, c]: [&Tensor; 3], back: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 3], &Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
{
    a.apply_op3(b, c, Unread { name, back })
}

impl<F> Handed<F> {
    /// The result as storage of its own that starts with it.
    fn take<S>(&self, of: impl FnOnce(&Storage, &Layout) -> Result<S>) -> Result<(S, Shape)> {
        let Some(result) = self.result.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("{}: the forward pass of one operation ran a second time", self.name)
        };
        let result = if result.layout().start_offset() == 0 { result.contiguous()? } else { result.force_contiguous()? };
        let (storage, layout) = result.storage_and_layout();
        Ok((of(&storage, layout)?, result.shape().clone()))
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cpu(storage) => storage.try_clone(layout),
            _ => bail!("{}: the result is not on the device of its input", self.name),
        })
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => bail!("{}: the result is not on the device of its input", self.name),
        })
    }

    /// Without a copy: candle's clone of Metal's memory is another handle of it, and nothing writes into a result.
    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Metal(storage) => storage.try_clone(layout),
            _ => bail!("{}: the result is not on the device of its input", self.name),
        })
    }
}

impl<F> CustomOp2 for Handed<F>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = (self.back)([a, b], &grad.detach().contiguous()?)?;
        Ok((da, db))
    }
}

#[cfg(any(feature = "cuda", feature = "emulation", test))]
impl<F> CustomOp3 for Unread<F>
where
    F: Fn([&Tensor; 3], &Tensor) -> Result<[Option<Tensor>; 3]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        first: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::cuda_backend::CudaStorageSlice;
        // SAFETY: nobody reads the number.
        let slice = CudaStorageSlice::F32(unsafe { first.device.alloc::<f32>(1)? });
        Ok((CudaStorage { slice, device: first.device.clone() }, Shape::from(1)))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = (self.back)([a, b, c], &grad.detach())?;
        Ok((da, db, dc))
    }
}
