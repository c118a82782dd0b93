//! Pooling on the CPU.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::memory::{filled, host, tensor, values};
use super::vector::vectorized;
use crate::trace::span;

/// Sizes of a maximum pooling.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPoolSizes {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub oh: usize,
    pub ow: usize,
}

/// The operation, and the winners of the forward pass if a gradient will ask for them.
pub(crate) struct MaxPool {
    pub sizes: MaxPoolSizes,
    pub track: bool,
    /// For every output, the winning pixel's index in its image.
    pub winners: OnceLock<Vec<u32>>,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "twinsight-max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("max pool forward", 0);
        let x = values(storage, layout)?;
        let s = self.sizes;
        let line = s.ow * s.c;
        let mut winners = vec![0u32; if self.track { s.n * s.oh * line } else { 0 }];
        let mut y = vec![0.0f32; s.n * s.oh * line];
        if line > 0 {
            // Lines of winners to write beside the lines of results; empty ones when none are asked for.
            let lines: Vec<&mut [u32]> = match self.track {
                true => winners.chunks_exact_mut(line).collect(),
                false => (0..s.n * s.oh).map(|_| <&mut [u32]>::default()).collect(),
            };
            y.par_chunks_exact_mut(line).zip(lines).enumerate().for_each(|(i, (y, winners))| {
                let image = &x[i / s.oh * s.h * s.w * s.c..][..s.h * s.w * s.c];
                max_line(s, i % s.oh, image, y, winners);
            });
        }
        if self.track {
            // A second forward pass of the same operation computes the same winners.
            let _ = self.winners.set(winners);
        }
        Ok((CpuStorage::F32(y), Shape::from((s.n, s.oh, s.ow, s.c))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let s = self.sizes;
        let Some(winners) = self.winners.get() else { return Ok(None) };
        let _span = span("max pool backward", 0);
        let grad = grad.contiguous()?;
        let (gs, gl) = grad.storage_and_layout();
        let g = host(&gs, gl)?;
        let (from, to) = (s.oh * s.ow * s.c, s.h * s.w * s.c);
        let mut dx = vec![0.0f32; s.n * to];
        if from > 0 {
            dx.par_chunks_exact_mut(to).zip(g.par_chunks_exact(from)).zip(winners.par_chunks_exact(from)).for_each(
                |((dx, g), winners)| {
                    for (g, winners) in g.chunks_exact(s.c).zip(winners.chunks_exact(s.c)) {
                        for (c, (g, &winner)) in g.iter().zip(winners).enumerate() {
                            dx[winner as usize * s.c + c] += g;
                        }
                    }
                },
            );
        }
        Ok(Some(tensor(dx, (s.n, s.h, s.w, s.c))?))
    }
}

vectorized! {
    /// One line of results; `winners` is empty or as long as `y`.
    fn max_line<'a>(s: MaxPoolSizes, row: usize, image: &'a [f32], y: &'a mut [f32], winners: &'a mut [u32]) {
        let mut ignored = vec![0u32; if winners.is_empty() { s.c } else { 0 }];
        let within = |at: usize, size: usize| {
            let first = at * s.stride;
            first.saturating_sub(s.padding)..(first + s.kernel).saturating_sub(s.padding).min(size)
        };
        for (column, y) in y.chunks_exact_mut(s.c).enumerate() {
            let winners = match winners.is_empty() {
                true => &mut ignored[..],
                false => &mut winners[column * s.c..(column + 1) * s.c],
            };
            let mut first = true;
            for iy in within(row, s.h) {
                for ix in within(column, s.w) {
                    let pixel = iy * s.w + ix;
                    let x = &image[pixel * s.c..(pixel + 1) * s.c];
                    if first {
                        y.copy_from_slice(x);
                        winners.fill(pixel as u32);
                        first = false;
                        continue;
                    }
                    for ((y, winner), &x) in y.iter_mut().zip(winners.iter_mut()).zip(x) {
                        // Not a number wins, as in PyTorch.
                        let better = x > *y || x.is_nan();
                        *y = if better { x } else { *y };
                        *winner = if better { pixel as u32 } else { *winner };
                    }
                }
            }
        }
    }
}

/// The mean over the image of (N, H, W, C).
pub(crate) struct GlobalAvgPool {
    pub pixels: usize,
    pub c: usize,
}

impl CustomOp1 for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "twinsight-global-avg-pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("average pool forward", 0);
        let x = values(storage, layout)?;
        let image = self.pixels * self.c;
        let n = layout.dims()[0];
        let mut y = vec![0.0f32; n * self.c];
        if image > 0 {
            y.par_chunks_exact_mut(self.c).zip(x.par_chunks_exact(image)).for_each(|(y, x)| mean(x, y));
        }
        Ok((CpuStorage::F32(y), Shape::from((n, self.c))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span("average pool backward", 0);
        let grad = grad.contiguous()?;
        let (gs, gl) = grad.storage_and_layout();
        let g = host(&gs, gl)?;
        let image = (self.pixels * self.c).max(1);
        // SAFETY: `spread` writes whole images, of which a block is one.
        let dx = unsafe {
            filled(x.elem_count(), image, |start, out| {
                spread(&g[start / image * self.c..][..out.len() / image * self.c], self.pixels, out)
            })
        };
        Ok(Some(tensor(dx, x.shape().clone())?))
    }
}

vectorized! {
    fn mean<'a>(x: &'a [f32], y: &'a mut [f32]) {
        let c = y.len();
        for x in x.chunks_exact(c) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
        }
        let pixels = (x.len() / c) as f32;
        y.iter_mut().for_each(|y| *y /= pixels);
    }
}

vectorized! {
    fn spread<'a>(g: &'a [f32], pixels: usize, out: &'a mut [MaybeUninit<f32>]) {
        let scale = 1.0 / pixels as f32;
        if g.is_empty() {
            return;
        }
        for out in out.chunks_exact_mut(g.len()) {
            out.iter_mut().zip(g).for_each(|(out, g)| {
                out.write(g * scale);
            });
        }
    }
}
