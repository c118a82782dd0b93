//! Batch normalisation with the affine part, a residual and a ReLU fused into it.

use candle_core::{DType, Result, Tensor, bail};

use crate::cpu::batch_norm::{BatchNorm, Statistics, statistics};
use crate::cpu::memory::{host, on_cpu, tensor};
use crate::{check, composed};

/// Settings of batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance before the square root.
    pub eps: f64,
    /// Whether negative results become zero (after the residual is added).
    pub relu: bool,
    /// Number of equal blocks of the batch axis with statistics of their own; 1 for ordinary batch norm.
    pub groups: usize,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, relu: false, groups: 1 }
    }
}

/// What [`batch_norm_train`] gives.
#[derive(Debug, Clone)]
pub struct BatchNormOutput {
    /// The normalised values, of the input's shape.
    pub y: Tensor,
    /// Mean of every block and channel, (groups, C); carries no gradient.
    pub mean: Tensor,
    /// Biased variance (divided by the count) of every block and channel, (groups, C); carries no gradient.
    pub var: Tensor,
}

/// Batch normalisation by the batch's own statistics (Ioffe and Szegedy 2015), over all axes but the last.
///
/// y = \[relu\]((x − mean) / √(var + eps) · weight + bias \[+ residual\]). The batch axis is cut into `config.groups`
/// equal blocks, each with a mean and variance of its own, so that several views can share one pass.
/// `None` for `weight` means ones, for `bias` zeros.
///
/// # Shapes
/// `x` (N, C) or (N, H, W, C) (any number of axes from two on), `weight` and `bias` (C), `residual` as `x`.
///
/// # Errors
/// When a tensor is not `f32`, shapes do not fit, the batch is empty or not divisible by `config.groups`.
pub fn batch_norm_train(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    config: BatchNormConfig,
) -> Result<BatchNormOutput> {
    const OP: &str = "batch_norm_train";
    let c = checked(OP, x, weight, bias, residual)?;
    let n = x.dims()[0];
    if config.groups == 0 || !n.is_multiple_of(config.groups) {
        bail!("{OP}: groups is {}, which must divide the batch of {n}", config.groups);
    }
    if x.elem_count() == 0 {
        bail!("{OP}: x has shape {:?}; statistics need at least one value a channel", x.dims());
    }
    if on_cpu(x) {
        let x = x.contiguous()?;
        let statistics = {
            let (storage, layout) = x.storage_and_layout();
            statistics(host(&storage, layout)?, c, config.groups)
        };
        let mean = tensor(statistics.mean.clone(), (config.groups, c))?;
        let var = tensor(statistics.var.clone(), (config.groups, c))?;
        let y = apply(&x, statistics, weight, bias, residual, config, true)?;
        return Ok(BatchNormOutput { y, mean, var });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::batch_norm::train(x, weight, bias, residual, config);
    }
    composed::norm::batch_norm_train(x, weight, bias, residual, config, c)
}

/// Batch normalisation by given statistics: y = \[relu\]((x − mean) / √(var + eps) · weight + bias \[+ residual\]).
///
/// `config.groups` has no meaning here. Gradients flow to `x`, `weight`, `bias` and `residual`, not to the statistics.
///
/// # Shapes
/// `x` (N, …, C); `mean`, `var`, `weight`, `bias` (C); `residual` as `x`.
///
/// # Errors
/// When a tensor is not `f32` or shapes do not fit.
pub fn batch_norm_eval(
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    config: BatchNormConfig,
) -> Result<Tensor> {
    const OP: &str = "batch_norm_eval";
    let c = checked(OP, x, weight, bias, residual)?;
    check::shaped(OP, "mean", mean, &[c], x)?;
    check::shaped(OP, "var", var, &[c], x)?;
    if on_cpu(x) {
        let statistics = Statistics { mean: mean.to_vec1()?, var: var.to_vec1()? };
        return apply(&x.contiguous()?, statistics, weight, bias, residual, BatchNormConfig { groups: 1, ..config }, false);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::batch_norm::eval(x, [mean, var], weight, bias, residual, config);
    }
    composed::norm::batch_norm_eval(x, &mean.detach(), &var.detach(), weight, bias, residual, config)
}

/// The operation on the CPU, with the statistics given.
fn apply(
    x: &Tensor,
    statistics: Statistics,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    config: BatchNormConfig,
    from_batch: bool,
) -> Result<Tensor> {
    let c = x.dims()[x.rank() - 1];
    // A custom operation has three inputs at most, so weight and bias become one.
    let weight = weight.map_or_else(|| Tensor::ones(c, DType::F32, x.device()), |w| Ok(w.clone()))?;
    let bias = bias.map_or_else(|| Tensor::zeros(c, DType::F32, x.device()), |b| Ok(b.clone()))?;
    let parameters = Tensor::stack(&[weight, bias], 0)?;
    let op = BatchNorm::from_statistics(c, config.groups, config.relu, statistics, config.eps);
    let op = BatchNorm { from_batch, ..op };
    match residual {
        Some(residual) => x.apply_op3(&parameters, &residual.contiguous()?, op),
        None => x.apply_op2(&parameters, op),
    }
}

fn checked(op: &str, x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, residual: Option<&Tensor>) -> Result<usize> {
    let c = check::last(op, "x", x)?;
    if x.rank() < 2 {
        bail!("{op}: x has shape {:?}, expected two axes or more (N, …, C)", x.dims());
    }
    for (name, t) in [("weight", weight), ("bias", bias)] {
        if let Some(t) = t {
            check::shaped(op, name, t, &[c], x)?;
        }
    }
    if let Some(r) = residual {
        check::alike(op, "residual", r, x)?;
    }
    Ok(c)
}
