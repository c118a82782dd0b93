//! Multi-head attention of one sample, forward and backward; the backward pass recomputes the probabilities instead of
//! keeping them.
//!
//! Rows of scores are padded to whole vectors: the products start the columns beyond the last at −∞, which softmax turns
//! into zeros, so that no loop over a row has a remainder.

use pulp::{Simd, WithSimd};

use super::dense::{Product, SumTile, pack_rows, pack_transposed, whole_width};
use super::memory::{SharedMut, part};
use super::panels::{Panel, cut};
use super::simd::{ARCH, TILE};
use super::smooth::exp;

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

/// Every row of `width` floats, whole vectors, becomes softmax(row · scale).
fn softmax_rows(p: &mut [f32], width: usize, scale: f32) {
    ARCH.dispatch(SoftmaxRows { p, width, scale });
}

struct SoftmaxRows<'a> {
    p: &'a mut [f32],
    width: usize,
    scale: f32,
}

impl WithSimd for SoftmaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let scale = simd.splat_f32s(self.scale);
        for row in self.p.chunks_exact_mut(self.width) {
            let (row, _) = S::as_mut_simd_f32s(row);
            let mut top = simd.splat_f32s(f32::NEG_INFINITY);
            for x in &*row {
                top = simd.max_f32s(top, *x);
            }
            let top = simd.splat_f32s(simd.reduce_max_f32s(top));
            let mut sum = simd.splat_f32s(0.0);
            for x in &mut *row {
                *x = exp(simd, simd.mul_f32s(simd.sub_f32s(*x, top), scale));
                sum = simd.add_f32s(sum, *x);
            }
            let over = simd.splat_f32s(1.0 / simd.reduce_sum_f32s(sum));
            for x in row {
                *x = simd.mul_f32s(*x, over);
            }
        }
    }
}

/// Every row of `dp`, whole vectors, becomes the gradient to the scores before scaling.
fn softmax_backward(p: &[f32], dp: &mut [f32], width: usize, scale: f32) {
    ARCH.dispatch(SoftmaxBackward { p, dp, width, scale });
}

struct SoftmaxBackward<'a> {
    p: &'a [f32],
    dp: &'a mut [f32],
    width: usize,
    scale: f32,
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let scale = simd.splat_f32s(self.scale);
        for (p, dp) in self.p.chunks_exact(self.width).zip(self.dp.chunks_exact_mut(self.width)) {
            let ((p, _), (dp, _)) = (S::as_simd_f32s(p), S::as_mut_simd_f32s(dp));
            let mut sum = simd.splat_f32s(0.0);
            for (p, dp) in p.iter().zip(&*dp) {
                sum = simd.mul_add_e_f32s(*p, *dp, sum);
            }
            let mean = simd.splat_f32s(simd.reduce_sum_f32s(sum));
            for (p, dp) in p.iter().zip(dp) {
                *dp = simd.mul_f32s(simd.mul_f32s(*p, scale), simd.sub_f32s(*dp, mean));
            }
        }
    }
}
