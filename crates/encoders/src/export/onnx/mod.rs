//! Encoders as ONNX graphs of operator set 17, which ONNX Runtime runs. The number of images is free, their size fixed.

mod families;
mod graph;
mod proto;

use std::collections::BTreeMap;

use candle_core::Tensor;
use prost::Message;

use crate::{Arch, EncoderConfig, EncoderSpec, Result};

/// The name of the input, (N, C, S, S).
pub const INPUT: &str = "images";
/// The name of the vectors, (N, D).
pub const OUTPUT: &str = "features";
/// The name of a transformer's tokens, (N, T, D): class, registers, patches.
pub const TOKENS: &str = "tokens";

/// The bytes of an `.onnx` file. `words` go into its metadata.
///
/// # Errors
/// A tensor that is missing.
pub(super) fn encode(
    spec: &EncoderSpec,
    config: &EncoderConfig,
    tensors: &BTreeMap<String, Tensor>,
    dim: usize,
    words: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut builder = graph::Builder::new(tensors);
    match spec.arch {
        Arch::ResNet(shape) => families::resnet(&mut builder, &shape, config)?,
        Arch::ConvNext(shape) => families::convnext(&mut builder, &shape, config)?,
        Arch::ViT(shape) => families::vit(&mut builder, &shape, config)?,
    }
    let mut output = vec![value(OUTPUT, &[dim])];
    if matches!(spec.arch, Arch::ViT(_)) {
        let side = config.image_size / config.resolved_patch();
        output.push(value(TOKENS, &[side * side + 1 + config.registers, dim]));
    }
    let (node, initializer) = builder.finish();
    let model = proto::Model {
        ir_version: 8,
        producer_name: "twinsight".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: spec.summary.into(),
        graph: Some(proto::Graph {
            node,
            name: spec.name.into(),
            initializer,
            input: vec![value(INPUT, &[config.channels, config.image_size, config.image_size])],
            output,
        }),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: 17 }],
        metadata_props: words.iter().map(|(k, v)| proto::Entry { key: k.clone(), value: v.clone() }).collect(),
    };
    Ok(model.encode_to_vec())
}

/// A value whose first axis is free.
fn value(name: &str, sides: &[usize]) -> proto::ValueInfo {
    let free = proto::Dimension { dim_value: None, dim_param: Some("batch".into()) };
    let fixed = sides.iter().map(|&n| proto::Dimension { dim_value: Some(n as i64), dim_param: None });
    let shape = proto::Shape { dim: std::iter::once(free).chain(fixed).collect() };
    let tensor = proto::TensorType { elem_type: proto::FLOAT, shape: Some(shape) };
    proto::ValueInfo { name: name.into(), r#type: Some(proto::Type { tensor_type: Some(tensor) }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use twinsight_nn::Builder;

    #[test]
    fn every_encoder_has_a_graph_whose_inputs_come_before_their_use() -> anyhow::Result<()> {
        for name in ["resnet_mini", "resnet18", "convnext_atto", "vit_mini"] {
            for (registers, layer_scale, ffn, norm) in [
                (0, 0.0, crate::Ffn::Mlp, twinsight_nn::NormKind::Batch),
                (4, 1e-5, crate::Ffn::SwiGlu, twinsight_nn::NormKind::Group),
            ] {
                let spec = crate::encoder(name)?;
                let config =
                    EncoderConfig { image_size: 32, channels: 2, registers, layer_scale, ffn, norm, ..EncoderConfig::default() };
                let b = Builder::new(0, &Device::Cpu);
                let dim = (spec.build)(&config, &b)?.dim();
                let bytes = encode(spec, &config, &b.finish().snapshot()?, dim, &BTreeMap::new())?;
                let graph = proto::Model::decode(&bytes[..])?.graph.expect("a graph");
                let mut known: Vec<&str> = graph.initializer.iter().map(|t| &t.name[..]).chain([INPUT]).collect();
                for node in &graph.node {
                    for input in &node.input {
                        assert!(known.contains(&&input[..]), "{name}: {} takes {input}", node.name);
                    }
                    known.extend(node.output.iter().map(|o| &o[..]));
                }
                for output in &graph.output {
                    assert!(known.contains(&&output.name[..]), "{name}: {}", output.name);
                }
                let weights: usize =
                    graph.initializer.iter().filter(|t| t.data_type == proto::FLOAT).map(|t| t.raw_data.len() / 4).sum();
                assert!(weights >= b.finish().trainable_count() - 2 * dim, "{name}: weights were left out");
            }
        }
        Ok(())
    }
}
