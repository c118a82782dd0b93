//! A view as it was drawn: where it is cut from the image and what is done to it, as plain data. Whatever renders it, here or on another
//! device, its distribution is the plan's.

use crate::draw::{DrawKey, Draws};
use crate::error::{Error, Result};
use crate::ops::{self, Affine, Region};
use crate::plan::{ViewPlan, ViewSpec};
use crate::transform::{Interpolation, Transform, default_kernel};
use crate::{masks, sample};

/// The part of an image that fills a view.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Window {
    /// Cut out, then resized: pixels beyond the edge of the region do not count.
    Cut(Region),
    /// A part, of fractional pixels, of the whole image resized: pixels beyond its edge count where the kernel reaches them.
    Part {
        /// Distance from the left edge in pixels.
        left: f64,
        /// Distance from the top edge in pixels.
        top: f64,
        /// Width in pixels.
        width: f64,
        /// Height in pixels.
        height: f64,
    },
}

/// What is done to the levels of a view once it has its size: the operations of [`crate::ops`] with their arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// [`ops::hflip`].
    Flip,
    /// [`ops::adjust_brightness`] by a factor.
    Brightness(f64),
    /// [`ops::adjust_contrast`] by a factor.
    Contrast(f64),
    /// [`ops::adjust_saturation`] by a factor.
    Saturation(f64),
    /// [`ops::adjust_hue`] by a share of the circle.
    Hue(f64),
    /// [`ops::grayscale`].
    Grayscale,
    /// [`ops::gaussian_blur`].
    Blur {
        /// The kernel's length in pixels, odd.
        kernel: usize,
        /// The standard deviation in pixels, above 0.
        sigma: f64,
    },
    /// [`ops::solarize`] from a level on.
    Solarize(u8),
    /// [`ops::erase`] of a region, with the levels that normalisation takes (nearly) to 0.
    Erase(Region),
    /// [`ops::affine`]; what comes from outside has the levels of [`Step::Erase`].
    Affine(Affine),
    /// [`ops::drop_channel`] of this channel, with the level of [`Step::Erase`].
    DropChannel(usize),
    /// [`ops::posterize`] to so many bits.
    Posterize(u8),
    /// [`ops::equalize`].
    Equalize,
    /// [`ops::jpeg`] of this quality.
    Jpeg(u8),
}

/// A view, drawn for an image of a certain size.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnView {
    /// Side of the view in pixels.
    pub size: usize,
    /// What fills the view.
    pub window: Window,
    /// How that is resized.
    pub interpolation: Interpolation,
    /// What is done then, in order; steps that fell to nothing are left out.
    pub steps: Vec<Step>,
}

impl DrawnView {
    /// Draws view `view` of a `width` × `height` image.
    ///
    /// # Errors
    /// When the plan has no such view or the image has no pixels.
    pub fn draw(plan: &ViewPlan, view: usize, (width, height): (u32, u32), key: DrawKey) -> Result<Self> {
        let spec = plan.find(view).ok_or_else(|| Error::NoSuchView { view, count: plan.view_count() })?;
        let mut draws = Draws::new(key);
        let (window, interpolation) = window(spec, width, height, &mut draws)?;
        let mut steps = Vec::new();
        draw_steps(plan, spec, &mut draws, &mut steps);
        Ok(Self { size: spec.size, window, interpolation, steps })
    }
}

/// The part of the image that the plan's geometry asks for.
pub(crate) fn window(spec: &ViewSpec, width: u32, height: u32, draws: &mut Draws) -> Result<(Window, Interpolation)> {
    if width == 0 || height == 0 {
        return Err(Error::EmptyImage { width, height });
    }
    let whole = Window::Cut(Region { left: 0, top: 0, width, height });
    Ok(match spec.transforms.first() {
        Some(&Transform::RandomResizedCrop { scale, ratio, interpolation }) => {
            (Window::Cut(sample::crop_region(draws, width, height, scale, ratio)), interpolation)
        }
        Some(&Transform::Resize { shorter: Some(shorter), interpolation }) => {
            let (left, top, width, height) = ops::center_window(width, height, shorter, spec.size);
            (Window::Part { left, top, width, height }, interpolation)
        }
        Some(&Transform::Resize { shorter: None, interpolation }) => (whole, interpolation),
        _ => (whole, Interpolation::default()),
    })
}

/// Draws the steps after the geometry, in the plan's order.
pub(crate) fn draw_steps(plan: &ViewPlan, spec: &ViewSpec, draws: &mut Draws, steps: &mut Vec<Step>) {
    let size = spec.size as u32;
    for transform in &spec.transforms {
        // The coin; steps of the geometry have none.
        if !transform.probability().is_some_and(|p| draws.coin(p)) {
            continue;
        }
        match *transform {
            Transform::RandomResizedCrop { .. } | Transform::Resize { .. } | Transform::CenterCrop => {}
            Transform::HorizontalFlip { .. } => steps.push(Step::Flip),
            Transform::ColorJitter { brightness, contrast, saturation, hue, .. } => {
                let jitter = sample::jitter(draws, brightness, contrast, saturation, hue);
                steps.extend(jitter.order.into_iter().filter_map(|part| match part {
                    0 if brightness > 0.0 => Some(Step::Brightness(jitter.brightness)),
                    1 if contrast > 0.0 => Some(Step::Contrast(jitter.contrast)),
                    2 if saturation > 0.0 => Some(Step::Saturation(jitter.saturation)),
                    3 if hue > 0.0 => Some(Step::Hue(jitter.hue)),
                    _ => None,
                }));
            }
            Transform::Grayscale { .. } => steps.push(Step::Grayscale),
            Transform::GaussianBlur { sigma, kernel, .. } => {
                let sigma = draws.uniform(f64::from(sigma.0), f64::from(sigma.1));
                steps.push(Step::Blur { kernel: kernel.unwrap_or_else(|| default_kernel(spec.size)), sigma });
            }
            Transform::Solarize { threshold, .. } => steps.push(Step::Solarize(threshold)),
            Transform::RandomErasing { scale, ratio, .. } => {
                steps.extend(sample::erase_region(draws, size, size, scale, ratio).map(Step::Erase));
            }
            Transform::Affine { degrees, translate, scale, shear, .. } => {
                steps.push(Step::Affine(sample::affine(draws, (size, size), degrees, translate, scale, shear)));
            }
            Transform::ChannelDrop { .. } => steps.push(Step::DropChannel(draws.below(plan.channels as u32) as usize)),
            Transform::Posterize { bits, .. } => steps.push(Step::Posterize(bits)),
            Transform::Equalize { .. } => steps.push(Step::Equalize),
            Transform::Jpeg { quality: (least, most), .. } => {
                let quality = u32::from(least) + draws.below(u32::from(most.saturating_sub(least)) + 1);
                steps.push(Step::Jpeg(quality as u8));
            }
            Transform::Cutout { size: share, .. } => {
                steps.push(Step::Erase(sample::cutout_region(draws, size, size, share)));
            }
            Transform::HidePatches { patch, share, blocks, .. } => {
                let grid = spec.size.div_ceil(patch);
                let mask = if blocks { masks::block_patches } else { masks::random_patches }(draws, grid, grid, share);
                let side = patch.min(spec.size) as u32;
                steps.extend(mask.into_iter().enumerate().filter(|(_, hidden)| *hidden).map(|(i, _)| {
                    let (left, top) = ((i % grid) as u32 * side, (i / grid) as u32 * side);
                    Step::Erase(Region { left, top, width: side, height: side })
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimclrViews;

    #[test]
    fn a_view_is_drawn_from_its_key_and_the_images_size_alone() {
        let plan = ViewPlan::simclr(24, 3, &SimclrViews::default());
        let key = |sample| DrawKey { seed: 1, epoch: 2, sample, view: 0 };
        let drawn = |sample, size| DrawnView::draw(&plan, 0, size, key(sample)).unwrap();
        assert_eq!(drawn(3, (50, 40)), drawn(3, (50, 40)));
        assert_ne!(drawn(3, (50, 40)), drawn(4, (50, 40)));
        let many: Vec<DrawnView> = (0..200).map(|i| drawn(i, (50, 40))).collect();
        let count = |is: fn(&Step) -> bool| many.iter().filter(|v| v.steps.iter().any(is)).count();
        assert!((70..130).contains(&count(|s| *s == Step::Flip)));
        assert!((130..190).contains(&count(|s| matches!(s, Step::Hue(_)))));
        assert!((70..130).contains(&count(|s| matches!(s, Step::Blur { kernel: 3, .. }))));
        assert_eq!(count(|s| matches!(s, Step::Solarize(_))), 0);
        assert!(DrawnView::draw(&plan, 2, (50, 40), key(0)).is_err() && DrawnView::draw(&plan, 0, (0, 40), key(0)).is_err());
    }
}
