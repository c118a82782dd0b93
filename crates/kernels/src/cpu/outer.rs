//! Sums of outer products over the pixels of a batch: the gradient of convolutions and of matrix products to the weights.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::gather::{Grid, Tap};
use super::memory::{SharedMut, part};
use super::panels::{Panel, cut};
use super::simd::{ARCH, OuterTile, TILE, load, store};

/// For every tap: Σ over the positions of left row (under the tap) × right row (at the position).
#[derive(Debug, Clone)]
pub(crate) struct Outer {
    /// Images.
    pub n: usize,
    /// Left operand, read at (i · step + y, j · step + x) under tap (y, x); `first` has no meaning.
    pub left: Grid,
    /// Right operand: an image of exactly the positions; `first` and `step` have no meaning.
    pub right: Grid,
    /// Floats of a left row.
    pub rows: usize,
    /// Floats of a right row.
    pub columns: usize,
    pub taps: Vec<Tap>,
}

/// Tasks that the sum is cut into at most.
const TASKS: usize = 64;
/// Floats of partial sums at most, unless one block alone has more.
const PARTIAL: usize = 2 << 20;

impl Outer {
    /// Calls `put(tap, row, first column, columns)` with every piece of the sums; the calls come from many threads.
    pub fn run(&self, left: &[f32], right: &[f32], put: impl Fn(usize, usize, usize, &[f32]) + Sync) {
        let positions = self.right.size;
        assert!(left.len() >= self.n * self.left.size.0 * self.left.size.1 * self.left.channels);
        assert!(right.len() >= self.n * positions.0 * positions.1 * self.right.channels);
        assert!(self.left.channel + self.rows <= self.left.channels);
        assert!(self.right.channel + self.columns <= self.right.channels);
        let panels = cut(self.columns);
        if panels.is_empty() || self.rows == 0 {
            return;
        }
        let lanes = TILE.lanes;
        let size = |panel: &Panel| self.taps.len() * self.rows * panel.vectors * lanes;
        let offsets: Vec<usize> = panels
            .iter()
            .scan(0, |sum, panel| {
                let offset = *sum;
                *sum += size(panel);
                Some(offset)
            })
            .collect();
        let total: usize = panels.iter().map(size).sum();

        // Chunks of image rows that stay in the second-level cache; blocks of chunks that are summed apart.
        let image_rows = self.n * positions.0;
        let reach = self.left.step * self.left.step * self.rows + self.columns;
        let pixels = (131_072 / reach.max(1)).max(64);
        let chunk = pixels.div_ceil(positions.1.max(1));
        let blocks = TASKS.div_ceil(panels.len()).min((PARTIAL / total.max(1)).max(1)).min(image_rows.div_ceil(chunk)).max(1);
        let over = |rows: Range<usize>, panel: Panel, sums: &mut [f32]| {
            let mut scratch = Scratch::default();
            let mut start = rows.start;
            while start < rows.end {
                let end = (start + chunk).min(rows.end);
                self.add(left, right, start..end, panel, sums, &mut scratch);
                start = end;
            }
        };
        let hand_out = |panel: Panel, sums: &[f32]| {
            for (i, sum) in sums.chunks_exact(panel.vectors * lanes).enumerate() {
                put(i / self.rows, i % self.rows, panel.first, &sum[..panel.width]);
            }
        };
        if blocks == 1 {
            panels.par_iter().for_each(|&panel| {
                let mut sums = vec![0.0; size(&panel)];
                over(0..image_rows, panel, &mut sums);
                hand_out(panel, &sums);
            });
            return;
        }
        let mut partial = vec![0.0; blocks * total];
        let shared = SharedMut::new(&mut partial);
        (0..blocks * panels.len()).into_par_iter().for_each(|task| {
            let (block, p) = (task / panels.len(), task % panels.len());
            // SAFETY: this is the part of this block and panel, which belong to this task alone.
            let sums = unsafe {
                let start = block * total + offsets[p];
                shared.slice(start..start + size(&panels[p]))
            };
            over(part(image_rows, blocks, block), panels[p], sums);
        });

        // Add the blocks in order, and hand out.
        panels.par_iter().zip(&offsets).for_each(|(&panel, &offset)| {
            let mut sums = partial[offset..offset + size(&panel)].to_vec();
            for block in 1..blocks {
                let other = &partial[block * total + offset..][..sums.len()];
                sums.iter_mut().zip(other).for_each(|(s, o)| *s += o);
            }
            hand_out(panel, &sums);
        });
    }

    /// Adds the products of some image rows to the sums of one panel.
    fn add(&self, left: &[f32], right: &[f32], rows: Range<usize>, panel: Panel, sums: &mut [f32], scratch: &mut Scratch) {
        let (positions, width) = (self.right.size, panel.vectors * TILE.lanes);
        let count = rows.len() * positions.1;
        scratch.right.clear();
        scratch.right.resize(count * width, 0.0);
        for (i, to) in scratch.right.chunks_exact_mut(width).enumerate() {
            let from = (rows.start * positions.1 + i) * self.right.channels + self.right.channel + panel.first;
            to[..panel.width].copy_from_slice(&right[from..from + panel.width]);
        }
        // Offsets count from the first image of the chunk, so that they fit 32 bits.
        let first_image = rows.start / positions.0;
        let image = self.left.size.0 * self.left.size.1 * self.left.channels;
        let base = first_image * image + self.left.channel;
        let tiles = self.rows.div_ceil(TILE.rows);
        for (t, tap) in self.taps.iter().enumerate() {
            scratch.places.clear();
            for (i, row) in rows.clone().enumerate() {
                let y = (row % positions.0 * self.left.step) as isize + tap.y;
                if y < 0 || y as usize >= self.left.size.0 {
                    continue;
                }
                let start = (row / positions.0 - first_image) * image + y as usize * self.left.size.1 * self.left.channels;
                for column in 0..positions.1 {
                    let x = (column * self.left.step) as isize + tap.x;
                    if x >= 0 && (x as usize) < self.left.size.1 {
                        let from = start + x as usize * self.left.channels;
                        scratch.places.push((from as u32, ((i * positions.1 + column) * width) as u32));
                    }
                }
            }
            for i in 0..tiles {
                let part = part(self.rows, tiles, i);
                let to = &mut sums[(t * self.rows + part.start) * width..][..part.len() * width];
                let tile = OuterTile {
                    rows: part.len(),
                    vectors: panel.vectors,
                    places: &scratch.places,
                    left: left[base + part.start..].as_ptr(),
                    right: scratch.right.as_ptr(),
                    out: to.as_mut_ptr(),
                };
                // SAFETY: every place is a pixel inside of the left image, whose `rows` floats from `channel` on exist (checked
                // in `run`), beside a whole row of the packed right operand; `to` is as large as the tile.
                unsafe { tile.run() };
            }
        }
    }
}

#[derive(Default)]
struct Scratch {
    right: Vec<f32>,
    places: Vec<(u32, u32)>,
}

/// Σ over the positions of left · right, element by element along the channels: the gradient of a depthwise convolution to
/// its weights, (taps, channels).
pub(crate) fn depthwise(plan: &Outer, left: &[f32], right: &[f32]) -> Vec<f32> {
    let (positions, channels, taps) = (plan.right.size, plan.rows, plan.taps.len());
    let image_rows = plan.n * positions.0;
    let chunk = (65_536 / (positions.1 * channels).max(1)).max(1).max(image_rows.div_ceil(TASKS));
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
