//! Self-attention and the MLP of a transformer block, under timm's names.

use candle_core::Tensor;

use crate::{Builder, Error, Init, Linear, Mode, Result};

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
