//! `bench knn`: the exact search against a peer program, in turn, and that both find the same neighbours.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::shell;

/// What to compare, and with which program.
#[derive(Debug, Args)]
pub struct KnnArgs {
    /// A Python that has the peer's libraries (FAISS, numpy).
    #[arg(long)]
    python: PathBuf,
    /// The peer: a Python program that takes --train, --test, --dim, --k and --threads, and prints one JSON line last, with peer and
    /// seconds.
    #[arg(long)]
    peer: PathBuf,
    /// Rows searched in.
    #[arg(long, default_value_t = 50_000)]
    train: u32,
    /// Queries.
    #[arg(long, default_value_t = 10_000)]
    test: u32,
    /// Numbers a row.
    #[arg(long, default_value_t = 512)]
    dim: u32,
    /// Neighbours.
    #[arg(long, default_value_t = 200)]
    k: u32,
    /// Threads of either side.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Rounds of runs in turn, after one that warms up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Fail where the median takes a larger share of the peer's time.
    #[arg(long, value_name = "SHARE")]
    at_most: Option<f64>,
}

/// Runs it.
///
/// # Errors
/// When a program fails, prints no measurement, or the neighbours differ by more than ties.
pub fn run(args: &KnnArgs) -> Result<()> {
    if !args.peer.is_file() {
        bail!("{} is not a file: --peer must be the peer's program", args.peer.display());
    }
    let program = shell::release_example("twinsight-knn", "search")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let words = [
            ("bank", args.train),
            ("queries", args.test),
            ("dim", args.dim),
            ("k", args.k),
            ("threads", args.threads),
            ("rounds", 1),
        ];
        let own = seconds(Command::new(&program).args(words.map(|(key, value)| format!("{key}={value}"))))?;
        let mut peer = Command::new(&args.python);
        peer.arg(&args.peer);
        for (key, value) in
            [("--train", args.train), ("--test", args.test), ("--dim", args.dim), ("--k", args.k), ("--threads", args.threads)]
        {
            peer.arg(key).arg(value.to_string());
        }
        let peer = seconds(&mut peer)?;
        println!("{}: {own:.3} s, peer {peer:.3} s, ratio {:.3}", super::label(round), own / peer);
        if round > 0 {
            ours.push(own);
            theirs.push(peer);
        }
    }
    let script = shell::root().join("tests/interop/neighbours.py");
    let mut same = Command::new(&args.python);
    same.arg(script).arg("--program").arg(&program);
    for (key, value) in [("--bank", args.train), ("--queries", args.test), ("--dim", args.dim), ("--k", args.k)] {
        same.arg(key).arg(value.to_string());
    }
    let told = shell::output(&mut same)?;
    print!("{told}");
    let (own, peer) = (median(&mut ours), median(&mut theirs));
    let share = own / peer;
    println!("median of {}: {own:.3} s against {peer:.3} s: {share:.3} of the peer's time", args.rounds);
    within(share, args.at_most)
}

/// Holds a share of the peer's time against the most that it may be.
fn within(share: f64, most: Option<f64>) -> Result<()> {
    match most {
        // A share that is no number is not within anything.
        Some(most) if share.is_nan() || share > most => bail!("{share:.3} of the peer's time; expected at most {most}"),
        _ => Ok(()),
    }
}

/// `seconds` of the JSON line that a program prints last.
fn seconds(command: &mut Command) -> Result<f64> {
    let text = shell::output(command)?;
    let last = text.lines().last().context("a program printed nothing")?;
    let line: Value = serde_json::from_str(last).with_context(|| format!("no JSON line: {last}"))?;
    line["seconds"].as_f64().with_context(|| format!("no seconds in {line}"))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!((median(&mut [3.0, 1.0, 2.0]), median(&mut [4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(within(0.7, Some(0.8)).is_ok() && within(0.9, None).is_ok());
        assert!(within(0.9, Some(0.8)).is_err() && within(f64::NAN, Some(0.8)).is_err());
    }
}
