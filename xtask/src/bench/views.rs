//! `bench views`: JPEGs to SimCLR's views on one thread against a peer's libraries, in turn, and on two threads against one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use walkdir::WalkDir;

use super::report::{self, Measurement};
use super::section::{Machine, Section};
use crate::shell;

/// What to compare, and with which program.
#[derive(Debug, Args)]
pub struct ViewsArgs {
    /// A Python that has the peer's libraries.
    #[arg(long)]
    python: PathBuf,
    /// The peer: a Python program that takes a folder, --size, --count and --library, and prints one JSON line last, with peer and
    /// images_per_s.
    #[arg(long)]
    peer: PathBuf,
    /// Images and the side of the views; may be given again. Each is a row of its own, which replaces the one of an earlier run.
    #[arg(long, value_name = "FOLDER:SIZE", num_args = 1.., required = true)]
    images: Vec<Case>,
    /// A library of the peer's; may be given again.
    #[arg(long = "library", value_name = "NAME", default_values = ["torchvision", "torchvision-v2", "albumentations"])]
    libraries: Vec<String>,
    /// Images of which views are made in a run.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Rounds of runs, ours and each library's in turn, after one that warms up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// A built program to use, instead of one built now.
    #[arg(long)]
    program: Option<PathBuf>,
    /// The file whose section is rewritten.
    #[arg(long, default_value = "docs/benchmarks.md")]
    out: PathBuf,
}

const SECTION: Section = Section { heading: "From JPEGs to views", name: "views", command: "cargo xtask bench views" };

/// Images and the side of their views.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    folder: PathBuf,
    size: u32,
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':').map(|(folder, size)| (folder, size.parse::<u32>()));
        match parts {
            Some((folder, Ok(size))) if size > 0 && !folder.is_empty() => Ok(Self { folder: folder.into(), size }),
            _ => Err(format!("`{text}` is not FOLDER:SIZE with a size of whole pixels above 0")),
        }
    }
}

/// One round of runs.
#[derive(Debug, Clone, PartialEq)]
struct Round {
    /// Ours on one thread and on two, in images a second.
    ours: [f64; 2],
    /// The libraries', in their order.
    theirs: Vec<f64>,
    /// Microseconds of ours on one thread: decoding, and all views of an image.
    parts: [f64; 2],
}

/// Runs it.
///
/// # Errors
/// When a program fails or prints no measurement, or a folder holds no JPEGs.
pub fn run(args: &ViewsArgs) -> Result<()> {
    if !args.peer.is_file() {
        bail!("{} is not a file: --peer must be the peer's program", args.peer.display());
    }
    let program = args.program.clone().map_or_else(shell::release, Ok)?;
    let (machine, version) = (Machine::here(), super::own_version()?);
    let path = shell::root().join(&args.out);
    for case in &args.images {
        let links = tempfile::tempdir().context("a temporary folder for links")?;
        let found = link(&case.folder, links.path(), args.count)?;
        let name = case.folder.file_name().map_or_else(|| case.folder.display().to_string(), |n| n.to_string_lossy().into());
        let name = format!("{name}, {found} images, {} px", case.size);
        let mut rounds = Vec::new();
        for round in 0..=args.rounds {
            let run = measure(args, case.size, links.path(), &program)?;
            println!("{name}: {} {run:?}", super::label(round));
            if round > 0 {
                rounds.push(run);
            }
        }
        let row = row(&name, &args.libraries, &rounds, &version);
        SECTION.put(&path, &row, &head(&machine, args))?;
        println!("{row}written to {}", path.display());
    }
    Ok(())
}

/// Links the first `most` JPEGs below `folder`, in the order of their paths, into `to` under names that end as the peer expects.
fn link(folder: &Path, to: &Path, most: u32) -> Result<usize> {
    let is_jpeg = |p: &Path| {
        let ending = p.extension().map(|e| e.to_ascii_lowercase());
        p.is_file() && ending.is_some_and(|e| e == "jpg" || e == "jpeg")
    };
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true) {
        let path = entry.with_context(|| folder.display().to_string())?.into_path();
        if is_jpeg(&path) {
            found.push(std::fs::canonicalize(&path).with_context(|| path.display().to_string())?);
        }
    }
    found.sort();
    found.truncate(most as usize);
    if found.is_empty() {
        bail!("{}: no .jpg or .jpeg files lie there", folder.display());
    }
    for (i, path) in found.iter().enumerate() {
        let new = to.join(format!("{i:06}.jpg"));
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(path, &new);
        #[cfg(not(unix))]
        let made = std::fs::copy(path, &new).map(|_| ());
        made.with_context(|| new.display().to_string())?;
    }
    Ok(found.len())
}

/// One round: ours on one thread, each library, ours on two threads.
fn measure(args: &ViewsArgs, size: u32, folder: &Path, program: &Path) -> Result<Round> {
    let (size, count) = (size.to_string(), args.count.to_string());
    let own = |threads: &str| {
        let mut command = Command::new(program);
        command.args(["bench", "data", "--json", "--size", &size, "--count", &count, "--threads", threads]).arg(folder);
        shell::output(&mut command)
    };
    let one = own("1")?;
    let mut theirs = Vec::new();
    for library in &args.libraries {
        let mut command = Command::new(&args.python);
        command.arg(&args.peer).arg(folder).args(["--size", &size, "--count", &count, "--library", library]);
        let run = Measurement::parse(&shell::output(&mut command)?).with_context(|| library.clone())?;
        theirs.push(run.images_per_s);
    }
    let ours = [Measurement::parse(&one)?.images_per_s, Measurement::parse(&own("2")?)?.images_per_s];
    Ok(Round { ours, theirs, parts: parts(&one)? })
}

/// What our program says of the parts of its time.
fn parts(output: &str) -> Result<[f64; 2]> {
    let line = output.lines().rev().find_map(|l| serde_json::from_str::<Value>(l).ok().filter(Value::is_object));
    let line = line.context("the program printed no JSON line")?;
    let number = |key: &str| line[key].as_f64().with_context(|| format!("no {key} in {line}"));
    Ok([number("decode_us")?, number("views_us")?])
}

/// The table's row.
fn row(name: &str, libraries: &[String], rounds: &[Round], version: &str) -> String {
    let median = |of: &dyn Fn(&Round) -> f64| report::median(&mut rounds.iter().map(of).collect::<Vec<_>>());
    let range = |of: &dyn Fn(&Round) -> f64| {
        let all = || rounds.iter().map(of);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        format!("{:.2} ({low:.2} to {high:.2})", median(of))
    };
    let fastest = |r: &Round| r.theirs.iter().copied().fold(0.0, f64::max);
    let theirs: Vec<String> =
        libraries.iter().enumerate().map(|(i, library)| format!("{library} {:.0}", median(&|r| r.theirs[i]))).collect();
    format!(
        "| {name} | {:.0} | {:.0} + {:.0} | {} | {} | {} | {version} |\n",
        median(&|r| r.ours[0]),
        median(&|r| r.parts[0]),
        median(&|r| r.parts[1]),
        theirs.join(", "),
        range(&|r| r.ours[0] / fastest(r)),
        range(&|r| r.ours[1] / r.ours[0]),
    )
}

/// What stands above the rows.
fn head(machine: &Machine, args: &ViewsArgs) -> String {
    format!(
        "{machine}. Encoded images in memory in, two normalised views of SimCLR's (crop, flip, jitter, gray, blur) out; {} images a run or \
         more. Ours and each library on one thread, and ours on two, in turn: {} rounds after one that warms up, medians. Ratios are those \
         of the same round: median (lowest to highest).\n\n\
         | images | twinsight, images/s | µs to decode + for views | peers, images/s | to the fastest peer | two threads to one | \
         version |\n\
         | --- | ---: | ---: | --- | ---: | ---: | --- |\n",
        args.count, args.rounds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_and_wrong_ones_refused() {
        assert_eq!("a:b/c:32".parse(), Ok(Case { folder: "a:b/c".into(), size: 32 }));
        for wrong in ["a", "a:", "a:0", ":32", "a:b"] {
            assert!(wrong.parse::<Case>().expect_err(wrong).contains("FOLDER:SIZE"));
        }
    }

    #[test]
    fn files_of_any_ending_are_linked_under_one() -> Result<()> {
        let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
        std::fs::create_dir(from.path().join("deep"))?;
        for name in ["b.JPEG", "a.jpg", "deep/c.Jpg", "d.png"] {
            std::fs::write(from.path().join(name), name)?;
        }
        assert_eq!(link(from.path(), to.path(), 9)?, 3);
        assert_eq!(std::fs::read(to.path().join("000001.jpg"))?, b"b.JPEG");
        let empty = tempfile::tempdir()?;
        assert!(link(empty.path(), to.path(), 9).is_err());
        Ok(())
    }

    #[test]
    fn a_row_has_ratios_of_rounds() -> Result<()> {
        let output = "words\n{\"images_per_s\": 10.0, \"decode_us\": 900.2, \"views_us\": 400}\n";
        assert_eq!(parts(output)?, [900.2, 400.0]);
        let round = |one, two, theirs: [f64; 2]| Round { ours: [one, two], theirs: theirs.to_vec(), parts: [900.2, 400.0] };
        let rounds = [round(100.0, 190.0, [50.0, 40.0]), round(120.0, 216.0, [20.0, 40.0]), round(110.0, 220.0, [50.0, 44.0])];
        let row = row("photos", &["a".into(), "b".into()], &rounds, "0.1.0");
        let expected = "| photos | 110 | 900 + 400 | a 50, b 40 | 2.20 (2.00 to 3.00) | 1.90 (1.80 to 2.00) | 0.1.0 |\n";
        assert_eq!(row, expected);
        Ok(())
    }
}
