//! The commands, one file each, and what they share.

mod attention;
mod bench;
mod classify;
mod cluster;
mod data;
mod demo;
mod duplicates;
mod embed;
mod eval;
mod export;
mod import;
mod info;
mod knn;
mod list;
mod methods_page;
mod report;
mod search;
mod train;
mod views;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use twinsight_datasets::{Opened, open};
use twinsight_train::data::open_options;
use twinsight_train::layers::parse_assignment;
use twinsight_train::{Layer, Trained};

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
        Command::Eval(args) => eval::run(&args, output),
        Command::Embed(args) => embed::run(&args, output),
        Command::Classify(args) => classify::run(&args, output),
        Command::Search(args) => search::run(&args, output),
        Command::Duplicates(args) => duplicates::run(&args, output),
        Command::Cluster(args) => cluster::run(&args, output),
        Command::Report(args) => report::run(&args, output),
        Command::Views(args) => views::run(&args, output),
        Command::Import(args) => import::run(&args, output),
        Command::Export(args) => export::run(&args, output),
        Command::Attention(args) => attention::run(&args, output),
        Command::Info(args) => info::run(&args, output),
        Command::List(args) => list::run(&args, output),
        Command::Bench { command: BenchCommand::Step(args) } => bench::step(&args, output),
        Command::Bench { command: BenchCommand::Kernels(args) } => bench::kernels(&args, output),
        Command::Bench { command: BenchCommand::Data(args) } => bench::data(&args, output),
    }
}

/// The layers of the settings that several commands take: recipe, file, options, `--set`. `options` goes between the file
/// and `--set`.
fn layers(settings: &SettingArgs, mut options: toml::Table) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    if let Some(name) = &settings.recipe {
        let recipe = twinsight_train::recipe(name)?;
        layers.push(recipe.layer()?);
    }
    if let Some(path) = &settings.config {
        let text = std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        let table = toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.message()))?;
        layers.push(Layer::new(path.display().to_string(), table));
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
    layers.push(Layer::new("command line", options));
    for text in &settings.set {
        layers.push(Layer::new(format!("--set {text}"), parse_assignment(text)?));
    }
    Ok(layers)
}

/// Opens the images of a command on a trained encoder: those named, or the run's own, understood as the run understood them, and
/// at most `limit(of the run)` of them.
fn open_for(
    trained: &Trained,
    data: Option<&str>,
    strict: bool,
    limit: impl FnOnce(Option<usize>) -> Option<usize>,
) -> Result<(String, Opened)> {
    let own = trained.config.as_ref().filter(|c| data.is_none_or(|d| d == c.data.path));
    let name = data.map(String::from).or_else(|| own.map(|c| c.data.path.clone()));
    let name = name.context("--data is missing: an encoder file names no images")?;
    let mut options = own.map(open_options).transpose()?.unwrap_or_default();
    options.strict |= strict;
    options.limit = limit(options.limit);
    let opened = open(&name, &options)?;
    Ok((name, opened))
}

/// Writes a table as CSV; the file appears whole.
fn write_table(path: &Path, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let mut text = csv::Writer::from_writer(Vec::new());
    text.write_record(head)?;
    for row in rows {
        text.write_record(&row)?;
    }
    let bytes = text.into_inner().map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    Ok(twinsight_nn::write_atomic(path, |out| std::io::Write::write_all(out, &bytes))?)
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
