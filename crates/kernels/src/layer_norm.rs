//! Layer normalisation along the last axis.

use candle_core::{Result, Tensor};

use crate::cpu::layer_norm::LayerNorm;
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// Layer normalisation (Ba et al. 2016) along the last axis: (x − mean) / √(var + eps) · weight + bias, with the biased
/// variance, as `torch.nn.LayerNorm`.
///
/// # Shapes
/// `x` (…, C), `weight` and `bias` (C); the result has the shape of `x`.
///
/// # Errors
/// When a tensor is not `f32` or shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    check::f32(OP, "x", x)?;
    let c = check::last(OP, "x", x)?;
    check::shaped(OP, "weight", weight, &[c], x)?;
    check::shaped(OP, "bias", bias, &[c], x)?;
    if on_cpu(x) {
        let op = LayerNorm { c, eps: eps as f32 };
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::layer_norm::layer_norm(x, weight, bias, eps, x.dtype());
    }
    composed::norm::layer_norm(x, weight, bias, eps)
}
