//! How often predictions are right: top-1, top-5, and the confusion matrix.

use crate::vote::check_labels;
use crate::{Predictions, Result};

/// Shares of predictions that are right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// Of those whose first class is the label.
    pub top1: f64,
    /// Of those whose first five classes hold the label (1 where there are five classes or fewer).
    pub top5: f64,
}

/// How often each class was taken for each.
#[derive(Debug, Clone, PartialEq)]
pub struct Confusion {
    /// Number of classes.
    pub classes: usize,
    /// Counts, the true class by row and the predicted one by column.
    pub counts: Vec<u64>,
}

impl Confusion {
    /// How often `label` was taken for `predicted`.
    ///
    /// # Panics
    /// When one of them is no class.
    pub fn at(&self, label: usize, predicted: usize) -> u64 {
        assert!(predicted < self.classes, "class {predicted} of {}", self.classes);
        self.counts[label * self.classes + predicted]
    }

    /// The share of rows on the diagonal.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|c| self.at(c, c)).sum();
        share(right, self.counts.iter().sum())
    }

    /// Of the rows of class `c`, the share that was recognised; `None` where there are none.
    pub fn recall(&self, c: usize) -> Option<f64> {
        let all: u64 = (0..self.classes).map(|p| self.at(c, p)).sum();
        (all > 0).then(|| share(self.at(c, c), all))
    }

    /// Of the rows taken for class `c`, the share that is of it; `None` where there are none.
    pub fn precision(&self, c: usize) -> Option<f64> {
        let all: u64 = (0..self.classes).map(|l| self.at(l, c)).sum();
        (all > 0).then(|| share(self.at(c, c), all))
    }
}

/// Top-1 and top-5 accuracy of predictions, one label each.
///
/// # Errors
/// When there is not one label a prediction, or a label is none of the classes.
pub fn accuracy(predictions: &Predictions, labels: &[u32]) -> Result<Accuracy> {
    check_labels("queries", labels, predictions.rows(), predictions.classes)?;
    Ok(Accuracy { top1: top_n(predictions, labels, 1), top5: top_n(predictions, labels, 5) })
}

/// The share of predictions whose first class is the label: [`top_n`] with 1.
pub fn top1(predictions: &Predictions, labels: &[u32]) -> f64 {
    top_n(predictions, labels, 1)
}

/// The share of predictions whose first `n` classes hold the label; 0 where there is nothing to judge.
///
/// A prediction without a label, or a label without a prediction, counts as wrong; [`accuracy`] refuses them instead.
pub fn top_n(predictions: &Predictions, labels: &[u32], n: usize) -> f64 {
    let rows = predictions.rows().min(labels.len());
    let n = n.min(predictions.classes);
    let right = (0..rows).filter(|&q| predictions.row(q).0[..n].contains(&labels[q])).count();
    share(right as u64, predictions.rows().max(labels.len()) as u64)
}

/// Counts how often each class was taken for each.
///
/// # Errors
/// When there is not one label a prediction, or a label is none of the classes.
pub fn confusion(predictions: &Predictions, labels: &[u32]) -> Result<Confusion> {
    let classes = predictions.classes;
    check_labels("queries", labels, predictions.rows(), classes)?;

    let mut counts = vec![0u64; classes * classes];
    for (q, &label) in labels.iter().enumerate() {
        counts[label as usize * classes + predictions.best(q) as usize] += 1;
    }
    Ok(Confusion { classes, counts })
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn predictions() -> Predictions {
        let ranked = vec![0, 1, 2, 3, 4, 5, 2, 0, 1, 3, 4, 5, 2, 1, 0, 5, 4, 3, 0, 5, 4, 3, 2, 1];
        Predictions { classes: 6, share: vec![1.0 / 6.0; ranked.len()], ranked }
    }

    #[test]
    fn shares_and_counts_are_right() -> Result<()> {
        let labels = [0, 2, 0, 1];
        assert_eq!(accuracy(&predictions(), &labels)?, Accuracy { top1: 0.5, top5: 0.75 });
        assert_eq!(top_n(&predictions(), &labels, 3), 0.75);
        assert_eq!(top_n(&predictions(), &labels, 99), 1.0);
        let confusion = confusion(&predictions(), &labels)?;
        assert_eq!((confusion.at(0, 0), confusion.at(0, 2), confusion.at(1, 0), confusion.at(2, 2)), (1, 1, 1, 1));
        assert_eq!(confusion.accuracy(), 0.5);
        assert_eq!((confusion.recall(0), confusion.recall(5)), (Some(0.5), None));
        assert_eq!((confusion.precision(0), confusion.precision(2), confusion.precision(1)), (Some(0.5), Some(0.5), None));
        Ok(())
    }

    #[test]
    fn missing_labels_never_flatter() {
        assert_eq!(top1(&predictions(), &[0, 2]), 0.5);
        assert!(matches!(accuracy(&predictions(), &[0, 2]), Err(Error::LabelCount { labels: 2, rows: 4, .. })));
        assert!(matches!(confusion(&predictions(), &[0, 2, 6, 0]), Err(Error::Label { row: 2, label: 6, .. })));
    }
}
