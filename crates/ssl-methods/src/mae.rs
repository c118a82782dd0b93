//! MAE (He et al. 2022): most patches of an image are hidden, the encoder sees the others alone, and a small decoder tells the hidden
//! ones' pixels. One view, no augmentation but a crop, no second network.
//!
//! The decoder's positions are fixed sines and cosines and its linear layers start Xavier uniform, as in the authors' program; the
//! encoder's table of positions is learned and its weights start truncated normal, as those of every transformer here.

use candle_core::{D, Device, Tensor};
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_encoders::Masking;
use twinsight_nn::{
    Attention, Builder, Init, LayerNorm, Linear, Mlp, Mode, Parameter, Role, TransformerLayers, transformer_blocks,
};

use crate::config::{defaults, ensure, read};
use crate::masks::random_order;
use crate::networks::Single;
use crate::{
    At, EncoderNeed, Error, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "MAE",
    paper: "He et al. 2022, Masked Autoencoders Are Scalable Vision Learners",
    summary: "reconstruction: a quarter of the patches must do to tell the others' pixels; for transformers",
    encoder: EncoderNeed::Vit,
    needs: "a vision transformer; any batch, since images do not see each other; little memory",
    choose: "as a start for fine-tuning; its features need training on labels, k-NN on them is weak",
    defaults: defaults::<MaeConfig>,
    views: |table, context| read::<MaeConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Mae::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<MaeConfig> },
};

const NAME: &str = "mae";

const KEYS: &[(&str, &str)] = &[
    ("mask_ratio", "share of the patches that are hidden; above 0, below 1 (0.75 in the paper)"),
    ("decoder_dim", "elements of a token in the decoder; even, divided by the heads (512 in the paper)"),
    ("decoder_depth", "blocks of the decoder (8 in the paper); 1 will do for features that are used as they are"),
    ("decoder_heads", "attention heads of the decoder (16 in the paper)"),
    ("norm_pixels", "whether each patch's pixels are standardised before they are compared; better features in the paper"),
];

/// MAE's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaeConfig {
    /// Share of the patches that are hidden; above 0, below 1. The paper has 0.75.
    pub mask_ratio: f64,
    /// Elements of a token in the decoder. The paper has 512.
    pub decoder_dim: usize,
    /// Blocks of the decoder. The paper has 8.
    pub decoder_depth: usize,
    /// Attention heads of the decoder. The paper has 16.
    pub decoder_heads: usize,
    /// Whether each patch's pixels are standardised before they are compared.
    pub norm_pixels: bool,
    /// How the view is made. The paper crops (at least a fifth of the area) and flips, and does nothing else.
    pub views: SimclrViews,
}

impl Default for MaeConfig {
    fn default() -> Self {
        Self {
            mask_ratio: 0.75,
            decoder_dim: 512,
            decoder_depth: 8,
            decoder_heads: 16,
            norm_pixels: true,
            views: views::by_size(crop_alone),
        }
    }
}

fn crop_alone(_size: usize) -> SimclrViews {
    SimclrViews {
        crop_scale_min: 0.2,
        interpolation: twinsight_augment::Interpolation::Bicubic,
        jitter_p: 0.0,
        gray_p: 0.0,
        blur_p: 0.0,
        ..SimclrViews::default()
    }
}

impl MaeConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::one(&self.views, crop_alone, context)
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.mask_ratio > 0.0 && self.mask_ratio < 1.0, "mask_ratio", self.mask_ratio, "above 0 and below 1")?;
        ensure(NAME, self.decoder_depth > 0, "decoder_depth", self.decoder_depth, "at least 1")?;
        ensure(NAME, self.decoder_heads > 0, "decoder_heads", self.decoder_heads, "at least 1")?;
        let fits = self.decoder_dim > 0 && self.decoder_dim.is_multiple_of(4 * self.decoder_heads.max(1));
        ensure(NAME, fits, "decoder_dim", self.decoder_dim, "a multiple of four times decoder_heads")
    }
}

/// MAE at work.
pub struct Mae {
    config: MaeConfig,
    plan: ViewPlan,
    net: Single<Decoder>,
    /// Patches of an image.
    patches: usize,
    /// Side of a patch in pixels.
    patch: usize,
}

impl Mae {
    /// Builds encoder and decoder.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder; an encoder without patches.
    pub fn new(config: &MaeConfig, context: &MethodContext) -> Result<Self> {
        SPEC.encoder.check(NAME, context)?;
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (size, patch) = (context.encoder_config.image_size, context.encoder_config.resolved_patch());
        let side = size / patch;
        let pixels = patch * patch * context.encoder_config.channels;
        let net = Single::new(context, |b, dim| Decoder::new(&b.under("decoder"), dim, side, pixels, config, &context.device))?;
        let patches = net.branch.backbone.patches(size).unwrap_or(0);
        if patches < 2 {
            return Err(Error::BadViews(format!("an image of {patches} patches leaves none to hide; mae needs smaller patches")));
        }
        Ok(Self { config: config.clone(), plan, net, patches, patch })
    }

    /// Patches that stay visible.
    fn visible(&self) -> usize {
        ((self.patches as f64 * (1.0 - self.config.mask_ratio)) as usize).clamp(1, self.patches - 1)
    }

    /// Each of `n` images' patches in random order, the visible ones first, image after image.
    fn orders(&self, mode: &Mode, n: usize) -> Vec<u32> {
        mode.places(n).flat_map(|image| random_order(mode.key, image, self.patches)).collect()
    }

    /// The same as a tensor: (N, P) u32.
    fn on_device(&self, orders: Vec<u32>, n: usize, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(orders, (n, self.patches), device)?)
    }
}

impl Method for Mae {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks()
    }

    /// The visible patches' tokens behind the class token: (1, N, 1 + visible, D).
    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        let x = &views[0];
        let n = x.dim(0)?;
        let kept = self.on_device(self.orders(mode, n), n, x.device())?.narrow(1, 0, self.visible())?.contiguous()?;
        let features = self.net.branch.backbone.forward_masked(x, &Masking::Keep(kept), mode)?;
        let tokens = features.tokens.ok_or_else(|| Error::BadViews("the encoder gave no tokens".into()))?;
        Ok(vec![tokens.unsqueeze(0)?])
    }

    /// What is to be told: the pixels of every patch, (1, N, P, pixels).
    fn teacher_outputs(&self, views: &[Tensor], _mode: &Mode) -> Result<Vec<Tensor>> {
        Ok(vec![patches_of(&views[0], self.patch)?.unsqueeze(0)?])
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let (tokens, pixels) = (outputs.student[0].squeeze(0)?, outputs.teacher[0].squeeze(0)?);
        let mode = at.mode();
        let n = tokens.dim(0)?;
        let orders = self.orders(&mode, n);
        let told = self.net.branch.head.forward(&tokens, &orders, &mode)?;
        let visible = self.visible();
        let hidden = self.on_device(orders, n, tokens.device())?.narrow(1, visible, self.patches - visible)?;
        let loss = mae_loss(&told, &pixels, &hidden.contiguous()?, self.config.norm_pixels)?;
        Ok(LossOutput {
            loss,
            // The loss reaches the class token through the decoder's attention only; what is learned is in the patches.
            embedding: tokens.detach().narrow(1, 1, visible)?.mean(1)?,
            partner: None,
            assignments: None,
            metrics: Vec::new(),
        })
    }
}

/// The loss of He et al. 2022: the mean squared difference of told and true pixels over the hidden patches, each true patch standardised
/// (unbiased variance, ε 1e-6) where `norm_pixels`.
///
/// # Shapes
/// `told` and `pixels` (N, P, pixels); `hidden` (N, H), u32: numbers of the hidden patches. The result is a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn mae_loss(told: &Tensor, pixels: &Tensor, hidden: &Tensor, norm_pixels: bool) -> Result<Tensor> {
    let (n, count) = hidden.dims2()?;
    let width = told.dim(D::Minus1)?;
    let index = hidden.unsqueeze(2)?.expand((n, count, width))?.contiguous()?;
    let mut wanted = pixels.detach().contiguous()?.gather(&index, 1)?;
    if norm_pixels {
        let centred = wanted.broadcast_sub(&wanted.mean_keepdim(D::Minus1)?)?;
        let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? * (1.0 / (width.max(2) - 1) as f64))?;
        wanted = centred.broadcast_div(&(variance + 1e-6)?.sqrt()?)?;
    }
    Ok((told.contiguous()?.gather(&index, 1)? - wanted)?.sqr()?.mean_all()?)
}

/// (N, C, S, S) to (N, P, p · p · C), patches row by row, their pixels row by row with channels last.
fn patches_of(x: &Tensor, p: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let (rows, columns) = (h / p, w / p);
    let x = x.reshape(&[n, c, rows, p, columns, p][..])?.permute([0, 2, 4, 3, 5, 1])?.contiguous()?;
    Ok(x.reshape((n, rows * columns, p * p * c))?)
}

/// Tells pixels from the visible patches' tokens.
struct Decoder {
    embed: Linear,
    mask_token: Parameter,
    /// (1, 1 + P, D).
    positions: Tensor,
    blocks: Vec<(LayerNorm, Attention, LayerNorm, Mlp)>,
    norm: LayerNorm,
    pixels: Linear,
}

impl Decoder {
    fn new(b: &Builder, inputs: usize, side: usize, pixels: usize, config: &MaeConfig, device: &Device) -> Result<Self> {
        const EPS: f64 = 1e-6;
        let (dim, init) = (config.decoder_dim, Init::XavierUniform);
        let blocks = (0..config.decoder_depth)
            .map(|i| {
                let b = b.under("blocks").under(i);
                Ok((
                    LayerNorm::new(&b.under("norm1"), dim, EPS)?,
                    Attention::with_init(&b.under("attn"), dim, config.decoder_heads, init)?,
                    LayerNorm::new(&b.under("norm2"), dim, EPS)?,
                    Mlp::with_init(&b.under("mlp"), dim, 4 * dim, init)?,
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            embed: Linear::new(&b.under("embed"), inputs, dim, true, init)?,
            mask_token: b.parameter("mask_token", &[1, 1, dim], Role::Token, Init::Normal(0.02))?,
            positions: Tensor::from_vec(sines(side, dim), (1, 1 + side * side, dim), device)?,
            blocks,
            norm: LayerNorm::new(&b.under("norm"), dim, EPS)?,
            pixels: Linear::new(&b.under("pred"), dim, pixels, true, init)?,
        })
    }

    /// (N, 1 + visible, inputs) and each image's order of patches, image after image, to the pixels of all patches (N, P, pixels).
    fn forward(&self, tokens: &Tensor, orders: &[u32], mode: &Mode) -> Result<Tensor> {
        let x = self.embed.forward(tokens, mode)?;
        let (n, seen, dim) = x.dims3()?;
        let patches = orders.len() / n.max(1);
        let masks = self.mask_token.get(mode).broadcast_as((n, patches + 1 - seen, dim))?;
        let x = Tensor::cat(&[&x, &masks], 1)?;
        // Patch p stands behind the class token at the place where the order names it.
        let places: Vec<u32> = orders
            .chunks(patches.max(1))
            .flat_map(|order| {
                let mut places = vec![0u32; patches + 1];
                order.iter().enumerate().for_each(|(place, &patch)| places[1 + patch as usize] = 1 + place as u32);
                places
            })
            .collect();
        let places = Tensor::from_vec(places, (n, patches + 1, 1), x.device())?.expand((n, patches + 1, dim))?.contiguous()?;
        let mut x = x.contiguous()?.gather(&places, 1)?.broadcast_add(&self.positions)?;
        let layers: Vec<_> = self
            .blocks
            .iter()
            .map(|(norm1, attn, norm2, mlp)| TransformerLayers { norm1, attn, norm2, mlp, scales: None })
            .collect();
        x = transformer_blocks(&x, &layers, mode)?;
        let x = self.pixels.forward(&self.norm.forward(&x, mode)?, mode)?;
        Ok(x.narrow(1, 1, patches)?)
    }
}

/// Positions of a grid as sines and cosines of both coordinates, zeros for the class token before them: (1 + side², dim).
fn sines(side: usize, dim: usize) -> Vec<f32> {
    let mut table = vec![0.0; dim];
    for patch in 0..side * side {
        for coordinate in [patch % side, patch / side] {
            let angle = |k: usize| coordinate as f64 / 10_000f64.powf(k as f64 / (dim / 4) as f64);
            table.extend((0..dim / 4).map(|k| angle(k).sin() as f32));
            table.extend((0..dim / 4).map(|k| angle(k).cos() as f32));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn only_hidden_patches_cost_anything() -> anyhow::Result<()> {
        let pixels = Tensor::arange(0f32, 24.0, &Device::Cpu)?.reshape((1, 4, 6))?;
        let hidden = Tensor::new(&[[2u32, 0]], &Device::Cpu)?;
        let cost = |told: &Tensor, norm| -> anyhow::Result<f32> { Ok(mae_loss(told, &pixels, &hidden, norm)?.to_scalar()?) };
        assert_eq!(cost(&pixels, false)?, 0.0);
        let mut off = Tensor::zeros((1, 4, 6), DType::F32, &Device::Cpu)?;
        off = off.slice_assign(&[0..1, 1..2, 0..6], &Tensor::ones((1, 1, 6), DType::F32, &Device::Cpu)?)?;
        assert_eq!(cost(&(&pixels + &off)?, false)?, 0.0, "a visible patch counted");
        assert!((cost(&(&pixels + 2.0)?, false)? - 4.0).abs() < 1e-5);
        // Standardised, every patch of a ramp is the same; zeros are off by its mean square, 5/6 with an unbiased variance of 1.
        assert!((cost(&off.zeros_like()?, true)? - 5.0 / 6.0).abs() < 1e-4);
        Ok(())
    }

    #[test]
    fn patches_are_cut_row_by_row() -> anyhow::Result<()> {
        let x = Tensor::arange(0f32, 32.0, &Device::Cpu)?.reshape((1, 2, 4, 4))?;
        let patches = patches_of(&x, 2)?;
        assert_eq!(patches.dims(), [1, 4, 8]);
        assert_eq!(patches.get(0)?.get(1)?.to_vec1::<f32>()?, [2.0, 18.0, 3.0, 19.0, 6.0, 22.0, 7.0, 23.0]);
        Ok(())
    }
}
