//! From an image to a view: the plan's steps, one after another, in buffers that each thread keeps.

use std::cell::RefCell;

use fast_image_resize::CropBox;
use image::DynamicImage;

use crate::draw::{DrawKey, Draws};
use crate::error::{Error, Result};
use crate::ops::{self, BlurScratch, Region, Resample, Window, vectorised};
use crate::pixels::Pixels;
use crate::plan::{ViewPlan, ViewSpec};
use crate::sample;
use crate::transform::{Interpolation, Transform, default_kernel};

/// Makes view `view` of `image` and writes it to `out`: channels × size × size, normalised.
///
/// The values depend on the plan, the image and `key` alone. The plan is taken as sound: [`ViewPlan::check`] it once beforehand.
///
/// # Errors
/// When the plan has no such view, `out` has another length than [`ViewPlan::view_len`], or the image has no pixels.
pub fn render(plan: &ViewPlan, view: usize, image: &DynamicImage, key: DrawKey, out: &mut [f32]) -> Result<()> {
    let spec = find(plan, view)?;
    let area = spec.size * spec.size;
    if out.len() != plan.channels * area {
        let (found, expected) = (out.len(), plan.channels * area);
        return Err(Error::WrongLength { found, expected, channels: plan.channels, size: spec.size });
    }
    with_pixels(plan, spec, image, key, |pixels| {
        for (c, (values, levels)) in out.chunks_exact_mut(area).zip(pixels.data().chunks_exact(area)).enumerate() {
            let (factor, offset) = plan.normalize.affine(c);
            vectorised(
                #[inline(always)]
                || {
                    for (value, &level) in values.iter_mut().zip(levels) {
                        *value = f32::from(level) * factor + offset;
                    }
                },
            );
        }
    })
}

/// Makes the same view as [`render`], as a picture: `Luma8` or `Rgb8`, before normalisation.
///
/// # Errors
/// When the plan has no such view or the image has no pixels.
pub fn render_image(plan: &ViewPlan, view: usize, image: &DynamicImage, key: DrawKey) -> Result<DynamicImage> {
    let spec = find(plan, view)?;
    with_pixels(plan, spec, image, key, |pixels| pixels.to_image())
}

fn find(plan: &ViewPlan, view: usize) -> Result<&ViewSpec> {
    plan.find(view).ok_or_else(|| Error::NoSuchView { view, count: plan.view_count() })
}

/// What a thread keeps from one view to the next. Contents never carry over, only memory.
#[derive(Default)]
struct Scratch {
    pixels: Pixels,
    resample: Resample,
    blur: BlurScratch,
}

fn with_pixels<T>(
    plan: &ViewPlan,
    spec: &ViewSpec,
    image: &DynamicImage,
    key: DrawKey,
    take: impl FnOnce(&Pixels) -> T,
) -> Result<T> {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|Scratch { pixels, resample, blur }| {
        let mut draws = Draws::new(key);
        let (window, interpolation) = window(spec, image, &mut draws)?;
        ops::load(image, window, interpolation, (spec.size, spec.size, plan.channels), resample, pixels)?;
        for transform in &spec.transforms {
            apply(transform, plan, &mut draws, pixels, blur);
        }
        Ok(take(pixels))
    })
}

/// The part of the image that the plan's geometry asks for.
fn window(spec: &ViewSpec, image: &DynamicImage, draws: &mut Draws) -> Result<(Window, Interpolation)> {
    let (width, height) = (image.width(), image.height());
    if width == 0 || height == 0 {
        return Err(Error::EmptyImage { width, height });
    }
    Ok(match spec.transforms.first() {
        Some(&Transform::RandomResizedCrop { scale, ratio, interpolation }) => {
            (Window::Cut(sample::crop_region(draws, width, height, scale, ratio)), interpolation)
        }
        Some(&Transform::Resize { shorter: Some(shorter), interpolation }) => {
            let (left, top, width, height) = ops::center_window(width, height, shorter, spec.size);
            (Window::Part(CropBox { left, top, width, height }), interpolation)
        }
        Some(&Transform::Resize { shorter: None, interpolation }) => (whole(width, height), interpolation),
        _ => (whole(width, height), Interpolation::default()),
    })
}

fn whole(width: u32, height: u32) -> Window {
    Window::Cut(Region { left: 0, top: 0, width, height })
}

/// One step after the geometry.
fn apply(transform: &Transform, plan: &ViewPlan, draws: &mut Draws, pixels: &mut Pixels, scratch: &mut BlurScratch) {
    let size = pixels.width() as u32;
    match *transform {
        Transform::RandomResizedCrop { .. } | Transform::Resize { .. } | Transform::CenterCrop => {}
        Transform::HorizontalFlip { p } => {
            if draws.coin(p) {
                ops::hflip(pixels);
            }
        }
        Transform::ColorJitter { p, brightness, contrast, saturation, hue } => {
            if draws.coin(p) {
                let jitter = sample::jitter(draws, brightness, contrast, saturation, hue);
                for part in jitter.order {
                    match part {
                        0 if brightness > 0.0 => ops::adjust_brightness(pixels, jitter.brightness),
                        1 if contrast > 0.0 => ops::adjust_contrast(pixels, jitter.contrast),
                        2 if saturation > 0.0 => ops::adjust_saturation(pixels, jitter.saturation),
                        3 if hue > 0.0 => ops::adjust_hue(pixels, jitter.hue),
                        _ => {}
                    }
                }
            }
        }
        Transform::Grayscale { p } => {
            if draws.coin(p) {
                ops::grayscale(pixels);
            }
        }
        Transform::GaussianBlur { p, sigma, kernel } => {
            if draws.coin(p) {
                let sigma = draws.uniform(f64::from(sigma.0), f64::from(sigma.1));
                let kernel = kernel.unwrap_or_else(|| default_kernel(size as usize));
                ops::gaussian_blur_with(pixels, kernel, sigma, scratch);
            }
        }
        Transform::Solarize { p, threshold } => {
            if draws.coin(p) {
                ops::solarize(pixels, threshold);
            }
        }
        Transform::RandomErasing { p, scale, ratio } => {
            if draws.coin(p)
                && let Some(region) = sample::erase_region(draws, size, size, scale, ratio)
            {
                let levels = [0, 1, 2].map(|c| plan.normalize.zero_level(c.min(plan.channels - 1)));
                ops::erase(pixels, region, &levels[..plan.channels]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Normalize, SimclrViews};

    const KEY: DrawKey = DrawKey { seed: 0, epoch: 0, sample: 0, view: 0 };

    #[test]
    fn an_evaluation_view_of_its_own_size_is_the_image() {
        let raw: Vec<u8> = (0..32 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let image: DynamicImage = image::RgbImage::from_raw(32, 32, raw.clone()).unwrap().into();
        let plan = ViewPlan::eval(32, 3).with_normalize(Normalize::none(3));
        assert_eq!(render_image(&plan, 0, &image, KEY).unwrap().as_bytes(), raw);
        let mut out = vec![0.0; plan.view_len(0)];
        render(&plan, 0, &image, KEY, &mut out).unwrap();
        assert!((out[1] - f32::from(raw[3]) / 255.0).abs() < 1e-6);
        assert!((out[1024] - f32::from(raw[1]) / 255.0).abs() < 1e-6);
    }

    #[test]
    fn wrong_calls_are_errors() {
        let plan = ViewPlan::simclr(8, 3, &SimclrViews::default());
        let image = DynamicImage::new_rgb8(8, 8);
        let message = |r: Result<()>| r.unwrap_err().to_string();
        assert!(message(render(&plan, 2, &image, KEY, &mut [0.0; 192])).contains("view 2"));
        assert!(message(render(&plan, 0, &image, KEY, &mut [0.0; 191])).contains("192"));
        assert!(message(render(&plan, 0, &DynamicImage::new_rgb8(0, 8), KEY, &mut [0.0; 192])).contains("no pixels"));
    }
}
