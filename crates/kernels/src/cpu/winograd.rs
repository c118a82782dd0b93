//! 3 × 3 convolutions of stride 1 by the minimal filtering algorithm F(4 × 4, 3 × 3) of Lavin and Gray 2016 (Winograd 1980):
//! 36 products for every 16 outputs and pair of channels instead of 144.
//!
//! With the points 0, ±1, ±2, ∞: y = Aᵀ((G w Gᵀ) ⊙ (Bᵀ d B)) A for every tile d of 6 × 6 inputs that overlap by two, and for
//! the weights' gradient dw = Gᵀ(Σ (Bᵀ d B) ⊙ (A dy Aᵀ)) G. Rounding errors grow to 1 to 3 · 10⁻⁶ of the result's norm
//! (a test holds them against float64).

mod transform;

use std::ops::Range;

use rayon::prelude::*;

use super::memory::{SharedMut, Uninit, part};
use super::panels::{Packed, cut};
use super::simd::{ARCH, GROUP, GatherTile, MAX_ROWS, OuterTile, TILE, outer_rows};
use crate::conv::{Conv2dConfig, Geometry};
use transform::{GradientTransform, InputTransform, OutputTransform, WeightGradient, WeightTransform};

/// Elements of a transformed tile.
const POINTS: usize = 36;

/// Whether a convolution is of the kind that this module computes, and gains by it.
pub(crate) fn suits(g: &Geometry) -> bool {
    let tiles = 16 * g.oh.div_ceil(4) * g.ow.div_ceil(4);
    (g.kh, g.kw) == (3, 3)
        && g.config == (Conv2dConfig { padding: g.config.padding, ..Default::default() })
        && g.config.padding <= 2
        && g.c.is_multiple_of(16)
        && g.o.is_multiple_of(16)
        && g.n * g.c * g.o > 0
        && 5 * g.oh * g.ow >= 2 * tiles
}

/// y (N, H', W', O).
pub(crate) fn forward(g: &Geometry, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (c, o) = (g.c, g.o);
    let packed = transform_weights(c, o, |row, column, tap| weight[(column * c + row) * 9 + tap]);
    let tiling = Tiling { n: g.n, input: (g.h, g.w), output: (g.oh, g.ow), padding: g.config.padding };
    convolve(tiling, c, o, x, &packed)
}

/// The gradient to x (N, H, W, C): the convolution of the result's gradient with the turned weights.
pub(crate) fn to_input(g: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let (c, o) = (g.c, g.o);
    let packed = transform_weights(o, c, |row, column, tap| weight[(row * c + column) * 9 + 8 - tap]);
    let tiling = Tiling { n: g.n, input: (g.oh, g.ow), output: (g.h, g.w), padding: 2 - g.config.padding };
    convolve(tiling, o, c, grad, &packed)
}

/// The gradient to the weights (O, C, 3, 3).
pub(crate) fn to_weight(g: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let (c, o, lanes) = (g.c, g.o, TILE.lanes);
    let tiling = Tiling { n: g.n, input: (g.h, g.w), output: (g.oh, g.ow), padding: g.config.padding };
    let panels = cut(o);
    let total = tiling.count();
    // Tiles whose transforms are held at a time: 16 MiB of them.
    let size = ((4 << 20) / (POINTS * (c + o))).clamp(32, total.max(32));
    let mut left = vec![0.0f32; POINTS * size.min(total) * c];
    let mut right = vec![0.0f32; POINTS * size.min(total) * o];
    let mut sums = vec![0.0f32; POINTS * c * o];
    let mut start = 0;
    while start < total {
        let tiles = start..(start + size).min(total);
        let count = tiles.len();
        let (to_left, to_right) = (SharedMut::new(&mut left), SharedMut::new(&mut right));
        let chunks = count.div_ceil(16);
        let (order_left, order_right) = (Order::for_sums(c, count), Order::for_sums(o, count));
        (0..chunks).into_par_iter().for_each(|i| {
            let rows = part(count, chunks, i);
            // SAFETY: every chunk writes tiles of its own, in buffers of `count` tiles a point.
            unsafe {
                tiling.inputs(x, c, tiles.start, rows.clone(), to_left, order_left);
                tiling.gradients(grad, o, tiles.start, rows, to_right, order_right);
            }
        });
        let to = SharedMut::new(&mut sums);
        let (left, right) = (&left, &right);
        (0..POINTS * panels.len()).into_par_iter().for_each(|task| {
            let (point, panel) = (task / panels.len(), panels[task % panels.len()]);
            let width = panel.vectors * lanes;
            // Sums lie (panel, point, row, column); all panels before this one are full.
            let offset = POINTS * c * panel.first + point * c * width;
            for row in (0..c).step_by(outer_rows()) {
                let tile = OuterTile {
                    rows: outer_rows(),
                    vectors: panel.vectors,
                    count,
                    left: left[order_left.at(point, row)..].as_ptr(),
                    left_step: order_left.tile,
                    right: right[order_right.at(point, panel.first)..].as_ptr(),
                    right_step: order_right.tile,
                    right_vector: if lanes == GROUP { order_right.group } else { lanes },
                    // SAFETY: inside of the sums, of which these rows belong to this task alone.
                    out: unsafe { to.at(offset + row * width) },
                };
                // SAFETY: every place is a tile of this point; the rows lie within one group of the `c` channels, the panel's
                // vectors within one group or, where they fill groups, in neighbouring ones of the `o` channels.
                unsafe { tile.run() };
            }
        });
        start = tiles.end;
    }
    let mut dw = Uninit::new(o * c * 9);
    let to = dw.shared();
    panels.par_iter().for_each(|panel| {
        let width = panel.vectors * lanes;
        for row in 0..c {
            let from = &sums[POINTS * c * panel.first..][..POINTS * c * width];
            let put = |column: usize, tap: usize, value: f32| {
                // SAFETY: these weights belong to this panel and row alone.
                unsafe { *to.at(((panel.first + column) * c + row) * 9 + tap) = value };
            };
            ARCH.dispatch(WeightGradient { from, c, row, panel: *panel, put });
        }
    });
    // SAFETY: the panels make up all outputs, and for each of them all rows and taps are written.
    unsafe { dw.finish() }
}

/// How transformed tiles lie in memory, in floats.
#[derive(Debug, Clone, Copy)]
struct Order {
    /// From point to point.
    point: usize,
    /// From tile to tile.
    tile: usize,
    /// From one group of [`GROUP`] channels to the next.
    group: usize,
}

impl Order {
    /// (point, tile, channel).
    fn plain(channels: usize, count: usize) -> Self {
        Self { point: count * channels, tile: channels, group: GROUP }
    }

    /// What a sum over tiles reads best: (point, group of channels, tile, channel of the group), front to back, unless channels
    /// are so few that writing in this order costs more.
    fn for_sums(channels: usize, count: usize) -> Self {
        match channels < 128 {
            true => Self::plain(channels, count),
            false => Self { point: count * channels, tile: GROUP, group: count * GROUP },
        }
    }

    /// Where a channel of a point starts.
    fn at(self, point: usize, channel: usize) -> usize {
        point * self.point + channel / GROUP * self.group + channel % GROUP
    }
}

/// How an image is cut into tiles of 4 × 4 outputs.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    n: usize,
    input: (usize, usize),
    output: (usize, usize),
    padding: usize,
}

/// Runs the 36 products of every tile, in tasks that hold the transforms of some tiles.
fn convolve(tiling: Tiling, depth: usize, columns: usize, x: &[f32], packed: &Packed) -> Vec<f32> {
    let mut y = Uninit::new(tiling.n * tiling.output.0 * tiling.output.1 * columns);
    let target = y.shared();
    let total = tiling.count();
    // Transforms of 1 MiB a task, but tiles enough to use every weight often. How tiles are grouped changes no result, so
    // the number of tasks may follow the number of threads.
    let least = if depth + columns >= 1024 { 48 } else { 24 };
    let size = ((1 << 18) / (POINTS * (depth + columns))).max(least);
    let threads = rayon::current_num_threads();
    let tasks = total.div_ceil(size).next_multiple_of(threads).min(total);
    (0..tasks).into_par_iter().for_each_init(Vec::new, |scratch: &mut Vec<f32>, task| {
        let tiles = part(total, tasks, task);
        let count = tiles.len();
        let len = POINTS * count * (depth + columns);
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        let (left, out) = scratch[..len].split_at_mut(POINTS * count * depth);
        // SAFETY: the buffer holds (point, tile, channel) of `count` tiles.
        unsafe { tiling.inputs(x, depth, tiles.start, 0..count, SharedMut::new(left), Order::plain(depth, count)) };
        let groups = count.div_ceil(TILE.rows);
        for point in 0..POINTS {
            for (p, panel) in packed.panels.iter().enumerate() {
                for group in 0..groups {
                    let rows = part(count, groups, group);
                    let mut pointers = [std::ptr::null(); MAX_ROWS];
                    let mut outs = [std::ptr::null_mut(); MAX_ROWS];
                    for (i, row) in rows.clone().enumerate() {
                        pointers[i] = left[(point * count + row) * depth..].as_ptr();
                        outs[i] = out[(point * count + row) * columns + panel.first..].as_mut_ptr();
                    }
                    let tile = GatherTile {
                        rows: rows.len(),
                        vectors: panel.vectors,
                        width: panel.width,
                        depth,
                        left: &pointers[..rows.len()],
                        taps: &[point as u32],
                        right: packed.panel(p).as_ptr(),
                        start: std::ptr::null(),
                        out: &outs[..rows.len()],
                    };
                    // SAFETY: the rows lie in the transforms, the block `point` in the panel, and the panel's columns in `out`.
                    unsafe { tile.run() };
                }
            }
        }
        // SAFETY: these tiles' outputs belong to this task alone.
        unsafe { tiling.outputs(out, columns, tiles, target) };
    });
    // SAFETY: the tiles cover the whole output, and the panels all columns.
    unsafe { y.finish() }
}

/// G w Gᵀ of every pair of channels, packed with a block for each of the 36 points.
fn transform_weights(rows: usize, columns: usize, weight: impl Fn(usize, usize, usize) -> f32 + Sync) -> Packed {
    Packed::from_panels(POINTS, rows, columns, |panel, to| {
        for row in 0..rows {
            ARCH.dispatch(WeightTransform { to, rows, row, panel, weight: &weight });
        }
    })
}

impl Tiling {
    fn rows(&self) -> (usize, usize) {
        (self.output.0.div_ceil(4), self.output.1.div_ceil(4))
    }

    /// Number of tiles.
    fn count(&self) -> usize {
        self.n * self.rows().0 * self.rows().1
    }

    /// Image, and first output row and column of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (down, across) = self.rows();
        (tile / (down * across), tile / across % down * 4, tile % across * 4)
    }

    /// Writes Bᵀ d B of the tiles `first` + `rows` to `to`, in this order.
    ///
    /// # Safety
    /// `to` must hold every row of every point in this order, and no other thread may use these rows.
    unsafe fn inputs(&self, x: &[f32], c: usize, first: usize, rows: Range<usize>, to: SharedMut, order: Order) {
        let (h, w) = self.input;
        assert!(x.len() >= self.n * h * w * c);
        let zeros = vec![0.0f32; c];
        for row in rows {
            let (image, y, x0) = self.place(first + row);
            let mut from = [zeros.as_ptr(); POINTS];
            for (i, from) in from.iter_mut().enumerate() {
                let (iy, ix) = ((y + i / 6).wrapping_sub(self.padding), (x0 + i % 6).wrapping_sub(self.padding));
                if iy < h && ix < w {
                    *from = x[((image * h + iy) * w + ix) * c..].as_ptr();
                }
            }
            // SAFETY: every pointer is valid for `c` floats, and the caller vouches for `to`.
            let to = unsafe { to.at(row * order.tile) };
            ARCH.dispatch(InputTransform { from: &from, c, to, step: order.point, group: order.group });
        }
    }

    /// Writes A dy Aᵀ of the tiles, as [`Tiling::inputs`].
    ///
    /// # Safety
    /// As [`Tiling::inputs`].
    unsafe fn gradients(&self, grad: &[f32], o: usize, first: usize, rows: Range<usize>, to: SharedMut, order: Order) {
        let (h, w) = self.output;
        assert!(grad.len() >= self.n * h * w * o);
        let zeros = vec![0.0f32; o];
        for row in rows {
            let (image, y, x) = self.place(first + row);
            let mut from = [zeros.as_ptr(); 16];
            for (i, from) in from.iter_mut().enumerate() {
                let (oy, ox) = (y + i / 4, x + i % 4);
                if oy < h && ox < w {
                    *from = grad[((image * h + oy) * w + ox) * o..].as_ptr();
                }
            }
            // SAFETY: every pointer is valid for `o` floats, and the caller vouches for `to`.
            let to = unsafe { to.at(row * order.tile) };
            ARCH.dispatch(GradientTransform { from: &from, o, to, step: order.point, group: order.group });
        }
    }

    /// Writes Aᵀ m A of the tiles, whose products lie in `from`, (point, tile, column), to the image.
    ///
    /// # Safety
    /// `target` must hold the whole output, and no other thread may use these tiles' outputs.
    unsafe fn outputs(&self, from: &[f32], o: usize, tiles: Range<usize>, target: SharedMut) {
        let (h, w) = self.output;
        let count = tiles.len();
        assert!(from.len() >= POINTS * count * o);
        for (row, tile) in tiles.enumerate() {
            let (image, y, x) = self.place(tile);
            let (down, across) = ((h - y).min(4), (w - x).min(4));
            // SAFETY: the first output of the tile is inside of the image.
            let to = unsafe { target.at(((image * h + y) * w + x) * o) };
            ARCH.dispatch(OutputTransform { from: &from[row * o..], step: count * o, o, to, line: w * o, down, across });
        }
    }
}
