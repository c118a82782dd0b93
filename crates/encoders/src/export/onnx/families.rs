//! The three families as graphs, each from its shape and its weights' names.

use candle_core::Tensor;
use twinsight_nn::NormKind;

use super::graph::{Attribute, Builder};
use super::{INPUT, OUTPUT, TOKENS};
use crate::convnext::ConvNextShape;
use crate::resnet::ResNetShape;
use crate::vit::{ViTShape, swiglu_width};
use crate::{EncoderConfig, Ffn, Result, Stem};

/// A residual network.
pub(super) fn resnet(g: &mut Builder<'_>, shape: &ResNetShape, config: &EncoderConfig) -> Result<()> {
    let imagenet = config.resolved_stem() == Stem::Imagenet;
    let (stride, padding) = if imagenet { (2, 3) } else { (shape.stem_stride as i64, 1) };
    let mut x = g.conv(INPUT, "conv1", stride, padding, 1)?;
    x = norm(g, &x, "bn1", config.norm)?;
    x = g.op("Relu", &[&x], &[]);
    if imagenet {
        let settings = [
            Attribute::Ints("kernel_shape", vec![3; 2]),
            Attribute::Ints("strides", vec![2; 2]),
            Attribute::Ints("pads", vec![1; 4]),
        ];
        x = g.op("MaxPool", &[&x], &settings);
    }
    for (stage, &count) in shape.blocks.iter().enumerate() {
        for index in 0..count {
            let place = format!("layer{}.{index}", stage + 1);
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let strided = if shape.bottleneck { 2 } else { 1 };
            let layers = if shape.bottleneck { 3 } else { 2 };
            let mut y = x.clone();
            for layer in 1..=layers {
                let padding = i64::from(!shape.bottleneck || layer == 2);
                y = g.conv(&y, &format!("{place}.conv{layer}"), if layer == strided { stride } else { 1 }, padding, 1)?;
                y = norm(g, &y, &format!("{place}.bn{layer}"), config.norm)?;
                if layer < layers {
                    y = g.op("Relu", &[&y], &[]);
                }
            }
            if g.has(&format!("{place}.downsample.0.weight")) {
                x = g.conv(&x, &format!("{place}.downsample.0"), stride, 0, 1)?;
                x = norm(g, &x, &format!("{place}.downsample.1"), config.norm)?;
            }
            x = g.op("Add", &[&y, &x], &[]);
            x = g.op("Relu", &[&x], &[]);
        }
    }
    x = g.op("GlobalAveragePool", &[&x], &[]);
    g.op_named("Flatten", &[&x], &[Attribute::Int("axis", 1)], OUTPUT);
    Ok(())
}

/// The norm behind a convolution, (N, C, H, W).
fn norm(g: &mut Builder<'_>, x: &str, name: &str, kind: NormKind) -> Result<String> {
    let epsilon = Attribute::Float("epsilon", 1e-5);
    if kind == NormKind::Batch {
        let names = ["weight", "bias", "running_mean", "running_var"].map(|last| format!("{name}.{last}"));
        let weights = names.iter().map(|n| g.weight(n)).collect::<Result<Vec<_>>>()?;
        return Ok(g.op("BatchNormalization", &[x, &weights[0], &weights[1], &weights[2], &weights[3]], &[epsilon]));
    }
    // Groups of channels as the channels of an instance norm; the scale and shift of each channel after it.
    let weight = g.tensor(&format!("{name}.weight"))?;
    let channels = weight.elem_count();
    let groups = (1..=32.min(channels)).rev().find(|&n| channels.is_multiple_of(n)).unwrap_or(1);
    let ones = Tensor::ones(groups, candle_core::DType::F32, weight.device())?;
    let (one, zero) =
        (g.constant(&format!("ones_{groups}"), &ones)?, g.constant(&format!("zeros_{groups}"), &ones.zeros_like()?)?);
    let shape = g.op("Shape", &[x], &[]);
    let y = g.reshape(x, &[0, groups as i64, -1]);
    let y = g.op("InstanceNormalization", &[&y, &one, &zero], &[epsilon]);
    let y = g.op("Reshape", &[&y, &shape], &[]);
    let scale = g.constant(&format!("{name}.weight.channels"), &weight.reshape((channels, 1, 1))?)?;
    let shift = g.tensor(&format!("{name}.bias"))?.reshape((channels, 1, 1))?;
    let shift = g.constant(&format!("{name}.bias.channels"), &shift)?;
    let y = g.op("Mul", &[&y, &scale], &[]);
    Ok(g.op("Add", &[&y, &shift], &[]))
}

/// A ConvNeXt.
pub(super) fn convnext(g: &mut Builder<'_>, shape: &ConvNextShape, config: &EncoderConfig) -> Result<()> {
    const LAST: [i64; 4] = [0, 2, 3, 1];
    const FIRST: [i64; 4] = [0, 3, 1, 2];
    let over_channels = |g: &mut Builder<'_>, x: &str, name: &str| -> Result<String> {
        let y = g.transpose(x, &LAST);
        let y = g.layer_norm(&y, name)?;
        Ok(g.transpose(&y, &FIRST))
    };
    let mut x = g.conv(INPUT, "stem.0", crate::ConvNext::stem_patch(config) as i64, 0, 1)?;
    x = over_channels(g, &x, "stem.1")?;
    for (stage, (&depth, &dim)) in shape.depths.iter().zip(&shape.dims).enumerate() {
        if stage > 0 {
            x = over_channels(g, &x, &format!("stages.{stage}.downsample.0"))?;
            x = g.conv(&x, &format!("stages.{stage}.downsample.1"), 2, 0, 1)?;
        }
        for index in 0..depth {
            let place = format!("stages.{stage}.blocks.{index}");
            let y = g.conv(&x, &format!("{place}.conv_dw"), 1, 3, dim as i64)?;
            let y = g.transpose(&y, &LAST);
            let y = g.layer_norm(&y, &format!("{place}.norm"))?;
            let y = g.linear(&y, &format!("{place}.mlp.fc1"))?;
            let y = g.gelu(&y)?;
            let y = g.linear(&y, &format!("{place}.mlp.fc2"))?;
            let gamma = g.weight(&format!("{place}.gamma"))?;
            let y = g.op("Mul", &[&y, &gamma], &[]);
            let y = g.transpose(&y, &FIRST);
            x = g.op("Add", &[&x, &y], &[]);
        }
    }
    x = g.op("GlobalAveragePool", &[&x], &[]);
    x = g.op("Flatten", &[&x], &[Attribute::Int("axis", 1)]);
    x = g.layer_norm(&x, "head.norm")?;
    g.op_named("Identity", &[&x], &[], OUTPUT);
    Ok(())
}

/// A vision transformer.
pub(super) fn vit(g: &mut Builder<'_>, shape: &ViTShape, config: &EncoderConfig) -> Result<()> {
    let shape = &ViTShape { heads: shape.heads_of(config)?, ..*shape };
    let dim = shape.dim as i64;
    let patches = g.conv(INPUT, "patch_embed.proj", config.resolved_patch() as i64, 0, 1)?;
    let patches = g.reshape(&patches, &[0, dim, -1]);
    let patches = g.transpose(&patches, &[0, 2, 1]);
    // The tokens before the patches are the same for every image: class token, with its position if it has one, and registers.
    let (mut class, table) = (g.tensor("cls_token")?.clone(), g.tensor("pos_embed")?);
    let mut grid = table.clone();
    if !g.has("reg_token") {
        class = (class + table.narrow(1, 0, 1)?)?;
        grid = table.narrow(1, 1, table.dim(1)? - 1)?.contiguous()?;
    } else {
        class = Tensor::cat(&[&class, g.tensor("reg_token")?], 1)?;
    }
    let (prefix, grid) = (g.constant("prefix", &class)?, g.constant("positions", &grid)?);
    let patches = g.op("Add", &[&patches, &grid], &[]);
    let count = g.op("Shape", &[INPUT], &[Attribute::Int("start", 0), Attribute::Int("end", 1)]);
    let rest = g.numbers(&[class.dim(1)? as i64, dim], false);
    let size = g.op("Concat", &[&count, &rest], &[Attribute::Int("axis", 0)]);
    let prefix = g.op("Expand", &[&prefix, &size], &[]);
    let mut x = g.op("Concat", &[&prefix, &patches], &[Attribute::Int("axis", 1)]);
    for index in 0..shape.depth {
        let place = format!("blocks.{index}");
        let y = g.layer_norm(&x, &format!("{place}.norm1"))?;
        let y = attention(g, &y, &place, shape)?;
        let y = scaled(g, y, &format!("{place}.ls1.gamma"))?;
        x = g.op("Add", &[&x, &y], &[]);
        let y = g.layer_norm(&x, &format!("{place}.norm2"))?;
        let y = g.linear(&y, &format!("{place}.mlp.fc1"))?;
        let y = match config.ffn {
            Ffn::Mlp => g.gelu(&y)?,
            Ffn::SwiGlu => {
                let width = swiglu_width(shape.dim) as i64;
                let (axis, start) = (g.numbers(&[2], false), g.numbers(&[0], false));
                let (middle, end) = (g.numbers(&[width], false), g.numbers(&[2 * width], false));
                let gate = g.op("Slice", &[&y, &start, &middle, &axis], &[]);
                let value = g.op("Slice", &[&y, &middle, &end, &axis], &[]);
                let sigmoid = g.op("Sigmoid", &[&gate], &[]);
                let gate = g.op("Mul", &[&gate, &sigmoid], &[]);
                g.op("Mul", &[&gate, &value], &[])
            }
        };
        let y = g.linear(&y, &format!("{place}.mlp.fc2"))?;
        let y = scaled(g, y, &format!("{place}.ls2.gamma"))?;
        x = g.op("Add", &[&x, &y], &[]);
    }
    x = g.layer_norm(&x, "norm")?;
    g.op_named("Identity", &[&x], &[], TOKENS);
    let first = g.numbers(&[0], true);
    g.op_named("Gather", &[TOKENS, &first], &[Attribute::Int("axis", 1)], OUTPUT);
    Ok(())
}

/// A branch times its factors, if it has any.
fn scaled(g: &mut Builder<'_>, y: String, name: &str) -> Result<String> {
    if !g.has(name) {
        return Ok(y);
    }
    let gamma = g.weight(name)?;
    Ok(g.op("Mul", &[&y, &gamma], &[]))
}

fn attention(g: &mut Builder<'_>, x: &str, place: &str, shape: &ViTShape) -> Result<String> {
    let (heads, each) = (shape.heads as i64, (shape.dim / shape.heads) as i64);
    let qkv = g.linear(x, &format!("{place}.attn.qkv"))?;
    let qkv = g.reshape(&qkv, &[0, -1, 3, heads, each]);
    // (3, N, heads, T, D)
    let qkv = g.transpose(&qkv, &[2, 0, 3, 1, 4]);
    let part = |g: &mut Builder<'_>, i: i64| {
        let index = g.numbers(&[i], true);
        g.op("Gather", &[&qkv, &index], &[Attribute::Int("axis", 0)])
    };
    let (q, k, v) = (part(g, 0), part(g, 1), part(g, 2));
    let scale = g.scalar((each as f32).sqrt().recip())?;
    let q = g.op("Mul", &[&q, &scale], &[]);
    let k = g.transpose(&k, &[0, 1, 3, 2]);
    let weights = g.op("MatMul", &[&q, &k], &[]);
    let weights = g.op("Softmax", &[&weights], &[Attribute::Int("axis", -1)]);
    let y = g.op("MatMul", &[&weights, &v], &[]);
    let y = g.transpose(&y, &[0, 2, 1, 3]);
    let y = g.reshape(&y, &[0, 0, heads * each]);
    g.linear(&y, &format!("{place}.attn.proj"))
}
