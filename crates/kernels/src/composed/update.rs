//! Updates of variables, each tensor by a chain of operations and one copy.

use candle_core::{DType, Result, Tensor, Var};

use crate::update::{AdamwConfig, AdamwTensor, SgdConfig, SgdTensor};

/// See [`crate::update::ema`].
///
/// # Errors
/// When a candle operation fails.
pub fn ema(pairs: &[(&Var, &Tensor)], momentum: f64) -> Result<()> {
    for (teacher, student) in pairs {
        let next = (teacher.detach().affine(momentum, 0.0)? + student.detach().affine(1.0 - momentum, 0.0)?)?;
        teacher.set(&next)?;
    }
    Ok(())
}

/// See [`crate::update::sgd`].
///
/// # Errors
/// When a candle operation fails.
pub fn sgd(tensors: &[SgdTensor<'_>], config: SgdConfig) -> Result<()> {
    for t in tensors {
        let param = t.param.detach();
        let d = (t.grad.detach() + param.affine(t.weight_decay, 0.0)?)?.affine(t.scale, 0.0)?;
        let step = if config.momentum == 0.0 {
            d
        } else {
            let buffer = (t.momentum.detach().affine(config.momentum, 0.0)? + &d)?;
            t.momentum.set(&buffer)?;
            if config.nesterov { (d + buffer.affine(config.momentum, 0.0)?)? } else { buffer }
        };
        t.param.set(&(param - step.affine(t.lr, 0.0)?)?)?;
    }
    Ok(())
}

/// See [`crate::update::adamw`].
///
/// # Errors
/// When a candle operation fails.
pub fn adamw(tensors: &[AdamwTensor<'_>], config: AdamwConfig) -> Result<()> {
    let correction1 = 1.0 - config.beta1.powf(config.step as f64);
    let correction2 = 1.0 - config.beta2.powf(config.step as f64);
    for t in tensors {
        let grad = t.grad.detach();
        let first = (t.first.detach().affine(config.beta1, 0.0)? + grad.affine(1.0 - config.beta1, 0.0)?)?;
        let second = (t.second.detach().affine(config.beta2, 0.0)? + grad.sqr()?.affine(1.0 - config.beta2, 0.0)?)?;
        let denominator = second.sqrt()?.affine(1.0 / correction2.sqrt(), config.eps)?;
        let param = t.param.detach().affine(1.0 - t.lr * t.weight_decay, 0.0)?;
        let next = (param - (&first / denominator)?.affine(t.lr / correction1, 0.0)?)?;
        t.first.set(&first)?;
        t.second.set(&second)?;
        t.param.set(&next)?;
    }
    Ok(())
}

/// See [`crate::update::square_sums`].
///
/// # Errors
/// When a candle operation fails.
pub fn square_sums(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    tensors
        .iter()
        .map(|t| match t.elem_count() {
            0 => Ok(0.0),
            _ => t.detach().to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>(),
        })
        .collect()
}
