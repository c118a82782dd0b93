//! The main job end to end on real images: train, look at the run folder, evaluate, embed, draw views.

mod common;

use anyhow::{Context, Result, ensure};
use common::{run, run_json};

#[test]
fn training_lifts_knn_above_the_untrained_encoder() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let args = "train --data fashion-mnist-mini --limit 3000 --epochs 4 --recipe demo --batch 64 --out run";
    let result = run_json(cache, &args.split(' ').collect::<Vec<_>>())?;
    let number = |key: &str| result[key].as_f64().with_context(|| format!("{key} in {result}"));
    let (trained, random) = (number("knn_trained")?, number("knn_random")?);
    ensure!(number("knn_pixels")? > 0.6, "{result}");
    ensure!(trained > random + 0.01, "k-NN accuracy is {trained} trained and {random} untrained");
    ensure!(result["measured_on"] == "test", "{result}");

    let folder = cache.join("run");
    for name in [
        "config.toml",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "encoder.safetensors",
        "result.json",
        "report.html",
        "views.png",
    ] {
        ensure!(folder.join(name).is_file(), "{name} is missing in the run folder");
    }
    ensure!(
        std::fs::read_dir(&folder)?.flatten().any(|f| f.file_name().to_string_lossy().starts_with("events.out.tfevents")),
        "no TensorBoard events"
    );
    let mut steps = 0;
    let mut knn = 0;
    for line in std::fs::read_to_string(folder.join("metrics.jsonl"))?.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        match line["event"].as_str() {
            Some("step") => {
                steps += 1;
                ensure!(line["loss"].as_f64().is_some_and(f64::is_finite), "{line}");
                ensure!(line["feature_std"].as_f64().is_some_and(|s| s > 0.05), "{line}");
            }
            Some("knn") => knn += 1,
            _ => {}
        }
    }
    ensure!(steps >= 4 && knn == 4, "{steps} steps and {knn} evaluations were logged");
    let page = std::fs::read_to_string(folder.join("report.html"))?;
    for part in ["Figures", "Curves", "Views", "Map", "Nearest neighbours", "Clusters", "Confusion", "Configuration"] {
        ensure!(page.contains(&format!("<h2>{part}</h2>")), "the report has no {part}");
    }
    ensure!(!page.contains("http://") && !page.contains("https://"), "the report must not reach for the network");

    let again = run_json(cache, &["knn", "run", "--limit", "3000"])?;
    ensure!(again["measured_on"] == "test" && again["knn"].as_f64().is_some_and(|v| v > random), "{again}");

    let embedded = run_json(cache, &["embed", "run", "--test", "--out", "v.npy"])?;
    ensure!(embedded["rows"] == 2000, "{embedded}");
    let npy = std::fs::read(cache.join("v.npy"))?;
    let dim = embedded["dim"].as_u64().context("dim")? as usize;
    ensure!(npy.starts_with(b"\x93NUMPY") && npy.len() > 2000 * dim * 4, "v.npy is {} bytes", npy.len());
    let names = std::fs::read_to_string(cache.join("v.images.csv"))?;
    ensure!(names.lines().count() == 2001 && names.starts_with("image,label"), "v.images.csv: {:?}", names.lines().next());
    run_json(cache, &["embed", "run/encoder.safetensors", "--data", "fashion-mnist-mini", "--test", "--out", "w.csv"])?;
    ensure!(std::fs::read_to_string(cache.join("w.csv"))?.lines().count() == 2001);

    run_json(cache, &["views", "fashion-mnist-mini", "--method", "dino", "--out", "views.png"])?;
    ensure!(image::open(cache.join("views.png"))?.width() > 100);
    Ok(())
}

#[test]
fn every_registry_can_be_listed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (what, name) in [
        ("methods", "simclr"),
        ("methods", "byol"),
        ("methods", "dino"),
        ("encoders", "resnet18"),
        ("encoders", "vit_small"),
        ("datasets", "fashion-mnist-mini"),
        ("recipes", "demo"),
        ("keys", "options.temperature"),
    ] {
        let rows = run_json(dir.path(), &["list", what])?;
        let names: Vec<&str> = rows.as_array().context("a list")?.iter().filter_map(|r| r["name"].as_str()).collect();
        ensure!(names.contains(&name), "{what}: {names:?}");
    }
    for command in [
        "demo",
        "train",
        "resume",
        "data",
        "knn",
        "eval",
        "embed",
        "import",
        "export",
        "attention",
        "info",
        "classify",
        "search",
        "duplicates",
        "cluster",
        "report",
        "views",
        "list",
        "bench",
    ] {
        let (code, text, _) = run(dir.path(), &[command, "--help"])?;
        ensure!(code == 0 && text.contains("Examples:"), "{command} --help has no examples");
    }
    Ok(())
}

#[test]
fn bench_step_prints_the_shared_keys() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for method in ["simclr", "byol", "dino"] {
        let args = [
            "bench",
            "step",
            "--method",
            method,
            "--encoder",
            "resnet_mini",
            "--batch",
            "4",
            "--size",
            "16",
            "--local-size",
            "8",
            "--steps",
            "1",
        ];
        let line = run_json(dir.path(), &args)?;
        for key in [
            "peer",
            "method",
            "encoder",
            "batch",
            "size",
            "dtype",
            "compile",
            "device",
            "images_per_s",
            "step_s",
            "best_step_s",
            "peak_rss_mb",
        ] {
            ensure!(line.get(key).is_some(), "{key} is missing in {line}");
        }
        ensure!(line["images_per_s"].as_f64().is_some_and(|v| v > 0.0), "{line}");
    }
    Ok(())
}
