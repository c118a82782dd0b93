//! `check-features`: the features of the program that are off by default and need no device, linted and tested. Not part of `ci`, since
//! they bring some 150 crates along.

use anyhow::Result;

use crate::ci::{cargo, duration, step};

/// What is checked at once.
const FEATURES: &str = "twinsight/hub,twinsight/object-store,twinsight/approximate";

/// Runs clippy over everything and the tests that these features add or touch; then the data crate with each of them alone.
///
/// # Errors
/// Names the check that failed.
pub fn run() -> Result<()> {
    let start = std::time::Instant::now();
    step("clippy", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--features", FEATURES, "--", "-D", "warnings"])
    })?;
    step("test", || {
        cargo(&["test", "--locked", "--features", FEATURES, "--lib", "--bins", "--test", "remote", "--test", "data"])
    })?;
    for feature in ["hub", "object-store"] {
        let words = ["check", "--locked", "--no-default-features", "--features", feature, "--package", "twinsight-datasets"];
        step(&format!("twinsight-datasets with {feature} alone"), || cargo(&words))?;
    }
    println!("all checks passed in {}", duration(start));
    Ok(())
}
