//! How kernels over rows and columns cut their work: tiles of columns, chunks of rows.

use candle_core::{DType, Result};

use super::launch::{Arg, THREADS, int, kernel_of};

/// Rows of `c` channels, in `groups` of `rows` each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub c: usize,
    pub rows: usize,
    pub groups: usize,
}

/// How a kernel cuts the rows: see `prelude.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Neighbouring channels that a thread takes at once.
    pub width: usize,
    /// Threads side by side along the channels.
    pub lanes: usize,
    /// Rows of a chunk.
    pub chunk: usize,
    /// Chunks of a group.
    pub chunks: usize,
    /// Blocks side by side along the channels.
    pub tiles: usize,
}

/// Blocks that fill a large device several times over.
const BLOCKS: usize = 132 * 8;

impl Sizes {
    /// All elements.
    pub fn len(&self) -> usize {
        self.c * self.rows * self.groups
    }

    /// How they are cut; packs of neighbouring channels only where all tensors are `aligned` for them.
    pub fn tiling(&self, aligned: bool) -> Tiling {
        let width = if aligned && self.c.is_multiple_of(4) { 4 } else { 1 };
        let packs = self.c / width;
        let lanes = packs.next_power_of_two().clamp(1, 64);
        let (tiles, subs) = (packs.div_ceil(lanes), THREADS as usize / lanes);
        let wanted = (BLOCKS / (tiles * self.groups).max(1)).max(1);
        let chunk = self.rows.div_ceil(wanted).max(8 * subs);
        Tiling { width, lanes, chunk, chunks: self.rows.div_ceil(chunk), tiles }
    }
}

impl Tiling {
    /// The kernel `base` for the element type and the width.
    pub fn kernel(&self, base: &str, kind: DType) -> Result<String> {
        Ok(format!("{}_v{}", kernel_of(base, kind)?, self.width))
    }

    /// The grid of a kernel that follows the tiling.
    pub fn grid(&self, sizes: Sizes) -> [u32; 3] {
        [self.tiles as u32, self.chunks as u32, sizes.groups as u32]
    }

    /// The arguments c, rows, chunk and lanes.
    pub fn args<'a, B>(&self, sizes: Sizes) -> Result<[Arg<'a, B>; 4]> {
        let c = int("the number of channels", sizes.c)?;
        Ok([Arg::Int(c), Arg::Long(sizes.rows as i64), Arg::Long(self.chunk as i64), Arg::Int(self.lanes as i32)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_and_chunks_cover_everything_and_fit_a_grid() {
        for c in [1, 3, 4, 63, 64, 100, 512, 2048, 65_536] {
            for rows in [0, 1, 31, 1000, 3_211_264] {
                for groups in [1, 2, 64] {
                    for aligned in [false, true] {
                        let sizes = Sizes { c, rows, groups };
                        let t = sizes.tiling(aligned);
                        assert!(t.lanes.is_power_of_two() && t.lanes <= THREADS as usize, "{sizes:?} {t:?}");
                        assert!(t.tiles * t.lanes * t.width >= c && t.chunks * t.chunk >= rows, "{sizes:?} {t:?}");
                        assert!(rows == 0 || (t.chunks - 1) * t.chunk < rows, "every chunk has a row: {sizes:?} {t:?}");
                        assert!(t.chunks <= 65_535 && c.is_multiple_of(t.width), "{sizes:?} {t:?}");
                    }
                }
            }
        }
    }
}
