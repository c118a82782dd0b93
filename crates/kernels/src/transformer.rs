//! A transformer's block: attention and an MLP, each behind a layer norm and beside a shortcut.

use candle_core::{Result, Tensor, bail};

use crate::cpu::memory::on_cpu;
use crate::cpu::transformer::{Sizes, TransformerBlock};
use crate::{attention, check, gelu, layer_norm, linear};

/// A weight and its bias.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// The weight: (O, I) of a linear layer, (C) of a norm.
    pub weight: &'a Tensor,
    /// The bias: (O) of a linear layer, (C) of a norm.
    pub bias: &'a Tensor,
}

/// The parameters of [`transformer_block`].
#[derive(Debug, Clone, Copy)]
pub struct TransformerParameters<'a> {
    /// The norm before the attention, (C).
    pub norm1: Affine<'a>,
    /// Queries, keys and values, (3 · C, C), ordered as [`attention`] takes them.
    pub qkv: Affine<'a>,
    /// The layer after the attention, (C, C).
    pub proj: Affine<'a>,
    /// The norm before the MLP, (C).
    pub norm2: Affine<'a>,
    /// The MLP's first layer, (hidden, C).
    pub fc1: Affine<'a>,
    /// The MLP's second layer, (C, hidden).
    pub fc2: Affine<'a>,
}

/// A pre-norm block of a vision transformer (Dosovitskiy et al. 2021):
/// m = x + proj(attention(qkv(norm1(x)))), then m + fc2(gelu(fc1(norm2(m)))).
///
/// On the CPU this is one operation, several times faster than its parts where rows are short, and its graph keeps less
/// than that of the parts. The backward pass consumes what the forward pass kept, so it runs once for a forward pass.
///
/// # Shapes
/// `x` (N, T, C); the result has the same.
///
/// # Errors
/// When a tensor is not `f32`, shapes do not fit, or `heads` do not divide C. The backward pass fails when it runs a second
/// time.
pub fn transformer_block(x: &Tensor, parameters: &TransformerParameters<'_>, heads: usize, eps: f64) -> Result<Tensor> {
    const OP: &str = "transformer_block";
    check::f32(OP, "x", x)?;
    let [n, t, c] = *x.dims() else {
        bail!("{OP}: x has shape {:?}, expected three axes (N, T, C)", x.dims());
    };
    if heads == 0 || c == 0 || c % heads != 0 {
        bail!("{OP}: the last axis of x is {c}, expected a positive multiple of heads = {heads}");
    }
    let TransformerParameters { norm1, qkv, proj, norm2, fc1, fc2 } = parameters;
    let hidden = match *fc1.weight.dims() {
        [hidden, inputs] if inputs == c && hidden > 0 => hidden,
        ref other => bail!("{OP}: fc1.weight has shape {other:?}, expected (hidden, {c}) for x of shape {:?}", x.dims()),
    };
    for (name, layer, weight) in [
        ("norm1", norm1, &[c][..]),
        ("qkv", qkv, &[3 * c, c]),
        ("proj", proj, &[c, c]),
        ("norm2", norm2, &[c]),
        ("fc1", fc1, &[hidden, c]),
        ("fc2", fc2, &[c, hidden]),
    ] {
        check::shaped(OP, &format!("{name}.weight"), layer.weight, weight, x)?;
        check::shaped(OP, &format!("{name}.bias"), layer.bias, &weight[..1], x)?;
    }
    if !on_cpu(x) {
        let y = linear(&layer_norm(x, norm1.weight, norm1.bias, eps)?, qkv.weight, Some(qkv.bias))?;
        let middle = (x + linear(&attention(&y, heads)?, proj.weight, Some(proj.bias))?)?;
        let y = linear(&layer_norm(&middle, norm2.weight, norm2.bias, eps)?, fc1.weight, Some(fc1.bias))?;
        return &middle + linear(&gelu(&y)?, fc2.weight, Some(fc2.bias))?;
    }
    let flat = [norm1, qkv, proj, norm2, fc1, fc2]
        .into_iter()
        .flat_map(|layer| [layer.weight, layer.bias])
        .map(Tensor::flatten_all)
        .collect::<Result<Vec<_>>>()?;
    let packed = Tensor::cat(&flat, 0)?;
    let track = x.track_op() || packed.track_op();
    let sizes = Sizes { n, t, c, heads, hidden, eps: eps as f32 };
    x.contiguous()?.apply_op2(&packed, TransformerBlock::new(sizes, track))
}
