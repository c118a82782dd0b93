//! In-place updates of many tensors: exponential moving averages and the steps of SGD, LARS and AdamW.
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
    composed::update::ema(pairs, momentum)
}

/// One step of stochastic gradient descent as `torch.optim.SGD` (dampening 0), and of LARS when `scale` is its trust
/// ratio: d = scale · (grad + weight_decay · param); buffer = momentum · buffer + d; param −= lr · buffer (with Nesterov:
/// lr · (d + momentum · buffer)).
///
/// # Errors
/// When a tensor is not `f32`, shapes or devices differ, or tensors share storage.
pub fn sgd(tensors: &[SgdTensor<'_>], config: SgdConfig) -> Result<()> {
    for (i, t) in tensors.iter().enumerate() {
        check::f32("sgd", &format!("param {i}"), t.param)?;
        check::shaped("sgd", &format!("grad {i}"), t.grad, t.param.dims(), t.param)?;
        check::shaped("sgd", &format!("momentum {i}"), t.momentum, t.param.dims(), t.param)?;
    }
    if tensors.iter().all(|t| on_cpu(t.param)) {
        return cpu::update::sgd(tensors, config);
    }
    composed::update::sgd(tensors, config)
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
    composed::update::adamw(tensors, config)
}

/// The sum of squares of every tensor, in `f64`: what gradient clipping and LARS need of many tensors at once.
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
    composed::update::square_sums(tensors)
}
