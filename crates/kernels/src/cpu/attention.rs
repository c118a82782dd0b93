//! Multi-head self-attention on the CPU; every sample is a task.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::heads::Heads;
use super::memory::{Uninit, host, tensor, values};
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
        let (shape, size) = (self.shape(), t * heads * d);
        let mut y = Uninit::new(n * size);
        let shared = y.shared();
        (0..self.tasks()).into_par_iter().for_each_init(
            || shape.work(),
            |work, sample| {
                // SAFETY: the samples of the result are disjoint.
                unsafe { shape.forward(&qkv[3 * sample * size..][..3 * size], shared.from(sample * size), work) };
            },
        );
        // SAFETY: every sample was written, all heads of all tokens.
        Ok((CpuStorage::F32(unsafe { y.finish() }), Shape::from((n, t, heads * d))))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let &Self { n, t, heads, d } = self;
        // Four products; the fifth, of the scores again, is work of this implementation.
        let _span = span("attention backward", 4 * n * heads * t * t * d);
        let grad = grad.contiguous()?;
        let ((xs, xl), (gs, gl)) = (qkv.storage_and_layout(), grad.storage_and_layout());
        let (qkv, g) = (host(&xs, xl)?, host(&gs, gl)?);
        let (shape, size) = (self.shape(), t * heads * d);
        let mut dx = Uninit::new(3 * n * size);
        let shared = dx.shared();
        (0..self.tasks()).into_par_iter().for_each_init(
            || shape.work(),
            |work, sample| {
                let (qkv, g) = (&qkv[3 * sample * size..][..3 * size], &g[sample * size..][..size]);
                // SAFETY: the samples of the gradient are disjoint.
                unsafe { shape.backward(qkv, g, shared.from(3 * sample * size), work) };
            },
        );
        // SAFETY: every sample was written, all heads of all tokens, queries, keys and values.
        Ok(Some(tensor(unsafe { dx.finish() }, xl.shape().clone())?))
    }
}

impl Attention {
    fn shape(&self) -> Heads {
        Heads { t: self.t, heads: self.heads, d: self.d }
    }

    /// Samples that have any token.
    fn tasks(&self) -> usize {
        if self.t == 0 { 0 } else { self.n }
    }
}
