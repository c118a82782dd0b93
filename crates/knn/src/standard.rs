//! Columns brought to mean 0 and deviation 1, as linear classifiers on frozen features want them: features whose columns differ much in size
//! are slow to fit and punished unevenly. He et al. 2022 (MAE, appendix A.1) put a batch norm without parameters before theirs, which is
//! the same.

use crate::{Matrix, Result};

/// Mean and deviation of each column of a table, to be taken off others.
#[derive(Debug, Clone, PartialEq)]
pub struct Standard {
    mean: Vec<f64>,
    /// 1 over the deviation; 0 for a column that is the same in every row.
    scale: Vec<f64>,
}

impl Standard {
    /// Measures the columns of `table` (population deviation).
    ///
    /// # Errors
    /// An empty table, or values that are not finite.
    pub fn of(table: Matrix) -> Result<Self> {
        table.check("table", 1)?;
        let count = table.rows as f64;
        let mut mean = vec![0.0; table.dim];
        for row in table.data.chunks_exact(table.dim) {
            mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v));
        }
        mean.iter_mut().for_each(|m| *m /= count);
        let mut square = vec![0.0; table.dim];
        for row in table.data.chunks_exact(table.dim) {
            for ((s, m), &v) in square.iter_mut().zip(&mean).zip(row) {
                *s += (f64::from(v) - m).powi(2);
            }
        }
        let scale = square.iter().zip(&mean).map(|(s, m)| {
            let deviation = (s / count).sqrt();
            // What rounding leaves of a constant is no deviation.
            if deviation > 1e-7 * m.abs() { 1.0 / deviation } else { 0.0 }
        });
        Ok(Self { scale: scale.collect(), mean })
    }

    /// The rows of `table` with each column's mean taken off, over its deviation; constant columns become 0.
    ///
    /// # Panics
    /// When the table has another number of columns.
    pub fn apply(&self, table: Matrix) -> Vec<f32> {
        assert_eq!(table.dim, self.mean.len(), "a table of other columns");
        let place = |i: usize, v: f32| ((f64::from(v) - self.mean[i % table.dim]) * self.scale[i % table.dim]) as f32;
        table.data.iter().enumerate().map(|(i, &v)| place(i, v)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_mean_0_and_deviation_1_and_constants_vanish() -> Result<()> {
        let data = [1.0, 7.0, 0.1, 3.0, 7.0, 0.1, 5.0, 7.0, 0.1];
        let table = Matrix::new(&data, 3, 3)?;
        let standard = Standard::of(table)?;
        let far = 1.5f32.sqrt();
        let rows = standard.apply(table);
        let want = [-far, 0.0, 0.0, 0.0, 0.0, 0.0, far, 0.0, 0.0];
        assert!(rows.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{rows:?}");
        // Other rows are measured by the first table's columns.
        assert_eq!(standard.apply(Matrix::new(&[3.0, 9.0, 4.0], 1, 3)?), [0.0; 3]);
        assert!(Standard::of(Matrix::new(&[], 0, 3)?).is_err());
        assert!(Standard::of(Matrix::new(&[f32::NAN], 1, 1)?).is_err());
        Ok(())
    }
}
