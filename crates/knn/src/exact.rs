//! Norms, products and distances of single rows in `f64`, summed in one fixed order.
//!
//! A product of two `f32` numbers is exact in `f64`, and sixteen running sums are added up in a fixed tree, so every
//! instruction set that the machine offers gives the same bits.

use pulp::Arch;

const LANES: usize = 16;
/// Rows that are summed side by side.
const ABREAST: usize = 4;

/// The norm of each row of `data` (rows of `dim` numbers).
pub(crate) fn norms(data: &[f32], dim: usize, out: &mut [f64]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (row, norm) in data.chunks_exact(dim).zip(out) {
                *norm = sum(row, [row], |a, b| a * b)[0].sqrt();
            }
        },
    );
}

/// `row · other` for every other row.
pub(crate) fn products(row: &[f32], others: &[&[f32]], out: &mut Vec<f64>) {
    Arch::new().dispatch(
        #[inline(always)]
        || sums(row, others, |a, b| a * b, out),
    );
}

/// `‖row − other‖²` for every other row.
pub(crate) fn square_distances(row: &[f32], others: &[&[f32]], out: &mut Vec<f64>) {
    Arch::new().dispatch(
        #[inline(always)]
        || sums(row, others, |a, b| (a - b) * (a - b), out),
    );
}

/// Several rows side by side: they come from all over the bank, and waiting for one hides behind the others.
#[inline(always)]
fn sums(row: &[f32], others: &[&[f32]], term: impl Fn(f64, f64) -> f64 + Copy, out: &mut Vec<f64>) {
    out.clear();
    let (groups, rest) = others.as_chunks::<ABREAST>();
    for group in groups {
        out.extend(sum(row, *group, term));
    }
    for other in rest {
        out.extend(sum(row, [other], term));
    }
}

/// Sums of terms over each of `N` rows. The order of summation is the same for every `N`.
#[inline(always)]
fn sum<const N: usize>(a: &[f32], others: [&[f32]; N], term: impl Fn(f64, f64) -> f64) -> [f64; N] {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let others = others.map(|b| b[..a.len()].as_chunks::<LANES>());
    let mut sums = [[0.0f64; LANES]; N];
    for (c, x) in a_chunks.iter().enumerate() {
        for n in 0..N {
            let y = &others[n].0[c];
            for i in 0..LANES {
                sums[n][i] += term(f64::from(x[i]), f64::from(y[i]));
            }
        }
    }
    for n in 0..N {
        for (i, (&x, &y)) in a_rest.iter().zip(others[n].1).enumerate() {
            sums[n][i] += term(f64::from(x), f64::from(y));
        }
    }
    sums.map(|mut lanes| {
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_exact_at_every_length() {
        for dim in 1..70usize {
            let a: Vec<f32> = (0..dim).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..dim).map(|i| (i % 5) as f32 - 1.0).collect();
            let dot: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            let square: f32 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
            let mut out = Vec::new();
            products(&a, &[&b, &a, &b, &b, &b, &a], &mut out);
            assert!([0, 2, 3, 4].iter().all(|&i| out[i] == f64::from(dot)) && out[1] == out[5]);
            square_distances(&a, &[&b, &a], &mut out);
            assert_eq!(out, [f64::from(square), 0.0]);
            let mut norm = [0.0];
            norms(&a, dim, &mut norm);
            assert_eq!(norm[0], a.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt());
        }
    }
}
