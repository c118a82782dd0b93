//! Linear layers: the plain one, and DINO's weight-normalised one.

use candle_core::Tensor;
use twinsight_kernels::Affine;

use crate::{Builder, Init, Mode, Parameter, Result, Role};

/// y = x Wᵀ + b, as `torch.nn.Linear`: parameters `weight` (outputs, inputs) and, with a bias, `bias` (outputs).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Parameter,
    bias: Option<Parameter>,
}

impl Linear {
    /// A layer whose weight starts by `init` and whose bias, if any, at 0.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, inputs: usize, outputs: usize, bias: bool, init: Init) -> Result<Self> {
        Ok(Self {
            weight: b.parameter("weight", &[outputs, inputs], Role::Weight, init)?,
            bias: bias.then(|| b.parameter("bias", &[outputs], Role::Bias, Init::Constant(0.0))).transpose()?,
        })
    }

    /// A layer that starts as PyTorch's does: weight and bias uniform in ±1/√inputs.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn torch_default(b: &Builder, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        let bound = Init::Uniform(1.0 / (inputs as f64).sqrt());
        Ok(Self {
            weight: b.parameter("weight", &[outputs, inputs], Role::Weight, Init::TorchDefault)?,
            bias: bias.then(|| b.parameter("bias", &[outputs], Role::Bias, bound)).transpose()?,
        })
    }

    /// A layer with a bias whose weight is that of a 1×1 convolution, (outputs, inputs, 1, 1).
    ///
    /// # Errors
    /// A name that is taken.
    pub fn pointwise(b: &Builder, inputs: usize, outputs: usize, init: Init) -> Result<Self> {
        Ok(Self {
            weight: b.parameter("weight", &[outputs, inputs, 1, 1], Role::Weight, init)?,
            bias: Some(b.parameter("bias", &[outputs], Role::Bias, Init::Constant(0.0))?),
        })
    }

    /// (…, inputs) → (…, outputs).
    ///
    /// # Errors
    /// A last axis of another size.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let weight = self.weight.get(mode).flatten_from(1)?;
        let y = twinsight_kernels::linear(&mode.rounded(x)?, &weight, self.bias.as_ref().map(|b| b.get(mode)))?;
        Ok(y.to_dtype(x.dtype())?)
    }

    /// Weight and bias, if it has one.
    pub(super) fn affine(&self, mode: &Mode) -> Option<Affine<'_>> {
        Some(Affine { weight: self.weight.get(mode), bias: self.bias.as_ref()?.get(mode) })
    }
}

/// A linear layer without bias whose rows are g · v / ‖v‖ (Salimans & Kingma 2016): `weight_g` (outputs, 1) and
/// `weight_v` (outputs, inputs), as `torch.nn.utils.weight_norm`. The last layer of DINO's head.
#[derive(Debug, Clone)]
pub struct WeightNormLinear {
    gain: Parameter,
    direction: Parameter,
    fixed: bool,
}

impl WeightNormLinear {
    /// Directions start as a PyTorch linear layer's weight, gains at 1. With `fixed_gain` the gains stay at 1 and are a
    /// buffer (DINO's `norm_last_layer`).
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, inputs: usize, outputs: usize, fixed_gain: bool) -> Result<Self> {
        let role = if fixed_gain { Role::Buffer } else { Role::Norm };
        Ok(Self {
            gain: b.parameter("weight_g", &[outputs, 1], role, Init::Constant(1.0))?,
            direction: b.parameter("weight_v", &[outputs, inputs], Role::Weight, Init::TorchDefault)?,
            fixed: fixed_gain,
        })
    }

    /// (…, inputs) → (…, outputs).
    ///
    /// # Errors
    /// A last axis of another size.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let unit = twinsight_kernels::l2_normalize(self.direction.get(mode), 0.0)?;
        let weight = if self.fixed { unit } else { unit.broadcast_mul(self.gain.get(mode))? };
        Ok(twinsight_kernels::linear(&mode.rounded(x)?, &weight, None)?.to_dtype(x.dtype())?)
    }
}
