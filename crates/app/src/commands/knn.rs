//! `knn`: accuracy of a trained encoder beside that of pixels, by the protocol of the training loop.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use serde_json::json;
use twinsight_datasets::{OpenOptions, hold_out, open};
use twinsight_train::RunConfig;
use twinsight_train::evaluate::Evaluation;

use super::trained;
use crate::cli::KnnArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Images without labels, settings out of range.
pub fn run(args: &KnnArgs, output: &Output) -> Result<ExitCode> {
    let device = Device::Cpu;
    let trained = trained::load(&args.run, &device)?;
    let data =
        args.data.clone().or_else(|| trained.data.clone()).context("--data is missing: an encoder file names no images")?;
    let opened = open(&data, &OpenOptions { limit: args.limit, ..OpenOptions::default() })?;
    let classes = opened.train.classes().map_or(0, <[String]>::len);
    if classes < 2 {
        bail!("{data}: k-NN accuracy needs labels of at least 2 classes ({})", opened.report.understood);
    }
    let mut eval = RunConfig::resolve(&[])?.eval;
    (eval.k, eval.temperature) = (args.k.clone(), args.temperature.clone());
    if eval.k.contains(&0) || eval.temperature.iter().any(|&t| t <= 0.0) {
        bail!("--k and --temperature take numbers above 0");
    }
    let (bank, held_out) = hold_out(opened.train, 0.1, 0)?;
    let test = opened.test.filter(|t| !t.is_empty() && t.label(0).is_some());
    let evaluation = Evaluation { bank, held_out, test, classes, plan: trained.plan.clone(), config: eval };
    let score = evaluation.score(&*trained.encoder, &device)?;
    let pixels = evaluation.score_pixels()?;
    let on = if score.test.is_some() { "test" } else { "held-out" };
    output.say(format!(
        "k-NN accuracy on {on} images: {:.2} % (pixels {:.2} %); k = {}, temperature = {} chosen on held-out images",
        score.headline() * 100.0,
        pixels.headline() * 100.0,
        score.chosen.k,
        score.chosen.temperature
    ));
    output.finish(&json!({
        "knn": score.headline(), "knn_pixels": pixels.headline(), "measured_on": on, "held_out": score.chosen.accuracy,
        "k": score.chosen.k, "temperature": score.chosen.temperature,
    }))?;
    Ok(ExitCode::SUCCESS)
}
