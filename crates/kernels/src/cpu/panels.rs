//! Right operands of the tiled products, repacked so that a tile reads them front to back.

use rayon::prelude::*;

use super::memory::{SharedMut, Uninit};
use super::simd::{TILE, VECTORS};

/// One panel: some neighbouring columns of the operand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel {
    /// First column.
    pub first: usize,
    /// Number of columns.
    pub width: usize,
    /// Vectors that hold them.
    pub vectors: usize,
}

/// How `columns` are cut into panels: full ones, and a last one of one or two vectors.
pub(crate) fn cut(columns: usize) -> Vec<Panel> {
    let tile = *TILE;
    (0..columns.div_ceil(tile.width()))
        .map(|i| {
            let first = i * tile.width();
            let width = (columns - first).min(tile.width());
            Panel { first, width, vectors: if width > tile.lanes { VECTORS } else { 1 } }
        })
        .collect()
}

/// Where element (block, row, column) of an operand lies in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strides {
    pub start: usize,
    pub block: usize,
    pub row: usize,
    pub column: usize,
}

/// An operand of `blocks` × `rows` × columns, by panels: each holds, for every block, its rows of whole vectors; columns
/// beyond the last are zeros.
pub(crate) struct Packed {
    data: Vec<f32>,
    /// The panels, in order.
    pub panels: Vec<Panel>,
    offsets: Vec<usize>,
}

impl Packed {
    /// Packs the operand whose elements lie in `source` at `strides`.
    pub fn new(source: &[f32], strides: Strides, blocks: usize, rows: usize, columns: usize) -> Self {
        Self::from_panels(blocks, rows, columns, |panel, to| pack_panel(source, strides, blocks, rows, panel, to))
    }

    /// Packs an operand panel by panel: `fill` must write every float of the panel that it gets a pointer to, columns beyond
    /// the last included.
    pub fn from_panels(blocks: usize, rows: usize, columns: usize, fill: impl Fn(Panel, SharedMut) + Sync) -> Self {
        let panels = cut(columns);
        let mut offsets = Vec::with_capacity(panels.len());
        let mut len = 0;
        for panel in &panels {
            offsets.push(len);
            len += blocks * rows * panel.vectors * TILE.lanes;
        }
        let mut data = Uninit::new(len);
        let shared = data.shared();
        panels.par_iter().zip(&offsets).for_each(|(panel, &offset)| {
            // SAFETY: the offset is inside of the buffer.
            fill(*panel, unsafe { shared.from(offset) });
        });
        // SAFETY: `fill` writes every float of its panel, and the panels make up the buffer.
        Self { data: unsafe { data.finish() }, panels, offsets }
    }

    /// The first panel's first float; the other panels follow.
    pub fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }

    /// Panel `i`.
    pub fn panel(&self, i: usize) -> &[f32] {
        let end = self.offsets.get(i + 1).copied().unwrap_or(self.data.len());
        &self.data[self.offsets[i]..end]
    }
}

/// Writes every float of one panel.
fn pack_panel(source: &[f32], strides: Strides, blocks: usize, rows: usize, panel: Panel, to: SharedMut) {
    let stride = panel.vectors * TILE.lanes;
    let put = |b: usize, r: usize, column: usize, value: f32| {
        // SAFETY: block, row and column are inside of this panel, which is this call's own part of the buffer.
        unsafe { *to.at((b * rows + r) * stride + column) = value };
    };
    let from = |b: usize, r: usize, column: usize| {
        source[strides.start + b * strides.block + r * strides.row + (panel.first + column) * strides.column]
    };
    if strides.column <= strides.row {
        for b in 0..blocks {
            for r in 0..rows {
                (0..panel.width).for_each(|column| put(b, r, column, from(b, r, column)));
            }
        }
    } else {
        // A few rows at a time, so that the lines written stay in the first-level cache until all columns are in.
        for first in (0..rows).step_by(16) {
            for column in 0..panel.width {
                for r in first..(first + 16).min(rows) {
                    (0..blocks).for_each(|b| put(b, r, column, from(b, r, column)));
                }
            }
        }
    }
    if panel.width < stride {
        for row in 0..blocks * rows {
            (panel.width..stride).for_each(|column| put(0, row, column, 0.0));
        }
    }
}
