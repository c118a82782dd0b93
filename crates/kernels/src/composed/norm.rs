//! Batch and layer normalisation.

use candle_core::{D, Result, Tensor};

use super::activation::relu;
use crate::batch_norm::{BatchNormConfig, BatchNormOutput};

/// See [`crate::batch_norm_train`]; `c` is the size of the last axis.
///
/// # Errors
/// When a candle operation fails.
pub fn batch_norm_train(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    config: BatchNormConfig,
    c: usize,
) -> Result<BatchNormOutput> {
    let blocks = x.contiguous()?.reshape((config.groups, x.elem_count() / (config.groups * c), c))?;
    let mean = blocks.mean_keepdim(1)?;
    let centred = blocks.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim(1)?;
    let y = centred.broadcast_div(&(&var + config.eps)?.sqrt()?)?.reshape(x.shape())?;
    Ok(BatchNormOutput {
        y: finish(y, weight, bias, residual, config.relu)?,
        mean: mean.detach().reshape((config.groups, c))?,
        var: var.detach().reshape((config.groups, c))?,
    })
}

/// See [`crate::batch_norm_eval`].
///
/// # Errors
/// When a candle operation fails.
pub fn batch_norm_eval(
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    config: BatchNormConfig,
) -> Result<Tensor> {
    let y = x.broadcast_sub(mean)?.broadcast_div(&(var + config.eps)?.sqrt()?)?;
    finish(y, weight, bias, residual, config.relu)
}

/// See [`crate::layer_norm`].
///
/// # Errors
/// When a candle operation fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(var + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

fn finish(
    mut y: Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    with_relu: bool,
) -> Result<Tensor> {
    if let Some(weight) = weight {
        y = y.broadcast_mul(weight)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(residual) = residual {
        y = (y + residual)?;
    }
    if with_relu { relu(&y) } else { Ok(y) }
}
