//! How products of `f32` numbers are computed on a GPU.

use std::sync::atomic::{AtomicBool, Ordering};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_until_it_is_allowed() {
        assert!(!tf32_allowed());
        allow_tf32(true);
        assert!(tf32_allowed());
        allow_tf32(false);
        assert!(!tf32_allowed());
    }
}
