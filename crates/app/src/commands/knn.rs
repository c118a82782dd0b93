//! `knn`: accuracy of a trained encoder beside that of pixels, by the protocol of the training loop.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_knn::Metric;
use twinsight_train::evaluate::Evaluation;
use twinsight_train::protocols::{Encoded, Measured};

use super::{classes_table, grid, labelled_evaluation, trained};
use crate::cli::{KnnArgs, MetricArg};
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Images without labels, settings out of range, more neighbours than images.
pub fn run(args: &KnnArgs, output: &Output) -> Result<ExitCode> {
    if args.k.contains(&0) || args.temperature.iter().any(|&t| !(t > 0.0 && t.is_finite())) {
        bail!("--k and --temperature take numbers above 0");
    }
    let trained = trained(&args.run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let mut found = labelled_evaluation(&trained, args.data.as_deref(), args.limit)?;
    let (ks, temperatures) = (args.k.clone(), args.temperature.clone());
    let eval = &mut found.evaluation.config;
    if !ks.is_empty() {
        eval.k = ks;
    }
    if !temperatures.is_empty() {
        eval.temperature = temperatures;
    }
    let with_metric = |encoded: Encoded| Encoded {
        metric: match args.metric {
            MetricArg::Cosine => Metric::Cosine,
            MetricArg::Euclidean => Metric::Euclidean,
        },
        ..encoded
    };
    let encoded = with_metric(trained.encoded(&found.evaluation)?);
    let skipped = found.skipped + Output::skipped(encoded.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    if args.leave_one_out {
        return leave_one_out(args, &encoded, &found.evaluation, skipped, output);
    }
    let ks = grid(&found.evaluation.config.k, !args.k.is_empty(), encoded.most_neighbours())?;
    let temperatures = &found.evaluation.config.temperature;
    let (chosen, measured) = encoded.own_knn(&ks, temperatures)?;
    let pixels = with_metric(Encoded::pixels(&found.evaluation)?).own_knn(&ks, temperatures)?.1;
    output.say(format!(
        "k-NN accuracy on {} images: {:.2} % (95 % interval {:.2} to {:.2}), top-5 {:.2} % (pixels {:.2} %); {}",
        measured.measured_on,
        measured.top1 * 100.0,
        measured.low * 100.0,
        measured.high * 100.0,
        measured.top5 * 100.0,
        pixels.top1 * 100.0,
        measured.settings
    ));
    if args.per_class {
        classes_table(&measured, &found.classes, output);
    }
    let Measured { top1, top5, low, high, per_class, confusion, measured_on, .. } = measured;
    output.finish(&json!({
        "knn": top1, "top5": top5, "low": low, "high": high, "knn_pixels": pixels.top1, "measured_on": measured_on,
        "chosen_on": chosen.accuracy, "k": chosen.k, "temperature": chosen.temperature, "classes": found.classes,
        "per_class": per_class, "confusion": confusion, "skipped": skipped,
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Every setting's accuracy on the training images, each predicted by the others.
fn leave_one_out(
    args: &KnnArgs,
    encoded: &Encoded,
    evaluation: &Evaluation,
    skipped: usize,
    output: &Output,
) -> Result<ExitCode> {
    let images = encoded.train.index.len();
    let ks = grid(&evaluation.config.k, !args.k.is_empty(), images.saturating_sub(1))?;
    let tried = encoded.left_out(&ks, &evaluation.config.temperature)?;
    output.say(format!("k-NN accuracy of {images} training images, each predicted by the others:"));
    for s in &tried {
        output.say(format!("  k = {:<4} T = {:<5} {:6.2} %", s.k, s.temperature, s.accuracy * 100.0));
    }
    let rows: Vec<_> = tried
        .iter()
        .map(|s| json!({"k": s.k, "temperature": (f64::from(s.temperature) * 1e6).round() / 1e6, "accuracy": s.accuracy}))
        .collect();
    output.finish(&json!({"leave_one_out": rows, "images": images, "skipped": skipped}))?;
    Ok(ExitCode::SUCCESS)
}
