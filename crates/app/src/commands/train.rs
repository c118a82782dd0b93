//! `train` and `resume`: a run from settings to figures.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::json;
use toml::{Table, Value};
use twinsight_datasets::remote::short_name;
use twinsight_train::observe::Progress;
use twinsight_train::{Outcome, RunConfig, Trainer, init};

use super::{free_folder, layers, set_in};
use crate::cli::{Labels, OnCollapse, ResumeArgs, TrainArgs};
use crate::output::Output;

/// `train`.
///
/// # Errors
/// Bad settings or data; training that diverged; a full disk.
pub fn run(args: &TrainArgs, output: &Output) -> Result<ExitCode> {
    let mut options = Table::new();
    if let Some(path) = &args.data {
        set_in(&mut options, "data", "path", path.clone().into());
    }
    for (key, value) in [("encoder", args.encoder.clone().map(Value::from))] {
        if let Some(value) = value {
            options.insert(key.into(), value);
        }
    }
    if let Some(epochs) = args.epochs {
        options.insert("epochs".into(), Value::Integer(i64::try_from(epochs)?));
    }
    if let Some(batch) = args.batch {
        options.insert("batch".into(), Value::Integer(batch as i64));
    }
    if let Some(part) = args.micro_batch {
        options.insert("micro_batch".into(), Value::Integer(part as i64));
    }
    if let Some(what) = args.on_collapse {
        let word = match what {
            OnCollapse::Stop => "stop",
            OnCollapse::Warn => "warn",
        };
        set_in(&mut options, "log", "on_collapse", word.into());
    }
    if let Some(precision) = args.precision {
        set_in(&mut options, "network", "precision", precision.name().into());
    }
    if let Some(limit) = args.limit {
        set_in(&mut options, "data", "limit", Value::Integer(limit as i64));
    }
    if args.strict {
        set_in(&mut options, "data", "strict", Value::Boolean(true));
    }
    if let Some(labels) = args.labels {
        let word = match labels {
            Labels::Auto => "auto",
            Labels::Folder => "folder",
            Labels::None => "none",
        };
        set_in(&mut options, "data", "labels", word.into());
    }
    if let Some(device) = &args.device {
        options.insert("device".into(), device.as_str().into());
    }
    if let Some(workers) = args.workers {
        set_in(&mut options, "data", "workers", Value::Integer(workers as i64));
    }
    if let Some(path) = &args.init {
        set_in(&mut options, "network", "init", path.display().to_string().into());
    }
    if !args.freeze.is_empty() {
        let patterns = args.freeze.iter().map(|p| Value::from(p.as_str())).collect();
        set_in(&mut options, "network", "freeze", Value::Array(patterns));
    }
    if args.checkpoint_activations {
        set_in(&mut options, "network", "checkpoint_activations", Value::Boolean(true));
    }
    let mut layers = layers(&args.settings, options)?;
    if let Some(path) = &args.init {
        let named = layers.iter().rev().find_map(|l| l.table.get("encoder")).and_then(Value::as_str);
        let (_, layer) = init::settings(path, named)?;
        // What the file says counts more than a recipe, and less than what was asked for.
        let recipes = layers.iter().take_while(|l| l.recipe).count();
        layers.insert(recipes, layer);
    }
    let config = RunConfig::resolve(&layers)?;
    if config.data.path.is_empty() {
        bail!("--data is missing: name a folder of images, or a data set of `twinsight list datasets`");
    }
    let out = args.out.clone().unwrap_or_else(|| {
        let of_path = || Path::new(&config.data.path).file_name().map_or("data".into(), |n| n.to_string_lossy().into_owned());
        let name = short_name(&config.data.path).unwrap_or_else(of_path);
        free_folder(&format!("{name}-{}", config.method))
    });
    start(config, &out, output)
}

/// `resume`.
///
/// # Errors
/// No run there, a damaged checkpoint; whatever training can fail of.
pub fn resume(args: &ResumeArgs, output: &Output) -> Result<ExitCode> {
    let trainer = Trainer::resume(&args.run, args.data.as_deref(), args.device.as_deref())?;
    Output::skipped(&trainer.data().report.bad_files);
    finish(trainer, output)
}

/// Makes a run in `out` and trains it.
///
/// # Errors
/// As [`run`].
pub fn start(config: RunConfig, out: &Path, output: &Output) -> Result<ExitCode> {
    let trainer = Trainer::create(config, out)?;
    let (config, data) = (trainer.config(), trainer.data());
    Output::skipped(&data.report.bad_files);
    output.say(format!(
        "{} with {} on {} images of {} ({}), {} channels, {} px; {} steps; run folder {}",
        config.method,
        config.encoder,
        data.train.len(),
        config.data.path,
        data.report.understood,
        data.channels,
        config.data.image_size,
        trainer.total_steps(),
        out.display()
    ));
    finish(trainer, output)
}

fn finish(mut trainer: Trainer, output: &Output) -> Result<ExitCode> {
    trainer.set_commit(option_env!("TWINSIGHT_COMMIT"));
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        Output::warn("stopping after this step (once more to stop at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    let mut progress = Progress::new();
    let outcome = trainer.run(&mut progress, &stop)?;
    let root = trainer.folder().root().display().to_string();
    match outcome {
        Outcome::Finished(result) => {
            let percent = |v: Option<f64>| v.map_or("unknown".to_string(), |v| format!("{:.1} %", v * 100.0));
            if result.knn_trained.is_some() {
                let before = if trainer.config().network.init.is_empty() { "untrained" } else { "before training" };
                output.say(format!(
                    "k-NN accuracy on {} images: {} trained, {} {before}, {} pixels",
                    result.measured_on.as_deref().unwrap_or("held-out"),
                    percent(result.knn_trained),
                    percent(result.knn_random),
                    percent(result.knn_pixels)
                ));
            }
            if let (None, Some(after)) = (result.knn_trained, &result.spread_trained) {
                let number = |v: Option<f64>| v.map_or("unknown".to_string(), |v| format!("{v:.2}"));
                let before = result.spread_random.map_or("unknown".to_string(), |s| format!("{:.1}", s.effective_rank));
                output.say(format!(
                    "without labels: effective rank {before} untrained, {:.1} trained; uniformity {}, alignment {}; {} clusters by silhouette",
                    after.effective_rank,
                    number(after.uniformity),
                    number(after.alignment),
                    result.clusters.map_or("no".to_string(), |c| c.to_string())
                ));
            }
            output.say(format!("{:.0} s; the encoder is in {root}", result.seconds));
            output.say(format!("look at the report: {}", trainer.folder().path("report.html").display()));
            if result.skipped > 0 {
                output.say(format!("{} images could not be read and were left out; they are named above", result.skipped));
            }
            let mut line = serde_json::to_value(&result)?;
            line["out"] = json!(root);
            output.finish(&line)?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { step, total } => {
            output.say(format!("stopped at step {step} of {total} and saved; go on with: twinsight resume {root}"));
            output.finish(&json!({"interrupted": true, "step": step, "total": total, "out": root}))?;
            Ok(ExitCode::from(130))
        }
    }
}
