//! Images a second of training steps, ours and a peer's in turn.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{GpuArgs, Log};
use crate::bench::Case;
use crate::bench::report::{Comparison, Measurement};
use crate::shell;

/// Measures every case. One that fails is told, and the others run.
///
/// # Errors
/// When a program failed.
pub fn run(args: &GpuArgs, program: &Path, log: &Log) -> Result<()> {
    let peer = args.step_peer.as_ref().context("--step-peer")?;
    log.text(&format!("## Training steps on {}, {} a run\n", args.device, args.steps))?;
    log.text(
        "| step | twinsight, images/s | peer, images/s | to the best of them (lowest, highest) |\n| --- | ---: | --- | ---: |",
    )?;
    let mut failed = Vec::new();
    for case in &args.cases {
        match case_of(args, program, peer, case, log) {
            Ok(row) => log.text(&row)?,
            Err(error) => failed.push(format!("{case}: {error:#}")),
        }
    }
    log.text("")?;
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

fn case_of(args: &GpuArgs, program: &Path, peer: &Path, case: &Case, log: &Log) -> Result<String> {
    // Without bf16 both may round to TF32: PyTorch's program asks for it.
    let (ours, theirs) = if case.bf16 { ("bf16", "bf16") } else { ("tf32", "f32") };
    let variants: &[(&str, &[&str])] = &[("eager", &["--channels-last"]), ("compiled", &["--channels-last", "--compile"])];
    let variants = if args.eager_only { &variants[..1] } else { variants };
    let mut own = Vec::new();
    let mut other: Vec<(&str, Vec<Measurement>)> = variants.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for round in 0..=args.rounds {
        let counts = round > 0 || args.rounds == 0;
        let mut command = Command::new(program);
        command.args(["bench", "step", "--json", "--precision", ours, "--method", &case.method]);
        let run = measured(&mut command, "twinsight", args, case, log)?;
        if counts {
            own.push(run);
        }
        for ((name, words), (_, runs)) in variants.iter().zip(&mut other) {
            let mut command = Command::new(&args.python);
            command.arg(peer).args(["--dtype", theirs, "--method", their_name(&case.method)]).args(*words);
            let run = measured(&mut command, name, args, case, log)?;
            if counts {
                runs.push(run);
            }
        }
    }
    let comparison = Comparison::new(case.to_string(), &own, &other)?;
    let [middle, low, high] = comparison.ratio();
    let middle_of = |runs: &[Measurement]| {
        let mut all: Vec<f64> = runs.iter().map(|run| run.images_per_s).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let peers: Vec<String> = other.iter().map(|(name, runs)| format!("{name} {:.0}", middle_of(runs))).collect();
    let precision = if case.bf16 { "" } else { ", TF32" };
    Ok(format!("| {case}{precision} | {:.0} | {} | {middle:.2} ({low:.2}, {high:.2}) |", middle_of(&own), peers.join(", ")))
}

fn measured(command: &mut Command, who: &str, args: &GpuArgs, case: &Case, log: &Log) -> Result<Measurement> {
    let [batch, size, local, steps] = [case.batch, case.size, local_size(case.size), args.steps].map(|n| n.to_string());
    command.args(["--encoder", &case.encoder, "--batch", &batch, "--size", &size, "--steps", &steps, "--device", &args.device]);
    command.args(["--local-size", &local]);
    let output = shell::output(command)?;
    let run = Measurement::parse(&output)?;
    log.figure(&json!({"part": "step", "case": case.to_string(), "who": who, "line": super::json_line(&output)?}))?;
    Ok(run)
}

/// The side of DINO's small views beside its large ones (Caron et al. 2021: 96 beside 224).
fn local_size(size: u32) -> u32 {
    if size == 224 { 96 } else { (size / 2).max(1) }
}

/// What the peer calls a method.
fn their_name(method: &str) -> &str {
    if method == "barlow_twins" { "barlow" } else { method }
}
