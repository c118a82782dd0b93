//! Whether a device gives the losses of the processor, and a run that was resumed those of one that was not stopped.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{GpuArgs, Log, curve};
use crate::shell;

/// Steps that are compared one by one: the first, with the processor's, and those after a resume.
const STEPS: u64 = 20;

/// The learning rate: a hundredth of the method's own, with which single losses can't be compared for long. Two runs of the processor whose weight
/// decay differs by a hundredth are then up to 7e-2 of the loss apart within 17 steps, from 5e-6 in the third (`resnet_mini`); with this rate
/// 3e-3 within 20.
const RATE: &str = "schedule.lr=0.0006";

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Compares the first losses of the processor and the device, and of the device with `f32` and with `bf16`, by runs that are stopped
/// then.
///
/// # Errors
/// When a run fails, or the losses are further apart than they may.
pub fn agree(args: &GpuArgs, program: &Path, log: &Log) -> Result<()> {
    let there = curve::of(&whole(args, program)?, "loss")?;
    type Apart = fn(&[(u64, f64)], &[(u64, f64)], RangeInclusive<u64>) -> Result<(f64, usize)>;
    let cases: [(&str, &str, &str, f64, Apart); 2] = [
        ("cpu", "f32", "the processor's and the device's", args.tolerance, curve::apart),
        (&args.device, "bf16", "the device's with bf16 and with f32, by their mean", args.mean_tolerance, curve::means_apart),
    ];
    for (device, precision, whose, tolerance, apart) in cases {
        let run = args.out.join(format!("agree-{precision}"));
        stopped(train(args, program, device, &run).args(["--precision", precision]), &run, STEPS)?;
        let found = apart(&there, &curve::of(&run, "loss")?, 1..=STEPS)?;
        tell(args, log, &format!("agree, {precision}"), whose, tolerance, found)?;
        ensure!(found.1 as u64 >= STEPS, "only {} steps to compare", found.1);
    }
    Ok(())
}

/// Compares the losses of a run that was stopped and resumed with those of one that was not: the first one by one, all by their mean, since
/// convolutions may round in another way in another process.
///
/// # Errors
/// As [`agree`].
pub fn resume(args: &GpuArgs, program: &Path, log: &Log) -> Result<()> {
    let (one, two) = (whole(args, program)?, args.out.join("agree-resumed"));
    stopped(&mut train(args, program, &args.device, &two), &two, STEPS)?;
    let at = curve::of(&two, "loss")?.last().map_or(0, |(step, _)| *step);
    let all = curve::of(&one, "loss")?;
    let last = all.last().map_or(0, |(step, _)| *step);
    ensure!(at < last, "the run was done, with {last} steps, before it could be stopped: nothing was resumed");
    shell::output(Command::new(program).args(["resume", "--json"]).arg(&two))?;
    let resumed = curve::of(&two, "loss")?;
    let whose = format!("a run's and those of one that was resumed after step {at}");
    tell(args, log, "resume", &whose, args.tolerance, curve::apart(&all, &resumed, at + 1..=at + STEPS)?)?;
    let found = curve::means_apart(&all, &resumed, at + 1..=last)?;
    tell(args, log, "resume, to the end", &format!("{whose}, by their mean"), args.mean_tolerance, found)?;
    ensure!(found.1 as u64 == last - at, "{} steps to compare, of {}", found.1, last - at);
    Ok(())
}

fn tell(args: &GpuArgs, log: &Log, part: &str, whose: &str, tolerance: f64, (share, steps): (f64, usize)) -> Result<()> {
    let device = &args.device;
    log.figure(&json!({"part": part, "device": device, "steps": steps, "largest_difference": share, "tolerance": tolerance}))?;
    log.text(&format!(
        "## Losses: {part}\n\n{}, on {device}: losses of {steps} steps, {whose}, differ by {share:.2e} of the loss at most ({:.0e} allowed)\n",
        args.encoder, tolerance
    ))?;
    if share > tolerance {
        bail!("losses, {whose}, differ by {share:.2e}, over {tolerance:.0e}");
    }
    Ok(())
}

/// The run on the device that is not stopped, made where it is not there.
fn whole(args: &GpuArgs, program: &Path) -> Result<PathBuf> {
    let run = args.out.join("agree-device");
    if !run.join("result.json").exists() {
        shell::output(&mut train(args, program, &args.device, &run))?;
    }
    Ok(run)
}

/// Some 200 steps of SimCLR on images that the program has within it, every loss logged.
fn train(args: &GpuArgs, program: &Path, device: &str, out: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["train", "--json", "--data", "fashion-mnist-mini", "--encoder", &args.encoder, "--device", device]);
    command.args(["--limit", "2000", "--batch", "64", "--epochs", "8", "--set", "log.every=1", "--set", RATE]);
    // Losses are all that is looked at.
    command.args(["--set", "eval.baselines=false", "--set", "eval.every=1000", "--out"]).arg(out);
    command
}

/// Runs until `step` is logged, then asks the program to stop, as Ctrl-C does, and waits for it.
fn stopped(command: &mut Command, run: &Path, step: u64) -> Result<()> {
    let mut child = command.stdout(Stdio::null()).spawn().context("cannot start the program")?;
    let waited = wait_for(&mut child, run, step);
    if waited.is_ok() {
        // A run that is done by now has no process to be told.
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
    } else {
        let _ = child.kill();
    }
    let status = child.wait().context("the program")?;
    waited?;
    // 130 is what a program says that was interrupted.
    ensure!(status.success() || status.code() == Some(130), "the run ended with {status}");
    Ok(())
}

fn wait_for(child: &mut Child, run: &Path, step: u64) -> Result<()> {
    let (mut begun, mut seen) = (Instant::now(), 0);
    loop {
        let now = curve::of(run, "loss")?.last().map_or(0, |(step, _)| *step);
        if now >= step {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("the run ended with {status} after {now} steps");
        }
        if now > seen {
            (begun, seen) = (Instant::now(), now);
        }
        ensure!(begun.elapsed() < PATIENCE, "no step for {} seconds, after {now}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}
