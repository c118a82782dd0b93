//! Linear classifiers on frozen features: balanced draws of labels, and a penalty chosen on a part of the drawn ones.

use twinsight_knn::linear::{Logistic, Penalty, best_penalty, sweep_penalty};
use twinsight_knn::{Matrix, Predictions};

use crate::Result;

/// Penalties that are tried, as factors of half the squared norm of the weights beside the mean loss, for features whose mean square
/// is 1.
const STRENGTHS: [f64; 6] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
/// Iterations of a fit at most.
const ITERATIONS: u64 = 200;
/// The share of the labels that the penalty is chosen on.
const HELD: f64 = 0.2;

/// A classifier with how it came about.
pub(crate) struct Chosen {
    /// The classifier, fitted to all rows.
    pub fitted: Logistic,
    /// The inverse of its penalty (scikit-learn's `C`).
    pub c: f64,
    /// What should be known beside: no choice was possible, the best penalty was the weakest or strongest tried, iterations did not suffice.
    pub remarks: Vec<&'static str>,
}

/// Fits a classifier to `rows`: the penalty is chosen on a fifth of them, class by class, drawn by `seed`; the classifier is then fitted to
/// all. With fewer than two labels a class there is nothing to choose on, and the middle penalty is taken.
///
/// # Errors
/// Labels that do not fit, one class only, rows that are not finite.
pub(crate) fn fit_chosen(rows: Matrix, labels: &[u32], classes: usize, seed: u64) -> Result<Chosen> {
    let held = draw_rows(labels, classes, HELD, seed ^ 0x5eed);
    let rest: Vec<usize> = (0..rows.rows).filter(|i| held.binary_search(i).is_err()).collect();
    let (fit_rows, fit_labels) = take(rows, labels, &rest);
    let (held_rows, held_labels) = take(rows, labels, &held);
    let square = rows.data.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / rows.data.len().max(1) as f64;
    let c = |strength: f64, n: usize| 1.0 / (strength * n as f64 * square.max(f64::MIN_POSITIVE));
    let mut remarks = Vec::new();
    let mut strength = STRENGTHS[STRENGTHS.len() / 2];
    let present = labels.iter().collect::<std::collections::BTreeSet<_>>().len();
    if rows.rows >= 2 * present && fit_labels.iter().any(|&l| l != fit_labels[0]) {
        let cs: Vec<f64> = STRENGTHS.iter().map(|&s| c(s, rest.len())).collect();
        let fit = Matrix { data: &fit_rows, rows: rest.len(), dim: rows.dim };
        let held = Matrix { data: &held_rows, rows: held.len(), dim: rows.dim };
        let tried = sweep_penalty(fit, &fit_labels, held, &held_labels, classes, &cs, ITERATIONS)?;
        if let Some(best) = best_penalty(&tried) {
            strength = 1.0 / (best.c * rest.len() as f64 * square.max(f64::MIN_POSITIVE));
            remarks.extend(edge(&tried, best.c));
        }
    } else {
        remarks.push("too few labels to choose a penalty on");
    }
    let c = c(strength, rows.rows);
    let fitted = Logistic::fit(rows, labels, classes, c, ITERATIONS, None)?;
    if !fitted.converged {
        remarks.push("200 iterations did not suffice");
    }
    Ok(Chosen { fitted, c, remarks })
}

/// Says where the best of `tried` (in rising order of `c`) is the last in its direction, and better than the one before: beyond it there may be
/// a better one.
fn edge(tried: &[Penalty], best: f64) -> Option<&'static str> {
    match tried {
        [first, second, ..] if first.c == best && first.accuracy > second.accuracy => {
            Some("the strongest penalty tried was best")
        }
        [.., last] if tried.len() > 1 && last.c == best => Some("the weakest penalty tried was best"),
        _ => None,
    }
}

/// Rows of a balanced share of the labels, in rising order: each class its share, rounded, at least one row, decided by `seed`.
pub(crate) fn draw_rows(labels: &[u32], classes: usize, share: f64, seed: u64) -> Vec<usize> {
    use rand::seq::SliceRandom;
    use rand_chacha::rand_core::SeedableRng;
    let mut groups = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(i, &l)| groups[l as usize].push(i));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut drawn: Vec<usize> = groups
        .into_iter()
        .flat_map(|mut group| {
            let count = ((group.len() as f64 * share).round() as usize).max(1).min(group.len());
            group.shuffle(&mut rng);
            group.truncate(count);
            group
        })
        .collect();
    drawn.sort_unstable();
    drawn
}

/// Some rows of a table with their labels.
pub(crate) fn take(table: Matrix, labels: &[u32], rows: &[usize]) -> (Vec<f32>, Vec<u32>) {
    (rows.iter().flat_map(|&i| table.row(i)).copied().collect(), rows.iter().map(|&i| labels[i]).collect())
}

/// The same predictions among `classes` classes: those that the classifier does not know come last, with nothing.
pub(crate) fn widened(predicted: Predictions, classes: usize) -> Predictions {
    let known = predicted.classes;
    if classes <= known {
        return predicted;
    }
    let ranked =
        predicted.ranked.chunks_exact(known).flat_map(|r| r.iter().copied().chain(known as u32..classes as u32)).collect();
    let more = || std::iter::repeat_n(0.0, classes - known);
    let share = predicted.share.chunks_exact(known).flat_map(|s| s.iter().copied().chain(more())).collect();
    Predictions { classes, ranked, share }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_choice_lacked_is_remarked() -> Result<()> {
        let tried = |accuracies: [f64; 3]| -> Vec<Penalty> {
            (1..).zip(accuracies).map(|(c, accuracy)| Penalty { c: f64::from(c), accuracy, converged: true }).collect()
        };
        assert_eq!(edge(&tried([0.9, 0.8, 0.7]), 1.0), Some("the strongest penalty tried was best"));
        assert_eq!(edge(&tried([0.9, 0.9, 0.7]), 1.0), None);
        assert_eq!(edge(&tried([0.7, 0.8, 0.9]), 3.0), Some("the weakest penalty tried was best"));
        let (rows, labels) = ([1.0, 0.0, 0.0, 1.0], [0, 1]);
        let two = fit_chosen(Matrix::new(&rows, 2, 2)?, &labels, 2, 0)?;
        assert!(two.remarks.contains(&"too few labels to choose a penalty on"), "{:?}", two.remarks);
        Ok(())
    }

    #[test]
    fn classes_without_training_images_come_last() {
        let known = Predictions { classes: 2, ranked: vec![1, 0, 0, 1], share: vec![0.7, 0.3, 0.9, 0.1] };
        let all = widened(known, 4);
        assert_eq!((all.row(0).0, all.row(1).0), (&[1, 0, 2, 3][..], &[0, 1, 2, 3][..]));
        assert_eq!(all.row(1).1, [0.9, 0.1, 0.0, 0.0]);
    }
}
