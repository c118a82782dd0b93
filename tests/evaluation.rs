//! What was learned, told by the program: protocols, few labels, search, duplicates, clusters, reports; and what it says to bad input.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{run, run_json, write_images};

/// Expects exit code 2 and one line on standard error that holds every one of `words`.
fn refused(cache: &Path, args: &[&str], words: &[&str]) -> Result<()> {
    let (code, _, stderr) = run(cache, args)?;
    ensure!(code == 2, "{args:?}: exit code {code}: {stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("skipped ")).collect();
    ensure!(lines.len() == 1, "{args:?}: expected one line, got {stderr}");
    for word in words {
        ensure!(lines[0].contains(word), "{args:?}: `{word}` is missing in: {stderr}");
    }
    Ok(())
}

#[test]
fn an_encoder_is_judged_in_every_way_that_there_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let train = "train --data fashion-mnist-mini --limit 1500 --epochs 2 --recipe demo --batch 64 --set eval.probe_images=16 \
                 --set eval.published=true --set eval.baselines=false --out";
    let train = |out: &'static str| -> Vec<&str> { train.split_whitespace().chain([out]).collect() };
    run_json(cache, &train("a"))?;
    run_json(cache, &[&train("b")[..], &["--seed", "1"]].concat())?;
    let metrics = std::fs::read_to_string(cache.join("a/metrics.jsonl"))?;
    ensure!(metrics.contains("\"probe\"") && metrics.contains("\"published\""), "{metrics}");

    let told = run_json(cache, &["eval", "a", "b", "--shares", "0.1,1", "--seeds", "2"])?;
    let figures = told["runs"][0]["figures"].as_array().context("figures")?;
    for (protocol, count) in [("own", 1), ("lightly", 2), ("dino", 1), ("simclr", 2)] {
        let found: Vec<_> = figures.iter().filter(|f| f["protocol"] == protocol).collect();
        ensure!(found.len() == count, "{protocol}: {told}");
        for figure in found.iter().filter(|f| !f["top1"].is_null()) {
            let (low, top1, high) = (figure["low"].as_f64(), figure["top1"].as_f64(), figure["high"].as_f64());
            ensure!(top1 > Some(0.5) && low <= top1 && top1 <= high && figure["measured_on"] == "test", "{figure}");
        }
    }
    ensure!(told["own_over_runs"]["mean"].as_f64() > Some(0.5), "{told}");
    let tuned = run_json(cache, &["eval", "a", "--protocol", "own", "--fine-tune", "1", "--shares", "0.2", "--epochs", "12"])?;
    let tuned = &tuned["runs"][0]["figures"][1];
    // 48 steps on 300 labels: far above the tenth that chance would give.
    ensure!(tuned["protocol"] == "fine-tuned" && tuned["top1"].as_f64() > Some(0.35), "{tuned}");

    let few = ["classify", "a", "--labels", "fashion-mnist-mini", "--per-class", "10", "--data", "fashion-mnist-mini", "--test"];
    let all = run_json(cache, &few)?;
    let sure = run_json(cache, &[&few[..], &["--abstain", "0.7"]].concat())?;
    ensure!(all["accuracy"].as_f64() > Some(0.4), "{all}");
    ensure!(sure["accuracy_kept"].as_f64() > sure["accuracy"].as_f64() && sure["abstained"].as_u64() > Some(0), "{sure}");

    let clusters = run_json(cache, &["cluster", "a", "--clusters", "10", "--out", "clusters.csv"])?;
    ensure!(clusters["nmi"].as_f64() > Some(0.2), "{clusters}");
    ensure!(
        std::fs::read_to_string(cache.join("clusters.csv"))?.lines().count() == 10_001,
        "one line for each of the data set's images"
    );

    run_json(cache, &["embed", "a", "--out", "v.parquet"])?;
    ensure!(std::fs::read(cache.join("v.parquet"))?.starts_with(b"PAR1"));

    let page = std::fs::read_to_string(cache.join("a/report.html"))?;
    for part in ["Map", "Nearest neighbours", "Clusters", "Confusion", "Machine and cost"] {
        ensure!(page.contains(&format!("<h2>{part}</h2>")), "the report has no {part}");
    }
    std::fs::remove_file(cache.join("a/report.html"))?;
    run_json(cache, &["report", "a"])?;
    ensure!(std::fs::read_to_string(cache.join("a/report.html"))?.len() > page.len() / 2);
    run_json(cache, &["report", "a", "b"])?;
    let page = std::fs::read_to_string(cache.join("comparison.html"))?;
    ensure!(page.contains("<td>seed</td><td>0</td><td>1</td>"), "the settings that differ are not told");
    Ok(())
}

#[test]
fn images_without_labels_are_found_and_bad_input_is_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let files = write_images(&cache.join("pictures"), 24, 20, 18)?;
    std::fs::copy(&files[3], cache.join("pictures/copy.png"))?;
    let train = "train --data pictures --out run --epochs 1 --batch 8 --image-size 16 --encoder resnet_mini";
    run_json(cache, &train.split(' ').collect::<Vec<_>>())?;

    let found = run_json(cache, &["search", "run", "pictures/picture-003.png", "--k", "2", "--out", "found.png"])?;
    let names: Vec<&str> = found["found"].as_array().context("found")?.iter().filter_map(|f| f["image"].as_str()).collect();
    ensure!(names.contains(&"copy.png") && names.contains(&"picture-003.png"), "{found}");
    ensure!(image::open(cache.join("found.png"))?.width() > 200);
    let twice = run_json(cache, &["duplicates", "run", "--similarity", "0.999999"])?;
    let groups = twice["groups"].to_string();
    ensure!(groups.contains("copy.png") && groups.contains("picture-003.png"), "{twice}");

    let csv = |name: &str, text: &str| std::fs::write(cache.join(name), text);
    csv("few.csv", "image,label\npictures/picture-000.png,a\npictures/picture-001.png,b\npictures/picture-002.png,b\n")?;
    let told =
        run_json(cache, &["classify", "run", "--labels", "few.csv", "pictures/picture-004.png", "pictures/picture-000.png"])?;
    ensure!(told["classes"].as_array().is_some_and(|c| c.len() == 2 && c[1]["class"].is_string()), "{told}");

    csv("gone.csv", "pictures/nowhere.png,a\n")?;
    csv("one.csv", "pictures/picture-000.png,a\npictures/picture-001.png,a\n")?;
    let classify = |labels: &'static str| ["classify", "run", "--labels", labels, "pictures/picture-004.png"];
    refused(cache, &classify("gone.csv"), &["gone.csv", "line 1", "nowhere.png"])?;
    refused(cache, &classify("one.csv"), &["one class (a)", "at least two"])?;
    refused(cache, &[&classify("few.csv")[..], &["--k", "9"]].concat(), &["--k 9", "3 labelled images"])?;
    refused(cache, &["classify", "run", "--labels", "few.csv"], &["nothing to classify"])?;
    refused(cache, &["classify", "run", "--labels", "few.csv", "nowhere.png"], &["nowhere.png"])?;
    refused(cache, &[&classify("few.csv")[..], &["--abstain", "7"]].concat(), &["--abstain 7"])?;
    refused(cache, &["search", "run", "nowhere.png"], &["nowhere.png"])?;
    refused(cache, &["search", "run", "pictures/picture-003.png", "--k", "99"], &["--k 99", "25 images"])?;
    refused(cache, &["duplicates", "run", "--similarity", "2"], &["--similarity 2"])?;
    refused(cache, &["cluster", "run", "--clusters", "99"], &["--clusters 99", "25 readable images"])?;
    refused(cache, &["eval", "run"], &["labels of at least 2 classes"])?;
    refused(cache, &["eval", "run", "--protocol", "swav"], &["swav", "lightly"])?;
    refused(cache, &["eval", "run", "--shares", "0"], &["--shares 0"])?;
    refused(cache, &["report", "run", "nowhere"], &["nowhere"])?;
    refused(cache, &["embed", "run", "--out", "v.parket"], &[".parquet, .npy or .csv"])?;
    ensure!(!cache.join("comparison.html").exists(), "a refused command must leave no file");
    Ok(())
}

#[test]
fn a_class_that_no_labelled_image_has_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for class in ["a", "b", "c"] {
        write_images(&cache.join("sorted").join(class), 8, 20, 18)?;
    }
    for class in ["a", "b"] {
        write_images(&cache.join("few").join(class), 3, 20, 18)?;
    }
    let train = "train --data sorted --out run --epochs 1 --batch 8 --image-size 16 --encoder resnet_mini";
    run_json(cache, &train.split(' ').collect::<Vec<_>>())?;
    let (code, stdout, stderr) = run(cache, &["classify", "run", "--labels", "few", "--data", "sorted", "--json"])?;
    ensure!(code == 0 && stderr.contains("class c has no labelled image"), "{code}: {stderr}");
    let line: serde_json::Value = serde_json::from_str(stdout.lines().last().context("a line")?)?;
    ensure!(line["unknown_classes"] == serde_json::json!(["c"]), "{line}");
    refused(cache, &["eval", "run", "--protocol", "lightly"], &["k = 200", "training images"])?;
    Ok(())
}
