//! Activation functions.

use candle_core::{Result, Tensor};

use crate::cpu::elementwise::{Gelu, Relu};
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// max(x, 0), with gradient 0 at 0 as in PyTorch. Any shape.
///
/// # Errors
/// When `x` is not `f32`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    check::float("relu", "x", x)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(Relu);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::elementwise::activation(x, crate::cuda::elementwise::Activation::Relu);
    }
    composed::activation::relu(x)
}

/// x · Φ(x), with the Gaussian's exact distribution function (Hendrycks and Gimpel 2016; not the tanh approximation). Any
/// shape.
///
/// # Errors
/// When `x` is not `f32`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    check::float("gelu", "x", x)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(Gelu);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::elementwise::activation(x, crate::cuda::elementwise::Activation::Gelu);
    }
    composed::activation::gelu(x)
}
