//! `interop`: what the program reads, writes and computes beside other programs, by Python programs that compare the numbers.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::shell;

/// With which Python, and what.
#[derive(Debug, Args)]
pub struct InteropArgs {
    /// A Python that has torch, torchvision, timm, transformers, onnx and onnxruntime; with --evaluate numpy, scipy, scikit-learn, faiss,
    /// pyarrow, tensorboard, and duckdb or polars.
    #[arg(long)]
    python: PathBuf,
    /// Compare only these networks (or `shards`, `positions`, `pictures`); may be given again.
    #[arg(long, conflicts_with = "evaluate")]
    only: Vec<String>,
    /// A program that is built already [default: a release is built].
    #[arg(long)]
    program: Option<PathBuf>,
    /// Instead of weights, compare figures, tables, event files and nearest neighbours.
    #[arg(long)]
    evaluate: bool,
}

/// Builds the program and runs the comparison, whose table it prints.
///
/// # Errors
/// When a program fails, or numbers differ by more than they may.
pub fn run(args: &InteropArgs) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.canonicalize().with_context(|| program.display().to_string())?,
        None => shell::release()?,
    };
    let script = |name: &str| {
        let mut command = Command::new(&args.python);
        command.arg(format!("tests/interop/{name}.py")).current_dir(shell::root());
        command
    };
    if args.evaluate {
        shell::run(script("evaluate").arg("--program").arg(program))?;
        let search = shell::release_example("twinsight-knn", "search")?;
        let size = ["--bank", "10000", "--queries", "2000", "--dim", "128", "--k", "50"];
        return shell::run(script("neighbours").arg("--program").arg(search).args(size));
    }
    let mut command = script("interop");
    command.arg(program);
    if !args.only.is_empty() {
        command.arg("--only").args(&args.only);
    }
    shell::run(&mut command)
}
