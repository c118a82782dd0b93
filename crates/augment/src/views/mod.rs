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

            /// The steps of one kind of view: crop, flip, jitter, grayscale, blur, solarise, erase. Steps of probability 0 are left out.
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
}

impl Steps {
    fn spec(self, size: usize) -> ViewSpec {
        let [brightness, contrast, saturation, hue] = self.jitter;
        let crop =
            Transform::RandomResizedCrop { scale: self.scale, ratio: Transform::CROP_RATIO, interpolation: self.interpolation };
        let steps = [
            (self.flip_p, Transform::HorizontalFlip { p: self.flip_p }),
            (self.jitter_p, Transform::ColorJitter { p: self.jitter_p, brightness, contrast, saturation, hue }),
            (self.gray_p, Transform::Grayscale { p: self.gray_p }),
            (self.blur_p, Transform::GaussianBlur { p: self.blur_p, sigma: self.blur_sigma, kernel: None }),
            (self.solarize_p, Transform::Solarize { p: self.solarize_p, threshold: self.solarize_threshold }),
            (self.erase_p, Transform::erasing(self.erase_p)),
        ];
        // A probability that is not a number stays, to be refused by the plan's check.
        let steps = steps.into_iter().filter(|&(p, _)| p != 0.0).map(|(_, step)| step);
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
