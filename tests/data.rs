//! Data as the program sees it: broken files, other sources, the `data` commands, `bench data`.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{run, run_json, twinsight, write_images};
use twinsight_test_support::broken;

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
    // Exit code 1: some can't be read.
    let (code, stdout, stderr) = run(cache, &["data", "check", "pictures", "--json"])?;
    ensure!(code == 1, "{code}: {stderr}");
    let found: serde_json::Value = serde_json::from_str(stdout.lines().last().context("a line")?)?;
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
        (&["data", "split", "pictures", "--out", "split.csv"], "is there already"),
        (&["data", "convert", "pictures", "--size", "8", "--out", "small.safetensors"], "is there already"),
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

#[test]
fn what_is_in_training_and_test_images_is_a_leak() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let at = |name: &str| cache.join("pictures").join(name);
    write_images(&at("train"), 6, 40, 30)?;
    for i in 0..3 {
        let noise =
            image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * x * (i + 2) + y * 31) as u8, (y * y * (5 - i)) as u8, 0]));
        std::fs::create_dir_all(at("test"))?;
        noise.save(at(&format!("test/own-{i}.png")))?;
    }
    std::fs::copy(at("train/picture-001.png"), at("train/copy.png"))?;
    std::fs::copy(at("train/picture-002.png"), at("test/copy.png"))?;
    let found = run_json(cache, &["data", "check", "pictures"])?;
    ensure!(found["exact"] == serde_json::json!([["train: copy.png", "train: picture-001.png"]]), "{found}");
    ensure!(found["leaks"]["exact"] == serde_json::json!([["train: picture-002.png", "test: copy.png"]]), "{found}");
    Ok(())
}

#[test]
fn a_thousand_files_of_which_forty_are_broken_are_trained_on_checked_and_stopped_at() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let wrong = broken::write_folder(&cache.join("pictures/cat"), 40, 500)?;
    write_images(&cache.join("pictures/dog"), 500, 8, 8)?;
    let train = ["train", "--data", "pictures", "--out", "run", "--epochs", "1", "--batch", "64", "--image-size", "8"];
    let quick = ["--encoder", "resnet_mini", "--set", "eval.baselines=false", "--limit", "100"];
    let (code, _, stderr) = run(cache, &[&train[..], &quick].concat())?;
    ensure!(code == 0, "{stderr}");
    let report = std::fs::read_to_string(cache.join("run/report.html"))?;
    // Those that a header betrays are named whatever the limit; of the others those that were among the hundred.
    let named: Vec<&String> = wrong.iter().filter(|name| stderr.contains(&format!("skipped cat/{name}:"))).collect();
    ensure!(named.len() > 20, "{stderr}");
    for name in named {
        ensure!(stderr.matches(&format!("skipped cat/{name}:")).count() == 1, "{name} in {stderr}");
        ensure!(report.matches(&format!("cat/{name}:")).count() == 1, "{name} is not named once in the report");
    }
    let (code, stdout, _) = run(cache, &["data", "check", "pictures", "--json"])?;
    let found: serde_json::Value = serde_json::from_str(stdout.lines().last().context("a line")?)?;
    let bad: Vec<&str> = found["bad_files"].as_array().context("bad files")?.iter().filter_map(|b| b.as_str()).collect();
    ensure!(code == 1 && bad.len() == 40 && found["images"] == 960, "{code}: {found}");
    for name in &wrong {
        let line = bad.iter().find(|b| b.starts_with(&format!("cat/{name}: "))).with_context(|| format!("{name} in {found}"))?;
        ensure!(line.len() > name.len() + 10, "{line} gives no reason");
    }
    for command in
        [&["data", "check", "pictures", "--strict"][..], &["train", "--data", "pictures", "--out", "strict", "--strict"]]
    {
        let (code, _, stderr) = run(cache, command)?;
        ensure!(code == 2 && stderr.lines().count() == 1 && wrong.iter().any(|b| stderr.contains(b.as_str())), "{stderr}");
    }
    Ok(())
}

#[test]
fn folders_of_one_split_and_manifests_are_split_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for class in ["sea", "land"] {
        write_images(&cache.join("pictures/train").join(class), 10, 12, 9)?;
    }
    let split = run_json(cache, &["data", "split", "pictures", "--out", "a.csv", "--test", "0.2"])?;
    ensure!(split["train"] == 16 && split["test"] == 4, "{split}");
    let text = std::fs::read_to_string(cache.join("a.csv"))?;
    ensure!(text.contains("pictures/train/sea/picture-000.png,sea,"), "{text}");
    let rows: Vec<String> = text.lines().map(|l| l.rsplit_once(',').map_or(l, |(row, _)| row).to_string()).collect();
    std::fs::write(cache.join("all.csv"), rows.join("\n") + "\n")?;
    std::fs::create_dir(cache.join("elsewhere"))?;
    let split = run_json(cache, &["data", "split", "all.csv", "--out", "elsewhere/b.csv", "--test", "0.2"])?;
    ensure!(split["train"] == 16 && split["test"] == 4, "{split}");
    for name in ["a.csv", "elsewhere/b.csv"] {
        let info = run_json(cache, &["data", "info", name])?;
        ensure!(info["train"] == 16 && info["test"] == 4 && info["classes"]["sea"] == 8, "{name}: {info}");
    }
    Ok(())
}

#[test]
fn views_are_drawn_of_any_source_past_broken_images_and_of_every_kind_of_view() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    for source in
        ["manifest/all.csv", "webdataset/train-000000.tar", "npz/colour.npz", "parquet/plain.parquet", "kinds/plain.jpg"]
    {
        let sheet = run_json(cache, &["views", &fixture(source), "--out", "x.png", "--count", "2", "--draws", "1"])?;
        ensure!(sheet["images"].as_u64().is_some_and(|n| n >= 1), "{source}: {sheet}");
    }
    let files = write_images(&cache.join("pictures"), 6, 40, 30)?;
    // Whole at its beginning: found when it is read.
    let whole = std::fs::read(&files[0])?;
    std::fs::write(&files[0], &whole[..whole.len() - 30])?;
    let sheet = run_json(cache, &["views", "pictures", "--out", "y.png", "--count", "3"])?;
    ensure!(sheet["images"] == 3, "{sheet}");
    let (code, _, stderr) = run(cache, &["views", "pictures", "--out", "y.png", "--count", "3"])?;
    ensure!(code == 0 && stderr.contains("skipped picture-000.png"), "{stderr}");
    let steps = run_json(cache, &["views", "pictures", "--method", "dino", "--out", "steps.png", "--steps"])?;
    let groups: Vec<&str> = steps["groups"].as_array().context("groups")?.iter().filter_map(|g| g.as_str()).collect();
    // Two kinds of crops; solarising is a step of the second view alone.
    ensure!(groups.iter().filter(|g| **g == "RandomResizedCrop").count() == 2 && groups.contains(&"Solarize"), "{steps}");
    Ok(())
}

/// A file of numpy's: images of 16 bits and labels.
fn write_npz(path: &Path, axes: [usize; 4]) -> Result<()> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path)?);
    let images: Vec<u8> = (0..axes.iter().product::<usize>()).flat_map(|i| ((i * 7919 % 60_013) as u16).to_le_bytes()).collect();
    let labels: Vec<u8> = (0..axes[0]).map(|i| (i % 2) as u8).collect();
    let [n, h, w, c] = axes;
    for (name, kind, shape, raw) in
        [("train_images", "<u2", format!("{n}, {h}, {w}, {c}"), images), ("train_labels", "|u1", format!("{n},"), labels)]
    {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default())?;
        let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}\n");
        zip.write_all(b"\x93NUMPY\x01\0")?;
        zip.write_all(&(text.len() as u16).to_le_bytes())?;
        zip.write_all(&[text.as_bytes(), &raw].concat())?;
    }
    zip.finish()?;
    Ok(())
}

#[test]
fn images_of_four_and_five_channels_are_trained_on_and_embedded() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_npz(&cache.join("four.npz"), [24, 10, 12, 4])?;
    std::fs::create_dir(cache.join("five"))?;
    for i in 0..24_u32 {
        let samples: Vec<u16> = (0..12 * 10 * 5).map(|p: u32| ((p * 101 + i * 2503) % 60_000) as u16).collect();
        let raw = twinsight_test_support::tiff::bands((12, 10), 5, &samples)?;
        std::fs::write(cache.join(format!("five/{i:02}.tif")), raw)?;
    }
    for (data, channels) in [("four.npz", 4), ("five", 5)] {
        let info = run_json(cache, &["data", "info", data])?;
        ensure!(info["channels"] == channels && info["train"] == 24, "{info}");
        let out = format!("run-{channels}");
        let (code, _, stderr) = run(cache, &[&["train", "--data", data, "--out", &out], QUICK].concat())?;
        ensure!(code == 0, "{data}: {stderr}");
        let config = std::fs::read_to_string(cache.join(&out).join("config.toml"))?;
        ensure!(config.contains("gray_p = 0.0") && cache.join(&out).join("report.html").exists(), "{config}");
        let vectors = format!("{channels}.csv");
        let embedded = run_json(cache, &["embed", &out, "--data", data, "--out", &vectors])?;
        ensure!(std::fs::read_to_string(cache.join(&vectors))?.lines().count() == 25, "{embedded}");
        let sheet = run_json(cache, &["views", data, "--out", "views.png"])?;
        ensure!(sheet["images"] == 4, "{sheet}");
        // What was asked for by name and can't be is refused before anything begins.
        let hue = ["train", "--data", data, "--out", "no", "--set", "options.views.jitter_hue=0.3"];
        let (code, _, stderr) = run(cache, &[&hue[..], QUICK].concat())?;
        ensure!(code == 2 && stderr.contains("jitter_hue") && !cache.join("no").exists(), "{stderr}");
    }
    // Loose files of bands are classified in all of them; a picture among them is named.
    let table = "image,label\nfive/00.tif,a\nfive/01.tif,a\nfive/20.tif,b\nfive/21.tif,b\n";
    std::fs::write(cache.join("few.csv"), table)?;
    image::RgbImage::new(12, 10).save(cache.join("picture.png"))?;
    let few = ["classify", "run-5", "--labels", "few.csv", "five/02.tif", "five/22.tif", "picture.png"];
    let (code, stdout, stderr) = run(cache, &few)?;
    ensure!(code != 2 && stdout.contains("five/02.tif") && stdout.contains("five/22.tif"), "{code}: {stdout} {stderr}");
    ensure!(format!("{stdout}{stderr}").contains("files of 5 bands are expected here"), "{stdout} {stderr}");
    let (code, stdout, stderr) = run(cache, &["search", "run-5", "five/03.tif", "--data", "five"])?;
    ensure!(code == 0 && stdout.contains("03.tif"), "{stdout} {stderr}");
    let packed = run_json(cache, &["data", "convert", "five", "--size", "10", "--out", "five.safetensors"])?;
    ensure!(packed["images"] == 24, "{packed}");
    let info = run_json(cache, &["data", "info", "five.safetensors"])?;
    ensure!(info["channels"] == 5 && info["side"] == serde_json::json!([10, 10]), "{info}");
    // An encoder of four channels looks at no five.
    let (code, _, stderr) = run(cache, &["embed", "run-4", "--data", "five", "--out", "x.csv"])?;
    ensure!(code == 2 && stderr.contains("5 channels"), "{stderr}");
    Ok(())
}

#[test]
fn levels_of_twelve_bits_are_stretched_and_every_command_on_the_run_does_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    std::fs::create_dir(cache.join("dark"))?;
    for i in 0..24_u32 {
        let level = |x: u32, y: u32| image::Luma([((x * 97 + y * 211 + i * 457) % 4096) as u16]);
        image::ImageBuffer::from_fn(20, 18, level).save(cache.join(format!("dark/{i:02}.png")))?;
    }
    let train = |out: &str, levels: &str| {
        let set = format!("data.levels={levels}");
        run(cache, &[&["train", "--data", "dark", "--out", out, "--set", &set], QUICK].concat())
    };
    let (code, _, stderr) = train("run", "percentile:0.5:99.5")?;
    ensure!(code == 0, "{stderr}");
    let config = std::fs::read_to_string(cache.join("run/config.toml"))?;
    ensure!(config.contains("levels = \"range:") && !config.contains("percentile"), "{config}");
    // An image finds itself: a loose file, and files elsewhere, become what they are in the run. Its encoder's file knows as much.
    std::fs::create_dir(cache.join("elsewhere"))?;
    for i in 0..24 {
        std::fs::copy(cache.join(format!("dark/{i:02}.png")), cache.join(format!("elsewhere/{i:02}.png")))?;
    }
    for encoder in ["run", "run/encoder.safetensors"] {
        let found = run_json(cache, &["search", encoder, "dark/07.png", "--data", "elsewhere", "--k", "1"])?;
        ensure!(found["found"][0]["image"] == "07.png", "{encoder}: {found}");
        ensure!(found["found"][0]["similarity"].as_f64().is_some_and(|s| s > 0.9999), "{encoder}: {found}");
    }
    let vectors = |data: &str, out: &str| -> Result<String> {
        run_json(cache, &["embed", "run", "--data", data, "--out", out])?;
        Ok(std::fs::read_to_string(cache.join(out))?)
    };
    ensure!(vectors("dark", "a.csv")? == vectors("elsewhere", "b.csv")?, "the same files elsewhere have other vectors");
    ensure!(run_json(cache, &["views", "dark", "--out", "v.png", "--set", "data.levels=percentile:1:99"])?["images"] == 4);
    for (levels, word) in [
        ("range:9:3", "LOW must be below HIGH"),
        ("range:0:70000", "70000 is above 65535"),
        ("percentile:x:9", "`x` is no number"),
    ] {
        let (code, stdout, stderr) = train("no", levels)?;
        ensure!(code == 2 && stdout.is_empty() && !cache.join("no").exists(), "{levels}: {stdout} {stderr}");
        ensure!(stderr.contains("data.levels") && stderr.contains(word) && stderr.lines().count() == 1, "{levels}: {stderr}");
    }
    let (code, stdout, _) = run(cache, &["list", "keys"])?;
    ensure!(code == 0 && stdout.lines().any(|l| l.contains("data.levels") && l.contains("percentile:LOW:HIGH")), "{stdout}");
    Ok(())
}

#[cfg(feature = "download")]
#[test]
fn downloads_go_through_the_proxy_of_the_environment() -> Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let dir = tempfile::tempdir()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let proxy = format!("http://{}", listener.local_addr()?);
    let asked = std::thread::spawn(move || -> std::io::Result<String> {
        let (mut stream, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")?;
        Ok(line)
    });
    let mut command = twinsight(dir.path());
    for name in ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    let output = command.env("HTTPS_PROXY", proxy).args(["data", "fetch", "kmnist"]).output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2) && stderr.contains("codh.rois.ac.jp"), "{stderr}");
    let line = asked.join().map_err(|_| anyhow::anyhow!("the proxy panicked"))??;
    ensure!(line.starts_with("CONNECT codh.rois.ac.jp:443"), "{line}");
    Ok(())
}
