//! Activation functions.

use candle_core::{Result, Tensor};

/// See [`crate::relu`].
///
/// # Errors
/// When a candle operation fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.le(0f32)?.where_cond(&x.zeros_like()?, x)
}

/// See [`crate::gelu`].
///
/// # Errors
/// When a candle operation fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}
