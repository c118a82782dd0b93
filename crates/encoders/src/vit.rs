//! Vision transformers under timm's parameter names (`cls_token`, `pos_embed`, `blocks.0.attn.qkv.weight` …), without the
//! classifier; with register tokens, factors of branches and gated layers as DINOv2 has them, where the settings say so.
//!
//! Linear weights, class token and position table start by a normal distribution of deviation 0.02 cut at ±2, as in DINO
//! (timm starts the class token at 1e-6), biases at 0; the patch projection starts as PyTorch's convolution does. Layer norms use
//! ε = 1e-6. Images of another size than the one built for get a resampled position table, as with timm's
//! `dynamic_img_size`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::Tensor;
use twinsight_kernels::linear;
use twinsight_nn::{
    Attention, Builder, DropPath, Init, LayerNorm, LayerScale, Mlp, Mode, Parameter, Role, SwiGlu, TransformerLayers, recomputed,
    transformer_blocks,
};

use crate::resnet::{ResNet, ResNetShape};
use crate::{Encoder, EncoderConfig, Error, Features, Ffn, Masking, Result, bicubic_matrix, check_input};

/// A vision transformer with a class token (Dosovitskiy et al. 2021).
pub struct ViT {
    /// Side of a patch in pixels.
    patch: usize,
    /// What patches are cut from, with the side of a patch in its maps; without it, from the image.
    backbone: Option<(ResNet, usize)>,
    /// Patches along a side of the position table.
    grid: usize,
    projection: Parameter,
    projection_bias: Parameter,
    cls_token: Parameter,
    /// (1, R, D)
    registers: Option<Parameter>,
    /// (1, 1 + patches, D), without the first row where there are registers.
    pos_embed: Parameter,
    blocks: Vec<Block>,
    norm: LayerNorm,
    config: EncoderConfig,
    dim: usize,
    /// Resampling matrices by (rows, columns) of patches.
    resampling: Mutex<BTreeMap<(usize, usize), Tensor>>,
}

/// What distinguishes one transformer from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViTShape {
    /// Elements of a token.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; they divide `dim`.
    pub heads: usize,
    /// The residual network whose maps are cut into patches in the image's stead ("hybrid architecture", section 3.1 of the paper); its
    /// parameters are `patch_embed.backbone.…`, as timm's are. Learns from far fewer images and steps.
    pub backbone: Option<ResNetShape>,
}

impl ViTShape {
    /// Four blocks as wide as the tiny's, for CPUs.
    pub const MINI: Self = Self { dim: 192, depth: 4, heads: 3, backbone: None };
    /// Two blocks on the maps of a small residual network, for CPUs and few images.
    pub const HYBRID_MINI: Self = Self { dim: 192, depth: 2, heads: 3, backbone: Some(ResNetShape::MINI_STEM) };
    /// DeiT's tiny.
    pub const TINY: Self = Self { dim: 192, depth: 12, heads: 3, backbone: None };
    /// DeiT's small.
    pub const SMALL: Self = Self { dim: 384, depth: 12, heads: 6, backbone: None };
    /// The first paper's base.
    pub const BASE: Self = Self { dim: 768, depth: 12, heads: 12, backbone: None };
    /// The first paper's large.
    pub const LARGE: Self = Self { dim: 1024, depth: 24, heads: 16, backbone: None };
}

impl ViTShape {
    /// Attention heads with `config`: its own number, or the shape's.
    ///
    /// # Errors
    /// A number that does not divide the length of a token.
    pub fn heads_of(&self, config: &EncoderConfig) -> Result<usize> {
        let heads = if config.heads == 0 { self.heads } else { config.heads };
        if self.dim.is_multiple_of(heads) {
            return Ok(heads);
        }
        Err(Error::BadSetting { key: "heads", value: heads.to_string(), expected: format!("a divisor of {}", self.dim) })
    }
}

const NORM_EPS: f64 = 1e-6;
const INIT: Init = Init::TruncNormal(0.02);

impl ViT {
    /// Builds a network of `shape` under `b`.
    ///
    /// # Errors
    /// Settings out of range, or an image size that patches do not divide.
    pub fn new(shape: &ViTShape, config: &EncoderConfig, b: &Builder) -> Result<Self> {
        config.check()?;
        let (patch, size, dim) = (config.resolved_patch(), config.image_size, shape.dim);
        if size % patch != 0 {
            return Err(Error::BadSetting {
                key: "patch",
                value: patch.to_string(),
                expected: format!("a divisor of the image size {size}"),
            });
        }
        config.check_patches(patch)?;
        let heads = shape.heads_of(config)?;
        let frozen = b.freezing(&config.freeze);
        let b = &frozen;
        let grid = size / patch;
        let b_embed = b.under("patch_embed");
        let backbone = shape.backbone.map(|maps| hybrid(&maps, patch, config, &b_embed.under("backbone"))).transpose()?;
        let (channels, side) = match (&backbone, shape.backbone) {
            (Some((_, side)), Some(maps)) => (maps.outputs(), *side),
            _ => (config.channels, patch),
        };
        let inputs = channels * side * side;
        let b_patch = b_embed.under("proj");
        let mut blocks = Vec::with_capacity(shape.depth);
        let cls_token = b.parameter("cls_token", &[1, 1, dim], Role::Token, INIT)?;
        let registers = match config.registers {
            0 => None,
            // timm's start.
            count => Some(b.parameter("reg_token", &[1, count, dim], Role::Token, Init::Normal(1e-6))?),
        };
        let positions = grid * grid + usize::from(registers.is_none());
        let pos_embed = b.parameter("pos_embed", &[1, positions, dim], Role::Token, INIT)?;
        let projection = b_patch.parameter("weight", &[dim, channels, side, side], Role::Weight, Init::TorchDefault)?;
        let bound = 1.0 / (inputs as f64).sqrt();
        let projection_bias = b_patch.parameter("bias", &[dim], Role::Bias, Init::Uniform(bound))?;
        for i in 0..shape.depth {
            let drop = config.drop_path * i as f64 / (shape.depth - 1).max(1) as f64;
            blocks.push(Block::new(&b.under("blocks").under(i), dim, heads, drop, config)?);
        }
        let norm = LayerNorm::new(&b.under("norm"), dim, NORM_EPS)?;
        config.check_frozen(b)?;
        Ok(Self {
            patch,
            backbone,
            grid,
            projection,
            projection_bias,
            cls_token,
            registers,
            pos_embed,
            blocks,
            norm,
            config: config.clone(),
            dim,
            resampling: Mutex::default(),
        })
    }

    /// (N, C, H, W) to (N, patches, D). A convolution whose stride is its kernel is one matrix product over patches. Its factors are rounded
    /// where the mode says so, as every layer's are, before patches are gathered; the result is `f32`.
    fn embed_patches(&self, x: &Tensor, n: usize, rows: usize, columns: usize, mode: &Mode) -> Result<Tensor> {
        // (N, rows, columns, C, side, side)
        let patches = match &self.backbone {
            Some((backbone, p)) => {
                let maps = mode.rounded(&backbone.maps(x, mode)?)?;
                let c = maps.dim(3)?;
                maps.reshape(&[n, rows, *p, columns, *p, c][..])?.permute([0, 1, 3, 5, 2, 4])?
            }
            None => {
                let (p, c) = (self.patch, self.config.channels);
                mode.rounded(x)?.reshape(&[n, c, rows, p, columns, p][..])?.permute([0, 2, 4, 1, 3, 5])?
            }
        };
        let patches = patches.contiguous()?.reshape((n, rows * columns, ()))?;
        let weight = self.projection.get(mode).reshape((self.dim, ()))?;
        Ok(linear(&patches, &weight, Some(self.projection_bias.get(mode)))?.to_dtype(x.dtype())?)
    }

    /// The images with the pixels of hidden patches at 0, where convolutions would otherwise carry them into their neighbours.
    fn without_hidden(&self, x: &Tensor, masking: Option<&Masking>, [n, rows, columns]: [usize; 3]) -> Result<Option<Tensor>> {
        let (Some(masking), Some(_)) = (masking, &self.backbone) else { return Ok(None) };
        let seen = match masking {
            Masking::Replace { mask, .. } => {
                check_mask("mask", mask, [n, rows * columns], rows * columns)?;
                mask.affine(-1.0, 1.0)?
            }
            Masking::Keep(kept) => {
                let mut seen = vec![0f32; n * rows * columns];
                for (image, kept) in kept.to_vec2::<u32>()?.into_iter().enumerate() {
                    for patch in kept {
                        let place = (patch as usize) < rows * columns;
                        let place = place.then_some(image * rows * columns + patch as usize);
                        if let Some(seen) = place.and_then(|p| seen.get_mut(p)) {
                            *seen = 1.0;
                        }
                    }
                }
                Tensor::from_vec(seen, (n, rows * columns), x.device())?
            }
        };
        let (p, c) = (self.patch, self.config.channels);
        let blocks =
            x.reshape(&[n, c, rows, p, columns, p][..])?.broadcast_mul(&seen.reshape(&[n, 1, rows, 1, columns, 1][..])?)?;
        Ok(Some(blocks.reshape(x.dims())?))
    }

    /// The positions (1, `rows` * `columns`, D) of the patches of an image, and that of the class token (1, 1, D), if it has one.
    fn positions(&self, rows: usize, columns: usize, mode: &Mode) -> Result<(Tensor, Option<Tensor>)> {
        let table = self.pos_embed.get(mode);
        let (class, grid) = match self.registers {
            Some(_) => (None, table.clone()),
            None => (Some(table.narrow(1, 0, 1)?), table.narrow(1, 1, self.grid * self.grid)?),
        };
        if (rows, columns) == (self.grid, self.grid) {
            return Ok((grid, class));
        }
        let matrix = {
            let mut known = self.resampling.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match known.get(&(rows, columns)) {
                Some(matrix) => matrix.clone(),
                None => {
                    let shape = (rows * columns, self.grid * self.grid);
                    let values = bicubic_matrix(self.grid, (rows, columns));
                    let matrix = Tensor::from_vec(values, shape, table.device())?;
                    known.insert((rows, columns), matrix.clone());
                    matrix
                }
            }
        };
        Ok((matrix.matmul(&grid.squeeze(0)?.contiguous()?)?.unsqueeze(0)?, class))
    }

    /// The tokens that go into the first block: class, registers, patches.
    fn tokens(&self, x: &Tensor, masking: Option<&Masking>, mode: &Mode) -> Result<Tensor> {
        let (n, h, w) = check_input(x, self.config.channels)?;
        let p = self.patch;
        if h % p != 0 || w % p != 0 {
            return Err(Error::BadInput(format!(
                "an image of {h} × {w} pixels cannot be cut into patches of {p} × {p}: both sides must be multiples of {p}"
            )));
        }
        let (rows, columns) = (h / p, w / p);
        let blanked = self.without_hidden(x, masking, [n, rows, columns])?;
        let mut patches = self.embed_patches(blanked.as_ref().unwrap_or(x), n, rows, columns, mode)?;
        if let Some(Masking::Replace { mask, token }) = masking {
            check_mask("mask", mask, [n, rows * columns], rows * columns)?;
            let mask = mask.unsqueeze(2)?;
            patches = (patches.broadcast_mul(&mask.affine(-1.0, 1.0)?)? + mask.broadcast_mul(token)?)?;
        }
        let (positions, class) = self.positions(rows, columns, mode)?;
        patches = patches.broadcast_add(&positions)?;
        if let Some(Masking::Keep(kept)) = masking {
            check_mask("kept patches", kept, [n, kept.dims().last().copied().unwrap_or(0)], rows * columns)?;
            let index = kept.unsqueeze(2)?.expand((n, kept.dim(1)?, self.dim))?.contiguous()?;
            patches = patches.contiguous()?.gather(&index, 1)?;
        }
        let cls = match class {
            Some(class) => (self.cls_token.get(mode) + class)?,
            None => self.cls_token.get(mode).clone(),
        };
        let mut parts = vec![cls.broadcast_as((n, 1, self.dim))?];
        if let Some(registers) = &self.registers {
            parts.push(registers.get(mode).broadcast_as((n, self.config.registers, self.dim))?);
        }
        parts.push(patches);
        Ok(Tensor::cat(&parts, 1)?)
    }

    fn encode(&self, x: &Tensor, masking: Option<&Masking>, mode: &Mode) -> Result<Features> {
        let mut x = self.tokens(x, masking, mode)?;
        if self.config.checkpoint_activations && mode.grad {
            for block in &self.blocks {
                let own = block.clone();
                x = recomputed(&x, mode, block.params.clone(), move |x, mode| own.alone(x, mode))?;
            }
            return self.features(&x, mode);
        }
        // Blocks that drop no path, neighbours together, are one operation.
        for run in self.blocks.chunk_by(|a, b| a.fused(mode).is_some() && b.fused(mode).is_some()) {
            let layers: Option<Vec<_>> = run.iter().map(|block| block.fused(mode)).collect();
            x = match layers {
                Some(layers) => transformer_blocks(&x, &layers, mode)?,
                None => run.iter().try_fold(x, |x, block| block.forward(&x, mode))?,
            };
        }
        self.features(&x, mode)
    }

    /// The final norm of a block's tokens.
    fn features(&self, x: &Tensor, mode: &Mode) -> Result<Features> {
        let all = self.norm.forward(x, mode)?;
        let class = all.narrow(1, 0, 1)?;
        let pooled = class.squeeze(1)?;
        let count = self.config.registers;
        if count == 0 {
            return Ok(Features { pooled, tokens: Some(all), registers: None });
        }
        let patches = all.narrow(1, 1 + count, all.dim(1)? - 1 - count)?;
        let tokens = Tensor::cat(&[&class, &patches], 1)?;
        Ok(Features { pooled, tokens: Some(tokens), registers: Some(all.narrow(1, 1, count)?) })
    }
}

impl Encoder for ViT {
    fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Features> {
        self.encode(x, None, mode)
    }

    fn forward_masked(&self, x: &Tensor, masking: &Masking, mode: &Mode) -> Result<Features> {
        self.encode(x, Some(masking), mode)
    }

    fn depths(&self, x: &Tensor, mode: &Mode) -> Result<Vec<Features>> {
        let mut x = self.tokens(x, None, mode)?;
        self.blocks
            .iter()
            .map(|block| {
                x = block.alone(&x, mode)?;
                self.features(&x, mode)
            })
            .collect()
    }

    fn attention(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let mode = &Mode::EVAL;
        let mut x = self.tokens(x, None, mode)?;
        let Some((last, before)) = self.blocks.split_last() else { return Ok(None) };
        for block in before {
            x = block.alone(&x, mode)?;
        }
        let weights = last.attn.weights(&last.norm1.forward(&x, mode)?, mode)?;
        let first = 1 + self.config.registers;
        let patches = weights.dim(3)? - first;
        Ok(Some(weights.narrow(2, 0, 1)?.squeeze(2)?.narrow(2, first, patches)?.contiguous()?))
    }

    fn patches(&self, side: usize) -> Option<usize> {
        Some((side / self.patch) * (side / self.patch))
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

/// The residual network of a hybrid, with the side of a patch of `patch` pixels in its maps.
fn hybrid(shape: &ResNetShape, patch: usize, config: &EncoderConfig, b: &Builder) -> Result<(ResNet, usize)> {
    let stride = shape.stride(config);
    if !patch.is_multiple_of(stride) {
        return Err(Error::BadSetting {
            key: "patch",
            value: patch.to_string(),
            expected: format!("a multiple of {stride}, the stride of the convolutions before it"),
        });
    }
    // What is frozen is known to `b`; that every pattern names something is for the whole network to say.
    let config = EncoderConfig { freeze: Vec::new(), ..config.clone() };
    Ok((ResNet::new(shape, &config, b)?, patch / stride))
}

/// Refuses a mask or list of patches of another shape than (N, `count` of at most `patches`).
fn check_mask(what: &str, mask: &Tensor, [n, count]: [usize; 2], patches: usize) -> Result<()> {
    if mask.dims() != [n, count] || count == 0 || count > patches {
        return Err(Error::BadInput(format!(
            "{what}: shape {:?} for {n} images of {patches} patches each; expected one row an image",
            mask.dims()
        )));
    }
    Ok(())
}

/// Attention and MLP, each behind a norm and beside a shortcut.
#[derive(Clone)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: FeedForward,
    scales: Option<[LayerScale; 2]>,
    drop1: DropPath,
    drop2: DropPath,
    params: Vec<Parameter>,
}

/// The feed-forward half.
#[derive(Clone)]
enum FeedForward {
    Mlp(Mlp),
    SwiGlu(SwiGlu),
}

impl Block {
    fn new(b: &Builder, dim: usize, heads: usize, drop: f64, config: &EncoderConfig) -> Result<Self> {
        let scale = |name: &str| LayerScale::new(&b.under(name), dim, config.layer_scale as f32);
        let scaled = config.layer_scale > 0.0;
        let norm1 = LayerNorm::new(&b.under("norm1"), dim, NORM_EPS)?;
        let attn = Attention::new(&b.under("attn"), dim, heads)?;
        let ls1 = scaled.then(|| scale("ls1")).transpose()?;
        let norm2 = LayerNorm::new(&b.under("norm2"), dim, NORM_EPS)?;
        let mlp = match config.ffn {
            Ffn::Mlp => FeedForward::Mlp(Mlp::new(&b.under("mlp"), dim, 4 * dim)?),
            Ffn::SwiGlu => FeedForward::SwiGlu(SwiGlu::new(&b.under("mlp"), dim, swiglu_width(dim))?),
        };
        let ls2 = scaled.then(|| scale("ls2")).transpose()?;
        Ok(Self {
            norm1,
            attn,
            norm2,
            mlp,
            scales: ls1.zip(ls2).map(|(one, two)| [one, two]),
            drop1: DropPath::new(&b.under("drop_path1"), drop)?,
            drop2: DropPath::new(&b.under("drop_path2"), drop)?,
            params: b.registered(),
        })
    }

    /// What the fused operation takes; none where this pass drops paths or the block has layers that it does not know.
    fn fused(&self, mode: &Mode) -> Option<TransformerLayers<'_>> {
        let FeedForward::Mlp(mlp) = &self.mlp else { return None };
        if self.drop1.is_active(mode) || self.drop2.is_active(mode) {
            return None;
        }
        let scales = self.scales.as_ref().map(|[one, two]| [one, two]);
        Some(TransformerLayers { norm1: &self.norm1, attn: &self.attn, norm2: &self.norm2, mlp, scales })
    }

    /// This block by itself, fused where that can be.
    fn alone(&self, x: &Tensor, mode: &Mode) -> twinsight_nn::Result<Tensor> {
        match self.fused(mode) {
            Some(layers) => transformer_blocks(x, &[layers], mode),
            None => self.forward(x, mode),
        }
    }

    fn forward(&self, x: &Tensor, mode: &Mode) -> twinsight_nn::Result<Tensor> {
        let scaled = |i: usize, y: Tensor| match &self.scales {
            Some(scales) => scales[i].forward(&y, mode),
            None => Ok(y),
        };
        let y = scaled(0, self.attn.forward(&self.norm1.forward(x, mode)?, mode)?)?;
        let x = (x + self.drop1.forward(&y, mode)?)?;
        let y = self.norm2.forward(&x, mode)?;
        let y = match &self.mlp {
            FeedForward::Mlp(mlp) => mlp.forward(&y, mode)?,
            FeedForward::SwiGlu(mlp) => mlp.forward(&y, mode)?,
        };
        Ok((&x + self.drop2.forward(&scaled(1, y)?, mode)?)?)
    }
}

/// Numbers inside a gated layer beside a token of `dim`.
pub(crate) fn swiglu_width(dim: usize) -> usize {
    (4 * dim * 2 / 3).div_ceil(8) * 8
}
