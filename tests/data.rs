//! Data as the program sees it: broken files, other sources, the `data` commands, `bench data`.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{run, run_json, write_images};

/// Settings of a run that takes a second.
const QUICK: &[&str] =
    &["--epochs", "1", "--batch", "8", "--set", "eval.baselines=false", "--image-size", "16", "--encoder", "resnet_mini"];

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data").join(name).display().to_string()
}

/// Half of the files of a folder are broken in different ways.
fn write_broken(folder: &Path) -> Result<Vec<String>> {
    let files = write_images(folder, 24, 20, 18)?;
    let whole = std::fs::read(&files[0])?;
    let broken: [(&str, &[u8]); 6] = [
        ("empty.png", b""),
        ("text.jpg", b"no picture"),
        ("cut.png", &whole[..whole.len() * 2 / 3]),
        ("head.jpg", &[0xff, 0xd8, 0xff]),
        ("zip.gif", b"PK\x03\x04"),
        ("huge.pgm", b"P5 4000000 4000000 255\n"),
    ];
    for (name, raw) in broken {
        std::fs::write(folder.join(name), raw)?;
    }
    Ok(broken.iter().map(|(name, _)| name.to_string()).collect())
}

#[test]
fn broken_files_do_not_stop_a_run_and_are_named_once_each() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let broken = write_broken(&cache.join("pictures"))?;
    let train = [&["train", "--data", "pictures", "--out", "run"], QUICK].concat();
    let (code, _, stderr) = run(cache, &train)?;
    ensure!(code == 0, "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(cache.join("run/result.json"))?)?;
    ensure!(result["skipped"] == 6, "{result}");
    let report = std::fs::read_to_string(cache.join("run/report.html"))?;
    for name in &broken {
        ensure!(stderr.matches(&format!("skipped {name}:")).count() == 1, "{name} in {stderr}");
        ensure!(report.matches(&format!("{name}:")).count() == 1, "{name} is not named once in the report");
    }
    let strict = [&["train", "--data", "pictures", "--out", "strict", "--strict"], QUICK].concat();
    let (code, _, stderr) = run(cache, &strict)?;
    ensure!(code == 2 && broken.iter().any(|b| stderr.contains(b.as_str())), "{stderr}");
    Ok(())
}

#[test]
fn check_lists_what_is_broken_and_what_occurs_twice() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let broken = write_broken(&cache.join("pictures"))?;
    std::fs::copy(cache.join("pictures/picture-003.png"), cache.join("pictures/copy.png"))?;
    let found = run_json(cache, &["data", "check", "pictures"])?;
    let bad = found["bad_files"].as_array().context("bad files")?;
    ensure!(bad.len() == broken.len() && found["images"] == 25, "{found}");
    for name in &broken {
        ensure!(bad.iter().any(|b| b.as_str().is_some_and(|b| b.starts_with(&format!("{name}: ")))), "{name}: {found}");
    }
    ensure!(found["exact"] == serde_json::json!([["copy.png", "picture-003.png"]]), "{found}");
    let (code, _, stderr) = run(cache, &["data", "check", "pictures", "--strict"])?;
    ensure!(code == 2 && stderr.lines().count() == 1, "{stderr}");
    Ok(())
}

#[test]
fn other_sources_are_trained_on_like_folders() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for class in ["sea", "land"] {
        write_images(&cache.join("pictures").join(class), 10, 20, 18)?;
    }
    let shards = run_json(cache, &["data", "convert", "pictures", "--out", "shards", "--shard", "8"])?;
    ensure!(shards["images"] == 20 && shards["files"].as_array().map(Vec::len) == Some(3), "{shards}");
    let packed = run_json(cache, &["data", "convert", "pictures", "--out", "small.safetensors", "--size", "16"])?;
    ensure!(packed["images"] == 20, "{packed}");
    let split = run_json(cache, &["data", "split", "pictures", "--out", "split.csv", "--test", "0.2"])?;
    ensure!(split["train"] == 16 && split["test"] == 4, "{split}");
    for (data, train, test) in [("shards", 20, 0), ("small.safetensors", 20, 0), ("split.csv", 16, 4)] {
        let info = run_json(cache, &["data", "info", data])?;
        ensure!(info["train"] == train && info["test"].as_u64().unwrap_or(0) == test, "{info}");
        ensure!(info["classes"]["sea"].as_u64().is_some_and(|n| n >= 8), "{info}");
        let out = format!("run-{data}");
        let args = [&["train", "--data", data, "--out", &out], QUICK].concat();
        let (code, _, stderr) = run(cache, &args)?;
        ensure!(code == 0, "{data}: {stderr}");
    }
    for (args, word) in [
        (&["data", "convert", "pictures", "--out", "shards"][..], "is there already"),
        (&["data", "convert", "pictures", "--out", "other", "--size", "9"], ".safetensors"),
        (&["data", "split", "pictures", "--out", "split.txt"], ".csv"),
        (&["data", "split", "shards", "--out", "s.csv"], "no files"),
        (&["data", "info", "run-shards/config.toml"], "no known kind"),
        (&["data", "fetch", "cifar10", "--offline"], "--offline"),
        (&["data", "fetch", "cifar11"], "cifar10"),
    ] {
        let (code, _, stderr) = run(cache, args)?;
        ensure!(code == 2 && stderr.contains(word) && stderr.lines().count() == 1, "{args:?}: {code} {stderr}");
    }
    for name in ["webdataset", "npz/colour.npz", "parquet/data", "manifest/all.jsonl"] {
        let info = run_json(cache, &["data", "info", &fixture(name)])?;
        ensure!(info["train"].as_u64().is_some_and(|n| n >= 3) && info["test"] == 2, "{name}: {info}");
    }
    Ok(())
}

#[test]
fn data_is_measured_and_every_step_of_a_view_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let files = write_images(&cache.join("pictures"), 3, 40, 30)?;
    for (i, file) in files.iter().enumerate() {
        image::open(file)?.save(cache.join(format!("pictures/{i}.jpg")))?;
        std::fs::remove_file(file)?;
    }
    for threads in ["1", "2"] {
        let args = ["bench", "data", "pictures", "--size", "32", "--method", "simclr", "--threads", threads, "--count", "60"];
        let found = run_json(cache, &args)?;
        ensure!(found["peer"] == "twinsight" && found["size"] == 32, "{found}");
        // Short runs go on for a second.
        ensure!(found["count"].as_u64().is_some_and(|n| n >= 60), "{found}");
        let share = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
        ensure!((share("decode_share") + share("views_share") - 1.0).abs() < 0.01, "{found}");
        ensure!(found["images_per_s"].as_f64().is_some_and(|v| v > 1.0) && found["views"] == 2, "{found}");
    }
    let sheet = run_json(cache, &["views", "pictures", "--out", "steps.png", "--steps", "--set", "options.views.jpeg_p=0.1"])?;
    // Crop, flip, jitter, grayscale, and those asked for.
    ensure!(sheet["views"].as_u64().is_some_and(|n| n >= 5), "{sheet}");
    ensure!(image::open(cache.join("steps.png"))?.width() > 300);
    let (code, _, stderr) = run(
        cache,
        &[
            "views",
            "pictures",
            "--out",
            "x.png",
            "--set",
            "options.views.posterize_bits=9",
            "--set",
            "options.views.posterize_p=1",
        ],
    )?;
    ensure!(code == 2 && stderr.contains("posterize_bits"), "{stderr}");
    Ok(())
}
