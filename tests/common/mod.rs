//! What the tests that drive the program share: running it, and folders of small images.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// The program under test, with a cache folder of its own so that nothing of the user's is read.
pub fn twinsight(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinsight"));
    command.env("TWINSIGHT_DATA", cache).env_remove("TWINSIGHT_LOG").current_dir(cache);
    command
}

/// Runs it and returns what it printed, with its exit code.
pub fn run(cache: &Path, args: &[&str]) -> Result<(i32, String, String)> {
    let Output { status, stdout, stderr } = twinsight(cache).args(args).output().context("the program could not be started")?;
    let code = status.code().context("the program was killed by a signal")?;
    Ok((code, String::from_utf8(stdout)?, String::from_utf8(stderr)?))
}

/// Runs it, expects success, and returns the JSON line that it printed last.
pub fn run_json(cache: &Path, args: &[&str]) -> Result<serde_json::Value> {
    let (code, stdout, stderr) = run(cache, &[args, &["--json"]].concat())?;
    ensure!(code == 0, "exit code {code} of {args:?}: {stderr}");
    let last = stdout.lines().last().context("nothing on standard output")?;
    serde_json::from_str(last).with_context(|| format!("the last line is no JSON: {last}"))
}

/// Runs it, and expects exit code 2, nothing on standard output, and one line on standard error that holds every one of `words`
/// (lines about skipped images aside).
pub fn refused(cache: &Path, args: &[&str], words: &[&str]) -> Result<()> {
    let (code, stdout, stderr) = run(cache, args)?;
    ensure!(code == 2, "{args:?}: exit code {code}: {stderr}");
    ensure!(stdout.is_empty(), "{args:?} printed {stdout}");
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("skipped ")).collect();
    ensure!(lines.len() == 1, "{args:?}: expected one line, got {stderr}");
    for word in words {
        ensure!(lines[0].contains(word), "{args:?}: `{word}` is missing in: {stderr}");
    }
    Ok(())
}

/// Writes `count` PNG images of `width` × `height` into `folder`, each with other contents.
pub fn write_images(folder: &Path, count: usize, width: u32, height: u32) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    (0..count as u32)
        .map(|i| {
            let image = image::RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([(x * 7 + i * 31) as u8, (y * 5 + i * 17) as u8, (x * y + i * 3) as u8])
            });
            let path = folder.join(format!("picture-{i:03}.png"));
            image.save(&path)?;
            Ok(path)
        })
        .collect()
}
