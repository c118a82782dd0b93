//! Small matrix products inside of one task, over rows that lie in the cache: what attention and the transformer block are
//! made of.

// Loops over the registers of a tile read better, and unroll, by index.
#![allow(clippy::needless_range_loop)]

use pulp::{Simd, WithSimd};

use super::panels::Panel;
use super::simd::{ARCH, TILE, load, store, store_part};

/// Floats across the vectors of some panels: what a row of all of them takes when written whole.
pub(crate) fn whole_width(panels: &[Panel]) -> usize {
    panels.iter().map(|p| p.vectors * TILE.lanes).sum()
}

/// `out[row] = start + left[row] · right` for `rows` rows.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub rows: usize,
    /// Length of a left row.
    pub depth: usize,
    /// First left row, and floats from one to the next.
    pub left: *const f32,
    pub left_stride: usize,
    /// The right operand, panel after panel, each of `depth` rows of whole vectors.
    pub right: *const f32,
    pub panels: &'a [Panel],
    /// What every row starts from, as wide as all panels' vectors, or null for zeros.
    pub start: *const f32,
    /// First row of the result, and floats from one to the next.
    pub out: *mut f32,
    pub out_stride: usize,
    /// Whether whole vectors are written, columns beyond the last included.
    pub whole: bool,
}

impl Product<'_> {
    /// Computes the product.
    ///
    /// # Safety
    /// Every pointer must be valid for what the fields say, the result's rows for writes of all columns (of all vectors, if
    /// `whole`), disjoint from all else.
    pub unsafe fn run(self) {
        ARCH.dispatch(self);
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The first tiles have a row more than the others.
        let tiles = self.rows.div_ceil(TILE.rows).max(1);
        let (height, higher) = (self.rows / tiles, self.rows % tiles);
        let mut panel_at = Tile { left: self.left, right: self.right, start: self.start, out: self.out, width: 0 };
        for panel in self.panels {
            let whole = panel.vectors * S::F32_LANES;
            let mut tile = Tile { width: if self.whole { whole } else { panel.width }, ..panel_at };
            for i in 0..tiles {
                let rows = height + usize::from(i < higher);
                macro_rules! pick {
                    ($n:literal: $($m:literal)*) => {
                        match rows {
                            // SAFETY: the caller of `run` vouches for the pointers.
                            $($m => unsafe { product_tile::<S, $m, $n>(simd, &self, tile) },)*
                            _ => {}
                        }
                    };
                }
                match panel.vectors {
                    1 => pick!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
                    _ => pick!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
                }
                tile.left = tile.left.wrapping_add(rows * self.left_stride);
                tile.out = tile.out.wrapping_add(rows * self.out_stride);
            }
            // The panels follow one another, in the operand as in `start` and in a row of the result.
            panel_at.right = panel_at.right.wrapping_add(self.depth * whole);
            panel_at.out = panel_at.out.wrapping_add(whole);
            if !panel_at.start.is_null() {
                panel_at.start = panel_at.start.wrapping_add(whole);
            }
        }
    }
}

/// Where a tile of a [`Product`] lies in its operands.
#[derive(Clone, Copy)]
struct Tile {
    left: *const f32,
    right: *const f32,
    start: *const f32,
    out: *mut f32,
    width: usize,
}

/// # Safety
/// As [`Product::run`], with `M` the tile's rows and `N` its vectors.
#[inline(always)]
unsafe fn product_tile<S: Simd, const M: usize, const N: usize>(simd: S, product: &Product<'_>, tile: Tile) {
    // SAFETY: `run` asks for valid pointers of these extents; `N` vectors make the full width.
    unsafe {
        let lanes = S::F32_LANES;
        let mut sum = [[simd.splat_f32s(0.0); N]; M];
        if !tile.start.is_null() {
            for j in 0..N {
                let start = load::<S>(tile.start.add(j * lanes));
                for row in &mut sum {
                    row[j] = start;
                }
            }
        }
        let rows: [*const f32; M] = std::array::from_fn(|i| tile.left.add(i * product.left_stride));
        let mut right = tile.right;
        for k in 0..product.depth {
            let columns: [S::f32s; N] = std::array::from_fn(|j| load::<S>(right.add(j * lanes)));
            right = right.add(N * lanes);
            for i in 0..M {
                let value = simd.splat_f32s(*rows[i].add(k));
                for j in 0..N {
                    sum[i][j] = simd.mul_add_e_f32s(value, columns[j], sum[i][j]);
                }
            }
        }
        put_tile::<S, M, N>(&sum, tile.out, product.out_stride, tile.width);
    }
}

/// Writes the first `width` floats of every row of a tile.
///
/// # Safety
/// `out` must be valid for writes of these rows, `stride` floats apart.
#[inline(always)]
unsafe fn put_tile<S: Simd, const M: usize, const N: usize>(sum: &[[S::f32s; N]; M], out: *mut f32, stride: usize, width: usize) {
    let lanes = S::F32_LANES;
    for i in 0..M {
        for j in 0..N {
            let from = (j * lanes).min(width);
            // SAFETY: as the caller says.
            unsafe {
                let out = out.add(i * stride + from);
                match width == N * lanes {
                    true => store::<S>(out, sum[i][j]),
                    false => store_part::<S>(out, sum[i][j], (width - from).min(lanes)),
                }
            }
        }
    }
}

/// A sum of outer products: `out[i][..width] = Σₖ left[k][i] · right[k][..width]`, or that added to `out`.
#[derive(Clone, Copy)]
pub(crate) struct SumTile {
    /// Rows of the tile, 1 to 12.
    pub rows: usize,
    /// Vectors across the tile, 1 or 2.
    pub vectors: usize,
    /// Floats of every row that are written.
    pub width: usize,
    /// Products in the sum.
    pub count: usize,
    /// `rows` floats at every k, and floats from one k to the next.
    pub left: *const f32,
    pub left_stride: usize,
    /// Whole vectors at every k, and floats from one k to the next.
    pub right: *const f32,
    pub right_stride: usize,
    /// The tile, and floats from one of its rows to the next.
    pub out: *mut f32,
    pub out_stride: usize,
    /// Whether the tile's old values are added to; `width` must be whole vectors then.
    pub add: bool,
}

impl SumTile {
    /// Computes the tile.
    ///
    /// # Safety
    /// Every pointer must be valid for what the fields say, `out` for writes of `width` floats in every row.
    pub unsafe fn run(self) {
        struct Op(SumTile);
        impl WithSimd for Op {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                macro_rules! pick {
                    ($n:literal: $($m:literal)*) => {
                        match self.0.rows {
                            // SAFETY: the caller of `run` vouches for the pointers.
                            $($m => unsafe { sum_tile::<S, $m, $n>(simd, self.0) },)*
                            _ => unreachable!("a tile has 1 to 12 rows"),
                        }
                    };
                }
                match self.0.vectors {
                    1 => pick!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
                    _ => pick!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
                }
            }
        }
        ARCH.dispatch(Op(self));
    }
}

/// # Safety
/// As [`SumTile::run`], with `M` its rows and `N` its vectors.
#[inline(always)]
unsafe fn sum_tile<S: Simd, const M: usize, const N: usize>(simd: S, tile: SumTile) {
    // SAFETY: `run` asks for valid pointers of these extents.
    unsafe {
        let lanes = S::F32_LANES;
        let mut sum = [[simd.splat_f32s(0.0); N]; M];
        if tile.add {
            debug_assert_eq!(tile.width, N * lanes);
            for i in 0..M {
                for j in 0..N {
                    sum[i][j] = load::<S>(tile.out.add(i * tile.out_stride + j * lanes));
                }
            }
        }
        let (mut left, mut right) = (tile.left, tile.right);
        for _ in 0..tile.count {
            let columns: [S::f32s; N] = std::array::from_fn(|j| load::<S>(right.add(j * lanes)));
            for i in 0..M {
                let value = simd.splat_f32s(*left.add(i));
                for j in 0..N {
                    sum[i][j] = simd.mul_add_e_f32s(value, columns[j], sum[i][j]);
                }
            }
            left = left.wrapping_add(tile.left_stride);
            right = right.wrapping_add(tile.right_stride);
        }
        put_tile::<S, M, N>(&sum, tile.out, tile.out_stride, tile.width);
    }
}

/// Packs rows as a right operand: panel after panel, each of `rows` rows of whole vectors, columns beyond the last zero.
/// `to` must hold `rows` · [`whole_width`] floats.
pub(crate) fn pack_rows(source: &[f32], stride: usize, rows: usize, panels: &[Panel], to: &mut [f32]) {
    let Some(last) = panels.last() else { return };
    let columns = last.first + last.width;
    assert!(rows == 0 || source.len() >= (rows - 1) * stride + columns, "the rows must fit");
    assert!(to.len() >= rows * whole_width(panels), "the packed operand must fit");
    ARCH.dispatch(PackRows { source, stride, rows, panels, to });
}

struct PackRows<'a> {
    source: &'a [f32],
    stride: usize,
    rows: usize,
    panels: &'a [Panel],
    to: &'a mut [f32],
}

impl WithSimd for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let lanes = S::F32_LANES;
        let mut at = 0;
        for panel in self.panels {
            let width = panel.vectors * lanes;
            for row in 0..self.rows {
                let from = row * self.stride + panel.first;
                if panel.width == width {
                    for j in 0..panel.vectors {
                        // SAFETY: `pack_rows` checked that the panel's columns of all rows and the packed rows exist.
                        unsafe {
                            let vector = load::<S>(self.source.as_ptr().add(from + j * lanes));
                            store::<S>(self.to.as_mut_ptr().add(at + j * lanes), vector);
                        }
                    }
                } else {
                    let to = &mut self.to[at..at + width];
                    to[..panel.width].copy_from_slice(&self.source[from..from + panel.width]);
                    to[panel.width..].fill(0.0);
                }
                at += width;
            }
        }
    }
}

/// Packs the transpose of rows as a right operand: its columns are the `columns` rows of `source`, `depth` long each.
/// `to` must hold `depth` · [`whole_width`] floats.
pub(crate) fn pack_transposed(source: &[f32], stride: usize, depth: usize, panels: &[Panel], to: &mut [f32]) {
    let Some(last) = panels.last() else { return };
    let columns = last.first + last.width;
    assert!(depth == 0 || source.len() >= (columns - 1) * stride + depth, "the rows must fit");
    assert!(to.len() >= depth * whole_width(panels), "the packed operand must fit");
    let mut to = to;
    for panel in panels {
        let width = panel.vectors * TILE.lanes;
        let (now, rest) = to.split_at_mut(depth * width);
        to = rest;
        if panel.width < width {
            now.fill(0.0);
        }
        for column in 0..panel.width {
            let from = &source[(panel.first + column) * stride..][..depth];
            for (to, from) in now.chunks_exact_mut(width).zip(from) {
                to[column] = *from;
            }
        }
    }
}
