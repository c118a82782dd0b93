//! Tells the program which commit it is built from, where git knows: `TWINSIGHT_COMMIT`.

use std::process::Command;

fn main() {
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|t| !t.is_empty())
    };
    println!("cargo:rerun-if-changed=build.rs");
    // The log of HEAD grows with every commit and change of branch.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo:rustc-env=TWINSIGHT_COMMIT={commit}");
    }
}
