//! `bench`: measurements by the program itself, and the same training step in PyTorch beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::shell;

mod report;

use report::{Comparison, Machine, Measurement};

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
}

/// What to compare, and with which program.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// A Python that has the peer's libraries.
    #[arg(long)]
    python: PathBuf,
    /// The peer: a Python program that takes --method, --encoder, --batch, --size, --steps and prints one JSON line last, with
    /// peer, images_per_s, step_s and peak_rss_mb.
    #[arg(long)]
    peer: PathBuf,
    /// A step to compare; may be given again.
    #[arg(long = "case", value_name = "METHOD:ENCODER:BATCH:SIZE", default_values = [
        "simclr:resnet18:128:32", "byol:resnet18:128:32", "dino:vit_tiny:64:32",
    ])]
    cases: Vec<Case>,
    /// Timed steps a run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Pairs of runs, ours and the peer's in turn, after one of each that warms up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..))]
    pairs: u32,
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
}

impl std::str::FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [method, encoder, batch, size] = parts[..] else {
            return Err(format!("`{text}` is not METHOD:ENCODER:BATCH:SIZE"));
        };
        let number = |what, text: &str| match text.parse::<u32>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{what} `{text}` is not a whole number above 0")),
        };
        let (batch, size) = (number("batch", batch)?, number("size", size)?);
        Ok(Self { method: method.into(), encoder: encoder.into(), batch, size })
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, batch {}, {} px", self.method, self.encoder, self.batch, self.size)
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
    }
}

fn peers(args: &PeersArgs) -> Result<()> {
    if !args.peer.is_file() {
        bail!("{} is not a file: --peer must be the PyTorch program", args.peer.display());
    }
    let program = build()?;
    let mut compared = Vec::new();
    for case in &args.cases {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..=args.pairs {
            let a = measure(Command::new(&program).args(["bench", "step", "--json"]), case, args.steps)?;
            let b = measure(Command::new(&args.python).arg(&args.peer), case, args.steps)?;
            println!("{case}: {} {:.1} and {:.1} images/s", label(pair), a.images_per_s, b.images_per_s);
            if pair > 0 {
                ours.push(a);
                theirs.push(b);
            }
        }
        compared.push(Comparison::new(case.to_string(), &ours, &theirs)?);
    }
    let machine = Machine::here(&own_version()?);
    let section = report::section(&machine, &compared, args.pairs, args.steps);
    let path = shell::root().join(&args.out);
    let old = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let new = report::replace(&old, &section).with_context(|| path.display().to_string())?;
    std::fs::write(&path, new).with_context(|| path.display().to_string())?;
    println!("{section}\nwritten to {}", path.display());
    Ok(())
}

fn label(pair: u32) -> String {
    if pair == 0 { "warm-up".into() } else { format!("pair {pair}") }
}

/// Builds the program for release and says where it is.
fn build() -> Result<PathBuf> {
    shell::run(&mut shell::cargo(&["build", "--release", "--locked", "--package", "twinsight"]))?;
    let metadata = metadata()?;
    let name = format!("twinsight{}", std::env::consts::EXE_SUFFIX);
    Ok(Path::new(metadata.target_directory.as_str()).join("release").join(name))
}

/// The program's version, with the commit where git tells it.
fn own_version() -> Result<String> {
    let metadata = metadata()?;
    let package = metadata.packages.iter().find(|p| p.name == "twinsight").context("no package twinsight")?;
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(shell::root()).output();
    let commit = commit.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    Ok(match commit {
        Some(commit) => format!("{} ({commit})", package.version),
        None => package.version.to_string(),
    })
}

fn metadata() -> Result<cargo_metadata::Metadata> {
    Ok(cargo_metadata::MetadataCommand::new().manifest_path(shell::root().join("Cargo.toml")).no_deps().exec()?)
}

fn measure(command: &mut Command, case: &Case, steps: u32) -> Result<Measurement> {
    let [batch, size, steps] = [case.batch, case.size, steps].map(|n| n.to_string());
    command.args(["--method", &case.method, "--encoder", &case.encoder]);
    command.args(["--batch", &batch, "--size", &size, "--steps", &steps]);
    Measurement::parse(&shell::output(command)?).with_context(|| format!("{case}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_and_wrong_ones_refused() {
        let case: Case = "dino:vit_tiny:64:32".parse().expect("a case");
        assert_eq!(case.to_string(), "dino, vit_tiny, batch 64, 32 px");
        assert!("dino:vit_tiny:64".parse::<Case>().expect_err("short").contains("METHOD:ENCODER"));
        assert!("dino:vit_tiny:x:32".parse::<Case>().expect_err("batch").starts_with("batch `x`"));
        assert!("dino:vit_tiny:64:0".parse::<Case>().expect_err("size").starts_with("size `0`"));
    }
}
