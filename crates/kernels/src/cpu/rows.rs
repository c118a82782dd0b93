//! Operations along the last axis on the CPU: softmax, its logarithm, L2 normalisation and cross-entropy.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::memory::{blocks, filled, host, tensor, values};
use super::vector::{dot, exp, max, sum, sum_exp, vectorized};
use crate::trace::span;

/// Floats that one task handles, at least one row.
const BLOCK: usize = 16_384;

/// Which function of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowOp {
    /// eˣ / Σ eˣ
    Softmax,
    /// x − log Σ eˣ
    LogSoftmax,
    /// x / max(‖x‖, eps)
    L2Normalize { eps: f32 },
}

impl CustomOp1 for RowOp {
    fn name(&self) -> &'static str {
        match self {
            Self::Softmax => "twinsight-softmax",
            Self::LogSoftmax => "twinsight-log-softmax",
            Self::L2Normalize { .. } => "twinsight-l2-normalize",
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("row function forward", 0);
        let x = values(storage, layout)?;
        let c = width(layout.shape());
        // SAFETY: `forward` writes whole rows, and a block is made of whole rows.
        let y = unsafe { filled(x.len(), row_block(c), |start, out| forward(*self, c, &x[start..], out)) };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span("row function backward", 0);
        let grad = grad.contiguous()?;
        let ((xs, xl), (ys, yl), (gs, gl)) = (x.storage_and_layout(), y.storage_and_layout(), grad.storage_and_layout());
        let (x, y, g) = (host(&xs, xl)?, host(&ys, yl)?, host(&gs, gl)?);
        let c = width(xl.shape());
        // SAFETY: as in `cpu_fwd`.
        let dx =
            unsafe { filled(x.len(), row_block(c), |start, out| backward(*self, c, &x[start..], &y[start..], &g[start..], out)) };
        Ok(Some(tensor(dx, xl.shape().clone())?))
    }
}

/// −1/N Σ targets · log_softmax(logits) of (logits, targets), a scalar.
pub(crate) struct CrossEntropy;

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "twinsight-cross-entropy"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("cross-entropy forward", 0);
        let (logits, targets) = (values(s1, l1)?, values(s2, l2)?);
        let c = width(l1.shape());
        let parts: Vec<f64> =
            blocks(logits.len(), row_block(c)).map(|block| cross_entropy(c, &logits[block.clone()], &targets[block])).collect();
        let rows = (logits.len() / c.max(1)) as f64;
        Ok((CpuStorage::F32(vec![(parts.iter().sum::<f64>() / rows) as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, targets: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if !logits.track_op() {
            return Ok((None, None));
        }
        let _span = span("cross-entropy backward", 0);
        let scale = grad.to_scalar::<f32>()? / logits.dim(0)? as f32;
        let ((xs, xl), (ts, tl)) = (logits.storage_and_layout(), targets.storage_and_layout());
        let (x, t) = (host(&xs, xl)?, host(&ts, tl)?);
        let c = width(xl.shape());
        // SAFETY: `cross_entropy_backward` writes whole rows, and a block is made of whole rows.
        let dx = unsafe {
            filled(x.len(), row_block(c), |start, out| cross_entropy_backward(c, scale, &x[start..], &t[start..], out))
        };
        Ok((Some(tensor(dx, xl.shape().clone())?), None))
    }
}

/// Size of the last axis, at least 1.
fn width(shape: &Shape) -> usize {
    shape.dims().last().copied().unwrap_or(1).max(1)
}

/// Floats of a block of whole rows.
fn row_block(c: usize) -> usize {
    (BLOCK / c).max(1) * c
}

vectorized! {
    fn forward<'a>(op: RowOp, c: usize, x: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            match op {
                RowOp::Softmax => {
                    let top = max(x);
                    let scale = 1.0 / sum_exp(x, top);
                    for (out, &x) in out.iter_mut().zip(x) {
                        out.write(exp(x - top) * scale);
                    }
                }
                RowOp::LogSoftmax => {
                    let top = max(x);
                    let log = sum_exp(x, top).ln();
                    for (out, &x) in out.iter_mut().zip(x) {
                        out.write((x - top) - log);
                    }
                }
                RowOp::L2Normalize { eps } => {
                    let norm = norm(x);
                    let norm = if norm < eps { eps } else { norm };
                    for (out, &x) in out.iter_mut().zip(x) {
                        out.write(x / norm);
                    }
                }
            }
        }
    }
}

vectorized! {
    fn backward<'a>(op: RowOp, c: usize, x: &'a [f32], y: &'a [f32], g: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        let rows = x.chunks_exact(c).zip(y.chunks_exact(c)).zip(g.chunks_exact(c));
        for (out, ((x, y), g)) in out.chunks_exact_mut(c).zip(rows) {
            match op {
                RowOp::Softmax => {
                    let mean = dot(y, g);
                    for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                        out.write(y * (g - mean));
                    }
                }
                RowOp::LogSoftmax => {
                    let total = sum(g);
                    for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                        out.write(g - exp(y) * total);
                    }
                }
                RowOp::L2Normalize { eps } => {
                    let norm = norm(x);
                    let (norm, along) = if norm > eps { (norm, dot(y, g)) } else { (eps, 0.0) };
                    for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                        out.write((g - y * along) / norm);
                    }
                }
            }
        }
    }
}

/// ‖x‖, without overflow or underflow of the squares.
#[inline(always)]
fn norm(x: &[f32]) -> f32 {
    let square = dot(x, x);
    if square > 1e-30 && square < 1e30 {
        return square.sqrt();
    }
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32
}

vectorized! {
    fn cross_entropy<'a>(c: usize, logits: &'a [f32], targets: &'a [f32]) -> f64 {
        let mut total = 0.0;
        for (x, t) in logits.chunks_exact(c).zip(targets.chunks_exact(c)) {
            let top = max(x);
            let log = top + sum_exp(x, top).ln();
            total += f64::from(cross(x, t, log));
        }
        total
    }
}

/// Σ t · (log − x), where a target of zero silences an infinite logit.
#[inline(always)]
fn cross(x: &[f32], t: &[f32], log: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (x, t) in x.chunks(16).zip(t.chunks(16)) {
        for ((lane, &x), &t) in lanes.iter_mut().zip(x).zip(t) {
            *lane += if t == 0.0 { 0.0 } else { t * (log - x) };
        }
    }
    sum(&lanes)
}

vectorized! {
    fn cross_entropy_backward<'a>(c: usize, scale: f32, x: &'a [f32], t: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for ((out, x), t) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(t.chunks_exact(c)) {
            let top = max(x);
            let weight = sum(t) / sum_exp(x, top);
            for ((out, &x), &t) in out.iter_mut().zip(x).zip(t) {
                out.write(scale * (exp(x - top) * weight - t));
            }
        }
    }
}
