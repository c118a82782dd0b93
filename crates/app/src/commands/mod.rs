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
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use twinsight_datasets::{Dataset, Opened, hold_out, open};
use twinsight_train::data::open_options;
use twinsight_train::evaluate::Evaluation;
use twinsight_train::layers::parse_assignment;
use twinsight_train::protocols::Measured;
use twinsight_train::{Layer, RunConfig, Trained};

use crate::cli::{BenchCommand, Command, DeviceArgs, SettingArgs};
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

/// The trained encoder of a run folder or file, on the device that was named.
fn trained(run: &Path, on: &DeviceArgs) -> Result<Trained> {
    Ok(Trained::load_on(run, twinsight_train::device::open(&on.device)?)?)
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
    // Whatever the images, the encoder has learned from such levels.
    options.levels = trained.levels;
    options.strict |= strict;
    options.limit = limit(options.limit);
    let opened = open(&name, &options)?;
    Ok((name, opened))
}

/// Labelled images that an encoder is judged on.
struct LabelledImages {
    evaluation: Evaluation,
    /// All training images, those held out included.
    whole: Arc<dyn Dataset>,
    /// Names of all classes, those of test images alone behind.
    classes: Vec<String>,
    /// Images that could not be read so far.
    skipped: usize,
}

/// Opens the labelled images of a command on a trained encoder, parts them as the run did, and names what can't be read and test images
/// of classes that were never seen.
fn labelled_evaluation(trained: &Trained, data: Option<&str>, limit: Option<usize>) -> Result<LabelledImages> {
    let (data, opened) = open_for(trained, data, false, |of_run| limit.map_or(of_run, |l| (l > 0).then_some(l)))?;
    let skipped = Output::skipped(&opened.report.bad_files);
    let whole = opened.train;
    let count = whole.classes().map_or(0, <[String]>::len);
    if count < 2 {
        bail!("{data}: accuracy needs labels of at least 2 classes ({})", opened.report.understood);
    }
    let first = whole.label(0);
    if (0..whole.len()).all(|i| whole.label(i) == first) {
        bail!("{data}: all {} images are of one class; there is nothing to tell apart", whole.len());
    }
    // The run's own share, so that the held-out images are those that it never trained on, and its own settings to choose from.
    let share = trained.config.as_ref().map(|c| c.data.held_out).filter(|&s| s > 0.0).unwrap_or(0.1);
    let config = trained.config.as_ref().map_or_else(|| RunConfig::resolve(&[]).map(|c| c.eval), |c| Ok(c.eval.clone()))?;
    let (bank, held_out) = hold_out(whole.clone(), share, 0)?;
    let test = opened.test.filter(|t| !t.is_empty());
    if test.as_ref().is_some_and(|t| t.label(0).is_none()) {
        Output::warn(format!("{data}: its test images have no labels; the held-out training images are judged instead"));
    }
    let test = test.filter(|t| t.label(0).is_some());
    let named = |d: &Arc<dyn Dataset>| d.classes().unwrap_or_default().to_vec();
    let classes = test.as_ref().map(named).filter(|c| c.len() > count).unwrap_or_else(|| named(&whole));
    let evaluation = Evaluation { bank, held_out, test, classes: count, plan: trained.plan.clone(), config };
    if let Some(text) = evaluation.unknown_classes() {
        Output::warn(text);
    }
    Ok(LabelledImages { evaluation, whole, classes, skipped })
}

/// The numbers of neighbours that can be had of `most` images. Of those that the user `asked` for none may be beyond; of others those that are
/// are told and left out.
fn grid(ks: &[usize], asked: bool, most: usize) -> Result<Vec<usize>> {
    let (kept, beyond): (Vec<usize>, Vec<usize>) = ks.iter().copied().partition(|&k| k <= most);
    if let Some(k) = beyond.first() {
        if asked {
            bail!("--k {k}: there are {most} images to choose neighbours from; expected 1 to {most}");
        }
        let words: Vec<String> = beyond.iter().map(ToString::to_string).collect();
        Output::warn(format!("k = {}: left out, since there are {most} images to choose neighbours from", words.join(", ")));
    }
    Ok(if kept.is_empty() { vec![most] } else { kept })
}

/// Prints the share of each class that is recognised.
fn classes_table(measured: &Measured, classes: &[String], output: &Output) {
    let width = classes.iter().map(|c| c.chars().count()).max().unwrap_or(0);
    for (c, share) in measured.per_class.iter().enumerate() {
        let name = classes.get(c).cloned().unwrap_or_else(|| c.to_string());
        let share = share.map_or("no images".to_string(), |s| format!("{:6.2} %", s * 100.0));
        output.say(format!("    {name:<width$}  {share}"));
    }
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
