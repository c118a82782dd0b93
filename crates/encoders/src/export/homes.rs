//! What each home calls an encoder: its `config.json`, its words for loading it, and what it cannot hold.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use twinsight_nn::NormKind;

use super::{Export, Format, is_vit, like_dinov2, shorter_side};
use crate::{Arch, EncoderConfig, Error, Ffn, Result, Stem};

/// An encoder as a home has it.
pub(super) struct Home {
    /// The layout of its names.
    pub layout: &'static str,
    /// `config.json`.
    pub config: Value,
    /// `preprocessor_config.json`, where the home has one.
    pub processor: Option<Value>,
    /// A few lines of Python that load it.
    pub python: String,
    /// Tensors that only the home has.
    pub extra: BTreeMap<String, Tensor>,
    /// Whether class token and registers have rows in the table of positions.
    class_position: bool,
    /// Whether factors of branches are written where the encoder has none, as ones.
    scales: Option<(usize, usize)>,
}

impl Home {
    /// The tensors with tokens as the home wants them.
    pub fn tokens(&self, tensors: &BTreeMap<String, Tensor>, config: &EncoderConfig) -> Result<BTreeMap<String, Tensor>> {
        let mut all = tensors.clone();
        if self.class_position && config.registers > 0 {
            // Our class token has no position then: a row of zeros.
            if let Some(table) = all.get("pos_embed") {
                let row = table.narrow(1, 0, 1)?.zeros_like()?;
                let table = Tensor::cat(&[&row, table], 1)?;
                all.insert("pos_embed".into(), table);
            }
        }
        if let Some((depth, dim)) = self.scales {
            for i in 0..depth {
                for scale in ["ls1", "ls2"] {
                    let name = format!("blocks.{i}.{scale}.gamma");
                    if let std::collections::btree_map::Entry::Vacant(place) = all.entry(name) {
                        place.insert(Tensor::ones(dim, DType::F32, &Device::Cpu)?);
                    }
                }
            }
        }
        Ok(all)
    }
}

/// The numbers of an encoder's vector.
pub(super) fn dim(arch: &Arch) -> usize {
    match arch {
        Arch::ResNet(shape) => (shape.width << (shape.blocks.len() - 1)) * if shape.bottleneck { 4 } else { 1 },
        Arch::ConvNext(shape) => shape.dims[3],
        Arch::ViT(shape) => shape.dim,
    }
}

/// How `export` looks in `format`.
///
/// # Errors
/// A home that can't hold it.
pub(super) fn home(export: &Export<'_>, format: Format) -> Result<Home> {
    let home = match format {
        Format::Safetensors | Format::Onnx => own(export, format),
        Format::Timm => timm(export)?,
        Format::Torchvision => torchvision(export)?,
        Format::Transformers => transformers(export)?,
    };
    Ok(home)
}

fn plain(layout: &'static str, config: Value, python: String) -> Home {
    Home { layout, config, processor: None, python, extra: BTreeMap::new(), class_position: false, scales: None }
}

fn refuse(export: &Export<'_>, home: &str, what: &str) -> Error {
    Error::Unsupported(format!(
        "{home} has no {} with {what}; --format safetensors and --format onnx hold every encoder",
        export.spec.name
    ))
}

/// How an image becomes the encoder's input, in timm's words.
fn input(export: &Export<'_>) -> Value {
    let (config, p) = (export.config, export.provenance);
    let side = config.image_size;
    json!({
        "input_size": [config.channels, side, side], "mean": p.mean, "std": p.std, "interpolation": "bilinear",
        "crop_pct": crop_share(side), "crop_mode": "center",
    })
}

/// The part of a resized image's shorter side that is kept, such that `floor(side / part)` (timm's rule) is [`shorter_side`]: 7/8
/// where that gives it, else the nearest number of four decimals that does.
fn crop_share(side: usize) -> f64 {
    let shorter = shorter_side(side);
    if shorter == side {
        return 1.0;
    }
    let gives = |part: f64| (side as f64 / part).floor() as usize == shorter;
    if gives(0.875) { 0.875 } else { (side as f64 / (shorter as f64 + 0.5) * 1e4).round() / 1e4 }
}

fn own(export: &Export<'_>, format: Format) -> Home {
    let config = json!({
        "model_type": "twinsight",
        "architecture": export.spec.name,
        "twinsight_encoder": export.spec.name,
        "num_features": dim(&export.spec.arch),
        "encoder_config": export.config,
        "pretrained_cfg": input(export),
    });
    let side = export.config.image_size;
    let channels = export.config.channels;
    let python = match format {
        Format::Onnx => format!(
            "import numpy, onnxruntime\n\nsession = onnxruntime.InferenceSession(\"model.onnx\")\n\
             images = numpy.zeros((8, {channels}, {side}, {side}), \"float32\")  # normalised as config.json says\n\
             features = session.run([\"{}\"], {{\"{}\": images}})[0]",
            super::OUTPUT,
            super::INPUT
        ),
        _ => "from safetensors.torch import load_file\n\nweights = load_file(\"model.safetensors\")".to_string(),
    };
    plain("timm", config, python)
}

fn timm(export: &Export<'_>) -> Result<Home> {
    let config = export.config;
    let (mut args, mut more) = (json!({}), String::new());
    let refuse = |what: &str| refuse(export, "timm", what);
    let (name, layout, pool) = match export.spec.arch {
        Arch::ResNet(shape) => {
            if shape.blocks.len() != 4 {
                return Err(refuse("three stages"));
            }
            if config.norm != NormKind::Batch {
                return Err(refuse("group norm"));
            }
            more = small_stem(config);
            (export.spec.name.to_string(), "torchvision", "avg")
        }
        Arch::ConvNext(_) => {
            args["patch_size"] = json!(crate::ConvNext::stem_patch(config));
            (export.spec.name.to_string(), "timm", "avg")
        }
        Arch::ViT(shape) => {
            args = json!({"img_size": config.image_size, "patch_size": config.resolved_patch(), "depth": shape.depth});
            if config.registers > 0 {
                args["reg_tokens"] = json!(config.registers);
                args["no_embed_class"] = json!(true);
            }
            let heads = shape.heads_of(config)?;
            if config.ffn == Ffn::SwiGlu {
                // timm knows layers by name only in its own networks, so that one with gated layers is cut down to size.
                let width = 2 * crate::vit::swiglu_width(shape.dim);
                args["mlp_ratio"] = json!((width as f64 + 0.5) / shape.dim as f64);
                args["embed_dim"] = json!(shape.dim);
                args["num_heads"] = json!(heads);
                args["init_values"] = if config.layer_scale > 0.0 { json!(config.layer_scale) } else { Value::Null };
                ("vit_giant_patch14_dinov2".into(), "timm", "token")
            } else {
                if config.layer_scale > 0.0 {
                    args["init_values"] = json!(config.layer_scale);
                }
                if heads != shape.heads {
                    args["num_heads"] = json!(heads);
                }
                let base = if export.spec.name == "vit_mini" { "vit_tiny" } else { export.spec.name };
                (format!("{base}_patch16_224"), "timm", "token")
            }
        }
    };
    if config.channels != 3 {
        args["in_chans"] = json!(config.channels);
    }
    let mut pretrained = input(export);
    pretrained["num_classes"] = json!(0);
    let arguments: String = args.as_object().into_iter().flatten().map(|(k, v)| format!(", {k}={}", python_value(v))).collect();
    let value = json!({
        "architecture": name, "twinsight_encoder": export.spec.name, "num_classes": 0, "num_features": dim(&export.spec.arch), "global_pool": pool, "model_args": args,
        "pretrained_cfg": pretrained,
    });
    let python = format!(
        "import timm\nfrom safetensors.torch import load_file\n\nmodel = timm.create_model(\"{name}\", num_classes=0{arguments})\n\
         {more}model.load_state_dict(load_file(\"model.safetensors\"), strict=True)\nmodel.eval()"
    );
    Ok(plain(layout, value, python))
}

fn python_value(value: &Value) -> String {
    match value {
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Null => "None".into(),
        other => other.to_string(),
    }
}

/// What makes the stem of a torchvision network the one for small images.
fn small_stem(config: &EncoderConfig) -> String {
    match config.resolved_stem() {
        Stem::Cifar => format!(
            "model.conv1, model.maxpool = torch.nn.Conv2d({}, 64, 3, 1, 1, bias=False), torch.nn.Identity()\n",
            config.channels
        ),
        _ if config.channels != 3 => format!("model.conv1 = torch.nn.Conv2d({}, 64, 7, 2, 3, bias=False)\n", config.channels),
        _ => String::new(),
    }
}

fn torchvision(export: &Export<'_>) -> Result<Home> {
    let config = export.config;
    let refuse = |what: &str| refuse(export, "torchvision", what);
    let value = json!({
        "architecture": export.spec.name, "twinsight_encoder": export.spec.name, "num_features": dim(&export.spec.arch),
        "num_classes": 0, "pretrained_cfg": input(export),
    });
    let load = "model.load_state_dict(load_file(\"model.safetensors\"), strict=True)\nmodel.eval()";
    let head = "import torch, torchvision\nfrom safetensors.torch import load_file\n\n";
    let python = match export.spec.arch {
        Arch::ResNet(shape) => {
            if shape.blocks.len() != 4 {
                return Err(refuse("three stages"));
            }
            let norm = if config.norm == NormKind::Group { "norm_layer=lambda c: torch.nn.GroupNorm(32, c)" } else { "" };
            format!(
                "{head}model = torchvision.models.{}({norm})\nmodel.fc = torch.nn.Identity()\n{}{load}",
                export.spec.name,
                small_stem(config)
            )
        }
        Arch::ConvNext(shape) => {
            if crate::ConvNext::stem_patch(config) != 4 || config.channels != 3 {
                return Err(refuse("patches of other than 4 pixels or other than 3 channels"));
            }
            let next = shape.dims.iter().skip(1).map(usize::to_string).chain(["None".to_string()]);
            let stages: Vec<String> =
                shape.dims.iter().zip(next).zip(shape.depths).map(|((d, n), depth)| format!("C({d}, {n}, {depth})")).collect();
            format!(
                "{head}C = torchvision.models.convnext.CNBlockConfig\nmodel = torchvision.models.ConvNeXt([{}])\n\
                 model.classifier[2] = torch.nn.Identity()\n{load}",
                stages.join(", ")
            )
        }
        Arch::ViT(shape) => {
            if like_dinov2(config) || config.channels != 3 {
                return Err(refuse("registers, factors of branches, gated layers or other than 3 channels"));
            }
            format!(
                "{head}model = torchvision.models.VisionTransformer(image_size={}, patch_size={}, num_layers={}, num_heads={}, \
                 hidden_dim={}, mlp_dim={})\nmodel.heads = torch.nn.Identity()\n{load}",
                config.image_size,
                config.resolved_patch(),
                shape.depth,
                shape.heads_of(config)?,
                shape.dim,
                4 * shape.dim
            )
        }
    };
    Ok(Home { class_position: true, ..plain("torchvision", value, python) })
}

fn transformers(export: &Export<'_>) -> Result<Home> {
    let config = export.config;
    let refuse = |what: &str| refuse(export, "transformers", what);
    let side = config.image_size;
    let mut extra = BTreeMap::new();
    let (mut layout, mut scales) = ("transformers", None);
    let (class, mut value) = match export.spec.arch {
        Arch::ResNet(shape) => {
            if config.resolved_stem() != Stem::Imagenet
                || config.norm != NormKind::Batch
                || shape.widen != 1
                || shape.blocks.len() != 4
            {
                return Err(refuse("a stem for small images, group norm, wide bottlenecks or three stages"));
            }
            let factor = if shape.bottleneck { 4 } else { 1 };
            let sizes: Vec<usize> = (0..4).map(|i| (shape.width << i) * factor).collect();
            let value = json!({
                "model_type": "resnet", "embedding_size": shape.width, "hidden_sizes": sizes, "depths": shape.blocks,
                "layer_type": if shape.bottleneck { "bottleneck" } else { "basic" }, "hidden_act": "relu",
                "downsample_in_first_stage": false, "downsample_in_bottleneck": false,
            });
            ("ResNetModel", value)
        }
        Arch::ConvNext(shape) => {
            let value = json!({
                "model_type": "convnext", "patch_size": crate::ConvNext::stem_patch(config), "num_stages": 4,
                "hidden_sizes": shape.dims, "depths": shape.depths, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
                "layer_scale_init_value": 1e-6, "drop_path_rate": 0.0, "image_size": side,
            });
            ("ConvNextModel", value)
        }
        Arch::ViT(shape) => {
            let mut value = json!({
                "hidden_size": shape.dim, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads_of(config)?,
                "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": true, "image_size": side,
                "patch_size": config.resolved_patch(), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            });
            if like_dinov2(config) {
                (layout, scales) = ("transformers DINOv2", Some((shape.depth, shape.dim)));
                extra.insert("embeddings.mask_token".to_string(), Tensor::zeros((1, shape.dim), DType::F32, &Device::Cpu)?);
                value["mlp_ratio"] = json!(4);
                value["layerscale_value"] = json!(1.0);
                value["use_swiglu_ffn"] = json!(config.ffn == Ffn::SwiGlu);
                if config.registers > 0 {
                    value["model_type"] = json!("dinov2_with_registers");
                    value["num_register_tokens"] = json!(config.registers);
                    ("Dinov2WithRegistersModel", value)
                } else {
                    value["model_type"] = json!("dinov2");
                    ("Dinov2Model", value)
                }
            } else {
                value["model_type"] = json!("vit");
                value["intermediate_size"] = json!(4 * shape.dim);
                ("ViTModel", value)
            }
        }
    };
    value["architectures"] = json!([class]);
    value["twinsight_encoder"] = json!(export.spec.name);
    value["num_channels"] = json!(config.channels);
    value["torch_dtype"] = json!("float32");
    // The one that resizes the shorter side and takes the middle; 2 is bilinear.
    let processor = json!({
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": config.channels == 3, "do_resize": true,
        "size": {"shortest_edge": shorter_side(side)}, "resample": 2, "do_center_crop": true,
        "crop_size": {"height": side, "width": side}, "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": export.provenance.mean,
        "image_std": export.provenance.std,
    });
    let pooling = if class == "ViTModel" { ", add_pooling_layer=False" } else { "" };
    let vector = if is_vit(&export.spec.arch) { "last_hidden_state[:, 0]" } else { "pooler_output.flatten(1)" };
    let python = format!(
        "from transformers import {class}\n\nmodel = {class}.from_pretrained(\".\"{pooling}).eval()\n\
         features = model(pixel_values=images).{vector}"
    );
    Ok(Home { processor: Some(processor), extra, class_position: true, scales, ..plain(layout, value, python) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timm_resizes_to_the_side_that_evaluation_does() {
        assert_eq!((crop_share(32), crop_share(64), crop_share(224), crop_share(448)), (1.0, 1.0, 0.875, 0.875));
        for side in 1..=4096 {
            let (part, shorter) = (crop_share(side), shorter_side(side));
            assert_eq!((side as f64 / part).floor() as usize, shorter, "{side} px, {part}");
            assert!(shorter == side || (part - 0.875).abs() < 0.02, "{side} px: {part}");
        }
    }
}
