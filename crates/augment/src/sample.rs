//! Random parameters of transforms: where to crop, how to jitter, what to erase. Separate from the operations, so that the
//! distributions can be tested, and used, without pixels. They follow torchvision's `get_params`.

use crate::draw::Draws;
use crate::ops::{Affine, Region};

/// The factors and the order of one colour jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter {
    /// The order of the parts: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    pub order: [u8; 4],
    /// Factor of brightness.
    pub brightness: f64,
    /// Factor of contrast.
    pub contrast: f64,
    /// Factor of saturation.
    pub saturation: f64,
    /// Turn of hue, −0.5..=0.5 of the circle.
    pub hue: f64,
}

/// The crop of a random resized crop of a `width` × `height` image.
///
/// At most ten tries draw an area (uniform in `scale`, a share of the image's) and a ratio (width over height, uniform in its logarithm in
/// `ratio`), and the first whose sides, rounded half to even, fit is placed uniformly. If none fits, it is the largest centred crop of a ratio
/// within `ratio`, which takes no draw. The region always holds at least one pixel.
pub fn crop_region(draws: &mut Draws, width: u32, height: u32, scale: (f32, f32), ratio: (f32, f32)) -> Region {
    let (full_w, full_h) = (f64::from(width), f64::from(height));
    for _ in 0..10 {
        let (w, h) = sides(draws, full_w * full_h, scale, ratio);
        if w > 0.0 && w <= full_w && h > 0.0 && h <= full_h {
            let (w, h) = (w as u32, h as u32);
            let top = draws.below(height - h + 1);
            let left = draws.below(width - w + 1);
            return Region { left, top, width: w, height: h };
        }
    }
    let (least, most) = (f64::from(ratio.0), f64::from(ratio.1));
    let in_ratio = full_w / full_h;
    let (w, h) = if in_ratio < least {
        (full_w, (full_w / least).round_ties_even())
    } else if in_ratio > most {
        ((full_h * most).round_ties_even(), full_h)
    } else {
        (full_w, full_h)
    };
    let (w, h) = ((w as u32).clamp(1, width), (h as u32).clamp(1, height));
    Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// A colour jitter: the order (Fisher and Yates, three draws), then a factor each of brightness, contrast and saturation, uniform in
/// [max(0, 1 − amount), 1 + amount], and a turn of hue uniform in [−hue, hue]. All are drawn, also those of amount 0.
pub fn jitter(draws: &mut Draws, brightness: f32, contrast: f32, saturation: f32, hue: f32) -> Jitter {
    let mut order = [0, 1, 2, 3];
    for last in (1..4).rev() {
        order.swap(last, draws.below(last as u32 + 1) as usize);
    }
    let mut factor = |amount: f32| draws.uniform((1.0 - f64::from(amount)).max(0.0), 1.0 + f64::from(amount));
    let (brightness, contrast, saturation) = (factor(brightness), factor(contrast), factor(saturation));
    Jitter { order, brightness, contrast, saturation, hue: draws.uniform(-f64::from(hue), f64::from(hue)) }
}

/// The rectangle of a random erasing in a `width` × `height` view: as [`crop_region`], but the ratio is height over width, both sides must be
/// smaller than the view's, and nothing is erased when ten tries do not fit. The rectangle may be empty when the area rounds to none.
pub fn erase_region(draws: &mut Draws, width: u32, height: u32, scale: (f32, f32), ratio: (f32, f32)) -> Option<Region> {
    let (full_w, full_h) = (f64::from(width), f64::from(height));
    for _ in 0..10 {
        let (h, w) = sides(draws, full_w * full_h, scale, ratio);
        if h < full_h && w < full_w {
            let (w, h) = (w as u32, h as u32);
            let top = draws.below(height - h + 1);
            let left = draws.below(width - w + 1);
            return Some(Region { left, top, width: w, height: h });
        }
    }
    None
}

/// An affine change of a `width` × `height` view, as torchvision's `RandomAffine` draws it: angle uniform in ± `degrees`, shifts uniform in
/// ± `translate` of the side and rounded to whole pixels, scale uniform in `scale`, shears uniform in ± `shear` degrees.
pub fn affine(
    draws: &mut Draws,
    (width, height): (u32, u32),
    degrees: f32,
    translate: f32,
    scale: (f32, f32),
    shear: f32,
) -> Affine {
    let mut about = |most: f64| draws.uniform(-most, most);
    let angle = about(f64::from(degrees));
    let mut shift = |side: u32| about(f64::from(translate) * f64::from(side)).round_ties_even();
    let translate = (shift(width), shift(height));
    let scale = draws.uniform(f64::from(scale.0), f64::from(scale.1));
    let mut about = || draws.uniform(-f64::from(shear), f64::from(shear));
    Affine { angle, translate, scale, shear: (about(), about()) }
}

/// The square of a cutout: `size` of the shorter side long, about a uniformly drawn pixel, cut at the edges. It may be empty.
pub fn cutout_region(draws: &mut Draws, width: u32, height: u32, size: f32) -> Region {
    let side = (f64::from(size) * f64::from(width.min(height))).round() as i64;
    let part = |center: u32, length: u32| {
        let start = i64::from(center) - side / 2;
        let end = (start + side).min(i64::from(length));
        let start = start.max(0);
        (start as u32, (end - start).max(0) as u32)
    };
    let (row, column) = (draws.below(height), draws.below(width));
    let ((top, height), (left, width)) = (part(row, height), part(column, width));
    Region { left, top, width, height }
}

/// Two sides, rounded half to even, whose product is a random share of `area` and whose quotient is a random ratio.
fn sides(draws: &mut Draws, area: f64, scale: (f32, f32), ratio: (f32, f32)) -> (f64, f64) {
    let target = area * draws.uniform(f64::from(scale.0), f64::from(scale.1));
    let ratio = draws.uniform(f64::from(ratio.0).ln(), f64::from(ratio.1).ln()).exp();
    ((target * ratio).sqrt().round_ties_even(), (target / ratio).sqrt().round_ties_even())
}
