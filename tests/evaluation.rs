//! What was learned, told by the program: protocols, few labels, search, duplicates, clusters, reports; and what it says to bad input.

mod common;

use anyhow::{Context, Result, ensure};
use common::{refused, run, run_json, write_images};

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
    // Both epochs, the last one too.
    for event in ["probe", "published", "knn"] {
        ensure!(metrics.matches(&format!("\"event\":\"{event}\"")).count() == 2, "{event}: {metrics}");
    }
    let result: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(cache.join("a/result.json"))?)?;
    for key in ["knn_low", "knn_high", "knn_top5", "probe", "silhouette"] {
        ensure!(result[key].as_f64().is_some_and(|v| (-1.0..=1.0).contains(&v)), "{key} in {result}");
    }
    ensure!(result["machine"]["threads"].as_u64() > Some(0), "{result}");

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
    let own = figures.iter().find(|f| f["protocol"] == "own").context("own")?;
    ensure!(own["top1"] == result["knn_trained"] && own["confusion"].as_array().is_some_and(|c| c.len() == 10), "{own}");
    let most = figures.iter().find_map(|f| f["maximum_over_epochs"].as_f64()).context("the maximum over epochs")?;
    let last = figures.iter().find(|f| f["protocol"] == "lightly").and_then(|f| f["top1"].as_f64()).context("lightly")?;
    ensure!(most >= last && told["runs"][0]["probe"] == result["probe"], "{told}");
    ensure!(told["runs"][0]["classes"].as_array().is_some_and(|c| c.len() == 10), "{told}");
    // Not two seeds of one experiment: no interval.
    let twice = run_json(cache, &["eval", "a", "a", "--protocol", "own"])?;
    ensure!(twice["own_over_runs"].is_null(), "{twice}");
    let (code, stdout, _) =
        run(cache, &["eval", "a", "a/encoder.safetensors", "--data", "fashion-mnist-mini", "--protocol", "own"])?;
    ensure!(code == 0 && stdout.contains("no interval over the 2 runs"), "{stdout}");
    let tune = "eval a --protocol own --fine-tune 1 --shares 0.1 --epochs 4 --seeds 2";
    let tuned = run_json(cache, &tune.split(' ').collect::<Vec<_>>())?;
    let tuned = &tuned["runs"][0]["figures"][1];
    // On 150 labels.
    ensure!(tuned["protocol"] == "fine-tuned" && tuned["top1"].as_f64() > Some(0.6), "{tuned}");
    ensure!(tuned["interval"].as_str().is_some_and(|i| i.starts_with("2 draws")), "{tuned}");
    ensure!(tuned["per_class"].as_array().is_some_and(|p| p.len() == 10) && tuned["top5"].as_f64() > Some(0.9), "{tuned}");

    let few = ["classify", "a", "--labels", "fashion-mnist-mini", "--per-class", "10", "--data", "fashion-mnist-mini", "--test"];
    let all = run_json(cache, &few)?;
    let sure = run_json(cache, &[&few[..], &["--abstain", "0.7"]].concat())?;
    ensure!(all["accuracy"].as_f64() > Some(0.4), "{all}");
    ensure!(sure["accuracy_kept"].as_f64() > sure["accuracy"].as_f64() && sure["abstained"].as_u64() > Some(0), "{sure}");
    let draws = run_json(cache, &[&few[..], &["--seeds", "3", "--limit", "300", "--abstain", "auto"]].concat())?;
    ensure!(draws["over_draws"]["draws"] == 3 && draws["over_draws"]["high"].as_f64() <= Some(1.0), "{draws}");
    ensure!(draws["coverage"].as_array().is_some_and(|c| c.len() > 1 && c[0]["coverage"] == 1.0), "{draws}");
    let none = run_json(cache, &[&few[..], &["--limit", "50", "--k", "50", "--abstain", "1"]].concat())?;
    ensure!(none["accuracy_kept"].is_null() && none["abstained"] == 50, "{none}");

    let near = run_json(cache, &["knn", "a", "--metric", "euclidean", "--k", "5,20", "--temperature", "0.1,1"])?;
    ensure!(near["knn"].as_f64() > Some(0.5) && near["classes"].as_array().is_some_and(|c| c.len() == 10), "{near}");
    let each = run_json(cache, &["knn", "a", "--leave-one-out", "--k", "1,5", "--temperature", "0.1"])?;
    ensure!(each["leave_one_out"].as_array().is_some_and(|s| s.len() == 2 && s[0]["temperature"] == 0.1), "{each}");
    refused(cache, &["knn", "a", "--k", "5,1400"], &["--k 1400", "1350"])?;

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
    refused(cache, &["report", "a", "b"], &["comparison.html", "--force"])?;
    run_json(cache, &["report", "a", "b", "--force"])?;
    Ok(())
}

#[test]
fn test_images_of_an_unknown_class_count_as_mistakes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for (class, count) in [("train/a", 16), ("train/b", 16), ("test/a", 4), ("test/b", 4), ("test/zebra", 2)] {
        write_images(&cache.join("data").join(class), count, 20, 18)?;
    }
    let train = "train --data data --out run --epochs 1 --batch 8 --image-size 16 --encoder resnet_mini";
    let (code, _, stderr) = run(cache, &train.split(' ').collect::<Vec<_>>())?;
    ensure!(code == 0 && stderr.contains("2 of 10 test images are of classes that no training image has (zebra)"), "{stderr}");
    let (code, stdout, stderr) = run(cache, &["eval", "run", "--protocol", "own,simclr", "--per-class", "--json"])?;
    ensure!(code == 0 && stderr.contains("(zebra)"), "{code}: {stderr}");
    let told: serde_json::Value = serde_json::from_str(stdout.lines().last().context("a line")?)?;
    ensure!(told["runs"][0]["classes"] == serde_json::json!(["a", "b", "zebra"]), "{told}");
    for figure in told["runs"][0]["figures"].as_array().context("figures")? {
        ensure!(
            figure["measured_on"] == "test" && figure["per_class"][2] == 0.0 && figure["top5"].as_f64() <= Some(0.8),
            "{figure}"
        );
    }
    let told = run_json(cache, &["knn", "run"])?;
    ensure!(told["measured_on"] == "test" && told["knn"].as_f64() <= Some(0.8), "{told}");
    let told = run_json(cache, &["classify", "run", "--labels", "data/train", "--data", "data", "--test"])?;
    ensure!(told["unknown_classes"] == serde_json::json!(["zebra"]) && told["labelled_queries"] == 0, "{told}");
    // Without --test the images to classify are the labelled ones: each without its own label.
    let told = run_json(cache, &["classify", "run", "--labels", "data/train", "--data", "data"])?;
    ensure!(told["labelled_queries"] == 32 && told["accuracy"] == told["left_out"], "{told}");
    Ok(())
}

#[test]
fn images_that_are_found_to_be_bad_while_encoding_are_named_counted_and_end_a_strict_run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for class in ["train/a", "train/b", "test/a", "test/b"] {
        let files = write_images(&cache.join("data").join(class), 12, 20, 18)?;
        if class == "test/a" || class == "train/b" {
            let whole = std::fs::read(&files[2])?;
            std::fs::write(&files[2], &whole[..whole.len() / 2])?;
        }
    }
    let train = "train --data data --epochs 1 --batch 8 --image-size 16 --encoder resnet_mini --set data.keep_bytes=0 --out";
    let train = |out: &'static str| -> Vec<&str> { train.split(' ').chain([out]).collect() };
    let (code, stdout, stderr) = run(cache, &[&train("run")[..], &["--json"]].concat())?;
    ensure!(code == 0 && stderr.matches("skipped").count() == 2, "{stderr}");
    ensure!(stderr.contains("a/picture-002.png (test)") && stderr.contains("skipped b/picture-002.png"), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(stdout.lines().last().context("a line")?)?;
    ensure!(result["skipped"] == 2, "{result}");
    let page = std::fs::read_to_string(cache.join("run/report.html"))?;
    ensure!(page.contains("<h2>Left out</h2>") && page.contains("a/picture-002.png (test)"));
    let told = run_json(cache, &["eval", "run", "--protocol", "own"])?;
    ensure!(told["runs"][0]["skipped"] == 2, "{told}");
    ensure!(run_json(cache, &["knn", "run"])?["skipped"] == 2);
    // What was found before a stop is not forgotten.
    let resumed = run_json(cache, &["resume", "run"])?;
    ensure!(resumed["skipped"] == 2, "{resumed}");
    let (code, _, stderr) = run(cache, &[&train("strict")[..], &["--strict"]].concat())?;
    ensure!(code == 2 && stderr.contains("picture-002.png") && stderr.contains("--strict"), "{code}: {stderr}");
    Ok(())
}

#[test]
fn vectors_that_are_not_finite_are_told_with_encoder_and_image() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for class in ["a", "b"] {
        write_images(&cache.join("sorted").join(class), 8, 20, 18)?;
    }
    let train = "train --data sorted --out run --epochs 1 --batch 8 --image-size 16 --encoder resnet_mini";
    run_json(cache, &train.split(' ').collect::<Vec<_>>())?;
    // Finite weights that make sums overflow.
    let file = std::fs::read(cache.join("run/encoder.safetensors"))?;
    let (_, about) = safetensors::SafeTensors::read_metadata(&file)?;
    let tensors = safetensors::SafeTensors::deserialize(&file)?;
    let huge: Vec<u8> = std::iter::repeat_n(3e38f32.to_le_bytes(), 1 << 20).flatten().collect();
    let changed = tensors.tensors().into_iter().map(|(name, view)| {
        let length = view.data().len();
        let data = if name == "layer3.0.conv1.weight" { &huge[..length] } else { view.data() };
        Ok((name, safetensors::tensor::TensorView::new(view.dtype(), view.shape().to_vec(), data)?))
    });
    let changed = changed.collect::<Result<Vec<_>>>()?;
    std::fs::write(cache.join("huge.safetensors"), safetensors::serialize(changed, about.metadata().clone())?)?;
    let words = ["huge.safetensors", "a/picture-000.png", "damaged"];
    let data = ["--data", "sorted"];
    refused(cache, &[&["embed", "huge.safetensors", "--out", "v.npy"][..], &data].concat(), &words)?;
    refused(cache, &[&["knn", "huge.safetensors"][..], &data].concat(), &["huge.safetensors", "picture-00"])?;
    refused(cache, &[&["classify", "huge.safetensors", "--labels", "sorted"][..], &data].concat(), &words)?;
    ensure!(!cache.join("v.npy").exists(), "a refused command must leave no file");
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

    let result: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(cache.join("run/result.json"))?)?;
    for key in ["spread_random", "spread_trained"] {
        ensure!(result[key]["effective_rank"].as_f64() >= Some(1.0) && result[key]["alignment"].is_f64(), "{key}: {result}");
    }
    ensure!(result["rank_trained"].is_f64() && result["clusters"].is_u64() && result["knn_trained"].is_null(), "{result}");
    let page = std::fs::read_to_string(cache.join("run/report.html"))?;
    ensure!(page.contains("effective rank (more directions are used)"), "the report has no figures without labels");
    ensure!(std::fs::read_to_string(cache.join("run/metrics.jsonl"))?.contains("\"event\":\"baselines\""));

    let found = run_json(cache, &["search", "run", "pictures/picture-003.png", "--k", "2", "--out", "found.png"])?;
    let names: Vec<&str> = found["found"].as_array().context("found")?.iter().filter_map(|f| f["image"].as_str()).collect();
    ensure!(names.contains(&"copy.png") && names.contains(&"picture-003.png"), "{found}");
    ensure!(image::open(cache.join("found.png"))?.width() > 200);
    let twice = run_json(cache, &["duplicates", "run", "--similarity", "0.999999"])?;
    let groups = twice["groups"].to_string();
    ensure!(groups.contains("copy.png") && groups.contains("picture-003.png"), "{twice}");
    #[cfg(feature = "approximate")]
    {
        let near = run_json(cache, &["duplicates", "run", "--similarity", "0.999999", "--approximate"])?;
        ensure!(near["groups"] == twice["groups"] && near["recall"].as_f64() > Some(0.9), "{near}");
    }
    for i in 0..5 {
        std::fs::create_dir_all(cache.join("alike"))?;
        std::fs::copy(&files[3], cache.join(format!("alike/{i}.png")))?;
    }
    refused(cache, &["cluster", "run", "--data", "alike"], &["1 different vectors", "5 images"])?;

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
