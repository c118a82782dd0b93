//! Activation functions on the CPU.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::memory::{filled, host, tensor, values};
use super::vector::{gauss, vectorized};
use crate::trace::span;

/// Floats that one task writes.
const BLOCK: usize = 16_384;

/// max(x, 0).
pub(crate) struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "twinsight-relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("relu forward", 0);
        let x = values(storage, layout)?;
        // SAFETY: `relu` writes every float of its block.
        let y = unsafe { filled(x.len(), BLOCK, |start, out| relu(&x[start..], out)) };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span("relu backward", 0);
        let grad = grad.contiguous()?;
        let ((ys, yl), (gs, gl)) = (y.storage_and_layout(), grad.storage_and_layout());
        let (y, g) = (host(&ys, yl)?, host(&gs, gl)?);
        // SAFETY: `relu_backward` writes every float of its block.
        let dx = unsafe { filled(y.len(), BLOCK, |start, out| relu_backward(&y[start..], &g[start..], out)) };
        Ok(Some(tensor(dx, yl.shape().clone())?))
    }
}

/// x · Φ(x).
pub(crate) struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "twinsight-gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("gelu forward", 0);
        let x = values(storage, layout)?;
        // SAFETY: `gelu` writes every float of its block.
        let y = unsafe { filled(x.len(), BLOCK, |start, out| gelu(&x[start..], out)) };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span("gelu backward", 0);
        let grad = grad.contiguous()?;
        let ((xs, xl), (gs, gl)) = (x.storage_and_layout(), grad.storage_and_layout());
        let (x, g) = (host(&xs, xl)?, host(&gs, gl)?);
        // SAFETY: `gelu_backward` writes every float of its block.
        let dx = unsafe { filled(x.len(), BLOCK, |start, out| gelu_backward(&x[start..], &g[start..], out)) };
        Ok(Some(tensor(dx, xl.shape().clone())?))
    }
}

vectorized! {
    fn relu<'a>(x: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            // Not `max`, which would turn NaN into 0.
            out.write(if x < 0.0 { 0.0 } else { x });
        }
    }
}

vectorized! {
    fn relu_backward<'a>(y: &'a [f32], g: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
            out.write(if y <= 0.0 { 0.0 } else { g });
        }
    }
}

vectorized! {
    fn gelu<'a>(x: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(x * gauss(x).0);
        }
    }
}

vectorized! {
    fn gelu_backward<'a>(x: &'a [f32], g: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for ((out, &x), &g) in out.iter_mut().zip(x).zip(g) {
            let (distribution, density) = gauss(x);
            out.write(g * (distribution + x * density));
        }
    }
}
