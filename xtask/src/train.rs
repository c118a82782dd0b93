//! `train`: the program's `train` command with a recipe.

use anyhow::Result;
use clap::Args;

use crate::shell;

/// A recipe, and anything else that `twinsight train` takes.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe (see `cargo run --release -- list recipes`).
    recipe: String,
    /// Arguments passed on to `twinsight train`, over the recipe.
    #[arg(last = true)]
    extra: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// When the program fails.
pub fn run(args: &TrainArgs) -> Result<()> {
    shell::run(&mut shell::twinsight(&["train", "--recipe", &args.recipe], &args.extra))
}
