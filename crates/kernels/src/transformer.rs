//! Blocks of a transformer: attention and an MLP, each behind a layer norm and beside a shortcut.

use candle_core::{DType, Result, Tensor, bail};

use crate::cpu::memory::on_cpu;
use crate::cpu::transformer::{Sizes, TransformerBlocks};
use crate::{Keep, attention, check, gelu, layer_norm, linear};

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
/// On the CPU this is one operation, faster than its parts, whose graph keeps less than theirs. The backward pass consumes
/// what the forward pass kept, so it runs once for a forward pass.
///
/// # Shapes
/// `x` (N, T, C); the result has the same.
///
/// # Errors
/// When a tensor is not `f32`, shapes do not fit, or `heads` do not divide C. The backward pass fails when it runs a second
/// time.
pub fn transformer_block(x: &Tensor, parameters: &TransformerParameters<'_>, heads: usize, eps: f64) -> Result<Tensor> {
    transformer_blocks(x, std::slice::from_ref(parameters), heads, eps, Keep::F32)
}

/// Blocks as [`transformer_block`], one after the other, as one operation on the CPU; `x` itself if there are none. With [`Keep::Bf16`], where
/// [`crate::takes_bf16`] says so, the branches are computed in bfloat16 from the norms' results on; what they are added to stays `f32`.
///
/// # Shapes
/// As [`transformer_block`]; all blocks have the same hidden size.
///
/// # Errors
/// As [`transformer_block`].
pub fn transformer_blocks(
    x: &Tensor,
    blocks: &[TransformerParameters<'_>],
    heads: usize,
    eps: f64,
    keep: Keep,
) -> Result<Tensor> {
    check::f32(OP, "x", x)?;
    let [n, t, c] = *x.dims() else {
        bail!("{OP}: x has shape {:?}, expected three axes (N, T, C)", x.dims());
    };
    if heads == 0 || c == 0 || c % heads != 0 {
        bail!("{OP}: the last axis of x is {c}, expected a positive multiple of heads = {heads}");
    }
    let Some(first) = blocks.first() else { return Ok(x.clone()) };
    let hidden = match *first.fc1.weight.dims() {
        [hidden, inputs] if inputs == c && hidden > 0 => hidden,
        ref other => bail!("{OP}: fc1.weight has shape {other:?}, expected (hidden, {c}) for x of shape {:?}", x.dims()),
    };
    for (i, block) in blocks.iter().enumerate() {
        let place = if blocks.len() == 1 { String::new() } else { format!("blocks[{i}].") };
        for ((name, layer), weight) in
            block.layers().into_iter().zip([&[c][..], &[3 * c, c], &[c, c], &[c], &[hidden, c], &[c, hidden]])
        {
            check::shaped(OP, &format!("{place}{name}.weight"), layer.weight, weight, x)?;
            check::shaped(OP, &format!("{place}{name}.bias"), layer.bias, &weight[..1], x)?;
        }
    }
    if !on_cpu(x) {
        let kind = if keep == Keep::Bf16 && crate::takes_bf16(x.device()) { DType::BF16 } else { DType::F32 };
        return blocks.iter().try_fold(x.clone(), |x, block| composed(&x, block, heads, eps, kind));
    }
    let flat = blocks
        .iter()
        .flat_map(TransformerParameters::layers)
        .flat_map(|(_, layer)| [layer.weight, layer.bias])
        .map(Tensor::flatten_all)
        .collect::<Result<Vec<_>>>()?;
    let packed = Tensor::cat(&flat, 0)?;
    let track = x.track_op() || packed.track_op();
    let sizes = Sizes { n, t, c, heads, hidden, eps: eps as f32 };
    x.contiguous()?.apply_op2(&packed, TransformerBlocks::new(sizes, blocks.len(), track))
}

const OP: &str = "transformer_block";

impl<'a> TransformerParameters<'a> {
    /// The layers by name, in the order in which the operation on the CPU takes their parameters.
    fn layers(&self) -> [(&'static str, Affine<'a>); 6] {
        let Self { norm1, qkv, proj, norm2, fc1, fc2 } = *self;
        [("norm1", norm1), ("qkv", qkv), ("proj", proj), ("norm2", norm2), ("fc1", fc1), ("fc2", fc2)]
    }
}

/// One block as a chain of this crate's operations, its branches in `kind`.
fn composed(x: &Tensor, block: &TransformerParameters<'_>, heads: usize, eps: f64, kind: DType) -> Result<Tensor> {
    let norm = |x: &Tensor, layer: Affine<'_>| {
        #[cfg(feature = "cuda")]
        if crate::cuda::tensor::serves(x) {
            return crate::cuda::layer_norm::layer_norm(x, layer.weight, layer.bias, eps, kind);
        }
        layer_norm(x, layer.weight, layer.bias, eps)?.to_dtype(kind)
    };
    let affine = |x: &Tensor, layer: Affine<'_>| linear(x, layer.weight, Some(layer.bias));
    let y = attention(&affine(&norm(x, block.norm1)?, block.qkv)?, heads)?;
    let middle = (x + affine(&y, block.proj)?.to_dtype(x.dtype())?)?;
    let y = gelu(&affine(&norm(&middle, block.norm2)?, block.fc1)?)?;
    &middle + affine(&y, block.fc2)?.to_dtype(x.dtype())?
}
