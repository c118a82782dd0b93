//! What the block does between its products, row by row, while the rows are in the cache.

use pulp::{Simd, WithSimd};

use crate::cpu::simd::ARCH;
use crate::cpu::smooth;
use crate::cpu::vector::vectorized;

/// A row in whole vectors, the last one filled up with zeros.
#[inline(always)]
fn vectors<S: Simd>(simd: S, x: &[f32]) -> impl Iterator<Item = S::f32s> {
    let (whole, rest) = S::as_simd_f32s(x);
    let rest = (!rest.is_empty()).then(|| simd.partial_load_f32s(rest));
    whole.iter().copied().chain(rest)
}

/// Calls `f` with every place where a vector of a row of `len` floats begins.
#[inline(always)]
fn places<S: Simd>(len: usize, mut f: impl FnMut(usize)) {
    (0..len).step_by(S::F32_LANES).for_each(&mut f);
}

/// The vector at `i`; zeros beyond the end.
#[inline(always)]
fn get<S: Simd>(simd: S, x: &[f32], i: usize) -> S::f32s {
    match x.get(i..i + S::F32_LANES) {
        Some(x) => S::as_simd_f32s(x).0[0],
        None => simd.partial_load_f32s(&x[i..]),
    }
}

/// Writes the vector at `i`, up to the end.
#[inline(always)]
fn put<S: Simd>(simd: S, out: &mut [f32], i: usize, value: S::f32s) {
    let end = out.len().min(i + S::F32_LANES);
    let out = &mut out[i..end];
    if out.len() == S::F32_LANES {
        S::as_mut_simd_f32s(out).0[0] = value;
    } else {
        simd.partial_store_f32s(out, value);
    }
}

/// Mean of a row, and 1 / √(var + eps).
#[inline(always)]
fn moments<S: Simd>(simd: S, x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let zero = simd.splat_f32s(0.0);
    let sum = vectors(simd, x).fold(zero, |sum, x| simd.add_f32s(sum, x));
    let mean = simd.reduce_sum_f32s(sum) / count;
    let (whole, rest) = S::as_simd_f32s(x);
    let squares = whole.iter().fold(zero, |sum, &x| {
        let x = simd.sub_f32s(x, simd.splat_f32s(mean));
        simd.mul_add_e_f32s(x, x, sum)
    });
    let squares = simd.reduce_sum_f32s(squares) + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>();
    (mean, 1.0 / (squares / count + eps).sqrt())
}

/// Layer norm of every row.
pub(super) fn norm(x: &[f32], [w, b]: [&[f32]; 2], eps: f32, out: &mut [f32]) {
    ARCH.dispatch(Norm { x, w, b, eps, out });
}

struct Norm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl WithSimd for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, b, eps, out } = self;
        let c = w.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let (mean, scale) = moments(simd, x, eps);
            let (mean, scale) = (simd.splat_f32s(mean), simd.splat_f32s(scale));
            places::<S>(c, |i| {
                let normal = simd.mul_f32s(simd.sub_f32s(get(simd, x, i), mean), scale);
                put(simd, out, i, simd.mul_add_e_f32s(normal, get(simd, w, i), get(simd, b, i)));
            });
        }
    }
}

/// The gradient of a layer norm, given that to its result: to x added to `skip`, to the parameters added up.
pub(super) struct NormBackward<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    /// The gradient to the result.
    pub g: &'a [f32],
    pub skip: &'a [f32],
    /// Where the gradient to x goes.
    pub out: &'a mut [f32],
    /// What the gradients to weight and bias are added to.
    pub to_weight: &'a mut [f32],
    pub to_bias: &'a mut [f32],
}

impl NormBackward<'_> {
    pub fn run(self) {
        ARCH.dispatch(self);
    }
}

impl WithSimd for NormBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, weight, eps, g, skip, out, to_weight, to_bias } = self;
        let c = weight.len();
        let rows = out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(g.chunks_exact(c)).zip(skip.chunks_exact(c));
        for (((out, x), g), skip) in rows {
            let (mean, scale) = moments(simd, x, eps);
            let (mean, scale) = (simd.splat_f32s(mean), simd.splat_f32s(scale));
            let (mut level, mut along) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
            // Beyond a row's end the gradient is zero, and so is what it adds.
            places::<S>(c, |i| {
                let g = get(simd, g, i);
                let normal = simd.mul_f32s(simd.sub_f32s(get(simd, x, i), mean), scale);
                let weighted = simd.mul_f32s(g, get(simd, weight, i));
                level = simd.add_f32s(level, weighted);
                along = simd.mul_add_e_f32s(weighted, normal, along);
                put(simd, to_weight, i, simd.mul_add_e_f32s(g, normal, get(simd, to_weight, i)));
                put(simd, to_bias, i, simd.add_f32s(g, get(simd, to_bias, i)));
            });
            let over = 1.0 / c as f32;
            let level = simd.splat_f32s(simd.reduce_sum_f32s(level) * over);
            let along = simd.splat_f32s(simd.reduce_sum_f32s(along) * over);
            places::<S>(c, |i| {
                let normal = simd.mul_f32s(simd.sub_f32s(get(simd, x, i), mean), scale);
                let weighted = simd.mul_f32s(get(simd, g, i), get(simd, weight, i));
                let inner = simd.sub_f32s(simd.sub_f32s(weighted, level), simd.mul_f32s(normal, along));
                put(simd, out, i, simd.mul_add_e_f32s(scale, inner, get(simd, skip, i)));
            });
        }
    }
}

/// x · Φ(x).
pub(super) fn gelu(x: &[f32], out: &mut [f32]) {
    ARCH.dispatch(Gelu { x, out });
}

struct Gelu<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, out } = self;
        places::<S>(x.len(), |i| {
            let x = get(simd, x, i);
            put(simd, out, i, simd.mul_f32s(x, smooth::gauss(simd, x).0));
        });
    }
}

/// x · Φ(x) again, and the gradient to it, `g`, becomes that to x.
pub(super) fn gelu_backward(x: &[f32], g: &mut [f32], out: &mut [f32]) {
    ARCH.dispatch(GeluBackward { x, g, out });
}

struct GeluBackward<'a> {
    x: &'a [f32],
    g: &'a mut [f32],
    out: &'a mut [f32],
}

impl WithSimd for GeluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, g, out } = self;
        places::<S>(x.len(), |i| {
            let x = get(simd, x, i);
            let (distribution, density) = smooth::gauss(simd, x);
            put(simd, out, i, simd.mul_f32s(x, distribution));
            let slope = simd.mul_add_e_f32s(x, density, distribution);
            put(simd, g, i, simd.mul_f32s(get(simd, g, i), slope));
        });
    }
}

vectorized! {
    /// out += x.
    pub(super) fn add<'a>(x: &'a [f32], out: &'a mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

vectorized! {
    /// sums += Σ over the rows.
    pub(super) fn add_rows<'a>(x: &'a [f32], sums: &'a mut [f32]) {
        for x in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
    }
}
