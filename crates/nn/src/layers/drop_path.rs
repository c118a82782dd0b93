//! Stochastic depth.

use candle_core::Tensor;
use rand::Rng;

use crate::{Builder, Error, Mode, Result};

/// Drops a residual branch for whole samples, and scales the kept ones by 1 / (1 − rate) (Huang et al. 2016). Its draws come
/// from the mode's key and the layer's name.
#[derive(Debug, Clone)]
pub struct DropPath {
    name: String,
    rate: f64,
}

impl DropPath {
    /// A layer that drops a share `rate`, 0 to below 1.
    ///
    /// # Errors
    /// A rate outside that range.
    pub fn new(b: &Builder, rate: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&rate) {
            return Err(Error::BadSetting(format!("drop path {}: rate {rate} is not in 0 to below 1", b.prefix())));
        }
        Ok(Self { name: b.prefix().to_string(), rate })
    }

    /// Whether this pass drops anything.
    pub fn is_active(&self, mode: &Mode) -> bool {
        mode.train && self.rate > 0.0
    }

    /// (N, …) → the same.
    ///
    /// # Errors
    /// A scalar, which has no samples.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        if !self.is_active(mode) {
            return Ok(x.clone());
        }
        let n = x.dim(0)?;
        let mut rng = mode.key.rng(&self.name);
        let kept = (1.0 / (1.0 - self.rate)) as f32;
        let places: Vec<usize> = mode.places(n).collect();
        let draws: Vec<f64> = (0..=places.iter().copied().max().unwrap_or(0)).map(|_| rng.random()).collect();
        let mask: Vec<f32> = places.iter().map(|&i| if draws[i] < self.rate { 0.0 } else { kept }).collect();
        let mut shape = vec![1; x.rank()];
        shape[0] = n;
        Ok(x.broadcast_mul(&Tensor::from_vec(mask, shape, x.device())?)?)
    }
}
