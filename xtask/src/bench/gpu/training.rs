//! Whole runs by lightly's published CIFAR-10 recipes, ours and a peer's, one after the other: accuracy and minutes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{GpuArgs, Log, curve, index, json_line};
use crate::shell;

/// k-NN accuracies that lightly's documentation gives for these recipes (200 epochs, batch 512, k = 200, T = 0.1).
const PUBLISHED: [(&str, f64); 2] = [("simclr", 0.848), ("byol", 0.868)];

/// Trains with every method, and writes what came of it before the peer is begun.
///
/// # Errors
/// When a program failed.
pub fn run(args: &GpuArgs, program: &Path, log: &Log) -> Result<()> {
    log.text(&format!(
        "## Runs on {}, {} epochs, batch {}\n\nBoth learn from all images. Minutes: of ours the whole program, from reading the images to the \
         report; of the peer its training loop alone, as it tells.\n\n| method | whose | k-NN (k = 200, T = 0.1) | published | minutes | GPU busy | waits for data |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        args.device, args.epochs, args.batch
    ))?;
    let mut failed = Vec::new();
    for method in &args.methods {
        if let Err(error) = ours(args, program, method, log).and_then(|()| theirs(args, method, log)) {
            failed.push(format!("{method}: {error:#}"));
        }
    }
    log.text("")?;
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

fn ours(args: &GpuArgs, program: &Path, method: &str, log: &Log) -> Result<()> {
    let data = args.data.as_ref().context("--data")?;
    let run = args.out.join(method);
    let mut command = Command::new(program);
    command
        .args(["train", "--json", "--recipe", &format!("{method}-lightly-cifar10"), "--device", &args.device, "--data"])
        .arg(data);
    command.args(["--epochs", &args.epochs.to_string(), "--batch", &args.batch.to_string(), "--precision", &args.precision]);
    // No image is held out, as with the peer, and so there is no k-NN figure but that of `eval` afterwards.
    command.args(["--set", "data.held_out=0"]);
    if args.limit > 0 {
        command.args(["--limit", &args.limit.to_string()]);
    }
    let meter = Meter::start(index(&args.device), &args.out.join(format!("{method}-busy.txt")));
    let begun = Instant::now();
    shell::output(command.arg("--out").arg(&run))?;
    // The program as a whole: reading the images, baselines and the last evaluation too.
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let busy = meter.and_then(Meter::stop);
    let mut command = Command::new(program);
    command.args(["eval", "--json", "--protocol", "lightly", "--device", &args.device]).arg(&run);
    let line = json_line(&shell::output(&mut command)?)?;
    let accuracy = line["runs"][0]["figures"][0]["top1"].as_f64().with_context(|| format!("no accuracy in {line}"))?;
    let waits = curve::mean(&curve::of(&run, "wait_share")?);
    log.figure(
        &json!({"part": "train", "who": "twinsight", "method": method, "knn": accuracy, "minutes": minutes, "gpu_busy": busy,
                       "wait_share": waits}),
    )?;
    log.text(&row(method, "twinsight", accuracy, minutes, busy, waits))
}

fn theirs(args: &GpuArgs, method: &str, log: &Log) -> Result<()> {
    let (peer, data) = (args.train_peer.as_ref().context("--train-peer")?, args.data.as_ref().context("--data")?);
    let mut command = Command::new(&args.python);
    command.arg(peer).arg(data).args(["--method", method, "--device", &args.device]);
    let [epochs, batch, limit] = [args.epochs, args.batch, args.limit].map(|n| n.to_string());
    command.args(["--epochs", &epochs, "--batch", &batch, "--limit", &limit]);
    let meter = Meter::start(index(&args.device), &args.out.join(format!("{method}-peer-busy.txt")));
    let output = shell::output(&mut command)?;
    let busy = meter.and_then(Meter::stop);
    let line = json_line(&output)?;
    let accuracy = line["knn"].as_f64().with_context(|| format!("no knn in {line}"))?;
    let minutes = line["train_minutes"].as_f64().with_context(|| format!("no train_minutes in {line}"))?;
    let figure = json!({"part": "train", "who": "peer", "method": method, "knn": accuracy, "minutes": minutes, "gpu_busy": busy, "line": line});
    log.figure(&figure)?;
    log.text(&row(method, "peer", accuracy, minutes, busy, None))
}

fn row(method: &str, who: &str, accuracy: f64, minutes: f64, busy: Option<f64>, waits: Option<f64>) -> String {
    let published = PUBLISHED.iter().find(|(name, _)| *name == method).map_or("–".into(), |(_, value)| format!("{value:.3}"));
    let share = |value: Option<f64>| value.map_or("–".into(), |value| format!("{:.0} %", 100.0 * value));
    format!("| {method} | {who} | {accuracy:.4} | {published} | {minutes:.2} | {} | {} |", share(busy), share(waits))
}

/// NVIDIA's program, which writes once a second how busy the GPU is.
struct Meter {
    child: Child,
    file: std::path::PathBuf,
}

impl Meter {
    /// Begins, where there is such a program.
    fn start(index: &str, file: &Path) -> Option<Self> {
        let out = std::fs::File::create(file).ok()?;
        let mut command = Command::new("nvidia-smi");
        command.args(["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=1", "--id", index]);
        let child = command.stdout(out).stderr(Stdio::null()).spawn().ok();
        if child.is_none() {
            let _ = std::fs::remove_file(file);
        }
        Some(Self { child: child?, file: file.into() })
    }

    /// The mean share of time in which a kernel ran.
    fn stop(mut self) -> Option<f64> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        share(&std::fs::read_to_string(&self.file).ok()?)
    }
}

/// The mean of lines of per cents; what is no number is passed over.
fn share(text: &str) -> Option<f64> {
    let all: Vec<f64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_is_known() {
        assert_eq!(row("simclr", "peer", 0.8481, 9.5, Some(0.913), None), "| simclr | peer | 0.8481 | 0.848 | 9.50 | 91 % | – |");
        assert_eq!(
            row("vicreg", "twinsight", 0.5, 1.0, None, Some(0.02)),
            "| vicreg | twinsight | 0.5000 | – | 1.00 | – | 2 % |"
        );
        assert_eq!(share("100\n50\n[N/A]\n"), Some(0.75));
        assert_eq!(share(""), None);
    }
}
