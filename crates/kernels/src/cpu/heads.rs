//! Multi-head attention of one sample, forward and backward; the backward pass recomputes the probabilities instead of
//! keeping them.
//!
//! Rows of scores are padded to whole vectors: the products start the columns beyond the last at −∞, which softmax turns
//! into zeros, so that no loop over a row has a remainder.

use super::dense::{Product, SumTile, pack_rows, pack_transposed, whole_width};
use super::memory::{SharedMut, part};
use super::panels::{Panel, cut};
use super::simd::TILE;
use super::vector::{exp, vectorized};

/// Sizes of attention: tokens, heads, floats of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub t: usize,
    pub heads: usize,
    pub d: usize,
}

/// Buffers that heads of one thread reuse.
pub(crate) struct HeadWork {
    /// Panels of T and of D columns.
    tokens: Vec<Panel>,
    channels: Vec<Panel>,
    /// Zeros, and −∞ in the columns beyond the last.
    start: Vec<f32>,
    /// Probabilities, and the gradient to them: T rows of whole vectors.
    p: Vec<f32>,
    dp: Vec<f32>,
    /// A packed operand of D rows of T columns, and one of T rows of D columns.
    wide: Vec<f32>,
    tall: Vec<f32>,
}

impl Heads {
    /// Buffers for these sizes.
    pub fn work(&self) -> HeadWork {
        let (tokens, channels) = (cut(self.t), cut(self.d));
        let (row, depth) = (whole_width(&tokens), whole_width(&channels));
        let mut start = vec![f32::NEG_INFINITY; row];
        start[..self.t].fill(0.0);
        let square = vec![0.0; self.t * row];
        HeadWork {
            start,
            dp: square.clone(),
            p: square,
            wide: vec![0.0; self.d * row],
            tall: vec![0.0; self.t * depth],
            tokens,
            channels,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Floats of a token's packed queries, keys and values, and of its result.
    fn strides(&self) -> (usize, usize) {
        (3 * self.heads * self.d, self.heads * self.d)
    }

    /// Writes the attention of one sample, (T, heads · D), given its `qkv` (T, 3 · heads · D).
    ///
    /// # Safety
    /// `out` must be valid for writes of the whole result, which nothing else uses meanwhile.
    pub unsafe fn forward(&self, qkv: &[f32], out: SharedMut, work: &mut HeadWork) {
        let &Self { t, heads, d } = self;
        let (packed, plain) = self.strides();
        assert_eq!(qkv.len(), t * packed, "queries, keys and values must fit");
        for head in 0..heads {
            let [q, k, v] = std::array::from_fn(|which| &qkv[(which * heads + head) * d..]);
            self.probabilities(q, k, work);
            pack_rows(v, packed, t, &work.channels, &mut work.tall);
            // SAFETY: the rows of probabilities are as long as `tokens` is wide, and the head's columns belong to the result.
            unsafe {
                Product {
                    rows: t,
                    depth: t,
                    left: work.p.as_ptr(),
                    left_stride: work.start.len(),
                    right: work.tall.as_ptr(),
                    panels: &work.channels,
                    start: std::ptr::null(),
                    out: out.at(head * d),
                    out_stride: plain,
                    whole: false,
                }
                .run();
            }
        }
    }

    /// Writes the gradient to one sample's `qkv`, given that to the result, `g` (T, heads · D).
    ///
    /// # Safety
    /// `dqkv` must be valid for writes of the whole gradient, which nothing else uses meanwhile.
    pub unsafe fn backward(&self, qkv: &[f32], g: &[f32], dqkv: SharedMut, work: &mut HeadWork) {
        let &Self { t, heads, d } = self;
        let (packed, plain) = self.strides();
        assert!(qkv.len() == t * packed && g.len() == t * plain, "queries, keys, values and gradient must fit");
        for head in 0..heads {
            let [q, k, v] = std::array::from_fn(|which| &qkv[(which * heads + head) * d..]);
            // SAFETY: these are the columns of the head's queries, keys and values.
            let [dq, dk, dv] = std::array::from_fn(|which| unsafe { dqkv.at((which * heads + head) * d) });
            let g = &g[head * d..];
            self.probabilities(q, k, work);
            pack_rows(g, plain, t, &work.channels, &mut work.tall);
            // SAFETY: as the caller says.
            unsafe { self.transposed_product(&work.p, work, dv) };
            pack_transposed(v, packed, d, &work.tokens, &mut work.wide);
            // SAFETY: the gradient has T rows of `d` columns at this stride; rows of `dp` are as wide as `tokens`.
            unsafe {
                Product {
                    rows: t,
                    depth: d,
                    left: g.as_ptr(),
                    left_stride: plain,
                    right: work.wide.as_ptr(),
                    panels: &work.tokens,
                    start: std::ptr::null(),
                    out: work.dp.as_mut_ptr(),
                    out_stride: work.start.len(),
                    whole: true,
                }
                .run();
            }
            softmax_backward(&work.p, &mut work.dp, work.start.len(), self.scale());
            pack_rows(k, packed, t, &work.channels, &mut work.tall);
            // SAFETY: as for the forward product, with the gradient's columns of the queries.
            unsafe {
                Product {
                    rows: t,
                    depth: t,
                    left: work.dp.as_ptr(),
                    left_stride: work.start.len(),
                    right: work.tall.as_ptr(),
                    panels: &work.channels,
                    start: std::ptr::null(),
                    out: dq,
                    out_stride: packed,
                    whole: false,
                }
                .run();
            }
            pack_rows(q, packed, t, &work.channels, &mut work.tall);
            // SAFETY: as the caller says.
            unsafe { self.transposed_product(&work.dp, work, dk) };
        }
    }

    /// Fills `work.p` with softmax(q kᵀ · scale).
    fn probabilities(&self, q: &[f32], k: &[f32], work: &mut HeadWork) {
        let packed = self.strides().0;
        pack_transposed(k, packed, self.d, &work.tokens, &mut work.wide);
        assert!(q.len() >= (self.t - 1) * packed + self.d, "the queries must fit");
        // SAFETY: T queries of `d` floats were checked to fit; rows of `p` and `start` are as wide as `tokens`.
        unsafe {
            Product {
                rows: self.t,
                depth: self.d,
                left: q.as_ptr(),
                left_stride: packed,
                right: work.wide.as_ptr(),
                panels: &work.tokens,
                start: work.start.as_ptr(),
                out: work.p.as_mut_ptr(),
                out_stride: work.start.len(),
                whole: true,
            }
            .run();
        }
        softmax_rows(&mut work.p, work.start.len(), self.scale());
    }

    /// Writes leftᵀ · `work.tall`, T rows of D columns at the stride of packed queries.
    ///
    /// # Safety
    /// `out` must be valid for writes of these rows.
    unsafe fn transposed_product(&self, left: &[f32], work: &HeadWork, out: *mut f32) {
        let (t, stride) = (self.t, work.start.len());
        let tiles = t.div_ceil(TILE.rows);
        let mut offset = 0;
        for panel in &work.channels {
            let width = panel.vectors * TILE.lanes;
            for i in 0..tiles {
                let rows = part(t, tiles, i);
                // SAFETY: `left` has T rows of at least T columns, the packed operand T rows of this panel.
                unsafe {
                    SumTile {
                        rows: rows.len(),
                        vectors: panel.vectors,
                        width: panel.width,
                        count: t,
                        left: left[rows.start..].as_ptr(),
                        left_stride: stride,
                        right: work.tall[offset..].as_ptr(),
                        right_stride: width,
                        out: out.add(rows.start * self.strides().0 + panel.first),
                        out_stride: self.strides().0,
                        add: false,
                    }
                    .run();
                }
            }
            offset += t * width;
        }
    }
}

/// Floats that the loops over rows take at a time.
const LANES: usize = 16;

/// Joins all lanes by halves.
#[inline(always)]
fn join(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] = join(lanes[j], lanes[j + width]);
        }
        width /= 2;
    }
    lanes[0]
}

vectorized! {
    /// Every row of `width` becomes softmax(row · scale).
    fn softmax_rows<'a>(p: &'a mut [f32], width: usize, scale: f32) {
        for row in p.chunks_exact_mut(width) {
            let larger = |a: f32, b: f32| if b > a { b } else { a };
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let (whole, rest) = row.as_chunks::<LANES>();
            for chunk in whole {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane = larger(*lane, x);
                }
            }
            for (lane, &x) in lanes.iter_mut().zip(rest) {
                *lane = larger(*lane, x);
            }
            let top = join(lanes, larger);
            let mut lanes = [0.0f32; LANES];
            let (whole, rest) = row.as_chunks_mut::<LANES>();
            for chunk in &mut *whole {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *x = exp((*x - top) * scale);
                    *lane += *x;
                }
            }
            for (lane, x) in lanes.iter_mut().zip(&mut *rest) {
                *x = exp((*x - top) * scale);
                *lane += *x;
            }
            let over = 1.0 / join(lanes, |a, b| a + b);
            for chunk in whole {
                chunk.iter_mut().for_each(|x| *x *= over);
            }
            rest.iter_mut().for_each(|x| *x *= over);
        }
    }
}

vectorized! {
    /// Every row of `dp` becomes the gradient to the scores before scaling.
    fn softmax_backward<'a>(p: &'a [f32], dp: &'a mut [f32], width: usize, scale: f32) {
        for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
            let mut lanes = [0.0f32; LANES];
            let ((p, p_rest), (dp, dp_rest)) = (p.as_chunks::<LANES>(), dp.as_chunks_mut::<LANES>());
            for (p, dp) in p.iter().zip(&*dp) {
                for ((lane, p), dp) in lanes.iter_mut().zip(p).zip(dp) {
                    *lane += p * dp;
                }
            }
            for ((lane, p), dp) in lanes.iter_mut().zip(p_rest).zip(&*dp_rest) {
                *lane += p * dp;
            }
            let mean = join(lanes, |a, b| a + b);
            for (p, dp) in p.iter().zip(dp) {
                for (p, dp) in p.iter().zip(dp) {
                    *dp = p * (*dp - mean) * scale;
                }
            }
            for (p, dp) in p_rest.iter().zip(dp_rest) {
                *dp = p * (*dp - mean) * scale;
            }
        }
    }
}
