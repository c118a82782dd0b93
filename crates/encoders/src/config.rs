//! The settings that all encoders share.

use serde::{Deserialize, Serialize};
use twinsight_nn::NormKind;

use crate::{Error, Result};

/// Up to this side, images count as small: the stem `auto` is CIFAR's and a transformer's patches are 4 pixels.
const SMALL_IMAGE: usize = 64;

/// What an encoder is built for. Every encoder takes all of it and ignores what does not concern it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderConfig {
    /// Channels of the images, 1 to 4.
    pub channels: usize,
    /// Side of the images in pixels: decides `auto` stems, patches and the size of a transformer's position table. Other
    /// sizes can be encoded too.
    pub image_size: usize,
    /// How a residual network begins.
    pub stem: Stem,
    /// Side of a transformer's patches in pixels; `None`: 4 for images up to 64 pixels, else 16.
    pub patch: Option<usize>,
    /// Stochastic depth of a transformer (Huang et al. 2016): the share of samples dropped in the last block, growing linearly
    /// from 0 in the first; in [0, 1).
    pub drop_path: f64,
    /// Residual networks: the last batch norm of each block starts at 0, so that every block starts as the identity
    /// (Goyal et al. 2017).
    pub zero_init_residual: bool,
    /// Residual networks: `batch` norm, or `group` norm, whose statistics are each image's own.
    pub norm: NormKind,
}

/// How a residual network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// `Cifar` for images up to 64 pixels, else `Imagenet`.
    Auto,
    /// 3×3 convolution of stride 1, no pooling.
    Cifar,
    /// 7×7 convolution of stride 2, then 3×3 max pooling of stride 2: a quarter of the side.
    Imagenet,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            channels: 3,
            image_size: 224,
            stem: Stem::Auto,
            patch: None,
            drop_path: 0.0,
            zero_init_residual: false,
            norm: NormKind::Batch,
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
        if !(1..=4).contains(&self.channels) {
            return bad("channels", self.channels.to_string(), "1 to 4");
        }
        if self.image_size == 0 {
            return bad("image_size", "0".into(), "a side of at least 1 pixel");
        }
        if self.patch == Some(0) {
            return bad("patch", "0".into(), "a side of at least 1 pixel");
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return bad("drop_path", self.drop_path.to_string(), "a share from 0 up to but not including 1");
        }
        Ok(())
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
            (EncoderConfig { channels: 5, ..good.clone() }, "channels"),
            (EncoderConfig { image_size: 0, ..good.clone() }, "image_size"),
            (EncoderConfig { patch: Some(0), ..good.clone() }, "patch"),
            (EncoderConfig { drop_path: 1.0, ..good.clone() }, "drop_path"),
            (EncoderConfig { drop_path: f64::NAN, ..good }, "drop_path"),
        ] {
            assert!(bad.check().expect_err("out of range").to_string().contains(key));
        }
    }
}
