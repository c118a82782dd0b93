//! Multi-head self-attention on the CPU; every head of every sample is a task, and the backward pass recomputes the
//! probabilities instead of keeping them.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::dense::{Scratch, View, product, transposed_product};
use super::memory::{SharedMut, host, tensor, values};
use super::vector::{dot, exp, max, sum, vectorized};
use crate::trace::span;

/// The operation on packed queries, keys and values (N, T, 3 · heads · D).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    pub n: usize,
    pub t: usize,
    pub heads: usize,
    pub d: usize,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "twinsight-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let &Self { n, t, heads, d } = self;
        let _span = span("attention forward", 2 * n * heads * t * t * d);
        let qkv = values(storage, layout)?;
        let mut y = vec![0.0f32; n * t * heads * d];
        let shared = SharedMut::new(&mut y);
        (0..if t == 0 { 0 } else { n * heads }).into_par_iter().for_each_init(Work::default, |work, task| {
            let (sample, head) = (task / heads, task % heads);
            let [q, k, v] = self.parts(qkv, sample, head);
            work.out.resize(t * d, 0.0);
            self.probabilities(q, k, work);
            product(self.square(&work.p), v, false, &mut work.out, (0, d), &mut work.scratch);
            for (row, from) in work.out.chunks_exact(d).enumerate() {
                let start = ((sample * t + row) * heads + head) * d;
                // SAFETY: these columns of the result belong to this head of this sample alone.
                unsafe { shared.slice(start..start + d) }.copy_from_slice(from);
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((n, t, heads * d))))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let &Self { n, t, heads, d } = self;
        // Four products; the fifth, of the scores again, is work of this implementation.
        let _span = span("attention backward", 4 * n * heads * t * t * d);
        let grad = grad.contiguous()?;
        let ((xs, xl), (gs, gl)) = (qkv.storage_and_layout(), grad.storage_and_layout());
        let (qkv, g) = (host(&xs, xl)?, host(&gs, gl)?);
        let mut dx = vec![0.0f32; qkv.len()];
        let shared = SharedMut::new(&mut dx);
        (0..if t == 0 { 0 } else { n * heads }).into_par_iter().for_each_init(Work::default, |work, task| {
            let (sample, head) = (task / heads, task % heads);
            let [q, k, v] = self.parts(qkv, sample, head);
            let g = View { data: g, start: (sample * t * heads + head) * d, stride: heads * d, rows: t, columns: d };
            self.probabilities(q, k, work);
            work.dp.resize(t * t, 0.0);
            work.out.resize(3 * t * d, 0.0);
            let (dq, rest) = work.out.split_at_mut(t * d);
            let (dk, dv) = rest.split_at_mut(t * d);
            transposed_product(self.square(&work.p), g, dv, (0, d), &mut work.scratch);
            product(g, v, true, &mut work.dp, (0, t), &mut work.scratch);
            softmax_backward(&work.p, &mut work.dp, t, self.scale());
            product(self.square(&work.dp), k, false, dq, (0, d), &mut work.scratch);
            transposed_product(self.square(&work.dp), q, dk, (0, d), &mut work.scratch);
            for (which, from) in [dq, dk, dv].into_iter().enumerate() {
                for (row, from) in from.chunks_exact(d).enumerate() {
                    let start = (((sample * t + row) * 3 + which) * heads + head) * d;
                    // SAFETY: these columns of the gradient belong to this head of this sample alone.
                    unsafe { shared.slice(start..start + d) }.copy_from_slice(from);
                }
            }
        });
        Ok(Some(tensor(dx, xl.shape().clone())?))
    }
}

/// Buffers that tasks of one thread reuse.
#[derive(Default)]
struct Work {
    p: Vec<f32>,
    dp: Vec<f32>,
    out: Vec<f32>,
    scratch: Scratch,
}

impl Attention {
    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Queries, keys and values of one head, each (T, D).
    fn parts<'a>(&self, data: &'a [f32], sample: usize, head: usize) -> [View<'a>; 3] {
        let stride = 3 * self.heads * self.d;
        std::array::from_fn(|which| View {
            data,
            start: sample * self.t * stride + (which * self.heads + head) * self.d,
            stride,
            rows: self.t,
            columns: self.d,
        })
    }

    fn square<'a>(&self, data: &'a [f32]) -> View<'a> {
        View { data, start: 0, stride: self.t, rows: self.t, columns: self.t }
    }

    /// Fills `work.p` with softmax(q kᵀ · scale).
    fn probabilities(&self, q: View<'_>, k: View<'_>, work: &mut Work) {
        work.p.resize(self.t * self.t, 0.0);
        product(q, k, true, &mut work.p, (0, self.t), &mut work.scratch);
        softmax_rows(&mut work.p, self.t, self.scale());
    }
}

vectorized! {
    /// Every row of `t` becomes softmax(row · scale).
    fn softmax_rows<'a>(p: &'a mut [f32], t: usize, scale: f32) {
        for row in p.chunks_exact_mut(t) {
            let top = max(row);
            row.iter_mut().for_each(|x| *x = exp((*x - top) * scale));
            let over = 1.0 / sum(row);
            row.iter_mut().for_each(|x| *x *= over);
        }
    }
}

vectorized! {
    /// Every row of `dp` becomes the gradient to the scores before scaling.
    fn softmax_backward<'a>(p: &'a [f32], dp: &'a mut [f32], t: usize, scale: f32) {
        for (p, dp) in p.chunks_exact(t).zip(dp.chunks_exact_mut(t)) {
            let mean = dot(p, dp);
            for (p, dp) in p.iter().zip(dp) {
                *dp = p * (*dp - mean) * scale;
            }
        }
    }
}
