//! `eval`: accuracy with labels, by our own protocol and by those that others print.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use twinsight_datasets::{Dataset, hold_out};
use twinsight_knn::spread_of_seeds;
use twinsight_train::evaluate::Evaluation;
use twinsight_train::few::{Share, balanced};
use twinsight_train::finetune::{Depth, FineTuneConfig, fine_tune};
use twinsight_train::folder::read_metrics;
use twinsight_train::protocols::{Encoded, Measured, PROTOCOLS, ProtocolSpec};
use twinsight_train::{RunConfig, RunFolder, Trained};

use super::open_for;
use crate::cli::EvalArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Images without labels, a protocol that is none, settings out of range.
pub fn run(args: &EvalArgs, output: &Output) -> Result<ExitCode> {
    let protocols = args
        .protocol
        .iter()
        .map(|name| {
            PROTOCOLS.iter().find(|p| p.name == name).with_context(|| {
                let known: Vec<&str> = PROTOCOLS.iter().map(|p| p.name).collect();
                format!("--protocol {name}: expected some of {}", known.join(", "))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(share) = args.shares.iter().find(|s| !(**s > 0.0 && **s <= 1.0)) {
        bail!("--shares {share}: expected numbers above 0, at most 1 (0.01 is 1 %)");
    }
    let depth = args.fine_tune.as_deref().map(depth).transpose()?;
    let mut lines = Vec::new();
    let mut own = Vec::new();
    for run in &args.runs {
        let found = of_run(args, run, &protocols, depth, output)?;
        own.extend(found.iter().filter(|f| f["protocol"] == "own").filter_map(|f| f["top1"].as_f64()));
        lines.push(json!({"run": run, "figures": found}));
    }
    let mut line = json!({ "runs": lines });
    if let Some(spread) = spread_of_seeds(&own) {
        output.say(format!(
            "own protocol over {} runs: {:.2} % (95 % interval {:.2} to {:.2})",
            own.len(),
            spread.mean * 100.0,
            spread.low * 100.0,
            spread.high * 100.0
        ));
        line["own_over_runs"] = json!({"mean": spread.mean, "low": spread.low, "high": spread.high});
    }
    output.finish(&line)?;
    Ok(ExitCode::SUCCESS)
}

fn depth(text: &str) -> Result<Depth> {
    match text.parse::<usize>() {
        Ok(blocks) => Ok(Depth::Last(blocks)),
        Err(_) if text == "full" => Ok(Depth::Full),
        Err(_) => bail!("--fine-tune {text}: expected `full`, or how many of the last blocks"),
    }
}

fn of_run(args: &EvalArgs, run: &Path, protocols: &[&ProtocolSpec], depth: Option<Depth>, output: &Output) -> Result<Vec<Value>> {
    let trained = Trained::load(run)?.with_features(args.features.parse()?)?;
    let (data, opened) =
        open_for(&trained, args.data.as_deref(), false, |of_run| args.limit.map_or(of_run, |l| (l > 0).then_some(l)))?;
    Output::skipped(&opened.report.bad_files);
    let whole = opened.train.clone();
    let classes = whole.classes().map_or(0, <[String]>::len);
    if classes < 2 {
        bail!("{data}: accuracy needs labels of at least 2 classes ({})", opened.report.understood);
    }
    let first = whole.label(0);
    if (0..whole.len()).all(|i| whole.label(i) == first) {
        bail!("{data}: all {} images are of one class; there is nothing to tell apart", whole.len());
    }
    // The run's own share, so that the held-out images are those that it never trained on.
    let share = trained.config.as_ref().map(|c| c.data.held_out).filter(|&s| s > 0.0).unwrap_or(0.1);
    let config = RunConfig::resolve(&[])?.eval;
    let (bank, held_out) = hold_out(opened.train, share, 0)?;
    let test = opened.test.filter(|t| !t.is_empty() && t.label(0).is_some());
    let judged: Arc<dyn Dataset> = test.clone().unwrap_or_else(|| held_out.clone());
    let labelled = if test.is_some() { whole } else { bank.clone() };
    let evaluation = Evaluation { bank, held_out, test, classes, plan: trained.plan.clone(), config };
    output.say(format!("{}:", run.display()));
    let mut found = Vec::new();
    if !protocols.is_empty() {
        let encoded = trained.encoded(&evaluation)?;
        for spec in protocols {
            for measured in of_protocol(args, &encoded, spec, &evaluation)? {
                tell(&measured, output);
                found.push(serde_json::to_value(&measured)?);
            }
            if let Some(most) = published_maximum(run, spec)? {
                output.say(format!(
                    "  {:<12} {:6.2} %  the maximum over epochs, chosen on the images that it is measured on",
                    spec.name,
                    most * 100.0
                ));
                found.push(json!({"protocol": spec.name, "maximum_over_epochs": most}));
            }
        }
    }
    if let Some(depth) = depth {
        for &share in &args.shares {
            let part: Arc<dyn Dataset> =
                if share < 1.0 { Arc::new(balanced(&labelled, Share::Fraction(share), 0)?) } else { labelled.clone() };
            let config = FineTuneConfig { depth, epochs: args.epochs, lr: args.lr, ..FineTuneConfig::default() };
            let mut tell = |epoch: u64, loss: f64| Output::warn(format!("fine-tuning: epoch {epoch}, loss {loss:.4}"));
            let reached = fine_tune(&trained.file, &part, &*judged, &trained.plan, &config, &mut tell)?;
            let what = match depth {
                Depth::Full => "whole encoder".to_string(),
                Depth::Last(blocks) => format!("last {blocks} blocks"),
            };
            output.say(format!(
                "  {:<12} {:6.2} %  top-5 {:.2} %, {what}, {} labels, {} epochs",
                "fine-tuned",
                reached.top1 * 100.0,
                reached.top5 * 100.0,
                part.len(),
                args.epochs
            ));
            found.push(json!({
                "protocol": "fine-tuned", "top1": reached.top1, "top5": reached.top5, "share": share, "labels": part.len(),
                "depth": what, "epochs": args.epochs,
            }));
        }
    }
    Ok(found)
}

fn of_protocol(args: &EvalArgs, encoded: &Encoded, spec: &ProtocolSpec, evaluation: &Evaluation) -> Result<Vec<Measured>> {
    Ok(match spec.name {
        "own" => vec![encoded.own_knn(&evaluation.config.k, &evaluation.config.temperature)?],
        "simclr" => args
            .shares
            .iter()
            .map(|&share| {
                let seeds: Vec<u64> = (0..if share < 1.0 { args.seeds } else { 1 }).collect();
                encoded.linear(share, &seeds)
            })
            .collect::<twinsight_train::Result<_>>()?,
        _ => vec![encoded.published_knn(spec)?],
    })
}

fn tell(measured: &Measured, output: &Output) {
    output.say(format!(
        "  {:<12} {:6.2} %  (95 % interval {:.2} to {:.2} over {}), top-5 {:.2} %, {} images; {}",
        measured.protocol,
        measured.top1 * 100.0,
        measured.low * 100.0,
        measured.high * 100.0,
        measured.interval,
        measured.top5 * 100.0,
        measured.measured_on,
        measured.settings
    ));
}

/// The largest figure of a protocol that a run recorded while training (`eval.published`).
fn published_maximum(run: &Path, spec: &ProtocolSpec) -> Result<Option<f64>> {
    if !run.is_dir() {
        return Ok(None);
    }
    let metrics = read_metrics(&RunFolder::open(run)?.0)?;
    let recorded = metrics.iter().filter(|m| m["event"] == "published" && m["protocol"] == spec.name);
    Ok(recorded.filter_map(|m| m["accuracy"].as_f64()).reduce(f64::max))
}
