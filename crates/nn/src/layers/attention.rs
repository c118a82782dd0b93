//! Self-attention and the MLP of a transformer block, under timm's names.

use candle_core::Tensor;
use twinsight_kernels::{Affine, TransformerParameters};

use crate::{Builder, Error, Init, LayerNorm, LayerScale, Linear, Mode, Result};

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
        let qkv = self.qkv.forward(&mode.rounded(x)?, mode)?;
        Ok(self.proj.forward(&twinsight_kernels::attention(&qkv, self.heads)?, mode)?.to_dtype(x.dtype())?)
    }

    /// (N, T, dim) → (N, heads, T, T): how much each token (the first T) looks at each other, summing to 1 over the last axis.
    ///
    /// # Errors
    /// Tensors of other shapes.
    pub fn weights(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let (n, t, dim) = x.dims3()?;
        let each = dim / self.heads;
        let qkv = self.qkv.forward(x, mode)?.reshape((n, t, 3, self.heads, each))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let products = (part(0)?.matmul(&part(1)?.t()?.contiguous()?)? * (1.0 / (each as f64).sqrt()))?;
        Ok(twinsight_kernels::softmax(&products)?)
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
        let inside = twinsight_kernels::gelu(&self.fc1.forward(&mode.rounded(x)?, mode)?)?;
        Ok(self.fc2.forward(&inside, mode)?.to_dtype(x.dtype())?)
    }
}

/// The gated MLP of DINOv2's giant, fc2(silu(a) · b) with (a, b) = fc1(x) (Shazeer 2020, SwiGLU): children `fc1`, which gives both
/// halves one after the other, and `fc2`.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    fc1: Linear,
    fc2: Linear,
    hidden: usize,
}

impl SwiGlu {
    /// `dim` → twice `hidden` → `hidden` → `dim`.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, dim: usize, hidden: usize) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(&b.under("fc1"), dim, 2 * hidden, true, INIT)?,
            fc2: Linear::new(&b.under("fc2"), hidden, dim, true, INIT)?,
            hidden,
        })
    }

    /// (…, dim) → the same.
    ///
    /// # Errors
    /// A last axis of another size.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let both = self.fc1.forward(x, mode)?;
        let last = both.rank() - 1;
        let gate = both.narrow(last, 0, self.hidden)?.contiguous()?;
        let gated = (gate.silu()? * both.narrow(last, self.hidden, self.hidden)?.contiguous()?)?;
        self.fc2.forward(&gated, mode)
    }
}

/// The layers of a transformer's block, which computes m = x + ls1 · attn(norm1(x)), then m + ls2 · mlp(norm2(m)).
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
    /// The factors of either branch, where there are any.
    pub scales: Option<[&'a LayerScale; 2]>,
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
    // A branch's factors go into the rows of its last layer: γ (W x + b) = (γ W) x + γ b.
    let scaled = blocks
        .iter()
        .map(|b| {
            b.scales
                .map(|[one, two]| -> Result<_> {
                    Ok([one.folded(layer(&b.attn.proj, mode), mode)?, two.folded(layer(&b.mlp.fc2, mode), mode)?])
                })
                .transpose()
        })
        .collect::<Result<Vec<_>>>()?;
    let parameters: Vec<_> = blocks
        .iter()
        .zip(&scaled)
        .map(|(b, scaled)| {
            let (proj, fc2) = match scaled {
                Some([one, two]) => (Affine { weight: &one.0, bias: &one.1 }, Affine { weight: &two.0, bias: &two.1 }),
                None => (layer(&b.attn.proj, mode), layer(&b.mlp.fc2, mode)),
            };
            TransformerParameters {
                norm1: b.norm1.affine(mode),
                qkv: layer(&b.attn.qkv, mode),
                proj,
                norm2: b.norm2.affine(mode),
                fc1: layer(&b.mlp.fc1, mode),
                fc2,
            }
        })
        .collect();
    Ok(twinsight_kernels::transformer_blocks(x, &parameters, heads, eps, mode.precision.keep())?)
}
