//! Products whose left rows are gathered from an image: convolution forward, its gradient to the input, and plain
//! matrix products (an image of one pixel).
//!
//! No patches are copied: a table of pointers says where the row under every tap of every output pixel lies (the indirect
//! convolution of Dukhan 2019), and rows outside of the image point to zeros.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::memory::{SharedMut, part};
use super::panels::Packed;
use super::simd::{ARCH, GatherTile, MAX_ROWS, TILE, load, store};

/// One tap: where it lies from the source position of an output, and which block of weights it multiplies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tap {
    pub y: isize,
    pub x: isize,
    pub block: u32,
}

/// A grid of positions in a batch of channels-last images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Height and width of the images.
    pub size: (usize, usize),
    /// First row and column of the grid.
    pub first: (usize, usize),
    /// Step between positions of the grid.
    pub step: usize,
    /// Floats of a pixel.
    pub channels: usize,
    /// First channel that is read or written.
    pub channel: usize,
}

/// Which outputs to compute from which inputs: output (i, j) of the grid `target` sums over the taps at source position
/// (i · `source.step` + y, j · `source.step` + x).
#[derive(Debug, Clone)]
pub(crate) struct Gather {
    /// Images.
    pub n: usize,
    /// Rows and columns of the grid of outputs.
    pub positions: (usize, usize),
    /// What is read; its `first` has no meaning.
    pub source: Grid,
    /// What is written.
    pub target: Grid,
    /// Floats that are read under every tap.
    pub depth: usize,
    pub taps: Vec<Tap>,
}

/// What the gathered rows are multiplied with.
pub(crate) enum Weights<'a> {
    /// A matrix of `depth` × columns for every block; every output starts from `start` (as wide as all panels) if given.
    Dense { packed: &'a Packed, start: Option<&'a [f32]> },
    /// A vector of `depth` for every block, multiplied element by element.
    Depthwise(&'a [f32]),
}

/// Pixels whose pointers are held at a time.
const CHUNK: usize = 504;
/// Tasks that a product is cut into at least, where its size allows.
const TASKS: usize = 64;

impl Gather {
    /// Writes every output of the grid, all channels from `target.channel` on that `weights` give.
    ///
    /// # Safety
    /// `target` must point to a buffer of `n` images of the target's size, and nothing else may use those places meanwhile.
    pub unsafe fn run(&self, source: &[f32], weights: &Weights<'_>, target: SharedMut) {
        let total = self.n * self.positions.0 * self.positions.1;
        if total == 0 {
            return;
        }
        assert!(source.len() >= self.n * self.source.size.0 * self.source.size.1 * self.source.channels);
        // A row that is longer than its pixel goes on in the pixels after it.
        let reach = self.depth.saturating_sub(self.source.channels - self.source.channel).div_ceil(self.source.channels.max(1));
        let last = (self.positions.1 - 1) * self.source.step;
        assert!(self.taps.iter().all(|t| reach == 0 || (last as isize + t.x) as usize + reach < self.source.size.1));
        let zeros = vec![0.0; self.depth];
        let taps: Vec<u32> = self.taps.iter().map(|t| t.block).collect();
        let panels = match weights {
            Weights::Dense { packed, .. } => packed.panels.len(),
            Weights::Depthwise(_) => 1,
        };
        // Blocks of pixels whose inputs stay in the second-level cache while all the panels pass over them.
        let size = (131_072 / self.source.channels.max(1)).clamp(96, 2016) / 12 * 12;
        let pixel_blocks = total.div_ceil(size);
        let panel_blocks = TASKS.div_ceil(pixel_blocks).min(panels);
        (0..pixel_blocks * panel_blocks).into_par_iter().for_each(|task| {
            let pixels = part(total, pixel_blocks, task / panel_blocks);
            let panels = part(panels, panel_blocks, task % panel_blocks);
            let mut table = Table::default();
            let mut start = pixels.start;
            while start < pixels.end {
                let count = (pixels.end - start).min(CHUNK);
                table.fill(self, source, &zeros, target, start, count);
                match weights {
                    Weights::Dense { packed, start: initial } => {
                        for p in panels.clone() {
                            let panel = packed.panels[p];
                            table.tiles(self.taps.len(), |rows, left, out| {
                                let mut shifted = [std::ptr::null_mut(); MAX_ROWS];
                                // SAFETY: the panel's columns are channels of the pixels that `out` points at.
                                shifted.iter_mut().zip(out).for_each(|(s, o)| *s = unsafe { o.add(panel.first) });
                                let tile = GatherTile {
                                    rows,
                                    vectors: panel.vectors,
                                    width: panel.width,
                                    depth: self.depth,
                                    left,
                                    taps: &taps,
                                    right: packed.panel(p).as_ptr(),
                                    // SAFETY: `start` is as wide as all panels.
                                    start: initial.map_or(std::ptr::null(), |s| unsafe { s.as_ptr().add(panel.first) }),
                                    out: &shifted[..rows],
                                };
                                // SAFETY: `Table::fill` made `left` point at `depth` floats of the source or of `zeros`; a
                                // panel holds every block named by a tap; the outputs are this task's alone.
                                unsafe { tile.run() };
                            });
                        }
                    }
                    Weights::Depthwise(weights) => {
                        table.tiles(self.taps.len(), |rows, left, out| {
                            let tile = Depthwise { rows, left, taps: &taps, weights, depth: self.depth, out };
                            // SAFETY: as above, with `depth` floats of output and of weights.
                            unsafe { tile.run() };
                        });
                    }
                }
                start += count;
            }
        });
    }
}

/// The pointers of some pixels.
#[derive(Default)]
struct Table {
    /// Tile by tile, tap by tap, row by row.
    left: Vec<*const f32>,
    out: Vec<*mut f32>,
    place: Vec<(usize, isize, isize)>,
    rows: Vec<usize>,
}

impl Table {
    /// Points at the inputs and outputs of `count` pixels from `start` on.
    fn fill(&mut self, plan: &Gather, source: &[f32], zeros: &[f32], target: SharedMut, start: usize, count: usize) {
        let (rows, columns) = plan.positions;
        let (height, width) = plan.source.size;
        let (mut image, rest) = (start / (rows * columns), start % (rows * columns));
        let (mut row, mut column) = (rest / columns, rest % columns);
        self.place.clear();
        self.out.clear();
        for _ in 0..count {
            let step = plan.source.step;
            self.place.push((image * height * width, (row * step) as isize, (column * step) as isize));
            let t = &plan.target;
            let (y, x) = (t.first.0 + row * t.step, t.first.1 + column * t.step);
            debug_assert!(y < t.size.0 && x < t.size.1);
            // SAFETY: (image, y, x) is a pixel of the target, whose buffer holds `n` images.
            self.out.push(unsafe { target.at(((image * t.size.0 + y) * t.size.1 + x) * t.channels + t.channel) });
            column += 1;
            if column == columns {
                (row, column) = (row + 1, 0);
                if row == rows {
                    (image, row) = (image + 1, 0);
                }
            }
        }
        let tiles = count.div_ceil(TILE.rows);
        self.rows.clear();
        self.rows.extend((0..tiles).map(|i| part(count, tiles, i).len()));
        self.left.clear();
        self.left.reserve(count * plan.taps.len());
        let mut first = 0;
        for &rows in &self.rows {
            for tap in &plan.taps {
                self.left.extend(self.place[first..first + rows].iter().map(|&(base, y, x)| {
                    let (y, x) = (y + tap.y, x + tap.x);
                    if (y as usize) < height && (x as usize) < width {
                        let offset = (base + y as usize * width + x as usize) * plan.source.channels + plan.source.channel;
                        debug_assert!(offset + plan.depth <= source.len());
                        // SAFETY: (y, x) is inside of the image, and `run` checked that the source holds all images.
                        unsafe { source.as_ptr().add(offset) }
                    } else {
                        zeros.as_ptr()
                    }
                }));
            }
            first += rows;
        }
    }

    /// Calls `tile` with the number of rows, the input and the output pointers of every tile.
    fn tiles(&self, taps: usize, mut tile: impl FnMut(usize, &[*const f32], &[*mut f32])) {
        let (mut left, mut out) = (0, 0);
        for &rows in &self.rows {
            tile(rows, &self.left[left..left + rows * taps], &self.out[out..out + rows]);
            left += rows * taps;
            out += rows;
        }
    }
}

/// `out[i][c] = Σₜ left[t · rows + i][c] · weights[taps[t]][c]`.
struct Depthwise<'a> {
    rows: usize,
    left: &'a [*const f32],
    taps: &'a [u32],
    weights: &'a [f32],
    depth: usize,
    out: &'a [*mut f32],
}

impl Depthwise<'_> {
    /// # Safety
    /// Every pointer must be valid for `depth` floats, those of `out` for writes; `weights` must hold every block.
    unsafe fn run(self) {
        ARCH.dispatch(self);
    }
}

impl WithSimd for Depthwise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, left, taps, weights, depth, out } = self;
        let whole = depth / S::F32_LANES * S::F32_LANES;
        for (i, &out) in out.iter().enumerate() {
            for c in (0..whole).step_by(S::F32_LANES) {
                let mut sum = simd.splat_f32s(0.0);
                for (t, &tap) in taps.iter().enumerate() {
                    // SAFETY: the caller of `run` vouches for `left`; the slice is of one vector.
                    let (a, w) = unsafe {
                        let w = &weights[tap as usize * depth + c..][..S::F32_LANES];
                        (load::<S>(left[t * rows + i].add(c)), load::<S>(w.as_ptr()))
                    };
                    sum = simd.mul_add_e_f32s(a, w, sum);
                }
                // SAFETY: the caller of `run` vouches for `out`.
                unsafe { store::<S>(out.add(c), sum) };
            }
            for c in whole..depth {
                let term = |(t, &tap): (usize, &u32)| {
                    // SAFETY: the caller of `run` vouches for `left`.
                    weights[tap as usize * depth + c] * unsafe { *left[t * rows + i].add(c) }
                };
                // SAFETY: the caller of `run` vouches for `out`.
                unsafe { *out.add(c) = taps.iter().enumerate().map(term).sum() };
            }
        }
    }
}
