//! How sure an accuracy is: a bootstrap interval over test rows, and the spread over seeds.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A figure with the interval that holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The figure itself.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;

/// The share of `right` with its 95 % percentile interval over resampled rows (Efron & Tibshirani 1993, chapter 13): how much the
/// figure would move with other test rows of the same kind. `None` where there are no rows.
pub fn bootstrap(right: &[bool], seed: u64) -> Option<Interval> {
    let n = right.len();
    if n == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut shares: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..n).filter(|_| right[rng.random_range(0..n)]).count() as f64 / n as f64).collect();
    shares.sort_unstable_by(f64::total_cmp);
    let at = |q: f64| shares[(q * (RESAMPLES - 1) as f64).round() as usize];
    let mean = right.iter().filter(|&&r| r).count() as f64 / n as f64;
    Some(Interval { mean, low: at(0.025), high: at(0.975) })
}

/// The mean of one share (0 to 1) a seed with its 95 % interval by Student's t, cut to 0 to 1: how much the figure would move with another
/// seed. `None` for fewer than two figures.
pub fn spread_of_seeds(figures: &[f64]) -> Option<Interval> {
    /// Student's t at 0.975 for 1 to 10 degrees of freedom; the normal's 1.96 lies below it by 14 % at 10.
    const T: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    let n = figures.len();
    if n < 2 {
        return None;
    }
    let mean = figures.iter().sum::<f64>() / n as f64;
    let variance = figures.iter().map(|f| (f - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let half = T[(n - 2).min(T.len() - 1)] * (variance / n as f64).sqrt();
    Some(Interval { mean, low: (mean - half).max(0.0), high: (mean + half).min(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_as_wide_as_the_binomial_says() {
        let right: Vec<bool> = (0..1000).map(|i| i % 5 != 0).collect();
        let found = bootstrap(&right, 0).expect("rows");
        // 1.96 · √(0.8 · 0.2 / 1000) = 0.0248.
        assert_eq!(found.mean, 0.8);
        assert!((found.low - 0.7752).abs() < 0.003 && (found.high - 0.8248).abs() < 0.003, "{found:?}");
        assert_eq!(bootstrap(&right, 0), Some(found));
        assert_eq!(bootstrap(&[], 0), None);
        assert_eq!(bootstrap(&[true; 5], 3), Some(Interval { mean: 1.0, low: 1.0, high: 1.0 }));
    }

    #[test]
    fn the_spread_over_three_seeds_is_by_students_t() {
        let found = spread_of_seeds(&[0.5, 0.6, 0.7]).expect("three");
        assert!((found.mean - 0.6).abs() < 1e-12);
        assert!((found.high - 0.6 - 4.303 * 0.1 / 3f64.sqrt()).abs() < 1e-9);
        // Two figures far apart: an accuracy is neither below 0 nor above 1.
        let wide = spread_of_seeds(&[0.4, 0.8]).expect("two");
        assert_eq!((wide.low, wide.high), (0.0, 1.0));
        assert_eq!(spread_of_seeds(&[0.5]), None);
    }
}
