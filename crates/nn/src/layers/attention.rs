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

/// The layers of a transformer's block, which computes m = x + attn(norm1(x)), then m + mlp(norm2(m)).
#[derive(Debug, Clone, Copy)]
pub struct TransformerLayers<'a> {
    /// The norm before the attention.
    pub norm1: &'a LayerNorm,
    /// The attention.
    pub attn: &'a Attention,
    /// The norm before the MLP.
    pub norm2: &'a LayerNorm,
    /// The MLP.
    pub mlp: &'a Mlp,
}

/// Blocks one after the other, without dropping paths, as one operation. Its backward pass runs once for a forward pass.
///
/// # Errors
/// Tensors of other shapes than (N, T, dim); norms of different epsilons, or attentions of different heads.
pub fn transformer_blocks(x: &Tensor, blocks: &[TransformerLayers<'_>], mode: &Mode) -> Result<Tensor> {
    let Some(first) = blocks.first() else { return Ok(x.clone()) };
    let (heads, eps) = (first.attn.heads, first.norm1.eps());
    if blocks.iter().any(|b| b.attn.heads != heads || b.norm1.eps() != eps || b.norm2.eps() != eps) {
        return Err(Error::BadSetting("transformer blocks: their norms' epsilons or their heads differ".into()));
    }
    fn layer<'a>(layer: &'a Linear, mode: &Mode) -> Affine<'a> {
        layer.affine(mode).expect("the layers of attention and MLP are built with biases")
    }
    let parameters: Vec<_> = blocks
        .iter()
        .map(|b| TransformerParameters {
            norm1: b.norm1.affine(mode),
            qkv: layer(&b.attn.qkv, mode),
            proj: layer(&b.attn.proj, mode),
            norm2: b.norm2.affine(mode),
            fc1: layer(&b.mlp.fc1, mode),
            fc2: layer(&b.mlp.fc2, mode),
        })
        .collect();
    Ok(twinsight_kernels::transformer_blocks(x, &parameters, heads, eps)?)
}
