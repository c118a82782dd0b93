//! Where pixels come from: crops and resizing of any image into 8-bit planes, flips, erased rectangles.

use fast_image_resize as fir;
use fir::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fir::pixels::{U8, U8x2, U8x3, U8x4, U16, U16x2, U16x3, U16x4};
use fir::{CropBox, FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use image::DynamicImage;

use crate::drawn::Window;
use crate::error::{Error, Result};
use crate::pixels::Pixels;
use crate::raster::{Levels, Raster};
use crate::transform::Interpolation;

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Distance from the left edge.
    pub left: u32,
    /// Distance from the top edge.
    pub top: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// Where a [`Window`] lies in the pixels that are there, which may be reduced ones.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Placed {
    /// Cut out, then resized: pixels beyond the edge of the region do not count.
    Cut(Region),
    /// A part, perhaps of fractional pixels, of a region that is cut out: what lies around the part within the region counts where the kernel
    /// reaches it.
    Within(Region, CropBox),
    /// A part, perhaps of fractional pixels, of the whole image resized: pixels beyond its edge count where the kernel reaches them.
    Part(CropBox),
}

impl From<Window> for Placed {
    fn from(window: Window) -> Self {
        match window {
            Window::Cut(region) => Self::Cut(region),
            Window::Part { left, top, width, height } => Self::Part(CropBox { left, top, width, height }),
        }
    }
}

/// The resizer and its buffers, kept from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct Resample {
    resizer: Resizer,
    bytes: Vec<u8>,
    words: Vec<u16>,
}

/// `region` of `image`, resized to `width` × `height` and `channels` (1 or 3), antialiased.
///
/// 16-bit images are resized at their own depth and rounded to 8 bits afterwards. A region of the output's size is copied.
///
/// # Errors
/// When the image or the region is empty, or the region reaches beyond the image.
pub fn resized_crop(
    image: &DynamicImage,
    region: Region,
    width: usize,
    height: usize,
    channels: usize,
    interpolation: Interpolation,
) -> Result<Pixels> {
    let mut pixels = Pixels::default();
    load(image, Placed::Cut(region), interpolation, (width, height, channels), &mut Resample::default(), &mut pixels)?;
    Ok(pixels)
}

/// The whole `image`, resized to `width` × `height` and `channels` (1 or 3), antialiased.
///
/// # Errors
/// When the image is empty.
pub fn resize(
    image: &DynamicImage,
    width: usize,
    height: usize,
    channels: usize,
    interpolation: Interpolation,
) -> Result<Pixels> {
    let all = Region { left: 0, top: 0, width: image.width(), height: image.height() };
    resized_crop(image, all, width, height, channels, interpolation)
}

/// The part (left, top, width, height; fractions of pixels) of a `width` × `height` image that becomes the centred square of `size`
/// after the image's shorter side was resized to `shorter` (at least `size`), with torchvision's rounding of the longer side and
/// the centre.
pub fn center_window(width: u32, height: u32, shorter: usize, size: usize) -> (f64, f64, f64, f64) {
    let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
    let long_side = (shorter as f64 * long / short).floor();
    let (new_w, new_h) = if width <= height { (shorter as f64, long_side) } else { (long_side, shorter as f64) };
    let part = |old: u32, new: f64| {
        let old = f64::from(old);
        let scale = old / new;
        let start = ((new - size as f64) / 2.0).round_ties_even() * scale;
        let length = (size as f64 * scale).min(old);
        (start.min(old - length).max(0.0), length)
    };
    let ((left, w), (top, h)) = (part(width, new_w), part(height, new_h));
    (left, top, w, h)
}

/// Exchanges left and right.
pub fn hflip(pixels: &mut Pixels) {
    let width = pixels.width().max(1);
    pixels.data_mut().chunks_exact_mut(width).for_each(<[u8]>::reverse);
}

/// Fills `region` with `levels`, one a channel. What lies beyond the image is ignored.
pub fn erase(pixels: &mut Pixels, region: Region, levels: &[u8]) {
    let (width, height) = (pixels.width(), pixels.height());
    let left = (region.left as usize).min(width);
    let right = (left + region.width as usize).min(width);
    for (c, &level) in levels.iter().enumerate().take(pixels.channels()) {
        let rows = pixels.plane_mut(c).chunks_exact_mut(width.max(1)).take(height);
        for row in rows.skip(region.top as usize).take(region.height as usize) {
            row[left..right].fill(level);
        }
    }
}

/// `window` of `image`, resized to `to` = (width, height, channels), into `pixels`.
pub(crate) fn load(
    image: &DynamicImage,
    window: Placed,
    interpolation: Interpolation,
    to: (usize, usize, usize),
    scratch: &mut Resample,
    pixels: &mut Pixels,
) -> Result<()> {
    use DynamicImage as D;
    let (w, h) = (image.width(), image.height());
    if w == 0 || h == 0 {
        return Err(Error::EmptyImage { width: w, height: h });
    }
    let job = Job { source: (w, h), window, interpolation, to };
    match image {
        D::ImageLuma8(i) => job.bytes::<U8>(i.as_raw(), scratch, pixels),
        D::ImageLumaA8(i) => job.bytes::<U8x2>(i.as_raw(), scratch, pixels),
        D::ImageRgb8(i) => job.bytes::<U8x3>(i.as_raw(), scratch, pixels),
        D::ImageRgba8(i) => job.bytes::<U8x4>(i.as_raw(), scratch, pixels),
        D::ImageLuma16(i) => job.words::<U16>(i.as_raw(), scratch, pixels),
        D::ImageLumaA16(i) => job.words::<U16x2>(i.as_raw(), scratch, pixels),
        D::ImageRgb16(i) => job.words::<U16x3>(i.as_raw(), scratch, pixels),
        D::ImageRgba16(i) => job.words::<U16x4>(i.as_raw(), scratch, pixels),
        other => job.bytes::<U8x3>(other.to_rgb8().as_raw(), scratch, pixels),
    }
}

/// As [`load`], of a raster whose channels are the view's: each is resized by itself.
pub(crate) fn load_raster(
    image: &Raster<'_>,
    window: Placed,
    interpolation: Interpolation,
    to: (usize, usize),
    scratch: &mut Resample,
    pixels: &mut Pixels,
) -> Result<()> {
    let (width, height) = to;
    let job = Job { source: (image.width, image.height), window, interpolation, to: (width, height, 1) };
    pixels.reshape(width, height, image.channels);
    let Resample { resizer, bytes, words } = scratch;
    for c in 0..image.channels {
        let out = pixels.plane_mut(c);
        match image.levels {
            Levels::Bytes(raw) => {
                bytes.clear();
                bytes.extend(raw[c..].iter().step_by(image.channels));
                job.resample::<U8>(bytes, resizer, out)?;
            }
            Levels::Words(raw) => {
                let plane: Vec<u16> = raw[c..].iter().step_by(image.channels).copied().collect();
                words.resize(width * height, 0);
                job.resample::<U16>(bytemuck::cast_slice(&plane), resizer, bytemuck::cast_slice_mut(words))?;
                out.iter_mut().zip(&*words).for_each(|(to, &v)| *to = ((u32::from(v) + 128) / 257) as u8);
            }
        }
    }
    Ok(())
}

struct Job {
    source: (u32, u32),
    window: Placed,
    interpolation: Interpolation,
    to: (usize, usize, usize),
}

impl Job {
    fn bytes<P: PixelTrait>(&self, raw: &[u8], scratch: &mut Resample, pixels: &mut Pixels) -> Result<()> {
        let (width, height, channels) = self.to;
        let from = P::count_of_components();
        if from == 1 && channels == 1 {
            pixels.reshape(width, height, 1);
            return self.resample::<P>(raw, &mut scratch.resizer, pixels.data_mut());
        }
        scratch.bytes.resize(width * height * from, 0);
        self.resample::<P>(raw, &mut scratch.resizer, &mut scratch.bytes)?;
        pixels.assign_interleaved(&scratch.bytes, width, height, from, channels);
        Ok(())
    }

    fn words<P: PixelTrait>(&self, raw: &[u16], scratch: &mut Resample, pixels: &mut Pixels) -> Result<()> {
        let (width, height, channels) = self.to;
        let from = P::count_of_components();
        scratch.words.resize(width * height * from, 0);
        self.resample::<P>(bytemuck::cast_slice(raw), &mut scratch.resizer, bytemuck::cast_slice_mut(&mut scratch.words))?;
        scratch.bytes.clear();
        scratch.bytes.extend(scratch.words.iter().map(|&v| ((u32::from(v) + 128) / 257) as u8));
        pixels.assign_interleaved(&scratch.bytes, width, height, from, channels);
        Ok(())
    }

    fn resample<P: PixelTrait>(&self, raw: &[u8], resizer: &mut Resizer, out: &mut [u8]) -> Result<()> {
        let (w, h) = self.source;
        let failed = |reason: &dyn std::fmt::Display| Error::Resize { width: w, height: h, reason: reason.to_string() };
        let filter = match self.interpolation {
            Interpolation::Bilinear => FilterType::Bilinear,
            Interpolation::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
        let source = TypedImageRef::<P>::from_buffer(w, h, raw).map_err(|e| failed(&e))?;
        let mut target = TypedImage::<P>::from_buffer(self.to.0 as u32, self.to.1 as u32, out).map_err(|e| failed(&e))?;
        match self.window {
            Placed::Cut(r) | Placed::Within(r, _) => {
                let inside =
                    |start: u32, length: u32, side| length > 0 && u64::from(start) + u64::from(length) <= u64::from(side);
                if !inside(r.left, r.width, w) || !inside(r.top, r.height, h) {
                    return Err(failed(&format_args!("{r:?} is empty or reaches beyond the image")));
                }
                let cut = TypedCroppedImage::from_ref(&source, r.left, r.top, r.width, r.height).map_err(|e| failed(&e))?;
                let options = match self.window {
                    Placed::Within(_, part) => options.crop(part.left, part.top, part.width, part.height),
                    _ => options,
                };
                resizer.resize_typed(&cut, &mut target, &options)
            }
            Placed::Part(part) => {
                let options = options.crop(part.left, part.top, part.width, part.height);
                resizer.resize_typed(&source, &mut target, &options)
            }
        }
        .map_err(|e| failed(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> DynamicImage {
        image::RgbImage::from_fn(width, height, |x, y| {
            let wave = |a: f32| (127.0 + 100.0 * ((x as f32 / (4.0 + a)).sin() * (y as f32 / (6.0 - a)).cos())) as u8;
            image::Rgb([wave(0.0), wave(1.0), wave(2.0)])
        })
        .into()
    }

    #[test]
    fn resizing_then_cutting_the_centre_is_one_step() {
        for (w, h, shorter, size) in [(90, 61, 40, 32), (61, 90, 37, 30), (33, 100, 64, 64), (32, 32, 32, 32)] {
            let image = picture(w, h);
            let (left, top, width, height) = center_window(w, h, shorter, size);
            let part = Placed::Part(CropBox { left, top, width, height });
            let mut once = Pixels::default();
            load(&image, part, Interpolation::Bilinear, (size, size, 3), &mut Resample::default(), &mut once).unwrap();

            let (short, long) = (w.min(h) as usize, w.max(h) as usize);
            let longer = shorter * long / short;
            let (new_w, new_h) = if w <= h { (shorter, longer) } else { (longer, shorter) };
            let whole = resize(&image, new_w, new_h, 3, Interpolation::Bilinear).unwrap().to_image();
            let middle = |new: usize| ((new - size) as f64 / 2.0).round_ties_even() as u32;
            let twice = whole.crop_imm(middle(new_w), middle(new_h), size as u32, size as u32);
            let once = once.to_image();
            let apart = once.as_bytes().iter().zip(twice.as_bytes()).map(|(&a, &b)| a.abs_diff(b)).max();
            assert!(apart <= Some(1), "{w}×{h} to {shorter}, {size}: {apart:?}");
        }
    }

    #[test]
    fn pixels_outside_a_crop_do_not_count() {
        let mut image = image::GrayImage::from_pixel(20, 20, image::Luma([10]));
        for i in 5..15 {
            for j in 5..15 {
                image.put_pixel(i, j, image::Luma([200]));
            }
        }
        let region = Region { left: 5, top: 5, width: 10, height: 10 };
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            let pixels = resized_crop(&image.clone().into(), region, 7, 23, 1, interpolation).unwrap();
            assert!(pixels.data().iter().all(|&v| v == 200));
        }
    }

    #[test]
    fn sixteen_bits_become_the_nearest_eight() {
        let image = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(4, 1, vec![0, 128, 129, 65535]).unwrap();
        assert_eq!(resize(&image.into(), 4, 1, 1, Interpolation::Bilinear).unwrap().data(), [0, 0, 1, 255]);
    }

    #[test]
    fn bad_regions_are_refused() {
        let image = picture(8, 8);
        for region in [
            Region { left: 0, top: 0, width: 9, height: 1 },
            Region { left: 8, top: 0, width: 1, height: 1 },
            Region { left: 0, top: 0, width: 0, height: 1 },
            Region { left: u32::MAX, top: 0, width: 2, height: 1 },
        ] {
            assert!(resized_crop(&image, region, 4, 4, 3, Interpolation::Bilinear).is_err(), "{region:?}");
        }
        assert!(resize(&DynamicImage::new_rgb8(0, 3), 4, 4, 3, Interpolation::Bilinear).is_err());
    }

    #[test]
    fn flips_and_rectangles_stay_inside() {
        let mut pixels = Pixels::from_interleaved(&[1, 2, 3, 4, 5, 6], 3, 2, 1, 1);
        hflip(&mut pixels);
        assert_eq!(pixels.data(), [3, 2, 1, 6, 5, 4]);
        erase(&mut pixels, Region { left: 2, top: 1, width: 9, height: 9 }, &[0]);
        assert_eq!(pixels.data(), [3, 2, 1, 6, 5, 0]);
    }
}
