//! `bench`: measurements by the program itself, and the same training step in PyTorch beside it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::shell;

mod gpu;
mod knn;
mod methods;
mod report;
mod section;
mod views;

use report::{Comparison, Measurement};
use section::Machine;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Throughput of a training step: `twinsight bench step`.
    Step {
        /// Arguments passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        extra: Vec<String>,
    },
    /// The main job end to end: `twinsight demo`.
    Demo {
        /// Arguments passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        extra: Vec<String>,
    },
    /// The training step against PyTorch's, in turn, into docs/benchmarks.md.
    Peers(PeersArgs),
    /// Every method with its small recipe on a folder of labelled images, into docs/benchmarks.md.
    Methods(methods::MethodsArgs),
    /// The exact k-NN search against FAISS's, in turn, and whether both find the same neighbours.
    Knn(knn::KnnArgs),
    /// JPEGs to views against other libraries, in turn, and two threads against one, into docs/benchmarks.md.
    Views(views::ViewsArgs),
    /// A GPU's checks and measurements in one command, by programs that are built already.
    Gpu(Box<gpu::GpuArgs>),
}

/// What to compare, and with which program.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// A Python that has the peer's libraries.
    #[arg(long)]
    python: PathBuf,
    /// The peer: a Python program that takes --method, --encoder, --batch, --size, --steps, --dtype, --channels-last and
    /// --compile, and prints one JSON line last, with peer, images_per_s, step_s and peak_rss_mb.
    #[arg(long)]
    peer: PathBuf,
    /// A step to compare; may be given again. Each is a row of its own, which replaces the one of an earlier run.
    #[arg(long = "case", value_name = "METHOD:ENCODER:BATCH:SIZE[:bf16]", default_values = [
        "simclr:resnet18:128:32", "byol:resnet18:128:32", "barlow_twins:resnet18:128:32", "dino:vit_tiny:64:32",
        "simclr:resnet50:16:224", "simclr:resnet18:128:32:bf16",
    ])]
    cases: Vec<Case>,
    /// What the peer calls one of our methods; may be given again.
    #[arg(long = "peer-name", value_name = "OURS=THEIRS", default_values = ["barlow_twins=barlow"], value_parser = renaming)]
    names: Vec<(String, String)>,
    /// Timed steps a run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Rounds of runs, ours and the peer's variants (eager, channels last, compiled) in turn, after one that warms up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..))]
    pairs: u32,
    /// Threads of either side.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// The file whose section is rewritten.
    #[arg(long, default_value = "docs/benchmarks.md")]
    out: PathBuf,
}

/// One training step.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    method: String,
    encoder: String,
    batch: u32,
    size: u32,
    bf16: bool,
}

/// The peer's ways to run a step: names, and arguments beyond the step's. bf16 is compared with channels-last alone.
const VARIANTS: [(&str, &[&str]); 4] = [
    ("eager", &[]),
    ("channels-last", &["--channels-last"]),
    ("compiled", &["--compile"]),
    ("compiled channels-last", &["--channels-last", "--compile"]),
];

impl std::str::FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (parts, bf16) = match parts.split_last() {
            Some((&"bf16", rest)) => (rest, true),
            _ => (&parts[..], false),
        };
        let &[method, encoder, batch, size] = parts else {
            return Err(format!("`{text}` is not METHOD:ENCODER:BATCH:SIZE, with or without :bf16"));
        };
        let number = |what, text: &str| match text.parse::<u32>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{what} `{text}` is not a whole number above 0")),
        };
        let (batch, size) = (number("batch", batch)?, number("size", size)?);
        Ok(Self { method: method.into(), encoder: encoder.into(), batch, size, bf16 })
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let precision = if self.bf16 { ", bf16" } else { "" };
        write!(f, "{}, {}, batch {}, {} px{precision}", self.method, self.encoder, self.batch, self.size)
    }
}

/// Runs it.
///
/// # Errors
/// When a program fails or prints no measurement.
pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Step { extra } => shell::run(&mut shell::twinsight(&["bench", "step"], extra)),
        BenchCommand::Demo { extra } => shell::run(&mut shell::twinsight(&["demo"], extra)),
        BenchCommand::Peers(args) => peers(args),
        BenchCommand::Methods(args) => methods::run(args),
        BenchCommand::Knn(args) => knn::run(args),
        BenchCommand::Views(args) => views::run(args),
        BenchCommand::Gpu(args) => gpu::run(args),
    }
}

fn peers(args: &PeersArgs) -> Result<()> {
    if !args.peer.is_file() {
        bail!("{} is not a file: --peer must be the PyTorch program", args.peer.display());
    }
    let program = shell::release()?;
    let (machine, version) = (Machine::here(), own_version()?);
    let path = shell::root().join(&args.out);
    for case in &args.cases {
        let variants = if case.bf16 { &VARIANTS[1..2] } else { &VARIANTS[..] };
        let name = args.names.iter().find(|(ours, _)| *ours == case.method).map_or(case.method.as_str(), |(_, theirs)| theirs);
        let mut ours = Vec::new();
        let mut theirs: Vec<(&str, Vec<Measurement>)> = variants.iter().map(|(name, _)| (*name, Vec::new())).collect();
        for round in 0..=args.pairs {
            let mut command = Command::new(&program);
            command.args(["bench", "step", "--json", "--method", &case.method]);
            if case.bf16 {
                command.args(["--precision", "bf16"]);
            }
            let own = measure(&mut command, case, args)?;
            print!("{case}: {} {:.2} images/s", label(round), own.images_per_s);
            for ((name_of, arguments), (_, runs)) in variants.iter().zip(&mut theirs) {
                let mut command = Command::new(&args.python);
                command.arg(&args.peer).args(["--method", name]).args(*arguments);
                if case.bf16 {
                    command.args(["--dtype", "bf16"]);
                }
                let run = measure(&mut command, case, args)?;
                print!(", {name_of} {:.2}", run.images_per_s);
                if round > 0 {
                    runs.push(run);
                }
            }
            println!();
            if round > 0 {
                ours.push(own);
            }
        }
        // Written case by case, so that a run that is cut short keeps what it has.
        let row = Comparison::new(case.to_string(), &ours, &theirs)?.row(&version);
        report::SECTION.put(&path, &row, &report::head(&machine, args.pairs, args.steps, args.threads))?;
        println!("{row}written to {}", path.display());
    }
    Ok(())
}

fn renaming(text: &str) -> Result<(String, String), String> {
    let (ours, theirs) = text.split_once('=').ok_or_else(|| format!("`{text}` is not OURS=THEIRS"))?;
    Ok((ours.into(), theirs.into()))
}

fn label(pair: u32) -> String {
    if pair == 0 { "warm-up".into() } else { format!("round {pair}") }
}

/// The program's version, with the commit where git tells it.
fn own_version() -> Result<String> {
    let metadata = shell::metadata()?;
    let package = metadata.packages.iter().find(|p| p.name == "twinsight").context("no package twinsight")?;
    let commit =
        Command::new("git").args(["describe", "--always", "--dirty", "--exclude", "*"]).current_dir(shell::root()).output();
    let commit = commit.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    Ok(match commit {
        Some(commit) => format!("{} ({commit})", package.version),
        None => package.version.to_string(),
    })
}

fn measure(command: &mut Command, case: &Case, args: &PeersArgs) -> Result<Measurement> {
    let [batch, size, steps, threads] = [case.batch, case.size, args.steps, args.threads].map(|n| n.to_string());
    command.args(["--encoder", &case.encoder, "--batch", &batch, "--size", &size, "--steps", &steps, "--threads", &threads]);
    Measurement::parse(&shell::output(command)?).with_context(|| format!("{case}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_and_wrong_ones_refused() {
        let case: Case = "dino:vit_tiny:64:32".parse().expect("a case");
        assert_eq!(case.to_string(), "dino, vit_tiny, batch 64, 32 px");
        let case: Case = "simclr:resnet18:8:32:bf16".parse().expect("a case");
        assert_eq!(case.to_string(), "simclr, resnet18, batch 8, 32 px, bf16");
        assert_eq!(renaming("a=b"), Ok(("a".into(), "b".into())));
        assert!(renaming("a").is_err());
        assert!("dino:vit_tiny:64".parse::<Case>().expect_err("short").contains("METHOD:ENCODER"));
        assert!("dino:vit_tiny:x:32".parse::<Case>().expect_err("batch").starts_with("batch `x`"));
        assert!("dino:vit_tiny:64:0".parse::<Case>().expect_err("size").starts_with("size `0`"));
    }
}
