//! Each operation of a view on its own, without randomness.
//!
//! They work on [`Pixels`] (8-bit planes) in place and round as PIL does: compared with torchvision on PIL images, colour
//! operations give the same levels, resizing differs by a level or two (PIL resizes across first and down second), blur by one
//! where a sum falls on a half.

mod affine;
mod blur;
mod color;
mod geometry;
mod hue;
mod jpeg;
mod levels;

pub(crate) use affine::affine_with;
pub use affine::{Affine, affine};
pub(crate) use blur::{BlurScratch, gaussian_blur_with};
pub use blur::{gaussian_blur, gaussian_half, gaussian_kernel};
pub use color::{adjust_brightness, adjust_contrast, adjust_saturation, grayscale, luma, solarize};
pub(crate) use geometry::{Placed, Resample, load, load_raster};
pub use geometry::{Region, center_window, erase, hflip, resize, resized_crop};
pub use hue::adjust_hue;
pub use jpeg::jpeg;
pub use levels::{drop_channel, equalize, posterize};

pub use crate::pixels::Pixels;

/// Runs `work` compiled for the widest vectors that this machine has. Results do not depend on it: nothing here is reassociated or
/// contracted.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// ⌊x⌋ of 0 ≤ x < 2²². Rust's own cast saturates and minds NaN, which keeps loops over it from becoming vector code.
#[inline(always)]
pub(crate) fn floor(x: f32) -> i32 {
    // 2²³ + x holds x, rounded to a whole number, in its lowest bits.
    let shifted = x + 8_388_608.0;
    let rounded = (shifted.to_bits() & 0x7f_ffff) as i32;
    rounded - i32::from(shifted - 8_388_608.0 > x)
}

/// The whole number nearest to 0 ≤ x < 2²².
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    ((x + 8_388_608.0).to_bits() & 0x7f_ffff) as i32
}

#[cfg(test)]
mod tests {
    use super::floor;

    #[test]
    fn floor_is_exact() {
        for i in 0..4096_u16 {
            let x = f32::from(i);
            assert_eq!(floor(x), i32::from(i));
            assert_eq!(floor(x + 0.5), i32::from(i));
            assert_eq!(floor((x + 1.0).next_down()), i32::from(i));
        }
    }
}
