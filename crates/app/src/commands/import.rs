//! `import`: weights from elsewhere as an encoder file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_encoders::weights::{Adopted, ImportOptions, ImportReport, Weights, beside, import};
use twinsight_encoders::{EncoderSpec, encoder, peek_encoder, save_encoder};
use twinsight_train::source::normalisation;
use twinsight_train::{Source, encoder_file};

use crate::cli::ImportArgs;
use crate::output::Output;

/// Names of skipped tensors that are told; the rest is counted.
const TOLD: usize = 5;

/// Runs it.
///
/// # Errors
/// An unknown encoder; a file that is missing, damaged, malicious or another encoder's; a target that is there already or can't be
/// written.
pub fn run(args: &ImportArgs, output: &Output) -> Result<ExitCode> {
    let spec = encoder(&args.encoder)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.safetensors", spec.name)));
    let file = encoder_file(&args.file)?.0;
    let weights = Weights::open(&file)?;
    if out.exists() {
        let same = |path: &PathBuf| out.canonicalize().is_ok_and(|out| path.canonicalize().is_ok_and(|path| out == path));
        if weights.files().iter().any(same) {
            bail!("--out {}: is a file that is read; name another", out.display());
        }
        if !args.force {
            bail!("--out {}: is there already; name another, or give --force to write over it", out.display());
        }
    }
    let adopted = adopt(args, spec, &file, &weights)?;
    let config = adopted.encoder.config();
    let (found, origin) = normalisation(&file, config.channels)?;
    let given = !args.mean.is_empty() || !args.std.is_empty();
    let numbers = |given: &[f32], found: Vec<f32>| if given.is_empty() { found } else { given.to_vec() };
    let (mean, std) = (numbers(&args.mean, found.mean), numbers(&args.std, found.std));
    if mean.len() != config.channels || std.len() != config.channels || std.iter().any(|s| s.is_nan() || *s <= 0.0) {
        bail!("--mean and --std take a number for each of the {} channels, --std above 0", config.channels);
    }
    let origin = if given { "as given".to_string() } else { origin.to_string() };
    let report = &adopted.report;
    let notes = BTreeMap::from([
        ("normalize".to_string(), json!({"mean": mean, "std": std}).to_string()),
        ("imported".to_string(), format!("{} layout, prefix `{}`", report.layout, report.prefix)),
    ]);
    save_encoder(&out, spec, config, &adopted.params, &notes)?;
    tell(spec, report, output);
    output.say(format!("  normalisation: {origin} (mean {mean:?}, deviation {std:?})"));
    output.say(format!("{} channels, {} px; encoder in {}", config.channels, config.image_size, out.display()));
    let line = json!({
        "encoder": spec.name, "config": config, "report": report, "out": out,
        "normalize": {"mean": mean, "std": std, "from": origin},
    });
    output.finish(&line)?;
    Ok(ExitCode::SUCCESS)
}

/// The encoder in `file`. One that this program wrote is taken as it is, where nothing else is asked for.
fn adopt(args: &ImportArgs, spec: &'static EncoderSpec, file: &Path, weights: &Weights) -> Result<Adopted> {
    let said = beside(file).options(spec);
    let mut options = ImportOptions {
        prefix: args.prefix.clone(),
        image_size: args.image_size.or(said.image_size),
        heads: args.heads.unwrap_or(said.heads),
        skip: args.skip.clone(),
    };
    if let Some((kind, config, _)) = peek_encoder(file)? {
        if kind.name != spec.name {
            bail!("{}: holds a {}, not a {}; --encoder {} reads it", file.display(), kind.name, spec.name, kind.name);
        }
        let heads = args.heads.unwrap_or(config.heads);
        if args.image_size.is_none_or(|side| side == config.image_size) && heads == config.heads {
            let loaded = Source::load(file)?.network;
            let mapped = loaded.params.iter().map(|p| (p.name().to_string(), p.name().to_string())).collect();
            let report = ImportReport {
                layout: "twinsight".into(),
                prefix: String::new(),
                mapped,
                skipped: Vec::new(),
                passed_over: Vec::new(),
                resampled: None,
            };
            return Ok(Adopted { encoder: loaded.encoder, params: loaded.params, report });
        }
        (options.heads, options.image_size) = (heads, args.image_size.or(Some(config.image_size)));
    }
    Ok(import(weights, spec, &options)?)
}

fn tell(spec: &EncoderSpec, report: &ImportReport, output: &Output) {
    output.say(format!(
        "{} in {}'s layout{}: {} tensors mapped, {} skipped, none missing",
        spec.name,
        report.layout,
        if report.prefix.is_empty() { String::new() } else { format!(" below `{}`", report.prefix) },
        report.mapped.len(),
        report.skipped.len()
    ));
    for name in report.skipped.iter().take(TOLD) {
        output.say(format!("  skipped {name}"));
    }
    if report.skipped.len() > TOLD {
        output.say(format!("  and {} more (--json names all)", report.skipped.len() - TOLD));
    }
    for kind in report.passed_over.iter().take(TOLD) {
        output.say(format!("  passed over an object: {kind}"));
    }
    if let Some((from, to)) = report.resampled {
        output.say(format!("  positions resampled from {from} × {from} to {to} × {to} patches"));
    }
}
