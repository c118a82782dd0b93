//! Health of embeddings, judged without labels: spread, effective rank, alignment and uniformity.

use nalgebra::{DMatrix, DMatrixView};
use rayon::prelude::*;

use crate::matrix::Checked;
use crate::product;
use crate::{Error, Matrix, Result};

/// Rows that are turned to `f64`, or compared with each other, at a time.
const BLOCK: usize = 256;

/// The standard deviation of each dimension over L2-normalised rows (Chen & He 2021, arXiv:2011.10566, section 4.1).
///
/// Rows spread evenly over the sphere give 1/√dim in every dimension; rows that have collapsed to one point give 0.
/// The estimate divides by rows − 1, as `torch.std` does; a single row gives zeros, and a row of zeros stays one.
///
/// # Errors
/// An empty table, a wrong length, NaN or an infinity.
pub fn std_per_dimension(rows: Matrix) -> Result<Vec<f32>> {
    let rows = rows.check("embeddings", 1)?.normalised();
    let (n, dim) = (rows.rows, rows.dim);
    let mut mean = vec![0.0f64; dim];
    for row in rows.data.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v));
    }
    mean.iter_mut().for_each(|m| *m /= n as f64);
    let mut squares = vec![0.0f64; dim];
    for row in rows.data.chunks_exact(dim) {
        squares.iter_mut().zip(row).zip(&mean).for_each(|((s, &v), m)| *s += (f64::from(v) - m).powi(2));
    }
    Ok(squares.iter().map(|s| (s / (n.max(2) - 1) as f64).sqrt() as f32).collect())
}

/// The effective rank of the rows as they are, neither centred nor normalised: RankMe (Garrido et al. 2023,
/// arXiv:2210.02885), the exponential of the entropy of the singular values' shares.
///
/// Between 1 (all rows on one line) and min(rows, dim); 0 when all rows are zeros.
///
/// # Errors
/// An empty table, a wrong length, NaN or an infinity.
pub fn effective_rank(rows: Matrix) -> Result<f64> {
    let values = singular_values(rows)?;
    let total: f64 = values.iter().sum();
    if total == 0.0 {
        return Ok(0.0);
    }
    let entropy: f64 = values.iter().map(|v| v / total).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

/// The singular values of the rows as they are, largest first: min(rows, dim) of them.
///
/// They are the roots of the eigenvalues of the smaller Gram matrix, in `f64`: values below 1e-8 of the largest are noise.
///
/// # Errors
/// An empty table, a wrong length, NaN or an infinity.
pub fn singular_values(rows: Matrix) -> Result<Vec<f64>> {
    let rows = rows.check("embeddings", 1)?;
    let largest = rows.largest();
    if largest == 0.0 {
        return Ok(vec![0.0; rows.rows.min(rows.dim)]);
    }
    let mut values: Vec<f64> =
        gram(&rows, 1.0 / largest).symmetric_eigenvalues().iter().map(|&v| v.max(0.0).sqrt() * largest).collect();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    Ok(values)
}

/// The mean squared distance of L2-normalised pairs, row by row: alignment (Wang & Isola 2020, arXiv:2005.10242) with α = 2.
///
/// 0 when the two views of every image fall together, 2 when they have nothing to do with each other.
///
/// # Errors
/// Tables that differ in shape, an empty table, a wrong length, NaN or an infinity.
pub fn alignment(first: Matrix, second: Matrix) -> Result<f64> {
    let first = first.check("first views", 1)?.normalised();
    let second = second.check("second views", 1)?.normalised();
    if (first.rows, first.dim) != (second.rows, second.dim) {
        let (got, expected) = ((second.rows, second.dim), (first.rows, first.dim));
        return Err(Error::Shape { what: "second views", got, expected });
    }
    let total: f64 = first.data.iter().zip(&*second.data).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    Ok(total / first.rows as f64)
}

/// The logarithm of the mean of exp(−2‖x − y‖²) over all pairs of L2-normalised rows: uniformity (Wang & Isola 2020) with t = 2.
///
/// 0 when all rows fall together; rows spread evenly over a sphere of many dimensions come near −4.
///
/// # Errors
/// A table of fewer than two rows, a wrong length, NaN or an infinity.
pub fn uniformity(rows: Matrix) -> Result<f64> {
    let rows = rows.check("embeddings", 2)?.normalised();
    let (n, dim) = (rows.rows, rows.dim);
    let blocks = n.div_ceil(BLOCK);
    let range = |b: usize| b * BLOCK..((b + 1) * BLOCK).min(n);
    // Partial sums in a fixed order: the number of threads changes nothing.
    let sums: Vec<f64> = (0..blocks)
        .into_par_iter()
        .map(|b| {
            let mut sum = 0.0;
            let mut products = vec![0.0f32; BLOCK * BLOCK];
            for other in b..blocks {
                let (left, right) = (range(b), range(other));
                let products = &mut products[..left.len() * right.len()];
                let data = |r: &std::ops::Range<usize>| &rows.data[r.start * dim..r.end * dim];
                product::products(data(&left), data(&right), dim, products);
                for (i, dots) in left.zip(products.chunks_exact(right.len())) {
                    for (j, &dot) in right.clone().zip(dots).filter(|(j, _)| *j > i) {
                        let squares = rows.norms[i].powi(2) + rows.norms[j].powi(2);
                        sum += (-2.0 * (squares - 2.0 * f64::from(dot)).max(0.0)).exp();
                    }
                }
            }
            sum
        })
        .collect();
    Ok((sums.iter().sum::<f64>() / (n as f64 * (n - 1) as f64 / 2.0)).ln())
}

/// The smaller of the two Gram matrices of the rows times `factor`: dim × dim, or rows × rows.
fn gram(rows: &Checked, factor: f64) -> DMatrix<f64> {
    let dim = rows.dim;
    let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&v| f64::from(v) * factor).collect() };
    if rows.rows < dim {
        let data = wide(&rows.data);
        let columns = DMatrixView::from_slice(&data, dim, rows.rows);
        return columns.transpose() * columns;
    }
    let mut gram = DMatrix::zeros(dim, dim);
    for block in rows.data.chunks(BLOCK * dim) {
        let data = wide(block);
        let columns = DMatrixView::from_slice(&data, dim, block.len() / dim);
        gram.gemm(1.0, &columns, &columns.transpose(), 1.0);
    }
    gram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(data: &[f32], dim: usize) -> Matrix<'_> {
        Matrix { data, rows: data.len() / dim, dim }
    }

    /// Numbers spread over [-1, 1) without a pattern that matters here.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_u32;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as f32 / 2_147_483_648.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn spread_is_one_over_root_dim_on_the_sphere_and_zero_at_a_point() -> Result<()> {
        let data = numbers(2000 * 16);
        let std = std_per_dimension(table(&data, 16))?;
        assert!(std.iter().all(|s| (s - 0.25).abs() < 0.02), "{std:?}");
        assert!(std_per_dimension(table(&[0.5; 12], 4))?.iter().all(|&s| s < 1e-7));
        assert_eq!(std_per_dimension(table(&[1.0, 2.0], 2))?, [0.0, 0.0]);
        // By hand: unit rows (1,0), (0,1), (-1,0) have variances 1 and 1/3 with division by 2.
        let std = std_per_dimension(table(&[2.0, 0.0, 0.0, 5.0, -0.1, 0.0], 2))?;
        assert!((std[0] - 1.0).abs() < 1e-6 && (std[1] - (1.0f32 / 3.0).sqrt()).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn effective_rank_counts_directions() -> Result<()> {
        let identity: Vec<f32> = (0..25).map(|i| if i % 6 == 0 { 3e20 } else { 0.0 }).collect();
        assert!((effective_rank(table(&identity, 5))? - 5.0).abs() < 1e-6);
        assert!((effective_rank(table(&[1.0, 2.0, 2.0, 4.0, -3.0, -6.0], 2))? - 1.0).abs() < 1e-6);
        assert_eq!(effective_rank(table(&[0.0; 6], 2))?, 0.0);
        // Singular values 3 and 1, wide and tall: exp of the entropy of (3/4, 1/4).
        let want = (-(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln())).exp();
        assert!((effective_rank(table(&[3.0, 0.0, 0.0, 0.0, 1.0, 0.0], 3))? - want).abs() < 1e-6);
        assert!((effective_rank(table(&[3.0, 0.0, 0.0, 1.0, 0.0, 0.0], 2))? - want).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn singular_values_agree_with_a_decomposition_of_the_rows_themselves() -> Result<()> {
        for (rows, dim) in [(700, 9), (9, 40), (12, 12)] {
            let data = numbers(rows * dim);
            let got = singular_values(table(&data, dim))?;
            let matrix = DMatrix::from_row_iterator(rows, dim, data.iter().map(|&v| f64::from(v)));
            let want = matrix.singular_values();
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-6 * want[0]), "{got:?} {want:?}");
        }
        Ok(())
    }

    #[test]
    fn alignment_and_uniformity_of_known_rows() -> Result<()> {
        let (a, b) = ([2.0, 0.0, 0.0, 3.0], [1.0, 0.0, 0.0, -1.0]);
        assert!((alignment(table(&a, 2), table(&b, 2))? - 2.0).abs() < 1e-6);
        assert_eq!(alignment(table(&a, 2), table(&a, 2))?, 0.0);
        assert!(matches!(alignment(table(&a, 2), table(&b[..2], 2)), Err(Error::Shape { .. })));
        // Two unit rows at a right angle: ‖x − y‖² = 2.
        assert!((uniformity(table(&a, 2))? + 4.0).abs() < 1e-6);
        assert!(uniformity(table(&[1.0; 8], 2))?.abs() < 1e-6);
        assert!(matches!(uniformity(table(&a[..2], 2)), Err(Error::TooSmall { least: 2, .. })));
        Ok(())
    }

    #[test]
    fn uniformity_of_many_blocks_equals_the_plain_sum() -> Result<()> {
        let data = numbers(600 * 3);
        let rows: Vec<Vec<f64>> = data
            .chunks(3)
            .map(|r| {
                let norm = r.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                r.iter().map(|&v| f64::from(v) / norm).collect()
            })
            .collect();
        let (mut sum, mut pairs) = (0.0, 0.0);
        for i in 0..600 {
            for j in 0..i {
                let d: f64 = rows[i].iter().zip(&rows[j]).map(|(a, b)| (a - b).powi(2)).sum();
                sum += (-2.0 * d).exp();
                pairs += 1.0;
            }
        }
        assert!((uniformity(table(&data, 3))? - (sum / pairs).ln()).abs() < 1e-5);
        Ok(())
    }
}
