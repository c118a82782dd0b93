//! The commands, one file each, and what they share.

mod bench;
mod data;
mod demo;
mod embed;
mod knn;
mod list;
mod train;
mod trained;
mod views;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use twinsight_train::Layer;
use twinsight_train::config::parse_assignment;

use crate::cli::{BenchCommand, Command, SettingArgs};
use crate::output::Output;

/// Does what was asked for.
///
/// # Errors
/// What the command could not do, with the reason.
pub fn run(command: Command, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args, output),
        Command::Train(args) => train::run(&args, output),
        Command::Resume(args) => train::resume(&args, output),
        Command::Data { command } => data::run(&command, output),
        Command::Knn(args) => knn::run(&args, output),
        Command::Embed(args) => embed::run(&args, output),
        Command::Views(args) => views::run(&args, output),
        Command::List(args) => list::run(&args, output),
        Command::Bench { command: BenchCommand::Step(args) } => bench::run(&args, output),
    }
}

/// The layers of the settings that several commands take: recipe, file, options, `--set`. `options` goes between the file
/// and `--set`.
fn layers(settings: &SettingArgs, mut options: toml::Table) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    if let Some(name) = &settings.recipe {
        let recipe = twinsight_train::recipe(name)?;
        layers.push(Layer { origin: recipe.origin(), table: recipe.table()? });
    }
    if let Some(path) = &settings.config {
        let text = std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        let table = toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.message()))?;
        layers.push(Layer { origin: path.display().to_string(), table });
    }
    if let Some(method) = &settings.method {
        options.insert("method".into(), method.clone().into());
    }
    if let Some(seed) = settings.seed {
        options.insert("seed".into(), toml::Value::Integer(i64::try_from(seed)?));
    }
    if let Some(size) = settings.image_size {
        set_in(&mut options, "data", "image_size", toml::Value::Integer(size as i64));
    }
    layers.push(Layer { origin: "command line".into(), table: options });
    for text in &settings.set {
        layers.push(Layer { origin: format!("--set {text}"), table: parse_assignment(text)? });
    }
    Ok(layers)
}

/// Sets `table.key` in a table of options.
fn set_in(options: &mut toml::Table, table: &str, key: &str, value: toml::Value) {
    if let toml::Value::Table(inner) = options.entry(table).or_insert_with(|| toml::Value::Table(toml::Table::new())) {
        inner.insert(key.into(), value);
    }
}

/// `runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, … that does not exist.
fn free_folder(name: &str) -> PathBuf {
    let first = Path::new("runs").join(name);
    if !first.exists() {
        return first;
    }
    (2..).map(|i| Path::new("runs").join(format!("{name}-{i}"))).find(|p| !p.exists()).unwrap_or(first)
}
