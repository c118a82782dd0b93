//! Weights in the layouts that people have, built by hand from an encoder's own, come back value by value; files that hold something
//! else stop.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use twinsight_encoders::weights::{ImportOptions, Weights, import, initialise, settings};
use twinsight_encoders::{EncoderConfig, Ffn, encoder};
use twinsight_nn::{Builder, save_tensors};

type Tensors = BTreeMap<String, Tensor>;

/// An encoder's tensors with values of their own, none of which another has.
fn tensors(name: &str, config: &EncoderConfig, seed: u32) -> Result<Tensors> {
    let builder = Builder::zeros(&Device::Cpu);
    (encoder(name)?.build)(config, &builder)?;
    let values = |p: &twinsight_nn::Parameter| twinsight_test_support::procedural(p.name(), p.dims(), seed);
    let all = builder.finish();
    all.iter().map(|p| Ok((p.name().to_string(), Tensor::from_vec(values(p), p.dims(), &Device::Cpu)?))).collect()
}

fn renamed(of: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    of.iter().map(|(k, v)| (name(k), v.clone())).collect()
}

fn below(prefix: &str, of: &Tensors) -> Tensors {
    renamed(of, |name| format!("{prefix}{name}"))
}

fn zeros(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
}

/// Imports a file of `file` as `name` and wants `want`, with `mapped` of the file's tensors.
fn comes_back(dir: &Path, name: &str, file: &Tensors, options: &ImportOptions, want: &Tensors) -> Result<EncoderConfig> {
    let path = dir.join("w.safetensors");
    save_tensors(&path, file, &BTreeMap::new())?;
    let adopted = import(&Weights::open(&path)?, encoder(name)?, options)?;
    let found = adopted.params.snapshot()?;
    ensure!(found.keys().eq(want.keys()), "other names: {:?}", found.keys().find(|k| !want.contains_key(*k)));
    for (key, value) in want {
        ensure!(found[key].dims() == value.dims(), "{key}: shape {:?}, expected {:?}", found[key].dims(), value.dims());
        let apart = (&found[key] - value)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        ensure!(apart == 0.0, "{key} differs by {apart}");
    }
    ensure!(adopted.report.mapped.len() == want.len());
    Ok(adopted.encoder.config().clone())
}

fn refused(file: &Tensors, name: &str, options: &ImportOptions) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("w.safetensors");
    save_tensors(&path, file, &BTreeMap::new())?;
    match import(&Weights::open(&path)?, encoder(name)?, options) {
        Ok(_) => bail!("{name} was accepted"),
        Err(e) => Ok(e.to_string()),
    }
}

#[test]
fn the_right_network_of_a_file_is_taken_whatever_stands_before_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, config) in [
        ("resnet_mini", EncoderConfig { image_size: 32, ..EncoderConfig::default() }),
        ("vit_mini", EncoderConfig { image_size: 32, ..EncoderConfig::default() }),
    ] {
        let (want, other) = (tensors(name, &config, 1)?, tensors(name, &config, 2)?);
        for (right, wrong, beside) in [
            ("", None, "head.weight"),
            ("module.", None, "module.fc.0.weight"),
            ("state_dict.module.encoder_q.", Some("state_dict.module.encoder_k."), "state_dict.module.queue"),
            ("teacher.backbone.", Some("student.module.backbone."), "teacher.head.mlp.0.weight"),
            ("state_dict.backbone.", Some("state_dict.momentum_backbone."), "state_dict.classifier.weight"),
            ("state_dict.backbone.", Some("state_dict.backbone_momentum."), "state_dict.projection_head.layers.0.weight"),
            ("module.base_encoder.", Some("module.momentum_encoder."), "module.base_encoder.head.0.weight"),
            ("online_network.", Some("momentum_network."), "predictor.layers.0.weight"),
        ] {
            let mut file = below(right, &want);
            file.extend(wrong.map(|prefix| below(prefix, &other)).unwrap_or_default());
            file.insert(beside.into(), zeros(&[3, 3])?);
            let place = || format!("{name} below `{right}`");
            comes_back(dir.path(), name, &file, &ImportOptions::default(), &want).with_context(place)?;
            if let Some(prefix) = wrong {
                let options = ImportOptions { prefix: Some(prefix.trim_end_matches('.').into()), ..ImportOptions::default() };
                comes_back(dir.path(), name, &file, &options, &other).with_context(place)?;
            }
        }
    }
    Ok(())
}

#[test]
fn residual_networks_of_every_home_come_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = EncoderConfig { image_size: 224, ..EncoderConfig::default() };
    let want = tensors("resnet18", &config, 3)?;
    let children = |first: usize, name: &str| -> String {
        let stage = name.strip_prefix("layer").and_then(|rest| Some((rest[..1].parse::<usize>().ok()?, &rest[1..])));
        match stage {
            Some((stage, rest)) => format!("{}{rest}", first + stage - 1),
            None => name.replace("conv1.", "0.").replace("bn1.", "1."),
        }
    };
    // `Sequential(*list(torchvision_resnet.children())[:-1])`, and lightly's own network, whose blocks have a shortcut.
    let torchvision = renamed(&want, |n| format!("backbone.{}", children(4, n)));
    let mut whole = renamed(&want, |n| children(4, n));
    whole.extend([("9.weight".to_string(), zeros(&[10, 512])?), ("9.bias".to_string(), zeros(&[10])?)]);
    let lightly = renamed(&want, |n| format!("state_dict.backbone.{}", children(2, n).replace("downsample", "shortcut")));
    let transformers = renamed(&want, |n| {
        let kind = |layer: &str| if layer.starts_with("conv") { "convolution" } else { "normalization" };
        let parts: Vec<&str> = n.split('.').collect();
        match parts[..] {
            [layer, last] => format!("resnet.embedder.embedder.{}.{last}", kind(layer)),
            [stage, block, "downsample", which, last] => format!(
                "resnet.encoder.stages.{}.layers.{block}.shortcut.{}.{last}",
                stage[5..].parse::<usize>().map_or(9, |s| s - 1),
                if which == "0" { "convolution" } else { "normalization" }
            ),
            [stage, block, layer, last] => format!(
                "resnet.encoder.stages.{}.layers.{block}.layer.{}.{}.{last}",
                stage[5..].parse::<usize>().map_or(9, |s| s - 1),
                if layer.ends_with('1') { 0 } else { 1 },
                kind(layer)
            ),
            _ => n.to_string(),
        }
    });
    for (home, file) in [("torchvision", torchvision), ("whole", whole), ("lightly", lightly), ("transformers", transformers)] {
        let found = comes_back(dir.path(), "resnet18", &file, &ImportOptions::default(), &want).context(home)?;
        ensure!(found.image_size == 224 && found.channels == 3, "{found:?}");
    }
    Ok(())
}

/// A vision transformer as the DINOv2 repository trains one: registers, factors, gated layers, blocks in chunks of two, a mask token, and
/// a row of positions for the class token. With what it is for us.
fn dinov2() -> Result<(EncoderConfig, Tensors, Tensors)> {
    let config = EncoderConfig {
        image_size: 32,
        registers: 3,
        layer_scale: 1e-5,
        ffn: Ffn::SwiGlu,
        patch: Some(8),
        ..EncoderConfig::default()
    };
    let mut want = tensors("vit_mini", &config, 4)?;
    let row = Tensor::from_vec(twinsight_test_support::procedural("row", &[1, 1, 192], 9), (1, 1, 192), &Device::Cpu)?;
    let theirs = Tensor::cat(&[&row, &want["pos_embed"]], 1)?;
    let mut file = want.clone();
    file.insert("pos_embed".into(), theirs);
    // Our class token has no position of its own: theirs is added to it.
    want.insert("cls_token".into(), (&want["cls_token"] + &row)?);
    Ok((config, file, want))
}

#[test]
fn dinov2_comes_back_from_both_of_its_homes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (config, file, want) = dinov2()?;
    let mut repository = renamed(&file, |name| {
        let name = name.replace("reg_token", "register_tokens").replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3.");
        match name.strip_prefix("blocks.").and_then(|rest| rest[..1].parse::<usize>().ok()) {
            Some(block) => format!("teacher.backbone.blocks.{}.{}", block / 2, &name["blocks.".len()..]),
            None => format!("teacher.backbone.{name}"),
        }
    });
    repository.insert("teacher.backbone.mask_token".into(), zeros(&[1, 192])?);
    repository.insert("teacher.dino_head.mlp.0.weight".into(), zeros(&[8, 192])?);
    let mut transformers = Tensors::new();
    for (name, value) in &file {
        let ends = [
            ("cls_token", "embeddings.cls_token"),
            ("reg_token", "embeddings.register_tokens"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("norm.", "layernorm."),
            ("blocks.", "encoder.layer."),
            (".ls1.gamma", ".layer_scale1.lambda1"),
            (".ls2.gamma", ".layer_scale2.lambda1"),
            (".attn.proj.", ".attention.output.dense."),
            (".mlp.fc1.", ".mlp.weights_in."),
            (".mlp.fc2.", ".mlp.weights_out."),
        ];
        let mut theirs = name.clone();
        for (ours, word) in ends {
            // The last norm has the blocks' norms' name without a number.
            theirs = if ours == "norm." && !theirs.starts_with(ours) { theirs } else { theirs.replace(ours, word) };
        }
        if theirs.contains(".attn.qkv.") {
            for (part, value) in ["query", "key", "value"].iter().zip(value.chunk(3, 0)?) {
                transformers.insert(theirs.replace("attn.qkv", &format!("attention.attention.{part}")), value.contiguous()?);
            }
        } else {
            transformers.insert(theirs, value.clone());
        }
    }
    transformers.insert("embeddings.mask_token".into(), zeros(&[1, 192])?);
    for (home, file) in [("repository", repository), ("transformers", transformers)] {
        let found = comes_back(dir.path(), "vit_mini", &file, &ImportOptions::default(), &want).context(home)?;
        ensure!(EncoderConfig { stem: config.stem, ..found.clone() } == config, "{home}: {found:?}");
    }
    Ok(())
}

#[test]
fn shards_are_put_together() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = EncoderConfig { image_size: 32, ..EncoderConfig::default() };
    let want = tensors("vit_mini", &config, 5)?;
    let mut map = BTreeMap::new();
    for shard in 0..3 {
        let name = format!("model-0000{}-of-00003.safetensors", shard + 1);
        let part: Tensors = want.iter().skip(shard).step_by(3).map(|(k, v)| (k.clone(), v.clone())).collect();
        map.extend(part.keys().map(|k| (k.clone(), name.clone())));
        save_tensors(&dir.path().join(name), &part, &BTreeMap::new())?;
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string())?;
    let weights = Weights::open(dir.path())?;
    ensure!(weights.files().len() == 4, "{:?}", weights.files());
    let adopted = import(&weights, encoder("vit_mini")?, &ImportOptions::default())?;
    for (name, value) in adopted.params.snapshot()? {
        ensure!(value.flatten_all()?.to_vec1::<f32>()? == want[&name].flatten_all()?.to_vec1::<f32>()?, "{name}");
    }
    Ok(())
}

#[test]
fn a_file_of_another_network_stops_and_says_why() -> Result<()> {
    let config = EncoderConfig { image_size: 32, ..EncoderConfig::default() };
    let (resnet, vit) = (tensors("resnet_mini", &config, 6)?, tensors("vit_mini", &config, 6)?);
    let with = |of: &Tensors, name: &str, shape: &[usize]| -> Result<Tensors> {
        let mut file = of.clone();
        file.insert(name.into(), zeros(shape)?);
        Ok(file)
    };
    let options = ImportOptions::default();
    for (file, name, words) in [
        // Layers inside blocks whose names a head could have too.
        (
            with(&resnet, "layer1.0.se.fc.0.weight", &[4, 64])?,
            "resnet_mini",
            "`layer1.0.se.fc.0.weight` that a resnet_mini does not",
        ),
        (with(&resnet, "layer1.1.conv1.weight", &[64, 64, 3, 3])?, "resnet_mini", "list encoders"),
        (with(&vit, "norm_pre.weight", &[192])?, "vit_mini", "`norm_pre.weight`"),
        (with(&vit, "blocks.4.norm1.weight", &[192])?, "vit_mini", "blocks.4"),
        (with(&vit, "pos_embed", &[1, 65536 * 65536 + 1, 0])?, "vit_mini", "expected (1, rows, 192)"),
        (with(&vit, "patch_embed.proj.weight", &[0, 1024, 4096, 4096])?, "vit_mini", "[0, 1024, 4096, 4096]"),
        (with(&resnet, "conv1.weight", &[0, 3, 3, 3])?, "resnet_mini", "[0, 3, 3, 3]"),
        (vit.clone(), "vit_hybrid_mini", "no home elsewhere"),
        (Tensors::new(), "resnet_mini", "it has no tensors"),
    ] {
        let told = refused(&file, name, &options)?;
        ensure!(told.contains(words) && told.lines().count() == 1, "expected {words}: {told}");
    }
    // What the person says is none of it is left out.
    let dir = tempfile::tempdir()?;
    let skip = ImportOptions { skip: vec!["*.se.fc.*".into()], ..ImportOptions::default() };
    comes_back(dir.path(), "resnet_mini", &with(&resnet, "layer1.0.se.fc.0.weight", &[4, 64])?, &skip, &resnet)?;
    // Many networks in one file: none is chosen.
    let many: Tensors = (0..70).map(|i| Ok((format!("n{i}.conv1.weight"), zeros(&[1])?))).collect::<Result<_>>()?;
    ensure!(refused(&many, "resnet_mini", &options)?.contains("70 networks"));
    Ok(())
}

#[test]
fn registers_that_the_encoder_lacks_stop_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("w.safetensors");
    let (_, file, _) = dinov2()?;
    save_tensors(&path, &file, &BTreeMap::new())?;
    let found = settings(&Weights::open(&path)?, encoder("vit_mini")?, &ImportOptions::default())?;
    ensure!((found.registers, found.ffn, found.patch) == (3, Ffn::SwiGlu, Some(8)), "{found:?}");
    let without = EncoderConfig { registers: 0, ..found };
    let builder = Builder::zeros(&Device::Cpu);
    (encoder("vit_mini")?.build)(&without, &builder)?;
    let params = builder.finish();
    let told = initialise(&Weights::open(&path)?, encoder("vit_mini")?, &without, &params, &ImportOptions::default());
    let told = told.err().context("registers were dropped")?.to_string();
    ensure!(told.contains("network.registers = 3"), "{told}");
    Ok(())
}

#[test]
fn moco_v3_s_small_transformer_has_twelve_heads() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("w.safetensors");
    let spec = encoder("vit_small")?;
    // Only the anchors' shapes are looked at.
    let builder = Builder::zeros(&Device::Cpu);
    (spec.build)(&EncoderConfig { image_size: 32, ..EncoderConfig::default() }, &builder)?;
    let names: Vec<String> = builder.registered().iter().map(|p| p.name().to_string()).collect();
    for (prefix, asked, want) in [
        ("module.base_encoder.", 0, 12),
        ("module.momentum_encoder.", 0, 12),
        ("module.base_encoder.", 6, 6),
        ("teacher.backbone.", 0, 0),
        ("teacher.backbone.", 12, 12),
    ] {
        let mut file: Tensors = names.iter().map(|n| Ok((format!("{prefix}{n}"), zeros(&[1])?))).collect::<Result<_>>()?;
        file.insert(format!("{prefix}patch_embed.proj.weight"), zeros(&[384, 3, 16, 16])?);
        file.insert(format!("{prefix}pos_embed"), zeros(&[1, 197, 384])?);
        save_tensors(&path, &file, &BTreeMap::new())?;
        let options = ImportOptions { heads: asked, ..ImportOptions::default() };
        let found = settings(&Weights::open(&path)?, spec, &options)?;
        ensure!((found.heads, found.patch, found.image_size) == (want, Some(16), 224), "{prefix} {asked}: {found:?}");
    }
    Ok(())
}

/// A text of a pickle.
fn text(of: &str) -> Vec<u8> {
    [b"X", &(of.len() as u32).to_le_bytes()[..], of.as_bytes()].concat()
}

/// A tensor of a pickle, whose numbers are storage `key`.
fn pickled(shape: &[usize], key: usize) -> Vec<u8> {
    let numbers = |of: &[usize]| {
        let inside: Vec<u8> = of.iter().flat_map(|&n| [&b"J"[..], &(n as u32).to_le_bytes()].concat()).collect();
        [&b"("[..], &inside, b"t"].concat()
    };
    let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
    [
        &b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"[..],
        &text(&key.to_string()),
        b"X\x03\x00\x00\x00cpuK\x01tQK\x00",
        &numbers(shape),
        &numbers(&strides),
        b"\x89NtR",
    ]
    .concat()
}

/// A file as Lightning writes it: `state_dict` with `of`, `inside` it, and `beside` it.
fn checkpoint(path: &Path, of: &Tensors, inside: &[u8], beside: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path)?);
    let plain = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut pickle = [&b"\x80\x02}"[..], &text("state_dict"), b"}("].concat();
    for (key, (name, value)) in of.iter().enumerate() {
        pickle.extend([text(name), pickled(value.dims(), key)].concat());
        zip.start_file(format!("m/data/{key}"), plain)?;
        let numbers: Vec<u8> = value.flatten_all()?.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect();
        zip.write_all(&numbers)?;
    }
    pickle.extend([inside, b"us", beside, b"."].concat());
    zip.start_file("m/data.pkl", plain)?;
    zip.write_all(&pickle)?;
    zip.finish()?;
    Ok(())
}

#[test]
fn objects_of_unknown_kinds_matter_only_where_weights_are_looked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("epoch=9.ckpt");
    let config = EncoderConfig { patch: Some(4), ..EncoderConfig::default() };
    let whole = below("backbone.", &tensors("convnext_atto", &config, 3)?);
    // Objects with a tensor and without one.
    let net = |name: &str| [&text(name)[..], b"cmy.models\nNet\n", &pickled(&[1], 0), b"\x85R"].concat();
    let settings = [&text("hyper_parameters")[..], b"comegaconf.dictconfig\nDictConfig\n)\x81}b"].concat();
    let beside = [&settings[..], b"s", &net("callbacks"), b"s"].concat();
    let skip = |pattern: &str| ImportOptions { skip: vec![pattern.into()], ..ImportOptions::default() };
    let plain = ImportOptions::default();
    let take = |options: &ImportOptions| import(&Weights::open(&path)?, encoder("convnext_atto")?, options).map(|a| a.report);

    checkpoint(&path, &whole, b"", &beside)?;
    let report = take(&plain)?;
    ensure!((report.prefix.as_str(), report.mapped.len()) == ("state_dict.backbone.", whole.len()), "{}", report.summary());
    ensure!(report.passed_over == ["my.models.Net", "omegaconf.dictconfig.DictConfig"], "{:?}", report.passed_over);
    ensure!(report.summary().contains("my.models.Net"), "{}", report.summary());
    // Within the encoder's part, where nothing is known of it; known heads and what is left out by name are none.
    checkpoint(&path, &whole, &net("backbone.extra"), &beside)?;
    let told = take(&plain).err().context("an object within")?.to_string();
    ensure!(told.contains("`my.models.Net`") && told.contains("backbone.extra") && told.contains("--skip"), "{told}");
    take(&skip("extra"))?;
    checkpoint(&path, &whole, &net("backbone.fc.weight"), b"")?;
    take(&plain)?;
    // In the place of weights.
    let mut part = whole.clone();
    part.retain(|name, _| !name.starts_with("backbone.stages.1.blocks."));
    checkpoint(&path, &part, &net("backbone.stages.1.blocks"), b"")?;
    let told = take(&plain).err().context("an object instead of blocks")?.to_string();
    ensure!(told.contains("`my.models.Net`") && told.contains("epoch=9.ckpt"), "{told}");
    // In the place of all of them, beside other tensors.
    let others: Tensors = [("step".to_string(), zeros(&[1])?)].into();
    checkpoint(&path, &others, b"", &[&net("model")[..], b"s"].concat())?;
    let told = take(&plain).err().context("an object instead of the network")?.to_string();
    ensure!(told.contains("`my.models.Net`"), "{told}");
    Ok(())
}

/// Written by `make_lightning.py`.
#[test]
fn a_checkpoint_of_lightning_with_settings_of_omegaconf_is_read() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/lightning.ckpt");
    let weights = Weights::open(&path)?;
    let kept: Vec<&str> = weights.names().filter(|name| name.starts_with("state_dict.")).collect();
    ensure!(kept == ["state_dict.backbone.weight", "state_dict.head.weight"], "{kept:?}");
    let momenta = weights.names().filter(|name| name.starts_with("optimizer_states.")).count();
    ensure!(momenta == 2, "{:?}", weights.names().collect::<Vec<_>>());
    let values = weights.read("state_dict.backbone.weight")?.to_vec2::<f32>()?;
    ensure!(values == [[0., 1., 2.], [3., 4., 5.]], "{values:?}");
    let passed_over = weights.passed_over();
    ensure!(passed_over == ["collections.Counter", "omegaconf.dictconfig.DictConfig"], "{passed_over:?}");
    Ok(())
}
