//! `interop`: weights between the program and PyTorch's homes, by a Python program that compares the numbers.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::shell;

/// With which Python.
#[derive(Debug, Args)]
pub struct InteropArgs {
    /// A Python that has torch, torchvision, timm, transformers, onnx and onnxruntime.
    #[arg(long)]
    python: PathBuf,
    /// Compare only these networks (or `shards`, `positions`, `pictures`); may be given again.
    #[arg(long)]
    only: Vec<String>,
    /// A program that is built already [default: a release is built].
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Builds the program and runs the comparison, whose table it prints.
///
/// # Errors
/// When a program fails, or numbers differ by more than 1e-4.
pub fn run(args: &InteropArgs) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.canonicalize().with_context(|| program.display().to_string())?,
        None => shell::release()?,
    };
    let mut command = Command::new(&args.python);
    command.arg("tests/interop/interop.py").arg(program).current_dir(shell::root());
    if !args.only.is_empty() {
        command.arg("--only").args(&args.only);
    }
    shell::run(&mut command)
}
