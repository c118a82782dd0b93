//! Self-attention and the MLP of a transformer block, under timm's names.

use candle_core::Tensor;
use twinsight_kernels::{Affine, TransformerParameters};

use crate::{Builder, Error, Init, LayerNorm, Linear, Mode, Result};

/// Truncated normal with standard deviation 0.02: the start of every linear weight of a ViT.
const INIT: Init = Init::TruncNormal(0.02);

/// Multi-head self-attention (Vaswani et al. 2017): children `qkv` (with bias) and `proj`.
#[derive(Debug, Clone)]
pub struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    /// A layer of `heads` heads over `dim` numbers a token.
    ///
    /// # Errors
    /// Heads that do not divide `dim`; a name that is taken.
    pub fn new(b: &Builder, dim: usize, heads: usize) -> Result<Self> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            return Err(Error::BadSetting(format!("attention {}: {heads} heads do not divide {dim} channels", b.prefix())));
        }
        Ok(Self {
            qkv: Linear::new(&b.under("qkv"), dim, 3 * dim, true, INIT)?,
            proj: Linear::new(&b.under("proj"), dim, dim, true, INIT)?,
            heads,
        })
    }

    /// (N, T, dim) → the same.
    ///
    /// # Errors
    /// Tensors of other shapes.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let qkv = self.qkv.forward(x, mode)?;
        self.proj.forward(&twinsight_kernels::attention(&qkv, self.heads)?, mode)
    }
}

/// Two linear layers with an exact GELU between: children `fc1`, `fc2`.
#[derive(Debug, Clone)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// `dim` → `hidden` → `dim`.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, dim: usize, hidden: usize) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(&b.under("fc1"), dim, hidden, true, INIT)?,
            fc2: Linear::new(&b.under("fc2"), hidden, dim, true, INIT)?,
        })
    }

    /// (…, dim) → the same.
    ///
    /// # Errors
    /// A last axis of another size.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        self.fc2.forward(&twinsight_kernels::gelu(&self.fc1.forward(x, mode)?)?, mode)
    }
}

/// m = x + attn(norm1(x)), then m + mlp(norm2(m)), as one operation: what a transformer's block computes when it drops no
/// path. The layers keep their names, and the backward pass runs once for a forward pass.
///
/// # Errors
/// Tensors of other shapes than (N, T, dim); norms of two epsilons.
pub fn transformer_block(
    x: &Tensor,
    norm1: &LayerNorm,
    attn: &Attention,
    norm2: &LayerNorm,
    mlp: &Mlp,
    mode: &Mode,
) -> Result<Tensor> {
    let ((norm1, eps), (norm2, other)) = (norm1.affine(mode), norm2.affine(mode));
    if eps != other {
        return Err(Error::BadSetting(format!("transformer block: its norms have two epsilons, {eps} and {other}")));
    }
    fn layer<'a>(layer: &'a Linear, mode: &Mode) -> Affine<'a> {
        layer.affine(mode).expect("the layers of attention and MLP are built with biases")
    }
    let parameters = TransformerParameters {
        norm1,
        qkv: layer(&attn.qkv, mode),
        proj: layer(&attn.proj, mode),
        norm2,
        fc1: layer(&mlp.fc1, mode),
        fc2: layer(&mlp.fc2, mode),
    };
    Ok(twinsight_kernels::transformer_block(x, &parameters, attn.heads, eps)?)
}
