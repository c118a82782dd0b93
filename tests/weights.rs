//! Weights out of a run and in again, and files that must not be believed.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{run, run_json, write_images};

fn metrics(run: &Path) -> Result<Vec<serde_json::Value>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn a_run_that_starts_from_an_exported_encoder_goes_on_where_that_ended() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let settings = ["--data", "fashion-mnist-mini", "--limit", "600", "--epochs", "1", "--batch", "64"];
    for (method, encoder) in [("simclr", "resnet_mini"), ("dino", "vit_mini")] {
        let first = format!("{method}-first");
        let train = |out: &str, more: &[&str]| {
            let args = [&["train", "--method", method, "--out", out, "--on-collapse", "warn"], &settings[..], more].concat();
            run_json(cache, &args)
        };
        let settings_of_small =
            if method == "dino" { &["--set", "options.out_dim=64", "--set", "options.local_views=2"][..] } else { &[] };
        let result = train(&first, &[&["--encoder", encoder], settings_of_small].concat())?;
        let last = result["knn_trained"].as_f64().context("knn_trained")?;
        let folder = format!("{method}-export");
        run_json(cache, &["export", &first, "--format", "safetensors", "--out", &folder])?;
        for init in [first.clone(), format!("{folder}/model.safetensors")] {
            let second = format!("{method}-{}", if init == first { "run" } else { "file" });
            train(&second, &[&["--init", &init], settings_of_small].concat())?;
            let lines = metrics(&cache.join(&second))?;
            let found = lines.iter().find(|l| l["event"] == "baselines").context("no baselines")?["knn_random"].as_f64();
            ensure!(found == Some(last), "{method}: started at {found:?}, the exporter ended at {last}");
            let start = lines.iter().find(|l| l["event"] == "init").context("what was done with the weights is not told")?;
            ensure!(start["from"] == init.as_str() && start["mapped"].as_u64().is_some_and(|n| n > 20), "{start}");
        }
    }
    Ok(())
}

#[test]
fn every_form_is_written_and_reads_back_as_the_same_encoder() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_images(&cache.join("pictures"), 16, 40, 40)?;
    let quick = ["train", "--data", "pictures", "--epochs", "1", "--batch", "8", "--image-size", "32", "--on-collapse", "warn"];
    for (encoder, more) in [
        ("resnet18", &["--set", "network.stem=imagenet"][..]),
        ("convnext_atto", &["--set", "network.patch=4"][..]),
        ("vit_mini", &[][..]),
        ("vit_mini", &["--set", "network.registers=4", "--set", "network.layer_scale=0.1"][..]),
        ("vit_mini", &["--set", "network.ffn=swiglu", "--checkpoint-activations"][..]),
    ] {
        let name = format!("{encoder}-{}", more.concat().len());
        run_json(cache, &[&quick[..], &["--encoder", encoder, "--out", &name], more].concat())?;
        run_json(cache, &["embed", &name, "--out", "own.npy"])?;
        let own = std::fs::read(cache.join("own.npy"))?;
        let mut read = 0;
        for format in ["safetensors", "timm", "torchvision", "transformers", "onnx"] {
            let out = format!("{name}-{format}");
            let (code, _, told) = run(cache, &["export", &name, "--format", format, "--out", &out])?;
            if code != 0 {
                ensure!(code == 2 && told.contains("hold every encoder") && told.lines().count() == 1, "{told}");
                continue;
            }
            ensure!(cache.join(&out).join("README.md").is_file() && cache.join(&out).join("config.json").is_file());
            if format == "onnx" {
                ensure!(std::fs::metadata(cache.join(&out).join("model.onnx"))?.len() > 1_000_000);
                continue;
            }
            let (code, _, told) = run(cache, &["export", &name, "--format", format, "--out", &out])?;
            ensure!(code == 2 && told.contains("--force") && told.contains("is there already"), "{told}");
            run_json(cache, &["export", &name, "--format", format, "--out", &out, "--force"])?;
            // The folder says itself which encoder it holds, and how images are normalised.
            run_json(cache, &["embed", &out, "--data", "pictures", "--out", "folder.npy"])?;
            ensure!(close(&own, &std::fs::read(cache.join("folder.npy"))?), "{encoder} {more:?}: the {format} folder's vectors");
            let args = ["import", &out, "--encoder", encoder, "--image-size", "32", "--out", "back.safetensors", "--force"];
            let report = run_json(cache, &args)?;
            let from = report["normalize"]["from"].as_str().unwrap_or_default();
            ensure!(from.contains(if format == "safetensors" { "the file's own" } else { "config.json" }), "{format}: {from}");
            ensure!(
                report["report"]["skipped"].as_array().is_some_and(|s| s
                    .iter()
                    .all(|n| { n.as_str().is_some_and(|n| n.ends_with("num_batches_tracked") || n.ends_with("mask_token")) })),
                "{report}"
            );
            run_json(cache, &["embed", "back.safetensors", "--data", "pictures", "--out", "back.npy"])?;
            let back = std::fs::read(cache.join("back.npy"))?;
            ensure!(close(&own, &back), "{encoder} {more:?} by way of {format} gives other vectors");
            read += 1;
        }
        ensure!(read >= 3, "{encoder}: only {read} forms");
    }
    Ok(())
}

/// Whether two npy files of vectors hold the same numbers but for rounding.
fn close(a: &[u8], b: &[u8]) -> bool {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes[128.min(bytes.len())..].chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    };
    let (a, b) = (floats(a), floats(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-4 * (1.0 + y.abs()))
}

#[test]
fn attention_info_and_frozen_parts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    let files = write_images(&cache.join("pictures"), 16, 40, 40)?;
    let image = files[0].display().to_string();
    let quick = ["train", "--data", "pictures", "--epochs", "1", "--batch", "8", "--image-size", "32", "--on-collapse", "warn"];
    run_json(cache, &[&quick[..], &["--encoder", "vit_mini", "--out", "vit", "--freeze", "patch_embed.*"]].concat())?;
    let maps = run_json(cache, &["attention", "vit", &image, "--out", "maps"])?;
    ensure!(maps["heads"] == 3, "{maps}");
    for name in ["image", "pca", "attention-mean", "attention-head-0", "attention-head-2"] {
        let picture = image::open(cache.join(format!("maps/{name}.png")))?;
        ensure!(picture.width() == 256 && picture.height() == 256, "{name}: {} px", picture.width());
    }
    let good = std::fs::read(cache.join("vit/encoder.safetensors"))?;
    std::fs::write(cache.join("nan.safetensors"), with_nan(&good, "blocks.2.mlp.fc1.weight")?)?;
    for command in [
        &["embed", "nan.safetensors", "--data", "pictures", "--out", "v.npy"][..],
        &["import", "nan.safetensors", "--encoder", "vit_mini", "--out", "v.safetensors"],
        &["import", "nan.safetensors", "--encoder", "vit_mini", "--image-size", "64", "--out", "v.safetensors"],
        &["train", "--data", "pictures", "--batch", "8", "--init", "nan.safetensors", "--image-size", "32", "--out", "from-nan"],
    ] {
        let (code, _, told) = run(cache, command)?;
        ensure!(code == 2 && told.contains("`blocks.2.mlp.fc1.weight` holds NaN"), "{command:?}: {told}");
    }
    ensure!(!cache.join("from-nan").exists() && !cache.join("v.npy").exists());
    let start = |out: &str| -> Result<Vec<u8>> {
        let bytes = std::fs::read(cache.join(out).join("encoder.safetensors"))?;
        let file = safetensors::SafeTensors::deserialize(&bytes)?;
        Ok(file.tensor("patch_embed.proj.weight")?.data().to_vec())
    };
    run_json(cache, &[&quick[..], &["--encoder", "vit_mini", "--out", "free"]].concat())?;
    let still =
        [&quick[..], &["--encoder", "vit_mini", "--out", "still", "--freeze", "patch_embed.*", "--set", "schedule.lr=0.3"]]
            .concat();
    run_json(cache, &still)?;
    ensure!(start("vit")? == start("still")? && start("vit")? != start("free")?, "what is frozen must stay as it was drawn");
    for name in ["vit", "resnet_mini"] {
        let found = run_json(cache, &["info", name, "--size", "32", "--batch", "16"])?;
        ensure!(found["parameters"].as_u64().is_some_and(|p| p > 1_000_000), "{name}: {found}");
        ensure!(found["multiply_adds"].as_u64().is_some_and(|m| m > 10_000_000), "{found}");
    }
    let (code, _, told) = run(cache, &["info", "resnet19"])?;
    ensure!(code == 2 && told.contains("resnet18"), "{told}");
    for size in ["0", "5000"] {
        let (code, _, told) = run(cache, &["attention", "vit", &image, "--out", "maps", "--size", size])?;
        ensure!(code == 2 && told.contains("1 to 4096"), "{told}");
    }
    run_json(cache, &["embed", "vit", "--features", "last-2+mean", "--out", "v.npy"])?;
    ensure!(run_json(cache, &["search", "vit", &image, "--features", "patch-mean"])?["found"].is_array());
    let (code, _, told) = run(cache, &["embed", "vit", "--features", "last-9", "--out", "v.npy"])?;
    ensure!(code == 2 && told.contains("1 to 4"), "{told}");
    Ok(())
}

#[test]
fn a_start_from_elsewhere_takes_shape_and_normalisation_from_the_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    write_images(&cache.join("pictures"), 16, 100, 100)?;
    let quick = ["train", "--data", "pictures", "--epochs", "1", "--batch", "8", "--on-collapse", "warn"];
    let shape = ["--set", "network.registers=2", "--set", "network.heads=6", "--set", "network.layer_scale=0.1"];
    run_json(cache, &[&quick[..], &["--encoder", "vit_mini", "--image-size", "32", "--out", "small"], &shape].concat())?;
    run_json(cache, &["export", "small", "--format", "timm", "--out", "timm"])?;
    let config = |run: &str| -> Result<toml::Table> {
        Ok(toml::from_str(&std::fs::read_to_string(cache.join(run).join("config.toml"))?)?)
    };
    let first = config("small")?;
    // A run at another size keeps its patches: four pixels, which were left to the size of the images before.
    for (init, out, more) in
        [("small", "own", &[][..]), ("timm", "foreign", &[]), ("timm/model.safetensors", "named", &["--encoder", "vit_mini"])]
    {
        run_json(cache, &[&quick[..], &["--init", init, "--image-size", "48", "--out", out], more].concat())?;
        let second = config(out)?;
        let (network, data) = (&second["network"], &second["data"]);
        ensure!(second["encoder"].as_str() == Some("vit_mini") && network["patch"].as_integer() == Some(4), "{network}");
        ensure!(network["registers"].as_integer() == Some(2) && network["heads"].as_integer() == Some(6), "{network}");
        ensure!(network["layer_scale"].as_float().is_some_and(|s| s > 0.0), "{network}");
        ensure!(data["mean"] == first["data"]["mean"] && data["std"] == first["data"]["std"], "{data}");
        let lines = metrics(&cache.join(out))?;
        let start = lines.iter().find(|l| l["event"] == "init").context("no line about the start")?;
        ensure!(start["resampled"] == serde_json::json!([8, 12]) && start["skipped"] == serde_json::json!([]), "{start}");
    }
    // Registers that the run would not have stop it, and an unnamed encoder is asked for.
    std::fs::create_dir(cache.join("alone"))?;
    std::fs::copy(cache.join("timm/model.safetensors"), cache.join("alone/w.safetensors"))?;
    for (more, word) in
        [(&["--encoder", "vit_mini", "--set", "network.registers=0"][..], "network.registers = 2"), (&[], "--encoder")]
    {
        let args = [&quick[..], &["--init", "alone/w.safetensors", "--image-size", "32", "--out", "none"], more].concat();
        let (code, _, told) = run(cache, &args)?;
        ensure!(code == 2 && told.contains(word) && told.lines().count() == 1, "{told}");
    }
    let (code, _, told) = run(cache, &["embed", "alone/w.safetensors", "--data", "pictures", "--out", "v.npy"])?;
    ensure!(code == 2 && told.contains("twinsight import"), "{told}");
    // Files that are there stay.
    let import = ["import", "alone/w.safetensors", "--encoder", "vit_mini", "--heads", "6"];
    let (code, _, told) = run(cache, &[&import[..], &["--out", "alone/w.safetensors", "--force"]].concat())?;
    ensure!(code == 2 && told.contains("is a file that is read"), "{told}");
    let report = run_json(cache, &[&import[..], &["--out", "imported.safetensors", "--mean=0.1,0.2,0.3"]].concat())?;
    ensure!(report["normalize"]["from"] == "as given" && report["config"]["heads"] == 6, "{report}");
    let (code, _, told) = run(cache, &[&import[..], &["--out", "imported.safetensors"]].concat())?;
    ensure!(code == 2 && told.contains("--force"), "{told}");
    run_json(cache, &["export", "imported.safetensors", "--out", "again"])?;
    ensure!(std::fs::read_to_string(cache.join("again/README.md"))?.contains("imported from elsewhere"));
    ensure!(std::fs::read_to_string(cache.join("timm/README.md"))?.contains("trained without labels"));
    Ok(())
}

#[test]
fn files_that_lie_or_would_run_something_are_refused_in_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cache = dir.path();
    // A zip archive of one stored entry.
    let archive = |pickle: &[u8]| -> Vec<u8> {
        let name = b"m/data.pkl";
        let crc = crc32(pickle);
        let sizes = [crc, pickle.len() as u32, pickle.len() as u32].map(u32::to_le_bytes).concat();
        let local = [&b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0"[..], &sizes, &[name.len() as u8, 0, 0, 0], name, pickle].concat();
        let central =
            [&b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0"[..], &sizes, &[name.len() as u8, 0], &[0; 12], &[0; 4], name].concat();
        let end = [
            &b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..],
            &(central.len() as u32).to_le_bytes(),
            &(local.len() as u32).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        [local, central, end].concat()
    };
    let header = |text: &str, length: u64| [&length.to_le_bytes()[..], text.as_bytes(), &[0; 8]].concat();
    let told = r#"{"conv1.weight":{"dtype":"F32","shape":[64,3,7,7],"data_offsets":[0,99999999]}}"#;
    for (file, bytes, word) in [
        ("run.pth", archive(b"\x80\x02cposix\nsystem\nX\x0d\x00\x00\x00touch ran-here\x85R."), "posix.system"),
        ("cut.pth", b"PK\x03\x04 and no more".to_vec(), "cut.pth"),
        ("old.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "none that PyTorch"),
        ("bomb.pth", bomb(&archive(b"\x80\x02}.")), "compressed"),
        ("huge.safetensors", claims(r#"{"channels":1024,"image_size":65536,"patch":65536}"#, "vit_mini")?, "encoder_config"),
        ("long.safetensors", header(told, u64::MAX), "claims"),
        ("far.safetensors", header(told, told.len() as u64), "damaged"),
        ("text.pth", b"no weights at all".to_vec(), "text.pth"),
        ("none.safetensors", header("{}", 2), "holds no resnet18"),
    ] {
        std::fs::write(cache.join(file), bytes)?;
        let (code, stdout, stderr) = run(cache, &["import", file, "--encoder", "resnet18", "--out", "out.safetensors"])?;
        ensure!(code == 2 && stdout.is_empty() && stderr.lines().count() == 1, "{file}: {code} {stderr}");
        ensure!(stderr.contains(file) && stderr.contains(word), "{file}: {stderr}");
        ensure!(!cache.join("out.safetensors").exists() && !cache.join("ran-here").exists(), "{file} left something");
    }
    // Settings alone take no memory, whatever they claim.
    let large = claims(r#"{"channels":16,"image_size":4096,"patch":128}"#, "vit_large")?;
    std::fs::write(cache.join("large.safetensors"), large)?;
    for (file, word) in [("huge.safetensors", "encoder_config"), ("large.safetensors", "cls_token")] {
        for command in [
            &["info", file][..],
            &["embed", file, "--data", ".", "--out", "v.npy"],
            &["knn", file, "--data", "."],
            &["export", file, "--out", "out"],
            &["train", "--data", ".", "--init", file, "--out", "out"],
        ] {
            let (code, _, stderr) = run(cache, command)?;
            ensure!(code == 2 && stderr.lines().count() == 1, "{command:?}: {code} {stderr}");
            ensure!(command[0] == "train" || stderr.contains(file) && stderr.contains(word), "{command:?}: {stderr}");
        }
    }
    Ok(())
}

/// An archive whose entries claim to be compressed, and to be four gigabytes inside.
fn bomb(archive: &[u8]) -> Vec<u8> {
    let mut bytes = archive.to_vec();
    for at in 0..bytes.len() - 4 {
        let (method, size) = match &bytes[at..at + 4] {
            b"PK\x03\x04" => (8, 22),
            b"PK\x01\x02" => (10, 24),
            _ => continue,
        };
        bytes[at + method] = 8;
        bytes[at + size..at + size + 4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    }
    bytes
}

/// A file without an encoder's tensors whose metadata says that it holds the encoder `name`.
fn claims(config: &str, name: &str) -> Result<Vec<u8>> {
    let words = std::collections::HashMap::from([
        ("encoder".to_string(), name.to_string()),
        ("encoder_config".to_string(), config.to_string()),
    ]);
    let none: Vec<(&str, safetensors::tensor::TensorView<'_>)> = Vec::new();
    Ok(safetensors::serialize(none, Some(words))?)
}

/// A safetensors file with another value, not a number, at the start of the tensor `name`.
fn with_nan(file: &[u8], name: &str) -> Result<Vec<u8>> {
    let (length, header) = safetensors::SafeTensors::read_metadata(file)?;
    let at = 8 + length + header.info(name).context("no such tensor")?.data_offsets.0;
    let mut bytes = file.to_vec();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    Ok(bytes)
}

/// CRC-32 as zip archives have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0_u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 }))
}
