//! From an image to a view: the plan's steps, one after another, in buffers that each thread keeps.

use std::cell::RefCell;

use fast_image_resize::CropBox;
use image::DynamicImage;

use crate::draw::{DrawKey, Draws};
use crate::error::{Error, Result};
use crate::ops::{self, BlurScratch, Region, Resample, Window, vectorised};
use crate::pixels::Pixels;
use crate::plan::{ViewPlan, ViewSpec};
use crate::raster::Raster;
use crate::transform::{Interpolation, Transform, default_kernel};
use crate::{masks, sample};

/// Makes view `view` of `image` and writes it to `out`: channels × size × size, normalised.
///
/// The values depend on the plan, the image and `key` alone. The plan is taken as sound: [`ViewPlan::check`] it once beforehand.
///
/// # Errors
/// When the plan has no such view, `out` has another length than [`ViewPlan::view_len`], or the image has no pixels.
pub fn render(plan: &ViewPlan, view: usize, image: &DynamicImage, key: DrawKey, out: &mut [f32]) -> Result<()> {
    render_from(plan, view, Source::Image(image), key, out)
}

/// As [`render`], of an image of as many channels as the plan's views (1 to 16).
///
/// # Errors
/// As [`render`]; an image of another number of channels.
pub fn render_raster(plan: &ViewPlan, view: usize, image: &Raster<'_>, key: DrawKey, out: &mut [f32]) -> Result<()> {
    render_from(plan, view, Source::Raster(image), key, out)
}

/// A part of an image: what [`render_excerpt`] takes instead of all of it.
#[derive(Debug, Clone, Copy)]
pub struct Excerpt<'a> {
    /// The part's pixels.
    pub image: &'a DynamicImage,
    /// Where the part's upper left corner lies in the image, in the image's pixels from the left and from the top; negative where the
    /// first of reduced pixels reaches beyond the edge.
    pub place: (i32, i32),
    /// Width and height of the whole image in its own pixels.
    pub whole: (u32, u32),
    /// The side of the square of the image's pixels of which each of the part's is the mean; 1 where the part is not reduced.
    pub reduction: u32,
}

/// What a view needs of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// The part that the view is made of, in whole pixels; `None` when it may be all. A view needs no pixel outside.
    pub region: Option<Region>,
    /// 1, 2, 4 or 8: how much smaller the image may be on both axes with little change to the view. There are still at least two pixels
    /// of the reduced image for each of the view's on both axes, which is where Pillow's `reducing_gap = 2.0` stops, too.
    pub reduction: u32,
}

/// Pixels of a reduced image, on each axis, for each of the view's.
const GAP: f64 = 2.0;

/// What view `view` needs of a `width` × `height` image.
///
/// # Errors
/// When the plan has no such view or the image has no pixels.
pub fn needed(plan: &ViewPlan, view: usize, (width, height): (u32, u32), key: DrawKey) -> Result<Needed> {
    let spec = find(plan, view)?;
    let (region, width, height) = match window(spec, width, height, &mut Draws::new(key))?.0 {
        Window::Part(part) => (None, part.width, part.height),
        Window::Cut(r) | Window::Within(r, _) => (Some(r), f64::from(r.width), f64::from(r.height)),
    };
    let fits = |by: &u32| width.min(height) >= GAP * f64::from(*by) * spec.size as f64;
    Ok(Needed { region, reduction: [8, 4, 2].into_iter().find(fits).unwrap_or(1) })
}

/// As [`render`], of an image of which no more than what is [`needed`] has to be there. The view is the whole image's, to the last bit
/// where the excerpt is not reduced. Of a reduced one the same part is taken, to fractions of its pixels.
///
/// # Errors
/// As [`render`]; when the excerpt does not hold what the view is made of.
pub fn render_excerpt(plan: &ViewPlan, view: usize, excerpt: &Excerpt<'_>, key: DrawKey, out: &mut [f32]) -> Result<()> {
    render_from(plan, view, Source::Excerpt(excerpt), key, out)
}

/// What a view is made of.
#[derive(Clone, Copy)]
enum Source<'a> {
    Image(&'a DynamicImage),
    Excerpt(&'a Excerpt<'a>),
    Raster(&'a Raster<'a>),
}

impl Excerpt<'_> {
    /// Where `window` of the whole image lies in the excerpt.
    fn place(&self, window: Window) -> Result<Window> {
        let (width, height) = (self.image.width(), self.image.height());
        if self.place == (0, 0) && self.whole == (width, height) && self.reduction == 1 {
            return Ok(window);
        }
        let by = f64::from(self.reduction);
        // Start and length of a part of the image in the excerpt's pixels, if it is there.
        let inside = |start: f64, length: f64, from: i32, side: u32| {
            let start = (start - f64::from(from)) / by;
            (start >= 0.0 && start + length / by <= f64::from(side)).then_some((start, length / by))
        };
        let (cut, part) = match window {
            Window::Cut(r) | Window::Within(r, _) => {
                let [left, top, width, height] = [r.left, r.top, r.width, r.height].map(f64::from);
                (true, CropBox { left, top, width, height })
            }
            Window::Part(part) => (false, part),
        };
        // What reaches beyond a part needs the image around it.
        let around = || {
            let across = inside(0.0, f64::from(self.whole.0), self.place.0, width);
            across.and(inside(0.0, f64::from(self.whole.1), self.place.1, height)).is_some()
        };
        if self.reduction > 0
            && let Some((left, across)) = inside(part.left, part.width, self.place.0, width)
            && let Some((top, down)) = inside(part.top, part.height, self.place.1, height)
            && (cut || around())
        {
            let part = CropBox { left, top, width: across, height: down };
            if !cut {
                return Ok(Window::Part(part));
            }
            // Whole pixels that hold the part; the rest of the image does not count.
            let whole = |start: f64, length: f64| (start.floor(), (start + length).ceil() - start.floor());
            let ((x, across), (y, down)) = (whole(left, across), whole(top, down));
            let region = Region { left: x as u32, top: y as u32, width: across as u32, height: down as u32 };
            return Ok(match self.reduction {
                1 => Window::Cut(region),
                _ => Window::Within(region, CropBox { left: left - x, top: top - y, ..part }),
            });
        }
        let at = format!("excerpt at {:?} that is reduced {} times", self.place, self.reduction);
        let reason = format!("{window:?} of the image is not in the {width} × {height} {at}");
        Err(Error::Resize { width: self.whole.0, height: self.whole.1, reason })
    }
}

fn render_from(plan: &ViewPlan, view: usize, image: Source<'_>, key: DrawKey, out: &mut [f32]) -> Result<()> {
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
    with_pixels(plan, spec, Source::Image(image), key, |pixels| pixels.to_image())
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
    old: Vec<u8>,
}

fn with_pixels<T>(
    plan: &ViewPlan,
    spec: &ViewSpec,
    image: Source<'_>,
    key: DrawKey,
    take: impl FnOnce(&Pixels) -> T,
) -> Result<T> {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|Scratch { pixels, resample, blur, old }| {
        let mut draws = Draws::new(key);
        let (width, height, channels) = match image {
            Source::Image(image) => (image.width(), image.height(), usize::from(image.color().channel_count())),
            Source::Excerpt(e) => (e.whole.0, e.whole.1, usize::from(e.image.color().channel_count())),
            Source::Raster(image) => (image.width, image.height, image.channels),
        };
        if channels != plan.channels && (!matches!(plan.channels, 1 | 3) || matches!(image, Source::Raster(_))) {
            return Err(Error::WrongChannels { found: channels, expected: plan.channels });
        }
        let (window, interpolation) = window(spec, width, height, &mut draws)?;
        let size = (spec.size, spec.size);
        match image {
            Source::Image(image) => {
                ops::load(image, window, interpolation, (size.0, size.1, plan.channels), resample, pixels)?;
            }
            Source::Excerpt(e) => {
                let window = e.place(window)?;
                ops::load(e.image, window, interpolation, (size.0, size.1, plan.channels), resample, pixels)?;
            }
            Source::Raster(image) => ops::load_raster(image, window, interpolation, size, resample, pixels)?,
        }
        for transform in &spec.transforms {
            apply(transform, plan, &mut draws, pixels, blur, old)?;
        }
        Ok(take(pixels))
    })
}

/// The part of the image that the plan's geometry asks for.
fn window(spec: &ViewSpec, width: u32, height: u32, draws: &mut Draws) -> Result<(Window, Interpolation)> {
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
fn apply(
    transform: &Transform,
    plan: &ViewPlan,
    draws: &mut Draws,
    pixels: &mut Pixels,
    scratch: &mut BlurScratch,
    old: &mut Vec<u8>,
) -> Result<()> {
    let size = pixels.width() as u32;
    // What is hidden: the level that normalisation takes to 0, a channel.
    let hidden = || (0..plan.channels).map(|c| plan.normalize.zero_level(c)).collect::<Vec<u8>>();
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
                ops::erase(pixels, region, &hidden());
            }
        }
        Transform::Affine { p, degrees, translate, scale, shear } => {
            if draws.coin(p) {
                let affine = sample::affine(draws, (size, size), degrees, translate, scale, shear);
                ops::affine_with(pixels, &affine, &hidden(), old);
            }
        }
        Transform::ChannelDrop { p } => {
            if draws.coin(p) {
                let c = draws.below(plan.channels as u32) as usize;
                ops::drop_channel(pixels, c, plan.normalize.zero_level(c));
            }
        }
        Transform::Posterize { p, bits } => {
            if draws.coin(p) {
                ops::posterize(pixels, bits);
            }
        }
        Transform::Equalize { p } => {
            if draws.coin(p) {
                ops::equalize(pixels);
            }
        }
        Transform::Jpeg { p, quality: (least, most) } => {
            if draws.coin(p) {
                let quality = u32::from(least) + draws.below(u32::from(most.saturating_sub(least)) + 1);
                ops::jpeg(pixels, quality as u8)?;
            }
        }
        Transform::Cutout { p, size: share } => {
            if draws.coin(p) {
                let region = sample::cutout_region(draws, size, size, share);
                ops::erase(pixels, region, &hidden());
            }
        }
        Transform::HidePatches { p, patch, share, blocks } => {
            if draws.coin(p) {
                let grid = (size as usize).div_ceil(patch);
                let mask = if blocks { masks::block_patches } else { masks::random_patches }(draws, grid, grid, share);
                let levels = hidden();
                let side = patch.min(size as usize) as u32;
                for (i, _) in mask.into_iter().enumerate().filter(|(_, m)| *m) {
                    let (left, top) = ((i % grid) as u32 * side, (i / grid) as u32 * side);
                    ops::erase(pixels, Region { left, top, width: side, height: side }, &levels);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raster::Levels;
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
    fn bands_are_resized_each_by_itself_and_need_a_plan_of_as_many() {
        let bytes: Vec<u8> = (0..20 * 15 * 7).map(|i| (i * 31 % 256) as u8).collect();
        let words: Vec<u16> = bytes.iter().map(|&v| u16::from(v) * 257).collect();
        let views = SimclrViews { jitter_saturation: 0.0, jitter_hue: 0.0, gray_p: 0.0, ..SimclrViews::default() };
        let plan = ViewPlan::simclr(12, 7, &views);
        plan.check().unwrap();
        let view = |levels| {
            let mut out = vec![f32::NAN; plan.view_len(0)];
            render_raster(&plan, 0, &Raster::new(20, 15, 7, levels).unwrap(), KEY, &mut out).unwrap();
            out
        };
        let (eight, sixteen) = (view(Levels::Bytes(&bytes)), view(Levels::Words(&words)));
        assert!(eight.iter().zip(&sixteen).all(|(a, b)| a.is_finite() && (a - b).abs() < 0.1));
        let other = Raster::new(20, 15, 1, Levels::Bytes(&bytes[..300])).unwrap();
        let told = render_raster(&plan, 0, &other, KEY, &mut [0.0; 1008]).unwrap_err().to_string();
        assert!(told.contains("1 channels") && told.contains("of 7"), "{told}");
        assert!(render(&plan, 0, &DynamicImage::new_rgb8(9, 9), KEY, &mut [0.0; 1008]).is_err());
        assert!(Raster::new(20, 15, 17, Levels::Bytes(&bytes)).is_err() && Raster::new(0, 1, 1, Levels::Bytes(&[])).is_err());
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
