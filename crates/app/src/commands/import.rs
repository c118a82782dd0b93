//! `import`: weights from elsewhere as an encoder file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_encoders::weights::{ImportOptions, Weights, import};
use twinsight_encoders::{encoder, save_encoder};

use crate::cli::ImportArgs;
use crate::output::Output;

/// What the networks of torchvision and timm were trained with.
const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
/// Names of skipped tensors that are told; the rest is counted.
const TOLD: usize = 5;

/// Runs it.
///
/// # Errors
/// An unknown encoder; a file that is missing, damaged, malicious or another encoder's; a target that can't be written.
pub fn run(args: &ImportArgs, output: &Output) -> Result<ExitCode> {
    let spec = encoder(&args.encoder)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.safetensors", spec.name)));
    if args.file.is_file() && out.canonicalize().ok() == args.file.canonicalize().ok() {
        bail!("--out {}: is the file that is read; name another", out.display());
    }
    let weights = Weights::open(&args.file)?;
    let adopted = import(&weights, spec, &ImportOptions { prefix: args.prefix.clone(), image_size: args.image_size })?;
    let config = adopted.encoder.config();
    let numbers = |given: &[f32], imagenet: [f32; 3], other: f32| match (given, config.channels) {
        ([], 3) => imagenet.to_vec(),
        ([], n) => vec![other; n],
        (given, _) => given.to_vec(),
    };
    let (mean, std) = (numbers(&args.mean, IMAGENET[0], 0.5), numbers(&args.std, IMAGENET[1], 0.25));
    if mean.len() != config.channels || std.len() != config.channels || std.iter().any(|s| s.is_nan() || *s <= 0.0) {
        bail!("--mean and --std take a number for each of the {} channels, --std above 0", config.channels);
    }
    let report = &adopted.report;
    let notes = BTreeMap::from([
        ("normalize".to_string(), json!({"mean": mean, "std": std}).to_string()),
        ("imported".to_string(), format!("{} layout, prefix `{}`", report.layout, report.prefix)),
    ]);
    save_encoder(&out, spec, config, &adopted.params, &notes)?;
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
    for kind in &report.passed_over {
        output.say(format!("  passed over what is no tensor: {kind}"));
    }
    if let Some((from, to)) = report.resampled {
        output.say(format!("  positions resampled from {from} × {from} to {to} × {to} patches"));
    }
    output.say(format!("{} channels, {} px; encoder in {}", config.channels, config.image_size, out.display()));
    output.finish(&json!({"encoder": spec.name, "config": config, "report": report, "out": out}))?;
    Ok(ExitCode::SUCCESS)
}
