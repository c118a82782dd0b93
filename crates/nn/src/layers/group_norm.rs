//! Group norm, and the choice between it and batch norm behind a convolution.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{BatchNorm, Builder, Error, Init, Mode, Parameter, Result, Role};

/// Added to variances.
const EPS: f64 = 1e-5;
/// Groups of channels, where there are so many channels (Wu & He 2018).
const GROUPS: usize = 32;

/// Which norm stands behind a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// Batch norm: statistics of the batch that goes through at once.
    #[default]
    Batch,
    /// Group norm: statistics of each image alone, so that a batch may be cut into parts.
    Group,
}

/// Group normalisation of (N, …, C), channels last, as `torch.nn.GroupNorm`: the channels of each image in groups, mean and
/// variance over all that belongs to a group; `weight`, `bias` (Wu & He 2018).
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Parameter,
    bias: Parameter,
    groups: usize,
}

impl GroupNorm {
    /// A layer over `features` channels: 32 groups, or as many of that as divide the channels.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, features: usize) -> Result<Self> {
        let groups = (1..=GROUPS.min(features.max(1))).rev().find(|&g| features.is_multiple_of(g)).unwrap_or(1);
        Ok(Self {
            weight: b.parameter("weight", &[features], Role::Norm, Init::Constant(1.0))?,
            bias: b.parameter("bias", &[features], Role::Norm, Init::Constant(0.0))?,
            groups,
        })
    }

    /// (N, …, C) → the same.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let dims = x.dims().to_vec();
        let features = self.weight.dims()[0];
        if dims.len() < 2 || dims[dims.len() - 1] != features {
            return Err(Error::BadSetting(format!("group norm {}: {dims:?}, expected (N, …, {features})", self.weight.name())));
        }
        let (n, each) = (dims[0], features / self.groups);
        let places = x.elem_count() / (n * features).max(1);
        // A group's numbers side by side are one row of a layer norm.
        let rows = x.reshape((n, places, self.groups, each))?.transpose(1, 2)?.contiguous()?;
        let rows = rows.reshape((n, self.groups, places * each))?;
        let one = Tensor::ones(places * each, DType::F32, x.device())?;
        let y = twinsight_kernels::layer_norm(&rows, &one, &one.zeros_like()?, EPS)?;
        let y = y.reshape((n, self.groups, places, each))?.transpose(1, 2)?.contiguous()?.reshape(dims)?;
        Ok(y.broadcast_mul(self.weight.get(mode))?.broadcast_add(self.bias.get(mode))?)
    }
}

/// The norm behind a convolution.
#[derive(Debug, Clone)]
pub enum Norm {
    /// Batch norm.
    Batch(BatchNorm),
    /// Group norm.
    Group(GroupNorm),
}

impl Norm {
    /// A norm of `kind` over `features` channels, with scale and shift.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, features: usize, kind: NormKind) -> Result<Self> {
        Ok(match kind {
            NormKind::Batch => Self::Batch(BatchNorm::new(b, features, true)?),
            NormKind::Group => Self::Group(GroupNorm::new(b, features)?),
        })
    }

    /// The scale, if the norm has one.
    pub fn scale(&self) -> Option<&Parameter> {
        match self {
            Self::Batch(norm) => norm.scale(),
            Self::Group(norm) => Some(&norm.weight),
        }
    }

    /// The batch norm, if it is one.
    pub(super) fn batch(&self) -> Option<&BatchNorm> {
        match self {
            Self::Batch(norm) => Some(norm),
            Self::Group(_) => None,
        }
    }

    /// Normalisation, then the sum with `residual` if any, then a ReLU if asked for.
    pub(super) fn forward_fused(&self, x: &Tensor, residual: Option<&Tensor>, relu: bool, mode: &Mode) -> Result<Tensor> {
        match self {
            Self::Batch(norm) => norm.forward_fused(x, residual, relu, mode),
            Self::Group(norm) => {
                let y = norm.forward(x, mode)?;
                let y = if let Some(residual) = residual { (y + residual)? } else { y };
                Ok(if relu { twinsight_kernels::relu(&y)? } else { y })
            }
        }
    }
}
