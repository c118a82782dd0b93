//! DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers"): two large views and several small ones.

use super::view_options;
use crate::plan::ViewPlan;

view_options! {
    /// Settings of DINO's views. Defaults: the reference implementation's; `crop_scale_min` and `crop_scale_max` are those of global views.
    DinoViews,
    crop: (0.4, 1.0, Bicubic),
    jitter: (0.4, 0.4, 0.2, 0.1),
    #[doc = " Least area of a local view's crop, as a share of the image's; above 0."]
    local_scale_min: f32 = 0.05,
    #[doc = " Most area of a local view's crop, as a share of the image's; at most 1."]
    local_scale_max: f32 = 0.4,
    #[doc = " Probability of a Gaussian blur in the first global view."]
    blur_p_1: f32 = 1.0,
    #[doc = " Probability of a Gaussian blur in the second global view."]
    blur_p_2: f32 = 0.1,
    #[doc = " Probability of a Gaussian blur in local views."]
    blur_p_local: f32 = 0.5,
    #[doc = " Probability of solarising the first global view."]
    solarize_p_1: f32 = 0.0,
    #[doc = " Probability of solarising the second global view."]
    solarize_p_2: f32 = 0.2,
    #[doc = " Probability of solarising local views."]
    solarize_p_local: f32 = 0.0,
}

impl DinoViews {
    /// For images of 28 to 64 pixels: no blur, and saturation as brightness (0.4), as usual for CIFAR.
    pub fn small() -> Self {
        Self { jitter_saturation: 0.4, blur_p_1: 0.0, blur_p_2: 0.0, blur_p_local: 0.0, ..Self::default() }
    }

    /// A size of local views for global ones of `global` pixels: 3/7 of it (96 for 224) rounded to a multiple of `patch`, at least one patch.
    pub fn local_size(global: usize, patch: usize) -> usize {
        let patch = patch.max(1);
        ((global * 3 + 7 * patch / 2) / (7 * patch)).max(1) * patch
    }
}

impl ViewPlan {
    /// DINO's views: `global_1` and `global_2` of `global_size` pixels, then `local_views` (perhaps 0) of `local_size` (group `local`).
    pub fn dino(global_size: usize, local_size: usize, local_views: usize, channels: usize, views: &DinoViews) -> Self {
        let scale = (views.crop_scale_min, views.crop_scale_max);
        let mut groups = vec![
            ("global_1", 1, views.spec(global_size, scale, views.blur_p_1, views.solarize_p_1)),
            ("global_2", 1, views.spec(global_size, scale, views.blur_p_2, views.solarize_p_2)),
        ];
        if local_views > 0 {
            let scale = (views.local_scale_min, views.local_scale_max);
            groups.push(("local", local_views, views.spec(local_size, scale, views.blur_p_local, views.solarize_p_local)));
        }
        Self::new(groups, channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_views_are_whole_patches() {
        assert_eq!(DinoViews::local_size(224, 16), 96);
        assert_eq!(DinoViews::local_size(32, 4), 12);
        assert_eq!(DinoViews::local_size(28, 4), 12);
        assert_eq!(DinoViews::local_size(8, 16), 16);
    }
}
