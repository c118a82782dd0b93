//! Principal components: rows seen along the few directions in which they vary most.

use nalgebra::{DMatrix, SymmetricEigen};

use crate::{Matrix, Result};

/// Rows along their leading principal components.
#[derive(Debug, Clone, PartialEq)]
pub struct Components {
    /// Numbers a row: the components asked for, or as many as there are.
    pub dim: usize,
    /// The rows, centred, `dim` numbers each, the component with most variance first.
    pub rows: Vec<f32>,
    /// The share of all variance that each component has, 0 to 1.
    pub explained: Vec<f64>,
}

/// The rows, centred, along their `count` leading principal components (Pearson 1901).
///
/// In `f64`, by the eigenvectors of the smaller of the two Gram matrices. The sign of a component is such that its largest number by
/// size is positive. Rows that are all alike give zeros.
///
/// # Errors
/// An empty table, a wrong length, NaN or an infinity.
pub fn principal_components(rows: Matrix, count: usize) -> Result<Components> {
    let checked = rows.check("rows", 1)?;
    let (n, dim) = (rows.rows, rows.dim);
    let largest = checked.largest();
    let unit = if largest > 0.0 { 1.0 / largest } else { 1.0 };
    let mut centred = DMatrix::from_row_iterator(n, dim, rows.data.iter().map(|&v| f64::from(v) * unit));
    for mut column in centred.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    let tall = n >= dim;
    let gram = if tall { centred.transpose() * &centred } else { &centred * centred.transpose() };
    let total = gram.trace();
    let eigen = SymmetricEigen::new(gram);
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]).then(a.cmp(&b)));
    order.truncate(count);
    let kept = order.len();
    let mut out = vec![0.0f32; n * kept];
    let mut explained = Vec::with_capacity(kept);
    for (j, &at) in order.iter().enumerate() {
        let value = eigen.eigenvalues[at].max(0.0);
        let vector = eigen.eigenvectors.column(at);
        let scores = if tall { &centred * vector } else { vector * value.sqrt() };
        let sign =
            if scores.iter().copied().fold(0.0f64, |m, v| if v.abs() > m.abs() { v } else { m }) < 0.0 { -1.0 } else { 1.0 };
        for (i, score) in scores.iter().enumerate() {
            out[i * kept + j] = (sign * score / unit) as f32;
        }
        explained.push(if total > 0.0 { value / total } else { 0.0 });
    }
    Ok(Components { dim: kept, rows: out, explained })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_of_known_variance_are_found_tall_and_wide() -> Result<()> {
        // Variance 9 along (1, 1, 0)/√2 and 1 along (0, 0, 1), around a centre that is not the origin.
        let data: Vec<f32> = (0..400)
            .flat_map(|i| {
                let (a, b) = ((i as f32 * 0.7).sin() * 3.0, (i as f32 * 1.3).cos());
                [5.0 + a / 2f32.sqrt(), a / 2f32.sqrt(), -2.0 + b]
            })
            .collect();
        let found = principal_components(Matrix::new(&data, 400, 3)?, 2)?;
        assert!((found.explained[0] - 0.9).abs() < 0.01 && (found.explained.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        let want = (11.0 * 0.7f32).sin() * 3.0;
        assert!((found.rows[22].abs() - want.abs()).abs() < 0.05, "{} {want}", found.rows[22]);
        // Distances are kept when all components are, and a wide table gives the same as its tall one.
        let wide = principal_components(Matrix::new(&data[..6], 2, 3)?, 5)?;
        assert_eq!(wide.dim, 2);
        let d = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
        assert!((d(&wide.rows[..2], &wide.rows[2..]) - d(&data[..3], &data[3..6])).abs() < 1e-4);
        assert!(principal_components(Matrix::new(&[2.0; 6], 3, 2)?, 2)?.rows.iter().all(|v| v.abs() < 1e-6));
        Ok(())
    }
}
