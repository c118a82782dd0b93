//! Small matrix products inside of one task, for attention, whose heads are the tasks.

use super::memory::part;
use super::panels::{Panel, cut};
use super::simd::{GatherTile, MAX_ROWS, OuterTile, TILE};

/// A matrix in some larger buffer: element (row, column) lies at `start + row · stride + column`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub start: usize,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl View<'_> {
    /// Whether every element is inside of the buffer.
    fn fits(&self) -> bool {
        self.rows == 0 || self.columns == 0 || self.start + (self.rows - 1) * self.stride + self.columns <= self.data.len()
    }
}

/// Scratch that products reuse.
#[derive(Default)]
pub(crate) struct Scratch {
    packed: Vec<f32>,
    tile: Vec<f32>,
    places: Vec<(u32, u32)>,
}

/// Packs a right operand, `depth` × `columns`, panel after panel.
fn pack(to: &mut Vec<f32>, depth: usize, panels: &[Panel], at: impl Fn(usize, usize) -> f32) {
    to.clear();
    for panel in panels {
        let width = panel.vectors * TILE.lanes;
        for k in 0..depth {
            to.extend((0..panel.width).map(|j| at(k, panel.first + j)));
            to.resize(to.len() + width - panel.width, 0.0);
        }
    }
}

/// Writes left · right (or left · rightᵀ) to the buffer at `out.0 + row · out.1`.
pub(crate) fn product(
    left: View<'_>,
    right: View<'_>,
    transposed: bool,
    out: &mut [f32],
    at: (usize, usize),
    scratch: &mut Scratch,
) {
    let (depth, columns) = if transposed { (right.columns, right.rows) } else { (right.rows, right.columns) };
    assert!(left.fits() && right.fits() && left.columns == depth, "the operands must fit together");
    if left.rows == 0 || columns == 0 {
        return;
    }
    assert!(at.1 >= columns && at.0 + (left.rows - 1) * at.1 + columns <= out.len(), "the result must fit");
    let panels = cut(columns);
    match transposed {
        true => pack(&mut scratch.packed, depth, &panels, |k, j| right.data[right.start + j * right.stride + k]),
        false => pack(&mut scratch.packed, depth, &panels, |k, j| right.data[right.start + k * right.stride + j]),
    }
    let mut offset = 0;
    for panel in &panels {
        let tiles = left.rows.div_ceil(TILE.rows);
        for i in 0..tiles {
            let rows = part(left.rows, tiles, i);
            let mut pointers = [std::ptr::null(); MAX_ROWS];
            let mut outs = [std::ptr::null_mut(); MAX_ROWS];
            for (j, row) in rows.clone().enumerate() {
                pointers[j] = left.data[left.start + row * left.stride..].as_ptr();
                outs[j] = out[at.0 + row * at.1 + panel.first..].as_mut_ptr();
            }
            let tile = GatherTile {
                rows: rows.len(),
                vectors: panel.vectors,
                width: panel.width,
                depth,
                left: &pointers[..rows.len()],
                taps: &[0],
                right: scratch.packed[offset..].as_ptr(),
                start: std::ptr::null(),
                out: &outs[..rows.len()],
            };
            // SAFETY: the rows and the result were checked to fit above, and the panel was packed to its full width.
            unsafe { tile.run() };
        }
        offset += depth * panel.vectors * TILE.lanes;
    }
}

/// Writes leftᵀ · right to the buffer at `out.0 + row · out.1`.
pub(crate) fn transposed_product(left: View<'_>, right: View<'_>, out: &mut [f32], at: (usize, usize), scratch: &mut Scratch) {
    assert!(left.fits() && right.fits() && left.rows == right.rows, "the operands must fit together");
    if left.columns == 0 || right.columns == 0 {
        return;
    }
    assert!(at.1 >= right.columns && at.0 + (left.columns - 1) * at.1 + right.columns <= out.len(), "the result must fit");
    let panels = cut(right.columns);
    pack(&mut scratch.packed, right.rows, &panels, |k, j| right.data[right.start + k * right.stride + j]);
    let mut offset = 0;
    for panel in &panels {
        let width = panel.vectors * TILE.lanes;
        scratch.places.clear();
        scratch.places.extend((0..left.rows).map(|k| ((k * left.stride) as u32, (k * width) as u32)));
        let tiles = left.columns.div_ceil(TILE.rows);
        for i in 0..tiles {
            let rows = part(left.columns, tiles, i);
            scratch.tile.clear();
            scratch.tile.resize(rows.len() * width, 0.0);
            let tile = OuterTile {
                rows: rows.len(),
                vectors: panel.vectors,
                places: &scratch.places,
                left: left.data[(left.start + rows.start).min(left.data.len())..].as_ptr(),
                right: scratch.packed[offset..].as_ptr(),
                out: scratch.tile.as_mut_ptr(),
            };
            // SAFETY: every place is the start of a row that was checked to fit, and the panel was packed to its full width.
            unsafe { tile.run() };
            for (j, row) in rows.enumerate() {
                let to = at.0 + row * at.1 + panel.first;
                out[to..to + panel.width].copy_from_slice(&scratch.tile[j * width..j * width + panel.width]);
            }
        }
        offset += right.rows * width;
    }
}
