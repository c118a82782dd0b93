//! The steps of a view, as data: what a plan lists and a configuration file can hold.

use serde::{Deserialize, Serialize};

/// How a crop is resized. Both are antialiased: the kernel widens when the image shrinks, as in PIL's `resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// A triangle over the two nearest pixels.
    #[default]
    Bilinear,
    /// Catmull–Rom cubic (a = −0.5) over the four nearest pixels.
    Bicubic,
}

/// One step of a view.
///
/// A view begins with its geometry, which gives it its size: `RandomResizedCrop`, or `Resize` alone, or `Resize` with a shorter side followed
/// by `CenterCrop`. Any other steps follow, in any order and number. Every step draws from the view's stream what its documentation says,
/// in that order, whatever its settings are; "coin" is one draw that is made even when `p` is 0 or 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// A crop of random area and aspect ratio, resized to the view's size (torchvision's `RandomResizedCrop`: at most ten tries,
    /// then the largest centred crop within the ratios).
    ///
    /// Draws, each try: area, ratio; then top, left once a try fits.
    RandomResizedCrop {
        /// The crop's area as a share of the image's: least and most, within 0..=1.
        scale: (f32, f32),
        /// Width over height: least and most, drawn uniformly in its logarithm.
        ratio: (f32, f32),
        /// How the crop is resized.
        interpolation: Interpolation,
    },
    /// The whole image resized, without randomness. Draws nothing.
    Resize {
        /// The shorter side's new length, the longer one in proportion (then `CenterCrop` must follow);
        /// `None`: both sides become the view's size.
        shorter: Option<usize>,
        /// How the image is resized.
        interpolation: Interpolation,
    },
    /// The centred square of the view's size, after `Resize`. Draws nothing.
    CenterCrop,
    /// Left and right exchanged. Draws: coin.
    HorizontalFlip {
        /// How often, 0..=1.
        p: f32,
    },
    /// Brightness, contrast and saturation multiplied by factors uniform in [max(0, 1 − a), 1 + a], and hue turned by a part of the
    /// circle uniform in [−hue, hue], in random order (torchvision's `ColorJitter` within `RandomApply`). An amount of 0 leaves its
    /// part out.
    ///
    /// Draws: coin; if it fell, three for the order, then brightness, contrast, saturation, hue.
    ColorJitter {
        /// How often, 0..=1.
        p: f32,
        /// Amount of brightness, from 0.
        brightness: f32,
        /// Amount of contrast, from 0.
        contrast: f32,
        /// Amount of saturation, from 0.
        saturation: f32,
        /// Amount of hue, 0..=0.5.
        hue: f32,
    },
    /// Colour replaced by luma in all three channels. Draws: coin.
    Grayscale {
        /// How often, 0..=1.
        p: f32,
    },
    /// Gaussian blur with torchvision's kernel and reflected edges. Draws: coin; if it fell, sigma.
    GaussianBlur {
        /// How often, 0..=1.
        p: f32,
        /// Standard deviation in pixels, drawn uniformly: least and most.
        sigma: (f32, f32),
        /// The kernel's length in pixels, odd; `None`: a tenth of the view's size (23 for 224, as in SimCLR), at least 3.
        kernel: Option<usize>,
    },
    /// Levels from `threshold` on inverted. Draws: coin.
    Solarize {
        /// How often, 0..=1.
        p: f32,
        /// The first level that is inverted.
        threshold: u8,
    },
    /// A random rectangle filled with the level that normalisation takes (nearly) to 0, as torchvision's `RandomErasing` fills with 0
    /// after normalisation; at most ten tries for a rectangle that fits.
    ///
    /// Draws: coin; if it fell, each try: area, ratio; then top, left once a try fits.
    RandomErasing {
        /// How often, 0..=1.
        p: f32,
        /// The rectangle's area as a share of the view's: least and most.
        scale: (f32, f32),
        /// Height over width: least and most, drawn uniformly in its logarithm.
        ratio: (f32, f32),
    },
    /// Rotation, shift, scaling and shear about the centre (torchvision's `RandomAffine`, bilinear); what comes from outside is
    /// filled as by `RandomErasing`.
    ///
    /// Draws: coin; if it fell, angle, shift across, shift down, scale, shear along x, shear along y.
    Affine {
        /// How often, 0..=1.
        p: f32,
        /// Rotation, uniform in ± this many degrees.
        degrees: f32,
        /// Shift, uniform in ± this share of the side, 0..=1, rounded to whole pixels.
        translate: f32,
        /// Scaling, uniform: least and most, above 0.
        scale: (f32, f32),
        /// Shear along either axis, uniform in ± this many degrees, below 90.
        shear: f32,
    },
    /// One channel, each as likely, filled as by `RandomErasing`. Draws: coin; if it fell, the channel.
    ChannelDrop {
        /// How often, 0..=1.
        p: f32,
    },
    /// Only the highest bits of every level kept. Draws: coin.
    Posterize {
        /// How often, 0..=1.
        p: f32,
        /// How many bits, 1..=8.
        bits: u8,
    },
    /// Levels spread so that each occurs about as often, a channel at a time. Draws: coin.
    Equalize {
        /// How often, 0..=1.
        p: f32,
    },
    /// Written as JPEG and read again. Draws: coin; if it fell, quality. Views of 1 or 3 channels.
    Jpeg {
        /// How often, 0..=1.
        p: f32,
        /// The quality, a whole number drawn uniformly: least and most, 1..=100.
        quality: (u8, u8),
    },
    /// A square about a uniformly drawn pixel, cut at the edges, filled as by `RandomErasing` (DeVries and Taylor 2017, "Cutout").
    /// Draws: coin; if it fell, row and column of the centre.
    Cutout {
        /// How often, 0..=1.
        p: f32,
        /// The square's side as a share of the view's, 0..=1.
        size: f32,
    },
    /// Square patches of the view's grid filled as by `RandomErasing`: at random as MAE hides them, or in blocks as BEiT and iBOT do
    /// ([`crate::masks`]). A last, smaller row or column of patches counts as whole ones. Draws: coin; if it fell, what the mask draws.
    HidePatches {
        /// How often, 0..=1.
        p: f32,
        /// The patches' side in pixels, from 1.
        patch: usize,
        /// The share of patches that is hidden, 0..=1.
        share: f32,
        /// Whether in blocks.
        blocks: bool,
    },
}

impl Transform {
    /// torchvision's aspect ratios of a random resized crop.
    pub const CROP_RATIO: (f32, f32) = (3.0 / 4.0, 4.0 / 3.0);

    /// torchvision's defaults of random erasing (Zhong et al. 2017), with probability `p`.
    pub fn erasing(p: f32) -> Self {
        Self::RandomErasing { p, scale: (0.02, 0.33), ratio: (0.3, 3.3) }
    }

    /// How often the step happens; `None` for those that always do.
    pub fn probability(&self) -> Option<f32> {
        match *self {
            Self::RandomResizedCrop { .. } | Self::Resize { .. } | Self::CenterCrop => None,
            Self::HorizontalFlip { p }
            | Self::ColorJitter { p, .. }
            | Self::Grayscale { p }
            | Self::GaussianBlur { p, .. }
            | Self::Solarize { p, .. }
            | Self::RandomErasing { p, .. }
            | Self::Affine { p, .. }
            | Self::ChannelDrop { p }
            | Self::Posterize { p, .. }
            | Self::Equalize { p }
            | Self::Jpeg { p, .. }
            | Self::Cutout { p, .. }
            | Self::HidePatches { p, .. } => Some(p),
        }
    }

    /// The same step with another probability, where it has one.
    #[must_use]
    pub fn with_probability(mut self, new: f32) -> Self {
        match &mut self {
            Self::RandomResizedCrop { .. } | Self::Resize { .. } | Self::CenterCrop => {}
            Self::HorizontalFlip { p }
            | Self::ColorJitter { p, .. }
            | Self::Grayscale { p }
            | Self::GaussianBlur { p, .. }
            | Self::Solarize { p, .. }
            | Self::RandomErasing { p, .. }
            | Self::Affine { p, .. }
            | Self::ChannelDrop { p }
            | Self::Posterize { p, .. }
            | Self::Equalize { p }
            | Self::Jpeg { p, .. }
            | Self::Cutout { p, .. }
            | Self::HidePatches { p, .. } => *p = new,
        }
        self
    }

    /// Whether the step belongs to the geometry that begins a view.
    pub fn is_geometry(&self) -> bool {
        matches!(self, Self::RandomResizedCrop { .. } | Self::Resize { .. } | Self::CenterCrop)
    }
}

/// The kernel's length that [`Transform::GaussianBlur`] takes for a view of `size` when none is given: 2·⌊⌊size/10⌋/2⌋ + 1 as in SimCLR's
/// reference implementation, at least 3.
pub(crate) fn default_kernel(size: usize) -> usize {
    (2 * (size / 10 / 2) + 1).max(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_a_tenth_of_the_side() {
        assert_eq!([224, 96, 64, 32, 1].map(default_kernel), [23, 9, 7, 3, 3]);
    }

    #[test]
    fn a_transform_is_readable_and_strict() {
        let text = r#"{"op":"solarize","p":0.2,"threshold":128}"#;
        let solarize = Transform::Solarize { p: 0.2, threshold: 128 };
        assert_eq!(serde_json::from_str::<Transform>(text).unwrap(), solarize);
        assert_eq!(serde_json::to_string(&solarize).unwrap(), text);
        let wrong = serde_json::from_str::<Transform>(r#"{"op":"solarize","p":0.2,"treshold":128}"#).unwrap_err();
        assert!(wrong.to_string().contains("treshold"), "{wrong}");
    }
}
