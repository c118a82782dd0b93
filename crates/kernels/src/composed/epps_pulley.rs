//! The Epps-Pulley statistic.

use candle_core::{D, Result, Tensor};

/// See [`crate::epps_pulley`].
///
/// # Errors
/// When a candle operation fails.
pub fn epps_pulley(x: &Tensor, knots: usize, max: f64) -> Result<Tensor> {
    let (v, n, m) = x.dims3()?;
    let dt = max / (knots - 1) as f64;
    let times: Vec<f32> = (0..knots).map(|k| (k as f64 * dt) as f32).collect();
    let phi: Vec<f32> = (0..knots).map(|k| (-(k as f64 * dt).powi(2) / 2.0).exp() as f32).collect();
    let weights: Vec<f32> =
        phi.iter().enumerate().map(|(k, &p)| p * dt as f32 * if k == 0 || k + 1 == knots { 1.0 } else { 2.0 }).collect();
    let row = |values: Vec<f32>| Tensor::from_vec(values, knots, x.device());
    let angles = x.reshape((v, n, m, 1))?.broadcast_mul(&row(times)?)?;
    let (cos, sin) = (angles.cos()?.mean(1)?, angles.sin()?.mean(1)?);
    let off = (cos.broadcast_sub(&row(phi)?)?.sqr()? + sin.sqr()?)?;
    off.broadcast_mul(&row(weights)?)?.sum(D::Minus1)?.mean_all()? * n as f64
}
