//! The search against a plain one, ties, thread counts, and the choice of settings against one vote a setting.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use twinsight_knn::{Matrix, Metric, Neighbours, choose, leave_one_out, search, sweep, top1, vote};

/// Rows of uniform numbers in [-1, 1).
fn rows(seed: u64, rows: usize, dim: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..rows * dim).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn table(data: &[f32], dim: usize) -> Matrix<'_> {
    Matrix { data, rows: data.len() / dim, dim }
}

/// Scores in `f64`, one pair after the other, sorted whole.
fn plain(bank: Matrix, queries: Matrix, k: usize, metric: Metric, exclude_self: bool) -> Neighbours {
    let (mut index, mut score) = (Vec::new(), Vec::new());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    for q in 0..queries.rows {
        let a = queries.row(q);
        let mut all: Vec<(f32, u32)> = (0..bank.rows)
            .filter(|&i| !(exclude_self && i == q))
            .map(|i| {
                let b = bank.row(i);
                let s = match metric {
                    Metric::Cosine => {
                        let norms = (dot(a, a) * dot(b, b)).sqrt();
                        if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
                    }
                    Metric::Euclidean => {
                        -a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>().sqrt()
                    }
                };
                (s as f32, i as u32)
            })
            .collect();
        all.sort_by(|x, y| y.0.partial_cmp(&x.0).expect("finite").then(x.1.cmp(&y.1)));
        index.extend(all[..k].iter().map(|&(_, i)| i));
        score.extend(all[..k].iter().map(|&(s, _)| s));
    }
    Neighbours { k, index, score }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equals_the_plain_search(
        seed in 0u64..1000, bank in 2usize..400, queries in 1usize..80, dim in 1usize..70, k in 1usize..60,
        euclidean in any::<bool>(), exclude_self in any::<bool>(),
    ) {
        let metric = if euclidean { Metric::Euclidean } else { Metric::Cosine };
        let bank_data = rows(seed, bank, dim);
        let query_data = if exclude_self { bank_data.clone() } else { rows(seed + 1, queries, dim) };
        let (b, q) = (table(&bank_data, dim), table(&query_data, dim));
        let k = k.min(bank - usize::from(exclude_self));
        let got = search(b, q, k, metric, exclude_self).expect("valid");
        let want = plain(b, q, k, metric, exclude_self);
        // One-dimensional cosines are all ±1 but for rounding: there the order is the indices', and rounding's.
        if dim > 1 || euclidean {
            prop_assert_eq!(&got.index, &want.index);
        }
        for (g, w) in got.score.iter().zip(&want.score) {
            prop_assert!((g - w).abs() <= 2.0 * f32::EPSILON * w.abs().max(1e-3), "{} {}", g, w);
        }
    }

    #[test]
    fn ties_go_to_the_lower_index(
        pattern in prop::collection::vec(0i8..3, 2..300), dim in 1usize..5, k in 1usize..50, euclidean in any::<bool>(),
    ) {
        // Whole numbers of a tiny range: most rows occur many times, at all places of the blocks.
        let metric = if euclidean { Metric::Euclidean } else { Metric::Cosine };
        let bank: Vec<f32> = pattern.iter().flat_map(|&v| (0..dim).map(move |d| f32::from(v) * (d + 1) as f32)).collect();
        let b = table(&bank, dim);
        let k = k.min(b.rows);
        prop_assert_eq!(search(b, b, k, metric, false).expect("valid"), plain(b, b, k, metric, false));
    }

    #[test]
    fn one_sweep_equals_a_vote_for_every_setting(seed in 0u64..200, bank in 30usize..120, euclidean in any::<bool>()) {
        let metric = if euclidean { Metric::Euclidean } else { Metric::Cosine };
        let (b, q) = (rows(seed, bank, 6), rows(seed + 1, 25, 6));
        let (b, q) = (table(&b, 6), table(&q, 6));
        let label = |i: usize| (i * 7 % 5) as u32;
        let (bl, ql): (Vec<u32>, Vec<u32>) = ((0..bank).map(label).collect(), (3..28).map(label).collect());
        let (ks, ts) = ([20, 1, 5, 5], [0.5, 0.02]);
        let tried = sweep(b, &bl, q, &ql, 5, &ks, &ts, metric).expect("valid");
        prop_assert_eq!(tried.len(), 6);
        for s in &tried {
            let found = search(b, q, s.k, metric, false).expect("valid");
            prop_assert_eq!(s.accuracy, top1(&vote(&found, &bl, 5, s.temperature).expect("valid"), &ql));
        }
        let best = choose(b, &bl, q, &ql, 5, &ks, &ts, metric).expect("valid");
        let highest = tried.iter().map(|s| s.accuracy).fold(0.0, f64::max);
        let first = tried.iter().filter(|s| s.accuracy == highest).min_by(|x, y| {
            x.k.cmp(&y.k).then(y.temperature.total_cmp(&x.temperature))
        });
        prop_assert_eq!(Some(&best), first);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (bank, queries) = (rows(5, 9000, 24), rows(6, 700, 24));
    let (b, q) = (table(&bank, 24), table(&queries, 24));
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    for metric in [Metric::Cosine, Metric::Euclidean] {
        let one = pool(1).install(|| search(b, q, 50, metric, false)).expect("valid");
        for threads in [2, 5] {
            let many = pool(threads).install(|| search(b, q, 50, metric, false)).expect("valid");
            assert!(many == one, "{threads} threads, {metric:?}");
        }
        let few = table(&queries[..24 * 3], 24);
        let wide = pool(7).install(|| search(b, few, 50, metric, false)).expect("valid");
        assert_eq!(wide.index[..], one.index[..150]);
    }
    let labels: Vec<u32> = (0..9000).map(|i| i % 3).collect();
    let judged = |n| pool(n).install(|| leave_one_out(b, &labels, 3, 10, 0.1, Metric::Cosine)).expect("valid");
    assert_eq!(judged(1), judged(2));
}

#[test]
fn a_bank_of_one_row_repeated_keeps_the_order_of_indices() {
    // The collapsed encoder: every row within rounding of every other.
    let row = rows(9, 1, 33);
    let bank: Vec<f32> = row.iter().copied().cycle().take(33 * 5000).collect();
    let found = search(table(&bank, 33), table(&row, 33), 40, Metric::Cosine, false).expect("valid");
    assert_eq!(found.index, (0..40).collect::<Vec<u32>>());
    let found = search(table(&bank, 33), table(&bank[..33 * 70], 33), 40, Metric::Euclidean, false).expect("valid");
    assert!(found.score.iter().all(|&s| s == 0.0));
    assert!(found.index.chunks(40).all(|c| c.iter().copied().eq(0..40)));
}
