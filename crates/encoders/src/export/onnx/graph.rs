//! A graph in the making: operations are added one by one, weights by name.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::proto::{self, ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_INTS, FLOAT, INT64};
use crate::{Error, Result};

/// A setting of an operation.
pub(super) enum Attribute<'a> {
    /// A number.
    Float(&'a str, f32),
    /// A whole number.
    Int(&'a str, i64),
    /// Whole numbers.
    Ints(&'a str, Vec<i64>),
}

/// Operations and constants so far.
pub(super) struct Builder<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    nodes: Vec<proto::Node>,
    constants: Vec<proto::Tensor>,
}

impl<'a> Builder<'a> {
    /// A graph without operations over the weights `tensors`.
    pub fn new(tensors: &'a BTreeMap<String, Tensor>) -> Self {
        Self { tensors, nodes: Vec::new(), constants: Vec::new() }
    }

    /// The weight `name`.
    pub fn tensor(&self, name: &str) -> Result<&'a Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::Unsupported(format!("the encoder has no tensor `{name}`")))
    }

    /// Whether there is a weight `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The weight `name` as a constant of the graph.
    pub fn weight(&mut self, name: &str) -> Result<String> {
        let tensor = self.tensor(name)?;
        self.constant(name, tensor)
    }

    /// A constant called `name`.
    pub fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<String> {
        if !self.constants.iter().any(|c| c.name == name) {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            self.constants.push(proto::Tensor {
                dims: tensor.dims().iter().map(|&n| n as i64).collect(),
                data_type: FLOAT,
                name: name.to_string(),
                raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            });
        }
        Ok(name.to_string())
    }

    /// A number for all elements.
    pub fn scalar(&mut self, value: f32) -> Result<String> {
        let tensor = Tensor::new(value, &candle_core::Device::Cpu)?;
        self.constant(&format!("scalar_{value}"), &tensor)
    }

    /// Whole numbers, as shapes are given; a scalar where there is one and `scalar` is set.
    pub fn numbers(&mut self, values: &[i64], scalar: bool) -> String {
        let words: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("{}_{}", if scalar { "index" } else { "shape" }, words.join("_"));
        if !self.constants.iter().any(|c| c.name == name) {
            self.constants.push(proto::Tensor {
                dims: if scalar { Vec::new() } else { vec![values.len() as i64] },
                data_type: INT64,
                name: name.clone(),
                raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            });
        }
        name
    }

    /// Adds an operation; the name of its result.
    pub fn op(&mut self, kind: &str, inputs: &[&str], attributes: &[Attribute<'_>]) -> String {
        let output = format!("{}_{}", kind.to_lowercase(), self.nodes.len());
        self.op_named(kind, inputs, attributes, &output);
        output
    }

    /// Adds an operation whose result is called `output`.
    pub fn op_named(&mut self, kind: &str, inputs: &[&str], attributes: &[Attribute<'_>], output: &str) {
        let plain = proto::Attribute::default;
        let attribute = attributes
            .iter()
            .map(|a| match a {
                Attribute::Float(name, v) => {
                    proto::Attribute { name: name.to_string(), f: Some(*v), r#type: ATTRIBUTE_FLOAT, ..plain() }
                }
                Attribute::Int(name, v) => {
                    proto::Attribute { name: name.to_string(), i: Some(*v), r#type: ATTRIBUTE_INT, ..plain() }
                }
                Attribute::Ints(name, v) => {
                    proto::Attribute { name: name.to_string(), ints: v.clone(), r#type: ATTRIBUTE_INTS, ..plain() }
                }
            })
            .collect();
        self.nodes.push(proto::Node {
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.to_string()],
            name: format!("{kind}_{}", self.nodes.len()),
            op_type: kind.to_string(),
            attribute,
        });
    }

    /// A convolution by the weight `{name}.weight`, with `{name}.bias` where there is one; (N, C, H, W).
    pub fn conv(&mut self, x: &str, name: &str, stride: i64, padding: i64, groups: i64) -> Result<String> {
        let dims = self.tensor(&format!("{name}.weight"))?.dims().to_vec();
        let mut inputs = vec![x.to_string(), self.weight(&format!("{name}.weight"))?];
        if self.has(&format!("{name}.bias")) {
            inputs.push(self.weight(&format!("{name}.bias"))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Ok(self.op(
            "Conv",
            &inputs,
            &[
                Attribute::Ints("kernel_shape", dims[2..].iter().map(|&k| k as i64).collect()),
                Attribute::Ints("strides", vec![stride; 2]),
                Attribute::Ints("pads", vec![padding; 4]),
                Attribute::Int("group", groups),
            ],
        ))
    }

    /// A linear layer along the last axis.
    pub fn linear(&mut self, x: &str, name: &str) -> Result<String> {
        let weight = self.tensor(&format!("{name}.weight"))?.flatten_from(1)?.t()?.contiguous()?;
        let weight = self.constant(&format!("{name}.weight.transposed"), &weight)?;
        let bias = self.weight(&format!("{name}.bias"))?;
        let y = self.op("MatMul", &[x, &weight], &[]);
        Ok(self.op("Add", &[&y, &bias], &[]))
    }

    /// Layer norm along the last axis, ε = 1e-6.
    pub fn layer_norm(&mut self, x: &str, name: &str) -> Result<String> {
        let (weight, bias) = (self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?);
        let settings = [Attribute::Int("axis", -1), Attribute::Float("epsilon", 1e-6)];
        Ok(self.op("LayerNormalization", &[x, &weight, &bias], &settings))
    }

    /// x · Φ(x), exactly.
    pub fn gelu(&mut self, x: &str) -> Result<String> {
        let (root, one, half) = (self.scalar(std::f32::consts::SQRT_2)?, self.scalar(1.0)?, self.scalar(0.5)?);
        let y = self.op("Div", &[x, &root], &[]);
        let y = self.op("Erf", &[&y], &[]);
        let y = self.op("Add", &[&y, &one], &[]);
        let y = self.op("Mul", &[x, &y], &[]);
        Ok(self.op("Mul", &[&y, &half], &[]))
    }

    /// Another order of axes.
    pub fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.op("Transpose", &[x], &[Attribute::Ints("perm", order.to_vec())])
    }

    /// Another shape; 0 keeps an axis, -1 takes what is left.
    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.numbers(shape, false);
        self.op("Reshape", &[x, &shape], &[])
    }

    /// Everything, as the messages have it.
    pub fn finish(self) -> (Vec<proto::Node>, Vec<proto::Tensor>) {
        (self.nodes, self.constants)
    }
}
