//! BYOL (Grill et al. 2020, "Bootstrap Your Own Latent", appendix B): two views made differently.

use super::view_options;
use crate::plan::ViewPlan;

view_options! {
    /// Settings of BYOL's views. Defaults: the paper's table 6.
    ByolViews,
    crop: (0.08, 1.0, Bicubic),
    jitter: (0.4, 0.4, 0.2, 0.1),
    #[doc = " Probability of a Gaussian blur in the first view."]
    blur_p_1: f32 = 1.0,
    #[doc = " Probability of a Gaussian blur in the second view."]
    blur_p_2: f32 = 0.1,
    #[doc = " Probability of solarising the first view."]
    solarize_p_1: f32 = 0.0,
    #[doc = " Probability of solarising the second view."]
    solarize_p_2: f32 = 0.2,
}

impl ByolViews {
    /// For images of 28 to 64 pixels: no blur, and saturation as brightness (0.4), as usual for CIFAR.
    pub fn small() -> Self {
        Self { jitter_saturation: 0.4, blur_p_1: 0.0, blur_p_2: 0.0, ..Self::default() }
    }
}

impl ViewPlan {
    /// BYOL's views: `view_1` and `view_2` of `size` pixels.
    pub fn byol(size: usize, channels: usize, views: &ByolViews) -> Self {
        let scale = (views.crop_scale_min, views.crop_scale_max);
        let first = views.spec(size, scale, views.blur_p_1, views.solarize_p_1);
        let second = views.spec(size, scale, views.blur_p_2, views.solarize_p_2);
        Self::new(vec![("view_1", 1, first), ("view_2", 1, second)], channels)
    }
}
