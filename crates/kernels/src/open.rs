//! Devices, opened the way the kernels use them.

use candle_core::{Device, Result};

/// Opens the CUDA device with this number, from 0, for work on one stream: candle's and this crate's.
///
/// - The stream is one and the same on every thread (`Device::new_cuda` takes each thread's own, and work of one thread would not wait for
///   that of another).
/// - Tensors record no events of their uses, since one stream orders them. Copies by [`crate::transfer`] are ordered by their own. Streams
///   that others make of the device's context are not ordered with its tensors.
/// - Products of bfloat16 numbers are added up in `f32` throughout: as it is at first, cuBLAS may add parts of long sums up as bfloat16.
/// - Memory that tensors free is kept for the next ones; [`crate::device_memory`] gives back what none uses before it asks.
///
/// # Errors
/// A build without the feature `cuda`, a machine without such a device or its driver.
pub fn open_cuda(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        // SAFETY: the context was made by the line above, and its one stream is the device's. The only other stream that touches a tensor is
        // that of `cuda/copies.rs`, which orders its copies by events of its own.
        unsafe { cuda.disable_event_tracking() };
        pool::keep(cuda)?;
        add_up_in_f32(cuda)?;
    }
    Ok(device)
}

/// Forbids cuBLAS to add up in the type of the result.
#[cfg(feature = "cuda")]
fn add_up_in_f32(device: &candle_core::CudaDevice) -> Result<()> {
    use candle_core::cuda_backend::cudarc::cublas::sys::{cublasMath_t, cublasSetMathMode};
    let blas = device.cublas_handle();
    // SAFETY: the handle is live as long as `blas`, and nothing else uses the device yet.
    let set =
        unsafe { cublasSetMathMode(*blas.handle(), cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION) }.result();
    set.map_err(|e| candle_core::Error::Cuda(Box::new(e)))
}

/// Opens the Metal device with this number, from 0.
///
/// # Errors
/// A build without the feature `metal`, a machine without such a device: candle itself would panic.
pub fn open_metal(number: usize) -> Result<Device> {
    #[cfg(feature = "metal")]
    {
        let there = <<candle_core::MetalDevice as std::ops::Deref>::Target>::all().len();
        if number >= there {
            candle_core::bail!("there is no Metal device {number}, of {there}: take one from 0 on below that");
        }
    }
    Device::new_metal(number)
}

/// The driver's pool, of which tensors' memory is.
#[cfg(feature = "cuda")]
pub(crate) mod pool {
    use std::sync::Arc;

    use candle_core::cuda_backend::cudarc::driver::DriverError;
    use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
    use candle_core::{CudaDevice, Error, Result};

    /// Keeps what tensors free: as it is at first, a wait for the device gives all of it back to the driver.
    pub(super) fn keep(device: &CudaDevice) -> Result<()> {
        let Some(pool) = of(device)? else { return Ok(()) };
        let mut most = u64::MAX;
        // SAFETY: the pool is the driver's own and lives as long as the device; the attribute's type is an unsigned 64-bit number.
        let set = unsafe {
            mem_pool::set_attribute(
                pool,
                CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                std::ptr::from_mut(&mut most).cast(),
            )
        };
        set.map_err(failed)
    }

    /// Gives what no tensor uses back to the driver.
    pub(crate) fn trim(device: &CudaDevice) -> Result<()> {
        let Some(pool) = of(device)? else { return Ok(()) };
        // SAFETY: the pool is the driver's own; memory in use stays.
        unsafe { mem_pool::trim_to(pool, 0) }.map_err(failed)
    }

    /// Counts the most memory that tensors use at a time from here on; false where no pool counts it.
    pub(crate) fn count_peak(device: &CudaDevice) -> Result<bool> {
        let Some(pool) = of(device)? else { return Ok(false) };
        let mut zero = 0_u64;
        // SAFETY: as in `keep`; this attribute may be set to zero only.
        let set = unsafe {
            mem_pool::set_attribute(
                pool,
                CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
                std::ptr::from_mut(&mut zero).cast(),
            )
        };
        set.map(|()| true).map_err(failed)
    }

    /// The most memory that tensors used at a time since it was counted, and what the pool has of the driver now.
    pub(crate) fn peak(device: &CudaDevice) -> Result<Option<(u64, u64)>> {
        let Some(pool) = of(device)? else { return Ok(None) };
        let read = |attribute| {
            let mut value = 0_u64;
            // SAFETY: the pool is the driver's own, and these attributes are unsigned 64-bit numbers.
            unsafe { mem_pool::get_attribute(pool, attribute, std::ptr::from_mut(&mut value).cast()) }.map_err(failed)?;
            Ok::<u64, Error>(value)
        };
        let used = read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        Ok(Some((used, read(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?)))
    }

    /// The pool; `None` where tensors' memory comes from none.
    fn of(device: &CudaDevice) -> Result<Option<CUmemoryPool>> {
        let context = Arc::clone(device.cuda_stream().context());
        if !context.has_async_alloc() {
            return Ok(None);
        }
        context.bind_to_thread().map_err(failed)?;
        // SAFETY: the device is that of a live context.
        unsafe { device::get_mem_pool(context.cu_device()) }.map(Some).map_err(failed)
    }

    fn failed(error: DriverError) -> Error {
        Error::Cuda(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_for_the_processor_opens_none() {
        if !candle_core::utils::cuda_is_available() {
            assert!(open_cuda(0).is_err());
        }
        if !candle_core::utils::metal_is_available() {
            assert!(open_metal(0).is_err());
        }
    }
}
