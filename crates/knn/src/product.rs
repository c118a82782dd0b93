//! The matrix products of the search and of the linear classifier, on the calling thread: rows times rows, and weights times rows.
//!
//! `gemm` is the product that candle itself uses; its interface is a raw-pointer one, so this file holds the crate's only
//! `unsafe` block, behind checked functions.

/// A number that `gemm` multiplies.
pub(crate) trait Number: Copy + 'static {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
}

impl Number for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Number for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// `out[q * rows(bank) + b] = queries[q] · bank[b]`, in no promised order of summation.
///
/// # Panics
/// When the slices are not whole rows of `dim` numbers, or `out` is not queries × bank long.
pub(crate) fn products<T: Number>(queries: &[T], bank: &[T], dim: usize, out: &mut [T]) {
    assert!(dim > 0 && queries.len().is_multiple_of(dim) && bank.len().is_multiple_of(dim), "whole rows");
    let (m, n) = (queries.len() / dim, bank.len() / dim);
    assert_eq!(out.len(), m * n, "one product a pair of rows");
    if m == 0 || n == 0 {
        return;
    }
    multiply((n, m, dim), bank, Order::Rows, queries, out);
}

/// `out[w * dim + j] = sum over i of weights[w * rows + i] * table[i * dim + j]`, in no promised order of summation: each row of `weights`
/// holds a factor for every row of `table`.
///
/// # Panics
/// When the slices are not whole rows (of `rows` and of `dim` numbers), or `out` is not a row of `dim` numbers for each of `weights`.
#[cfg(feature = "linear")]
pub(crate) fn weighted_sums<T: Number>(weights: &[T], table: &[T], dim: usize, out: &mut [T]) {
    assert!(dim > 0 && table.len().is_multiple_of(dim), "whole rows");
    let rows = table.len() / dim;
    assert!(rows > 0 && weights.len().is_multiple_of(rows), "whole rows");
    let sums = weights.len() / rows;
    assert_eq!(out.len(), sums * dim, "one sum a row of weights");
    if sums == 0 {
        return;
    }
    multiply((dim, sums, rows), table, Order::Columns, weights, out);
}

/// How the left side of a product lies in memory.
enum Order {
    /// A row of it after the other.
    Rows,
    /// A column of it after the other.
    #[cfg(feature = "linear")]
    Columns,
}

/// `out` = `left` (n × k) times `right` (k × m, a column after the other), n × m, a column after the other.
///
/// # Panics
/// When a slice has another length.
fn multiply<T: Number>((n, m, k): (usize, usize, usize), left: &[T], order: Order, right: &[T], out: &mut [T]) {
    assert!(left.len() == n * k && right.len() == k * m && out.len() == n * m, "sides that fit");
    let (across, down) = match order {
        Order::Rows => (1, k as isize),
        #[cfg(feature = "linear")]
        Order::Columns => (n as isize, 1),
    };
    // SAFETY: each matrix stays inside its slice, whose length is that of its sides (asserted above): the destination with row stride
    // 1 and column stride n, the left side with strides k and 1 or 1 and n, the right side with row stride 1 and column stride k.
    // `out` is borrowed exclusively, so it overlaps neither. No element of `out` is read (`read_dst` is false).
    unsafe {
        gemm::gemm(
            n,
            m,
            k,
            out.as_mut_ptr(),
            n as isize,
            1,
            false,
            left.as_ptr(),
            across,
            down,
            right.as_ptr(),
            k as isize,
            1,
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "linear")]
    fn sums_are_weighted_row_by_row() {
        for (sums, rows, dim) in [(1, 1, 1), (1, 37, 5), (17, 1, 33), (3, 64, 16), (10, 65, 70), (0, 3, 2)] {
            let weights: Vec<f64> = (0..sums * rows).map(|i| (i * 5 % 11) as f64 - 5.0).collect();
            let table: Vec<f64> = (0..rows * dim).map(|i| (i * 7 % 13) as f64 - 6.0).collect();
            let mut buffer = vec![-1.0f64; sums * dim + 64];
            weighted_sums(&weights, &table, dim, &mut buffer[32..32 + sums * dim]);
            for w in 0..sums {
                for j in 0..dim {
                    let want: f64 = (0..rows).map(|i| weights[w * rows + i] * table[i * dim + j]).sum();
                    assert_eq!(buffer[32 + w * dim + j], want, "{sums} {rows} {dim}: {w} {j}");
                }
            }
            assert!(buffer[..32].iter().chain(&buffer[32 + sums * dim..]).all(|&v| v == -1.0));
        }
    }

    #[test]
    fn every_edge_of_the_blocking_is_right() {
        for (m, n, dim) in [(1, 1, 1), (1, 37, 5), (17, 1, 33), (3, 64, 16), (33, 65, 7), (48, 130, 129), (0, 3, 2), (3, 0, 2)] {
            let queries: Vec<f32> = (0..m * dim).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
            let bank: Vec<f32> = (0..n * dim).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
            // Guards on both sides: nothing outside the block may be written.
            let mut buffer = vec![-1.0f32; m * n + 64];
            products(&queries, &bank, dim, &mut buffer[32..32 + m * n]);
            for q in 0..m {
                for b in 0..n {
                    let want: f32 = (0..dim).map(|i| queries[q * dim + i] * bank[b * dim + i]).sum();
                    assert_eq!(buffer[32 + q * n + b], want, "{m} {n} {dim}: {q} {b}");
                }
            }
            assert!(buffer[..32].iter().chain(&buffer[32 + m * n..]).all(|&v| v == -1.0));
        }
    }

    #[test]
    #[should_panic(expected = "one product a pair of rows")]
    fn a_short_output_is_refused() {
        products(&[1.0, 2.0], &[1.0, 2.0, 3.0, 4.0], 2, &mut [0.0]);
    }
}
