//! What lies beside a file of weights: the `config.json` of timm, transformers or this program, and the `preprocessor_config.json` of
//! transformers, which say what the weights are of and how images become their input.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ImportOptions;
use crate::{Arch, ENCODERS, EncoderSpec, encoder};

/// The longest configuration that is read.
const LONGEST: u64 = 1 << 20;

/// What the files beside a file of weights say.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// The encoder.
    pub encoder: Option<&'static EncoderSpec>,
    /// Attention heads; 0 where nothing is said.
    pub heads: usize,
    /// Side of the images in pixels.
    pub image_size: Option<usize>,
    /// Mean and standard deviation of each channel of values in 0 to 1, with the file that says so.
    pub normalize: Option<(Vec<f32>, Vec<f32>, PathBuf)>,
}

impl Beside {
    /// How weights of kind `spec` are imported by what is said here: heads, where they are others than its own, and the side of the
    /// images where no table of positions tells it.
    pub fn options(&self, spec: &EncoderSpec) -> ImportOptions {
        let plain = ImportOptions::default();
        match spec.arch {
            Arch::ViT(shape) if self.heads == shape.heads => plain,
            Arch::ViT(_) => ImportOptions { heads: self.heads, ..plain },
            _ => ImportOptions { image_size: self.image_size, ..plain },
        }
    }
}

/// Reads what lies beside `weights`, a file (or in it, where it is a folder). What is missing or can't be understood is left open.
pub fn beside(weights: &Path) -> Beside {
    let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(Path::new("")) };
    let read = |name: &str| -> Option<(Value, PathBuf)> {
        let path = folder.join(name);
        let short = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= LONGEST);
        let text = short.then(|| std::fs::read(&path).ok()).flatten()?;
        Some((serde_json::from_slice(&text).ok()?, path))
    };
    let (config, processor) = (read("config.json"), read("preprocessor_config.json"));
    let own = config.as_ref().and_then(|(c, path)| numbers(&c["pretrained_cfg"], "mean", "std", path));
    let own = own.or_else(|| config.as_ref().and_then(|(c, path)| numbers(c, "mean", "std", path)));
    let normalize = own.or_else(|| processor.as_ref().and_then(|(p, path)| numbers(p, "image_mean", "image_std", path)));
    let [config, processor] = [config, processor].map(|file| file.map_or(Value::Null, |(value, _)| value));
    let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let sides = [
        &config["pretrained_cfg"]["input_size"][1],
        &processor["crop_size"]["height"],
        &processor["size"]["height"],
        &config["image_size"],
    ];
    let image_size = sides.iter().find_map(|side| size(side));
    let heads = [&config["num_attention_heads"], &config["model_args"]["num_heads"], &config["encoder_config"]["heads"]];
    let heads = heads.iter().find_map(|v| size(v)).unwrap_or(0);
    Beside { encoder: named(&config), heads, image_size, normalize }
}

/// As many means as deviations, those above 0.
fn numbers(of: &Value, mean: &str, std: &str, path: &Path) -> Option<(Vec<f32>, Vec<f32>, PathBuf)> {
    let list = |key: &str| -> Option<Vec<f32>> { of[key].as_array()?.iter().map(|v| Some(v.as_f64()? as f32)).collect() };
    let (mean, std) = (list(mean)?, list(std)?);
    let sound = !mean.is_empty() && mean.len() == std.len() && std.iter().all(|s| *s > 0.0);
    sound.then(|| (mean, std, path.to_path_buf()))
}

/// The encoder that a configuration is of: by our name, by timm's and torchvision's, or by the sizes in one of transformers'.
fn named(config: &Value) -> Option<&'static EncoderSpec> {
    if let Some(name) = config["twinsight_encoder"].as_str() {
        return encoder(name).ok();
    }
    if let Some(name) = config["architecture"].as_str() {
        let plain = name.split('.').next().unwrap_or(name);
        return encoder(plain.split("_patch").next().unwrap_or(plain)).ok();
    }
    let sizes = |key: &str| -> Option<Vec<usize>> {
        config[key].as_array()?.iter().map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok())).collect()
    };
    let size = |key: &str| config[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let fits = |spec: &&EncoderSpec| match (&spec.arch, config["model_type"].as_str()) {
        (Arch::ViT(shape), Some("vit" | "dinov2" | "dinov2_with_registers")) => {
            shape.backbone.is_none() && size("hidden_size") == Some(shape.dim) && size("num_hidden_layers") == Some(shape.depth)
        }
        (Arch::ConvNext(shape), Some("convnext")) => {
            sizes("hidden_sizes").as_deref() == Some(&shape.dims[..]) && sizes("depths").as_deref() == Some(&shape.depths[..])
        }
        (Arch::ResNet(shape), Some("resnet")) => {
            let bottleneck = config["layer_type"].as_str().unwrap_or("bottleneck") == "bottleneck";
            shape.bottleneck == bottleneck && shape.widen == 1 && sizes("depths").as_deref() == Some(shape.blocks)
        }
        _ => false,
    };
    ENCODERS.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoder_heads_and_normalisation_are_found() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("config.json");
        let of = |text: &str| -> anyhow::Result<Beside> {
            std::fs::write(&config, text)?;
            Ok(beside(&dir.path().join("model.safetensors")))
        };
        for (text, name, heads) in [
            (r#"{"twinsight_encoder":"vit_mini","architecture":"vit_tiny_patch16_224"}"#, "vit_mini", 0),
            (r#"{"architecture":"resnet50.a1_in1k"}"#, "resnet50", 0),
            (r#"{"architecture":"vit_small_patch14_dinov2.lvd142m","model_args":{"num_heads":12}}"#, "vit_small", 12),
            (r#"{"model_type":"dinov2","hidden_size":384,"num_hidden_layers":12,"num_attention_heads":6}"#, "vit_small", 6),
            (r#"{"model_type":"convnext","hidden_sizes":[96,192,384,768],"depths":[3,3,9,3]}"#, "convnext_tiny", 0),
            (r#"{"model_type":"resnet","depths":[3,4,6,3],"layer_type":"basic"}"#, "resnet34", 0),
            (r#"{"model_type":"resnet","depths":[3,4,6,3],"layer_type":"bottleneck"}"#, "resnet50", 0),
        ] {
            let found = of(text)?;
            assert_eq!((found.encoder.map(|e| e.name), found.heads), (Some(name), heads), "{text}");
        }
        assert!(of(r#"{"model_type":"dinov2","hidden_size":1536}"#)?.encoder.is_none());
        assert!(of("{")?.encoder.is_none());
        let sided = of(r#"{"twinsight_encoder":"resnet18","pretrained_cfg":{"input_size":[3,96,96]}}"#)?;
        assert_eq!(sided.options(encoder("resnet18")?).image_size, Some(96));
        assert_eq!(sided.options(encoder("vit_tiny")?).image_size, None);
        std::fs::write(dir.path().join("preprocessor_config.json"), r#"{"image_mean":[0.5],"image_std":[0.25]}"#)?;
        let normalize = |text: &str| -> anyhow::Result<_> { Ok(of(text)?.normalize.map(|(mean, std, _)| (mean, std))) };
        assert_eq!(normalize("{}")?, Some((vec![0.5], vec![0.25])));
        assert_eq!(normalize(r#"{"pretrained_cfg":{"mean":[0.1],"std":[0.2]}}"#)?, Some((vec![0.1], vec![0.2])));
        assert_eq!(normalize(r#"{"pretrained_cfg":{"mean":[0.1],"std":[0]}}"#)?, Some((vec![0.5], vec![0.25])));
        Ok(())
    }
}
