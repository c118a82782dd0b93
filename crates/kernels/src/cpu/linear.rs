//! The fully connected layer on the CPU: a gather from images of one pixel.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gather::{Gather, Grid, Tap, Weights};
use super::memory::{SharedMut, Uninit, blocks, host, tensor, values};
use super::outer::Outer;
use super::panels::{Packed, Strides};
use super::simd::TILE;
use super::vector::vectorized;
use crate::trace::span;

/// x (…, I) · weightᵀ (O, I) \[+ bias (O)\].
pub(crate) struct Linear {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "twinsight-linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(values(s1, l1)?, values(s2, l2)?, None);
        Ok((CpuStorage::F32(y), self.output_shape(l1)))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "twinsight-linear-bias"
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
        let y = self.forward(values(s1, l1)?, values(s2, l2)?, Some(values(s3, l3)?));
        Ok((CpuStorage::F32(y), self.output_shape(l1)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = self.backward(x, weight, &grad)?;
        let db = match bias.track_op() {
            true => {
                let _span = span("linear to bias", 0);
                let (gs, gl) = grad.storage_and_layout();
                Some(tensor(column_sums(host(&gs, gl)?, self.outputs), self.outputs)?)
            }
            false => None,
        };
        Ok((dx, dw, db))
    }
}

impl Linear {
    fn multiply_adds(&self) -> usize {
        self.rows * self.inputs * self.outputs
    }

    fn output_shape(&self, x: &Layout) -> Shape {
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.outputs;
        }
        Shape::from(dims)
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let strides = Strides { start: 0, block: 0, row: 1, column: self.inputs };
        let _span = span("linear forward", self.multiply_adds());
        let packed = Packed::new(weight, strides, 1, self.inputs, self.outputs);
        let bias = bias.map(|bias| {
            let mut wide = bias.to_vec();
            wide.resize(self.outputs.next_multiple_of(TILE.width()), 0.0);
            wide
        });
        self.product(x, self.inputs, &packed, self.outputs, bias.as_deref())
    }

    fn backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gs, gl) = grad.storage_and_layout();
        let g = host(&gs, gl)?;
        let dx = match x.track_op() {
            true => {
                let _span = span("linear to input", self.multiply_adds());
                let (ws, wl) = weight.storage_and_layout();
                let strides = Strides { start: 0, block: 0, row: self.inputs, column: 1 };
                let packed = Packed::new(host(&ws, wl)?, strides, 1, self.outputs, self.inputs);
                Some(tensor(self.product(g, self.outputs, &packed, self.inputs, None), x.shape().clone())?)
            }
            false => None,
        };
        let dw = match weight.track_op() {
            true => {
                let _span = span("linear to weight", self.multiply_adds());
                let (xs, xl) = x.storage_and_layout();
                Some(tensor(self.to_weight(host(&xs, xl)?, g), weight.shape().clone())?)
            }
            false => None,
        };
        Ok((dx, dw))
    }

    /// left (rows, depth) · packed (depth, columns) + start.
    fn product(&self, left: &[f32], depth: usize, packed: &Packed, columns: usize, start: Option<&[f32]>) -> Vec<f32> {
        let mut out = Uninit::new(self.rows * columns);
        let plan = Gather {
            n: self.rows,
            positions: (1, 1),
            source: pixel(depth),
            target: pixel(columns),
            depth,
            taps: vec![Tap { y: 0, x: 0, block: 0 }],
        };
        // SAFETY: `out` holds `rows` pixels of `columns`, which this call writes alone.
        unsafe { plan.run(left, &Weights::Dense { packed, start }, out.shared()) };
        // SAFETY: every pixel is an output of the plan, and the panels make up its columns.
        unsafe { out.finish() }
    }

    /// gradᵀ · x, (O, I).
    fn to_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let plan = Outer {
            n: self.rows,
            left: pixel(self.outputs),
            right: pixel(self.inputs),
            rows: self.outputs,
            columns: self.inputs,
            taps: vec![Tap { y: 0, x: 0, block: 0 }],
        };
        let mut dw = vec![0.0; self.outputs * self.inputs];
        let shared = SharedMut::new(&mut dw);
        plan.run(grad, x, |_, row, first, sums| {
            let start = row * self.inputs + first;
            // SAFETY: this piece of the weights' row is handed out once.
            unsafe { shared.slice(start..start + sums.len()) }.copy_from_slice(sums);
        });
        dw
    }
}

/// An image of one pixel.
fn pixel(channels: usize) -> Grid {
    Grid { size: (1, 1), first: (0, 0), step: 1, channels, channel: 0 }
}

/// Σ over the rows of `x` (rows, `c`).
fn column_sums(x: &[f32], c: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = blocks(x.len(), (16_384 / c.max(1)).max(1) * c.max(1))
        .map(|range| {
            let mut sums = vec![0.0; c];
            add_rows(&x[range], &mut sums);
            sums
        })
        .collect();
    let mut total = vec![0.0; c];
    for sums in &parts {
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
    }
    total
}

vectorized! {
    fn add_rows<'a>(x: &'a [f32], sums: &'a mut [f32]) {
        for x in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
    }
}
