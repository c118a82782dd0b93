//! How much memory a device has left.

use candle_core::Device;

/// The memory of a device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not in use by any process.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The memory of a CUDA device, after it has done what it was told; `None` for other devices and where the driver does not say.
pub fn device_memory(device: &Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        device.synchronize().ok()?;
        // What tensors freed is kept for the next ones (see `open_cuda`).
        crate::open::pool::trim(cuda).ok()?;
        let (free, total) = cuda.cuda_stream().context().mem_get_info().ok()?;
        return Some(DeviceMemory { free: free as u64, total: total as u64 });
    }
    let _ = device;
    None
}

/// The most memory of a CUDA device that was in use at a time while `work` ran, in bytes, by all processes and for whatever; `None` as
/// [`device_memory`], where the driver does not count it, and where the work fails.
pub fn peak_memory<T>(device: &Device, work: impl FnOnce() -> Option<T>) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        device.synchronize().ok()?;
        if !crate::open::pool::count_peak(cuda).ok()? {
            return None;
        }
        let made = work()?;
        let DeviceMemory { free, total } = device_memory(device)?;
        let (most, kept) = crate::open::pool::peak(cuda).ok()??;
        drop(made);
        return Some((total - free).saturating_sub(kept) + most);
    }
    let _ = (device, work);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_s_memory_is_not_asked_for() {
        assert_eq!(device_memory(&Device::Cpu), None);
        assert_eq!(peak_memory(&Device::Cpu, || Some(())), None);
    }
}
