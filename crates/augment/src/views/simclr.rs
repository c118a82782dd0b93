//! SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"): two views made alike.

use super::view_options;
use crate::plan::ViewPlan;

view_options! {
    /// Settings of SimCLR's views. Defaults: the paper's (appendix A) at colour strength 1; crops are bilinear, as in its PyTorch
    /// implementations.
    SimclrViews,
    crop: (0.08, 1.0, Bilinear),
    jitter: (0.8, 0.8, 0.8, 0.2),
    #[doc = " Probability of a Gaussian blur."]
    blur_p: f32 = 0.5,
    #[doc = " Probability of solarising."]
    solarize_p: f32 = 0.0,
}

impl SimclrViews {
    /// For images of 28 to 64 pixels: half the colour strength (0.4, 0.4, 0.4, 0.1) and no blur, as the paper's appendix B.9 and lightly's
    /// CIFAR benchmarks do.
    pub fn small() -> Self {
        Self { jitter_strength: 0.5, blur_p: 0.0, ..Self::default() }
    }
}

impl ViewPlan {
    /// SimCLR's views: two of `size` pixels, made alike (group `view`).
    pub fn simclr(size: usize, channels: usize, views: &SimclrViews) -> Self {
        let scale = (views.crop_scale_min, views.crop_scale_max);
        Self::new(vec![("view", 2, views.spec(size, scale, views.blur_p, views.solarize_p))], channels)
    }

    /// One view of `size` pixels (group `view`), for methods that compare an image with itself.
    pub fn single(size: usize, channels: usize, views: &SimclrViews) -> Self {
        let scale = (views.crop_scale_min, views.crop_scale_max);
        Self::new(vec![("view", 1, views.spec(size, scale, views.blur_p, views.solarize_p))], channels)
    }
}
