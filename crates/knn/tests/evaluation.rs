//! Logistic regression, k-means, silhouette and agreement of partitions against scikit-learn's values.
#![cfg(all(feature = "cluster", feature = "linear"))]

use anyhow::Result;
use twinsight_knn::agreement::Contingency;
use twinsight_knn::cluster::{Distances, KMeansConfig, k_means};
use twinsight_knn::linear::Logistic;
use twinsight_knn::{Matrix, top1};
use twinsight_test_support::{Golden, assert_close};

fn whole(golden: &Golden, key: &str) -> Result<Vec<u32>> {
    Ok(golden.get(key)?.data.iter().map(|&v| v as u32).collect())
}

fn matrix<'a>(golden: &'a Golden, key: &str) -> Result<Matrix<'a>> {
    let tensor = golden.get(key)?;
    Ok(Matrix::new(&tensor.data, tensor.shape[0], tensor.shape[1])?)
}

#[test]
fn logistic_regression_equals_scikit_learns() -> Result<()> {
    let golden = Golden::load("evaluation")?;
    let (rows, queries) = (matrix(&golden, "rows")?, matrix(&golden, "queries")?);
    let (labels, query_labels) = (whole(&golden, "labels")?, whole(&golden, "query_labels")?);
    let classes = golden.number("classes")? as usize;
    for c in ["0.001", "1.0", "100.0"] {
        let fitted = Logistic::fit(rows, &labels, classes, c.parse()?, 2000, None)?;
        let predicted = fitted.predict(queries)?;
        let mut shares = vec![0.0f32; queries.rows * classes];
        for q in 0..queries.rows {
            let (ranked, share) = predicted.row(q);
            ranked.iter().zip(share).for_each(|(&class, &s)| shares[q * classes + class as usize] = s);
        }
        assert_close(c, &shares, &golden.get(&format!("probabilities_{c}"))?.data, 2e-3)?;
        let (ours, theirs) = (top1(&predicted, &query_labels), golden.number(&format!("accuracy_{c}"))?);
        // One of 400 rows is 0.25 points: at most one may fall on the other side.
        assert!((ours - theirs).abs() < 0.0026, "C = {c}: {ours} and {theirs}");
    }
    Ok(())
}

#[test]
fn k_means_reaches_scikit_learns_inertia() -> Result<()> {
    let golden = Golden::load("evaluation")?;
    let rows = matrix(&golden, "rows")?;
    let found = k_means(rows, golden.number("classes")? as usize, KMeansConfig::default())?;
    let theirs = golden.number("inertia")?;
    assert!(found.inertia < theirs * 1.01, "{} and {theirs}", found.inertia);
    let silhouette = Distances::new(rows)?.silhouette(&whole(&golden, "clusters")?)?;
    assert!((silhouette - golden.number("silhouette")?).abs() < 1e-6, "{silhouette}");
    Ok(())
}

#[test]
fn agreement_of_partitions_equals_scikit_learns() -> Result<()> {
    let golden = Golden::load("evaluation")?;
    let table = Contingency::new(&whole(&golden, "labels")?, &whole(&golden, "clusters")?)?;
    for (ours, key) in
        [(table.normalized_mutual_info(), "nmi"), (table.adjusted_rand(), "ari"), (table.matched_accuracy(), "matched")]
    {
        assert!((ours - golden.number(key)?).abs() < 1e-9, "{key}: {ours}");
    }
    Ok(())
}
