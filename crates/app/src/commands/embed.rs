//! `embed`: one vector an image.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use serde_json::json;
use twinsight_datasets::{Dataset, OpenOptions, open};
use twinsight_nn::write_atomic;
use twinsight_train::evaluate::{Features, encode};

use super::trained;
use crate::cli::EmbedArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Nothing to embed, a target that can't be written or has another ending.
pub fn run(args: &EmbedArgs, output: &Output) -> Result<ExitCode> {
    let ending = args.out.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !["npy", "csv"].contains(&ending.as_str()) {
        bail!("--out {}: expected a file ending in .npy or .csv", args.out.display());
    }
    let device = Device::Cpu;
    let trained = trained::load(&args.run, &device)?;
    let data =
        args.data.clone().or_else(|| trained.data.clone()).context("--data is missing: an encoder file names no images")?;
    let opened = open(&data, &OpenOptions { strict: args.strict, ..OpenOptions::default() })?;
    let dataset = match (args.test, opened.test) {
        (false, _) => opened.train,
        (true, Some(test)) => test,
        (true, None) => bail!("{data} has no test images"),
    };
    let features = encode(&*dataset, &*trained.encoder, &trained.plan, args.batch.max(1), &device)?;
    for (id, reason) in &features.bad {
        eprintln!("skipped {id}: {reason}");
    }
    if args.strict && !features.bad.is_empty() {
        bail!("{} of {} images can't be read, and --strict was given", features.bad.len(), dataset.len());
    }
    if ending == "npy" {
        write_npy(&args.out, &features)?;
        write_csv(&args.out.with_extension("csv"), &*dataset, &features, false)?;
    } else {
        write_csv(&args.out, &*dataset, &features, true)?;
    }
    let rows = features.index.len();
    output.say(format!("{rows} vectors of {} numbers in {}", features.dim, args.out.display()));
    output.finish(&json!({"rows": rows, "dim": features.dim, "skipped": features.bad.len(), "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

fn write_npy(path: &Path, features: &Features) -> Result<()> {
    // candle writes the format; the temporary name and the rename are ours.
    let temporary = path.with_extension("npy.partial");
    let tensor = Tensor::from_slice(&features.rows, (features.index.len(), features.dim), &Device::Cpu)?;
    let written = tensor.write_npy(&temporary).and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if written.is_err() {
        // The failure itself is what is reported.
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

fn write_csv(path: &Path, dataset: &dyn Dataset, features: &Features, vectors: bool) -> Result<()> {
    let classes = dataset.classes();
    let mut text = csv::Writer::from_writer(Vec::new());
    let mut head = vec!["image".to_string()];
    let labelled = features.labels.len() == features.index.len();
    if labelled {
        head.push("label".into());
    }
    if vectors {
        head.extend((0..features.dim).map(|j| format!("v{j}")));
    }
    text.write_record(&head)?;
    for (row, &i) in features.index.iter().enumerate() {
        let mut line = vec![dataset.id(i)];
        if labelled {
            let label = features.labels[row] as usize;
            line.push(classes.and_then(|c| c.get(label).cloned()).unwrap_or_else(|| label.to_string()));
        }
        if vectors {
            line.extend(features.rows[row * features.dim..(row + 1) * features.dim].iter().map(f32::to_string));
        }
        text.write_record(&line)?;
    }
    let bytes = text.into_inner().map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    Ok(write_atomic(path, |out| out.write_all(&bytes))?)
}
