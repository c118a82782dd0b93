//! `bench methods`: every method trained with its small recipe on the same images, and what came of it in one table.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use super::section::{Machine, Section};
use crate::shell;

/// Which methods on which images.
#[derive(Debug, Args)]
pub struct MethodsArgs {
    /// Labelled images, as `twinsight train --data` takes them: a folder, or a data set's name.
    #[arg(long)]
    data: String,
    /// A method; may be given again. Without it, all. Each is a row of its own, which replaces the one of an earlier run.
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Training images.
    #[arg(long, default_value_t = 10_000)]
    limit: u32,
    /// Passes over them, instead of the recipes' own.
    #[arg(long)]
    epochs: Option<u32>,
    /// Minutes that a run may take on this machine; a run that takes longer, or ends below a baseline, fails the command when all are done.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of the runs.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A built program to use, instead of one built now.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where the run folders are made; each must be free.
    #[arg(long, default_value = "target/methods")]
    runs: PathBuf,
    /// The file whose section is rewritten.
    #[arg(long, default_value = "docs/benchmarks.md")]
    out: PathBuf,
}

const SECTION: Section =
    Section { heading: "Every method on a few thousand images", name: "methods", command: "cargo xtask bench methods" };

/// What a run left behind.
#[derive(Debug, Clone, PartialEq)]
struct Trained {
    method: String,
    encoder: String,
    batch: u64,
    epochs: u64,
    /// Minutes of the clock, and of processors.
    minutes: [f64; 2],
    /// k-NN accuracy on pixels, on the untrained encoder, on the trained one.
    accuracy: [f64; 3],
    /// Accuracy of a linear classifier on the same three.
    linear: [f64; 3],
    /// Effective rank of the features before and after.
    rank: [f64; 2],
    /// The first logged loss and the last.
    loss: [f64; 2],
}

/// Trains them one after the other; each row is written as soon as it is known.
///
/// # Errors
/// When the program fails, or leaves no figures (unlabelled images have none).
pub fn run(args: &MethodsArgs) -> Result<()> {
    let program = args.program.clone().map_or_else(shell::release, Ok)?;
    let listed = listed(&shell::output(Command::new(&program).args(["list", "methods", "--json"]))?)?;
    if let Some(unknown) = args.methods.iter().find(|m| !listed.contains(m)) {
        bail!("there is no method `{unknown}`; there are {}", listed.join(", "));
    }
    let chosen = if args.methods.is_empty() { &listed } else { &args.methods };
    let (root, path) = (shell::root(), shell::root().join(&args.out));
    let version = super::own_version()?;
    let machine = Machine::here();
    let mut short = Vec::new();
    for method in chosen {
        let folder = root.join(&args.runs).join(method);
        let before = processor_seconds();
        let mut command = Command::new(&program);
        command.args(["train", "--json", "--method", method, "--data", &args.data]).arg("--out").arg(&folder);
        command.args(["--limit", &args.limit.to_string(), "--set", &format!("seed={}", args.seed)]);
        if let Some(epochs) = args.epochs {
            command.args(["--epochs", &epochs.to_string()]);
        }
        shell::output(&mut command)?;
        let seconds = processor_seconds() - before;
        let mut command = Command::new(&program);
        command.args(["eval", "--json", "--protocol", "simclr", "--baselines", "--features", features(method)]).arg(&folder);
        let linear = linear(&shell::output(&mut command)?).with_context(|| format!("eval {}", folder.display()))?;
        let trained = Trained::read(&folder, linear, seconds)?;
        let head = head(&machine, args, trained.accuracy[0], linear[0]);
        let row = trained.row(&version);
        SECTION.put(&path, &row, &head)?;
        println!("{row}written to {}", path.display());
        short.extend(trained.shortcomings(args.minutes).into_iter().map(|what| format!("{method}: {what}")));
    }
    if !short.is_empty() {
        bail!("{}", short.join("; "));
    }
    Ok(())
}

/// Where the features of a method's encoder are for a linear classifier: no loss of MAE reaches its class token but through attention.
fn features(method: &str) -> &'static str {
    if method == "mae" { "class+mean" } else { "pooled" }
}

/// Accuracy of linear classifiers on pixels, on the encoder before training, on the trained one, from the line that `eval` prints last.
fn linear(output: &str) -> Result<[f64; 3]> {
    let line: Value = serde_json::from_str(output.trim().lines().last().unwrap_or_default()).context("the line of eval")?;
    let figures = line["runs"][0]["figures"].as_array().context("no figures")?;
    let of = |baseline: Option<&str>| {
        let found = figures.iter().find(|f| f["protocol"] == "simclr" && f["baseline"].as_str() == baseline);
        found
            .and_then(|f| f["top1"].as_f64())
            .with_context(|| format!("no linear figure of {}", baseline.unwrap_or("the trained encoder")))
    };
    Ok([of(Some("pixels"))?, of(Some("before_training"))?, of(None)?])
}

/// The names in the program's list.
fn listed(output: &str) -> Result<Vec<String>> {
    let rows: Vec<Value> = serde_json::from_str(output.trim()).context("the list of methods")?;
    rows.iter().map(|r| r["name"].as_str().map(String::from).context("a method without a name")).collect()
}

/// Processor seconds of all programs that this one started and that have ended; zero where the system does not tell.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ended_seconds(&text).unwrap_or(0.0)
}

/// Fields 16 and 17 (`cutime`, `cstime`) of proc(5)'s `stat`, in seconds: Linux gives them in hundredths.
fn ended_seconds(stat: &str) -> Option<f64> {
    let after_name = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = fields.get(13)?.parse::<f64>().ok()? + fields.get(14)?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

impl Trained {
    /// Reads a run folder.
    fn read(folder: &Path, linear: [f64; 3], processor_seconds: f64) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        Self::parse(&text("result.json")?, &text("config.toml")?, &text("metrics.jsonl")?, linear, processor_seconds)
            .with_context(|| folder.display().to_string())
    }

    fn parse(result: &str, config: &str, metrics: &str, linear: [f64; 3], processor_seconds: f64) -> Result<Self> {
        let result: Value = serde_json::from_str(result).context("result.json")?;
        let config: toml::Table = toml::from_str(config).context("config.toml")?;
        let number = |key: &str| result[key].as_f64().with_context(|| format!("result.json has no {key}"));
        let setting = |key: &str| config.get(key).with_context(|| format!("config.toml has no {key}"));
        let whole = |key: &str| -> Result<u64> {
            Ok(u64::try_from(setting(key)?.as_integer().with_context(|| format!("{key} is not a whole number"))?)?)
        };
        let losses: Vec<f64> = metrics
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .filter(|l| l["event"] == "step")
            .filter_map(|l| l["loss"].as_f64())
            .collect();
        let [Some(first), Some(last)] = [losses.first(), losses.last()] else { bail!("metrics.jsonl has no losses") };
        Ok(Self {
            method: setting("method")?.as_str().context("method is not a name")?.to_string(),
            encoder: setting("encoder")?.as_str().context("encoder is not a name")?.to_string(),
            batch: whole("batch")?,
            epochs: whole("epochs")?,
            minutes: [number("seconds")? / 60.0, processor_seconds / 60.0],
            accuracy: [number("knn_pixels")?, number("knn_random")?, number("knn_trained")?],
            linear,
            rank: [number("rank_random")?, number("rank_trained")?],
            loss: [*first, *last],
        })
    }

    /// What is not as it should be. Neighbours among MAE's features say little before these are tuned with labels; a linear classifier on them
    /// is what its paper looks at, and what must be above the baselines.
    fn shortcomings(&self, minutes: f64) -> Vec<String> {
        let mut found = Vec::new();
        let [clock, processors] = self.minutes;
        let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        // Beside other work a run takes longer; its processors' time is its own.
        if clock.min(processors / cores) > minutes {
            found.push(format!("took {clock:.1} minutes"));
        }
        let (what, [pixels, random, trained]) = match self.method.as_str() {
            "mae" => ("the linear probe's", self.linear),
            _ => ("k-NN", self.accuracy),
        };
        if trained <= pixels.max(random) {
            found.push(format!("{what} {trained:.3} is not above pixels {pixels:.3} and the untrained encoder's {random:.3}"));
        }
        found
    }

    /// The table's row.
    fn row(&self, version: &str) -> String {
        let [clock, processors] = self.minutes;
        let [_, random, trained] = self.accuracy;
        let [_, linear_before, linear_after] = self.linear;
        let [rank_before, rank_after] = self.rank;
        let [first, last] = self.loss;
        format!(
            "| {} | {}, batch {}, {} epochs | {clock:.1} ({processors:.1}) | {random:.3} | {trained:.3} | {linear_before:.3} → \
             {linear_after:.3} | {rank_before:.0} → {rank_after:.0} | {first:.3} → {last:.3} | {version} |\n",
            self.method, self.encoder, self.batch, self.epochs
        )
    }
}

/// What stands above the rows.
fn head(machine: &Machine, args: &MethodsArgs, pixels: f64, linear: f64) -> String {
    let name = Path::new(&args.data).file_name().map_or(args.data.clone(), |n| n.to_string_lossy().into_owned());
    format!(
        "{machine}. {} training images of `{name}`, each method's `small` recipe, seed {}; k-NN accuracy on test images before \
         and after, k and temperature chosen on held-out training images; pixels {pixels:.3}. Linear: \
         a linear classifier on the frozen features (of MAE, class token and mean of the patches), before and after; pixels {linear:.3}. Effective rank is RankMe of the features of \
         up to 1,024 test images. Minutes are the clock's, everything included, and in brackets the processors' (two cores fully busy for \
         a minute: 2): where they are much less than twice the clock's, the machine did other work beside.\n\n\
         | method | settings | minutes | k-NN before | k-NN after | linear | effective rank | loss | version |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
        args.limit, args.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: [f64; 3] = [0.37, 0.35, 0.48];
    const RESULT: &str =
        r#"{"knn_pixels":0.4,"knn_random":0.33,"knn_trained":0.45,"rank_random":12.2,"rank_trained":80.6,"seconds":90.0}"#;
    const CONFIG: &str = "method = \"simclr\"\nencoder = \"resnet_mini\"\nbatch = 128\nepochs = 6\n";
    const METRICS: &str = "{\"event\":\"baselines\"}\n{\"event\":\"step\",\"loss\":5.0}\n{\"event\":\"step\",\"loss\":4.25}\n";

    #[test]
    fn a_run_becomes_a_row() -> Result<()> {
        let row = Trained::parse(RESULT, CONFIG, METRICS, LINEAR, 120.0)?.row("0.1.0");
        let expected = "| simclr | resnet_mini, batch 128, 6 epochs | 1.5 (2.0) | 0.330 | 0.450 | 0.350 → 0.480 | 12 → 81 | 5.000 → 4.250 | 0.1.0 |\n";
        assert_eq!(row, expected);
        let unlabelled = RESULT.replace("0.45", "null");
        let error = Trained::parse(&unlabelled, CONFIG, METRICS, LINEAR, 1.0).expect_err("no accuracy").to_string();
        assert_eq!(error, "result.json has no knn_trained");
        assert!(Trained::parse(RESULT, CONFIG, "", LINEAR, 1.0).is_err());
        let run = Trained::parse(RESULT, CONFIG, METRICS, LINEAR, 120.0)?;
        assert!(run.shortcomings(10.0).is_empty());
        assert_eq!(run.shortcomings(1e-6), ["took 1.5 minutes"]);
        let weak = Trained { accuracy: [0.4, 0.33, 0.39], ..run };
        assert!(weak.shortcomings(10.0)[0].starts_with("k-NN 0.390 is not above pixels 0.400"));
        let mae = Trained { method: "mae".into(), ..weak };
        assert!(mae.shortcomings(10.0).is_empty());
        let mae = Trained { linear: [0.37, 0.35, 0.36], ..mae };
        assert!(mae.shortcomings(10.0)[0].starts_with("the linear probe's 0.360 is not above pixels 0.370"));
        Ok(())
    }

    #[test]
    fn methods_and_times_are_read() -> Result<()> {
        assert_eq!(listed(r#"[{"name":"a","summary":"x"},{"name":"b"}]"#)?, ["a", "b"]);
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 0 0 0 0 11 12 250 50 20 0 1 0";
        assert_eq!(ended_seconds(stat), Some(3.0));
        assert_eq!(ended_seconds(""), None);
        let line =
            r#"{"runs":[{"figures":[{"protocol":"simclr","top1":0.48},{"protocol":"simclr","top1":0.37,"baseline":"pixels"},
            {"protocol":"simclr","top1":0.35,"baseline":"before_training"}]}]}"#
                .replace('\n', "");
        assert_eq!(linear(&format!("words\n{line}\n"))?, LINEAR);
        assert!(linear("{}").is_err());
        Ok(())
    }
}
