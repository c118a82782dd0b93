//! `duplicates`: groups of images whose vectors are nearly the same.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_knn::Metric;
use twinsight_train::Trained;

use super::{open_for, write_table};
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
    let trained = Trained::load(&args.run)?.with_features(args.features.parse()?)?;
    let (data, opened) = open_for(&trained, args.data.as_deref(), false, |_| None)?;
    let mut skipped = Output::skipped(&opened.report.bad_files);
    let dataset = opened.train;
    let features = trained.embed(&*dataset, 256)?;
    skipped += Output::skipped(features.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    let rows = features.index.len();
    if rows < 2 {
        bail!("{data}: {rows} readable images; duplicates need at least 2");
    }
    let found = twinsight_knn::search(features.matrix(), features.matrix(), NEIGHBOURS.min(rows - 1), Metric::Cosine, true)?;
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
    output.finish(&json!({"groups": listed, "images": rows, "duplicates": extra, "skipped": skipped, "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

/// The first image of a group, with shorter ways left behind.
fn root(first: &mut [usize], mut row: usize) -> usize {
    while first[row] != row {
        first[row] = first[first[row]];
        row = first[row];
    }
    row
}
