//! What the block does between its products, row by row, while the rows are in the cache.

use crate::cpu::vector::{gauss, vectorized};

/// Floats that loops over a row take at a time, in arrays of their own: slices that might overlap keep the compiler from
/// using vectors.
const LANES: usize = 16;

type Lanes = [f32; LANES];

/// `f` of every lane.
#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = f(i);
    }
    lanes
}

/// Σ of the lanes, by halves.
#[inline(always)]
fn total(mut lanes: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Chunk `i` of `x`; zeros beyond its end.
#[inline(always)]
fn chunk(x: &[f32], i: usize) -> Lanes {
    match x.get(i * LANES..(i + 1) * LANES) {
        Some(whole) => *whole.first_chunk().expect("a whole chunk"),
        None => {
            let mut lanes = [0.0; LANES];
            lanes.iter_mut().zip(&x[(i * LANES).min(x.len())..]).for_each(|(lane, x)| *lane = *x);
            lanes
        }
    }
}

/// Writes chunk `i` of `out`, up to its end.
#[inline(always)]
fn put(out: &mut [f32], i: usize, lanes: Lanes) {
    match out.get_mut(i * LANES..(i + 1) * LANES) {
        Some(whole) => *whole.first_chunk_mut().expect("a whole chunk") = lanes,
        None => {
            let start = (i * LANES).min(out.len());
            out[start..].iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane);
        }
    }
}

/// Mean of a row, and 1 / √(var + eps).
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let (count, chunks) = (x.len() as f32, x.len().div_ceil(LANES));
    let mut sum = [0.0; LANES];
    for i in 0..chunks {
        let x = chunk(x, i);
        sum = map(|j| sum[j] + x[j]);
    }
    let mean = total(sum) / count;
    let mut squares = [0.0; LANES];
    let whole = x.len() / LANES;
    for i in 0..whole {
        let x = chunk(x, i);
        squares = map(|j| squares[j] + (x[j] - mean) * (x[j] - mean));
    }
    for (square, x) in squares.iter_mut().zip(&x[whole * LANES..]) {
        *square += (x - mean) * (x - mean);
    }
    (mean, 1.0 / (total(squares) / count + eps).sqrt())
}

vectorized! {
    /// Layer norm of every row.
    pub(super) fn norm<'a>(x: &'a [f32], w: &'a [f32], b: &'a [f32], eps: f32, out: &'a mut [f32]) {
        let c = w.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..c.div_ceil(LANES) {
                let (x, w, b) = (chunk(x, i), chunk(w, i), chunk(b, i));
                put(out, i, map(|j| (x[j] - mean) * scale * w[j] + b[j]));
            }
        }
    }
}

vectorized! {
    /// The gradient of a layer norm, given that to its result, `g`: to `x` added to `skip` in `out`, to the parameters added to
    /// `dw` and `db`.
    pub(super) fn norm_backward<'a>(
        x: &'a [f32],
        w: &'a [f32],
        eps: f32,
        g: &'a [f32],
        skip: &'a [f32],
        out: &'a mut [f32],
        dw: &'a mut [f32],
        db: &'a mut [f32],
    ) {
        let c = w.len();
        let chunks = c.div_ceil(LANES);
        let rows = out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(g.chunks_exact(c)).zip(skip.chunks_exact(c));
        for (((out, x), g), skip) in rows {
            let (mean, scale) = moments(x, eps);
            let (mut level, mut along) = ([0.0; LANES], [0.0; LANES]);
            for i in 0..chunks {
                let (x, w, g) = (chunk(x, i), chunk(w, i), chunk(g, i));
                let (to_weight, to_bias) = (chunk(dw, i), chunk(db, i));
                let normal = map(|j| (x[j] - mean) * scale);
                let weighted = map(|j| g[j] * w[j]);
                level = map(|j| level[j] + weighted[j]);
                along = map(|j| along[j] + weighted[j] * normal[j]);
                put(dw, i, map(|j| to_weight[j] + g[j] * normal[j]));
                put(db, i, map(|j| to_bias[j] + g[j]));
            }
            let (level, along) = (total(level) / c as f32, total(along) / c as f32);
            for i in 0..chunks {
                let (x, w, g, skip) = (chunk(x, i), chunk(w, i), chunk(g, i), chunk(skip, i));
                put(out, i, map(|j| skip[j] + scale * ((g[j] * w[j] - level) - (x[j] - mean) * scale * along)));
            }
        }
    }
}

vectorized! {
    /// out += x.
    pub(super) fn add<'a>(x: &'a [f32], out: &'a mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

vectorized! {
    /// x · Φ(x).
    pub(super) fn gelu<'a>(x: &'a [f32], out: &'a mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * gauss(x).0;
        }
    }
}

vectorized! {
    /// x · Φ(x), and the gradient to its result, `g`, becomes that to x.
    pub(super) fn gelu_backward<'a>(x: &'a [f32], g: &'a mut [f32], out: &'a mut [f32]) {
        for ((out, &x), g) in out.iter_mut().zip(x).zip(g) {
            let (distribution, density) = gauss(x);
            *out = x * distribution;
            *g *= distribution + x * density;
        }
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
