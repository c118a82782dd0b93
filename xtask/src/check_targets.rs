//! `check-targets`: the workspace compiled as far as its types, and linted, for systems other than the one at hand: Macs with Metal, 64-bit Arm
//! under Linux, Windows. Nothing is linked and nothing is run, so no linker, no system libraries and no C compiler for those systems are
//! needed: a stand-in takes the C compiler's place, and the C code of dependencies is left out. Not part of `ci`, since it builds every
//! dependency once more for each of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::ci::{duration, step};
use crate::shell;

/// For which systems.
#[derive(Debug, Args)]
pub struct CheckTargetsArgs {
    /// A target; may be given again.
    #[arg(long = "target", value_name = "TRIPLE", default_values = [
        "aarch64-apple-darwin", "aarch64-unknown-linux-gnu", "x86_64-pc-windows-gnu",
    ])]
    targets: Vec<String>,
}

/// Runs clippy over the workspace for each target, with the feature `metal` on Macs. A target whose standard library is missing is added by
/// rustup.
///
/// # Errors
/// A target that can't be added, code that does not compile, a lint.
pub fn run(args: &CheckTargetsArgs) -> Result<()> {
    ensure!(cfg!(unix), "check-targets needs a Unix system: what takes the C compiler's place is a shell script");
    let start = std::time::Instant::now();
    // A folder of its own: objects that a stand-in left empty must not be taken by a build that links.
    let folder = Path::new(shell::metadata()?.target_directory.as_str()).join("check-targets");
    let stand_in = stand_in(&folder)?;
    let told = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    for target in &args.targets {
        step(&format!("clippy for {target}"), || {
            add(target)?;
            let mut words = vec!["clippy", "--workspace", "--all-targets", "--locked", "--target", target];
            words.extend(features(target));
            words.extend(["--", "-D", "warnings"]);
            let mut clippy = shell::cargo(&words);
            clippy.env("CARGO_TARGET_DIR", &folder);
            for name in variables(target).iter().filter(|name| target != host && std::env::var_os(name).is_none()) {
                clippy.env(name, &stand_in);
            }
            shell::run(&mut clippy)
        })?;
    }
    println!("all checks passed in {}", duration(start));
    Ok(())
}

/// What is checked beside the default features.
fn features(target: &str) -> &'static [&'static str] {
    if target.ends_with("-apple-darwin") { &["--features", "twinsight/metal"] } else { &[] }
}

/// Where the build scripts of dependencies look for the tools of `target`.
fn variables(target: &str) -> [String; 3] {
    ["CC", "CXX", "AR"].map(|tool| format!("{tool}_{}", target.replace('-', "_")))
}

/// Has the standard library of `target` added where it is missing.
fn add(target: &str) -> Result<()> {
    let library = shell::output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(library.trim()).is_dir() {
        return Ok(());
    }
    shell::run(Command::new("rustup").args(["target", "add", target]).current_dir(shell::root()))
        .with_context(|| format!("there is no standard library for {target}; `rustup target add {target}` adds it"))
}

/// A program in `folder` in the place of compilers and archivers: it makes an empty file where one was asked for.
fn stand_in(folder: &Path) -> Result<PathBuf> {
    const SCRIPT: &str = "#!/bin/sh\nwhile [ $# -gt 0 ]; do\n  if [ \"$1\" = -o ]; then : > \"$2\"; fi\n  shift\ndone\n";
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("stand-in-for-c");
    std::fs::write(&path, SCRIPT).with_context(|| path.display().to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).with_context(|| path.display().to_string())?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_checked_with_metal_and_tools_are_found_by_name() {
        assert_eq!(features("aarch64-apple-darwin"), ["--features", "twinsight/metal"]);
        assert!(features("aarch64-unknown-linux-gnu").is_empty());
        assert_eq!(variables("x86_64-pc-windows-gnu")[0], "CC_x86_64_pc_windows_gnu");
    }

    #[cfg(unix)]
    #[test]
    fn the_stand_in_makes_an_empty_object() -> Result<()> {
        let place = tempfile::tempdir()?;
        let program = stand_in(place.path())?;
        let object = place.path().join("a b.o");
        shell::run(Command::new(&program).args(["-O2", "-c", "missing.c", "-o"]).arg(&object))?;
        assert_eq!(std::fs::metadata(&object)?.len(), 0);
        shell::run(Command::new(&program).args(["-E", "missing.c"]))
    }
}
