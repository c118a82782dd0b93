//! Bad input answers in one clear line with exit code 2 and leaves what exists untouched.

mod common;

use std::path::Path;

use anyhow::{Result, ensure};
use common::{run, run_json, write_images};

/// Settings of a run that takes a second.
const QUICK: &[&str] =
    &["--epochs", "1", "--batch", "8", "--set", "eval.baselines=false", "--image-size", "16", "--encoder", "resnet_mini"];

/// Expects exit code 2 and one line on standard error that holds every one of `words`.
fn refused(cache: &Path, args: &[&str], words: &[&str]) -> Result<()> {
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

#[test]
fn folders_that_hold_nothing_to_train_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    std::fs::create_dir(cache.join("empty"))?;
    std::fs::create_dir(cache.join("texts"))?;
    std::fs::write(cache.join("texts/a.txt"), "no image")?;
    refused(cache, &["train", "--data", "./nowhere", "--out", "run"], &["nowhere"])?;
    refused(cache, &["train", "--data", "empty", "--out", "run"], &["empty", "image"])?;
    refused(cache, &["train", "--data", "texts", "--out", "run"], &["texts", "image"])?;
    refused(cache, &["train", "--out", "run"], &["--data"])?;
    refused(cache, &["train", "--data", "fashion-mnist-min", "--out", "run"], &["fashion-mnist-mini"])?;
    refused(cache, &["train", "--data", "cifar10", "--out", "run"], &["data fetch cifar10"])?;
    ensure!(!cache.join("run").exists(), "a refused run must leave no folder");
    Ok(())
}

#[test]
fn names_and_keys_that_do_not_exist() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_images(&cache.join("pictures"), 16, 20, 18)?;
    let train = ["train", "--data", "pictures", "--out", "run"];
    refused(cache, &[&train[..], &["--method", "simclear"]].concat(), &["simclear", "simclr"])?;
    refused(cache, &[&train[..], &["--encoder", "resnet81"]].concat(), &["resnet81", "resnet18"])?;
    refused(cache, &[&train[..], &["--recipe", "simclr-smal"]].concat(), &["simclr-small"])?;
    refused(cache, &[&train[..], &["--set", "schedule.warmup=2"]].concat(), &["schedule.warmup", "warmup_epochs"])?;
    refused(cache, &[&train[..], &["--set", "options.temperature=-1", "--batch", "8"]].concat(), &["temperature"])?;
    std::fs::write(cache.join("recipe.toml"), "epochs = 2\n[schedule]\nlearning_rate = 1.0\n")?;
    refused(cache, &[&train[..], &["--config", "recipe.toml"]].concat(), &["recipe.toml", "schedule.learning_rate"])?;
    std::fs::write(cache.join("broken.toml"), "epochs = = 2\n")?;
    refused(cache, &[&train[..], &["--config", "broken.toml"]].concat(), &["broken.toml"])?;
    refused(cache, &[&train[..], &["--batch", "64"]].concat(), &["16 training images", "64"])?;
    ensure!(!cache.join("run").exists(), "a refused run must leave no folder");
    Ok(())
}

#[test]
fn a_corrupt_image_is_named_counted_and_skipped() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let files = write_images(&cache.join("pictures"), 18, 20, 18)?;
    image::open(&files[3])?.save(cache.join("pictures/cut.jpg"))?;
    let whole = std::fs::read(cache.join("pictures/cut.jpg"))?;
    std::fs::write(cache.join("pictures/cut.jpg"), &whole[..whole.len() / 3])?;
    let train = [&["train", "--data", "pictures", "--out", "run"], QUICK].concat();
    let (code, _, stderr) = run(cache, &train)?;
    ensure!(code == 0, "{stderr}");
    ensure!(stderr.contains("cut.jpg"), "the bad file is not named: {stderr}");
    let info = run_json(cache, &["data", "info", "pictures"])?;
    ensure!(info["bad_files"].as_array().is_some_and(|b| b.len() == 1), "{info}");
    ensure!(info["train"] == 18, "{info}");
    let strict = [&["train", "--data", "pictures", "--out", "strict", "--strict"], QUICK].concat();
    refused(cache, &strict, &["cut.jpg"])?;
    ensure!(!cache.join("strict").exists(), "a refused run must leave no folder");
    Ok(())
}

#[test]
fn a_run_folder_is_never_overwritten_and_a_damaged_checkpoint_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_images(&cache.join("pictures"), 16, 20, 18)?;
    let train = [&["train", "--data", "pictures", "--out", "run"], QUICK].concat();
    let (code, _, stderr) = run(cache, &train)?;
    ensure!(code == 0, "{stderr}");
    let before = std::fs::read(cache.join("run/encoder.safetensors"))?;
    refused(cache, &train, &["already holds a run", "resume"])?;
    ensure!(before == std::fs::read(cache.join("run/encoder.safetensors"))?, "the earlier run was touched");

    let checkpoint = cache.join("run/checkpoint.safetensors");
    let bytes = std::fs::read(&checkpoint)?;
    std::fs::write(&checkpoint, &bytes[..bytes.len() / 2])?;
    refused(cache, &["resume", "run"], &["checkpoint.safetensors"])?;
    ensure!(std::fs::metadata(&checkpoint)?.len() == bytes.len() as u64 / 2, "the damaged file was touched");
    ensure!(before == std::fs::read(cache.join("run/encoder.safetensors"))?, "the encoder was touched");

    let encoder = cache.join("half.safetensors");
    std::fs::write(&encoder, &before[..before.len() / 2])?;
    refused(cache, &["embed", "half.safetensors", "--data", "pictures", "--out", "v.npy"], &["half.safetensors"])?;
    refused(cache, &["embed", "run", "--data", "pictures", "--out", "v.parket"], &[".npy or .csv"])?;
    refused(cache, &["resume", "nowhere"], &["nowhere"])?;
    refused(cache, &["resume", "pictures"], &["config.toml"])?;
    refused(cache, &["knn", "run"], &["labels"])?;
    ensure!(!cache.join("v.npy").exists(), "a refused command must leave no file");
    Ok(())
}
