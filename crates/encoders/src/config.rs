//! The settings that all encoders share.

use serde::{Deserialize, Serialize};
use twinsight_nn::{Builder, NormKind, matches_pattern};

use crate::{Error, Result};

/// Up to this side, images count as small: the stem `auto` is CIFAR's and a transformer's patches are 4 pixels.
const SMALL_IMAGE: usize = 64;
/// Most pixels a side.
const MAX_SIDE: usize = 4096;
/// Most numbers of an image: 16 channels of the largest side. More would be gigabytes an image.
const MAX_VALUES: usize = 16 * MAX_SIDE * MAX_SIDE;
/// Most numbers of a patch: 3 channels of 295 pixels a side.
const MAX_PATCH_VALUES: usize = 1 << 18;
/// Most patches along a side of a transformer's table of positions.
const MAX_GRID: usize = 512;

/// What an encoder is built for. Every encoder takes all of it and ignores what does not concern it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderConfig {
    /// Channels of the images, 1 to [`MAX_CHANNELS`].
    pub channels: usize,
    /// Side of the images in pixels: decides `auto` stems, patches and the size of a transformer's position table. Other
    /// sizes can be encoded too.
    pub image_size: usize,
    /// How a convolutional network begins.
    pub stem: Stem,
    /// Side of a transformer's patches in pixels; `None`: 4 for images up to 64 pixels, else 16. Of ConvNeXt's stem: 2 with the
    /// CIFAR stem, else 4.
    pub patch: Option<usize>,
    /// Register tokens of a transformer (Darcet et al. 2024). With any, the class token has no position, as in timm's DINOv2.
    pub registers: usize,
    /// What the factors of a transformer's branches start at (Touvron et al. 2021, `LayerScale`; DINOv2: 1e-5); 0 for none.
    pub layer_scale: f64,
    /// The feed-forward half of a transformer's blocks.
    pub ffn: Ffn,
    /// Attention heads of a transformer; 0: as many as its paper has. MoCo v3's small one has 12 in the place of 6. They divide the
    /// length of a token, and no shape tells how many there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub heads: usize,
    /// Stochastic depth of transformers and ConvNeXt (Huang et al. 2016): the share of samples dropped in the last block, growing linearly
    /// from 0 in the first; in [0, 1).
    pub drop_path: f64,
    /// Residual networks: the last batch norm of each block starts at 0, so that every block starts as the identity
    /// (Goyal et al. 2017).
    pub zero_init_residual: bool,
    /// Residual networks: `batch` norm, or `group` norm, whose statistics are each image's own.
    pub norm: NormKind,
    /// Keep only what goes into each block, and compute the rest again in the backward pass.
    pub checkpoint_activations: bool,
    /// Parameters that stay as they are: names, in which `*` stands for any run of characters.
    pub freeze: Vec<String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Most channels of an image.
pub const MAX_CHANNELS: usize = 1024;

/// The feed-forward half of a transformer's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ffn {
    /// Two layers with a GELU between, four times as wide inside.
    #[default]
    Mlp,
    /// A gated one as in DINOv2's giant, of two thirds of that width, rounded up to a multiple of 8.
    SwiGlu,
}

/// How a residual network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// `Cifar` for images up to 64 pixels, else `Imagenet`.
    Auto,
    /// 3×3 convolution of stride 1, no pooling; of ConvNeXt, patches of 2 pixels.
    Cifar,
    /// 7×7 convolution of stride 2, then 3×3 max pooling of stride 2: a quarter of the side. Of ConvNeXt, patches of 4 pixels.
    Imagenet,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            channels: 3,
            image_size: 224,
            stem: Stem::Auto,
            patch: None,
            registers: 0,
            layer_scale: 0.0,
            ffn: Ffn::Mlp,
            heads: 0,
            drop_path: 0.0,
            zero_init_residual: false,
            norm: NormKind::Batch,
            checkpoint_activations: false,
            freeze: Vec::new(),
        }
    }
}

impl EncoderConfig {
    /// Refuses settings out of range.
    ///
    /// # Errors
    /// The setting, its value and what was expected.
    pub fn check(&self) -> Result<()> {
        let bad = |key, value: String, expected: &str| Err(Error::BadSetting { key, value, expected: expected.into() });
        if !(1..=MAX_CHANNELS).contains(&self.channels) {
            return bad("channels", self.channels.to_string(), "1 to 1024");
        }
        if !(1..=MAX_SIDE).contains(&self.image_size) {
            return bad("image_size", self.image_size.to_string(), "a side of 1 to 4096 pixels");
        }
        if self.channels * self.image_size * self.image_size > MAX_VALUES {
            let value = format!("{} with {} channels", self.image_size, self.channels);
            return bad("image_size", value, "at most 268435456 numbers an image (16 channels of 4096 × 4096 pixels)");
        }
        if self.patch.is_some_and(|side| !(1..=MAX_SIDE).contains(&side)) {
            return bad("patch", self.patch.unwrap_or(0).to_string(), "a side of 1 to 4096 pixels");
        }
        if self.heads > 1024 {
            return bad("heads", self.heads.to_string(), "0 for the encoder's own, or a divisor of the length of its tokens");
        }
        if self.registers > 1024 {
            return bad("registers", self.registers.to_string(), "0 to 1024");
        }
        if !(0.0..=1e3).contains(&self.layer_scale) {
            return bad("layer_scale", self.layer_scale.to_string(), "0 for none, or what factors start at, up to 1000");
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return bad("drop_path", self.drop_path.to_string(), "a share from 0 up to but not including 1");
        }
        Ok(())
    }

    /// Refuses patches of `patch` pixels a side that take more memory than any network of this kind has: too many numbers each, or too
    /// many of them on an image.
    pub(crate) fn check_patches(&self, patch: usize) -> Result<()> {
        let bad = |value: String, expected: &str| Err(Error::BadSetting { key: "patch", value, expected: expected.into() });
        if self.channels * patch * patch > MAX_PATCH_VALUES {
            return bad(
                format!("{patch} with {} channels", self.channels),
                "at most 262144 numbers a patch (side × side × channels)",
            );
        }
        if self.image_size / patch > MAX_GRID {
            let value = format!("{patch} for images of {} pixels", self.image_size);
            return bad(value, "at most 512 patches along a side");
        }
        Ok(())
    }

    /// Refuses a pattern of `freeze` that matches nothing that was registered below `b`.
    pub(crate) fn check_frozen(&self, b: &Builder) -> Result<()> {
        let place = if b.prefix().is_empty() { 0 } else { b.prefix().len() + 1 };
        let known = b.registered();
        match self.freeze.iter().find(|pattern| !known.iter().any(|p| matches_pattern(pattern, &p.name()[place..]))) {
            None => Ok(()),
            Some(pattern) => Err(Error::BadSetting {
                key: "freeze",
                value: pattern.clone(),
                expected: format!(
                    "a pattern that a parameter's whole name matches, such as `{}`",
                    known.first().map_or("", |p| &p.name()[place..])
                ),
            }),
        }
    }

    /// The stem with `Auto` decided.
    pub fn resolved_stem(&self) -> Stem {
        match self.stem {
            Stem::Auto if self.image_size <= SMALL_IMAGE => Stem::Cifar,
            Stem::Auto => Stem::Imagenet,
            stem => stem,
        }
    }

    /// The side of a patch with `None` decided.
    pub fn resolved_patch(&self) -> usize {
        self.patch.unwrap_or(if self.image_size <= SMALL_IMAGE { 4 } else { 16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_images_get_small_stems_and_patches() {
        let at = |image_size| EncoderConfig { image_size, ..EncoderConfig::default() };
        assert_eq!((at(64).resolved_stem(), at(64).resolved_patch()), (Stem::Cifar, 4));
        assert_eq!((at(96).resolved_stem(), at(96).resolved_patch()), (Stem::Imagenet, 16));
        let fixed = EncoderConfig { stem: Stem::Imagenet, patch: Some(8), ..at(32) };
        assert_eq!((fixed.resolved_stem(), fixed.resolved_patch()), (Stem::Imagenet, 8));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = EncoderConfig::default();
        assert!(good.check().is_ok());
        for (bad, key) in [
            (EncoderConfig { channels: 0, ..good.clone() }, "channels"),
            (EncoderConfig { channels: MAX_CHANNELS + 1, ..good.clone() }, "channels"),
            (EncoderConfig { registers: 1025, ..good.clone() }, "registers"),
            (EncoderConfig { layer_scale: -1.0, ..good.clone() }, "layer_scale"),
            (EncoderConfig { image_size: 0, ..good.clone() }, "image_size"),
            (EncoderConfig { image_size: 65536, ..good.clone() }, "image_size"),
            (EncoderConfig { image_size: 4096, channels: 17, ..good.clone() }, "image_size"),
            (EncoderConfig { heads: 1025, ..good.clone() }, "heads"),
            (EncoderConfig { patch: Some(0), ..good.clone() }, "patch"),
            (EncoderConfig { drop_path: 1.0, ..good.clone() }, "drop_path"),
            (EncoderConfig { drop_path: f64::NAN, ..good }, "drop_path"),
        ] {
            assert!(bad.check().expect_err("out of range").to_string().contains(key));
        }
        let large = EncoderConfig { image_size: 4096, ..EncoderConfig::default() };
        assert!(large.check_patches(8).is_ok() && large.check_patches(256).is_ok());
        for patch in [7, 1024] {
            assert!(large.check_patches(patch).expect_err("out of range").to_string().contains("patch"), "{patch}");
        }
    }
}
