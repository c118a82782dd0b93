//! The views that methods take, with their papers' settings: one file a method.
//!
//! Every option struct has the same common settings under the same keys, and its method's own. They are flat, so that a recipe sets any by
//! `key = value`; all have defaults; unknown keys are refused.

mod byol;
mod dino;
mod simclr;

pub use byol::ByolViews;
pub use dino::DinoViews;
pub use simclr::SimclrViews;

use crate::plan::ViewSpec;
use crate::transform::{Interpolation, Transform};

/// Defines an option struct: its documentation, the defaults of the common settings, and its own settings.
///
/// `KEYS` is made from the same lines, so that help and documentation cannot drift from the code.
macro_rules! view_options {
    (
        $(#[$meta:meta])* $name:ident,
        crop: ($crop_min:expr, $crop_max:expr, $interpolation:ident),
        jitter: ($brightness:expr, $contrast:expr, $saturation:expr, $hue:expr),
        $( #[doc = $doc:literal] $field:ident: $ty:ty = $default:expr, )*
    ) => {
        view_options! { @build $(#[$meta])* $name,
            #[doc = " Least area of a crop, as a share of the image's; above 0."]
            crop_scale_min: f32 = $crop_min,
            #[doc = " Most area of a crop, as a share of the image's; at most 1."]
            crop_scale_max: f32 = $crop_max,
            #[doc = " How crops are resized: `bilinear` or `bicubic`."]
            interpolation: $crate::Interpolation = $crate::Interpolation::$interpolation,
            #[doc = " Probability of a horizontal flip."]
            flip_p: f32 = 0.5,
            #[doc = " Probability of colour jitter."]
            jitter_p: f32 = 0.8,
            #[doc = " Factor of all four amounts of jitter."]
            jitter_strength: f32 = 1.0,
            #[doc = " Amount of brightness jitter: the factor is uniform in 1 ± amount, not below 0."]
            jitter_brightness: f32 = $brightness,
            #[doc = " Amount of contrast jitter, as of brightness."]
            jitter_contrast: f32 = $contrast,
            #[doc = " Amount of saturation jitter, as of brightness; nothing on gray images."]
            jitter_saturation: f32 = $saturation,
            #[doc = " Amount of hue jitter, as a share of the circle either way, at most 0.5; nothing on gray images."]
            jitter_hue: f32 = $hue,
            #[doc = " Probability of dropping colour."]
            gray_p: f32 = 0.2,
            #[doc = " Least standard deviation of the blur, in pixels."]
            blur_sigma_min: f32 = 0.1,
            #[doc = " Most standard deviation of the blur, in pixels."]
            blur_sigma_max: f32 = 2.0,
            #[doc = " First level (0 to 255) that solarising inverts."]
            solarize_threshold: u8 = 128,
            #[doc = " Probability of erasing a rectangle."]
            erase_p: f32 = 0.0,
            #[doc = " Probability of rotating, shifting, scaling and shearing a view."]
            affine_p: f32 = 0.0,
            #[doc = " Most degrees of a rotation either way."]
            affine_degrees: f32 = 10.0,
            #[doc = " Most shift either way, as a share of the side."]
            affine_translate: f32 = 0.1,
            #[doc = " Least scaling of an affine change; above 0."]
            affine_scale_min: f32 = 0.9,
            #[doc = " Most scaling of an affine change."]
            affine_scale_max: f32 = 1.1,
            #[doc = " Most degrees of a shear either way, along either axis."]
            affine_shear: f32 = 0.0,
            #[doc = " Probability of dropping one channel."]
            channel_drop_p: f32 = 0.0,
            #[doc = " Probability of posterising."]
            posterize_p: f32 = 0.0,
            #[doc = " Bits that posterising keeps, 1 to 8."]
            posterize_bits: u8 = 4,
            #[doc = " Probability of equalising the levels of each channel."]
            equalize_p: f32 = 0.0,
            #[doc = " Probability of JPEG's artefacts."]
            jpeg_p: f32 = 0.0,
            #[doc = " Least quality of the JPEG, 1 to 100."]
            jpeg_quality_min: u8 = 30,
            #[doc = " Most quality of the JPEG, 1 to 100."]
            jpeg_quality_max: u8 = 90,
            #[doc = " Probability of cutting a square out."]
            cutout_p: f32 = 0.0,
            #[doc = " Side of the square that is cut out, as a share of the view's."]
            cutout_size: f32 = 0.5,
            #[doc = " Probability of hiding patches."]
            hide_p: f32 = 0.0,
            #[doc = " Side of the patches that are hidden, in pixels."]
            hide_patch: usize = 8,
            #[doc = " Share of the patches that are hidden."]
            hide_share: f32 = 0.3,
            #[doc = " Whether patches are hidden in blocks (as in BEiT and iBOT) instead of one by one (as in MAE)."]
            hide_blocks: bool = false,
            $( #[doc = $doc] $field: $ty = $default, )*
        }
    };
    (@build $(#[$meta:meta])* $name:ident, $( #[doc = $doc:literal] $field:ident: $ty:ty = $default:expr, )*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( #[doc = $doc] pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            /// Every setting's key and its meaning.
            pub const KEYS: &'static [(&'static str, &'static str)] = &[$( (stringify!($field), $doc.trim_ascii()), )*];

            /// [`Self::small`] for views of at most [`crate::ViewPlan::SMALL`] pixels, else the paper's settings.
            pub fn for_size(size: usize) -> Self {
                if size <= crate::ViewPlan::SMALL { Self::small() } else { Self::default() }
            }

            /// The steps of one kind of view: crop, flip, affine, jitter, grayscale, channel drop, posterise, equalise, blur, solarise,
            /// JPEG, erase, cutout, hidden patches. Steps of probability 0 are left out.
            fn spec(&self, size: usize, scale: (f32, f32), blur_p: f32, solarize_p: f32) -> $crate::ViewSpec {
                $crate::views::Steps {
                    scale,
                    interpolation: self.interpolation,
                    flip_p: self.flip_p,
                    jitter_p: self.jitter_p,
                    jitter: [self.jitter_brightness, self.jitter_contrast, self.jitter_saturation, self.jitter_hue]
                        .map(|amount| amount * self.jitter_strength),
                    gray_p: self.gray_p,
                    blur_p,
                    blur_sigma: (self.blur_sigma_min, self.blur_sigma_max),
                    solarize_p,
                    solarize_threshold: self.solarize_threshold,
                    erase_p: self.erase_p,
                    affine: $crate::Transform::Affine {
                        p: self.affine_p,
                        degrees: self.affine_degrees,
                        translate: self.affine_translate,
                        scale: (self.affine_scale_min, self.affine_scale_max),
                        shear: self.affine_shear,
                    },
                    channel_drop: $crate::Transform::ChannelDrop { p: self.channel_drop_p },
                    posterize: $crate::Transform::Posterize { p: self.posterize_p, bits: self.posterize_bits },
                    equalize: $crate::Transform::Equalize { p: self.equalize_p },
                    jpeg: $crate::Transform::Jpeg {
                        p: self.jpeg_p,
                        quality: (self.jpeg_quality_min, self.jpeg_quality_max),
                    },
                    cutout: $crate::Transform::Cutout { p: self.cutout_p, size: self.cutout_size },
                    hide: $crate::Transform::HidePatches {
                        p: self.hide_p,
                        patch: self.hide_patch,
                        share: self.hide_share,
                        blocks: self.hide_blocks,
                    },
                }
                .spec(size)
            }
        }
    };
}
use view_options;

/// The key by which an option struct knows the setting `key` of the group of views named `group`.
pub(crate) fn option_key(group: &str, key: &str) -> String {
    let side = match group {
        "view_1" | "global_1" => "_1",
        "view_2" | "global_2" => "_2",
        "local" => "_local",
        _ => "",
    };
    match key {
        "blur_p" | "solarize_p" => format!("{key}{side}"),
        "crop_scale_min" if side == "_local" => "local_scale_min".to_string(),
        "crop_scale_max" if side == "_local" => "local_scale_max".to_string(),
        _ => key.to_string(),
    }
}

/// The settings of one kind of view, whichever method's.
struct Steps {
    scale: (f32, f32),
    interpolation: Interpolation,
    flip_p: f32,
    jitter_p: f32,
    jitter: [f32; 4],
    gray_p: f32,
    blur_p: f32,
    blur_sigma: (f32, f32),
    solarize_p: f32,
    solarize_threshold: u8,
    erase_p: f32,
    affine: Transform,
    channel_drop: Transform,
    posterize: Transform,
    equalize: Transform,
    jpeg: Transform,
    cutout: Transform,
    hide: Transform,
}

impl Steps {
    fn spec(self, size: usize) -> ViewSpec {
        let [brightness, contrast, saturation, hue] = self.jitter;
        let crop =
            Transform::RandomResizedCrop { scale: self.scale, ratio: Transform::CROP_RATIO, interpolation: self.interpolation };
        let steps = [
            Transform::HorizontalFlip { p: self.flip_p },
            self.affine,
            Transform::ColorJitter { p: self.jitter_p, brightness, contrast, saturation, hue },
            Transform::Grayscale { p: self.gray_p },
            self.channel_drop,
            self.posterize,
            self.equalize,
            Transform::GaussianBlur { p: self.blur_p, sigma: self.blur_sigma, kernel: None },
            Transform::Solarize { p: self.solarize_p, threshold: self.solarize_threshold },
            self.jpeg,
            Transform::erasing(self.erase_p),
            self.cutout,
            self.hide,
        ];
        // A probability that is not a number stays, to be refused by the plan's check.
        let steps = steps.into_iter().filter(|step| step.probability() != Some(0.0));
        ViewSpec { size, transforms: std::iter::once(crop).chain(steps).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn keys_are_the_settings() {
        let names = |value: Value| value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
        let keys = |keys: &[(&str, &str)]| keys.iter().map(|&(key, _)| key.to_string()).collect();
        assert_eq!(names(json!(SimclrViews::default())), keys(SimclrViews::KEYS));
        assert_eq!(names(json!(ByolViews::default())), keys(ByolViews::KEYS));
        assert_eq!(names(json!(DinoViews::default())), keys(DinoViews::KEYS));
    }

    #[test]
    fn settings_are_partial_and_strict() {
        let views: SimclrViews = serde_json::from_value(json!({"blur_p": 0.25, "interpolation": "bicubic"})).unwrap();
        assert_eq!(views, SimclrViews { blur_p: 0.25, interpolation: Interpolation::Bicubic, ..SimclrViews::default() });
        let wrong = serde_json::from_value::<DinoViews>(json!({"blur_p": 0.25})).unwrap_err().to_string();
        assert!(wrong.contains("`blur_p`") && wrong.contains("blur_p_1"), "{wrong}");
    }
}
