//! From an image to a view: the plan's steps, one after another, in buffers that each thread keeps.

use std::cell::RefCell;

use fast_image_resize::CropBox;
use image::DynamicImage;

use crate::draw::{DrawKey, Draws};
use crate::drawn::{DrawnView, Step, Window, draw_steps, window};
use crate::error::{Error, Result};
use crate::ops::{self, BlurScratch, Placed, Region, Resample, vectorised};
use crate::pixels::Pixels;
use crate::plan::{ViewPlan, ViewSpec};
use crate::raster::Raster;
use crate::transform::Interpolation;

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
        Window::Part { width, height, .. } => (None, width, height),
        Window::Cut(r) => (Some(r), f64::from(r.width), f64::from(r.height)),
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

/// Makes the view that was `drawn` for the excerpt's image: what [`render_excerpt`] with the same key gives, to the bit. Of `plan`, channels
/// and normalisation are taken.
///
/// # Errors
/// As [`render_excerpt`].
pub fn render_drawn(plan: &ViewPlan, drawn: &DrawnView, excerpt: &Excerpt<'_>, out: &mut [f32]) -> Result<()> {
    check_length(plan, drawn.size, out)?;
    let DrawnView { size, window, interpolation, ref steps } = *drawn;
    with_scratch(|Scratch { pixels, resample, blur, old, .. }| {
        let source = Source::Excerpt(excerpt);
        source.check(plan)?;
        source.load(plan, window, interpolation, size, resample, pixels)?;
        steps.iter().try_for_each(|step| apply(step, plan, pixels, blur, old))?;
        normalise(plan, pixels, out);
        Ok(())
    })
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
    fn place(&self, window: Window) -> Result<Placed> {
        let (width, height) = (self.image.width(), self.image.height());
        if self.place == (0, 0) && self.whole == (width, height) && self.reduction == 1 {
            return Ok(window.into());
        }
        let by = f64::from(self.reduction);
        // Start and length of a part of the image in the excerpt's pixels, if it is there.
        let inside = |start: f64, length: f64, from: i32, side: u32| {
            let start = (start - f64::from(from)) / by;
            (start >= 0.0 && start + length / by <= f64::from(side)).then_some((start, length / by))
        };
        let (cut, part) = match window {
            Window::Cut(r) => {
                let [left, top, width, height] = [r.left, r.top, r.width, r.height].map(f64::from);
                (true, CropBox { left, top, width, height })
            }
            Window::Part { left, top, width, height } => (false, CropBox { left, top, width, height }),
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
                return Ok(Placed::Part(part));
            }
            // Whole pixels that hold the part; the rest of the image does not count.
            let whole = |start: f64, length: f64| (start.floor(), (start + length).ceil() - start.floor());
            let ((x, across), (y, down)) = (whole(left, across), whole(top, down));
            let region = Region { left: x as u32, top: y as u32, width: across as u32, height: down as u32 };
            return Ok(match self.reduction {
                1 => Placed::Cut(region),
                _ => Placed::Within(region, CropBox { left: left - x, top: top - y, ..part }),
            });
        }
        let at = format!("excerpt at {:?} that is reduced {} times", self.place, self.reduction);
        let reason = format!("{window:?} of the image is not in the {width} × {height} {at}");
        Err(Error::Resize { width: self.whole.0, height: self.whole.1, reason })
    }
}

impl Source<'_> {
    /// Width and height of the whole image, and its channels.
    fn size(&self) -> (u32, u32, usize) {
        match self {
            Source::Image(image) => (image.width(), image.height(), usize::from(image.color().channel_count())),
            Source::Excerpt(e) => (e.whole.0, e.whole.1, usize::from(e.image.color().channel_count())),
            Source::Raster(image) => (image.width, image.height, image.channels),
        }
    }

    /// Refuses an image whose channels can't become the plan's.
    fn check(&self, plan: &ViewPlan) -> Result<()> {
        let (.., channels) = self.size();
        if channels != plan.channels && (!matches!(plan.channels, 1 | 3) || matches!(self, Source::Raster(_))) {
            return Err(Error::WrongChannels { found: channels, expected: plan.channels });
        }
        Ok(())
    }

    /// `window` of the image, resized to `size`, in `pixels`.
    fn load(
        &self,
        plan: &ViewPlan,
        window: Window,
        interpolation: Interpolation,
        size: usize,
        resample: &mut Resample,
        pixels: &mut Pixels,
    ) -> Result<()> {
        let to = (size, size, plan.channels);
        match self {
            Source::Image(image) => ops::load(image, window.into(), interpolation, to, resample, pixels),
            Source::Excerpt(e) => ops::load(e.image, e.place(window)?, interpolation, to, resample, pixels),
            Source::Raster(image) => ops::load_raster(image, window.into(), interpolation, (size, size), resample, pixels),
        }
    }
}

fn render_from(plan: &ViewPlan, view: usize, image: Source<'_>, key: DrawKey, out: &mut [f32]) -> Result<()> {
    let spec = find(plan, view)?;
    check_length(plan, spec.size, out)?;
    with_pixels(plan, spec, image, key, |pixels| normalise(plan, pixels, out))
}

fn check_length(plan: &ViewPlan, size: usize, out: &[f32]) -> Result<()> {
    let (found, expected) = (out.len(), plan.channels * size * size);
    if found != expected {
        return Err(Error::WrongLength { found, expected, channels: plan.channels, size });
    }
    Ok(())
}

/// Writes levels as normalised values.
fn normalise(plan: &ViewPlan, pixels: &Pixels, out: &mut [f32]) {
    let area = (pixels.width() * pixels.height()).max(1);
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
    steps: Vec<Step>,
}

fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}

fn with_pixels<T>(
    plan: &ViewPlan,
    spec: &ViewSpec,
    image: Source<'_>,
    key: DrawKey,
    take: impl FnOnce(&Pixels) -> T,
) -> Result<T> {
    with_scratch(|Scratch { pixels, resample, blur, old, steps }| {
        let mut draws = Draws::new(key);
        image.check(plan)?;
        let (width, height, _) = image.size();
        let (window, interpolation) = window(spec, width, height, &mut draws)?;
        steps.clear();
        draw_steps(plan, spec, &mut draws, steps);
        image.load(plan, window, interpolation, spec.size, resample, pixels)?;
        steps.iter().try_for_each(|step| apply(step, plan, pixels, blur, old))?;
        Ok(take(pixels))
    })
}

/// One step after the geometry.
fn apply(step: &Step, plan: &ViewPlan, pixels: &mut Pixels, scratch: &mut BlurScratch, old: &mut Vec<u8>) -> Result<()> {
    // What is hidden: the level that normalisation takes to 0, a channel.
    let hidden = || (0..plan.channels).map(|c| plan.normalize.zero_level(c)).collect::<Vec<u8>>();
    match *step {
        Step::Flip => ops::hflip(pixels),
        Step::Brightness(factor) => ops::adjust_brightness(pixels, factor),
        Step::Contrast(factor) => ops::adjust_contrast(pixels, factor),
        Step::Saturation(factor) => ops::adjust_saturation(pixels, factor),
        Step::Hue(turn) => ops::adjust_hue(pixels, turn),
        Step::Grayscale => ops::grayscale(pixels),
        Step::Blur { kernel, sigma } => ops::gaussian_blur_with(pixels, kernel, sigma, scratch),
        Step::Solarize(threshold) => ops::solarize(pixels, threshold),
        Step::Erase(region) => ops::erase(pixels, region, &hidden()),
        Step::Affine(ref affine) => ops::affine_with(pixels, affine, &hidden(), old),
        Step::DropChannel(c) => ops::drop_channel(pixels, c, plan.normalize.zero_level(c)),
        Step::Posterize(bits) => ops::posterize(pixels, bits),
        Step::Equalize => ops::equalize(pixels),
        Step::Jpeg(quality) => ops::jpeg(pixels, quality)?,
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
