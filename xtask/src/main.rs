//! `cargo xtask`: the repository's automation. One file a command; every command shells out, and none uses a crate of the
//! workspace, so that checks run even where the crates do not build.

mod bench;
mod browser_test;
mod check_cuda;
mod check_features;
mod check_targets;
mod ci;
mod data;
mod docs;
mod interop;
mod shell;
mod tidy;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of the Twinsight workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
#[command(after_help = "Examples:
  cargo xtask ci
  cargo xtask check-features
  cargo xtask data fetch cifar10
  cargo xtask train simclr-small -- --data ~/pictures
  cargo xtask interop --python ~/torch/bin/python
  cargo xtask interop --python ~/torch/bin/python --evaluate
  cargo xtask bench peers --python ~/torch/bin/python --peer train_step.py")]
struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all checks: formatting, tidy, clippy, tests, documentation, crates alone.
    Ci,
    /// Check the rules of the repository that no compiler checks.
    Tidy,
    /// Data sets: list them, or download one.
    Data {
        /// What to do with data sets.
        #[command(subcommand)]
        command: data::DataCommand,
    },
    /// Write the pages in docs/ that are made of the registries.
    Docs,
    /// Open a run's report in headless Chromium: every section, a picture on hover, no error, no request.
    BrowserTest(browser_test::BrowserTestArgs),
    /// Compile and lint the GPU features, with a CUDA toolkit that is put together where there is none. Not part of `ci`.
    CheckCuda(check_cuda::CheckCudaArgs),
    /// Lint and test the features that are off by default: hub, object-store, approximate. Not part of `ci`, since it builds long.
    CheckFeatures,
    /// Compile and lint for other systems, without linking: Macs with Metal, 64-bit Arm, Windows. Not part of `ci`, since it builds long.
    CheckTargets(check_targets::CheckTargetsArgs),
    /// Train with a recipe.
    Train(train::TrainArgs),
    /// Compare weights and features with PyTorch's homes, both ways.
    Interop(interop::InteropArgs),
    /// Measure speed.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Data { command } => data::run(&command),
        Command::Docs => docs::run(),
        Command::BrowserTest(args) => browser_test::run(&args),
        Command::CheckCuda(args) => check_cuda::run(&args),
        Command::CheckFeatures => check_features::run(),
        Command::CheckTargets(args) => check_targets::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Interop(args) => interop::run(&args),
        Command::Bench { command } => bench::run(&command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
