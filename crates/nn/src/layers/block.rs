//! Convolutions with their norms, alone or as a residual block: one fused operation in training.

use candle_core::Tensor;
use twinsight_kernels::{BlockParts, ConvNorm as FusedConvNorm, Shortcut, conv_blocks};

use crate::layers::norm::EPS;
use crate::{BatchNorm, Builder, Conv2d, Conv2dConfig, Init, Mode, Norm, NormKind, Result};

/// A convolution without bias and the norm after it.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: Norm,
}

impl ConvNorm {
    /// `names`: those of the convolution and of the norm, under `b`. The convolution starts by He et al.'s normal distribution
    /// (fan out), with "same" padding for odd kernels; the norm at 1 and 0.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(
        b: &Builder,
        names: [&str; 2],
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
        norm: NormKind,
    ) -> Result<Self> {
        let config = Conv2dConfig { stride, padding: kernel / 2, ..Conv2dConfig::default() };
        let conv = Conv2d::new(&b.under(names[0]), inputs, outputs, kernel, config, false, Init::KaimingNormalFanOut)?;
        Ok(Self { conv, norm: Norm::new(&b.under(names[1]), outputs, norm)? })
    }

    /// The norm.
    pub fn norm(&self) -> &Norm {
        &self.norm
    }

    /// Convolution, norm, then `residual` added and negative values cut, where asked for.
    fn forward(&self, x: &Tensor, residual: Option<&Tensor>, relu: bool, mode: &Mode) -> Result<Tensor> {
        self.norm.forward_fused(&self.conv.forward(x, mode)?, residual, relu, mode)
    }

    /// What the fused operation takes; none if a part of it is missing.
    fn parts(&self, mode: &Mode) -> Option<FusedConvNorm<'_>> {
        let (scale, shift) = self.norm.batch()?.affine(mode)?;
        let (weight, config) = self.conv.without_bias(mode)?;
        Some(FusedConvNorm { weight, scale, shift, config })
    }
}

/// What a block adds before its last ReLU.
#[derive(Debug, Clone)]
pub enum BlockShortcut {
    /// Nothing: the block is a chain.
    None,
    /// Its input.
    Identity,
    /// Its input through a convolution and a norm.
    ConvNorm(Box<ConvNorm>),
}

/// Layers of convolution, norm and ReLU, with a shortcut before the last ReLU (He et al. 2016).
#[derive(Debug, Clone)]
pub struct ResidualBlock {
    path: Vec<ConvNorm>,
    shortcut: BlockShortcut,
}

impl ResidualBlock {
    /// A block of these layers.
    pub fn new(path: Vec<ConvNorm>, shortcut: BlockShortcut) -> Self {
        Self { path, shortcut }
    }

    /// The layers.
    pub fn path(&self) -> &[ConvNorm] {
        &self.path
    }

    /// (N, H, W, inputs) → (N, H', W', outputs). In training the backward pass can run once only on a result.
    ///
    /// # Errors
    /// Another number of channels, a batch that the mode's blocks do not divide, in training one value a channel.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        residual_blocks([self], x, mode)
    }

    /// The shortcut's layer, if it has one.
    fn side(&self) -> Option<&ConvNorm> {
        match &self.shortcut {
            BlockShortcut::ConvNorm(layer) => Some(&**layer),
            _ => None,
        }
    }

    /// What the fused operation takes; none if a part of it is missing.
    fn parts(&self, mode: &Mode) -> Option<BlockParts<'_>> {
        let path = self.path.iter().map(|layer| layer.parts(mode)).collect::<Option<Vec<_>>>()?;
        let shortcut = match &self.shortcut {
            BlockShortcut::None => Shortcut::None,
            BlockShortcut::Identity => Shortcut::Identity,
            BlockShortcut::ConvNorm(layer) => Shortcut::ConvNorm(layer.parts(mode)?),
        };
        Some(BlockParts { path, shortcut })
    }

    /// Layer by layer: by running statistics, or where a layer has no part that the fused operation needs.
    fn one_by_one(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let residual = match (&self.shortcut, self.side()) {
            (_, Some(layer)) => Some(layer.forward(x, None, false, mode)?),
            (BlockShortcut::Identity, _) => Some(x.clone()),
            _ => None,
        };
        let mut y = x.clone();
        for (i, layer) in self.path.iter().enumerate() {
            y = layer.forward(&y, residual.as_ref().filter(|_| i + 1 == self.path.len()), true, mode)?;
        }
        Ok(y)
    }
}

/// Blocks one after the other, (N, H, W, inputs of the first) → (N, H', W', outputs of the last); in training one operation,
/// on whose result the backward pass can run once only.
///
/// # Errors
/// As [`ResidualBlock::forward`].
pub fn residual_blocks<'a>(blocks: impl IntoIterator<Item = &'a ResidualBlock>, x: &Tensor, mode: &Mode) -> Result<Tensor> {
    let blocks: Vec<&ResidualBlock> = blocks.into_iter().collect();
    let parts: Option<Vec<_>> = blocks.iter().map(|block| block.parts(mode)).collect();
    let Some(parts) = parts.filter(|_| mode.train) else {
        return blocks.iter().try_fold(x.clone(), |x, block| block.one_by_one(&x, mode));
    };
    let out = conv_blocks(x, &parts, EPS, mode.stat_groups, mode.precision.keep())?;
    let layers = blocks.iter().flat_map(|block| block.path.iter().chain(block.side()));
    let norms: Vec<&BatchNorm> = layers.filter_map(|layer| layer.norm.batch()).collect();
    // Every norm's batch is looked at before the first running statistic moves.
    norms.iter().zip(&out.statistics).try_for_each(|(norm, seen)| norm.check(seen))?;
    norms.iter().zip(&out.statistics).try_for_each(|(norm, seen)| norm.take_up(seen, mode))?;
    Ok(out.y)
}
