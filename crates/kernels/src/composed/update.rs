//! Updates of variables, each tensor by a chain of operations and one copy.

use candle_core::{D, DType, Result, Tensor, Var};

use crate::update::{AdamwConfig, AdamwTensor, Clip, SgdConfig, SgdTensor};

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
    if tensors.iter().any(|t| t.device().is_metal()) {
        return square_sums_by_rows(tensors);
    }
    tensors
        .iter()
        .map(|t| match t.elem_count() {
            0 => Ok(0.0),
            _ => t.detach().to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>(),
        })
        .collect()
}

/// The same for devices without `f64`, which Metal is: what belongs to one index of the first axis is added up in `f32` there, those sums in
/// `f64` here, and all of them are read at once.
///
/// # Errors
/// When a candle operation fails.
pub fn square_sums_by_rows(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let rows = |t: &Tensor| match (t.elem_count(), t.dims()) {
        (0, _) => 0,
        (_, [first, _, ..]) => *first,
        _ => 1,
    };
    let filled = tensors.iter().filter(|t| t.elem_count() > 0);
    let sums =
        filled.map(|t| t.detach().contiguous()?.reshape((rows(t), ()))?.sqr()?.sum(D::Minus1)).collect::<Result<Vec<_>>>()?;
    let read = if sums.is_empty() { Vec::new() } else { Tensor::cat(&sums, 0)?.to_vec1::<f32>()? };
    let mut read = read.into_iter().map(f64::from);
    Ok(tensors.iter().map(|t| read.by_ref().take(rows(t)).sum()).collect())
}

/// See [`crate::update::clip`]. Sums and factors are `f32` here and stay on the device.
///
/// # Errors
/// When a candle operation fails.
pub fn clip(tensors: &mut [&mut Tensor], max: f64, of: Clip) -> Result<()> {
    let square = |t: &Tensor| match t.elem_count() {
        0 => Tensor::zeros((), DType::F32, t.device()),
        _ => t.detach().sqr()?.sum_all(),
    };
    if tensors.is_empty() {
        return Ok(());
    }
    let together = match of {
        Clip::Each => None,
        Clip::Together => {
            let squares = tensors.iter().map(|t| square(t)).collect::<Result<Vec<Tensor>>>()?;
            Some(factor(&Tensor::stack(&squares, 0)?.sum_all()?, max)?)
        }
    };
    for t in tensors.iter_mut() {
        let factor = match &together {
            Some(factor) => factor.clone(),
            None => factor(&square(t)?, max)?,
        };
        **t = t.detach().broadcast_mul(&factor)?;
    }
    Ok(())
}

/// What takes a norm, whose square is given, to at most `max`: max / (norm + 1e-6), at most 1, and 1 for NaN.
fn factor(square: &Tensor, max: f64) -> Result<Tensor> {
    let factor = ((square.sqrt()? + 1e-6)?.recip()? * max)?;
    let one = factor.ones_like()?;
    // NaN is not below 1.
    factor.lt(&one)?.where_cond(&factor, &one)
}
