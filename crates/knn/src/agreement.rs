//! How far two partitions of the same rows agree: normalised mutual information, the adjusted Rand index, and accuracy under the
//! best matching of clusters with classes.

use pathfinding::prelude::{Matrix as Weights, kuhn_munkres};

use crate::{Error, Result};

/// How often each pair of a first and a second label occurs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contingency {
    rows: usize,
    columns: usize,
    /// First label by row, second by column.
    counts: Vec<u64>,
    total: u64,
}

impl Contingency {
    /// Counts the pairs of two partitions. Labels are 0, 1, … in no order; unused ones do no harm.
    ///
    /// # Errors
    /// No rows, or not as many labels in both.
    pub fn new(first: &[u32], second: &[u32]) -> Result<Self> {
        if first.len() != second.len() {
            return Err(Error::LabelCount { what: "second partition", labels: second.len(), rows: first.len() });
        }
        let size = |labels: &[u32]| labels.iter().max().map_or(0, |&m| m as usize + 1);
        let (rows, columns) = (size(first), size(second));
        if first.is_empty() {
            return Err(Error::TooSmall { what: "partition", rows: 0, dim: 1, least: 1 });
        }
        let mut counts = vec![0u64; rows * columns];
        first.iter().zip(second).for_each(|(&a, &b)| counts[a as usize * columns + b as usize] += 1);
        Ok(Self { rows, columns, counts, total: first.len() as u64 })
    }

    /// Mutual information over the mean of both entropies (scikit-learn's `normalized_mutual_info_score`), in [0, 1]. Two partitions
    /// into one part each agree wholly.
    pub fn normalized_mutual_info(&self) -> f64 {
        let (rows, columns) = self.sums();
        let n = self.total as f64;
        let used = |sums: &[u64]| sums.iter().filter(|&&s| s > 0).count();
        if used(&rows) == 1 && used(&columns) == 1 {
            return 1.0;
        }
        let entropy = |sums: &[u64]| -> f64 { sums.iter().filter(|&&s| s > 0).map(|&s| s as f64 / n).map(|p| -p * p.ln()).sum() };
        let mut information = 0.0;
        for (i, &r) in rows.iter().enumerate() {
            for (j, &c) in columns.iter().enumerate() {
                let both = self.counts[i * self.columns + j];
                if both > 0 {
                    information += both as f64 / n * (both as f64 * n / (r as f64 * c as f64)).ln();
                }
            }
        }
        let mean = (entropy(&rows) + entropy(&columns)) / 2.0;
        if information <= f64::EPSILON { 0.0 } else { (information / mean).min(1.0) }
    }

    /// The share of pairs of rows that both partitions treat alike, corrected for chance (Hubert & Arabie 1985): 1 when they are
    /// the same, near 0 when they have nothing to do with each other.
    pub fn adjusted_rand(&self) -> f64 {
        let square = |v: &[u64]| v.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
        let (rows, columns) = self.sums();
        let (n, both) = (self.total as f64, square(&self.counts));
        let (first, second) = (square(&rows), square(&columns));
        // Ordered pairs of two different rows: together in both, in one alone, in none.
        let (together, only_second, only_first) = (both - n, second - both, first - both);
        let apart = n * n - only_second - only_first - both;
        if only_first == 0.0 && only_second == 0.0 {
            return 1.0;
        }
        2.0 * (together * apart - only_first * only_second)
            / ((together + only_first) * (only_first + apart) + (together + only_second) * (only_second + apart))
    }

    /// The share of rows whose first label is matched with their second, under the one-to-one matching that makes it largest
    /// (Kuhn 1955): clusters beyond the classes, or classes beyond the clusters, have no match.
    pub fn matched_accuracy(&self) -> f64 {
        let side = self.rows.max(self.columns);
        let at = |i: usize, j: usize| if i < self.rows && j < self.columns { self.counts[i * self.columns + j] } else { 0 };
        let weights = Weights::from_fn(side, side, |(i, j)| at(i, j) as i64);
        let (right, _) = kuhn_munkres(&weights);
        right as f64 / self.total as f64
    }

    fn sums(&self) -> (Vec<u64>, Vec<u64>) {
        let rows = self.counts.chunks_exact(self.columns).map(|r| r.iter().sum()).collect();
        let columns = (0..self.columns).map(|j| self.counts.iter().skip(j).step_by(self.columns).sum()).collect();
        (rows, columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_partitions_have_known_agreement() -> Result<()> {
        let same = Contingency::new(&[0, 0, 1, 1, 2, 2], &[2, 2, 0, 0, 1, 1])?;
        assert!((same.normalized_mutual_info() - 1.0).abs() < 1e-12);
        assert_eq!((same.adjusted_rand(), same.matched_accuracy()), (1.0, 1.0));
        // scikit-learn 1.7: adjusted_rand_score([0,0,1,1], [0,0,1,2]) and normalized_mutual_info_score of the same.
        let finer = Contingency::new(&[0, 0, 1, 1], &[0, 0, 1, 2])?;
        assert!((finer.adjusted_rand() - 0.571_428_571_428_571_4).abs() < 1e-12);
        assert!((finer.normalized_mutual_info() - 0.8).abs() < 1e-12);
        assert_eq!(finer.matched_accuracy(), 0.75);
        let independent = Contingency::new(&[0, 0, 1, 1], &[0, 1, 0, 1])?;
        assert_eq!(independent.normalized_mutual_info(), 0.0);
        assert!((independent.adjusted_rand() + 0.5).abs() < 1e-12);
        let single = Contingency::new(&[0, 0, 0], &[1, 1, 1])?;
        assert_eq!((single.normalized_mutual_info(), single.adjusted_rand()), (1.0, 1.0));
        Ok(())
    }

    #[test]
    fn partitions_that_do_not_fit_are_refused() {
        assert!(matches!(Contingency::new(&[0, 1], &[0]), Err(Error::LabelCount { labels: 1, rows: 2, .. })));
        assert!(matches!(Contingency::new(&[], &[]), Err(Error::TooSmall { .. })));
    }
}
