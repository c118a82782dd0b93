//! `knn`: accuracy of a trained encoder beside that of pixels, by the protocol of the training loop.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_datasets::hold_out;
use twinsight_train::evaluate::Evaluation;
use twinsight_train::{RunConfig, Trained};

use super::open_for;
use crate::cli::KnnArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Images without labels, settings out of range.
pub fn run(args: &KnnArgs, output: &Output) -> Result<ExitCode> {
    let trained = Trained::load(&args.run)?.with_features(args.features.parse()?)?;
    let (data, opened) =
        open_for(&trained, args.data.as_deref(), false, |of_run| args.limit.map_or(of_run, |l| (l > 0).then_some(l)))?;
    let skipped = Output::skipped(&opened.report.bad_files);
    let classes = opened.train.classes().map_or(0, <[String]>::len);
    if classes < 2 {
        bail!("{data}: k-NN accuracy needs labels of at least 2 classes ({})", opened.report.understood);
    }
    // The run's own share, so that the held-out images are those that it never trained on.
    let share = trained.config.as_ref().map(|c| c.data.held_out).filter(|&s| s > 0.0).unwrap_or(0.1);
    let mut eval = RunConfig::resolve(&[])?.eval;
    (eval.k, eval.temperature) = (args.k.clone(), args.temperature.clone());
    if eval.k.contains(&0) || eval.temperature.iter().any(|&t| t <= 0.0) {
        bail!("--k and --temperature take numbers above 0");
    }
    let (bank, held_out) = hold_out(opened.train, share, 0)?;
    let test = opened.test.filter(|t| !t.is_empty() && t.label(0).is_some());
    let evaluation = Evaluation { bank, held_out, test, classes, plan: trained.plan.clone(), config: eval };
    let score = trained.score(&evaluation)?;
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
        "k": score.chosen.k, "temperature": score.chosen.temperature, "skipped": skipped,
    }))?;
    Ok(ExitCode::SUCCESS)
}
