//! The weighted vote of neighbours: each votes for its class with weight exp(score / temperature).
//!
//! This is the k-NN classifier of Wu et al. 2018 (arXiv:1805.01978, section 3.4), as `lightly`'s `knn_predict` has it.

use rayon::prelude::*;

use crate::{Error, Neighbours, Result};

/// Classes ranked by vote, for each query.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// Number of classes: the length of a row.
    pub classes: usize,
    /// All classes, most votes first, `classes` for each query. Equal votes are ordered by lower class.
    pub ranked: Vec<u32>,
    /// The share of the votes that each of `ranked` has; a row sums to 1.
    pub share: Vec<f32>,
}

impl Predictions {
    /// Number of queries.
    pub fn rows(&self) -> usize {
        self.ranked.len().checked_div(self.classes).unwrap_or(0)
    }

    /// The class with most votes for query `q`.
    ///
    /// # Panics
    /// When there is no such query.
    pub fn best(&self, q: usize) -> u32 {
        self.ranked[q * self.classes]
    }

    /// Classes of query `q`, most votes first, and their shares.
    ///
    /// # Panics
    /// When there is no such query.
    pub fn row(&self, q: usize) -> (&[u32], &[f32]) {
        let range = q * self.classes..(q + 1) * self.classes;
        (&self.ranked[range.clone()], &self.share[range])
    }
}

/// Ranks `classes` classes for each query by the votes of its neighbours, whose labels are those of the bank.
///
/// A neighbour's weight is exp(score / temperature): the cosine, or minus the distance, as [`crate::search`] gives it.
/// Weights are taken relative to the nearest neighbour's, so no temperature overflows.
///
/// # Errors
/// No classes, a label that is none of them, neighbours beyond the labels, a temperature that is not finite and above 0.
pub fn vote(neighbours: &Neighbours, labels: &[u32], classes: usize, temperature: f32) -> Result<Predictions> {
    check_labels("bank", labels, labels.len(), classes)?;
    check_temperature(temperature)?;
    check_range(neighbours, labels.len())?;
    let rows = neighbours.rows();
    let mut ranked = vec![0u32; rows * classes];
    let mut share = vec![0.0f32; rows * classes];
    ranked.par_chunks_mut(classes).zip(share.par_chunks_mut(classes)).enumerate().for_each(|(q, (ranked, share))| {
        let (index, score) = neighbours.row(q);
        let mut votes = vec![0.0f64; classes];
        for (&i, &s) in index.iter().zip(score) {
            votes[labels[i as usize] as usize] += weight(s, score[0], temperature);
        }
        let total: f64 = votes.iter().sum();
        ranked.iter_mut().zip(0..).for_each(|(r, c)| *r = c);
        ranked.sort_by(|&a, &b| votes[b as usize].total_cmp(&votes[a as usize]));
        ranked.iter().zip(share).for_each(|(&c, s)| *s = (votes[c as usize] / total) as f32);
    });
    Ok(Predictions { classes, ranked, share })
}

/// The weight of a neighbour of `score` where the nearest has `best`.
pub(crate) fn weight(score: f32, best: f32, temperature: f32) -> f64 {
    ((f64::from(score) - f64::from(best)) / f64::from(temperature)).exp()
}

/// One label a row, each below `classes`.
pub(crate) fn check_labels(what: &'static str, labels: &[u32], rows: usize, classes: usize) -> Result<()> {
    if classes == 0 {
        return Err(Error::NoClasses);
    }
    if labels.len() != rows {
        return Err(Error::LabelCount { what, labels: labels.len(), rows });
    }
    match labels.iter().position(|&l| l as usize >= classes) {
        Some(row) => Err(Error::Label { what, row, label: labels[row], classes }),
        None => Ok(()),
    }
}

pub(crate) fn check_temperature(temperature: f32) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 { Ok(()) } else { Err(Error::Temperature(temperature)) }
}

fn check_range(neighbours: &Neighbours, rows: usize) -> Result<()> {
    match neighbours.index.iter().position(|&i| i as usize >= rows) {
        Some(at) => Err(Error::Foreign { row: at / neighbours.k, index: neighbours.index[at], rows }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Neighbours {
        Neighbours { k: 3, index: vec![0, 1, 2, 2, 1, 0], score: vec![0.9, 0.8, 0.8, 0.5, 0.5, 0.1] }
    }

    #[test]
    fn near_votes_count_more_and_ties_go_to_the_lower_class() -> Result<()> {
        let sharp = vote(&found(), &[2, 1, 1], 4, 0.01)?;
        assert_eq!(sharp.row(0).0, [2, 1, 0, 3]);
        let flat = vote(&found(), &[2, 1, 1], 4, 100.0)?;
        assert_eq!(flat.row(0).0, [1, 2, 0, 3]);
        assert!((flat.row(0).1.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let tied = vote(&found(), &[0, 3, 2], 4, 0.01)?;
        assert_eq!(tied.row(1).0[..2], [2, 3]);
        assert_eq!((tied.rows(), tied.best(1)), (2, 2));
        // The smallest of temperatures leaves the nearest alone instead of overflowing.
        let least = vote(&found(), &[2, 1, 1], 4, f32::MIN_POSITIVE)?;
        assert_eq!((least.best(0), least.row(0).1[0]), (2, 1.0));
        Ok(())
    }

    #[test]
    fn wrong_labels_are_named() {
        let text = |r: Result<Predictions>| r.expect_err("refused").to_string();
        assert_eq!(text(vote(&found(), &[0, 1, 4], 4, 0.1)), "bank: row 2 has label 4, but there are 4 classes (0 to 3)");
        assert!(text(vote(&found(), &[0, 1], 4, 0.1)).starts_with("neighbour 2 of row 0 has no label"));
        assert!(text(vote(&found(), &[], 0, 0.1)).starts_with("0 classes"));
        for t in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(text(vote(&found(), &[0, 1, 1], 4, t)).starts_with("temperature"));
        }
    }
}
