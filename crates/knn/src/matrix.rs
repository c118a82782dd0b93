//! Borrowed rows of one length, and the one pass that checks them and takes their norms.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::exact;
use crate::{Error, Result};

/// A table of `rows` rows of `dim` numbers, one row after the other.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// The numbers, row-major: `rows * dim` of them.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Numbers a row.
    pub dim: usize,
}

/// A checked table: finite, with the norm of each row.
pub(crate) struct Checked<'a> {
    pub data: Cow<'a, [f32]>,
    pub rows: usize,
    pub dim: usize,
    pub norms: Vec<f64>,
}

/// Norms between which products of two rows keep their precision in `f32`; rows outside are scaled in a copy.
const COMFORTABLE: std::ops::RangeInclusive<f64> = 1e-12..=1e12;
/// Rows that one task checks.
const ROWS: usize = 256;

impl<'a> Matrix<'a> {
    /// A table over `data`.
    ///
    /// # Errors
    /// When `data` is not `rows * dim` long.
    pub fn new(data: &'a [f32], rows: usize, dim: usize) -> Result<Self> {
        let matrix = Self { data, rows, dim };
        matrix.check_shape("table", 0)?;
        Ok(matrix)
    }

    /// Row `i`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    fn check_shape(&self, what: &'static str, least: usize) -> Result<()> {
        let Self { data, rows, dim } = *self;
        if rows < least || (dim == 0 && least > 0) {
            return Err(Error::TooSmall { what, rows, dim, least });
        }
        if rows > u32::MAX as usize {
            return Err(Error::TooManyRows { what, rows });
        }
        if rows.checked_mul(dim) != Some(data.len()) {
            return Err(Error::Length { what, len: data.len(), rows, dim });
        }
        Ok(())
    }

    /// Checks shape and values; `what` names the table in errors, `least` is the fewest rows that make sense (1 or more).
    pub(crate) fn check(self, what: &'static str, least: usize) -> Result<Checked<'a>> {
        self.check_shape(what, least)?;
        let Self { data, rows, dim } = self;
        let mut norms = vec![0.0f64; rows];
        norms.par_chunks_mut(ROWS).zip(data.par_chunks(ROWS * dim)).for_each(|(norms, data)| exact::norms(data, dim, norms));
        // A sum of squares of finite `f32` numbers stays finite in `f64`.
        if let Some(row) = norms.iter().position(|n| !n.is_finite()) {
            let (column, &value) =
                self.row(row).iter().enumerate().find(|(_, v)| !v.is_finite()).expect("the norm is not finite");
            return Err(Error::NotFinite { what, row, column, value });
        }
        Ok(Checked { data: Cow::Borrowed(data), rows, dim, norms })
    }
}

impl Checked<'_> {
    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// The largest norm.
    pub fn largest(&self) -> f64 {
        self.norms.iter().copied().fold(0.0, f64::max)
    }

    /// Whether products of these rows keep their precision (rows of zeros do).
    pub fn comfortable(&self) -> bool {
        self.norms.iter().all(|&n| n == 0.0 || COMFORTABLE.contains(&n))
    }

    /// Rows of length 1 (rows of zeros stay zeros).
    pub fn normalised(mut self) -> Self {
        let dim = self.dim;
        let data = self.data.to_mut();
        data.par_chunks_mut(dim).zip(&mut self.norms).for_each(|(row, norm)| {
            if *norm > 0.0 {
                row.iter_mut().for_each(|v| *v = (f64::from(*v) / *norm) as f32);
                exact::norms(row, dim, std::slice::from_mut(norm));
            }
        });
        self
    }

    /// All numbers times `factor`, a power of two.
    pub fn scaled(mut self, factor: f64) -> Self {
        self.data.to_mut().par_iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        self.norms.iter_mut().for_each(|n| *n *= factor);
        self
    }
}

/// The power of two that brings `norm` near 1, or `None` when it is comfortable or zero.
pub(crate) fn rescue(norm: f64) -> Option<f64> {
    (norm > 0.0 && !COMFORTABLE.contains(&norm)).then(|| (-norm.log2().floor()).exp2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tables_are_refused_by_name() {
        assert_eq!(Matrix::new(&[1.0; 5], 2, 3).err(), Some(Error::Length { what: "table", len: 5, rows: 2, dim: 3 }));
        let huge = Matrix { data: &[], rows: 1 << 31, dim: usize::MAX };
        assert!(matches!(huge.check("bank", 1), Err(Error::Length { .. })));
        let empty = Matrix { data: &[], rows: 0, dim: 4 };
        assert!(matches!(empty.check("bank", 1), Err(Error::TooSmall { what: "bank", .. })));
        let flat = Matrix { data: &[], rows: 3, dim: 0 };
        assert!(matches!(flat.check("queries", 1), Err(Error::TooSmall { what: "queries", .. })));
        let data = [0.0, 1.0, 2.0, f32::INFINITY, 4.0, f32::NAN];
        let refused = Matrix { data: &data, rows: 3, dim: 2 }.check("bank", 1).err().expect("refused");
        assert_eq!(refused.to_string(), "bank: row 1 holds inf at position 1; features must be finite");
    }

    #[test]
    fn norms_of_extreme_rows_are_right_and_rows_can_be_rescued() {
        let data = [3e30, 4e30, 0.0, 0.0, 3e-30, 4e-30];
        let checked = Matrix { data: &data, rows: 3, dim: 2 }.check("bank", 1).expect("finite");
        assert!((checked.norms[0] / 5e30 - 1.0).abs() < 1e-6);
        assert_eq!(checked.norms[1], 0.0);
        assert!(!checked.comfortable());
        let unit = checked.normalised();
        assert!(unit.comfortable());
        assert!((unit.row(2)[0] - 0.6).abs() < 1e-6 && unit.row(1) == [0.0, 0.0]);
        assert_eq!(rescue(1.0), None);
        assert_eq!(rescue(0.0), None);
        let factor = rescue(5e30).expect("too large");
        assert!((0.5..=2.0).contains(&(5e30 * factor)) && factor.log2().fract() == 0.0);
    }
}
