//! The exact search: block products select candidates for each query, and their scores, computed anew in `f64`, rank them.

use rayon::prelude::*;

use crate::exact;
use crate::matrix::{Checked, rescue};
use crate::product;
use crate::select::Selection;
use crate::{Error, Matrix, Result};

/// What nearness means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The cosine of the angle between two rows, whatever their lengths. A row of zeros has cosine 0 to every row.
    Cosine,
    /// The straight distance between two rows.
    Euclidean,
}

/// The `k` nearest rows of the bank for each query, nearest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// Neighbours a query.
    pub k: usize,
    /// Rows of the bank, `k` for each query.
    pub index: Vec<u32>,
    /// How near each is, greater is nearer: the cosine in [-1, 1], or minus the Euclidean distance.
    pub score: Vec<f32>,
}

impl Neighbours {
    /// Number of queries.
    pub fn rows(&self) -> usize {
        self.index.len().checked_div(self.k).unwrap_or(0)
    }

    /// Neighbours of query `q` and their scores.
    ///
    /// # Panics
    /// When there is no such query.
    pub fn row(&self, q: usize) -> (&[u32], &[f32]) {
        let range = q * self.k..(q + 1) * self.k;
        (&self.index[range.clone()], &self.score[range])
    }
}

/// Queries that one task takes at a time.
const QUERY_BLOCK: usize = 1024;
/// Rows of the bank in one product.
const BANK_BLOCK: usize = 512;
/// Rows below which dividing the bank among tasks is not worth it.
const SEGMENT: usize = 4096;
/// Unit roundoff of `f32`.
const UNIT: f64 = 1.0 / (1u32 << 24) as f64;

/// The `k` rows of `bank` nearest to each of `queries`, by exhaustive comparison.
///
/// Equal scores (as `f32`) are ordered by lower index. Rows need not be normalised for [`Metric::Cosine`]. With
/// `exclude_self`, `queries` must be the bank itself, and each row leaves itself (the row of its own index) out.
/// The result is the same for any number of threads. Memory beyond the result: about 10 MB a thread (with k = 200).
///
/// # Errors
/// Empty tables, wrong lengths, NaN and infinities (named by table and row), rows of differing length, and `k` of 0 or
/// more than the rows that there are.
pub fn search(bank: Matrix, queries: Matrix, k: usize, metric: Metric, exclude_self: bool) -> Result<Neighbours> {
    let bank = bank.check("bank", 1)?;
    let queries = queries.check("queries", 1)?;
    if bank.dim != queries.dim {
        return Err(Error::Dimension { queries: queries.dim, bank: bank.dim });
    }
    if exclude_self && bank.rows != queries.rows {
        let (got, expected) = ((queries.rows, queries.dim), (bank.rows, bank.dim));
        return Err(Error::Shape { what: "queries of a search that leaves each row out of its own", got, expected });
    }
    let available = bank.rows - usize::from(exclude_self);
    if k == 0 || k > available {
        return Err(Error::Neighbours { k, available, excluded: exclude_self });
    }
    Ok(Plan::new(bank, queries, k, metric, exclude_self).run())
}

/// Tables and the coefficients that turn a product into a key.
struct Plan<'a> {
    bank: Checked<'a>,
    queries: Checked<'a>,
    k: usize,
    metric: Metric,
    exclude_self: bool,
    /// A key is product × scale + shift, by row of the bank.
    scale: Vec<f32>,
    shift: Vec<f32>,
    /// Scores are multiplied by it in the end: the tables may have been scaled.
    unscale: f64,
}

impl<'a> Plan<'a> {
    fn new(bank: Checked<'a>, queries: Checked<'a>, k: usize, metric: Metric, exclude_self: bool) -> Self {
        let mut unscale = 1.0;
        let (bank, queries) = match metric {
            Metric::Cosine => [bank, queries].map(|t| if t.comfortable() { t } else { t.normalised() }).into(),
            Metric::Euclidean => match rescue(bank.largest().max(queries.largest())) {
                None => (bank, queries),
                Some(factor) => {
                    unscale = 1.0 / factor;
                    (bank.scaled(factor), queries.scaled(factor))
                }
            },
        };
        let (scale, shift) = match metric {
            Metric::Cosine => (bank.norms.iter().map(|&n| inverse(n) as f32).collect(), vec![0.0; bank.rows]),
            // Half of -‖q − b‖² without the part that all rows of the bank share.
            Metric::Euclidean => (vec![1.0; bank.rows], bank.norms.iter().map(|&n| (-0.5 * n * n) as f32).collect()),
        };
        Self { bank, queries, k, metric, exclude_self, scale, shift, unscale }
    }

    fn run(&self) -> Neighbours {
        let (rows, k) = (self.queries.rows, self.k);
        let tasks = 2 * rayon::current_num_threads();
        let block = rows.div_ceil(tasks).clamp(64, QUERY_BLOCK);
        let segments = tasks.div_ceil(rows.div_ceil(block)).min(self.bank.rows.div_ceil(SEGMENT));
        let segment = self.bank.rows.div_ceil(segments);
        let mut index = vec![0u32; rows * k];
        let mut score = vec![0.0f32; rows * k];
        index.par_chunks_mut(block * k).zip(score.par_chunks_mut(block * k)).enumerate().for_each(|(b, (index, score))| {
            let queries = b * block..b * block + index.len() / k;
            let mut parts: Vec<Vec<Selection>> = (0..segments)
                .into_par_iter()
                .map(|s| self.select(queries.clone(), s * segment..((s + 1) * segment).min(self.bank.rows)))
                .collect();
            let mut selections = parts.swap_remove(0);
            for part in parts {
                selections.iter_mut().zip(&part).for_each(|(all, other)| all.join(other));
            }
            let selections: Vec<_> = queries.zip(selections).collect();
            selections
                .into_par_iter()
                .zip(index.par_chunks_mut(k).zip(score.par_chunks_mut(k)))
                .for_each(|((q, selection), (index, score))| self.rank(q, selection.finish(), index, score));
        });
        Neighbours { k, index, score }
    }

    /// Candidates of a block of queries in a part of the bank.
    fn select(&self, queries: std::ops::Range<usize>, part: std::ops::Range<usize>) -> Vec<Selection> {
        let dim = self.bank.dim;
        let rows = &self.queries.data[queries.start * dim..queries.end * dim];
        let largest = self.bank.largest();
        let mut selections: Vec<_> = queries.clone().map(|q| Selection::new(self.k, self.margin(q, largest))).collect();
        let mut products = vec![0.0f32; queries.len() * BANK_BLOCK.min(part.len())];
        for start in part.clone().step_by(BANK_BLOCK) {
            let end = (start + BANK_BLOCK).min(part.end);
            let products = &mut products[..queries.len() * (end - start)];
            product::products(rows, &self.bank.data[start * dim..end * dim], dim, products);
            let (scale, shift) = (&self.scale[start..end], &self.shift[start..end]);
            for ((q, selection), keys) in queries.clone().zip(&mut selections).zip(products.chunks_exact(end - start)) {
                let skip = if self.exclude_self { q as u32 } else { u32::MAX };
                selection.offer(keys, scale, shift, start as u32, skip);
            }
        }
        selections
    }

    /// How far apart two keys of query `q` must be for their order to be certain: twice the error of a key.
    ///
    /// A product of `dim` terms, summed in any order, is off by at most γ·‖q‖·‖b‖ with γ = dim·u / (1 − dim·u) (Higham 2002,
    /// section 3.1); the coefficients and the rounding of final scores add a few units.
    fn margin(&self, q: usize, largest: f64) -> f32 {
        let units = (self.bank.dim + 8) as f64 * UNIT;
        let gamma = units / (1.0 - units.min(0.5));
        let norm = self.queries.norms[q];
        let error = match self.metric {
            Metric::Cosine => gamma * norm,
            Metric::Euclidean => gamma * (norm + largest).powi(2),
        };
        (2.0 * error) as f32
    }

    /// Scores the candidates of query `q` and writes the nearest.
    fn rank(&self, q: usize, candidates: Vec<u32>, index: &mut [u32], score: &mut [f32]) {
        let row = self.queries.row(q);
        let others: Vec<&[f32]> = candidates.iter().map(|&c| self.bank.row(c as usize)).collect();
        let mut values = Vec::with_capacity(candidates.len());
        match self.metric {
            Metric::Cosine => {
                exact::products(row, &others, &mut values);
                let norm = inverse(self.queries.norms[q]);
                for (value, &c) in values.iter_mut().zip(&candidates) {
                    *value = (*value * norm * inverse(self.bank.norms[c as usize])).clamp(-1.0, 1.0);
                }
            }
            Metric::Euclidean => {
                exact::square_distances(row, &others, &mut values);
                values.iter_mut().for_each(|v| *v = (-v.sqrt() * self.unscale).max(-f64::from(f32::MAX)));
            }
        }
        let mut ranked: Vec<(f32, u32)> = values.iter().map(|&v| v as f32).zip(candidates).collect();
        // Adding 0 turns -0 into 0, so that the two are equal to `total_cmp` too.
        ranked.iter_mut().for_each(|(s, _)| *s += 0.0);
        ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for ((s, i), (to_score, to_index)) in ranked.into_iter().zip(score.iter_mut().zip(index)) {
            (*to_score, *to_index) = (s, i);
        }
    }
}

fn inverse(norm: f64) -> f64 {
    if norm > 0.0 { 1.0 / norm } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(data: &[f32], dim: usize) -> Matrix<'_> {
        Matrix { data, rows: data.len() / dim, dim }
    }

    #[test]
    fn refused_input_is_named() {
        let bank = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let (a, b) = (table(&bank, 2), table(&bank, 3));
        let error = |r: Result<Neighbours>| r.expect_err("refused").to_string();
        assert!(error(search(a, b, 1, Metric::Cosine, false)).contains("3 numbers a row and the bank has 2"));
        assert!(error(search(a, a, 0, Metric::Cosine, false)).contains("between 1 and 3"));
        assert!(error(search(a, a, 4, Metric::Cosine, false)).contains("k = 4"));
        assert!(error(search(a, a, 3, Metric::Cosine, true)).contains("between 1 and 2 neighbours can be had (each row"));
        assert!(error(search(a, table(&bank[..4], 2), 1, Metric::Cosine, true)).contains("(2, 2)"));
        assert!(error(search(table(&[], 2), a, 1, Metric::Cosine, false)).starts_with("bank: 0 rows"));
        assert!(error(search(a, table(&[], 2), 1, Metric::Cosine, false)).starts_with("queries: 0 rows"));
        let bad = [0.0, 1.0, f32::NAN, 0.0];
        assert!(error(search(a, table(&bad, 2), 1, Metric::Euclidean, false)).contains("queries: row 1 holds NaN at position 0"));
    }

    #[test]
    fn rows_of_zeros_have_cosine_zero() -> Result<()> {
        let bank = [-1.0, 0.0, 0.0, 0.0, 2.0, 0.0];
        let found = search(table(&bank, 2), table(&[3.0, 0.0, 0.0, 0.0], 2), 3, Metric::Cosine, false)?;
        assert_eq!(found.row(0), (&[2, 1, 0][..], &[1.0, 0.0, -1.0][..]));
        assert_eq!(found.row(1), (&[0, 1, 2][..], &[0.0, 0.0, 0.0][..]));
        Ok(())
    }

    #[test]
    fn extreme_magnitudes_keep_their_order() -> Result<()> {
        for unit in [1e-38f32, 1e-20, 1.0, 1e20, 1e37] {
            let bank: Vec<f32> = [4.0, 0.0, 1.0, 1.0, 3.0, 0.5, -9.0, 0.0].iter().map(|v| v * unit).collect();
            let query = [unit, 0.0];
            let near = search(table(&bank, 2), table(&query, 2), 4, Metric::Euclidean, false)?;
            assert_eq!(near.index, [1, 2, 0, 3], "{unit}");
            assert!((f64::from(near.score[3]) / (-10.0 * f64::from(unit)) - 1.0).abs() < 1e-5, "{unit}");
            assert_eq!(search(table(&bank, 2), table(&query, 2), 4, Metric::Cosine, false)?.index, [0, 2, 1, 3], "{unit}");
        }
        Ok(())
    }

    #[test]
    fn near_duplicates_far_from_the_origin_are_told_apart() -> Result<()> {
        // Distances of 2^-9 to 2^-6 at norms of 1000: in f32, ‖q‖² − 2qb + ‖b‖² could not tell them apart.
        let bank: Vec<f32> = [4.0, 1.0, 3.0, 2.0, 8.0].iter().flat_map(|v| [1000.0 + v / 512.0, 1000.0]).collect();
        let found = search(table(&bank, 2), table(&[1000.0, 1000.0], 2), 5, Metric::Euclidean, false)?;
        assert_eq!(found.index, [1, 3, 2, 0, 4]);
        assert_eq!(found.score[0], -1.0 / 512.0);
        Ok(())
    }
}
