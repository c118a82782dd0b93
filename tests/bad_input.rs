//! Bad input answers in one clear line with exit code 2 and leaves what exists untouched.

mod common;

use anyhow::{Result, ensure};
use common::{refused, run, run_json, write_images};

/// Settings of a run that takes a second.
const QUICK: &[&str] =
    &["--epochs", "1", "--batch", "8", "--set", "eval.baselines=false", "--image-size", "16", "--encoder", "resnet_mini"];

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
    refused(cache, &["embed", "run", "--data", "pictures", "--out", "v.parket"], &[".parquet, .npy or .csv"])?;
    refused(cache, &["resume", "nowhere"], &["nowhere"])?;
    refused(cache, &["resume", "pictures"], &["config.toml"])?;
    refused(cache, &["knn", "run"], &["labels"])?;
    ensure!(!cache.join("v.npy").exists(), "a refused command must leave no file");
    Ok(())
}

#[test]
fn a_run_among_its_own_images_can_be_resumed_and_changed_settings_are_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_images(cache, 16, 20, 18)?;
    let (code, _, stderr) = run(cache, &[&["train", "--data", ".", "--out", "runs/one"], QUICK].concat())?;
    ensure!(code == 0, "{stderr}");
    let (code, _, stderr) = run(cache, &["resume", "runs/one"])?;
    ensure!(code == 0, "{stderr}");

    let config = cache.join("runs/one/config.toml");
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text.replace("batch = 8", "batch = 4"))?;
    refused(cache, &["resume", "runs/one"], &["config.toml", "batch"])?;
    std::fs::write(&config, text.replace("path = \".\"", "path = \"gone\""))?;
    refused(cache, &["resume", "runs/one"], &["gone", "--data"])?;
    let (code, _, stderr) = run(cache, &["resume", "runs/one", "--data", "."])?;
    ensure!(code == 0, "{stderr}");
    std::fs::write(&config, &text)?;
    std::fs::rename(cache.join("picture-003.png"), cache.join("renamed.png"))?;
    refused(cache, &["resume", "runs/one"], &["checkpoint.safetensors", "other images"])?;
    Ok(())
}

#[test]
fn settings_that_do_not_fit_leave_no_folder_and_divergence_has_its_own_code() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_images(&cache.join("pictures"), 32, 20, 18)?;
    let train = ["train", "--data", "pictures", "--epochs", "1", "--batch", "8", "--image-size", "24"];
    let vit = ["--encoder", "vit_tiny", "--method", "dino", "--set", "options.local_views=1", "--set", "options.out_dim=32"];
    let odd = [&train[..], &vit, &["--out", "odd", "--set", "network.patch=8", "--set", "options.local_size=12"]].concat();
    refused(cache, &odd, &["12", "8"])?;
    ensure!(!cache.join("odd").exists(), "a refused run must leave no folder");
    // Left to itself, the local view is cut to whole patches; and a warm-up of two epochs to the one that there is.
    let fits = [&train[..], &vit, &["--out", "fits", "--set", "network.patch=8"]].concat();
    let (code, _, stderr) = run(cache, &fits)?;
    ensure!(code == 0, "{stderr}");

    // Pixels divided by next to nothing overflow in the first convolution.
    let wild = ["--out", "wild", "--epochs", "1", "--set", "data.mean=[0.0,0.0,0.0]", "--set", "data.std=[1e-38,1e-38,1e-38]"];
    let train = ["train", "--data", "pictures", "--batch", "8", "--image-size", "16"];
    let (code, _, stderr) = run(cache, &[&train[..], &wild].concat())?;
    ensure!(code == 3 && stderr.contains("schedule.lr"), "exit code {code}: {stderr}");
    ensure!(std::fs::read_to_string(cache.join("wild/metrics.jsonl"))?.contains("diverged"));
    Ok(())
}

#[test]
fn what_is_left_out_is_counted_by_every_command() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let files = write_images(&cache.join("pictures"), 18, 20, 18)?;
    let whole = std::fs::read(&files[5])?;
    std::fs::write(&files[5], &whole[..whole.len() / 2])?;
    let result = run_json(cache, &[&["train", "--data", "pictures", "--out", "run"], QUICK].concat())?;
    ensure!(result["skipped"] == 1, "{result}");
    let embedded = run_json(cache, &["embed", "run", "--out", "v.npy"])?;
    ensure!(embedded["skipped"] == 1 && embedded["rows"] == 17, "{embedded}");
    refused(cache, &["embed", "run", "--out", "w.npy", "--strict"], &["picture-005.png"])?;
    ensure!(!cache.join("w.npy").exists(), "a refused command must leave no file");
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let full = std::fs::File::options().write(true).open("/dev/full")?;
    let output = common::twinsight(cache).args(["list", "keys"]).stdout(full).output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2) && stderr.lines().count() == 1, "{:?}: {stderr}", output.status);
    write_images(&cache.join("pictures"), 4, 20, 18)?;
    refused(cache, &["views", "pictures", "--out", "/dev/full"], &["/dev/full"])?;
    Ok(())
}
