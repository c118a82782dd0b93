//! The inverse cosine transform of a block: the factorisation of Loeffler, Ligtenberg and Moschytz (1989) in whole numbers of 12 bits
//! after the point, first down the columns and then along the rows, rounded as the general decoder rounds it, bit for bit.
//!
//! One dimension is written once, over numbers or over vectors of eight of them; between the two passes the block is transposed.
//!
//! Reduced blocks hold means of the levels of a whole one: the mean of two neighbours of a cosine is the cosine between them times a constant, so
//! that some terms vanish and the others need fewer values. It is what libjpeg-turbo's reduced transforms compute, too.

use super::huffman::Block;

/// Numbers, or vectors of them, that wrap around.
trait Lanes: Copy {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, factor: i32) -> Self;
    fn up(self) -> Self;
    fn down<const SHIFT: i32>(self) -> Self;
}

impl Lanes for i32 {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
    #[inline(always)]
    fn times(self, factor: i32) -> Self {
        self.wrapping_mul(factor)
    }
    #[inline(always)]
    fn up(self) -> Self {
        self << 12
    }
    #[inline(always)]
    fn down<const SHIFT: i32>(self) -> Self {
        self >> SHIFT
    }
}

/// What is added before the shift of the first pass: half a step.
const FIRST: i32 = 512;
/// Before that of the second: half a level, what the first pass left, and the middle level.
const SECOND: i32 = 512 + 65_536 + (128 << 17);

/// Writes the 8 × 8 levels of `block` to `out`, whose rows are `stride` apart. `last` is the place in zigzag order of the last
/// coefficient that may be other than 0.
#[inline(always)]
pub(super) fn transform(block: &Block, last: usize, out: &mut [u8], stride: usize) {
    if last == 0 {
        let level = mean(block[0]);
        return (0..8).for_each(|y| out[y * stride..][..8].fill(level));
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return wide::transform(simd, block, out, stride);
    }
    plain(block, out, stride);
}

/// The mean level of a block whose first coefficient is `dc`: (DC + 4) / 8 + 128, which is what both passes make of it.
#[inline(always)]
pub(super) fn mean(dc: i32) -> u8 {
    (dc.wrapping_add(1028) >> 3).clamp(0, 255) as u8
}

/// As [`transform`], of which only the means of equal rectangles are wanted: `width` × `height` of them, each 1, 2, 4 or 8.
#[inline(always)]
pub(super) fn reduce(block: &Block, last: usize, (width, height): (usize, usize), out: &mut [u8], stride: usize) {
    if last == 0 {
        let level = mean(block[0]);
        return (0..height).for_each(|y| out[y * stride..][..width].fill(level));
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return wide::reduce(simd, block, (width, height), out, stride);
    }
    plain_reduced(block, (width, height), out, stride);
}

/// As [`dimension`], averaged over 8 / `count` neighbours: `count` means, and what is of no meaning.
#[inline(always)]
fn means<T: Lanes, const SHIFT: i32>(c: [T; 8], round: T, count: usize) -> [T; 8] {
    let first = c[0].up().plus(round);
    match count {
        8 => dimension::<T, SHIFT>(c, round),
        4 => {
            // Coefficient u of the mean around 2p + 1: √2 cos((2p + 1) u π/8) cos(u π/16).
            let even = c[2].times(3784).plus(c[6].times(-1567));
            let (outer, inner) = (first.plus(even), first.minus(even));
            let ends = c[1].times(5249).plus(c[3].times(1843)).plus(c[5].times(-1232)).plus(c[7].times(-1044));
            let middle = c[1].times(2174).plus(c[3].times(-4450)).plus(c[5].times(2973)).plus(c[7].times(-432));
            let out = [outer.plus(ends), inner.plus(middle), inner.minus(middle), outer.minus(ends)];
            let out = [out[0].down::<SHIFT>(), out[1].down::<SHIFT>(), out[2].down::<SHIFT>(), out[3].down::<SHIFT>()];
            [out[0], out[1], out[2], out[3], out[0], out[1], out[2], out[3]]
        }
        2 => {
            // √2 cos(u π/4) cos(u π/16) cos(u π/8) for the first.
            let odd = c[1].times(3711).plus(c[3].times(-1303)).plus(c[5].times(871)).plus(c[7].times(-738));
            let (left, right) = (first.plus(odd).down::<SHIFT>(), first.minus(odd).down::<SHIFT>());
            [left, right, left, right, left, right, left, right]
        }
        _ => [first.down::<SHIFT>(); 8],
    }
}

/// One dimension of eight coefficients; `round` is added before the shift.
#[inline(always)]
fn dimension<T: Lanes, const SHIFT: i32>(c: [T; 8], round: T) -> [T; 8] {
    // Even coefficients.
    let both = c[2].plus(c[6]).times(2217);
    let (outer, inner) = (both.plus(c[2].times(3135)), both.plus(c[6].times(-7567)));
    let sum = c[0].plus(c[4]).up().plus(round);
    let difference = c[0].minus(c[4]).up().plus(round);
    let even = [sum.plus(outer), difference.plus(inner), difference.minus(inner), sum.minus(outer)];
    // Odd coefficients.
    let (a, b) = (c[7].plus(c[3]), c[5].plus(c[1]));
    let all = a.plus(b).times(4816);
    let (a, b) = (a.times(-8034), b.times(-1597));
    let ends = all.plus(c[7].plus(c[1]).times(-3685));
    let middle = all.plus(c[5].plus(c[3]).times(-10_497));
    let odd = [
        c[1].times(6149).plus(ends.plus(b)),
        c[3].times(12_586).plus(middle.plus(a)),
        c[5].times(8410).plus(middle.plus(b)),
        c[7].times(1223).plus(ends.plus(a)),
    ];
    [
        even[0].plus(odd[0]).down::<SHIFT>(),
        even[1].plus(odd[1]).down::<SHIFT>(),
        even[2].plus(odd[2]).down::<SHIFT>(),
        even[3].plus(odd[3]).down::<SHIFT>(),
        even[3].minus(odd[3]).down::<SHIFT>(),
        even[2].minus(odd[2]).down::<SHIFT>(),
        even[1].minus(odd[1]).down::<SHIFT>(),
        even[0].minus(odd[0]).down::<SHIFT>(),
    ]
}

/// The transform without vectors.
fn plain(block: &Block, out: &mut [u8], stride: usize) {
    let mut half = [[0; 8]; 8];
    for (x, column) in half.iter_mut().enumerate() {
        *column = dimension::<i32, 10>(std::array::from_fn(|y| block[y * 8 + x]), FIRST);
    }
    for y in 0..8 {
        let row = dimension::<i32, 17>(std::array::from_fn(|x| half[x][y]), SECOND);
        out[y * stride..][..8].copy_from_slice(&row.map(|v| v.clamp(0, 255) as u8));
    }
}

/// The reduced transform without vectors.
fn plain_reduced(block: &Block, (width, height): (usize, usize), out: &mut [u8], stride: usize) {
    let mut half = [[0; 8]; 8];
    for (x, column) in half.iter_mut().enumerate() {
        *column = means::<i32, 10>(std::array::from_fn(|y| block[y * 8 + x]), FIRST, height);
    }
    for y in 0..height {
        let row = means::<i32, 17>(std::array::from_fn(|x| half[x][y]), SECOND, width);
        out[y * stride..][..width].copy_from_slice(&row.map(|v| v.clamp(0, 255) as u8)[..width]);
    }
}

/// The transform of eight columns, and then eight rows, at once.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::__m256i;

    use pulp::cast;
    use pulp::x86::V3;

    use super::{Block, FIRST, Lanes, SECOND, dimension, means};

    /// The expression for each of eight (or four) values of a name. What the library has for that takes closures, which the compiler may leave
    /// as functions of their own, without the vector instructions of their surroundings.
    macro_rules! each {
        (4, $i:ident, $value:expr) => {
            [
                {
                    let $i = 0;
                    $value
                },
                {
                    let $i = 1;
                    $value
                },
                {
                    let $i = 2;
                    $value
                },
                {
                    let $i = 3;
                    $value
                },
            ]
        };
        (8, $i:ident, $value:expr) => {
            [
                {
                    let $i = 0;
                    $value
                },
                {
                    let $i = 1;
                    $value
                },
                {
                    let $i = 2;
                    $value
                },
                {
                    let $i = 3;
                    $value
                },
                {
                    let $i = 4;
                    $value
                },
                {
                    let $i = 5;
                    $value
                },
                {
                    let $i = 6;
                    $value
                },
                {
                    let $i = 7;
                    $value
                },
            ]
        };
    }

    /// Eight numbers.
    #[derive(Clone, Copy)]
    struct Eight(V3, __m256i);

    impl Lanes for Eight {
        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            Self(self.0, self.0.avx2._mm256_add_epi32(self.1, other.1))
        }
        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            Self(self.0, self.0.avx2._mm256_sub_epi32(self.1, other.1))
        }
        #[inline(always)]
        fn times(self, factor: i32) -> Self {
            Self(self.0, self.0.avx2._mm256_mullo_epi32(self.1, cast([factor; 8])))
        }
        #[inline(always)]
        fn up(self) -> Self {
            Self(self.0, self.0.avx2._mm256_slli_epi32::<12>(self.1))
        }
        #[inline(always)]
        fn down<const SHIFT: i32>(self) -> Self {
            Self(self.0, self.0.avx2._mm256_srai_epi32::<SHIFT>(self.1))
        }
    }

    #[inline(always)]
    pub(super) fn transform(simd: V3, block: &Block, out: &mut [u8], stride: usize) {
        let rows = block.as_chunks::<8>().0;
        let half = dimension::<_, 10>(each!(8, y, Eight(simd, cast(rows[y]))), Eight(simd, cast([FIRST; 8])));
        let columns = dimension::<_, 17>(transpose(simd, half), Eight(simd, cast([SECOND; 8])));
        let rows = levels(simd, columns);
        for (y, row) in rows.iter().enumerate() {
            out[y * stride..][..8].copy_from_slice(row);
        }
    }

    #[inline(always)]
    pub(super) fn reduce(simd: V3, block: &Block, (width, height): (usize, usize), out: &mut [u8], stride: usize) {
        let rows = block.as_chunks::<8>().0;
        let half = means::<_, 10>(each!(8, y, Eight(simd, cast(rows[y]))), Eight(simd, cast([FIRST; 8])), height);
        let columns = means::<_, 17>(transpose(simd, half), Eight(simd, cast([SECOND; 8])), width);
        let rows = levels(simd, columns);
        match width {
            8 => store::<8>(&rows[..height], out, stride),
            4 => store::<4>(&rows[..height], out, stride),
            2 => store::<2>(&rows[..height], out, stride),
            _ => store::<1>(&rows[..height], out, stride),
        }
    }

    /// Writes the first levels of each row.
    #[inline(always)]
    fn store<const WIDTH: usize>(rows: &[[u8; 8]], out: &mut [u8], stride: usize) {
        for (y, row) in rows.iter().enumerate() {
            out[y * stride..][..WIDTH].copy_from_slice(&row[..WIDTH]);
        }
    }

    /// Columns of numbers as rows of levels.
    #[inline(always)]
    fn levels(simd: V3, columns: [Eight; 8]) -> [[u8; 8]; 8] {
        // Levels of four columns in each vector, each half of it four rows of each column, and then four rows of four columns.
        const TURN: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        let pairs = each!(4, i, simd.avx2._mm256_packs_epi32(columns[2 * i].1, columns[2 * i + 1].1));
        let left = simd.avx2._mm256_packus_epi16(pairs[0], pairs[1]);
        let right = simd.avx2._mm256_packus_epi16(pairs[2], pairs[3]);
        let left = simd.avx2._mm256_shuffle_epi8(left, cast([TURN; 2]));
        let right = simd.avx2._mm256_shuffle_epi8(right, cast([TURN; 2]));
        let upper: [[u8; 8]; 4] = cast(simd.avx2._mm256_unpacklo_epi32(left, right));
        let lower: [[u8; 8]; 4] = cast(simd.avx2._mm256_unpackhi_epi32(left, right));
        [upper[0], upper[1], lower[0], lower[1], upper[2], upper[3], lower[2], lower[3]]
    }

    /// Exchanges rows and columns: of pairs of numbers, of pairs of pairs, of halves.
    #[inline(always)]
    fn transpose(simd: V3, rows: [Eight; 8]) -> [Eight; 8] {
        let avx2 = simd.avx2;
        let lower = each!(4, i, avx2._mm256_unpacklo_epi32(rows[2 * i].1, rows[2 * i + 1].1));
        let upper = each!(4, i, avx2._mm256_unpackhi_epi32(rows[2 * i].1, rows[2 * i + 1].1));
        // Columns 0, 1, 2, 3 (and 4, 5, 6, 7 in the upper halves) of the upper four rows or the lower four.
        let top = [
            avx2._mm256_unpacklo_epi64(lower[0], lower[1]),
            avx2._mm256_unpackhi_epi64(lower[0], lower[1]),
            avx2._mm256_unpacklo_epi64(upper[0], upper[1]),
            avx2._mm256_unpackhi_epi64(upper[0], upper[1]),
        ];
        let bottom = [
            avx2._mm256_unpacklo_epi64(lower[2], lower[3]),
            avx2._mm256_unpackhi_epi64(lower[2], lower[3]),
            avx2._mm256_unpacklo_epi64(upper[2], upper[3]),
            avx2._mm256_unpackhi_epi64(upper[2], upper[3]),
        ];
        let near = each!(4, i, Eight(simd, avx2._mm256_permute2x128_si256::<0x20>(top[i], bottom[i])));
        let far = each!(4, i, Eight(simd, avx2._mm256_permute2x128_si256::<0x31>(top[i], bottom[i])));
        [near[0], near[1], near[2], near[3], far[0], far[1], far[2], far[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_is_the_cosines_sum_with_and_without_vectors() {
        let angle = |x: usize, u: usize| ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos();
        let scale = |u: usize| if u == 0 { 0.5_f64.sqrt() } else { 1.0 };
        // One coefficient in every place beside the mean.
        for place in 0..64 {
            let mut block = [0; 128];
            block[0] = 37;
            block[place] += 500;
            let (mut out, mut other) = ([0; 80], [0; 80]);
            transform(&block, if place == 0 { 0 } else { 63 }, &mut out, 10);
            plain(&block, &mut other, 10);
            assert_eq!(out, other, "place {place}");
            for (y, x) in (0..8).flat_map(|y| (0..8).map(move |x| (y, x))) {
                let all = (0..64).filter(|&i| block[i] != 0);
                let sum: f64 = all
                    .map(|i| f64::from(block[i]) * scale(i % 8) * scale(i / 8) * angle(x, i % 8) * angle(y, i / 8) / 4.0)
                    .sum();
                let level = (sum + 128.0).clamp(0.0, 255.0);
                assert!((f64::from(out[y * 10 + x]) - level).abs() < 0.6, "place {place}, ({x}, {y})");
            }
        }
    }

    #[test]
    fn reduced_transforms_are_means_of_the_whole_one_with_and_without_vectors() {
        let mut seed = 7_u64;
        let mut next = move |below: i32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as i32 % below
        };
        let angle = |x: usize, u: usize| ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos();
        let scale = |u: usize| if u == 0 { 0.5_f64.sqrt() } else { 1.0 };
        for round in 0..40 {
            // Levels that stay within 0 to 255, so that nothing is cut off.
            let mut block: Block = std::array::from_fn(|i| if i < 64 { next(41) - 20 } else { next(2000) });
            block[0] = next(600) - 300;
            let level = |x: usize, y: usize| -> f64 {
                let term = |i: usize| f64::from(block[i]) * scale(i % 8) * scale(i / 8) * angle(x, i % 8) * angle(y, i / 8);
                128.0 + (0..64).map(term).sum::<f64>() / 4.0
            };
            let whole: [[f64; 8]; 8] = std::array::from_fn(|y| std::array::from_fn(|x| level(x, y)));
            for (width, height) in [1, 2, 4, 8].into_iter().flat_map(|w| [1, 2, 4, 8].map(|h| (w, h))) {
                let (mut out, mut other) = ([77; 80], [77; 80]);
                reduce(&block, 63, (width, height), &mut out, 10);
                plain_reduced(&block, (width, height), &mut other, 10);
                assert_eq!(out, other, "{width} × {height}");
                let (across, down) = (8 / width, 8 / height);
                for (y, x) in (0..8).flat_map(|y| (0..10).map(move |x| (y, x))) {
                    let found = out[y * 10 + x];
                    if y >= height || x >= width {
                        assert_eq!(found, 77, "{width} × {height}: ({x}, {y}) is outside");
                        continue;
                    }
                    let rows = &whole[y * down..(y + 1) * down];
                    let sum: f64 = rows.iter().flat_map(|row| &row[x * across..(x + 1) * across]).sum();
                    let mean = (sum / (across * down) as f64).clamp(0.0, 255.0);
                    assert!((f64::from(found) - mean).abs() < 0.6, "{width} × {height}, ({x}, {y}), {round}: {found} {mean}");
                }
            }
            let (mut one, mut all) = ([0; 64], [0; 64]);
            reduce(&block, 0, (4, 2), &mut one, 8);
            transform(&block, 0, &mut all, 8);
            assert_eq!((&one[8..12], mean(block[0])), (&all[..4], all[0]));
        }
    }

    #[test]
    fn vectors_wrap_and_saturate_as_numbers_do() {
        let mut seed = 1_u64;
        for size in [12, 20, 31] {
            let block: Block = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 32) as i32 >> (31 - size)
            });
            let (mut out, mut other) = ([0; 64], [0; 64]);
            transform(&block, 63, &mut out, 8);
            plain(&block, &mut other, 8);
            assert_eq!(out, other, "{size} bits");
            for shape in [(4, 4), (2, 2), (1, 1), (8, 4), (2, 4)] {
                let (mut out, mut other) = ([0; 64], [0; 64]);
                reduce(&block, 63, shape, &mut out, 8);
                plain_reduced(&block, shape, &mut other, 8);
                assert_eq!(out, other, "{size} bits, {shape:?}");
            }
        }
    }
}
