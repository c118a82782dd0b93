//! Choosing the instruction set at run time, and the register-tiled products that everything heavy is built from.

// Loops over the registers of a tile read better, and unroll, by index.
#![allow(clippy::needless_range_loop)]

use std::sync::LazyLock;

use pulp::{Arch, Simd, WithSimd};

/// The instruction set, detected once; the environment variable `TWINSIGHT_SIMD` asks for a narrower one: `scalar` or `avx2`.
pub(crate) static ARCH: LazyLock<Arch> = LazyLock::new(|| match std::env::var("TWINSIGHT_SIMD").as_deref() {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    Ok("avx2") => pulp::x86::V3::try_new().map_or_else(Arch::new, Arch::V3),
    Ok("scalar") => Arch::Scalar,
    Ok(other) if !other.is_empty() => {
        eprintln!("TWINSIGHT_SIMD is `{other}`, expected `scalar` or `avx2` (on x86): the widest instruction set is used");
        Arch::new()
    }
    _ => Arch::new(),
});

/// The instruction set that the kernels use on this machine: `avx512`, `avx2`, `neon` or `scalar`.
pub fn instruction_set() -> &'static str {
    match (TILE.lanes, cfg!(target_arch = "aarch64")) {
        (1, _) => "scalar",
        (4, true) => "neon",
        (16, _) => "avx512",
        (8, _) => "avx2",
        _ => "unknown",
    }
}

/// Number of vectors across a full tile: tiles are [`MAX_ROWS`] rows by `VECTORS` vectors.
pub(crate) const VECTORS: usize = 2;
/// Largest number of rows of a tile on machines with 32 vector registers.
pub(crate) const MAX_ROWS: usize = 12;

/// Sizes of a full tile on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TileSize {
    /// Floats in one vector.
    pub lanes: usize,
    /// Rows of a full tile.
    pub rows: usize,
}

impl TileSize {
    /// Floats across a full tile.
    pub fn width(self) -> usize {
        self.lanes * VECTORS
    }
}

/// The tile for this machine's registers.
pub(crate) static TILE: LazyLock<TileSize> = LazyLock::new(|| {
    struct Query;
    impl WithSimd for Query {
        type Output = TileSize;
        fn with_simd<S: Simd>(self, _: S) -> TileSize {
            TileSize { lanes: S::F32_LANES, rows: if S::REGISTER_COUNT >= 32 { MAX_ROWS } else { 6 } }
        }
    }
    ARCH.dispatch(Query)
});

/// One tile of a sum of products whose left rows lie anywhere:
/// `out[i][..width] = start[..width] + Σₜ Σₖ left[t · rows + i][k] · right[panel[t]][k][..]`.
#[derive(Clone, Copy)]
pub(crate) struct GatherTile<'a> {
    /// Rows of the tile, 1 to [`MAX_ROWS`].
    pub rows: usize,
    /// Vectors across the tile, 1 or [`VECTORS`].
    pub vectors: usize,
    /// Floats of every row that are written, at most `vectors` · lanes.
    pub width: usize,
    /// Length of every left row.
    pub depth: usize,
    /// Row pointers, `rows` for every tap.
    pub left: &'a [*const f32],
    /// For every tap, which block of `right` it multiplies.
    pub taps: &'a [u32],
    /// Blocks of `depth` × (`vectors` · lanes) floats.
    pub right: *const f32,
    /// What every row starts from: `vectors` · lanes floats, or null for zeros.
    pub start: *const f32,
    /// Where each of the rows goes.
    pub out: &'a [*mut f32],
}

impl GatherTile<'_> {
    /// Computes the tile.
    ///
    /// # Safety
    /// Every pointer must be valid for what the fields say: `left` for reads of `depth`, `right` for reads of every named
    /// block, `start` for reads of a full width unless null, `out` for writes of `width` and disjoint from all else.
    pub unsafe fn run(self) {
        debug_assert!(self.rows >= 1 && self.left.len() >= self.rows * self.taps.len() && self.out.len() >= self.rows);
        struct Op<'a>(GatherTile<'a>);
        impl WithSimd for Op<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                debug_assert!(self.0.width <= self.0.vectors * S::F32_LANES);
                macro_rules! pick {
                    ($n:literal: $($m:literal)*) => {
                        match self.0.rows {
                            // SAFETY: the caller of `run` vouches for the pointers.
                            $($m => unsafe { gather::<S, $m, $n>(simd, self.0) },)*
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
/// As [`GatherTile::run`], with `M` its rows and `N` its vectors.
#[inline(always)]
unsafe fn gather<S: Simd, const M: usize, const N: usize>(simd: S, tile: GatherTile<'_>) {
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
        for &out in &tile.out[..M] {
            (0..N).for_each(|j| prefetch(out.wrapping_add(j * lanes)));
        }
        let mut left = tile.left.as_ptr();
        for &tap in tile.taps {
            let rows: [*const f32; M] = std::array::from_fn(|i| *left.add(i));
            left = left.add(M);
            let mut right = tile.right.add(tap as usize * tile.depth * N * lanes);
            for k in 0..tile.depth {
                let columns: [S::f32s; N] = std::array::from_fn(|j| load::<S>(right.add(j * lanes)));
                right = right.add(N * lanes);
                for i in 0..M {
                    let value = simd.splat_f32s(*rows[i].add(k));
                    for j in 0..N {
                        sum[i][j] = simd.mul_add_e_f32s(value, columns[j], sum[i][j]);
                    }
                }
            }
        }
        if tile.width == N * lanes {
            for i in 0..M {
                let out = *tile.out.get_unchecked(i);
                for j in 0..N {
                    store::<S>(out.add(j * lanes), sum[i][j]);
                }
            }
        } else {
            for i in 0..M {
                let out = *tile.out.get_unchecked(i);
                for j in 0..N {
                    let rest = tile.width.saturating_sub(j * lanes).min(lanes);
                    store_part::<S>(out.add((j * lanes).min(tile.width)), sum[i][j], rest);
                }
            }
        }
    }
}

/// Rows of a tile of a sum of outer products: a power of two, so that tiles cut groups of [`GROUP`] channels evenly.
pub(crate) fn outer_rows() -> usize {
    if TILE.rows >= 8 { 8 } else { 4 }
}

/// Channels that lie side by side in operands packed for outer products: the widest vector's floats.
pub(crate) const GROUP: usize = 16;

/// One tile of a sum of outer products over places at even distances:
/// `out[i][j] += Σₚ left[p · left_step + i] · right[p · right_step + ..]`, `out` being `rows` × (`vectors` · lanes) floats.
#[derive(Clone, Copy)]
pub(crate) struct OuterTile {
    /// Rows of the tile, 1 to 8.
    pub rows: usize,
    /// Vectors across the tile, 1 or [`VECTORS`].
    pub vectors: usize,
    /// Number of places.
    pub count: usize,
    /// The left operand; `rows` floats are read at every place.
    pub left: *const f32,
    /// Floats from place to place.
    pub left_step: usize,
    /// The right operand; `vectors` vectors are read at every place.
    pub right: *const f32,
    /// Floats from place to place.
    pub right_step: usize,
    /// Floats from one vector of a place to the next.
    pub right_vector: usize,
    /// The tile, read and written.
    pub out: *mut f32,
}

impl OuterTile {
    /// Adds the products to the tile.
    ///
    /// # Safety
    /// `left` and `right` must be valid for the named reads at every place, `out` for reads and writes of the whole tile.
    pub unsafe fn run(self) {
        struct Op(OuterTile);
        impl WithSimd for Op {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                macro_rules! pick {
                    ($n:literal: $($m:literal)*) => {
                        match self.0.rows {
                            // SAFETY: the caller of `run` vouches for the pointers.
                            $($m => unsafe { stream::<S, $m, $n>(simd, self.0) },)*
                            _ => unreachable!("a tile has 1 to 8 rows"),
                        }
                    };
                }
                match self.0.vectors {
                    1 => pick!(1: 1 2 3 4 5 6 7 8),
                    _ => pick!(2: 1 2 3 4 5 6 7 8),
                }
            }
        }
        ARCH.dispatch(Op(self));
    }
}

/// # Safety
/// As [`OuterTile::run`], with `M` its rows and `N` its vectors.
#[inline(always)]
unsafe fn stream<S: Simd, const M: usize, const N: usize>(simd: S, tile: OuterTile) {
    // SAFETY: `run` asks for valid pointers of these extents.
    unsafe {
        let lanes = S::F32_LANES;
        let mut sum: [[S::f32s; N]; M] =
            std::array::from_fn(|i| std::array::from_fn(|j| load::<S>(tile.out.add((i * N + j) * lanes))));
        let (mut left, mut right) = (tile.left, tile.right);
        for _ in 0..tile.count {
            let columns: [S::f32s; N] = std::array::from_fn(|j| load::<S>(right.add(j * tile.right_vector)));
            for i in 0..M {
                let value = simd.splat_f32s(*left.add(i));
                for j in 0..N {
                    sum[i][j] = simd.mul_add_e_f32s(value, columns[j], sum[i][j]);
                }
            }
            left = left.wrapping_add(tile.left_step);
            right = right.wrapping_add(tile.right_step);
        }
        for i in 0..M {
            for j in 0..N {
                store::<S>(tile.out.add((i * N + j) * lanes), sum[i][j]);
            }
        }
    }
}

/// Asks for the line of memory at `p`, which will be written after the products before it: results larger than the caches would
/// otherwise wait for it. `p` need not be valid.
#[inline(always)]
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint that reads nothing and faults nowhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// # Safety
/// `p` must be valid for reading one vector.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32) -> S::f32s {
    // SAFETY: `f32s` is plain data of its lanes; the caller vouches for the pointer.
    unsafe { p.cast::<S::f32s>().read_unaligned() }
}

/// # Safety
/// `p` must be valid for writing one vector.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, v: S::f32s) {
    // SAFETY: as for `load`.
    unsafe { p.cast::<S::f32s>().write_unaligned(v) }
}

/// Writes the first `count` lanes.
///
/// # Safety
/// `p` must be valid for writing `count` floats; `count` is at most one vector.
#[inline(always)]
pub(crate) unsafe fn store_part<S: Simd>(p: *mut f32, v: S::f32s, count: usize) {
    // SAFETY: a vector is plain data of its lanes, of which `count` are copied.
    unsafe { std::ptr::copy_nonoverlapping((&raw const v).cast::<f32>(), p, count.min(S::F32_LANES)) }
}
