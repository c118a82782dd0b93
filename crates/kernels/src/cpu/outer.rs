//! Sums of outer products over the pixels of a batch: the gradient of convolutions and of matrix products to the weights.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::gather::{Grid, Tap};
use super::memory::{SharedMut, part};
use super::panels::{Panel, cut};
use super::simd::{ARCH, GROUP, OuterTile, TILE, load, outer_rows, store};
use super::vector::vectorized;

/// For every tap: Σ over the positions of left row (under the tap) × right row (at the position).
#[derive(Debug, Clone)]
pub(crate) struct Outer {
    /// Images.
    pub n: usize,
    /// Left operand, read at (i · step + y, j · step + x) under tap (y, x); `first` has no meaning.
    pub left: Grid,
    /// Right operand: an image of exactly the positions; `first` and `step` have no meaning.
    pub right: Grid,
    /// Floats of a left row. More than its pixel's channels: the row goes on in the pixels after it, which must be there.
    pub rows: usize,
    /// Floats of a right row.
    pub columns: usize,
    pub taps: Vec<Tap>,
}

/// Tasks that the sum is cut into, where its size allows.
const TASKS: usize = 16;
/// Floats of partial sums at most, unless one block alone has more.
const PARTIAL: usize = 4 << 20;
/// Chunks of a block at least, so that adding the blocks costs little beside making them.
const LEAST: usize = 4;
/// Panels that share a packed left operand at least, so that packing costs little beside multiplying.
const SHARING: usize = 4;
/// Positions of a chunk: a tile's packed operands stay in the first-level cache. Not a multiple of 64, so that the groups of
/// channels, which are packed side by side, do not fall into the same lines of it.
const CHUNK: usize = 200;

impl Outer {
    /// Calls `put(tap, row, first column, columns)` with every piece of the sums; the calls come from many threads.
    pub fn run(&self, left: &[f32], right: &[f32], put: impl Fn(usize, usize, usize, &[f32]) + Sync) {
        let positions = self.right.size;
        assert!(left.len() >= self.n * self.left.size.0 * self.left.size.1 * self.left.channels);
        assert!(right.len() >= self.n * positions.0 * positions.1 * self.right.channels);
        assert!(self.right.channel + self.columns <= self.right.channels);
        let panels = cut(self.columns);
        if panels.is_empty() || self.rows == 0 {
            return;
        }
        let lanes = TILE.lanes;
        let size = |panel: &Panel| self.taps.len() * self.rows * panel.vectors * lanes;
        let total: usize = panels.iter().map(size).sum();

        // Blocks of positions are summed apart; within them, groups of panels share the packed left operand.
        let count = self.n * positions.0 * positions.1;
        let chunks = count.div_ceil(CHUNK).max(1);
        let blocks = TASKS.min((PARTIAL / total.max(1)).max(1)).min(chunks.div_ceil(LEAST));
        let groups = TASKS.div_ceil(blocks).min(panels.len().div_ceil(SHARING));
        // All panels before a panel are full.
        let offset = |panel: &Panel| self.taps.len() * self.rows * panel.first;
        let mut partial = vec![0.0; blocks * total];
        let shared = SharedMut::new(&mut partial);
        (0..blocks * groups).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            let (block, group) = (task / groups, part(panels.len(), groups, task % groups));
            let panels = &panels[group];
            let start = block * total + offset(&panels[0]);
            // SAFETY: these are the sums of this block and these panels, which belong to this task alone.
            let sums = unsafe { shared.slice(start..start + panels.iter().map(size).sum::<usize>()) };
            for chunk in part(chunks, blocks, block) {
                let places = chunk * CHUNK..((chunk + 1) * CHUNK).min(count);
                self.add(left, right, places, panels, sums, scratch);
            }
        });

        // Add the blocks in order, and hand out.
        panels.par_iter().for_each(|panel| {
            let offset = offset(panel);
            let mut sums = partial[offset..offset + size(panel)].to_vec();
            for block in 1..blocks {
                let other = &partial[block * total + offset..][..sums.len()];
                sums.iter_mut().zip(other).for_each(|(s, o)| *s += o);
            }
            for (i, sum) in sums.chunks_exact(panel.vectors * lanes).enumerate() {
                put(i / self.rows, i % self.rows, panel.first, &sum[..panel.width]);
            }
        });
    }

    /// Adds the products at some positions to the sums of some panels.
    fn add<'a>(
        &self,
        left: &'a [f32],
        right: &[f32],
        places: Range<usize>,
        panels: &[Panel],
        sums: &mut [f32],
        scratch: &mut Scratch<'a>,
    ) {
        if places.is_empty() {
            return;
        }
        let (count, lanes) = (places.len(), TILE.lanes);
        let Scratch { right: packed, left: strips, from } = scratch;
        let columns: usize = panels.iter().map(|p| p.vectors * lanes).sum();
        packed.resize(count * columns, 0.0);
        let mut start = 0;
        for panel in panels {
            let width = panel.vectors * lanes;
            let to = &mut packed[start..start + count * width];
            let first = places.start * self.right.channels + self.right.channel + panel.first;
            pack_panel(&right[first..], self.right.channels, panel.width, width, to);
            start += count * width;
        }
        strips.resize(self.rows.next_multiple_of(GROUP) * count, 0.0);
        for (t, tap) in self.taps.iter().enumerate() {
            self.sources(left, places.clone(), *tap, from);
            pack_strips(from, self.rows, strips);
            let (mut start, mut sum_start) = (0, 0);
            for panel in panels {
                let width = panel.vectors * lanes;
                for row in (0..self.rows).step_by(outer_rows()) {
                    let rows = outer_rows().min(self.rows - row);
                    let at = sum_start + (t * self.rows + row) * width;
                    let tile = OuterTile {
                        rows,
                        vectors: panel.vectors,
                        count,
                        left: strips[row / GROUP * GROUP * count + row % GROUP..].as_ptr(),
                        left_step: GROUP,
                        right: packed[start..].as_ptr(),
                        right_step: width,
                        right_vector: lanes,
                        out: sums[at..at + rows * width].as_mut_ptr(),
                    };
                    // SAFETY: both operands were packed above: `count` places of a group of rows, of which these are a part, and
                    // of a whole panel; the sums are as large as the tile.
                    unsafe { tile.run() };
                }
                start += count * width;
                sum_start += self.taps.len() * self.rows * width;
            }
        }
    }

    /// The left row under a tap at every place; none outside of the image.
    fn sources<'a>(&self, left: &'a [f32], places: Range<usize>, tap: Tap, from: &mut Vec<Option<&'a [f32]>>) {
        let (height, width) = self.right.size;
        let (mut image, rest) = (places.start / (height * width), places.start % (height * width));
        let (mut row, mut column) = (rest / width, rest % width);
        from.clear();
        for _ in places {
            let y = (row * self.left.step) as isize + tap.y;
            let x = (column * self.left.step) as isize + tap.x;
            let inside = (y as usize) < self.left.size.0 && (x as usize) < self.left.size.1;
            from.push(inside.then(|| {
                let pixel = (image * self.left.size.0 + y as usize) * self.left.size.1 + x as usize;
                let start = pixel * self.left.channels + self.left.channel;
                &left[start..start + self.rows]
            }));
            column += 1;
            if column == width {
                (row, column) = (row + 1, 0);
                if row == height {
                    (image, row) = (image + 1, 0);
                }
            }
        }
    }
}

vectorized! {
    /// Packs rows as (group of channels, place, channel of the group); what is missing becomes zeros.
    fn pack_strips<'a>(from: &'a [Option<&'a [f32]>], rows: usize, strips: &'a mut [f32]) {
        let count = from.len();
        for (place, from) in from.iter().enumerate() {
            for group in 0..rows.div_ceil(GROUP) {
                let to = &mut strips[(group * count + place) * GROUP..][..GROUP];
                let first = group * GROUP;
                match from {
                    Some(from) if from.len() >= first + GROUP => to.copy_from_slice(&from[first..first + GROUP]),
                    Some(from) => to[..from.len() - first].copy_from_slice(&from[first..]),
                    None => to.fill(0.0),
                }
            }
        }
    }
}

vectorized! {
    /// Packs `width` floats of every row, rows being `step` floats apart, as rows of `full` floats with zeros behind.
    fn pack_panel<'a>(from: &'a [f32], step: usize, width: usize, full: usize, to: &'a mut [f32]) {
        // Fixed lengths become a few moves instead of calls.
        if width == 2 * GROUP && full == width {
            for (from, to) in from.chunks(step).zip(to.as_chunks_mut::<{ 2 * GROUP }>().0) {
                to.copy_from_slice(&from[..2 * GROUP]);
            }
            return;
        }
        for (from, to) in from.chunks(step).zip(to.chunks_exact_mut(full)) {
            to[..width].copy_from_slice(&from[..width]);
            to[width..].fill(0.0);
        }
    }
}

#[derive(Default)]
struct Scratch<'a> {
    right: Vec<f32>,
    left: Vec<f32>,
    from: Vec<Option<&'a [f32]>>,
}

/// Σ over the positions of left · right, element by element along the channels: the gradient of a depthwise convolution to
/// its weights, (taps, channels).
pub(crate) fn depthwise(plan: &Outer, left: &[f32], right: &[f32]) -> Vec<f32> {
    let (positions, channels, taps) = (plan.right.size, plan.rows, plan.taps.len());
    let image_rows = plan.n * positions.0;
    let chunk = (65_536 / (positions.1 * channels).max(1)).max(1).max(image_rows.div_ceil(4 * TASKS));
    let partial: Vec<Vec<f32>> = super::memory::blocks(image_rows, chunk)
        .map(|rows| {
            let mut sums = vec![0.0f32; taps * channels];
            for row in rows {
                for (tap, sum) in plan.taps.iter().zip(sums.chunks_exact_mut(channels.max(1))) {
                    let y = (row % positions.0 * plan.left.step) as isize + tap.y;
                    if y < 0 || y as usize >= plan.left.size.0 {
                        continue;
                    }
                    let line = row / positions.0 * plan.left.size.0 + y as usize;
                    for column in 0..positions.1 {
                        let x = (column * plan.left.step) as isize + tap.x;
                        if x >= 0 && (x as usize) < plan.left.size.1 {
                            let l = (line * plan.left.size.1 + x as usize) * channels;
                            let r = (row * positions.1 + column) * channels;
                            ARCH.dispatch(MulAdd(sum, &left[l..l + channels], &right[r..r + channels]));
                        }
                    }
                }
            }
            sums
        })
        .collect();
    let mut total = vec![0.0; taps * channels];
    for sums in &partial {
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
    }
    total
}

/// sum += left · right.
struct MulAdd<'a>(&'a mut [f32], &'a [f32], &'a [f32]);

impl WithSimd for MulAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(sum, left, right) = self;
        let len = sum.len().min(left.len()).min(right.len());
        let whole = len / S::F32_LANES * S::F32_LANES;
        for i in (0..whole).step_by(S::F32_LANES) {
            // SAFETY: `i` and the vector after it are inside of all three slices.
            unsafe {
                let product = simd.mul_add_e_f32s(
                    load::<S>(left.as_ptr().add(i)),
                    load::<S>(right.as_ptr().add(i)),
                    load::<S>(sum.as_ptr().add(i)),
                );
                store::<S>(sum.as_mut_ptr().add(i), product);
            }
        }
        for i in whole..len {
            sum[i] += left[i] * right[i];
        }
    }
}
