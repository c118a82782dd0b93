//! Row functions with columns left out, on the CPU.

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::memory::{filled, host, tensor, values};
use super::vector::{exp, max, sum_exp, vectorized};
use crate::trace::span;

/// Floats of the table that one task handles, at least one row.
const BLOCK: usize = 16_384;

/// See [`crate::log_sum_exp`].
pub(crate) struct LogSumExp {
    /// Two columns a row to leave out, or none for any.
    pub except: Arc<[[u32; 2]]>,
}

impl CustomOp1 for LogSumExp {
    fn name(&self) -> &'static str {
        "twinsight-log-sum-exp"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("log-sum-exp forward", 0);
        let (m, k) = layout.shape().dims2()?;
        let x = values(storage, layout)?;
        let except = &*self.except;
        // SAFETY: `forward` writes one float for each of the block's rows.
        let y = unsafe { filled(m, (BLOCK / k.max(1)).max(1), |start, out| forward(k, &x[start * k..], of(except, start), out)) };
        Ok((CpuStorage::F32(y), Shape::from(m)))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span("log-sum-exp backward", 0);
        let grad = grad.contiguous()?;
        let (m, k) = x.dims2()?;
        let ((xs, xl), (ys, yl), (gs, gl)) = (x.storage_and_layout(), y.storage_and_layout(), grad.storage_and_layout());
        let (x, y, g) = (host(&xs, xl)?, host(&ys, yl)?, host(&gs, gl)?);
        let except = &*self.except;
        let block = (BLOCK / k.max(1)).max(1) * k;
        // SAFETY: `backward` writes whole rows, and a block is made of whole rows.
        let dx = unsafe {
            filled(m * k, block, |start, out| {
                let row = start / k.max(1);
                backward(k, &x[start..], &y[row..], &g[row..], of(except, row), out);
            })
        };
        Ok(Some(tensor(dx, (m, k))?))
    }
}

/// See [`crate::row_max`].
pub(crate) fn row_max(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
    let (m, k) = x.dims2()?;
    let (storage, layout) = x.storage_and_layout();
    let x = host(&storage, layout)?;
    // SAFETY: `largest` writes one float for each of the block's rows.
    let y = unsafe { filled(m, (BLOCK / k.max(1)).max(1), |start, out| largest(k, &x[start * k..], of(except, start), out)) };
    tensor(y, m)
}

/// The entries from row `start` on.
fn of(except: &[[u32; 2]], start: usize) -> &[[u32; 2]] {
    if except.is_empty() { except } else { &except[start..] }
}

/// The row without the columns left out, for which there is minus infinity; `room` where a copy is needed.
#[inline(always)]
fn kept<'a>(x: &'a [f32], except: Option<&[u32; 2]>, room: &'a mut Vec<f32>) -> &'a [f32] {
    let Some(columns) = except else { return x };
    room.clear();
    room.extend_from_slice(x);
    columns.iter().for_each(|&c| room[c as usize] = f32::NEG_INFINITY);
    room
}

vectorized! {
    fn forward<'a>(k: usize, x: &'a [f32], except: &'a [[u32; 2]], out: &'a mut [MaybeUninit<f32>]) {
        let mut room = Vec::new();
        for (i, (out, x)) in out.iter_mut().zip(x.chunks_exact(k)).enumerate() {
            let x = kept(x, except.get(i), &mut room);
            let top = max(x);
            out.write(top + sum_exp(x, top).ln());
        }
    }
}

vectorized! {
    fn largest<'a>(k: usize, x: &'a [f32], except: &'a [[u32; 2]], out: &'a mut [MaybeUninit<f32>]) {
        let mut room = Vec::new();
        for (i, (out, x)) in out.iter_mut().zip(x.chunks_exact(k)).enumerate() {
            out.write(max(kept(x, except.get(i), &mut room)));
        }
    }
}

vectorized! {
    fn backward<'a>(k: usize, x: &'a [f32], y: &'a [f32], g: &'a [f32], except: &'a [[u32; 2]], out: &'a mut [MaybeUninit<f32>]) {
        for (i, (out, x)) in out.chunks_exact_mut(k).zip(x.chunks_exact(k)).enumerate() {
            let (y, g) = (y[i], g[i]);
            for (out, &x) in out.iter_mut().zip(x) {
                out.write(g * exp(x - y));
            }
            for &c in except.get(i).into_iter().flatten() {
                out[c as usize].write(0.0);
            }
        }
    }
}
