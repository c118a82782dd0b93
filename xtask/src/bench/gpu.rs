//! `bench gpu`: checks and measurements of a GPU by programs that are built already, in one command: test programs, whether
//! losses agree with the processor's and a resumed run's with one that was not stopped, the training step against PyTorch's, and whole
//! runs on labelled images beside PyTorch's. What is known is written at once, so that a run that is cut short keeps it.
//!
//! Nothing here needs cargo or the repository's files, so that the command can run where only programs were copied to; and every part runs
//! with `--device cpu` too, which is how it is tried out where there is no GPU.

mod agree;
mod curve;
mod steps;
mod training;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::Case;
use crate::shell;

/// What is measured, with which programs.
#[derive(Debug, Args)]
pub struct GpuArgs {
    /// What to do; may be given again [default: all for which there are programs].
    #[arg(long = "part", value_enum)]
    parts: Vec<Part>,
    /// The built program [default: a release is built, without GPU features].
    #[arg(long)]
    program: Option<PathBuf>,
    /// What computes.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Of `tests`: a built test program that tests a device where one opens; may be given again.
    #[arg(long = "test-program", value_name = "PROGRAM")]
    tests: Vec<PathBuf>,
    /// Of `step` and `train`: a Python that has the peers' libraries.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Of `step`: the peer, as `bench peers` takes it, that knows --device and --local-size too.
    #[arg(long, value_name = "FILE")]
    step_peer: Option<PathBuf>,
    /// Of `step`: a step; may be given again.
    #[arg(long = "case", value_name = "METHOD:ENCODER:BATCH:SIZE[:bf16]", default_values = [
        "simclr:resnet18:512:32:bf16", "simclr:resnet50:256:224:bf16", "dino:vit_small:64:224:bf16",
        "simclr:resnet18:512:32", "simclr:resnet50:256:224", "dino:vit_small:64:224",
    ])]
    cases: Vec<Case>,
    /// Of `step`: timed steps a run.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Of `step`: rounds of ours and the peer's in turn, after one that warms up; 0: one run of each, that one.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Of `step`: leave out the peer's compiled variant, which takes a minute or more to compile.
    #[arg(long)]
    eager_only: bool,
    /// Of `train`: the peer: a Python program that takes a folder, --method, --epochs, --batch, --limit and --device, and prints JSON lines
    /// with knn and train_minutes.
    #[arg(long, value_name = "FILE")]
    train_peer: Option<PathBuf>,
    /// Of `train`: labelled images, a folder with train/CLASS and test/CLASS.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Of `train`: methods with a recipe METHOD-lightly-cifar10; may be given again.
    #[arg(long = "method", value_name = "METHOD", default_values = ["simclr", "byol"])]
    methods: Vec<String>,
    /// Of `train`: passes over the images, of both sides.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Of `train`: images a step, of both sides.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    batch: u32,
    /// Of `train`: at most this many images, of both sides; 0 for all.
    #[arg(long, default_value_t = 0)]
    limit: u32,
    /// Of `train`: the precision of ours.
    #[arg(long, default_value = "bf16")]
    precision: String,
    /// Of `agree` and `resume`: the encoder.
    #[arg(long, default_value = "resnet18")]
    encoder: String,
    /// Of `agree` and `resume`: most that two losses of one step may differ by, as a share.
    #[arg(long, default_value_t = 0.01)]
    tolerance: f64,
    /// Of `agree` and `resume`: most that mean losses may differ by, as a share: with bf16 and with f32, and to the end after a resume.
    #[arg(long, default_value_t = 0.005)]
    mean_tolerance: f64,
    /// Where runs, figures and the report go: a folder, made where it is missing.
    #[arg(long, default_value = "target/gpu")]
    out: PathBuf,
}

/// A part of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Test programs.
    Tests,
    /// The losses of the first steps: on the processor and on the device, and there with f32 and with bf16.
    Agree,
    /// The losses of a run that was stopped and resumed on the device, and of one that was not.
    Resume,
    /// Images a second of training steps beside a peer.
    Step,
    /// Whole runs beside a peer: accuracy and minutes.
    Train,
}

/// Where figures go: a line of JSON each, and a readable report.
struct Log {
    figures: PathBuf,
    report: PathBuf,
}

impl Log {
    fn new(out: &Path) -> Result<Self> {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        Ok(Self { figures: out.join("figures.jsonl"), report: out.join("report.md") })
    }

    /// Adds a figure to the file of figures.
    fn figure(&self, value: &Value) -> Result<()> {
        append(&self.figures, &format!("{value}\n"))
    }

    /// Adds text to the report, and shows it.
    fn text(&self, text: &str) -> Result<()> {
        println!("{text}");
        append(&self.report, &format!("{text}\n"))
    }
}

fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}

/// Runs the parts one after the other. One that fails is told, and the others run.
///
/// # Errors
/// When a part failed, or found what must not be.
pub fn run(args: &GpuArgs) -> Result<()> {
    let program = args.program.clone().map_or_else(shell::release, Ok)?;
    let program = program.canonicalize().with_context(|| program.display().to_string())?;
    if args.out.join("report.md").exists() {
        bail!("{} holds the report of an earlier start: name another folder by --out", args.out.display());
    }
    let log = Log::new(&args.out)?;
    let version = shell::output(Command::new(&program).arg("--version"))?;
    log.text(&format!("# {} on {}\n", version.trim(), card(index(&args.device))))?;
    let mut failed = Vec::new();
    let (chosen, left_out) = parts(args)?;
    for (part, what) in left_out {
        log.text(&format!("{part:?} is left out: {what}\n"))?;
    }
    for part in chosen {
        let done = match part {
            Part::Tests => run_tests(args, &log),
            Part::Agree => agree::agree(args, &program, &log),
            Part::Resume => agree::resume(args, &program, &log),
            Part::Step => steps::run(args, &program, &log),
            Part::Train => training::run(args, &program, &log),
        };
        if let Err(error) = done {
            log.text(&format!("{part:?}: FAILED: {error:#}\n"))?;
            failed.push(format!("{part:?}: {error:#}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

/// The parts that were asked for, or all for which there are programs; and those that there are none for, with what is missing.
type Chosen = (Vec<Part>, Vec<(Part, &'static str)>);

fn parts(args: &GpuArgs) -> Result<Chosen> {
    let lacks = |part: Part| match part {
        Part::Tests if args.tests.is_empty() => Some("--test-program names a built test program"),
        Part::Step if args.step_peer.is_none() => Some("--step-peer names the PyTorch program"),
        Part::Train if args.train_peer.is_none() || args.data.is_none() => {
            Some("--train-peer names the PyTorch program, --data the images")
        }
        _ => None,
    };
    let missing = |part: &Part| lacks(*part).map(|what| (*part, what));
    if args.parts.is_empty() {
        let all = Part::value_variants();
        return Ok((
            all.iter().copied().filter(|&part| lacks(part).is_none()).collect(),
            all.iter().filter_map(missing).collect(),
        ));
    }
    match args.parts.iter().find_map(missing) {
        Some((part, what)) => bail!("{part:?} needs more: {what}"),
        None => Ok((args.parts.clone(), Vec::new())),
    }
}

/// Runs the test programs, golden tests among them on the device.
fn run_tests(args: &GpuArgs, log: &Log) -> Result<()> {
    log.text("## Tests\n")?;
    let mut failed = Vec::new();
    for program in &args.tests {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.args(["--nocapture", "--test-threads", "1"]).env("TWINSIGHT_TEST_DEVICE", &args.device);
        let output = command.stderr(Stdio::inherit()).output().with_context(|| program.display().to_string())?;
        // Kept whatever came of it: a failure's words are in it.
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        append(&args.out.join(format!("{name}.log")), &words)?;
        let ended = if output.status.success() { Ok(()) } else { Err(anyhow!("ended with {}", output.status)) };
        match ended.and_then(|()| verdict(&words, &args.device)) {
            Ok(line) => log.text(&format!("- {name}: {line}"))?,
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    log.text("")?;
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

/// A test program's result. One that skipped, since no device opened, has not passed.
fn verdict(output: &str, device: &str) -> Result<String> {
    let result = output.lines().rev().find(|line| line.starts_with("test result")).context("it printed no result")?;
    if device == "cpu" {
        return Ok(result.into());
    }
    if let Some(line) = output.lines().find(|line| line.contains("skipped:")) {
        bail!("{}", line.trim());
    }
    ensure!(!result.contains(" 0 passed"), "it has no test: was it built with the features cuda and cudnn?");
    Ok(result.into())
}

/// The number of the device in its name.
fn index(device: &str) -> &str {
    device.split_once(':').map_or("0", |(_, number)| number)
}

/// The GPU's name and driver, where NVIDIA's program tells.
fn card(index: &str) -> String {
    let mut asked = Command::new("nvidia-smi");
    asked.args(["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id", index]);
    let told = asked.output().ok().filter(|output| output.status.success());
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string());
    told.filter(|line| !line.is_empty()).unwrap_or_else(|| "a machine without nvidia-smi".into())
}

/// A command's last line that is a JSON object.
fn json_line(output: &str) -> Result<Value> {
    let line = output.lines().rev().find_map(|l| serde_json::from_str::<Value>(l).ok().filter(Value::is_object));
    line.context("the program printed no JSON line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_that_skipped_has_not_passed() {
        let passed = "running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed\n";
        let skipped = format!("skipped: no CUDA device opens (no driver)\n{passed}");
        assert_eq!(verdict(passed, "cuda").ok().as_deref(), Some("test result: ok. 1 passed; 0 failed"));
        assert!(verdict(&skipped, "cuda").expect_err("it skipped").to_string().contains("no driver"));
        assert!(verdict(&skipped, "cpu").is_ok());
        assert!(verdict("", "cuda").is_err());
        let empty = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed\n";
        assert!(verdict(empty, "cuda").expect_err("nothing ran").to_string().contains("features cuda"));
        assert_eq!([index("cuda"), index("cuda:3")], ["0", "3"]);
    }
}
