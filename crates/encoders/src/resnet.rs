//! Residual networks under torchvision's parameter names (`conv1.weight`, `layer2.0.downsample.0.weight` …), without the
//! classifier.
//!
//! Activations are (N, H, W, C) inside; the batch is turned around once at the entry. Bottlenecks carry their stride in
//! the 3×3 convolution, as torchvision's do ("v1.5"). Convolutions start by He et al.'s normal distribution (fan out), batch
//! norms at 1 and 0.

use candle_core::{DType, Tensor};
use twinsight_kernels::{global_avg_pool, max_pool2d};
use twinsight_nn::{BlockShortcut, Builder, ConvNorm, Mode, NormKind, Parameter, ResidualBlock, recomputed, residual_blocks};

use crate::{Encoder, EncoderConfig, Features, Result, Stem, check_input};

/// A residual network (He et al. 2016).
pub struct ResNet {
    stem: ResidualBlock,
    pool: bool,
    blocks: Vec<Block>,
    dim: usize,
    config: EncoderConfig,
}

/// What distinguishes one residual network from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResNetShape {
    /// Blocks in each stage; every stage after the first halves the side and doubles the width.
    pub blocks: &'static [usize],
    /// Channels of the stem and of the first stage.
    pub width: usize,
    /// Stride of the CIFAR stem: 1, or 2 where speed counts for more than the finest details.
    pub stem_stride: usize,
    /// Bottlenecks (1×1, 3×3, 1×1 with four times the width out) instead of two 3×3 convolutions.
    pub bottleneck: bool,
    /// How often as many channels the 3×3 convolutions of bottlenecks have (Zagoruyko & Komodakis 2016); 1 for plain ones.
    pub widen: usize,
}

impl ResNetShape {
    /// Three stages of one basic block, 64 to 256 channels, after a stem of stride 2: 41 M multiply-adds at 28 pixels where
    /// ResNet-18 with the CIFAR stem has 0.43 G. Wide and coarse: the same work spent on fewer channels at full size gives
    /// shorter vectors and takes longer.
    pub const MINI: Self = Self { blocks: &[1, 1, 1], width: 64, stem_stride: 2, bottleneck: false, widen: 1 };
    /// The first two stages of the mini, to make a transformer's patches.
    pub const MINI_STEM: Self = Self { blocks: &[1, 1], ..Self::MINI };
    /// ResNet-18.
    pub const RESNET18: Self = Self { blocks: &[2, 2, 2, 2], width: 64, stem_stride: 1, bottleneck: false, widen: 1 };
    /// ResNet-34.
    pub const RESNET34: Self = Self { blocks: &[3, 4, 6, 3], ..Self::RESNET18 };
    /// ResNet-50.
    pub const RESNET50: Self = Self { blocks: &[3, 4, 6, 3], width: 64, stem_stride: 1, bottleneck: true, widen: 1 };
    /// ResNet-101.
    pub const RESNET101: Self = Self { blocks: &[3, 4, 23, 3], ..Self::RESNET50 };
    /// ResNet-152.
    pub const RESNET152: Self = Self { blocks: &[3, 8, 36, 3], ..Self::RESNET50 };
    /// Wide ResNet-50-2.
    pub const WIDE_RESNET50_2: Self = Self { widen: 2, ..Self::RESNET50 };
}

impl ResNetShape {
    /// Pixels of the image, along a side, for one of the last maps.
    pub fn stride(&self, config: &EncoderConfig) -> usize {
        let stem = if config.resolved_stem() == Stem::Imagenet { 4 } else { self.stem_stride };
        stem << (self.blocks.len() - 1)
    }

    /// Channels of the last maps.
    pub fn outputs(&self) -> usize {
        let width = self.width << (self.blocks.len() - 1);
        if self.bottleneck { 4 * width } else { width }
    }
}

impl ResNet {
    /// Builds a network of `shape` under `b`.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(shape: &ResNetShape, config: &EncoderConfig, b: &Builder) -> Result<Self> {
        config.check()?;
        let frozen = b.freezing(&config.freeze);
        let b = &frozen;
        let imagenet = config.resolved_stem() == Stem::Imagenet;
        let (kernel, stride) = if imagenet { (7, 2) } else { (3, shape.stem_stride) };
        let stem = ConvNorm::new(b, ["conv1", "bn1"], [config.channels, shape.width], kernel, stride, config.norm)?;
        let stem = ResidualBlock::new(vec![stem], BlockShortcut::None);
        let mut blocks = Vec::new();
        let mut channels = shape.width;
        for (stage, &count) in shape.blocks.iter().enumerate() {
            let width = shape.width << stage;
            let outputs = if shape.bottleneck { 4 * width } else { width };
            for index in 0..count {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let b = b.under(format!("layer{}", stage + 1)).under(index);
                let inside = if shape.bottleneck { width * shape.widen } else { width };
                let block = block(&b, [channels, inside, outputs], stride, shape.bottleneck, config.norm)?;
                if config.zero_init_residual {
                    start_as_identity(&block)?;
                }
                blocks.push(Block { layers: block, params: b.registered(), ends_stage: index + 1 == count });
                channels = outputs;
            }
        }
        config.check_frozen(b)?;
        Ok(Self { stem, pool: imagenet, blocks, dim: channels, config: config.clone() })
    }
}

/// A block with what it registered.
struct Block {
    layers: ResidualBlock,
    params: Vec<Parameter>,
    /// Whether it is the last of its stage.
    ends_stage: bool,
}

impl ResNet {
    /// The batch as (N, H, W, C).
    fn entry(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.config.channels)?;
        Ok(x.permute((0, 2, 3, 1))?.contiguous()?)
    }

    /// The stem.
    fn stem(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let x = self.stem.forward(x, mode)?;
        Ok(if self.pool { max_pool2d(&x, 3, 2, 1)? } else { x })
    }

    /// The last stage's maps (N, H, W, C) of images (N, channels, H, W).
    pub(crate) fn maps(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let x = self.entry(x)?;
        let layers = self.blocks.iter().map(|block| &block.layers);
        let maps = if self.config.checkpoint_activations && mode.grad {
            self.blocks.iter().try_fold(self.stem(&x, mode)?, |x, block| {
                let own = block.layers.clone();
                recomputed(&x, mode, block.params.clone(), move |x, mode| own.forward(x, mode))
            })?
        } else if self.pool {
            residual_blocks(layers, &self.stem(&x, mode)?, mode)?
        } else {
            // Blocks without anything between them are one operation.
            residual_blocks([&self.stem].into_iter().chain(layers), &x, mode)?
        };
        // Blocks at half precision give bfloat16.
        Ok(maps.to_dtype(DType::F32)?)
    }
}

impl Encoder for ResNet {
    fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Features> {
        Ok(Features::of_vectors(global_avg_pool(&self.maps(x, mode)?)?))
    }

    fn depths(&self, x: &Tensor, mode: &Mode) -> Result<Vec<Features>> {
        let mut x = self.stem(&self.entry(x)?, mode)?;
        let mut found = Vec::new();
        for block in &self.blocks {
            x = block.layers.forward(&x, mode)?;
            if block.ends_stage {
                found.push(Features::of_vectors(global_avg_pool(&x)?));
            }
        }
        Ok(found)
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

/// A block with two or three convolutions. `[inputs, width, outputs]`: channels coming in, inside, and going out; where shape
/// changes, the shortcut is a 1×1 convolution, otherwise the input itself.
fn block(
    b: &Builder,
    [inputs, width, outputs]: [usize; 3],
    stride: usize,
    bottleneck: bool,
    norm: NormKind,
) -> Result<ResidualBlock> {
    let path = if bottleneck {
        vec![
            ConvNorm::new(b, ["conv1", "bn1"], [inputs, width], 1, 1, norm)?,
            ConvNorm::new(b, ["conv2", "bn2"], [width, width], 3, stride, norm)?,
            ConvNorm::new(b, ["conv3", "bn3"], [width, outputs], 1, 1, norm)?,
        ]
    } else {
        vec![
            ConvNorm::new(b, ["conv1", "bn1"], [inputs, width], 3, stride, norm)?,
            ConvNorm::new(b, ["conv2", "bn2"], [width, outputs], 3, 1, norm)?,
        ]
    };
    let shortcut = match stride != 1 || inputs != outputs {
        true => {
            let layer = ConvNorm::new(&b.under("downsample"), ["0", "1"], [inputs, outputs], 1, stride, norm)?;
            BlockShortcut::ConvNorm(Box::new(layer))
        }
        false => BlockShortcut::Identity,
    };
    Ok(ResidualBlock::new(path, shortcut))
}

/// Sets the scale of a block's last norm to 0, so that the block starts as its shortcut.
fn start_as_identity(block: &ResidualBlock) -> Result<()> {
    if let Some(scale) = block.path().last().and_then(|layer| layer.norm().scale()) {
        scale.set(&scale.value().zeros_like()?)?;
    }
    Ok(())
}
