//! Rotation, shift, scaling and shear in one pass: torchvision's `functional.affine` on a PIL image, bilinear.

use crate::pixels::Pixels;

/// An affine change about the image's centre, in torchvision's order: shear, then scale and rotation, then shift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Rotation in degrees, clockwise.
    pub angle: f64,
    /// Shift to the right and down, in pixels.
    pub translate: (f64, f64),
    /// Scaling, above 0.
    pub scale: f64,
    /// Shear along x and along y, in degrees.
    pub shear: (f64, f64),
}

impl Affine {
    /// The matrix (two rows of three) from places of the result to places of the image, both in pixels from the upper left corner.
    pub fn inverse(&self, width: usize, height: usize) -> [f64; 6] {
        let (rot, sx, sy) = (self.angle.to_radians(), self.shear.0.to_radians(), self.shear.1.to_radians());
        let (cx, cy) = (width as f64 * 0.5, height as f64 * 0.5);
        let a = (rot - sy).cos() / sy.cos();
        let b = -(rot - sy).cos() * sx.tan() / sy.cos() - rot.sin();
        let c = (rot - sy).sin() / sy.cos();
        let d = -(rot - sy).sin() * sx.tan() / sy.cos() + rot.cos();
        let mut m = [d, -b, 0.0, -c, a, 0.0].map(|v| v / self.scale);
        let (x, y) = (-cx - self.translate.0, -cy - self.translate.1);
        m[2] += m[0] * x + m[1] * y + cx;
        m[5] += m[3] * x + m[4] * y + cy;
        m
    }
}

/// Applies `affine`, bilinear; what comes from outside the image is `fill`, one level a channel. `old` is memory to work in.
pub fn affine(pixels: &mut Pixels, affine: &Affine, fill: &[u8]) {
    affine_with(pixels, affine, fill, &mut Vec::new());
}

/// [`affine`] with memory of the caller's.
pub(crate) fn affine_with(pixels: &mut Pixels, affine: &Affine, fill: &[u8], old: &mut Vec<u8>) {
    let (width, height) = (pixels.width(), pixels.height());
    if width == 0 || height == 0 {
        return;
    }
    let m = affine.inverse(width, height);
    let area = width * height;
    old.clear();
    old.extend_from_slice(pixels.data());
    let channels = pixels.channels();
    let data = pixels.data_mut();
    for y in 0..height {
        let (down, mut x_in, mut y_in);
        down = y as f64 + 0.5;
        x_in = m[0] * 0.5 + m[1] * down + m[2];
        y_in = m[3] * 0.5 + m[4] * down + m[5];
        for x in 0..width {
            let to = y * width + x;
            if (0.0..width as f64).contains(&x_in) && (0.0..height as f64).contains(&y_in) {
                let (left, top) = ((x_in - 0.5).floor(), (y_in - 0.5).floor());
                let (dx, dy) = (x_in - 0.5 - left, y_in - 0.5 - top);
                let clip = |v: f64, side: usize| v.clamp(0.0, (side - 1) as f64) as usize;
                let (x0, x1) = (clip(left, width), clip(left + 1.0, width));
                let (y0, y1) = (clip(top, height) * width, clip(top + 1.0, height) * width);
                for c in 0..channels {
                    let plane = &old[c * area..(c + 1) * area];
                    let at = |i: usize| f64::from(plane[i]);
                    let upper = at(y0 + x0) + (at(y0 + x1) - at(y0 + x0)) * dx;
                    let lower = at(y1 + x0) + (at(y1 + x1) - at(y1 + x0)) * dx;
                    data[c * area + to] = (upper + (lower - upper) * dy) as u8;
                }
            } else {
                (0..channels).for_each(|c| data[c * area + to] = fill[c]);
            }
            x_in += m[0];
            y_in += m[3];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Affine = Affine { angle: 0.0, translate: (0.0, 0.0), scale: 1.0, shear: (0.0, 0.0) };

    fn ramp() -> Pixels {
        Pixels::from_interleaved(&(0..30).collect::<Vec<u8>>(), 6, 5, 1, 1)
    }

    #[test]
    fn nothing_changes_nothing_and_shifts_shift() {
        let mut pixels = ramp();
        affine(&mut pixels, &NONE, &[99]);
        assert_eq!(pixels, ramp());
        affine(&mut pixels, &Affine { translate: (2.0, 1.0), ..NONE }, &[99]);
        assert_eq!(pixels.data()[..12], [99, 99, 99, 99, 99, 99, 99, 99, 0, 1, 2, 3]);
    }

    #[test]
    fn a_quarter_turn_of_a_square_is_exact_to_a_level() {
        let raw: Vec<u8> = (0..25).map(|i| i * 10).collect();
        let mut pixels = Pixels::from_interleaved(&raw, 5, 5, 1, 1);
        affine(&mut pixels, &Affine { angle: 90.0, ..NONE }, &[0]);
        for (y, row) in pixels.data().chunks(5).enumerate() {
            for (x, &level) in row.iter().enumerate() {
                let before = raw[(4 - x) * 5 + y];
                assert!(level.abs_diff(before) <= 1, "({x}, {y}): {level} of {before}");
            }
        }
    }
}
