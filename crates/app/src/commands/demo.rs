//! `demo`: the recipe of that name on the built-in images.

use std::process::ExitCode;

use anyhow::Result;
use toml::{Table, Value};
use twinsight_train::{Layer, RunConfig, recipe};

use super::{free_folder, train};
use crate::cli::DemoArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// A run folder that exists, a full disk.
pub fn run(args: &DemoArgs, output: &Output) -> Result<ExitCode> {
    let recipe = recipe("demo")?;
    let mut options = Table::from_iter([("seed".to_string(), Value::Integer(i64::try_from(args.seed)?))]);
    if let Some(epochs) = args.epochs {
        options.insert("epochs".into(), Value::Integer(i64::try_from(epochs)?));
    }
    let config = RunConfig::resolve(&[recipe.layer()?, Layer::new("command line", options)])?;
    let out = args.out.clone().unwrap_or_else(|| free_folder("demo"));
    output.say("Learning from 10,000 pictures of clothes without looking at their labels; labels are used to measure only.");
    train::start(config, &out, output)
}
