//! `ci`: every check, in the order of what fails fastest; `.ci/run` calls it.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{shell, tidy};

/// Crates that others take alone, checked with the least that they can be built with.
const ALONE: [&str; 3] = ["twinsight-augment", "twinsight-knn", "twinsight-datasets"];

/// Runs all checks, each with its name and duration, up to the first that fails.
///
/// # Errors
/// Names the check that failed.
pub fn run() -> Result<()> {
    let start = Instant::now();
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("tidy", tidy::run)?;
    step("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    step("test", || cargo(&["test", "--locked"]))?;
    step("test xtask", || cargo(&["test", "--locked", "--package", "xtask"]))?;
    step("docs", || shell::run(docs().env("RUSTDOCFLAGS", "-D warnings")))?;
    for name in ALONE {
        let check = || cargo(&["check", "--locked", "--no-default-features", "--package", name]);
        step(&format!("{name} alone"), check)?;
    }
    println!("all checks passed in {}", duration(start));
    Ok(())
}

/// Runs cargo to its end.
///
/// # Errors
/// When it does not end well.
pub fn cargo(args: &[&str]) -> Result<()> {
    shell::run(&mut shell::cargo(args))
}

fn docs() -> Command {
    shell::cargo(&["doc", "--locked", "--no-deps", "--workspace"])
}

/// One check, with its name and duration.
///
/// # Errors
/// That of the check, with its name.
pub fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    let done = check().with_context(|| format!("check `{name}` failed"));
    println!("    {name}: {} after {}", if done.is_ok() { "passed" } else { "FAILED" }, duration(start));
    done
}

/// The time since `start`, in words.
pub fn duration(start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64();
    if seconds < 60.0 { format!("{seconds:.1} s") } else { format!("{} min {:.0} s", seconds as u64 / 60, seconds % 60.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn a_failing_check_is_named_and_its_cause_kept() {
        let error = step("demo", || bail!("reason")).expect_err("fails");
        assert_eq!(format!("{error:#}"), "check `demo` failed: reason");
        assert!(step("demo", || Ok(())).is_ok());
    }
}
