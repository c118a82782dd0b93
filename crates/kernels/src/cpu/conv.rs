//! Convolution and its two gradients on the CPU.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gather::{Gather, Grid, Tap, Weights};
use super::memory::{SharedMut, Uninit, host, tensor, values};
use super::outer::{self, Outer};
use super::panels::{Packed, Strides};
use super::winograd;
use crate::conv::Geometry;
use crate::trace::{Span, span};

/// The operation of (x, weight) → y.
pub(crate) struct Conv2d(pub Geometry);

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "twinsight-conv2d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let g = &self.0;
        let y = traced(g, Pass::Forward, values(s1, l1)?, values(s2, l2)?, &[]);
        Ok((CpuStorage::F32(y), Shape::from((g.n, g.oh, g.ow, g.o))))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (gs, gl) = grad.storage_and_layout();
        let grad = host(&gs, gl)?;
        // The gradient to an input that nothing upstream learns from (the first layer's) is left out.
        let to_x = match x.track_op() {
            true => {
                let (ws, wl) = weight.storage_and_layout();
                Some(tensor(traced(&self.0, Pass::ToInput, &[], host(&ws, wl)?, grad), x.shape().clone())?)
            }
            false => None,
        };
        let to_weight = match weight.track_op() {
            true => {
                let (xs, xl) = x.storage_and_layout();
                Some(tensor(traced(&self.0, Pass::ToWeight, host(&xs, xl)?, &[], grad), weight.shape().clone())?)
            }
            false => None,
        };
        Ok((to_x, to_weight))
    }
}

/// Computes one pass and drops its result, for measuring.
///
/// # Errors
/// Tensors that are not contiguous `f32` in main memory.
pub(crate) fn run_pass(g: &Geometry, pass: Pass, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<()> {
    let ((xs, xl), (ws, wl), (gs, gl)) = (x.storage_and_layout(), weight.storage_and_layout(), grad.storage_and_layout());
    drop(traced(g, pass, host(&xs, xl)?, host(&ws, wl)?, host(&gs, gl)?));
    Ok(())
}

/// One pass, of whose three operands it needs two, as a span of the trace.
pub(crate) fn traced(g: &Geometry, pass: Pass, x: &[f32], weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let _span = g.span(pass);
    match pass {
        Pass::Forward => forward(g, x, weight),
        Pass::ToInput => to_input(g, weight, grad),
        Pass::ToWeight => to_weight(g, x, grad),
    }
}

/// The three passes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    ToInput,
    ToWeight,
}

impl Geometry {
    /// Multiply-adds of one pass, by the definition.
    pub fn multiply_adds(&self) -> usize {
        self.n * self.oh * self.ow * self.o * self.group().0 * self.kh * self.kw
    }

    fn span(&self, pass: Pass) -> Option<Span> {
        let names = match (self.kh, self.kw) {
            _ if self.depthwise() => ["conv depthwise forward", "conv depthwise to input", "conv depthwise to weight"],
            (1, 1) => ["conv 1x1 forward", "conv 1x1 to input", "conv 1x1 to weight"],
            _ if winograd::suits(self) => {
                ["conv 3x3 Winograd forward", "conv 3x3 Winograd to input", "conv 3x3 Winograd to weight"]
            }
            (3, 3) => ["conv 3x3 other forward", "conv 3x3 other to input", "conv 3x3 other to weight"],
            _ => ["conv larger forward", "conv larger to input", "conv larger to weight"],
        };
        span(names[pass as usize], self.multiply_adds())
    }

    /// Whether every channel is convolved on its own.
    fn depthwise(&self) -> bool {
        self.config.groups == self.c && self.o == self.c
    }

    /// Input and output channels of a group.
    fn group(&self) -> (usize, usize) {
        (self.c / self.config.groups, self.o / self.config.groups)
    }

    /// Every tap, with its place from an output's source position.
    fn taps(&self) -> Vec<Tap> {
        let place = |k: usize| (k * self.config.dilation) as isize - self.config.padding as isize;
        (0..self.kh * self.kw).map(|t| Tap { y: place(t / self.kw), x: place(t % self.kw), block: t as u32 }).collect()
    }

    fn input(&self, step: usize, channel: usize) -> Grid {
        Grid { size: (self.h, self.w), first: (0, 0), step, channels: self.c, channel }
    }

    fn output(&self, channel: usize) -> Grid {
        Grid { size: (self.oh, self.ow), first: (0, 0), step: 1, channels: self.o, channel }
    }

    /// The weights of a depthwise convolution as (taps, channels).
    fn by_tap(&self, weight: &[f32]) -> Vec<f32> {
        let taps = self.kh * self.kw;
        (0..taps * self.c).map(|i| weight[i % self.c * taps + i / self.c]).collect()
    }
}

/// A convolution of few channels as one whose taps are whole rows of the kernel: the pixels under such a row lie side by side
/// in an image with its padding written out, and make one long row.
struct Rows {
    /// (N, H + 2 padding, W + 2 padding, C), and after it what the last rows of a wide step may reach.
    padded: Vec<f32>,
    size: (usize, usize),
    taps: Vec<Tap>,
    /// kw · C
    depth: usize,
}

impl Rows {
    /// Whether it gains.
    fn suits(g: &Geometry) -> bool {
        (1..8).contains(&g.c) && g.kw > 1 && g.config.groups == 1 && g.config.dilation == 1
    }

    fn new(g: &Geometry, x: &[f32]) -> Self {
        let p = g.config.padding;
        let size = (g.h + 2 * p, g.w + 2 * p);
        let line = size.1 * g.c;
        let mut padded = vec![0.0f32; g.n * size.0 * line];
        padded.par_chunks_exact_mut(line).enumerate().for_each(|(i, to)| {
            let (image, row) = (i / size.0, i % size.0);
            if (p..p + g.h).contains(&row) {
                let from = (image * g.h + row - p) * g.w * g.c;
                to[p * g.c..(p + g.w) * g.c].copy_from_slice(&x[from..from + g.w * g.c]);
            }
        });
        let taps = (0..g.kh).map(|y| Tap { y: y as isize, x: 0, block: y as u32 }).collect();
        Self { padded, size, taps, depth: g.kw * g.c }
    }

    fn source(&self, g: &Geometry) -> Grid {
        Grid { size: self.size, first: (0, 0), step: g.config.stride, channels: g.c, channel: 0 }
    }

    /// The weights (O, C, kh, kw) as (O, kh, kw · C).
    fn reordered(g: &Geometry, weight: &[f32]) -> Vec<f32> {
        let (taps, depth) = (g.kh * g.kw, g.kw * g.c);
        (0..weight.len())
            .map(|i| {
                let (o, y, x, c) = (i / (taps * g.c), i / depth % g.kh, i / g.c % g.kw, i % g.c);
                weight[(o * g.c + c) * taps + y * g.kw + x]
            })
            .collect()
    }
}

/// y (N, H', W', O).
fn forward(g: &Geometry, x: &[f32], weight: &[f32]) -> Vec<f32> {
    if winograd::suits(g) {
        return winograd::forward(g, x, weight);
    }
    let mut y = Uninit::new(g.n * g.oh * g.ow * g.o);
    let target = y.shared();
    let plan = |depth: usize, group: usize, outputs: usize| Gather {
        n: g.n,
        positions: (g.oh, g.ow),
        source: g.input(g.config.stride, group * depth),
        target: g.output(group * outputs),
        depth,
        taps: g.taps(),
    };
    if Rows::suits(g) {
        let rows = Rows::new(g, x);
        let strides = Strides { start: 0, block: rows.depth, row: 1, column: g.kh * rows.depth };
        let packed = Packed::new(&Rows::reordered(g, weight), strides, g.kh, rows.depth, g.o);
        let plan = Gather { source: rows.source(g), taps: rows.taps.clone(), ..plan(rows.depth, 0, g.o) };
        // SAFETY: as below.
        unsafe { plan.run(&rows.padded, &Weights::Dense { packed: &packed, start: None }, target) };
    } else if g.depthwise() {
        let weight = g.by_tap(weight);
        // SAFETY: `target` holds `n` images of the output's size, which this call writes alone.
        unsafe { plan(g.c, 0, g.o).run(x, &Weights::Depthwise(&weight), target) };
    } else {
        let ((inputs, outputs), taps) = (g.group(), g.kh * g.kw);
        for group in 0..g.config.groups {
            let start = group * outputs * inputs * taps;
            let strides = Strides { start, block: 1, row: taps, column: inputs * taps };
            let packed = Packed::new(weight, strides, taps, inputs, outputs);
            let weights = Weights::Dense { packed: &packed, start: None };
            // SAFETY: as above; every group writes channels of its own.
            unsafe { plan(inputs, group, outputs).run(x, &weights, target) };
        }
    }
    // SAFETY: the grid of outputs is the whole image, and the groups make up all channels.
    unsafe { y.finish() }
}

/// The gradient to x (N, H, W, C), gathered: input pixels of one residue modulo the stride see the same taps, each with
/// neighbouring outputs under it.
fn to_input(g: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    if winograd::suits(g) {
        return winograd::to_input(g, weight, grad);
    }
    let mut dx = Uninit::new(g.n * g.h * g.w * g.c);
    let target = dx.shared();
    let ((inputs, outputs), taps, stride) = (g.group(), g.kh * g.kw, g.config.stride);
    let by_tap = g.depthwise().then(|| g.by_tap(weight));
    let packed: Vec<Packed> = match by_tap {
        Some(_) => Vec::new(),
        None => (0..g.config.groups)
            .map(|group| {
                let start = group * outputs * inputs * taps;
                Packed::new(weight, Strides { start, block: 1, row: inputs * taps, column: taps }, taps, outputs, inputs)
            })
            .collect(),
    };
    for first in (0..stride.min(g.h)).flat_map(|y| (0..stride.min(g.w)).map(move |x| (y, x))) {
        let run = |depth: usize, group: usize, channel: usize, weights: &Weights<'_>| {
            let plan = Gather {
                n: g.n,
                positions: ((g.h - first.0).div_ceil(stride), (g.w - first.1).div_ceil(stride)),
                source: Grid { channel: group * depth, ..g.output(0) },
                target: Grid { first, ..g.input(stride, channel) },
                depth,
                taps: backward_taps(g, first),
            };
            // SAFETY: `target` holds `n` images of the input's size, which this call writes alone.
            unsafe { plan.run(grad, weights, target) };
        };
        match &by_tap {
            Some(weights) => run(g.o, 0, 0, &Weights::Depthwise(weights)),
            None => packed.iter().enumerate().for_each(|(group, packed)| {
                run(outputs, group, group * inputs, &Weights::Dense { packed, start: None });
            }),
        }
    }
    // SAFETY: the residues of rows and columns cover every pixel, and the groups all channels.
    unsafe { dx.finish() }
}

/// The taps that inputs at `first` + stride · (i, j) have part in, and where from (i, j) the output lies.
fn backward_taps(g: &Geometry, first: (usize, usize)) -> Vec<Tap> {
    let stride = g.config.stride as isize;
    let place = |first: usize, k: usize| {
        let from = (first + g.config.padding) as isize - (k * g.config.dilation) as isize;
        (from.rem_euclid(stride) == 0).then(|| from.div_euclid(stride))
    };
    (0..g.kh * g.kw)
        .filter_map(|t| Some(Tap { y: place(first.0, t / g.kw)?, x: place(first.1, t % g.kw)?, block: t as u32 }))
        .collect()
}

/// The gradient to the weights (O, C / groups, kh, kw).
fn to_weight(g: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    if winograd::suits(g) {
        return winograd::to_weight(g, x, grad);
    }
    let ((inputs, outputs), taps) = (g.group(), g.kh * g.kw);
    let plan = |rows: usize, columns: usize, group: usize| Outer {
        n: g.n,
        left: g.input(g.config.stride, group * rows),
        right: g.output(group * columns),
        rows,
        columns,
        taps: g.taps(),
    };
    let mut dw = vec![0.0; g.o * inputs * taps];
    if g.depthwise() {
        let sums = outer::depthwise(&plan(g.c, g.o, 0), x, grad);
        dw.par_iter_mut().with_min_len(4096).enumerate().for_each(|(i, d)| *d = sums[i % taps * g.c + i / taps]);
        return dw;
    }
    let shared = SharedMut::new(&mut dw);
    if Rows::suits(g) {
        let rows = Rows::new(g, x);
        let outer = Outer { left: rows.source(g), rows: rows.depth, taps: rows.taps.clone(), ..plan(rows.depth, g.o, 0) };
        outer.run(&rows.padded, grad, |y, row, first, sums| {
            for (i, &sum) in sums.iter().enumerate() {
                // SAFETY: (output, row % C, y, row / C) is an element of the weights, handed out once.
                unsafe { *shared.at((((first + i) * g.c + row % g.c) * g.kh + y) * g.kw + row / g.c) = sum };
            }
        });
        return dw;
    }
    for group in 0..g.config.groups {
        plan(inputs, outputs, group).run(x, grad, |tap, row, first, sums| {
            for (i, &sum) in sums.iter().enumerate() {
                let o = group * outputs + first + i;
                // SAFETY: (o, row, tap) is an element of the weights, handed out once.
                unsafe { *shared.at((o * inputs + row) * taps + tap) = sum };
            }
        });
    }
    dw
}
