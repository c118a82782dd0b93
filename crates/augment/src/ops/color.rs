//! Operations on levels: brightness, contrast, saturation, grayscale, solarise, as PIL's `ImageEnhance` and `ImageOps` round them.

use super::{floor, vectorised};
use crate::pixels::Pixels;

/// The luma of a colour: ITU-R 601 in 16-bit fixed point, PIL's `convert("L")`.
#[inline(always)]
pub fn luma(red: u8, green: u8, blue: u8) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// Every level times `factor` (0 black, 1 unchanged).
pub fn adjust_brightness(pixels: &mut Pixels, factor: f64) {
    blend_with_level(pixels.data_mut(), 0, factor);
}

/// Every level's distance from the image's mean luma (rounded to a level) times `factor` (0 flat gray, 1 unchanged). In images of
/// other than three channels each has its own mean.
pub fn adjust_contrast(pixels: &mut Pixels, factor: f64) {
    let area = pixels.width() * pixels.height();
    if area == 0 {
        return;
    }
    let mean = |sum: u64| (sum as f64 / area as f64 + 0.5) as u8;
    if let Some((red, green, blue)) = pixels.rgb_mut() {
        let mean = mean(sum_luma(red, green, blue));
        return blend_with_level(pixels.data_mut(), mean, factor);
    }
    for plane in pixels.data_mut().chunks_exact_mut(area) {
        let mean = mean(plane.iter().map(|&v| u64::from(v)).sum());
        blend_with_level(plane, mean, factor);
    }
}

/// Every pixel's distance from its own luma times `factor` (0 gray, 1 unchanged). Images of other than three channels stay as they are.
pub fn adjust_saturation(pixels: &mut Pixels, factor: f64) {
    let alpha = factor as f32;
    let Some((red, green, blue)) = pixels.rgb_mut() else { return };
    vectorised(
        #[inline(always)]
        || {
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let gray = luma(*r, *g, *b);
                (*r, *g, *b) = (blend(gray, *r, alpha), blend(gray, *g, alpha), blend(gray, *b, alpha));
            }
        },
    );
}

/// Colour replaced by luma in all three channels. Images of other than three channels stay as they are.
pub fn grayscale(pixels: &mut Pixels) {
    let Some((red, green, blue)) = pixels.rgb_mut() else { return };
    vectorised(
        #[inline(always)]
        || {
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let gray = luma(*r, *g, *b);
                (*r, *g, *b) = (gray, gray, gray);
            }
        },
    );
}

/// Levels from `threshold` on inverted (`255 − v`).
pub fn solarize(pixels: &mut Pixels, threshold: u8) {
    let data = pixels.data_mut();
    vectorised(
        #[inline(always)]
        || {
            for v in data {
                *v = if *v < threshold { *v } else { 255 - *v };
            }
        },
    );
}

/// `from + factor · (to − from)` in `f32`, cut (not rounded) to a whole level and held within 0..=255: PIL's `Image.blend`.
#[inline(always)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let from = i32::from(from);
    let mixed = from as f32 + factor * (i32::from(to) - from) as f32;
    floor(mixed.clamp(0.0, 255.0)) as u8
}

fn blend_with_level(data: &mut [u8], level: u8, factor: f64) {
    let alpha = factor as f32;
    vectorised(
        #[inline(always)]
        || {
            for v in data {
                *v = blend(level, *v, alpha);
            }
        },
    );
}

fn sum_luma(red: &[u8], green: &[u8], blue: &[u8]) -> u64 {
    vectorised(
        #[inline(always)]
        || {
            let mut sum = 0;
            // Short enough for 32-bit sums, which fill vectors.
            for ((r, g), b) in red.chunks(4096).zip(green.chunks(4096)).zip(blue.chunks(4096)) {
                let part: u32 = r.iter().zip(g).zip(b).map(|((&r, &g), &b)| u32::from(luma(r, g, b))).sum();
                sum += u64::from(part);
            }
            sum
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(levels: &[u8]) -> Pixels {
        Pixels::from_interleaved(levels, levels.len(), 1, 1, 1)
    }

    #[test]
    fn one_channel_knows_brightness_contrast_and_solarise_only() {
        let mut pixels = gray(&[0, 100, 200]);
        adjust_brightness(&mut pixels, 1.5);
        assert_eq!(pixels.data(), [0, 150, 255]);
        adjust_contrast(&mut pixels, 0.5); // mean 135
        assert_eq!(pixels.data(), [67, 142, 195]);
        solarize(&mut pixels, 142);
        assert_eq!(pixels.data(), [67, 113, 60]);
        let before = pixels.clone();
        adjust_saturation(&mut pixels, 0.0);
        grayscale(&mut pixels);
        crate::ops::adjust_hue(&mut pixels, 0.3);
        assert_eq!(pixels, before);
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        let raw: Vec<u8> = (0..=255).rev().chain(0..=255).chain((0..=255).map(|v: u8| v.wrapping_mul(37))).collect();
        let before = Pixels::from_interleaved(&raw, 16, 16, 3, 3);
        let mut pixels = before.clone();
        adjust_brightness(&mut pixels, 1.0);
        adjust_contrast(&mut pixels, 1.0);
        adjust_saturation(&mut pixels, 1.0);
        assert_eq!(pixels, before);
    }
}
