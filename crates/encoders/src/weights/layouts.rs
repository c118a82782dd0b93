//! How others call and shape an encoder's parameters: one function a home, from our name (torchvision's for residual networks,
//! timm's for the others) to the places where a file of that home has it. Import tries them all; export takes one.

use crate::{Arch, Ffn};

/// Names and shapes of one home.
pub(crate) struct Layout {
    /// What it is called in reports.
    pub name: &'static str,
    /// Where a parameter is found: alternatives, the one that is written first. Empty for what the home does not have.
    pub sources: fn(&str, Ffn) -> Vec<Source>,
}

/// Where a parameter is found: the tensors that it is made of, one after the other along the first axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Their names.
    pub parts: Vec<String>,
    /// The shape that the home gives it.
    pub form: Form,
}

/// How a home's shape differs from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// It does not.
    Same,
    /// Pointwise layers are linear: (O, I) instead of (O, I, 1, 1).
    Linear,
    /// Factors of channels are (C, 1, 1).
    Channels,
}

/// The layout called `name` of an architecture.
pub(crate) fn layout(arch: &Arch, name: &str) -> Option<&'static Layout> {
    layouts_of(arch).iter().find(|l| l.name == name)
}

/// All layouts of an architecture. Those that are tried first come first.
pub(crate) fn layouts_of(arch: &Arch) -> &'static [Layout] {
    match arch {
        Arch::ResNet(_) => RESNET,
        Arch::ConvNext(_) => CONVNEXT,
        Arch::ViT(_) => VIT,
    }
}

static RESNET: &[Layout] = &[
    Layout { name: "torchvision", sources: |name, _| vec![one(name)] },
    Layout { name: "transformers", sources: |name, _| resnet_transformers(name).map(one).into_iter().collect() },
    // `Sequential(*resnet.children())`, as lightly's examples make it: with ReLU and pooling counted, with one of them, with none.
    Layout { name: "children of a torchvision network", sources: |name, _| vec![one(children(name, 4))] },
    Layout { name: "children of a network without pooling", sources: |name, _| vec![one(children(name, 3))] },
    Layout {
        name: "children of lightly's network",
        sources: |name, _| vec![one(children(name, 2).replace("downsample", "shortcut"))],
    },
    Layout { name: "lightly", sources: |name, _| vec![one(name.replace("downsample", "shortcut"))] },
];

static CONVNEXT: &[Layout] = &[
    Layout { name: "timm", sources: |name, _| vec![one(name)] },
    Layout { name: "torchvision", sources: |name, _| vec![convnext_torchvision(name)] },
    Layout { name: "transformers", sources: |name, _| vec![convnext_transformers(name)] },
    Layout { name: "facebookresearch", sources: |name, _| vec![convnext_original(name)] },
];

static VIT: &[Layout] = &[
    Layout { name: "timm", sources: vit_timm },
    Layout { name: "torchvision", sources: |name, _| vit_torchvision(name).map(one).into_iter().collect() },
    Layout { name: "transformers", sources: vit_transformers },
    Layout { name: "transformers DINOv2", sources: dinov2_transformers },
];

fn one(name: impl Into<String>) -> Source {
    Source { parts: vec![name.into()], form: Form::Same }
}

fn several(prefix: &str, middles: &[&str], last: &str) -> Source {
    Source { parts: middles.iter().map(|m| format!("{prefix}{m}.{last}")).collect(), form: Form::Same }
}

/// `blocks.3.attn.qkv.weight` → (3, `attn.qkv`, `weight`).
fn block(name: &str) -> Option<(&str, &str, &str)> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let (part, last) = rest.rsplit_once('.')?;
    Some((number, part, last))
}

fn children(name: &str, first_stage: usize) -> String {
    if let Some(rest) = name.strip_prefix("conv1.") {
        return format!("0.{rest}");
    }
    if let Some(rest) = name.strip_prefix("bn1.") {
        return format!("1.{rest}");
    }
    let stage = name.strip_prefix("layer").and_then(|rest| rest.split_once('.'));
    match stage.and_then(|(n, rest)| Some((n.parse::<usize>().ok()?, rest))) {
        Some((n, rest)) => format!("{}.{rest}", first_stage + n - 1),
        None => name.to_string(),
    }
}

fn resnet_transformers(name: &str) -> Option<String> {
    let kind = |n: &str| if n.starts_with("conv") { "convolution" } else { "normalization" };
    if let Some((layer @ ("conv1" | "bn1"), last)) = name.split_once('.') {
        return Some(format!("embedder.embedder.{}.{last}", kind(layer)));
    }
    let mut parts = name.splitn(4, '.');
    let stage: usize = parts.next()?.strip_prefix("layer")?.parse().ok()?;
    let (block, layer, last) = (parts.next()?, parts.next()?, parts.next()?);
    let place = format!("encoder.stages.{}.layers.{block}", stage - 1);
    if layer == "downsample" {
        let (which, last) = last.split_once('.')?;
        return Some(format!("{place}.shortcut.{}.{last}", if which == "0" { "convolution" } else { "normalization" }));
    }
    let number: usize = layer.trim_start_matches(char::is_alphabetic).parse().ok()?;
    Some(format!("{place}.layer.{}.{}.{last}", number - 1, kind(layer)))
}

/// The block's number and the rest of a name, or the rest of the downsampling's.
type InStage<'a> = Result<(&'a str, &'a str), &'a str>;

/// The parts of a name inside a ConvNeXt's stages, with the stage's number.
fn convnext_stage(name: &str) -> Option<(usize, InStage<'_>)> {
    let (stage, rest) = name.strip_prefix("stages.")?.split_once('.')?;
    let stage = stage.parse().ok()?;
    if let Some(rest) = rest.strip_prefix("downsample.") {
        return Some((stage, Err(rest)));
    }
    let (block, rest) = rest.strip_prefix("blocks.")?.split_once('.')?;
    Some((stage, Ok((block, rest))))
}

fn convnext_torchvision(name: &str) -> Source {
    if let Some(rest) = name.strip_prefix("stem.") {
        return one(format!("features.0.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("head.norm.") {
        return one(format!("classifier.0.{rest}"));
    }
    match convnext_stage(name) {
        Some((stage, Err(rest))) => one(format!("features.{}.{rest}", 2 * stage)),
        Some((stage, Ok((block, rest)))) => {
            let place = format!("features.{}.{block}", 2 * stage + 1);
            let (layer, form) = match rest {
                "gamma" => ("layer_scale".to_string(), Form::Channels),
                _ => {
                    let (layer, last) = rest.rsplit_once('.').unwrap_or((rest, ""));
                    let (number, form) = match layer {
                        "conv_dw" => (0, Form::Same),
                        "norm" => (2, Form::Same),
                        "mlp.fc1" => (3, Form::Linear),
                        _ => (5, Form::Linear),
                    };
                    (format!("block.{number}.{last}"), form)
                }
            };
            Source { parts: vec![format!("{place}.{layer}")], form }
        }
        None => one(name),
    }
}

fn convnext_transformers(name: &str) -> Source {
    if let Some(rest) = name.strip_prefix("stem.0.") {
        return one(format!("embeddings.patch_embeddings.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("stem.1.") {
        return one(format!("embeddings.layernorm.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("head.norm.") {
        return one(format!("layernorm.{rest}"));
    }
    match convnext_stage(name) {
        Some((stage, Err(rest))) => one(format!("encoder.stages.{stage}.downsampling_layer.{rest}")),
        Some((stage, Ok((block, rest)))) => {
            let (rest, form) = convnext_layer(rest, ["layer_scale_parameter", "layernorm"]);
            Source { parts: vec![format!("encoder.stages.{stage}.layers.{block}.{rest}")], form }
        }
        None => one(name),
    }
}

fn convnext_original(name: &str) -> Source {
    if let Some(rest) = name.strip_prefix("stem.") {
        return one(format!("downsample_layers.0.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("head.norm.") {
        return one(format!("norm.{rest}"));
    }
    match convnext_stage(name) {
        Some((stage, Err(rest))) => one(format!("downsample_layers.{stage}.{rest}")),
        Some((stage, Ok((block, rest)))) => {
            let (rest, form) = convnext_layer(rest, ["gamma", "norm"]);
            Source { parts: vec![format!("stages.{stage}.{block}.{rest}")], form }
        }
        None => one(name),
    }
}

/// A layer of a block where its depthwise layer is `dwconv` and its pointwise ones are `pwconv1` and `pwconv2`.
fn convnext_layer(rest: &str, [gamma, norm]: [&str; 2]) -> (String, Form) {
    if rest == "gamma" {
        return (gamma.to_string(), Form::Same);
    }
    let (layer, last) = rest.rsplit_once('.').unwrap_or((rest, ""));
    match layer {
        "conv_dw" => (format!("dwconv.{last}"), Form::Same),
        "norm" => (format!("{norm}.{last}"), Form::Same),
        "mlp.fc1" => (format!("pwconv1.{last}"), Form::Linear),
        _ => (format!("pwconv2.{last}"), Form::Linear),
    }
}

/// timm's names, and those of the DINO and DINOv2 repositories where they differ.
fn vit_timm(name: &str, _: Ffn) -> Vec<Source> {
    let mut all = vec![one(name)];
    if name == "reg_token" {
        all.push(one("register_tokens"));
    }
    if let Some((number, part, last)) = block(name) {
        match part {
            "mlp.fc1" => all.push(one(format!("blocks.{number}.mlp.w12.{last}"))),
            "mlp.fc2" => all.push(one(format!("blocks.{number}.mlp.w3.{last}"))),
            _ => {}
        }
    }
    all
}

fn vit_torchvision(name: &str) -> Option<String> {
    Some(match name {
        "cls_token" => "class_token".into(),
        "pos_embed" => "encoder.pos_embedding".into(),
        _ if name.starts_with("patch_embed.proj.") => name.replace("patch_embed.proj", "conv_proj"),
        _ if name.starts_with("norm.") => format!("encoder.ln.{}", &name[5..]),
        _ => {
            let (number, part, last) = block(name)?;
            let part = match part {
                "norm1" => format!("ln_1.{last}"),
                "norm2" => format!("ln_2.{last}"),
                "attn.qkv" => format!("self_attention.in_proj_{last}"),
                "attn.proj" => format!("self_attention.out_proj.{last}"),
                "mlp.fc1" => format!("mlp.0.{last}"),
                "mlp.fc2" => format!("mlp.3.{last}"),
                _ => return None,
            };
            format!("encoder.layers.encoder_layer_{number}.{part}")
        }
    })
}

/// What the two vision transformers of transformers share.
fn transformers_ends(name: &str) -> Option<Source> {
    Some(match name {
        "cls_token" => one("embeddings.cls_token"),
        "reg_token" => one("embeddings.register_tokens"),
        "pos_embed" => one("embeddings.position_embeddings"),
        _ if name.starts_with("patch_embed.proj.") => {
            one(name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection"))
        }
        _ if name.starts_with("norm.") => one(name.replace("norm.", "layernorm.")),
        _ => return None,
    })
}

/// The attention as files have it, and as version 5 calls it in memory.
fn transformers_attention(place: &str, part: &str, last: &str) -> Vec<Source> {
    match part {
        "attn.qkv" => vec![
            several(&format!("{place}.attention.attention."), &["query", "key", "value"], last),
            several(&format!("{place}.attention."), &["q_proj", "k_proj", "v_proj"], last),
        ],
        _ => vec![one(format!("{place}.attention.output.dense.{last}")), one(format!("{place}.attention.o_proj.{last}"))],
    }
}

fn vit_transformers(name: &str, _: Ffn) -> Vec<Source> {
    if let Some(source) = transformers_ends(name) {
        return vec![source];
    }
    let Some((number, part, last)) = block(name) else { return Vec::new() };
    let mut all = Vec::new();
    for place in [format!("encoder.layer.{number}"), format!("layers.{number}")] {
        all.extend(match part {
            "norm1" => vec![one(format!("{place}.layernorm_before.{last}"))],
            "norm2" => vec![one(format!("{place}.layernorm_after.{last}"))],
            "attn.qkv" | "attn.proj" => transformers_attention(&place, part, last),
            "mlp.fc1" => vec![one(format!("{place}.intermediate.dense.{last}")), one(format!("{place}.mlp.fc1.{last}"))],
            "mlp.fc2" => vec![one(format!("{place}.output.dense.{last}")), one(format!("{place}.mlp.fc2.{last}"))],
            _ => Vec::new(),
        });
    }
    all
}

fn dinov2_transformers(name: &str, ffn: Ffn) -> Vec<Source> {
    if let Some(source) = transformers_ends(name) {
        return vec![source];
    }
    let Some((number, part, last)) = block(name) else { return Vec::new() };
    let place = format!("encoder.layer.{number}");
    let (plain, gated) = match part {
        "norm1" | "norm2" => return vec![one(format!("{place}.{part}.{last}"))],
        "ls1" => return vec![one(format!("{place}.layer_scale1.lambda1"))],
        "ls2" => return vec![one(format!("{place}.layer_scale2.lambda1"))],
        "attn.qkv" | "attn.proj" => return transformers_attention(&place, part, last),
        "mlp.fc1" => (
            one(format!("{place}.mlp.fc1.{last}")),
            vec![
                one(format!("{place}.mlp.weights_in.{last}")),
                several(&format!("{place}.mlp."), &["gate_proj", "up_proj"], last),
            ],
        ),
        "mlp.fc2" => (
            one(format!("{place}.mlp.fc2.{last}")),
            vec![one(format!("{place}.mlp.weights_out.{last}")), one(format!("{place}.mlp.down_proj.{last}"))],
        ),
        _ => return Vec::new(),
    };
    match ffn {
        Ffn::Mlp => std::iter::once(plain).chain(gated).collect(),
        Ffn::SwiGlu => gated.into_iter().chain([plain]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(arch: &str, home: &str, name: &str) -> (String, Form) {
        let spec = crate::encoder(arch).expect("an encoder");
        let sources = (layout(&spec.arch, home).expect("a layout").sources)(name, Ffn::Mlp);
        (sources[0].parts.join("+"), sources[0].form)
    }

    #[test]
    fn names_are_those_of_their_homes() {
        for (arch, home, ours, theirs, form) in [
            ("resnet18", "transformers", "bn1.weight", "embedder.embedder.normalization.weight", Form::Same),
            (
                "resnet50",
                "transformers",
                "layer2.0.downsample.1.running_var",
                "encoder.stages.1.layers.0.shortcut.normalization.running_var",
                Form::Same,
            ),
            (
                "resnet50",
                "transformers",
                "layer3.4.conv3.weight",
                "encoder.stages.2.layers.4.layer.2.convolution.weight",
                Form::Same,
            ),
            ("resnet18", "children of a torchvision network", "layer1.0.bn1.bias", "4.0.bn1.bias", Form::Same),
            ("convnext_tiny", "torchvision", "stages.1.downsample.0.weight", "features.2.0.weight", Form::Same),
            ("convnext_tiny", "torchvision", "stages.3.blocks.2.gamma", "features.7.2.layer_scale", Form::Channels),
            ("convnext_tiny", "torchvision", "stages.0.blocks.1.mlp.fc1.bias", "features.1.1.block.3.bias", Form::Linear),
            (
                "convnext_atto",
                "transformers",
                "stages.2.blocks.5.mlp.fc2.weight",
                "encoder.stages.2.layers.5.pwconv2.weight",
                Form::Linear,
            ),
            ("convnext_atto", "facebookresearch", "stages.0.blocks.0.conv_dw.bias", "stages.0.0.dwconv.bias", Form::Same),
            (
                "vit_tiny",
                "torchvision",
                "blocks.3.attn.qkv.weight",
                "encoder.layers.encoder_layer_3.self_attention.in_proj_weight",
                Form::Same,
            ),
            (
                "vit_tiny",
                "transformers",
                "blocks.0.attn.qkv.bias",
                "encoder.layer.0.attention.attention.query.bias+encoder.layer.0.attention.attention.key.bias+encoder.layer.0.attention.\
                 attention.value.bias",
                Form::Same,
            ),
            ("vit_tiny", "transformers DINOv2", "blocks.11.ls1.gamma", "encoder.layer.11.layer_scale1.lambda1", Form::Same),
        ] {
            assert_eq!(first(arch, home, ours), (theirs.to_string(), form), "{arch} {home}");
        }
    }
}
