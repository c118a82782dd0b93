//! `bench step`: throughput of a training step.

use std::process::ExitCode;

use anyhow::Result;
use twinsight_train::bench::{BenchStep, bench_step};

use crate::cli::BenchStepArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// Unknown names, sizes that the encoder can't take.
pub fn run(args: &BenchStepArgs, output: &Output) -> Result<ExitCode> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let bench = BenchStep {
        method: args.method.clone(),
        encoder: args.encoder.clone(),
        batch: args.batch,
        size: args.size,
        local_size: args.local_size,
        steps: args.steps,
    };
    let report = bench_step(&bench, &mut |done| Output::warn(format!("step {done} of {}", args.steps)))?;
    output.say(format!(
        "{} {} batch {} size {}: {} images/s, {} s a step (best {}), peak memory {} MB",
        report.method,
        report.encoder,
        report.batch,
        report.size,
        report.images_per_s,
        report.step_s,
        report.best_step_s,
        report.peak_rss_mb.map_or("unknown".into(), |m| m.to_string())
    ));
    output.finish(&report)?;
    Ok(ExitCode::SUCCESS)
}
