//! Neighbours, similarities and ranked classes against `lightly`'s `knn_predict`.

use anyhow::Result;
use twinsight_knn::{Matrix, Metric, search, top1, vote};
use twinsight_test_support::{Golden, assert_close};

#[test]
fn search_and_vote_equal_the_reference() -> Result<()> {
    let golden = Golden::load("knn")?;
    let matrix = |key: &str| -> Result<_> {
        let tensor = golden.get(key)?;
        Ok(Matrix::new(&tensor.data, tensor.shape[0], tensor.shape[1])?)
    };
    let whole = |key: &str| -> Result<Vec<u32>> { Ok(golden.get(key)?.data.iter().map(|&v| v as u32).collect()) };
    let (k, classes) = (golden.number("k")? as usize, golden.number("classes")? as usize);
    let temperature = golden.number("temperature")? as f32;
    let (bank, queries) = (matrix("bank")?, matrix("queries")?);
    let labels = whole("labels")?;

    let found = search(bank, queries, k, Metric::Cosine, false)?;
    assert_eq!(found.index, whole("neighbours")?);
    assert_close("similarities", &found.score, &golden.get("similarities")?.data, 1e-6)?;

    let predicted = vote(&found, &labels, classes, temperature)?;
    let want = whole("ranked_classes")?;
    let mut compared = 0;
    for q in 0..queries.rows {
        let (ranked, share) = predicted.row(q);
        // Classes without a vote come last in both, in an order that the reference does not define.
        let voted = share.iter().take_while(|&&s| s > 0.0).count();
        assert_eq!(ranked[..voted], want[q * classes..q * classes + voted], "query {q}");
        compared += voted;
    }
    assert!(compared > queries.rows, "{compared}");
    let best: Vec<u32> = want.chunks(classes).map(|row| row[0]).collect();
    assert_eq!(top1(&predicted, &best), 1.0);

    // Unit rows: the nearest by distance are the nearest by angle.
    assert_eq!(search(bank, queries, k, Metric::Euclidean, false)?.index, found.index);
    Ok(())
}
