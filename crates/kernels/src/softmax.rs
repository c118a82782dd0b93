//! Softmax, its logarithm, and L2 normalisation, along the last axis.

use candle_core::{Result, Tensor};

use crate::cpu::memory::on_cpu;
use crate::cpu::rows::RowOp;
use crate::{check, composed};

/// exp(x) / Σ exp(x) along the last axis, computed without overflow. The shape stays.
///
/// # Errors
/// When `x` is not `f32` or is a scalar.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    check::last("softmax", "x", x)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(RowOp::Softmax);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::rows::on_device::softmax(x);
    }
    composed::softmax::softmax(x)
}

/// x − log Σ exp(x) along the last axis, computed without overflow. The shape stays.
///
/// # Errors
/// When `x` is not `f32` or is a scalar.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    check::f32("log_softmax", "x", x)?;
    check::last("log_softmax", "x", x)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(RowOp::LogSoftmax);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::rows::on_device::log_softmax(x);
    }
    composed::softmax::log_softmax(x)
}

/// x / max(‖x‖₂, eps) along the last axis, as `torch.nn.functional.normalize`. The shape stays.
///
/// Where the norm is below `eps` the divisor is a constant, so a zero vector gives zeros and a finite gradient.
///
/// # Errors
/// When `x` is not `f32` or is a scalar.
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    check::f32("l2_normalize", "x", x)?;
    check::last("l2_normalize", "x", x)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(RowOp::L2Normalize { eps: eps as f32 });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::rows::on_device::l2_normalize(x, eps);
    }
    composed::softmax::l2_normalize(x, eps)
}
