//! The transforms of F(4 × 4, 3 × 3), a vector of channels at a time.

// Rows and columns of small matrices read better by index.
#![allow(clippy::needless_range_loop)]

use pulp::{Simd, WithSimd};

use super::POINTS;
use crate::cpu::memory::SharedMut;
use crate::cpu::panels::Panel;
use crate::cpu::simd::{GROUP, load, store};

/// Bᵀ d B of one tile for all channels; `c` is a multiple of 16.
pub(super) struct InputTransform<'a> {
    pub from: &'a [*const f32; POINTS],
    pub c: usize,
    pub to: *mut f32,
    /// Floats from point to point.
    pub step: usize,
    /// Floats from one group of [`GROUP`] channels to the next.
    pub group: usize,
}

impl WithSimd for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        for c in (0..self.c).step_by(S::F32_LANES) {
            let mut half = [[s.splat_f32s(0.0); 6]; 6];
            for column in 0..6 {
                // SAFETY: `inputs` made every pointer valid for `c` floats, which vectors cut evenly.
                let d = std::array::from_fn(|i| unsafe { load::<S>(self.from[i * 6 + column].add(c)) });
                let t = input_points(s, d);
                (0..6).for_each(|i| half[i][column] = t[i]);
            }
            for (i, row) in half.into_iter().enumerate() {
                let t = input_points(s, row);
                for (j, t) in t.into_iter().enumerate() {
                    // SAFETY: `inputs` made room for every point of this tile.
                    unsafe { store::<S>(self.to.add((i * 6 + j) * self.step + c / GROUP * self.group + c % GROUP), t) };
                }
            }
        }
    }
}

/// A dy Aᵀ of one tile for all channels; `o` is a multiple of 16.
pub(super) struct GradientTransform<'a> {
    pub from: &'a [*const f32; 16],
    pub o: usize,
    pub to: *mut f32,
    pub step: usize,
    pub group: usize,
}

impl WithSimd for GradientTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        for o in (0..self.o).step_by(S::F32_LANES) {
            let mut half = [[s.splat_f32s(0.0); 4]; 6];
            for column in 0..4 {
                // SAFETY: `gradients` made every pointer valid for `o` floats, which vectors cut evenly.
                let y = std::array::from_fn(|i| unsafe { load::<S>(self.from[i * 4 + column].add(o)) });
                let t = gradient_points(s, y);
                (0..6).for_each(|i| half[i][column] = t[i]);
            }
            for (i, row) in half.into_iter().enumerate() {
                let t = gradient_points(s, row);
                for (j, t) in t.into_iter().enumerate() {
                    // SAFETY: `gradients` made room for every point of this tile.
                    unsafe { store::<S>(self.to.add((i * 6 + j) * self.step + o / GROUP * self.group + o % GROUP), t) };
                }
            }
        }
    }
}

/// Aᵀ m A of one tile for all columns; of the 4 × 4 outputs `down` × `across` are inside of the image.
pub(super) struct OutputTransform<'a> {
    pub from: &'a [f32],
    pub step: usize,
    pub o: usize,
    pub to: *mut f32,
    pub line: usize,
    pub down: usize,
    pub across: usize,
}

impl WithSimd for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        assert!(self.from.len() >= (POINTS - 1) * self.step + self.o);
        for o in (0..self.o).step_by(S::F32_LANES) {
            let mut half = [[s.splat_f32s(0.0); 6]; 4];
            for column in 0..6 {
                // SAFETY: checked above.
                let m = std::array::from_fn(|i| unsafe { load::<S>(self.from.as_ptr().add((i * 6 + column) * self.step + o)) });
                let t = outputs(s, m);
                (0..4).for_each(|i| half[i][column] = t[i]);
            }
            for (i, row) in half.into_iter().enumerate().take(self.down) {
                let t = outputs(s, row);
                for (j, t) in t.into_iter().enumerate().take(self.across) {
                    // SAFETY: `Tiling::outputs` says which outputs are inside of the image.
                    unsafe { store::<S>(self.to.add(i * self.line + j * self.o + o), t) };
                }
            }
        }
    }
}

/// G w Gᵀ of one row for all columns of a panel; the panel's width is a multiple of 16.
pub(super) struct WeightTransform<'a, F> {
    pub to: SharedMut,
    pub rows: usize,
    pub row: usize,
    pub panel: Panel,
    pub weight: &'a F,
}

impl<F: Fn(usize, usize, usize) -> f32> WithSimd for WeightTransform<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let width = self.panel.vectors * S::F32_LANES;
        for column in (0..width).step_by(S::F32_LANES) {
            let mut buffer = [[0.0f32; 16]; 9];
            for lane in 0..S::F32_LANES {
                for (tap, buffer) in buffer.iter_mut().enumerate() {
                    buffer[lane] = (self.weight)(self.row, self.panel.first + column + lane, tap);
                }
            }
            // SAFETY: a vector has at most 16 lanes.
            let w: [S::f32s; 9] = std::array::from_fn(|i| unsafe { load::<S>(buffer[i].as_ptr()) });
            let mut half = [[s.splat_f32s(0.0); 3]; 6];
            for i in 0..3 {
                let t = weight_points(s, [w[i], w[3 + i], w[6 + i]]);
                (0..6).for_each(|j| half[j][i] = t[j]);
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, t) in weight_points(s, row).into_iter().enumerate() {
                    // SAFETY: (point, row, column) is inside of the panel.
                    unsafe { store::<S>(self.to.at(((i * 6 + j) * self.rows + self.row) * width + column), t) };
                }
            }
        }
    }
}

/// Gᵀ u G of one row for all columns of a panel, handed out weight by weight.
pub(super) struct WeightGradient<'a, F> {
    /// (point, row, column) of the panel.
    pub from: &'a [f32],
    pub c: usize,
    pub row: usize,
    pub panel: Panel,
    pub put: F,
}

impl<F: Fn(usize, usize, f32)> WithSimd for WeightGradient<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let width = self.panel.vectors * S::F32_LANES;
        assert!(self.from.len() >= POINTS * self.c * width && self.row < self.c);
        for column in (0..width).step_by(S::F32_LANES) {
            let at = |point: usize| {
                // SAFETY: (point, row, column) is inside of the panel, as checked above.
                unsafe { load::<S>(self.from.as_ptr().add((point * self.c + self.row) * width + column)) }
            };
            let mut half = [[s.splat_f32s(0.0); 6]; 3];
            for i in 0..6 {
                let t = weight_gradients(s, std::array::from_fn(|j| at(j * 6 + i)));
                (0..3).for_each(|j| half[j][i] = t[j]);
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, t) in weight_gradients(s, row).into_iter().enumerate() {
                    let mut lanes = [0.0f32; 16];
                    // SAFETY: a vector has at most 16 lanes.
                    unsafe { store::<S>(lanes.as_mut_ptr(), t) };
                    let lanes = lanes.iter().take(S::F32_LANES).enumerate();
                    lanes.for_each(|(lane, &value)| (self.put)(column + lane, i * 3 + j, value));
                }
            }
        }
    }
}

/// Bᵀ d.
#[inline(always)]
fn input_points<S: Simd>(s: S, d: [S::f32s; 6]) -> [S::f32s; 6] {
    let minus4 = s.splat_f32s(-4.0);
    let a = s.mul_add_e_f32s(minus4, d[2], d[4]);
    let b = s.mul_add_e_f32s(minus4, d[1], d[3]);
    let c = s.sub_f32s(d[4], d[2]);
    let e = s.sub_f32s(d[3], d[1]);
    let e = s.add_f32s(e, e);
    [
        s.sub_f32s(s.mul_add_e_f32s(s.splat_f32s(4.0), d[0], a), d[2]),
        s.add_f32s(a, b),
        s.sub_f32s(a, b),
        s.add_f32s(c, e),
        s.sub_f32s(c, e),
        s.add_f32s(s.mul_add_e_f32s(s.splat_f32s(-5.0), d[3], d[5]), s.mul_f32s(s.splat_f32s(4.0), d[1])),
    ]
}

/// Aᵀ m.
#[inline(always)]
fn outputs<S: Simd>(s: S, m: [S::f32s; 6]) -> [S::f32s; 4] {
    let (p, q) = (s.add_f32s(m[1], m[2]), s.sub_f32s(m[1], m[2]));
    let (r, t) = (s.add_f32s(m[3], m[4]), s.sub_f32s(m[3], m[4]));
    [
        s.add_f32s(s.add_f32s(m[0], p), r),
        s.mul_add_e_f32s(s.splat_f32s(2.0), t, q),
        s.mul_add_e_f32s(s.splat_f32s(4.0), r, p),
        s.add_f32s(s.mul_add_e_f32s(s.splat_f32s(8.0), t, q), m[5]),
    ]
}

/// A y.
#[inline(always)]
fn gradient_points<S: Simd>(s: S, y: [S::f32s; 4]) -> [S::f32s; 6] {
    let (e, f) = (s.add_f32s(y[0], y[2]), s.add_f32s(y[1], y[3]));
    let g = s.mul_add_e_f32s(s.splat_f32s(4.0), y[2], y[0]);
    let h = s.mul_add_e_f32s(s.splat_f32s(8.0), y[3], s.add_f32s(y[1], y[1]));
    [y[0], s.add_f32s(e, f), s.sub_f32s(e, f), s.add_f32s(g, h), s.sub_f32s(g, h), y[3]]
}

/// G w.
#[inline(always)]
fn weight_points<S: Simd>(s: S, w: [S::f32s; 3]) -> [S::f32s; 6] {
    let scale = |k: f32, v: S::f32s| s.mul_f32s(s.splat_f32s(k), v);
    let (even, odd) = (scale(-1.0 / 6.0, s.add_f32s(w[0], w[2])), scale(1.0 / 6.0, w[1]));
    let (far, side) = (s.add_f32s(scale(1.0 / 24.0, w[0]), scale(1.0 / 6.0, w[2])), scale(1.0 / 12.0, w[1]));
    [scale(0.25, w[0]), s.sub_f32s(even, odd), s.add_f32s(even, odd), s.add_f32s(far, side), s.sub_f32s(far, side), w[2]]
}

/// Gᵀ u.
#[inline(always)]
fn weight_gradients<S: Simd>(s: S, u: [S::f32s; 6]) -> [S::f32s; 3] {
    let scale = |k: f32, v: S::f32s| s.mul_f32s(s.splat_f32s(k), v);
    let near = scale(-1.0 / 6.0, s.add_f32s(u[1], u[2]));
    let far = s.add_f32s(u[3], u[4]);
    let side = scale(1.0 / 12.0, s.sub_f32s(u[3], u[4]));
    [
        s.add_f32s(s.add_f32s(scale(0.25, u[0]), near), scale(1.0 / 24.0, far)),
        s.add_f32s(scale(1.0 / 6.0, s.sub_f32s(u[2], u[1])), side),
        s.add_f32s(s.add_f32s(near, scale(1.0 / 6.0, far)), u[5]),
    ]
}
