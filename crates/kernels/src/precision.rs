//! What GPUs compute with.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

static TF32: AtomicBool = AtomicBool::new(false);

/// Whether products of `f32` tensors on CUDA may round their factors to TF32, 10 bits of mantissa, which tensor cores multiply many times
/// faster; sums stay `f32`. Off at first. For the whole process, since cuBLAS's setting is; other devices are not touched by it.
pub fn allow_tf32(on: bool) {
    TF32.store(on, Ordering::Relaxed);
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(on);
}

/// What [`allow_tf32`] was last told.
pub fn tf32_allowed() -> bool {
    TF32.load(Ordering::Relaxed)
}

/// Whether the operations of this crate take bfloat16 activations on the device, beside `f32`: on CUDA they do (convolutions, batch norm,
/// pooling, ReLU, GELU, softmax, attention and linear layers, whose parameters and statistics stay `f32`), elsewhere not.
pub fn takes_bf16(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::served(device) {
        return true;
    }
    let _ = device;
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_until_it_is_allowed() {
        assert!(!takes_bf16(&Device::Cpu));
        assert!(!tf32_allowed());
        allow_tf32(true);
        assert!(tf32_allowed());
        allow_tf32(false);
        assert!(!tf32_allowed());
    }
}
