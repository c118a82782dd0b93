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
            let config: serde_json::Value =
                serde_json::from_slice(&std::fs::read(cache.join(format!("{name}-safetensors/config.json")))?)?;
            let list = |key: &str| -> Result<String> {
                let numbers = config["pretrained_cfg"][key].as_array().context("numbers")?;
                Ok(numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            };
            let args = ["import", &out, "--encoder", encoder, "--image-size", "32", "--out", "back.safetensors"];
            let (mean, std) = (format!("--mean={}", list("mean")?), format!("--std={}", list("std")?));
            let report = run_json(cache, &[&args[..], &[&mean, &std]].concat())?;
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
    run_json(cache, &["embed", "vit", "--features", "last-2", "--out", "v.npy"])?;
    let (code, _, told) = run(cache, &["embed", "vit", "--features", "last-9", "--out", "v.npy"])?;
    ensure!(code == 2 && told.contains("1 to 4"), "{told}");
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
        ("old.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "older form"),
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
    Ok(())
}

/// CRC-32 as zip archives have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0_u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 }))
}
