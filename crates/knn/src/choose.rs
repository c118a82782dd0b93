//! The number of neighbours and the temperature: chosen by accuracy on held-out rows, from one search.

use rayon::prelude::*;

use crate::vote::{check_labels, check_temperature, weight};
use crate::{Error, Matrix, Metric, Neighbours, Result, search};

/// Settings of the vote, and how often it was right with them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Neighbours.
    pub k: usize,
    /// Temperature of the vote.
    pub temperature: f32,
    /// Top-1 accuracy on the rows that they were tried on, as a fraction.
    pub accuracy: f64,
}

/// The settings with the highest accuracy of `queries` against `bank`, out of every pair of `ks` and `temperatures`.
///
/// Equally good settings: the smaller k wins, then the larger temperature (fewer rows to look at, then the smoother vote).
/// Queries must be rows held out for this choice; settings chosen on test rows would flatter them.
///
/// # Errors
/// As [`sweep`].
#[expect(clippy::too_many_arguments, reason = "two labelled tables, the grid and the metric: all of one kind")]
pub fn choose(
    bank: Matrix,
    bank_labels: &[u32],
    queries: Matrix,
    query_labels: &[u32],
    classes: usize,
    ks: &[usize],
    temperatures: &[f32],
    metric: Metric,
) -> Result<Setting> {
    let tried = sweep(bank, bank_labels, queries, query_labels, classes, ks, temperatures, metric)?;
    tried.into_iter().reduce(better).ok_or(Error::NoSettings("setting"))
}

/// The accuracy of `queries` against `bank` under every pair of `ks` and `temperatures`, from one search with the largest k.
/// Ordered by rising k, then rising temperature, each pair once.
///
/// # Errors
/// An empty list, a temperature that is not finite and above 0, labels that do not fit, and all that [`search`] refuses.
#[expect(clippy::too_many_arguments, reason = "two labelled tables, the grid and the metric: all of one kind")]
pub fn sweep(
    bank: Matrix,
    bank_labels: &[u32],
    queries: Matrix,
    query_labels: &[u32],
    classes: usize,
    ks: &[usize],
    temperatures: &[f32],
    metric: Metric,
) -> Result<Vec<Setting>> {
    check_labels("bank", bank_labels, bank.rows, classes)?;
    check_labels("queries", query_labels, queries.rows, classes)?;
    let (ks, temperatures) = grid(ks, temperatures, bank.rows)?;
    let found = search(bank, queries, ks[ks.len() - 1], metric, false)?;
    Ok(judge(&found, bank_labels, query_labels, classes, &ks, &temperatures))
}

/// The accuracy of a table's labels predicted from all its other rows.
///
/// # Errors
/// Labels that do not fit, a temperature that is not finite and above 0, and all that [`search`] refuses.
pub fn leave_one_out(rows: Matrix, labels: &[u32], classes: usize, k: usize, temperature: f32, metric: Metric) -> Result<f64> {
    Ok(sweep_left_out(rows, labels, classes, &[k], &[temperature], metric)?[0].accuracy)
}

/// As [`choose`], by the accuracy of a table's rows predicted from all its other rows: where nothing is held out to choose on.
///
/// # Errors
/// As [`sweep_left_out`].
pub fn choose_left_out(
    rows: Matrix,
    labels: &[u32],
    classes: usize,
    ks: &[usize],
    temperatures: &[f32],
    metric: Metric,
) -> Result<Setting> {
    let tried = sweep_left_out(rows, labels, classes, ks, temperatures, metric)?;
    tried.into_iter().reduce(better).ok_or(Error::NoSettings("setting"))
}

/// As [`sweep`], for a table whose rows are each predicted from all its other rows.
///
/// # Errors
/// As [`sweep`].
pub fn sweep_left_out(
    rows: Matrix,
    labels: &[u32],
    classes: usize,
    ks: &[usize],
    temperatures: &[f32],
    metric: Metric,
) -> Result<Vec<Setting>> {
    check_labels("table", labels, rows.rows, classes)?;
    let (ks, temperatures) = grid(ks, temperatures, rows.rows)?;
    let found = search(rows, rows, ks[ks.len() - 1], metric, true)?;
    Ok(judge(&found, labels, labels, classes, &ks, &temperatures))
}

fn better(a: Setting, b: Setting) -> Setting {
    let order = a.accuracy.total_cmp(&b.accuracy).then(b.k.cmp(&a.k)).then(a.temperature.total_cmp(&b.temperature));
    if order.is_lt() { b } else { a }
}

fn grid(ks: &[usize], temperatures: &[f32], rows: usize) -> Result<(Vec<usize>, Vec<f32>)> {
    let (mut ks, mut temperatures) = (ks.to_vec(), temperatures.to_vec());
    temperatures.iter().try_for_each(|&t| check_temperature(t))?;
    ks.sort_unstable();
    ks.dedup();
    temperatures.sort_unstable_by(f32::total_cmp);
    temperatures.dedup();
    match (ks.first(), temperatures.first()) {
        (None, _) => Err(Error::NoSettings("number of neighbours")),
        (_, None) => Err(Error::NoSettings("temperature")),
        // The search sees the largest k alone.
        (Some(0), _) => Err(Error::Neighbours { k: 0, available: rows, excluded: false }),
        _ => Ok((ks, temperatures)),
    }
}

/// Accuracy by k and temperature (both rising), from neighbours of the largest k.
fn judge(
    found: &Neighbours,
    bank_labels: &[u32],
    query_labels: &[u32],
    classes: usize,
    ks: &[usize],
    temperatures: &[f32],
) -> Vec<Setting> {
    let cells = ks.len() * temperatures.len();
    let right: Vec<u64> = (0..found.rows())
        .into_par_iter()
        .fold(
            || vec![0u64; cells],
            |mut right, q| {
                let (index, score) = found.row(q);
                let mut votes = vec![0.0f64; classes];
                for (t, &temperature) in temperatures.iter().enumerate() {
                    votes.fill(0.0);
                    let mut from = 0;
                    for (i, &k) in ks.iter().enumerate() {
                        for j in from..k {
                            votes[bank_labels[index[j] as usize] as usize] += weight(score[j], score[0], temperature);
                        }
                        from = k;
                        right[i * temperatures.len() + t] += u64::from(winner(&votes) == query_labels[q]);
                    }
                }
                right
            },
        )
        .reduce(|| vec![0; cells], |a, b| a.iter().zip(b).map(|(x, y)| x + y).collect());
    let pairs = ks.iter().flat_map(|&k| temperatures.iter().map(move |&t| (k, t)));
    let total = found.rows() as f64;
    pairs.zip(right).map(|((k, temperature), r)| Setting { k, temperature, accuracy: r as f64 / total }).collect()
}

/// The class with most votes, the lowest of those with as many.
fn winner(votes: &[f64]) -> u32 {
    let mut best = 0;
    for (class, &v) in votes.iter().enumerate() {
        if v > votes[best] {
            best = class;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_take_the_smaller_k_then_the_larger_temperature() {
        let s = |k, temperature, accuracy| Setting { k, temperature, accuracy };
        let best = |all: Vec<Setting>| all.into_iter().reduce(better).expect("some");
        assert_eq!(best(vec![s(5, 0.1, 0.5), s(5, 0.2, 0.5), s(9, 0.9, 0.5)]), s(5, 0.2, 0.5));
        assert_eq!(best(vec![s(9, 0.9, 0.5), s(5, 0.2, 0.5), s(5, 0.1, 0.5)]), s(5, 0.2, 0.5));
        assert_eq!(best(vec![s(5, 0.2, 0.5), s(9, 0.1, 0.6)]), s(9, 0.1, 0.6));
    }

    #[test]
    fn wrong_settings_are_refused() {
        let rows = [1.0f32, 0.0, 0.0, 1.0];
        let m = Matrix { data: &rows, rows: 2, dim: 2 };
        let try_with = |ks: &[usize], ts: &[f32]| {
            choose(m, &[0, 1], m, &[0, 1], 2, ks, ts, Metric::Cosine).expect_err("refused").to_string()
        };
        assert!(try_with(&[], &[0.1]).starts_with("no number of neighbours"));
        assert!(try_with(&[1], &[]).starts_with("no temperature"));
        assert!(try_with(&[1], &[0.1, 0.0]).starts_with("temperature 0"));
        assert!(try_with(&[1, 3], &[0.1]).starts_with("k = 3: between 1 and 2"));
        assert!(try_with(&[0, 1], &[0.1]).starts_with("k = 0"));
        let short = choose(m, &[0], m, &[0, 1], 2, &[1], &[0.1], Metric::Cosine);
        assert_eq!(short, Err(Error::LabelCount { what: "bank", labels: 1, rows: 2 }));
        let foreign = choose(m, &[0, 1], m, &[0, 2], 2, &[1], &[0.1], Metric::Cosine);
        assert_eq!(foreign, Err(Error::Label { what: "queries", row: 1, label: 2, classes: 2 }));
        assert!(matches!(leave_one_out(m, &[0, 1], 2, 2, 0.1, Metric::Cosine), Err(Error::Neighbours { excluded: true, .. })));
    }

    #[test]
    fn leave_one_out_ignores_the_row_itself() -> Result<()> {
        let rows = [1.0f32, 0.0, 1.0, 0.1, 0.0, 1.0, 0.1, 1.0];
        let m = Matrix { data: &rows, rows: 4, dim: 2 };
        assert_eq!(leave_one_out(m, &[0, 0, 1, 1], 2, 1, 0.1, Metric::Cosine)?, 1.0);
        // Each row's nearest other row has the other label.
        assert_eq!(leave_one_out(m, &[0, 1, 0, 1], 2, 1, 0.1, Metric::Euclidean)?, 0.0);
        // With all three others the two of the other label win.
        let tried = sweep_left_out(m, &[0, 0, 1, 1], 2, &[3, 1], &[10.0], Metric::Cosine)?;
        assert_eq!(tried.iter().map(|s| (s.k, s.accuracy)).collect::<Vec<_>>(), [(1, 1.0), (3, 0.0)]);
        assert_eq!(choose_left_out(m, &[0, 0, 1, 1], 2, &[3, 1], &[10.0], Metric::Cosine)?.k, 1);
        Ok(())
    }
}
