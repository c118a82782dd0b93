//! Gaussian blur with torchvision's kernel and reflected edges, as two passes of one dimension.

use super::vectorised;
use crate::pixels::Pixels;

/// Weights below this are left out: together they move no level by more than a hundredth.
const NEGLIGIBLE: f32 = 1e-5;

/// Buffers that a blur needs, kept from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct BlurScratch {
    line: Vec<f32>,
    rows: Vec<f32>,
    /// Where the rows above and below begin, from the nearest to the farthest.
    places: Vec<(usize, usize)>,
}

/// Blurs every channel with a `kernel` × `kernel` Gaussian (odd length in pixels) of standard deviation `sigma` (pixels, above 0).
///
/// Edges are reflected without repeating the edge pixel, as often as a kernel wider than the image needs. Levels are rounded
/// half to even.
pub fn gaussian_blur(pixels: &mut Pixels, kernel: usize, sigma: f64) {
    gaussian_blur_with(pixels, kernel, sigma, &mut BlurScratch::default());
}

/// The weights of torchvision's kernel of `length` (odd): samples of the density at whole distances, divided by their sum.
pub fn gaussian_kernel(length: usize, sigma: f64) -> Vec<f32> {
    let half = (length / 2) as f64;
    let density = |x: f64| (-0.5 * (x / sigma).powi(2)).exp();
    let sum: f64 = (0..length).map(|i| density(i as f64 - half)).sum();
    (0..length).map(|i| (density(i as f64 - half) / sum) as f32).collect()
}

/// The weights that [`gaussian_blur`] takes of [`gaussian_kernel`]: from the centre outwards (centre, ±1, ±2, …) up to the last that matters.
/// Of a single weight nothing is left to do.
pub fn gaussian_half(kernel: usize, sigma: f64) -> Vec<f32> {
    let mut weights = gaussian_kernel(kernel, sigma).split_off(kernel / 2);
    weights.truncate(weights.iter().rposition(|&w| w > NEGLIGIBLE).unwrap_or(0) + 1);
    weights
}

/// [`gaussian_blur`] with buffers of the caller's.
pub(crate) fn gaussian_blur_with(pixels: &mut Pixels, kernel: usize, sigma: f64, scratch: &mut BlurScratch) {
    let weights = gaussian_half(kernel, sigma);
    if weights.len() == 1 {
        return; // The centre's weight rounds to 1.
    }
    let (width, height) = (pixels.width(), pixels.height());
    for c in 0..pixels.channels() {
        let plane = pixels.plane_mut(c);
        vectorised(
            #[inline(always)]
            || blur_plane(plane, width, height, &weights, scratch),
        );
    }
}

/// Levels that are summed at a time, in registers.
const LANES: usize = 64;

/// One channel: across into `rows`, then down into the plane. `weights` runs from the centre outwards.
#[inline(always)]
fn blur_plane(plane: &mut [u8], width: usize, height: usize, weights: &[f32], scratch: &mut BlurScratch) {
    let reach = weights.len() - 1;
    let stride = width.next_multiple_of(LANES);
    let BlurScratch { line, rows, places } = scratch;
    line.resize(stride + 2 * reach, 0.0);
    rows.resize(height * stride, 0.0);
    for (levels, row) in plane.chunks_exact(width).zip(rows.chunks_exact_mut(stride)) {
        for i in 0..reach {
            line[i] = f32::from(levels[reflect(i as isize - reach as isize, width)]);
            line[reach + width + i] = f32::from(levels[reflect((width + i) as isize, width)]);
        }
        for (to, &from) in line[reach..].iter_mut().zip(levels) {
            *to = f32::from(from);
        }
        for (x, to) in (reach..).step_by(LANES).zip(row.chunks_exact_mut(LANES)) {
            let pairs = (1..).map(|d| (x - d, x + d));
            to.copy_from_slice(&weighted(line, weights, x, pairs));
        }
    }
    for (y, levels) in plane.chunks_exact_mut(width).enumerate() {
        let row_of = |y: isize| reflect(y, height) * stride;
        let y = y as isize;
        places.clear();
        places.extend((1..weights.len() as isize).map(|d| (row_of(y - d), row_of(y + d))));
        for (x, to) in (0..).step_by(LANES).zip(levels.chunks_mut(LANES)) {
            let pairs = places.iter().map(|&(up, down)| (up + x, down + x));
            let sums = weighted(rows, weights, row_of(y) + x, pairs);
            for (level, value) in to.iter_mut().zip(sums) {
                // 2²³ + value holds the value, rounded half to even, in its lowest bits.
                *level = (value + 8_388_608.0).to_bits() as u8;
            }
        }
    }
}

/// The weighted sums of the values at `centre` and at `pairs` of places, from the centre outwards, for so many places from there on.
#[inline(always)]
fn weighted(values: &[f32], weights: &[f32], centre: usize, pairs: impl Iterator<Item = (usize, usize)>) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for (sum, &value) in sums.iter_mut().zip(&values[centre..][..LANES]) {
        *sum = weights[0] * value;
    }
    for (&weight, (a, b)) in weights[1..].iter().zip(pairs) {
        for ((sum, &a), &b) in sums.iter_mut().zip(&values[a..][..LANES]).zip(&values[b..][..LANES]) {
            *sum += weight * (a + b);
        }
    }
    sums
}

/// The index in 0..`len` that `i` falls on when the line is mirrored at the centres of its first and last elements.
fn reflect(i: isize, len: usize) -> usize {
    if (0..len as isize).contains(&i) {
        return i as usize;
    }
    if len == 1 {
        return 0;
    }
    let last = len as isize - 1;
    let i = i.rem_euclid(2 * last);
    if i > last { (2 * last - i) as usize } else { i as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_reflected() {
        let at = |len| (-3..6).map(|i| reflect(i, len)).collect::<Vec<_>>();
        assert_eq!(at(4), [3, 2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!(at(2), [1, 0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(at(1), [0; 9]);
    }

    #[test]
    fn a_blur_keeps_flat_images_and_spreads_points() {
        for (w, h) in [(1, 1), (2, 1), (1, 7), (5, 4)] {
            let mut flat = Pixels::from_interleaved(&vec![255; w * h * 3], w, h, 3, 3);
            gaussian_blur(&mut flat, 23, 2.0);
            assert!(flat.data().iter().all(|&v| v == 255), "{w}×{h}");
        }
        let mut raw = vec![0; 49];
        raw[24] = 255;
        let mut point = Pixels::from_interleaved(&raw, 7, 7, 1, 1);
        gaussian_blur(&mut point, 3, 1.0);
        // The outer product of (0.27406862, 0.45186276, 0.27406862) with itself, times 255.
        assert_eq!(&point.data()[16..19], [19, 32, 19]);
        assert_eq!(&point.data()[23..26], [32, 52, 32]);
    }

    #[test]
    fn a_tiny_sigma_changes_nothing() {
        let raw: Vec<u8> = (0..64).map(|v: u8| v.wrapping_mul(97)).collect();
        let before = Pixels::from_interleaved(&raw, 8, 8, 1, 1);
        let mut pixels = before.clone();
        gaussian_blur(&mut pixels, 9, 0.1);
        assert_eq!(pixels, before);
    }
}
