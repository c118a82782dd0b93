//! `duplicates`: groups of images whose vectors are nearly the same.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_knn::Metric;

use super::{open_for, trained, write_table};
use crate::cli::DuplicatesArgs;
use crate::output::Output;

/// Neighbours of an image that are looked at: a larger group is still found whole, through its other images.
const NEIGHBOURS: usize = 20;

/// Runs it.
///
/// # Errors
/// Fewer than two images, a similarity out of range, a table that can't be written.
pub fn run(args: &DuplicatesArgs, output: &Output) -> Result<ExitCode> {
    if !(args.similarity > -1.0 && args.similarity <= 1.0) {
        bail!("--similarity {}: expected a cosine above -1, up to 1", args.similarity);
    }
    let trained = trained(&args.run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let (data, opened) = open_for(&trained, args.data.as_deref(), false, |_| None)?;
    let mut skipped = Output::skipped(&opened.report.bad_files);
    let dataset = opened.train;
    let features = trained.embed(&*dataset, 256)?;
    skipped += Output::skipped(features.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    let rows = features.index.len();
    if rows < 2 {
        bail!("{data}: {rows} readable images; duplicates need at least 2");
    }
    let near = NEIGHBOURS.min(rows - 1);
    #[cfg(feature = "approximate")]
    let (found, recall) = match args.approximate {
        true => approximate(features.matrix(), near, output)?,
        false => (twinsight_knn::search(features.matrix(), features.matrix(), near, Metric::Cosine, true)?, None),
    };
    #[cfg(not(feature = "approximate"))]
    let (found, recall) = (twinsight_knn::search(features.matrix(), features.matrix(), near, Metric::Cosine, true)?, None::<f64>);
    // Images are joined to the first of their group.
    let mut first: Vec<usize> = (0..rows).collect();
    let mut nearest = vec![0.0f32; rows];
    for q in 0..rows {
        let (index, score) = found.row(q);
        for (&n, &s) in index.iter().zip(score).filter(|(_, s)| **s >= args.similarity) {
            let (a, b) = (root(&mut first, q), root(&mut first, n as usize));
            first[a.max(b)] = a.min(b);
            nearest[q] = nearest[q].max(s);
            nearest[n as usize] = nearest[n as usize].max(s);
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in 0..rows {
        groups.entry(root(&mut first, row)).or_default().push(row);
    }
    let groups: Vec<Vec<usize>> = groups.into_values().filter(|g| g.len() > 1).collect();
    let id = |row: usize| dataset.id(features.index[row]);
    if let Some(out) = &args.out {
        let lines = groups.iter().enumerate().flat_map(|(g, rows)| {
            rows.iter().map(|&r| vec![(g + 1).to_string(), id(r), format!("{:.5}", nearest[r])]).collect::<Vec<_>>()
        });
        write_table(out, &["group", "image", "similarity"], lines)?;
        output.say(format!("{} groups in {}", groups.len(), out.display()));
    } else {
        for (g, rows) in groups.iter().enumerate() {
            output.say(format!("group {}:", g + 1));
            rows.iter().for_each(|&r| output.say(format!("  {:.4}  {}", nearest[r], id(r))));
        }
    }
    let extra: usize = groups.iter().map(|g| g.len() - 1).sum();
    output.say(format!("{extra} of {rows} images are like another (cosine similarity {} or more)", args.similarity));
    let listed: Vec<Vec<String>> = groups.iter().map(|g| g.iter().map(|&r| id(r)).collect()).collect();
    let mut line = json!({"groups": listed, "images": rows, "duplicates": extra, "skipped": skipped, "out": args.out});
    if recall.is_some() {
        line["recall"] = json!(recall);
    }
    output.finish(&line)?;
    Ok(ExitCode::SUCCESS)
}

/// Rows whose exact neighbours the approximate ones are held against.
#[cfg(feature = "approximate")]
const CHECKED: usize = 200;

/// The neighbours of all rows by an approximate search, and the share of the nearest that it finds, told of a few rows spread evenly.
#[cfg(feature = "approximate")]
fn approximate(rows: twinsight_knn::Matrix, k: usize, output: &Output) -> Result<(twinsight_knn::Neighbours, Option<f64>)> {
    use twinsight_knn::{Matrix, Neighbours, approximate};
    let found = approximate::Index::build(rows, Metric::Cosine, k, 0)?.search(rows, k, true)?;
    let count = rows.rows.min(CHECKED);
    let checked: Vec<usize> = (0..count).map(|i| i * rows.rows / count).collect();
    let queries: Vec<f32> = checked.iter().flat_map(|&r| rows.row(r)).copied().collect();
    // One neighbour more, from which the row itself is taken out.
    let more = twinsight_knn::search(rows, Matrix { data: &queries, rows: count, dim: rows.dim }, k + 1, Metric::Cosine, false)?;
    let empty = || Neighbours { k, index: Vec::new(), score: Vec::new() };
    let (mut exact, mut own_found) = (empty(), empty());
    for (q, &row) in checked.iter().enumerate() {
        let (index, score) = more.row(q);
        let own = index.iter().position(|&i| i as usize == row).unwrap_or(k);
        for i in (0..=k).filter(|&i| i != own) {
            exact.index.push(index[i]);
            exact.score.push(score[i]);
        }
        own_found.index.extend_from_slice(found.row(row).0);
        own_found.score.extend_from_slice(found.row(row).1);
    }
    let recall = approximate::recall(&own_found, &exact)?;
    output.say(format!("the approximate search finds {:.2} % of the {k} nearest ({count} images looked at)", recall * 100.0));
    Ok((found, Some(recall)))
}

/// The first image of a group, with shorter ways left behind.
fn root(first: &mut [usize], mut row: usize) -> usize {
    while first[row] != row {
        first[row] = first[first[row]];
        row = first[row];
    }
    row
}
