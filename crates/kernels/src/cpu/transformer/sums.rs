//! Sums of outer products over the rows of a group: gradients to weights.
//!
//! The wider operand belongs on the right, which is cheaper to copy. Both operands are first copied into the order that the tiles read them in, strips as high as a tile on the left and
//! panels on the right: rows as they lie in memory are powers of two apart, or nearly, which fills few sets of the
//! first-level cache.

use rayon::prelude::*;

use crate::cpu::dense::{SumTile, pack_rows, whole_width};
use crate::cpu::memory::{SharedMut, part};
use crate::cpu::panels::{Panel, cut};
use crate::cpu::simd::{MAX_ROWS, TILE};

/// The shape of a sum: left columns × right columns, kept tile by tile.
pub(super) struct Sums {
    rows: usize,
    columns: usize,
    panels: Vec<Panel>,
}

/// Packed operands.
#[derive(Default)]
pub(super) struct Scratch {
    left: Vec<f32>,
    right: Vec<f32>,
}

impl Sums {
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns, panels: cut(columns) }
    }

    /// Floats of the sum.
    pub fn len(&self) -> usize {
        self.rows * whole_width(&self.panels)
    }

    /// sums = leftᵀ · right over `count` rows, or that added to the sums if `add`.
    ///
    /// # Safety
    /// `sums` must be valid for all floats of the sum, initialised if `add`, and nothing else may use them meanwhile.
    pub unsafe fn run(&self, left: &[f32], right: &[f32], count: usize, sums: SharedMut, add: bool, scratch: &mut Scratch) {
        assert!(left.len() == count * self.rows && right.len() == count * self.columns, "the operands must fit");
        let strips = self.rows.div_ceil(TILE.rows);
        scratch.left.resize(scratch.left.len().max(left.len()), 0.0);
        let needed = count * whole_width(&self.panels);
        scratch.right.resize(scratch.right.len().max(needed), 0.0);
        for i in 0..strips {
            let strip = part(self.rows, strips, i);
            pack_strip(
                left,
                self.rows,
                strip.start,
                strip.len(),
                &mut scratch.left[count * strip.start..][..count * strip.len()],
            );
        }
        pack_rows(right, self.columns, count, &self.panels, &mut scratch.right);
        let (mut from, mut to) = (0, 0);
        for panel in &self.panels {
            let width = panel.vectors * TILE.lanes;
            for i in 0..strips {
                let strip = part(self.rows, strips, i);
                // SAFETY: the strip holds `count` times its rows, the panel `count` rows, the sums this tile.
                unsafe {
                    SumTile {
                        rows: strip.len(),
                        vectors: panel.vectors,
                        width,
                        count,
                        left: scratch.left[count * strip.start..].as_ptr(),
                        left_stride: strip.len(),
                        right: scratch.right[from..].as_ptr(),
                        right_stride: width,
                        out: sums.at(to),
                        out_stride: width,
                        add,
                    }
                    .run();
                }
                to += strip.len() * width;
            }
            from += count * width;
        }
    }

    /// Copies the sum to `to`, row after row, or column after column.
    pub fn hand_out(&self, sums: &[f32], transposed: bool, to: &mut [f32]) {
        assert_eq!(to.len(), self.rows * self.columns, "the result must fit");
        let to = SharedMut::new(to);
        self.panels.par_iter().for_each(|panel| {
            let width = panel.vectors * TILE.lanes;
            let sums = &sums[self.rows * panel.first..][..self.rows * width];
            for column in 0..if transposed { panel.width } else { 0 } {
                let start = (panel.first + column) * self.rows;
                // SAFETY: the panels have columns of their own.
                let to = unsafe { to.slice(start..start + self.rows) };
                to.iter_mut().zip(sums.chunks_exact(width)).for_each(|(to, sums)| *to = sums[column]);
            }
            for (row, sums) in sums.chunks_exact(width).enumerate().take(if transposed { 0 } else { self.rows }) {
                let start = row * self.columns + panel.first;
                // SAFETY: as above.
                unsafe { to.slice(start..start + panel.width) }.copy_from_slice(&sums[..panel.width]);
            }
        });
    }
}

/// Copies `height` columns from `first` on of all rows.
fn pack_strip(source: &[f32], stride: usize, first: usize, height: usize, to: &mut [f32]) {
    if height == MAX_ROWS {
        let (to, _) = to.as_chunks_mut::<MAX_ROWS>();
        for (to, row) in to.iter_mut().zip(source.chunks_exact(stride)) {
            to.copy_from_slice(&row[first..first + MAX_ROWS]);
        }
    } else {
        for (to, row) in to.chunks_exact_mut(height).zip(source.chunks_exact(stride)) {
            to.copy_from_slice(&row[first..first + height]);
        }
    }
}
