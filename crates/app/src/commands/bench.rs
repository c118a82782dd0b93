//! `bench`: throughput of a training step, of every operation by itself, and of decoding with views.

use std::process::ExitCode;

use anyhow::{Result, bail};
use twinsight_datasets::{OpenOptions, open};
use twinsight_train::bench::{BenchData, BenchStep, Precision, bench_data, bench_kernels, bench_step};

use crate::cli::{BenchDataArgs, BenchKernelsArgs, BenchStepArgs, PrecisionArg};
use crate::output::Output;

/// `bench step`.
///
/// # Errors
/// Unknown names, sizes that the encoder can't take.
pub fn step(args: &BenchStepArgs, output: &Output) -> Result<ExitCode> {
    set_threads(args.threads)?;
    let bench = BenchStep {
        method: args.method.clone(),
        encoder: args.encoder.clone(),
        batch: args.batch,
        size: args.size,
        local_size: args.local_size,
        micro_batch: args.micro_batch,
        precision: match args.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Tf32 => Precision::Tf32,
            PrecisionArg::Bf16 => Precision::Bf16,
        },
        steps: args.steps,
        device: args.device.clone(),
    };
    let report = bench_step(&bench, &mut |done| Output::warn(format!("step {done} of {}", args.steps)))?;
    output.say(format!(
        "{} {} batch {} size {}: {} images/s, {} s a step (best {}), {} billion multiply-adds a step, peak memory {} MB",
        report.method,
        report.encoder,
        report.batch,
        report.size,
        report.images_per_s,
        report.step_s,
        report.best_step_s,
        report.gmac_per_step.map_or("uncounted".into(), |g| g.to_string()),
        report.peak_rss_mb.map_or("unknown".into(), |m| m.to_string())
    ));
    if args.profile && report.profile.is_empty() {
        output.say("no profile: where the time goes is told on the CPU only");
    } else if args.profile {
        output
            .say(format!("\n{:<30} {:>6} {:>9} {:>7} {:>9} {:>9}", "operation", "calls", "seconds", "share", "GMAC", "GFLOP/s"));
        for op in &report.profile {
            let rate = if op.gmac > 0.0 { format!("{:.0}", 2.0 * op.gmac / op.seconds) } else { String::new() };
            let gmac = if op.gmac > 0.0 { format!("{:.2}", op.gmac) } else { String::new() };
            let share = 100.0 * op.share;
            output.say(format!("{:<30} {:>6} {:>9.4} {share:>6.1}% {gmac:>9} {rate:>9}", op.name, op.calls, op.seconds));
        }
    }
    output.finish(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// `bench kernels`.
///
/// # Errors
/// A filter that lets nothing through.
pub fn kernels(args: &BenchKernelsArgs, output: &Output) -> Result<ExitCode> {
    set_threads(args.threads)?;
    let mut first = true;
    let report = bench_kernels(args.filter.as_deref().unwrap_or(""), args.time, &mut |peaks, row| {
        if std::mem::take(&mut first) {
            output.say(format!("highest rates: {:.0} GFLOP/s, {:.1} GB/s", peaks.gflops, peaks.gbytes));
            output.say("products above 100 % of it need fewer operations than their definition has (Winograd)\n");
            let head =
                format!("{:<15} {:<9} {:<48} {:>9} {:>7} {:<7} {:>6}", "operation", "pass", "shape", "ms", "rate", "", "share");
            output.say(head);
        }
        output.say(format!(
            "{:<15} {:<9} {:<48} {:>9.3} {:>7.1} {:<7} {:>5.0}%",
            row.operation,
            row.pass,
            row.shape,
            row.seconds * 1e3,
            row.rate,
            row.unit,
            row.share_of_peak * 100.0
        ));
    })?;
    if report.operations.is_empty() {
        bail!(
            "no operation's name holds `{}`; `twinsight bench kernels` without a filter lists all",
            args.filter.as_deref().unwrap_or("")
        );
    }
    output.finish(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// `bench data`.
///
/// # Errors
/// No such images, an unknown method, settings out of range.
pub fn data(args: &BenchDataArgs, output: &Output) -> Result<ExitCode> {
    let options = OpenOptions { limit: Some(args.count), keep_bytes: 0, ..OpenOptions::default() };
    let opened = open(&args.data, &options)?;
    Output::skipped(&opened.report.bad_files);
    let BenchDataArgs { size, count, threads, full_decode, .. } = *args;
    let bench = BenchData { method: args.method.clone(), size, count, threads, reduced_decode: !full_decode };
    let report = bench_data(&bench, &*opened.train)?;
    output.say(format!(
        "{} views of {} images at {} pixels on {} threads: {} images/s ({} µs to decode, {} µs for the views of an image)",
        report.method, report.count, report.size, report.threads, report.images_per_s, report.decode_us, report.views_us
    ));
    output.finish(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    Ok(())
}
