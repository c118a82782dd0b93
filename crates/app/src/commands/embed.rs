//! `embed`: one vector an image.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_train::export::{write_csv, write_npy};

use super::{open_for, trained};
use crate::cli::EmbedArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Nothing to embed, a target that can't be written or has another ending.
pub fn run(args: &EmbedArgs, output: &Output) -> Result<ExitCode> {
    let ending = args.out.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !["parquet", "npy", "csv"].contains(&ending.as_str()) {
        bail!("--out {}: expected a file ending in .parquet, .npy or .csv", args.out.display());
    }
    if ending == "parquet" && cfg!(not(feature = "parquet")) {
        bail!("--out {}: this program was built without the feature `parquet`", args.out.display());
    }
    let trained = trained(&args.run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let (data, opened) = open_for(&trained, args.data.as_deref(), args.strict, |_| None)?;
    let named = Output::skipped(&opened.report.bad_files);
    let dataset = match (args.test, opened.test) {
        (false, _) => opened.train,
        (true, Some(test)) => test,
        (true, None) => bail!("{data} has no test images"),
    };
    let features = trained.embed(&*dataset, args.batch.max(1))?;
    let skipped = named + Output::skipped(features.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    if args.strict && !features.bad.is_empty() {
        bail!("{} of {} images can't be read, and --strict was given", features.bad.len(), dataset.len());
    }
    #[cfg(feature = "parquet")]
    if ending == "parquet" {
        twinsight_train::export::write_parquet(&args.out, &*dataset, &features)?;
    }
    if ending == "npy" {
        write_npy(&args.out, &features)?;
        write_csv(&args.out.with_extension("images.csv"), &*dataset, &features, false)?;
    } else if ending == "csv" {
        write_csv(&args.out, &*dataset, &features, true)?;
    }
    let rows = features.index.len();
    output.say(format!("{rows} vectors of {} numbers in {}", features.dim, args.out.display()));
    output.finish(&json!({"rows": rows, "dim": features.dim, "skipped": skipped, "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}
