//! Multi-head self-attention over packed queries, keys and values.

use candle_core::{Result, Tensor, bail};

use crate::cpu::attention::Attention;
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// softmax(q kᵀ / √D) v for every head (Vaswani et al. 2017), from the packed output of one linear layer.
///
/// # Shapes
/// `qkv` (N, T, 3 · heads · D): first all queries, then all keys, then all values, each ordered by head, as timm and
/// DINO pack them. The result is (N, T, heads · D).
///
/// # Errors
/// When `qkv` is not `f32` (or, on CUDA, bfloat16), has not three axes, or its last axis is not a multiple of 3 · `heads`.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    const OP: &str = "attention";
    check::float(OP, "qkv", qkv)?;
    let [n, t, packed] = *qkv.dims() else {
        bail!("{OP}: qkv has shape {:?}, expected three axes (N, T, 3 · heads · D)", qkv.dims());
    };
    if heads == 0 || packed == 0 || packed % (3 * heads) != 0 {
        bail!("{OP}: the last axis of qkv is {packed}, expected a positive multiple of 3 · heads with heads = {heads}");
    }
    if on_cpu(qkv) {
        return qkv.contiguous()?.apply_op1(Attention { n, t, heads, d: packed / (3 * heads) });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(qkv) {
        return crate::cuda::attention::attention(qkv, heads);
    }
    composed::attention::attention(qkv, heads)
}
