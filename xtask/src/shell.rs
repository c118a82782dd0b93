//! Programs started from the root of the repository, with errors that say which one failed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the repository: the folder above this package.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_path_buf()
}

/// `cargo`, the one that started this program where there is one, to be run at the root.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(args).current_dir(root());
    command
}

/// The program of the workspace, built for release first where that is needed.
pub fn twinsight(args: &[&str], extra: &[String]) -> Command {
    let mut command = cargo(&["run", "--release", "--package", "twinsight", "--"]);
    command.args(args).args(extra);
    command
}

/// Builds the program for release and says where it is.
///
/// # Errors
/// When it does not build.
pub fn release() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--release", "--locked", "--package", "twinsight"]))?;
    let metadata = metadata()?;
    let name = format!("twinsight{}", std::env::consts::EXE_SUFFIX);
    Ok(Path::new(metadata.target_directory.as_str()).join("release").join(name))
}

/// Builds an example of a package for release and says where it is.
///
/// # Errors
/// When it does not build.
pub fn release_example(package: &str, name: &str) -> Result<PathBuf> {
    run(&mut cargo(&["build", "--release", "--locked", "--package", package, "--example", name]))?;
    let folder = Path::new(metadata()?.target_directory.as_str()).join("release").join("examples");
    Ok(folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

/// What cargo knows about the workspace's packages.
///
/// # Errors
/// When the workspace cannot be read.
pub fn metadata() -> Result<cargo_metadata::Metadata> {
    Ok(cargo_metadata::MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec()?)
}

/// Runs to the end, output passed through.
///
/// # Errors
/// When it cannot be started or does not end well.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", words(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

/// Runs to the end and returns standard output; standard error is passed through.
///
/// # Errors
/// When it cannot be started, does not end well, or prints something that is not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", words(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", words(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {}", words(command)))
}

/// The command as it would be typed, without the folder of the program.
fn words(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|w| w.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_named() {
        let error = run(cargo(&["no-such-command-exists"]).stderr(Stdio::null())).expect_err("fails").to_string();
        assert!(error.starts_with("cargo no-such-command-exists ended with"), "{error}");
        let error = run(&mut Command::new("/no/such/program")).expect_err("fails").to_string();
        assert_eq!(error, "cannot start program");
    }

    #[test]
    fn output_is_returned() -> Result<()> {
        assert!(output(&mut cargo(&["--version"]))?.starts_with("cargo "));
        Ok(())
    }
}
