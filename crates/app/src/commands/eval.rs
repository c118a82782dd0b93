//! `eval`: accuracy with labels, by our own protocol and by those that others print.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use twinsight_datasets::Dataset;
use twinsight_knn::spread_of_seeds;
use twinsight_train::data::fingerprint;
use twinsight_train::evaluate::Evaluation;
use twinsight_train::few::{Share, balanced};
use twinsight_train::finetune::{Depth, FineTuneConfig, fine_tune};
use twinsight_train::folder::read_metrics;
use twinsight_train::protocols::{Encoded, Measured, PROTOCOLS, ProtocolSpec, measure, over_draws};
use twinsight_train::{RunConfig, RunFolder, Trained};

use super::{LabelledImages, classes_table, grid, labelled_evaluation, trained};
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
    if let Some(lr) = args.lr.filter(|lr| !(*lr > 0.0 && lr.is_finite())) {
        bail!("--lr {lr}: expected a learning rate above 0");
    }
    let depth = args.fine_tune.as_deref().map(depth).transpose()?;
    let mut lines = Vec::new();
    let mut own = Vec::new();
    for run in &args.runs {
        let found = of_run(args, run, &protocols, depth, output)?;
        own.push(found.own);
        let mut line = json!({"run": run, "figures": found.figures, "classes": found.classes, "skipped": found.skipped});
        if found.probe.is_some() {
            line["probe"] = json!(found.probe);
        }
        lines.push(line);
    }
    let mut line = json!({ "runs": lines });
    let own: Vec<Own> = own.into_iter().flatten().collect();
    if own.len() > 1 {
        match one_experiment(&own)? {
            Err(why) => output.say(format!("no interval over the {} runs: {why}", own.len())),
            Ok(()) => {
                let figures: Vec<f64> = own.iter().map(|o| o.top1).collect();
                if let Some(spread) = spread_of_seeds(&figures) {
                    output.say(format!(
                        "own protocol over {} runs that differ in their seed: {:.2} % (95 % interval {:.2} to {:.2}, Student's t)",
                        own.len(),
                        spread.mean * 100.0,
                        spread.low * 100.0,
                        spread.high * 100.0
                    ));
                    line["own_over_runs"] = json!({"mean": spread.mean, "low": spread.low, "high": spread.high});
                }
            }
        }
    }
    output.finish(&line)?;
    Ok(ExitCode::SUCCESS)
}

/// A run's figure by our own protocol, and what it has to share with others for an interval over them.
struct Own {
    top1: f64,
    run: String,
    config: Option<RunConfig>,
    /// Checksums of the images that were trained on or searched in, and of those that were judged.
    images: (String, String),
    measured_on: String,
}

/// Whether the runs are one experiment with several seeds; else why not.
fn one_experiment(own: &[Own]) -> Result<Result<(), String>> {
    let mut seeds = Vec::new();
    let first = &own[0];
    for other in own {
        let (Some(config), Some(with)) = (&first.config, &other.config) else {
            return Ok(Err("an encoder file does not say how it was trained; name run folders".into()));
        };
        let mut keys = config.differences(&with.to_toml()?)?;
        keys.retain(|k| k != "seed");
        if !keys.is_empty() {
            return Ok(Err(format!("{} and {} differ in {}, not in the seed alone", first.run, other.run, keys.join(", "))));
        }
        if seeds.contains(&with.seed) {
            return Ok(Err(format!("{} has the seed {} of an earlier one; each needs its own", other.run, with.seed)));
        }
        seeds.push(with.seed);
        if first.images != other.images || first.measured_on != other.measured_on {
            return Ok(Err(format!("{} and {} are judged on other images", first.run, other.run)));
        }
    }
    Ok(Ok(()))
}

fn depth(text: &str) -> Result<Depth> {
    match text.parse::<usize>() {
        Ok(blocks) => Ok(Depth::Last(blocks)),
        Err(_) if text == "full" => Ok(Depth::Full),
        Err(_) => bail!("--fine-tune {text}: expected `full`, or how many of the last blocks"),
    }
}

/// What is found of a run.
struct OfRun {
    figures: Vec<Value>,
    own: Option<Own>,
    classes: Vec<String>,
    probe: Option<f64>,
    skipped: usize,
}

fn of_run(args: &EvalArgs, run: &Path, protocols: &[&ProtocolSpec], depth: Option<Depth>, output: &Output) -> Result<OfRun> {
    let trained = trained(run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let found = labelled_evaluation(&trained, args.data.as_deref(), args.limit)?;
    let LabelledImages { evaluation, whole, classes, mut skipped, .. } = found;
    // Said before the first figure, so that a refusal stands alone.
    let mut heading = Some(format!("{}:", run.display()));
    let mut head = || heading.take().into_iter().for_each(|h| output.say(h));
    let mut of_run = OfRun { figures: Vec::new(), own: None, classes, probe: None, skipped: 0 };
    if !protocols.is_empty() {
        let encoded = trained.encoded(&evaluation)?;
        skipped += Output::skipped(encoded.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
        for spec in protocols {
            for measured in of_protocol(args, &encoded, spec, &evaluation)? {
                head();
                tell(args, &measured, &of_run.classes, output);
                if spec.name == "own" {
                    let judged = evaluation.test.as_ref().unwrap_or(&evaluation.held_out);
                    of_run.own = Some(Own {
                        top1: measured.top1,
                        run: run.display().to_string(),
                        config: trained.config.clone(),
                        images: (fingerprint(&*whole), fingerprint(&**judged)),
                        measured_on: measured.measured_on.clone(),
                    });
                }
                of_run.figures.push(serde_json::to_value(&measured)?);
            }
            maximum_over_epochs(run, spec, encoded.measured_on(), &mut of_run, output)?;
        }
        if args.baselines {
            let before = trained.before_training()?;
            for (name, words, encoded) in [
                ("pixels", "on pixels", Encoded::pixels(&evaluation)?),
                ("before_training", "on the encoder before training", before.encoded(&evaluation)?),
            ] {
                for spec in protocols {
                    for measured in of_protocol(args, &encoded, spec, &evaluation)? {
                        output.say(format!(
                            "  {:<12} {:6.2} %  {words}; {}",
                            spec.name,
                            measured.top1 * 100.0,
                            measured.settings
                        ));
                        let mut value = serde_json::to_value(&measured)?;
                        value["baseline"] = json!(name);
                        of_run.figures.push(value);
                    }
                }
            }
        }
        of_run.probe = last_probe(run)?;
        if let Some(probe) = of_run.probe {
            output.say(format!(
                "  {:<12} {:6.2} %  the online probe at the end of training, on held-out images",
                "probe",
                probe * 100.0
            ));
        }
    }
    if let Some(depth) = depth {
        let labelled = if evaluation.test.is_some() { whole } else { evaluation.bank.clone() };
        for &share in &args.shares {
            let (measured, bad) = tuned(args, &trained, &evaluation, &labelled, depth, share)?;
            head();
            tell(args, &measured, &of_run.classes, output);
            if protocols.is_empty() {
                skipped += Output::skipped(bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
            }
            let mut value = serde_json::to_value(&measured)?;
            value["share"] = json!(share);
            of_run.figures.push(value);
        }
    }
    of_run.skipped = skipped;
    Ok(of_run)
}

fn of_protocol(args: &EvalArgs, encoded: &Encoded, spec: &ProtocolSpec, evaluation: &Evaluation) -> Result<Vec<Measured>> {
    Ok(match spec.name {
        "own" => {
            let EvalGrid { ks, temperatures, remark } = eval_grid(evaluation, encoded)?;
            let mut measured = encoded.own_knn(&ks, &temperatures)?.1;
            measured.settings.push_str(&remark);
            vec![measured]
        }
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

/// The settings that our own protocol chooses from: the run's own, so that its figure is the run's.
struct EvalGrid {
    ks: Vec<usize>,
    temperatures: Vec<f64>,
    remark: String,
}

fn eval_grid(evaluation: &Evaluation, encoded: &Encoded) -> Result<EvalGrid> {
    let (of_run, default) = (&evaluation.config, RunConfig::resolve(&[])?.eval);
    let ks = grid(&of_run.k, false, encoded.most_neighbours())?;
    let remark = match (&of_run.k, &of_run.temperature) == (&default.k, &default.temperature) {
        true => String::new(),
        false => format!("; the run's own choice was among k {:?} and T {:?}", of_run.k, of_run.temperature),
    };
    Ok(EvalGrid { ks, temperatures: of_run.temperature.clone(), remark })
}

/// Fine-tunes on a share of the labels with each seed.
fn tuned(
    args: &EvalArgs,
    trained: &Trained,
    evaluation: &Evaluation,
    labelled: &Arc<dyn Dataset>,
    depth: Depth,
    share: f64,
) -> Result<(Measured, Vec<(String, String)>)> {
    let (judged, on) = match &evaluation.test {
        Some(test) => (test, "test"),
        None => (&evaluation.held_out, "held-out"),
    };
    let what = match depth {
        Depth::Full => "whole encoder".to_string(),
        Depth::Last(blocks) => format!("last {blocks} blocks"),
    };
    let (mut found, mut bad, mut rates, mut size) = (Vec::new(), Vec::new(), Vec::new(), (0, 0));
    for seed in 0..args.seeds {
        let part: Arc<dyn Dataset> =
            if share < 1.0 { Arc::new(balanced(labelled, Share::Fraction(share), seed)?) } else { labelled.clone() };
        let config = FineTuneConfig { depth, epochs: args.epochs, lr: args.lr, seed, ..FineTuneConfig::default() };
        let mut tell = |text: &str| Output::warn(format!("fine-tuning, seed {seed}: {text}"));
        let reached = fine_tune(&trained.file, &part, &**judged, &trained.plan, &config, trained.device(), &mut tell)?;
        let known = reached.known;
        found.push(measure("fine-tuned", &reached.predicted, &reached.labels, known, String::new(), on)?);
        rates.push(reached.lr.to_string());
        size = (part.len(), reached.epochs);
        bad = reached.bad;
    }
    let how = if args.lr.is_some() { "given" } else { "chosen on a fifth of the labels" };
    let settings = format!("{what}, {} labels, {} epochs, learning rate {} ({how})", size.0, size.1, rates.join(", "));
    Ok((Measured { settings, ..over_draws(found, "draws of labels and runs")? }, bad))
}

fn tell(args: &EvalArgs, measured: &Measured, classes: &[String], output: &Output) {
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
    if args.per_class {
        classes_table(measured, classes, output);
    }
}

/// The largest figure of a protocol that a run recorded after its epochs, the last included (`eval.published`), on the images that it is
/// judged on here.
fn maximum_over_epochs(run: &Path, spec: &ProtocolSpec, on: &str, of_run: &mut OfRun, output: &Output) -> Result<()> {
    // The only figure that runs record.
    if spec.name != "lightly" || !run.is_dir() {
        return Ok(());
    }
    let metrics = read_metrics(&RunFolder::open(run)?.0)?;
    let recorded = metrics.iter().filter(|m| m["event"] == "published" && m["protocol"] == spec.name && m["measured_on"] == on);
    let figures: Vec<f64> = recorded.filter_map(|m| m["accuracy"].as_f64()).collect();
    match figures.iter().copied().reduce(f64::max) {
        Some(most) => {
            output.say(format!(
                "  {:<12} {:6.2} %  the maximum over {} epochs, chosen on the {on} images that it is measured on",
                spec.name,
                most * 100.0,
                figures.len()
            ));
            let (name, epochs) = (spec.name, figures.len());
            of_run.figures.push(json!({"protocol": name, "maximum_over_epochs": most, "epochs": epochs, "measured_on": on}));
        }
        None => output.say(format!(
            "  {:<12} no maximum over epochs: the run recorded none; train with --set eval.published=true to have it",
            spec.name
        )),
    }
    Ok(())
}

/// What the online probe had reached at the end of a run that had one.
fn last_probe(run: &Path) -> Result<Option<f64>> {
    if !run.is_dir() {
        return Ok(None);
    }
    let metrics = read_metrics(&RunFolder::open(run)?.0)?;
    Ok(metrics.iter().rev().find(|m| m["event"] == "probe").and_then(|m| m["accuracy"].as_f64()))
}
