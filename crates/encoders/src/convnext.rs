//! ConvNeXt under timm's parameter names (`stem.0.weight`, `stages.1.downsample.1.weight`, `stages.0.blocks.0.conv_dw.weight` …),
//! without the classifier but with the norm before it (`head.norm`).
//!
//! Activations are (N, H, W, C) inside, where layer norm and the pointwise layers work along the last axis. Weights start by a
//! normal distribution of deviation 0.02 cut at ±2, biases at 0, a block's factors at 1e-6; norms use ε = 1e-6.

use candle_core::Tensor;
use twinsight_kernels::{gelu, global_avg_pool};
use twinsight_nn::{Builder, Conv2d, Conv2dConfig, DropPath, Init, LayerNorm, LayerScale, Linear, Mode, Parameter, recomputed};

use crate::{Encoder, EncoderConfig, Error, Features, Result, Stem, check_input};

/// A convolutional network with a transformer's ways (Liu et al. 2022).
pub struct ConvNext {
    stem: (Conv2d, LayerNorm),
    stages: Vec<Stage>,
    norm: LayerNorm,
    /// Side of the stem's patches.
    patch: usize,
    dim: usize,
    config: EncoderConfig,
}

/// What distinguishes one ConvNeXt from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvNextShape {
    /// Blocks in each stage; every stage after the first halves the side.
    pub depths: [usize; 4],
    /// Channels of each stage.
    pub dims: [usize; 4],
    /// Whether the pointwise layers' weights are those of 1×1 convolutions, (O, I, 1, 1), as timm keeps them in its small ones.
    pub conv_mlp: bool,
}

impl ConvNextShape {
    /// timm's `convnext_atto`.
    pub const ATTO: Self = Self { depths: [2, 2, 6, 2], dims: [40, 80, 160, 320], conv_mlp: true };
    /// timm's `convnext_femto`.
    pub const FEMTO: Self = Self { depths: [2, 2, 6, 2], dims: [48, 96, 192, 384], conv_mlp: true };
    /// timm's `convnext_pico`.
    pub const PICO: Self = Self { depths: [2, 2, 6, 2], dims: [64, 128, 256, 512], conv_mlp: true };
    /// timm's `convnext_nano`.
    pub const NANO: Self = Self { depths: [2, 2, 8, 2], dims: [80, 160, 320, 640], conv_mlp: true };
    /// The paper's tiny.
    pub const TINY: Self = Self { depths: [3, 3, 9, 3], dims: [96, 192, 384, 768], conv_mlp: false };
    /// The paper's small.
    pub const SMALL: Self = Self { depths: [3, 3, 27, 3], dims: [96, 192, 384, 768], conv_mlp: false };
    /// The paper's base.
    pub const BASE: Self = Self { depths: [3, 3, 27, 3], dims: [128, 256, 512, 1024], conv_mlp: false };
    /// The paper's large.
    pub const LARGE: Self = Self { depths: [3, 3, 27, 3], dims: [192, 384, 768, 1536], conv_mlp: false };
}

const NORM_EPS: f64 = 1e-6;
const INIT: Init = Init::TruncNormal(0.02);
/// What a block's factors start at.
const SCALE: f32 = 1e-6;

impl ConvNext {
    /// The side of the stem's patches: the setting's, else 2 with the CIFAR stem and 4 with ImageNet's.
    pub fn stem_patch(config: &EncoderConfig) -> usize {
        config.patch.unwrap_or(if config.resolved_stem() == Stem::Cifar { 2 } else { 4 })
    }

    /// Builds a network of `shape` under `b`.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(shape: &ConvNextShape, config: &EncoderConfig, b: &Builder) -> Result<Self> {
        config.check()?;
        let frozen = b.freezing(&config.freeze);
        let b = &frozen;
        let patch = Self::stem_patch(config);
        config.check_patches(patch)?;
        let first = shape.dims[0];
        let stem = (
            strided(&b.under("stem").under("0"), config.channels, first, patch)?,
            LayerNorm::new(&b.under("stem").under("1"), first, NORM_EPS)?,
        );
        let count: usize = shape.depths.iter().sum();
        let mut before = 0;
        let mut stages = Vec::with_capacity(shape.depths.len());
        for (i, (&depth, &dim)) in shape.depths.iter().zip(&shape.dims).enumerate() {
            let b = b.under("stages").under(i);
            let downsample = if i == 0 {
                None
            } else {
                let (b, inputs) = (b.under("downsample"), shape.dims[i - 1]);
                Some((LayerNorm::new(&b.under("0"), inputs, NORM_EPS)?, strided(&b.under("1"), inputs, dim, 2)?))
            };
            let blocks = (0..depth)
                .map(|j| {
                    let drop = config.drop_path * (before + j) as f64 / (count - 1).max(1) as f64;
                    Block::new(&b.under("blocks").under(j), dim, shape.conv_mlp, drop)
                })
                .collect::<Result<Vec<_>>>()?;
            before += depth;
            stages.push(Stage { downsample, blocks });
        }
        let dim = shape.dims[3];
        let norm = LayerNorm::new(&b.under("head").under("norm"), dim, NORM_EPS)?;
        config.check_frozen(b)?;
        Ok(Self { stem, stages, norm, patch, dim, config: config.clone() })
    }

    /// The maps (N, H, W, C) after each stage.
    fn stages(&self, x: &Tensor, mode: &Mode) -> Result<Vec<Tensor>> {
        let (_, h, w) = check_input(x, self.config.channels)?;
        let least = self.patch << (self.stages.len() - 1);
        if h < least || w < least {
            return Err(Error::BadInput(format!(
                "an image of {h} × {w} pixels is too small: its side is divided by {} four times, so both sides must be at least \
                 {least}; patches of {} or the CIFAR stem take smaller ones",
                self.patch,
                (self.patch / 2).max(1)
            )));
        }
        let x = x.permute((0, 2, 3, 1))?.contiguous()?;
        let mut x = self.stem.1.forward(&self.stem.0.forward(&x, mode)?, mode)?;
        let mut maps = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            if let Some((norm, conv)) = &stage.downsample {
                x = conv.forward(&norm.forward(&x, mode)?, mode)?;
            }
            for block in &stage.blocks {
                x = if self.config.checkpoint_activations {
                    let own = block.clone();
                    recomputed(&x, mode, block.params.clone(), move |x, mode| own.forward(x, mode))?
                } else {
                    block.forward(&x, mode)?
                };
            }
            maps.push(x.clone());
        }
        Ok(maps)
    }
}

impl Encoder for ConvNext {
    fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Features> {
        let maps = self.stages(x, mode)?;
        Ok(Features::of_vectors(self.norm.forward(&global_avg_pool(&maps[maps.len() - 1])?, mode)?))
    }

    fn depths(&self, x: &Tensor, mode: &Mode) -> Result<Vec<Features>> {
        let maps = self.stages(x, mode)?;
        let last = maps.len() - 1;
        let of = |(i, map): (usize, &Tensor)| -> Result<Features> {
            let vector = global_avg_pool(map)?;
            Ok(Features::of_vectors(if i == last { self.norm.forward(&vector, mode)? } else { vector }))
        };
        maps.iter().enumerate().map(of).collect()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

/// Blocks of one width.
struct Stage {
    downsample: Option<(LayerNorm, Conv2d)>,
    blocks: Vec<Block>,
}

/// x + γ · fc2(gelu(fc1(norm(depthwise 7×7 (x))))).
#[derive(Clone)]
struct Block {
    gamma: LayerScale,
    conv_dw: Conv2d,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    drop: DropPath,
    params: Vec<Parameter>,
}

impl Block {
    fn new(b: &Builder, dim: usize, conv_mlp: bool, drop: f64) -> Result<Self> {
        let config = Conv2dConfig { padding: 3, groups: dim, ..Conv2dConfig::default() };
        let mlp = b.under("mlp");
        let layer = |name: &str, inputs: usize, outputs: usize| match conv_mlp {
            true => Linear::pointwise(&mlp.under(name), inputs, outputs, INIT),
            false => Linear::new(&mlp.under(name), inputs, outputs, true, INIT),
        };
        let mut block = Self {
            gamma: LayerScale::new(b, dim, SCALE)?,
            conv_dw: Conv2d::new(&b.under("conv_dw"), dim, dim, 7, config, true, INIT)?,
            norm: LayerNorm::new(&b.under("norm"), dim, NORM_EPS)?,
            fc1: layer("fc1", dim, 4 * dim)?,
            fc2: layer("fc2", 4 * dim, dim)?,
            drop: DropPath::new(&b.under("drop_path"), drop)?,
            params: Vec::new(),
        };
        block.params = b.registered();
        Ok(block)
    }

    fn forward(&self, x: &Tensor, mode: &Mode) -> twinsight_nn::Result<Tensor> {
        let y = self.norm.forward(&self.conv_dw.forward(x, mode)?, mode)?;
        let y = self.fc2.forward(&gelu(&self.fc1.forward(&y, mode)?)?, mode)?;
        Ok((x + self.drop.forward(&self.gamma.forward(&y, mode)?, mode)?)?)
    }
}

/// A convolution whose stride is its kernel.
fn strided(b: &Builder, inputs: usize, outputs: usize, side: usize) -> Result<Conv2d> {
    let config = Conv2dConfig { stride: side, ..Conv2dConfig::default() };
    Ok(Conv2d::new(b, inputs, outputs, side, config, true, INIT)?)
}
