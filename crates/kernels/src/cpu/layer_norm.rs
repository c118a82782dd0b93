//! Layer normalisation on the CPU.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::memory::{blocks, filled, host, tensor, values};
use super::vector::{square_deviation, sum, vectorized};
use crate::trace::span;

/// Floats of a block of rows.
const BLOCK: usize = 16_384;

/// Normalisation along the last axis of (x, weight, bias).
pub(crate) struct LayerNorm {
    pub c: usize,
    pub eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "twinsight-layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = span("layer norm forward", 0);
        let (x, w, b) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        // SAFETY: `forward` writes whole rows, and a block is made of whole rows.
        let y = unsafe { filled(x.len(), self.block(), |start, out| forward(&x[start..], w, b, self.eps, out)) };
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = span("layer norm backward", 0);
        let grad = grad.contiguous()?;
        let need = (x.track_op(), weight.track_op() || bias.track_op());
        let ((xs, xl), (ws, wl), (gs, gl)) = (x.storage_and_layout(), weight.storage_and_layout(), grad.storage_and_layout());
        let (x, w, g) = (host(&xs, xl)?, host(&ws, wl)?, host(&gs, gl)?);
        let dx = need.0.then(|| {
            // SAFETY: as in `cpu_fwd`.
            unsafe { filled(x.len(), self.block(), |start, out| backward(&x[start..], w, &g[start..], self.eps, out)) }
        });
        let dx = dx.map(|dx| tensor(dx, xl.shape().clone())).transpose()?;
        if !need.1 {
            return Ok((dx, None, None));
        }
        let parts: Vec<(Vec<f32>, Vec<f32>)> = blocks(x.len(), self.block())
            .map(|range| {
                let (mut dw, mut db) = (vec![0.0; self.c], vec![0.0; self.c]);
                parameter_sums(&x[range.clone()], &g[range], self.eps, &mut dw, &mut db);
                (dw, db)
            })
            .collect();
        let (mut dw, mut db) = (vec![0.0; self.c], vec![0.0; self.c]);
        for (w, b) in &parts {
            dw.iter_mut().zip(w).for_each(|(d, w)| *d += w);
            db.iter_mut().zip(b).for_each(|(d, b)| *d += b);
        }
        Ok((dx, Some(tensor(dw, self.c)?), Some(tensor(db, self.c)?)))
    }
}

impl LayerNorm {
    fn block(&self) -> usize {
        (BLOCK / self.c.max(1)).max(1) * self.c.max(1)
    }
}

/// Mean of a row, and 1 / √(var + eps).
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum(x) / x.len() as f32;
    (mean, 1.0 / (square_deviation(x, mean) / x.len() as f32 + eps).sqrt())
}

vectorized! {
    fn forward<'a>(x: &'a [f32], w: &'a [f32], b: &'a [f32], eps: f32, out: &'a mut [MaybeUninit<f32>]) {
        let c = w.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let (mean, scale) = moments(x, eps);
            for (((out, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
                out.write((x - mean) * scale * w + b);
            }
        }
    }
}

vectorized! {
    fn backward<'a>(x: &'a [f32], w: &'a [f32], g: &'a [f32], eps: f32, out: &'a mut [MaybeUninit<f32>]) {
        let c = w.len();
        let mut weighted = vec![0.0f32; c];
        let mut product = vec![0.0f32; c];
        for ((out, x), g) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(g.chunks_exact(c)) {
            let (mean, scale) = moments(x, eps);
            for ((((weighted, product), x), w), g) in weighted.iter_mut().zip(&mut product).zip(x).zip(w).zip(g) {
                *weighted = g * w;
                *product = *weighted * ((x - mean) * scale);
            }
            let (level, along) = (sum(&weighted) / c as f32, sum(&product) / c as f32);
            for ((out, x), weighted) in out.iter_mut().zip(x).zip(&weighted) {
                out.write(scale * ((weighted - level) - (x - mean) * scale * along));
            }
        }
    }
}

vectorized! {
    /// dw += Σ g · (x − mean) · scale, db += Σ g.
    fn parameter_sums<'a>(x: &'a [f32], g: &'a [f32], eps: f32, dw: &'a mut [f32], db: &'a mut [f32]) {
        let c = dw.len();
        for (x, g) in x.chunks_exact(c).zip(g.chunks_exact(c)) {
            let (mean, scale) = moments(x, eps);
            for (((x, g), dw), db) in x.iter().zip(g).zip(dw.iter_mut()).zip(db.iter_mut()) {
                *dw += g * ((x - mean) * scale);
                *db += g;
            }
        }
    }
}
