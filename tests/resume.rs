//! A run that is stopped or killed at any moment and resumed ends with the bytes of one that never was; so does a run with
//! another number of threads.

#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{run, twinsight};

/// A run of a few seconds. SimCLR's has a checkpoint at the end of each epoch, so that most kills lose steps that were made; the
/// others' have one after every step. The residual networks learn from 270 labelled images and are
/// evaluated; the transformer, whose checkpoints weigh 170 MB, has a few steps on a folder without labels.
fn args<'a>(method: &'a str, out: &'a str, workers: &'a str) -> Vec<&'a str> {
    let mut args = vec!["train", "--method", method, "--out", out, "--workers", workers, "--epochs", "2", "--image-size", "16"];
    let seconds = if method == "simclr" { "log.checkpoint_seconds=3600" } else { "log.checkpoint_seconds=0" };
    args.extend(["--set", seconds, "--set", "log.every=5"]);
    if method == "dino" {
        args.extend(["--data", "pictures", "--batch", "16", "--encoder", "vit_tiny", "--set", "network.drop_path=0.1"]);
        args.extend(["--set", "options.out_dim=64", "--set", "options.local_views=2"]);
    } else {
        args.extend(["--data", "fashion-mnist-mini", "--limit", "300", "--batch", "32"]);
    }
    args
}

/// A folder of tests to run in, with the pictures that [`args`] names.
fn place() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    common::write_images(&dir.path().join("pictures"), 64, 20, 18)?;
    Ok(dir)
}

fn encoder(cache: &Path, out: &str) -> Result<Vec<u8>> {
    std::fs::read(cache.join(out).join("encoder.safetensors")).with_context(|| format!("encoder of {out}"))
}

fn whole(cache: &Path, method: &str, out: &str, workers: &str) -> Result<Vec<u8>> {
    let (code, _, stderr) = run(cache, &args(method, out, workers))?;
    ensure!(code == 0, "{stderr}");
    encoder(cache, out)
}

/// Starts the run, sends it `signal` at each of `moments` (milliseconds; the first counted from the first checkpoint, the others
/// from the start of a resumed part), and resumes it to the end.
fn broken(cache: &Path, method: &str, out: &str, signal: &str, moments: &[u64]) -> Result<Vec<u8>> {
    // Killed before there was a run, it is begun again.
    let arguments = || if cache.join(out).join("config.toml").exists() { vec!["resume", out] } else { args(method, out, "2") };
    for (i, &milliseconds) in moments.iter().enumerate() {
        let mut child = twinsight(cache).args(arguments()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if i == 0 && method != "simclr" {
            // SimCLR's first kill may come before the first checkpoint, during the baselines even. The others are killed once
            // there is a checkpoint, so that something is resumed, and then a moment later.
            let checkpoint = cache.join(out).join("checkpoint.safetensors");
            while !checkpoint.exists() && child.try_wait()?.is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
        // The process may have ended by itself; then there is nothing to signal, and nothing lost.
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status()?;
        child.wait()?;
    }
    let (code, _, stderr) = run(cache, &arguments())?;
    ensure!(code == 0, "{stderr}");
    encoder(cache, out)
}

/// A number that differs from run to run of the tests, so that other moments are tried each time.
fn moment(salt: u64) -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| u64::from(d.subsec_nanos()));
    (nanos / 1000).wrapping_mul(2_654_435_761).wrapping_add(salt * 7919) % 700
}

#[test]
fn killed_runs_end_with_the_same_bytes() -> Result<()> {
    let dir = place()?;
    for method in ["simclr", "byol", "dino"] {
        let want = whole(dir.path(), method, &format!("{method}-whole"), "2")?;
        let one = whole(dir.path(), method, &format!("{method}-one"), "1")?;
        ensure!(one == want, "{method}: one loader thread gives other bytes than two");
        let moments = [moment(1), moment(2), moment(3)];
        let got = broken(dir.path(), method, &format!("{method}-killed"), "-KILL", &moments)?;
        ensure!(got == want, "{method}: killed after {moments:?} ms and resumed, the encoder differs");
        let metrics = |out: String| -> Result<Vec<(u64, String)>> {
            let text = std::fs::read_to_string(dir.path().join(out).join("metrics.jsonl"))?;
            text.lines()
                .map(|l| {
                    let line: serde_json::Value = serde_json::from_str(l)?;
                    Ok((line["step"].as_u64().unwrap_or(0), line["loss"].to_string()))
                })
                .collect()
        };
        ensure!(
            metrics(format!("{method}-whole"))? == metrics(format!("{method}-killed"))?,
            "{method}: the metrics of a resumed run have gaps or repeats"
        );
    }
    Ok(())
}

#[test]
fn an_interrupted_run_says_how_to_go_on() -> Result<()> {
    let dir = place()?;
    let want = whole(dir.path(), "byol", "whole", "2")?;
    let mut child =
        twinsight(dir.path()).args(args("byol", "stopped", "2")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let checkpoint = dir.path().join("stopped/checkpoint.safetensors");
    while !checkpoint.exists() && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(130), "exit code {:?}", output.status.code());
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("twinsight resume stopped"), "{text}");
    let (code, _, stderr) = run(dir.path(), &["resume", "stopped"])?;
    ensure!(code == 0, "{stderr}");
    ensure!(encoder(dir.path(), "stopped")? == want, "interrupted and resumed, the encoder differs");
    Ok(())
}
