//! Softmax and its kin along the last axis.

use candle_core::{D, Result, Tensor};

/// See [`crate::softmax`].
///
/// # Errors
/// When a candle operation fails.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// See [`crate::log_softmax`].
///
/// # Errors
/// When a candle operation fails.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// See [`crate::l2_normalize`].
///
/// # Errors
/// When a candle operation fails.
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    // The square root of the clamped square keeps the gradient finite at zero.
    let square = x.sqr()?.sum_keepdim(D::Minus1)?;
    let floor = eps.powi(2).max(f64::from(f32::MIN_POSITIVE));
    let inside = square.gt(floor)?;
    let norm = inside.where_cond(&square, &square.ones_like()?.affine(floor, 0.0)?)?.sqrt()?;
    x.broadcast_div(&norm)
}

/// See [`crate::cross_entropy_soft`].
///
/// # Errors
/// When a candle operation fails.
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let rows = logits.dim(0)? as f64;
    (log_softmax(logits)? * targets)?.sum_all()?.affine(-1.0 / rows, 0.0)
}

/// See [`crate::log_sum_exp`].
///
/// # Errors
/// When a candle operation fails.
pub fn log_sum_exp(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
    without(x, except)?.log_sum_exp(D::Minus1)
}

/// `x` with −1e30 added in the columns to leave out.
pub(crate) fn without(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
    if except.is_empty() {
        return Ok(x.clone());
    }
    let (rows, columns) = x.dims2()?;
    let mut mask = vec![0f32; rows * columns];
    for (row, entry) in mask.chunks_exact_mut(columns).zip(except) {
        entry.iter().for_each(|&c| row[c as usize] = -1e30);
    }
    x + Tensor::from_vec(mask, (rows, columns), x.device())?
}
