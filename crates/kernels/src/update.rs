//! In-place updates of many tensors: exponential moving averages and the steps of SGD, LARS and AdamW; and the clipping of gradients, which
//! makes new ones.
//!
//! State lives in [`Var`]s that the caller owns. Gradients and other read-only tensors may share nothing with the
//! variables that are written.

use candle_core::{Result, Tensor, Var, bail};

use crate::cpu::memory::on_cpu;
use crate::{check, composed, cpu};

/// One parameter of [`sgd`].
#[derive(Debug, Clone, Copy)]
pub struct SgdTensor<'a> {
    /// The parameter, changed in place.
    pub param: &'a Var,
    /// Its gradient, of the same shape.
    pub grad: &'a Tensor,
    /// Its momentum buffer, of the same shape, changed in place; starts as zeros. Only read when the momentum is not 0.
    pub momentum: &'a Var,
    /// The learning rate.
    pub lr: f64,
    /// The weight decay, added to the gradient (L2, not decoupled).
    pub weight_decay: f64,
    /// Factor on the gradient after weight decay: 1 for SGD, the local learning rate (trust ratio) for LARS.
    pub scale: f64,
}

/// Settings of one call of [`sgd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// The momentum; 0 for plain gradient descent, which leaves the buffers alone.
    pub momentum: f64,
    /// Nesterov's momentum, in PyTorch's form.
    pub nesterov: bool,
}

/// The rule of [`lars`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LarsConfig {
    /// η: the trust ratio is η · ‖param‖ / (‖grad‖ + weight_decay · ‖param‖ + eps).
    pub trust_coefficient: f64,
    /// Added to the denominator of the ratio.
    pub eps: f64,
    /// Whether the ratio over the learning rate, at most 1, takes the ratio's place.
    pub clip: bool,
}

/// One parameter of [`adamw`].
#[derive(Debug, Clone, Copy)]
pub struct AdamwTensor<'a> {
    /// The parameter, changed in place.
    pub param: &'a Var,
    /// Its gradient, of the same shape.
    pub grad: &'a Tensor,
    /// Moving average of the gradient, of the same shape, changed in place; starts as zeros.
    pub first: &'a Var,
    /// Moving average of the squared gradient, of the same shape, changed in place; starts as zeros.
    pub second: &'a Var,
    /// The learning rate.
    pub lr: f64,
    /// The decoupled weight decay (multiplied by the learning rate).
    pub weight_decay: f64,
}

/// Settings of one call of [`adamw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Number of this step, from 1: what the bias correction counts.
    pub step: u64,
}

/// Whose norm [`clip`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clip {
    /// That of all tensors together, as `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013).
    Together,
    /// Each tensor's own, as DINO's `clip_gradients` (Caron et al. 2021).
    Each,
}

/// teacher = momentum · teacher + (1 − momentum) · student, for every pair.
///
/// # Errors
/// When a tensor is not `f32`, a pair differs in shape or device, or shares its storage.
pub fn ema(pairs: &[(&Var, &Tensor)], momentum: f64) -> Result<()> {
    for (i, (teacher, student)) in pairs.iter().enumerate() {
        check::f32("ema", &format!("teacher {i}"), teacher)?;
        check::shaped("ema", &format!("student {i}"), student, teacher.dims(), teacher)?;
    }
    if pairs.iter().all(|(t, _)| on_cpu(t)) {
        return cpu::update::ema(pairs, momentum);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::update::on_device::all_served(pairs.iter().map(|(t, _)| t.as_tensor())) {
        return crate::cuda::update::on_device::ema(pairs, momentum);
    }
    composed::update::ema(pairs, momentum)
}

/// One step of stochastic gradient descent as `torch.optim.SGD` (dampening 0), and of LARS when `scale` is its trust
/// ratio: d = scale · (grad + weight_decay · param); buffer = momentum · buffer + d; param −= lr · buffer (with Nesterov:
/// lr · (d + momentum · buffer)).
///
/// # Errors
/// When a tensor is not `f32`, shapes or devices differ, or tensors share storage.
pub fn sgd(tensors: &[SgdTensor<'_>], config: SgdConfig) -> Result<()> {
    check_sgd("sgd", tensors)?;
    if tensors.iter().all(|t| on_cpu(t.param)) {
        return cpu::update::sgd(tensors, config);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::update::on_device::all_served(tensors.iter().map(|t| t.param.as_tensor())) {
        return crate::cuda::update::on_device::sgd(tensors, config);
    }
    composed::update::sgd(tensors, config)
}

fn check_sgd(op: &str, tensors: &[SgdTensor<'_>]) -> Result<()> {
    for (i, t) in tensors.iter().enumerate() {
        check::f32(op, &format!("param {i}"), t.param)?;
        check::shaped(op, &format!("grad {i}"), t.grad, t.param.dims(), t.param)?;
        check::shaped(op, &format!("momentum {i}"), t.momentum, t.param.dims(), t.param)?;
    }
    Ok(())
}

/// One step of LARS (You et al. 2017): [`sgd`] with each tensor's trust ratio as its scale. A tensor without weight decay, or of which parameter
/// or gradient are all zeros, is neither scaled nor decayed. The tensors' own `scale` is not read.
///
/// # Errors
/// As [`sgd`].
pub fn lars(tensors: &[SgdTensor<'_>], config: SgdConfig, rule: LarsConfig) -> Result<()> {
    check_sgd("lars", tensors)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::update::on_device::all_served(tensors.iter().map(|t| t.param.as_tensor())) {
        return crate::cuda::update::on_device::lars(tensors, config, rule);
    }
    let norms = |tensors: Vec<&Tensor>| -> Result<Vec<f64>> { Ok(square_sums(&tensors)?.into_iter().map(f64::sqrt).collect()) };
    let weights = norms(tensors.iter().map(|t| t.param.as_tensor()).collect())?;
    let gradients = norms(tensors.iter().map(|t| t.grad).collect())?;
    let scaled = tensors.iter().zip(weights.iter().zip(&gradients)).map(|(t, (&w, &g))| {
        let adapted = t.weight_decay != 0.0 && w != 0.0 && g != 0.0;
        let ratio = rule.trust_coefficient * w / (g + w * t.weight_decay + rule.eps);
        let ratio = if rule.clip { (ratio / t.lr).min(1.0) } else { ratio };
        // lightly's rule: without a ratio there is no decay either.
        SgdTensor { weight_decay: if adapted { t.weight_decay } else { 0.0 }, scale: if adapted { ratio } else { 1.0 }, ..*t }
    });
    sgd(&scaled.collect::<Vec<_>>(), config)
}

/// One step of AdamW (Loshchilov and Hutter 2019) as `torch.optim.AdamW`: param −= lr · weight_decay · param, then Adam's
/// step with bias correction.
///
/// # Errors
/// When a tensor is not `f32`, shapes or devices differ, tensors share storage, or `config.step` is 0.
pub fn adamw(tensors: &[AdamwTensor<'_>], config: AdamwConfig) -> Result<()> {
    if config.step == 0 {
        bail!("adamw: step is 0, expected the number of this step, from 1");
    }
    for (i, t) in tensors.iter().enumerate() {
        check::f32("adamw", &format!("param {i}"), t.param)?;
        check::shaped("adamw", &format!("grad {i}"), t.grad, t.param.dims(), t.param)?;
        check::shaped("adamw", &format!("first {i}"), t.first, t.param.dims(), t.param)?;
        check::shaped("adamw", &format!("second {i}"), t.second, t.param.dims(), t.param)?;
    }
    if tensors.iter().all(|t| on_cpu(t.param)) {
        return cpu::update::adamw(tensors, config);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::update::on_device::all_served(tensors.iter().map(|t| t.param.as_tensor())) {
        return crate::cuda::update::on_device::adamw(tensors, config);
    }
    composed::update::adamw(tensors, config)
}

/// The sum of squares of every tensor, in `f64`: what gradient clipping and LARS need of many tensors at once. On Metal, which has no `f64`,
/// rows are added up in `f32` first.
///
/// # Errors
/// When a tensor is not `f32`.
pub fn square_sums(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    for (i, t) in tensors.iter().enumerate() {
        check::f32("square_sums", &format!("tensor {i}"), t)?;
    }
    if tensors.iter().all(|t| on_cpu(t)) {
        return cpu::update::square_sums(tensors);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::update::on_device::all_served(tensors.iter().copied()) {
        return crate::cuda::update::on_device::square_sums(tensors);
    }
    composed::update::square_sums(tensors)
}

/// Takes norms to at most `max`: a tensor becomes itself times max / (norm + 1e-6) where the norm is above `max` (each tensor's own: where that
/// factor is below 1), and stays as it is otherwise. A norm that is NaN clips nothing; an infinite one leaves zeros, and NaN for infinities.
///
/// Every tensor is replaced by another: what shares memory with the old one does not change. Nothing is read back from devices, so that the
/// host need not wait, and the same tensors give the same bits.
///
/// # Errors
/// When a tensor is not `f32`, devices differ, or `max` is not a number from 0 on.
pub fn clip(tensors: &mut [&mut Tensor], max: f64, of: Clip) -> Result<()> {
    const OP: &str = "clip";
    if max.is_nan() || max < 0.0 {
        bail!("{OP}: the largest norm is {max}, expected a number from 0 on");
    }
    for (i, t) in tensors.iter().enumerate() {
        check::f32_on(OP, &format!("tensor {i}"), t, tensors[0])?;
    }
    if tensors.iter().all(|t| on_cpu(t)) {
        return cpu::update::clip(tensors, max, of);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::update::on_device::all_served(tensors.iter().map(|t| &**t)) {
        return crate::cuda::clip::on_device::clip(tensors, max, of);
    }
    composed::update::clip(tensors, max, of)
}

/// Moves batch norm's running statistics by those that a pass saw, block after block as separate passes would:
/// running = (1 − momentum) · running + momentum · seen, for the variance with the unbiased one, of `count` values each.
///
/// # Shapes
/// `mean` and `var` (groups, C), the variance biased; `running_mean` and `running_var` (C).
///
/// # Errors
/// When a tensor is not `f32`, shapes or devices differ, or `count` is below 2.
pub fn running_statistics(
    [mean, var]: [&Tensor; 2],
    [running_mean, running_var]: [&Var; 2],
    momentum: f64,
    count: usize,
) -> Result<()> {
    const OP: &str = "running_statistics";
    check::f32(OP, "mean", mean)?;
    let [groups, c] = *mean.dims() else { bail!("{OP}: mean has shape {:?}, expected (groups, C)", mean.dims()) };
    check::shaped(OP, "var", var, &[groups, c], mean)?;
    check::shaped(OP, "running_mean", running_mean, &[c], mean)?;
    check::shaped(OP, "running_var", running_var, &[c], mean)?;
    if count < 2 {
        bail!("{OP}: count is {count}, an unbiased variance needs two values or more");
    }
    let unbiased = count as f64 / (count as f64 - 1.0);
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(mean) {
        return crate::cuda::batch_norm::take_up([mean, var], [running_mean, running_var], momentum, unbiased);
    }
    let (mut m, mut v) = (running_mean.detach().copy()?, running_var.detach().copy()?);
    for group in 0..groups {
        m = ((m * (1.0 - momentum))? + (mean.detach().get(group)? * momentum)?)?;
        v = ((v * (1.0 - momentum))? + ((var.detach().get(group)? * unbiased)? * momentum)?)?;
    }
    running_mean.set(&m)?;
    running_var.set(&v)
}
