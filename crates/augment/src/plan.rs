//! View plans: which views a method wants of every image. The plans of methods are in [`crate::SimclrViews`] and its kin.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::normalize::Normalize;
use crate::transform::{Interpolation, Transform};
use crate::views::option_key;

/// How one kind of view is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewSpec {
    /// Side of the square view in pixels.
    pub size: usize,
    /// The steps, in order; geometry first (see [`Transform`]).
    pub transforms: Vec<Transform>,
}

/// Views that are made alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewGroup {
    /// What the method calls them: `view`, `global_1`, `local`, …
    pub name: String,
    /// How many of them an image gets, from 1.
    pub count: usize,
    /// How each is made.
    pub spec: ViewSpec,
}

/// All views of an image, in order: the first group's, then the second's, …
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewPlan {
    /// The groups of views.
    pub groups: Vec<ViewGroup>,
    /// What is done to levels last; as many channels as the plan.
    pub normalize: Normalize,
    /// Channels of every view: 1 (gray) or 3 (red, green, blue), to which images with others are converted; or up to 16, which an
    /// image must have itself.
    pub channels: usize,
}

impl ViewPlan {
    /// Plans up to this size are for small images, whose evaluation views lose no border and whose training views take the methods'
    /// settings for CIFAR.
    pub const SMALL: usize = 64;

    /// One view without randomness, for evaluation: the shorter side resized, then the centred square.
    ///
    /// For sizes over [`ViewPlan::SMALL`] the shorter side becomes 8/7 of `size` (256 for 224), as is usual for ImageNet; for small ones it
    /// becomes `size`, so that an image of that size is left as it is. Bilinear. Normalised as ImageNet is until told otherwise.
    pub fn eval(size: usize, channels: usize) -> Self {
        let shorter = if size <= Self::SMALL { size } else { (size * 8).div_ceil(7) };
        let resize = Transform::Resize { shorter: Some(shorter), interpolation: Interpolation::Bilinear };
        let spec = ViewSpec { size, transforms: vec![resize, Transform::CenterCrop] };
        Self::new(vec![("eval", 1, spec)], channels)
    }

    /// A plan of groups (name, count, spec), normalised as ImageNet is.
    pub(crate) fn new(groups: Vec<(&str, usize, ViewSpec)>, channels: usize) -> Self {
        let groups = groups.into_iter().map(|(name, count, spec)| ViewGroup { name: name.to_string(), count, spec }).collect();
        Self { groups, normalize: Normalize::imagenet(channels), channels }
    }

    /// The same plan with another normalisation.
    #[must_use]
    pub fn with_normalize(mut self, normalize: Normalize) -> Self {
        self.normalize = normalize;
        self
    }

    /// How many views an image gets.
    pub fn view_count(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// The spec of view `index`.
    ///
    /// # Panics
    /// When there is no such view; [`ViewPlan::find`] tells instead.
    pub fn view(&self, index: usize) -> &ViewSpec {
        self.find(index).unwrap_or_else(|| panic!("view {index} of {}", self.view_count()))
    }

    /// The spec of view `index`, if there is one.
    pub fn find(&self, index: usize) -> Option<&ViewSpec> {
        let mut rest = index;
        for group in &self.groups {
            if rest < group.count {
                return Some(&group.spec);
            }
            rest -= group.count;
        }
        None
    }

    /// How many values view `index` has: channels × size × size.
    ///
    /// # Panics
    /// When there is no such view.
    pub fn view_len(&self, index: usize) -> usize {
        let size = self.view(index).size;
        self.channels * size * size
    }

    /// Whether every setting is within its range.
    ///
    /// # Errors
    /// [`Error::BadSetting`] for the first that is not, under the name that the option structs give it.
    pub fn check(&self) -> Result<()> {
        let plan = Checker { group: "plan", channels: self.channels };
        plan.require("channels", self.channels, (1..=16).contains(&self.channels), "1 (gray), 3 (colour) or up to 16")?;
        let Normalize { mean, std } = &self.normalize;
        let fits = |values: &[f32]| values.len() == self.channels && values.iter().all(|v| v.is_finite());
        let expected = format!("{} finite numbers, one a channel", self.channels);
        plan.require("normalize.mean", format!("{mean:?}"), fits(mean), &expected)?;
        let positive = fits(std) && std.iter().all(|&v| v > 0.0);
        plan.require("normalize.std", format!("{std:?}"), positive, &format!("{expected}, all above 0"))?;
        plan.require("groups", "empty", !self.groups.is_empty(), "one group of views or more")?;
        for group in &self.groups {
            let check = Checker { group: &group.name, channels: self.channels };
            check.require("count", group.count, group.count > 0, "1 or more")?;
            check.require("size", group.spec.size, (1..=MOST_SIDE).contains(&group.spec.size), "1 to 16384")?;
            check.geometry(&group.spec)?;
            group.spec.transforms.iter().try_for_each(|transform| check.transform(transform))?;
        }
        Ok(())
    }
}

/// The largest side of a view.
const MOST_SIDE: usize = 16384;

/// Checks the settings of one group and names it in errors.
struct Checker<'a> {
    group: &'a str,
    channels: usize,
}

impl Checker<'_> {
    fn require(&self, key: &str, found: impl ToString, holds: bool, expected: &str) -> Result<()> {
        if holds {
            return Ok(());
        }
        let (key, group, expected) = (option_key(self.group, key), self.group.to_string(), expected.to_string());
        Err(Error::BadSetting { key, group, found: found.to_string(), expected })
    }

    fn probability(&self, key: &str, p: f32) -> Result<()> {
        self.require(key, p, (0.0..=1.0).contains(&p), "a probability, 0 to 1")
    }

    /// What needs colour, or one channel that stands for it, is refused for views of other numbers of channels.
    fn colour(&self, key: &str, found: impl ToString, is_off: bool) -> Result<()> {
        let holds = is_off || matches!(self.channels, 1 | 3);
        self.require(key, found, holds, &format!("0, since views of {} channels have no colour", self.channels))
    }

    fn amount(&self, key: &str, amount: f32, most: f32) -> Result<()> {
        let expected = format!("0 to {most} (after jitter_strength multiplied it)");
        self.require(key, amount, (0.0..=most).contains(&amount), &expected)
    }

    /// `least` and `most` finite, above `floor` (or equal to it when `inclusive`), at most `ceiling`, and in order.
    fn range(&self, key: &str, (least, most): (f32, f32), floor: f32, inclusive: bool, ceiling: f32) -> Result<()> {
        let bound = if inclusive { "from" } else { "above" };
        let above = least > floor || (inclusive && least == floor);
        let ceiling_text = if ceiling < f32::MAX { format!(", at most {ceiling}") } else { String::new() };
        self.require(&format!("{key}_min"), least, above, &format!("a number {bound} {floor}"))?;
        let expected = format!("a number not below {key}_min ({least}){ceiling_text}");
        self.require(&format!("{key}_max"), most, most >= least && most <= ceiling, &expected)
    }

    fn geometry(&self, spec: &ViewSpec) -> Result<()> {
        let steps = spec.transforms.iter().take_while(|t| t.is_geometry()).count();
        let (first, rest) = spec.transforms.split_at(steps);
        let sound = match first {
            [Transform::RandomResizedCrop { .. } | Transform::Resize { shorter: None, .. }] => true,
            [Transform::Resize { shorter: Some(shorter), .. }, Transform::CenterCrop] => {
                let expected = format!("{} (the view's size) to {MOST_SIDE}", spec.size);
                self.require("shorter", shorter, (spec.size..=MOST_SIDE).contains(shorter), &expected)?;
                true
            }
            _ => false,
        };
        let expected =
            "random_resized_crop, or resize, or resize with a shorter side and center_crop, and then no other of these";
        self.require("transforms", format!("{first:?} …"), sound && !rest.iter().any(Transform::is_geometry), expected)
    }

    fn transform(&self, transform: &Transform) -> Result<()> {
        match *transform {
            Transform::RandomResizedCrop { scale, ratio, .. } => {
                self.range("crop_scale", scale, 0.0, false, 1.0)?;
                self.range("crop_ratio", ratio, 0.0, false, f32::MAX)
            }
            Transform::Resize { .. } | Transform::CenterCrop => Ok(()),
            Transform::HorizontalFlip { p } => self.probability("flip_p", p),
            Transform::ColorJitter { p, brightness, contrast, saturation, hue } => {
                self.probability("jitter_p", p)?;
                self.amount("jitter_brightness", brightness, 100.0)?;
                self.amount("jitter_contrast", contrast, 100.0)?;
                self.amount("jitter_saturation", saturation, 100.0)?;
                self.amount("jitter_hue", hue, 0.5)?;
                self.colour("jitter_saturation", saturation, p == 0.0 || saturation == 0.0)?;
                self.colour("jitter_hue", hue, p == 0.0 || hue == 0.0)
            }
            Transform::Grayscale { p } => {
                self.probability("gray_p", p)?;
                self.colour("gray_p", p, p == 0.0)
            }
            Transform::GaussianBlur { p, sigma, kernel } => {
                self.probability("blur_p", p)?;
                self.range("blur_sigma", sigma, 0.0, false, f32::MAX)?;
                let kernel = kernel.unwrap_or(1);
                self.require("blur_kernel", kernel, kernel % 2 == 1 && kernel < MOST_SIDE, "an odd number, 1 to 16383")
            }
            Transform::Solarize { p, .. } => self.probability("solarize_p", p),
            Transform::RandomErasing { p, scale, ratio } => {
                self.probability("erase_p", p)?;
                self.range("erase_scale", scale, 0.0, true, 1.0)?;
                self.range("erase_ratio", ratio, 0.0, false, f32::MAX)
            }
            Transform::Affine { p, degrees, translate, scale, shear } => {
                self.probability("affine_p", p)?;
                self.require("affine_degrees", degrees, (0.0..=360.0).contains(&degrees), "0 to 360")?;
                self.require("affine_translate", translate, (0.0..=1.0).contains(&translate), "a share of the side, 0 to 1")?;
                self.range("affine_scale", scale, 0.0, false, 100.0)?;
                self.require("affine_shear", shear, (0.0..90.0).contains(&shear), "degrees, 0 to below 90")
            }
            Transform::ChannelDrop { p } => self.probability("channel_drop_p", p),
            Transform::Posterize { p, bits } => {
                self.probability("posterize_p", p)?;
                self.require("posterize_bits", bits, (1..=8).contains(&bits), "1 to 8")
            }
            Transform::Equalize { p } => self.probability("equalize_p", p),
            Transform::Jpeg { p, quality: (least, most) } => {
                self.probability("jpeg_p", p)?;
                self.require("jpeg_quality_min", least, (1..=100).contains(&least), "1 to 100")?;
                self.require("jpeg_quality_max", most, (least..=100).contains(&most), "jpeg_quality_min to 100")?;
                self.colour("jpeg_p", p, p == 0.0)
            }
            Transform::Cutout { p, size } => {
                self.probability("cutout_p", p)?;
                self.require("cutout_size", size, (0.0..=1.0).contains(&size), "a share of the side, 0 to 1")
            }
            Transform::HidePatches { p, patch, share, .. } => {
                self.probability("hide_p", p)?;
                self.require("hide_patch", patch, (1..=MOST_SIDE).contains(&patch), "1 to 16384")?;
                self.require("hide_share", share, (0.0..=1.0).contains(&share), "a share of the patches, 0 to 1")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByolViews, DinoViews, SimclrViews};

    /// The message of the error that a changed plan gives.
    fn refusal(change: impl FnOnce(&mut ViewPlan)) -> String {
        let mut plan = ViewPlan::simclr(32, 3, &SimclrViews::default());
        plan.check().unwrap();
        change(&mut plan);
        plan.check().unwrap_err().to_string()
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        let simclr = |key: &str, views: SimclrViews| {
            let message = ViewPlan::simclr(32, 3, &views).check().unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")) && message.contains("`view`"), "{key}: {message}");
        };
        let base = SimclrViews::default;
        simclr("crop_scale_min", SimclrViews { crop_scale_min: 0.0, ..base() });
        simclr("crop_scale_max", SimclrViews { crop_scale_min: 0.9, crop_scale_max: 0.8, ..base() });
        simclr("crop_scale_max", SimclrViews { crop_scale_max: 1.1, ..base() });
        simclr("flip_p", SimclrViews { flip_p: -0.1, ..base() });
        simclr("jitter_p", SimclrViews { jitter_p: f32::NAN, ..base() });
        simclr("jitter_brightness", SimclrViews { jitter_strength: -1.0, ..base() });
        simclr("jitter_hue", SimclrViews { jitter_strength: 3.0, ..base() });
        simclr("gray_p", SimclrViews { gray_p: 2.0, ..base() });
        simclr("blur_p", SimclrViews { blur_p: 1.5, ..base() });
        simclr("blur_sigma_min", SimclrViews { blur_sigma_min: 0.0, ..base() });
        simclr("blur_sigma_max", SimclrViews { blur_sigma_max: 0.05, ..base() });
        simclr("solarize_p", SimclrViews { solarize_p: 1.01, ..base() });
        simclr("erase_p", SimclrViews { erase_p: f32::INFINITY, ..base() });
    }

    #[test]
    fn settings_of_one_side_are_named_as_such() {
        let byol = ByolViews { solarize_p_2: -0.5, ..ByolViews::default() };
        assert!(ViewPlan::byol(32, 3, &byol).check().unwrap_err().to_string().contains("`solarize_p_2`"));
        let dino = |views: DinoViews| ViewPlan::dino(32, 16, 2, 3, &views).check().unwrap_err().to_string();
        assert!(dino(DinoViews { blur_p_local: 2.0, ..DinoViews::default() }).contains("`blur_p_local`"));
        assert!(dino(DinoViews { blur_p_1: 2.0, ..DinoViews::default() }).contains("`blur_p_1`"));
        assert!(dino(DinoViews { local_scale_min: 0.0, ..DinoViews::default() }).contains("`local_scale_min`"));
        assert!(dino(DinoViews { crop_scale_max: 7.0, ..DinoViews::default() }).contains("`crop_scale_max`"));
    }

    #[test]
    fn bad_plans_are_refused() {
        assert!(refusal(|p| p.channels = 17).contains("`channels` of `plan` is 17"));
        let bands = |p: &mut ViewPlan| (p.channels, p.normalize) = (5, Normalize::imagenet(5));
        assert!(refusal(bands).contains("`jitter_saturation` of `view` is 0.8"));
        let steps = [
            ("affine_scale_min", Transform::Affine { p: 1.0, degrees: 5.0, translate: 0.1, scale: (0.0, 1.0), shear: 0.0 }),
            ("affine_shear", Transform::Affine { p: 1.0, degrees: 5.0, translate: 0.1, scale: (1.0, 1.0), shear: 90.0 }),
            ("channel_drop_p", Transform::ChannelDrop { p: 1.1 }),
            ("posterize_bits", Transform::Posterize { p: 0.5, bits: 0 }),
            ("equalize_p", Transform::Equalize { p: -1.0 }),
            ("jpeg_quality_max", Transform::Jpeg { p: 0.5, quality: (50, 40) }),
            ("cutout_size", Transform::Cutout { p: 0.5, size: 1.5 }),
            ("hide_patch", Transform::HidePatches { p: 0.5, patch: 0, share: 0.5, blocks: false }),
            ("hide_share", Transform::HidePatches { p: 0.5, patch: 4, share: f32::NAN, blocks: true }),
        ];
        for (key, step) in steps {
            let told = refusal(|p| p.groups[0].spec.transforms.push(step));
            assert!(told.contains(&format!("`{key}`")), "{key}: {told}");
        }
        assert!(refusal(|p| p.normalize = Normalize::imagenet(1)).contains("`normalize.mean`"));
        assert!(refusal(|p| p.normalize.std[1] = 0.0).contains("`normalize.std`"));
        assert!(refusal(|p| p.groups.clear()).contains("`groups`"));
        assert!(refusal(|p| p.groups[0].count = 0).contains("`count` of `view` is 0"));
        assert!(refusal(|p| p.groups[0].spec.size = 0).contains("`size` of `view` is 0"));
        assert!(refusal(|p| p.groups[0].spec.transforms.clear()).contains("`transforms`"));
        assert!(refusal(|p| p.groups[0].spec.transforms.push(Transform::CenterCrop)).contains("`transforms`"));
        let blur = |kernel| Transform::GaussianBlur { p: 1.0, sigma: (0.1, 2.0), kernel: Some(kernel) };
        assert!(refusal(|p| p.groups[0].spec.transforms.push(blur(4))).contains("`blur_kernel`"));
        let mut eval = ViewPlan::eval(224, 3);
        eval.check().unwrap();
        eval.groups[0].spec.size = 300;
        assert!(eval.check().unwrap_err().to_string().contains("`shorter` of `eval` is 256"));
    }

    #[test]
    fn views_are_counted_over_groups() {
        let plan = ViewPlan::dino(32, 16, 6, 1, &DinoViews::default());
        plan.check().unwrap();
        assert_eq!(plan.view_count(), 8);
        assert_eq!([1, 2, 7].map(|i| plan.view(i).size), [32, 16, 16]);
        assert_eq!((plan.view_len(0), plan.find(8)), (1024, None));
        assert_eq!(ViewPlan::dino(32, 16, 0, 1, &DinoViews::default()).view_count(), 2);
        assert_eq!(ViewPlan::byol(32, 3, &ByolViews::default()).view_count(), 2);
    }

    #[test]
    fn a_plan_goes_through_a_file() {
        let plan = ViewPlan::dino(32, 16, 6, 3, &DinoViews::default());
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<ViewPlan>(&text).unwrap(), plan);
    }
}
