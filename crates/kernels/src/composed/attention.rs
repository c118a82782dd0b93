//! Multi-head self-attention.

use candle_core::{Result, Tensor};

use super::softmax::softmax;

/// See [`crate::attention`].
///
/// # Errors
/// When a candle operation fails.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, t, packed) = qkv.dims3()?;
    let d = packed / (3 * heads);
    let split = qkv.reshape((n, t, 3, heads, d))?.permute((2, 0, 3, 1, 4))?;
    let part = |i: usize| split.get(i)?.contiguous()?.reshape((n * heads, t, d));
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = q.affine(1.0 / (d as f64).sqrt(), 0.0)?.matmul(&k.t()?)?;
    let out = softmax(&scores)?.matmul(&v)?;
    out.reshape((n, heads, t, d))?.transpose(1, 2)?.contiguous()?.reshape((n, t, heads * d))
}
