//! Batch norm, layer norm and layer scale.

use candle_core::Tensor;
use twinsight_kernels::{Affine, BatchNormConfig, NormStatistics};

use crate::{Builder, Error, Init, Mode, Parameter, Result, Role};

/// Added to variances.
pub(super) const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Batch normalisation over all axes but the last, with the parameters and buffers of `torch.nn.BatchNorm2d`: `weight`,
/// `bias`, `running_mean`, `running_var`; eps 1e-5, momentum 0.1.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    affine: Option<(Parameter, Parameter)>,
    mean: Parameter,
    var: Parameter,
}

impl BatchNorm {
    /// A layer over `features` channels, with scale and shift when `affine`.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, features: usize, affine: bool) -> Result<Self> {
        let shape = [features];
        let affine = if affine {
            Some((
                b.parameter("weight", &shape, Role::Norm, Init::Constant(1.0))?,
                b.parameter("bias", &shape, Role::Norm, Init::Constant(0.0))?,
            ))
        } else {
            None
        };
        Ok(Self {
            affine,
            mean: b.parameter("running_mean", &shape, Role::Buffer, Init::Constant(0.0))?,
            var: b.parameter("running_var", &shape, Role::Buffer, Init::Constant(1.0))?,
        })
    }

    /// (N, …, C) → the same.
    ///
    /// # Errors
    /// Another number of channels, a batch that the mode's blocks do not divide, in training a block with one value a channel
    /// (its variance says nothing, and all gradients would be zero; PyTorch refuses it too).
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        self.forward_fused(x, None, false, mode)
    }

    /// Normalisation, then the sum with `residual` if any, then a ReLU if asked for, in one pass.
    ///
    /// In training each of the mode's `stat_groups` blocks has statistics of its own, and the running statistics take them up
    /// block after block, as separate calls would.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`].
    pub fn forward_fused(&self, x: &Tensor, residual: Option<&Tensor>, relu: bool, mode: &Mode) -> Result<Tensor> {
        let weight = self.affine.as_ref().map(|(w, _)| w.get(mode));
        let bias = self.affine.as_ref().map(|(_, b)| b.get(mode));
        let config = BatchNormConfig { eps: EPS, relu, groups: mode.stat_groups };
        if !mode.train {
            let (mean, var) = (self.mean.value(), self.var.value());
            return Ok(twinsight_kernels::batch_norm_eval(x, mean, var, weight, bias, residual, config)?);
        }
        let out = twinsight_kernels::batch_norm_train(x, weight, bias, residual, config)?;
        let count = x.elem_count() / x.dims()[x.rank() - 1] / mode.stat_groups;
        self.take_up(&NormStatistics { mean: out.mean, var: out.var, count }, mode)?;
        Ok(out.y)
    }

    /// Scale and shift, if the layer has them.
    pub fn affine(&self, mode: &Mode) -> Option<(&Tensor, &Tensor)> {
        self.affine.as_ref().map(|(scale, shift)| (scale.get(mode), shift.get(mode)))
    }

    /// The scale, if the layer has one.
    pub fn scale(&self) -> Option<&Parameter> {
        self.affine.as_ref().map(|(scale, _)| scale)
    }

    /// Refuses a batch that leaves one value a channel.
    pub(super) fn check(&self, seen: &NormStatistics) -> Result<()> {
        let groups = seen.mean.dims()[0];
        if seen.count < 2 {
            return Err(Error::BadSetting(format!(
                "batch norm {}: the batch, in {groups} blocks, leaves one value a channel, training needs two or more; enlarge the \
                 batch",
                self.mean.name().trim_end_matches("running_mean").trim_end_matches('.'),
            )));
        }
        Ok(())
    }

    /// Moves the running statistics by what a pass saw, block after block, if the pass's mode says so.
    pub(super) fn take_up(&self, seen: &NormStatistics, mode: &Mode) -> Result<()> {
        self.check(seen)?;
        if !mode.observe {
            return Ok(());
        }
        let running = [self.mean.var(), self.var.var()];
        twinsight_kernels::update::running_statistics([&seen.mean, &seen.var], running, MOMENTUM, seen.count)?;
        Ok(())
    }
}

/// Layer normalisation over the last axis: `weight`, `bias` (Ba et al. 2016).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Parameter,
    bias: Parameter,
    eps: f64,
}

impl LayerNorm {
    /// A layer over `features` numbers.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, features: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: b.parameter("weight", &[features], Role::Norm, Init::Constant(1.0))?,
            bias: b.parameter("bias", &[features], Role::Norm, Init::Constant(0.0))?,
            eps,
        })
    }

    /// (…, features) → the same.
    ///
    /// # Errors
    /// A last axis of another size.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        Ok(twinsight_kernels::layer_norm(x, self.weight.get(mode), self.bias.get(mode), self.eps)?)
    }

    /// Weight and bias.
    pub(super) fn affine(&self, mode: &Mode) -> Affine<'_> {
        Affine { weight: self.weight.get(mode), bias: self.bias.get(mode) }
    }

    /// What is added to the variance.
    pub(super) fn eps(&self) -> f64 {
        self.eps
    }
}

/// A learned factor a channel, `gamma` (Touvron et al. 2021, CaiT).
#[derive(Debug, Clone)]
pub struct LayerScale {
    gamma: Parameter,
}

impl LayerScale {
    /// `dim` factors that start at `init`.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, dim: usize, init: f32) -> Result<Self> {
        Ok(Self { gamma: b.parameter("gamma", &[dim], Role::Norm, Init::Constant(init))? })
    }

    /// (…, dim) → the same.
    ///
    /// # Errors
    /// A last axis of another size.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        Ok(x.broadcast_mul(self.gamma.get(mode))?)
    }

    /// Weight and bias of a linear layer with these factors after it.
    pub(super) fn folded(&self, layer: Affine<'_>, mode: &Mode) -> Result<(Tensor, Tensor)> {
        let gamma = self.gamma.get(mode);
        Ok((layer.weight.broadcast_mul(&gamma.unsqueeze(1)?)?, layer.bias.mul(gamma)?))
    }
}
