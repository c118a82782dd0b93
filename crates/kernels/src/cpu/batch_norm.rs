//! Batch normalisation on the CPU, channels last: statistics, and the fused affine part, residual and ReLU.

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::memory::{blocks, filled, filled_ranges, host, in_ranges, tensor, values};
use super::vector::vectorized;
use crate::trace::span;

/// Floats of a block of rows: both passes over it find it in the second-level cache.
const BLOCK: usize = 32_768;

/// Mean and biased variance of every block of rows and channel.
#[derive(Debug, Clone)]
pub(crate) struct Statistics {
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
}

/// The statistics of `groups` equal blocks of the rows of `x` (rows, `c`), each (groups, `c`).
pub(crate) fn statistics(x: &[f32], c: usize, groups: usize) -> Statistics {
    let _span = span("batch norm statistics", 0);
    let per_group = x.len() / groups;
    let (mut mean, mut var) = (Vec::with_capacity(groups * c), Vec::with_capacity(groups * c));
    for group in x.chunks_exact(per_group) {
        let parts: Vec<(usize, Vec<f32>, Vec<f32>)> = blocks(per_group, row_block(c))
            .map(|block| {
                let (mut mean, mut square) = (vec![0.0; c], vec![0.0; c]);
                let rows = block.len() / c;
                block_statistics(&group[block], &mut mean, &mut square);
                (rows, mean, square)
            })
            .collect();
        // Chan, Golub and LeVeque 1979: joins blocks without cancellation.
        for i in 0..c {
            let (mut count, mut centre, mut square) = (0.0f64, 0.0f64, 0.0f64);
            for (rows, means, squares) in &parts {
                let rows = *rows as f64;
                let difference = f64::from(means[i]) - centre;
                square += f64::from(squares[i]) + difference * difference * count * rows / (count + rows);
                count += rows;
                centre += difference * rows / count;
            }
            mean.push(centre as f32);
            var.push((square / count) as f32);
        }
    }
    Statistics { mean, var }
}

/// Normalisation of (x, parameters \[, residual\]); the parameters are (2, C): weight and bias.
pub(crate) struct BatchNorm {
    pub c: usize,
    pub groups: usize,
    pub relu: bool,
    /// (groups, C)
    pub mean: Vec<f32>,
    /// 1 / √(var + eps), (groups, C)
    pub scale: Vec<f32>,
    /// Whether the statistics are functions of `x`, which the gradient must account for.
    pub from_batch: bool,
}

impl CustomOp2 for BatchNorm {
    fn name(&self) -> &'static str {
        "twinsight-batch-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(values(s1, l1)?, values(s2, l2)?, None);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, parameters: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dp, _) = self.backward(x, parameters, None, y, grad)?;
        Ok((dx, dp))
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "twinsight-batch-norm-residual"
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
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        residual: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward(x, parameters, Some(residual), y, grad)
    }
}

impl BatchNorm {
    /// The group of a float of `len`.
    fn group(&self, start: usize, len: usize) -> usize {
        start / (len / self.groups)
    }

    /// Blocks of whole rows, none of which crosses groups.
    fn blocks(&self, len: usize) -> Vec<Range<usize>> {
        let (group, size) = (len / self.groups, row_block(self.c));
        (0..self.groups)
            .flat_map(|g| (0..group).step_by(size.max(1)).map(move |i| g * group + i..g * group + (i + size).min(group)))
            .collect()
    }

    pub fn forward(&self, x: &[f32], parameters: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let mut y = Vec::with_capacity(x.len());
        self.forward_into(x, parameters, residual, &mut y.spare_capacity_mut()[..x.len()]);
        // SAFETY: `forward_into` writes all of its room.
        unsafe { y.set_len(x.len()) };
        y
    }

    /// Writes every float of `y`.
    pub fn forward_into(&self, x: &[f32], parameters: &[f32], residual: Option<&[f32]>, y: &mut [MaybeUninit<f32>]) {
        let c = self.c;
        let _span = span("batch norm forward", 0);
        let (weight, bias) = parameters.split_at(c);
        let slope: Vec<f32> = self.scale.iter().enumerate().map(|(i, s)| s * weight[i % c]).collect();
        let shift: Vec<f32> = self.mean.iter().enumerate().map(|(i, m)| bias[i % c] - m * slope[i]).collect();
        let write = |start: usize, out: &mut [MaybeUninit<f32>]| {
            let at = self.group(start, x.len()) * c;
            let residual = residual.map(|r| &r[start..start + out.len()]);
            apply(&x[start..start + out.len()], &slope[at..at + c], &shift[at..at + c], residual, self.relu, out);
        };
        in_ranges(y, &self.blocks(x.len()), write);
    }

    /// The operation by these statistics, which are functions of its input.
    pub fn from_statistics(c: usize, groups: usize, relu: bool, s: Statistics, eps: f64) -> Self {
        let scale = s.var.iter().map(|&v| (1.0 / (f64::from(v) + eps).sqrt()) as f32).collect();
        Self { c, groups, relu, mean: s.mean, scale, from_batch: true }
    }

    fn backward(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let c = self.c;
        let grad = grad.contiguous()?;
        let shape = x.shape().clone();
        let need = (x.track_op(), parameters.track_op(), residual.is_some_and(Tensor::track_op));
        let (xs, xl) = x.storage_and_layout();
        let (ps, pl) = parameters.storage_and_layout();
        let (ys, yl) = y.storage_and_layout();
        let (gs, gl) = grad.storage_and_layout();
        let (x, p, y, g) = (host(&xs, xl)?, host(&ps, pl)?, host(&ys, yl)?, host(&gs, gl)?);
        // The gradient before the ReLU is also the residual's.
        let masked = (need.2 && self.relu).then(|| mask_block(y, g));
        let _span = span("batch norm backward", 0);
        let (g, gate) = match &masked {
            Some(masked) => (masked.as_slice(), None),
            None => (g, self.relu.then_some(y)),
        };
        let sums = self.sums(x, gate, g);
        let dx = need.0.then(|| self.to_input(x, p, gate, g, &sums));
        let dx = dx.map(|dx| tensor(dx, shape.clone())).transpose()?;
        let dp = self.to_parameters(&sums);
        let dp = need.1.then(|| tensor(dp, (2, c))).transpose()?;
        let dr = match (need.2, masked) {
            (false, _) => None,
            (true, Some(masked)) => Some(tensor(masked, shape)?),
            (true, None) => Some(grad.clone()),
        };
        Ok((dx, dp, dr))
    }

    /// Σ g and Σ g · (x − mean) of every group and channel, where g counts as zero where `gate` is not positive.
    fn sums(&self, x: &[f32], gate: Option<&[f32]>, g: &[f32]) -> Sums {
        let (c, len, ranges) = (self.c, x.len(), self.blocks(x.len()));
        let parts: Vec<(Vec<f32>, Vec<f32>)> = ranges
            .par_iter()
            .map(|range| {
                let at = self.group(range.start, len) * c;
                let (mut sum, mut product) = (vec![0.0; c], vec![0.0; c]);
                let gate = gate.map(|y| &y[range.clone()]);
                sum_products(&g[range.clone()], gate, &x[range.clone()], &self.mean[at..at + c], &mut sum, &mut product);
                (sum, product)
            })
            .collect();
        self.joined(&ranges, len, &parts)
    }

    /// Adds the blocks' sums in their order.
    fn joined(&self, ranges: &[Range<usize>], len: usize, parts: &[(Vec<f32>, Vec<f32>)]) -> Sums {
        let c = self.c;
        let (mut sums, mut products) = (vec![0.0f64; self.groups * c], vec![0.0f64; self.groups * c]);
        for (range, (sum, product)) in ranges.iter().zip(parts) {
            let at = self.group(range.start, len) * c;
            for j in 0..c {
                sums[at + j] += f64::from(sum[j]);
                products[at + j] += f64::from(product[j]);
            }
        }
        (sums, products)
    }

    /// The gradient to weight and bias, (2, C).
    fn to_parameters(&self, (sums, products): &Sums) -> Vec<f32> {
        let c = self.c;
        let mut dp = vec![0.0f64; 2 * c];
        for i in 0..self.groups * c {
            dp[i % c] += products[i] * f64::from(self.scale[i]);
            dp[c + i % c] += sums[i];
        }
        dp.into_iter().map(|v| v as f32).collect()
    }

    /// The gradients to x and to the parameters (2, C), where `g` counts as zero where `gate` is not positive.
    pub fn gradients(&self, x: &[f32], parameters: &[f32], gate: Option<&[f32]>, g: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let _span = span("batch norm backward", 0);
        let sums = self.sums(x, gate, g);
        (self.to_input(x, parameters, gate, g, &sums), self.to_parameters(&sums))
    }

    /// As [`BatchNorm::gradients`] gated by `y`, and `g` where `y` is positive.
    pub fn gradients_and_cut(&self, x: &[f32], parameters: &[f32], y: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let _span = span("batch norm backward", 0);
        let (c, len, ranges) = (self.c, x.len(), self.blocks(x.len()));
        let mut cut = Vec::with_capacity(len);
        let room = &mut cut.spare_capacity_mut()[..len];
        let parts = in_ranges(room, &ranges, |start, cut: &mut [MaybeUninit<f32>]| {
            let range = start..start + cut.len();
            let at = self.group(start, len) * c;
            let (mut sum, mut product) = (vec![0.0; c], vec![0.0; c]);
            let mean = &self.mean[at..at + c];
            cut_sum_products(&y[range.clone()], &g[range.clone()], &x[range], mean, cut, &mut sum, &mut product);
            (sum, product)
        });
        // SAFETY: `cut_sum_products` writes every float of its block.
        unsafe { cut.set_len(len) };
        let sums = self.joined(&ranges, len, &parts);
        (self.to_input(x, parameters, None, &cut, &sums), self.to_parameters(&sums), cut)
    }

    /// The gradient to x.
    fn to_input(&self, x: &[f32], parameters: &[f32], gate: Option<&[f32]>, g: &[f32], sums: &Sums) -> Vec<f32> {
        let (c, len) = (self.c, x.len());
        let (sums, products) = sums;
        let rows = (len / self.groups / c) as f64;
        let slope: Vec<f32> = self.scale.iter().enumerate().map(|(i, s)| s * parameters[i % c]).collect();
        let (mut along, mut shift) = (vec![0.0f32; self.groups * c], vec![0.0f32; self.groups * c]);
        if self.from_batch {
            for i in 0..self.groups * c {
                let (a, s) = (f64::from(slope[i]), f64::from(self.scale[i]));
                let k = -a * s * s * products[i] / rows;
                along[i] = k as f32;
                shift[i] = (-a * sums[i] / rows - f64::from(self.mean[i]) * k) as f32;
            }
        }
        let write = |start: usize, out: &mut [MaybeUninit<f32>]| {
            let at = self.group(start, len) * c;
            let range = start..start + out.len();
            let gate = gate.map(|y| &y[range.clone()]);
            let at = at..at + c;
            combine(&g[range.clone()], gate, &x[range], &slope[at.clone()], &along[at.clone()], &shift[at], out);
        };
        // SAFETY: `combine` writes every float of its block, which is made of whole rows.
        unsafe { filled_ranges(len, &self.blocks(len), write) }
    }
}

/// Σ g and Σ g · (x − mean) of every group and channel.
type Sums = (Vec<f64>, Vec<f64>);

/// g where y > 0, elsewhere 0.
fn mask_block(y: &[f32], g: &[f32]) -> Vec<f32> {
    let _span = span("relu backward", 0);
    // SAFETY: `mask` writes every float of its block.
    unsafe { filled(y.len(), BLOCK, |start, out| mask(&y[start..], &g[start..], out)) }
}

/// sum += x
pub(crate) fn add_into(sum: &mut [f32], x: &[f32]) {
    let _span = span("gradient sums", 0);
    sum.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(sum, x)| add(sum, x));
}

/// Floats of a block of whole rows.
fn row_block(c: usize) -> usize {
    (BLOCK / c).max(1) * c
}

vectorized! {
    /// The mean of every channel of some rows, and the sum of squared deviations from it.
    fn block_statistics<'a>(x: &'a [f32], mean: &'a mut [f32], square: &'a mut [f32]) {
        let c = mean.len();
        let mut four = x.chunks_exact(4 * c);
        for rows in &mut four {
            let (ab, cd) = rows.split_at(2 * c);
            let ((a, b), (d, e)) = (ab.split_at(c), cd.split_at(c));
            for ((((mean, a), b), d), e) in mean.iter_mut().zip(a).zip(b).zip(d).zip(e) {
                *mean += (a + b) + (d + e);
            }
        }
        for row in four.remainder().chunks_exact(c) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
        }
        let rows = (x.len() / c) as f32;
        mean.iter_mut().for_each(|m| *m /= rows);
        let mut four = x.chunks_exact(4 * c);
        for rows in &mut four {
            let (ab, cd) = rows.split_at(2 * c);
            let ((a, b), (d, e)) = (ab.split_at(c), cd.split_at(c));
            for (((((square, mean), a), b), d), e) in square.iter_mut().zip(mean.iter()).zip(a).zip(b).zip(d).zip(e) {
                let (a, b, d, e) = (a - mean, b - mean, d - mean, e - mean);
                *square += (a * a + b * b) + (d * d + e * e);
            }
        }
        for row in four.remainder().chunks_exact(c) {
            for ((square, mean), x) in square.iter_mut().zip(mean.iter()).zip(row) {
                *square += (x - mean) * (x - mean);
            }
        }
    }
}

vectorized! {
    /// x · slope + shift \[+ residual\], negative values to zero if `relu`.
    fn apply<'a>(
        x: &'a [f32], slope: &'a [f32], shift: &'a [f32], residual: Option<&'a [f32]>, relu: bool, out: &'a mut [MaybeUninit<f32>],
    ) {
        let c = slope.len();
        // NaN stays NaN.
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        match residual {
            None => {
                for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for (((out, x), slope), shift) in out.iter_mut().zip(x).zip(slope).zip(shift) {
                        let y = x * slope + shift;
                        out.write(if y < floor { floor } else { y });
                    }
                }
            }
            Some(residual) => {
                for ((out, x), residual) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(residual.chunks_exact(c)) {
                    for ((((out, x), slope), shift), residual) in out.iter_mut().zip(x).zip(slope).zip(shift).zip(residual) {
                        let y = x * slope + shift + residual;
                        out.write(if y < floor { floor } else { y });
                    }
                }
            }
        }
    }
}

vectorized! {
    fn add<'a>(sum: &'a mut [f32], x: &'a [f32]) {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    }
}

vectorized! {
    /// g where y > 0.
    fn mask<'a>(y: &'a [f32], g: &'a [f32], out: &'a mut [MaybeUninit<f32>]) {
        for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
            out.write(if y <= 0.0 { 0.0 } else { g });
        }
    }
}

vectorized! {
    /// sum += Σ g, product += Σ g · (x − mean), where g counts as zero where `gate` is not positive.
    fn sum_products<'a>(
        g: &'a [f32], gate: Option<&'a [f32]>, x: &'a [f32], mean: &'a [f32], sum: &'a mut [f32], product: &'a mut [f32],
    ) {
        let c = mean.len();
        match gate {
            None => {
                for (g, x) in g.chunks_exact(c).zip(x.chunks_exact(c)) {
                    for ((((g, x), mean), sum), product) in g.iter().zip(x).zip(mean).zip(sum.iter_mut()).zip(product.iter_mut()) {
                        *sum += g;
                        *product += g * (x - mean);
                    }
                }
            }
            Some(gate) => {
                for ((g, x), gate) in g.chunks_exact(c).zip(x.chunks_exact(c)).zip(gate.chunks_exact(c)) {
                    let rows = g.iter().zip(gate).zip(x).zip(mean);
                    for ((((g, &gate), x), mean), (sum, product)) in rows.zip(sum.iter_mut().zip(product.iter_mut())) {
                        let g = if gate <= 0.0 { 0.0 } else { *g };
                        *sum += g;
                        *product += g * (x - mean);
                    }
                }
            }
        }
    }
}

vectorized! {
    /// cut = g where y > 0; sum += Σ cut, product += Σ cut · (x − mean).
    fn cut_sum_products<'a>(
        y: &'a [f32], g: &'a [f32], x: &'a [f32], mean: &'a [f32], cut: &'a mut [MaybeUninit<f32>], sum: &'a mut [f32],
        product: &'a mut [f32],
    ) {
        let c = mean.len();
        let rows = y.chunks_exact(c).zip(g.chunks_exact(c)).zip(x.chunks_exact(c)).zip(cut.chunks_exact_mut(c));
        for (((y, g), x), cut) in rows {
            let row = y.iter().zip(g).zip(x).zip(mean).zip(cut);
            for (((((&y, g), x), mean), cut), (sum, product)) in row.zip(sum.iter_mut().zip(product.iter_mut())) {
                let g = if y <= 0.0 { 0.0 } else { *g };
                cut.write(g);
                *sum += g;
                *product += g * (x - mean);
            }
        }
    }
}

vectorized! {
    /// g · slope + x · along + shift, where g counts as zero where `gate` is not positive.
    fn combine<'a>(
        g: &'a [f32], gate: Option<&'a [f32]>, x: &'a [f32], slope: &'a [f32], along: &'a [f32], shift: &'a [f32],
        out: &'a mut [MaybeUninit<f32>],
    ) {
        let c = slope.len();
        match gate {
            None => {
                for ((out, g), x) in out.chunks_exact_mut(c).zip(g.chunks_exact(c)).zip(x.chunks_exact(c)) {
                    let constants = slope.iter().zip(along).zip(shift);
                    for (((out, g), x), ((slope, along), shift)) in out.iter_mut().zip(g).zip(x).zip(constants) {
                        out.write(g * slope + (x * along + shift));
                    }
                }
            }
            Some(gate) => {
                let rows = out.chunks_exact_mut(c).zip(g.chunks_exact(c)).zip(gate.chunks_exact(c)).zip(x.chunks_exact(c));
                for (((out, g), gate), x) in rows {
                    let constants = slope.iter().zip(along).zip(shift);
                    for ((((out, g), &gate), x), ((slope, along), shift)) in out.iter_mut().zip(g).zip(gate).zip(x).zip(constants) {
                        let g = if gate <= 0.0 { 0.0 } else { *g };
                        out.write(g * slope + (x * along + shift));
                    }
                }
            }
        }
    }
}
