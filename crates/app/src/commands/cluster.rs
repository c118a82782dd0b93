//! `cluster`: k-means on the vectors, with the number of clusters by silhouette where none is given.

use std::collections::HashSet;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_knn::agreement::Contingency;
use twinsight_knn::cluster::{Distances, KMeansConfig, k_means, sweep_clusters};
use twinsight_knn::{Matrix, health};
use twinsight_train::evaluate::sample_rows;

use super::{open_for, trained, write_table};
use crate::cli::ClusterArgs;
use crate::output::Output;

/// Numbers of clusters that are tried.
const COUNTS: std::ops::RangeInclusive<usize> = 2..=20;
/// Rows that silhouettes are taken on.
const SAMPLE: usize = 3000;

/// Rows that effective rank and uniformity are taken on: the latter looks at all pairs.
const MEASURED: usize = 10_000;

/// Runs it.
///
/// # Errors
/// Fewer images than clusters, a table that can't be written.
pub fn run(args: &ClusterArgs, output: &Output) -> Result<ExitCode> {
    let trained = trained(&args.run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let (data, opened) = open_for(&trained, args.data.as_deref(), false, |_| None)?;
    let mut skipped = Output::skipped(&opened.report.bad_files);
    let dataset = opened.train;
    let mut features = trained.embed(&*dataset, 256)?;
    skipped += Output::skipped(features.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    let count = features.index.len();
    if count < 3 || args.clusters.is_some_and(|k| k == 0 || k >= count) {
        let wanted = args.clusters.map_or(String::new(), |k| format!("--clusters {k}: "));
        bail!("{wanted}{data} has {count} readable images; expected at least 3, and fewer clusters than images");
    }
    let measured = sample_rows(count, MEASURED, args.seed);
    let part: Vec<f32> = measured.iter().flat_map(|&i| features.matrix().row(i)).copied().collect();
    let part = Matrix::new(&part, measured.len(), features.dim)?;
    let (rank, uniformity) = (health::effective_rank(part)?, health::uniformity(part)?);
    // Directions count, as everywhere else.
    for row in features.rows.chunks_exact_mut(features.dim) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v /= norm);
        }
    }
    // Images with one and the same vector can't be told apart.
    let different = features
        .rows
        .chunks_exact(features.dim)
        .map(|r| r.iter().map(|v| v.to_bits()).collect())
        .collect::<HashSet<Vec<u32>>>()
        .len();
    if different < 3 || args.clusters.is_some_and(|k| k >= different) {
        let wanted = args.clusters.map_or(String::new(), |k| format!("--clusters {k}: "));
        bail!(
            "{wanted}the encoder makes {different} different vectors of {data}'s {count} images; expected at least 3, and fewer clusters than vectors"
        );
    }
    let config = KMeansConfig { seed: args.seed, ..KMeansConfig::default() };
    let sample: Vec<usize> = (0..count.min(SAMPLE)).map(|i| i * count / count.min(SAMPLE)).collect();
    let rows: Vec<f32> = sample.iter().flat_map(|&i| features.matrix().row(i)).copied().collect();
    let table = Matrix::new(&rows, sample.len(), features.dim)?;
    let (clusters, tried) = match args.clusters {
        Some(clusters) => (clusters, Vec::new()),
        None => {
            let counts: Vec<usize> = COUNTS.filter(|&c| c < sample.len().min(different)).collect();
            let tried = sweep_clusters(table, &counts, KMeansConfig { n_init: 3, ..config })?;
            let tried: Vec<(usize, f64)> = tried.iter().map(|(c, s)| (c.count(), *s)).collect();
            let best = tried.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
            (best.map_or(2, |b| b.0), tried)
        }
    };
    let found = k_means(features.matrix(), clusters, config)?;
    let assignment: Vec<u32> = sample.iter().map(|&i| found.assignment[i]).collect();
    let silhouette = Distances::new(table)?.silhouette(&assignment).ok();
    for (k, s) in &tried {
        output.say(format!("{k} clusters: silhouette {s:.4}"));
    }
    let sizes: Vec<usize> = (0..clusters as u32).map(|c| found.members(c).len()).collect();
    let on = if measured.len() < count { format!(" (of {} images drawn by --seed)", measured.len()) } else { String::new() };
    output.say(format!(
        "{clusters} clusters of {count} images (sizes {sizes:?}); silhouette {}; inertia {:.4}; effective rank {rank:.1}; uniformity \
         {uniformity:.2}{on}",
        silhouette.map_or("unknown".into(), |s| format!("{s:.4}")),
        found.inertia
    ));
    let mut line = json!({
        "clusters": clusters, "images": count, "sizes": sizes, "inertia": found.inertia, "silhouette": silhouette,
        "tried": tried, "effective_rank": rank, "uniformity": uniformity, "measured_images": measured.len(), "skipped": skipped,
        "out": args.out,
    });
    if features.labels.len() == count {
        let agreement = Contingency::new(&features.labels, &found.assignment)?;
        let (nmi, ari, matched) = (agreement.normalized_mutual_info(), agreement.adjusted_rand(), agreement.matched_accuracy());
        output
            .say(format!("with the labels: NMI {nmi:.4}, ARI {ari:.4}, accuracy of the best matching {:.2} %", matched * 100.0));
        line["nmi"] = json!(nmi);
        line["ari"] = json!(ari);
        line["matched_accuracy"] = json!(matched);
    }
    if let Some(out) = &args.out {
        let lines = (0..count).map(|i| {
            vec![dataset.id(features.index[i]), (found.assignment[i] + 1).to_string(), format!("{:.5}", found.distance[i])]
        });
        write_table(out, &["image", "cluster", "distance"], lines)?;
        output.say(format!("written to {}", out.display()));
    }
    output.finish(&line)?;
    Ok(ExitCode::SUCCESS)
}
