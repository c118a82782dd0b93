//! Distributions over prototypes: balanced ones by Sinkhorn's algorithm, and how a batch is spread.

use candle_core::{D, DType, Tensor};

use crate::{Assignments, Result};

/// Balanced assignments of N samples to K prototypes (Caron et al. 2020, SwAV; Cuturi 2013): exp(`scores` / `epsilon`), its columns and
/// rows scaled in turn `iterations` times, so that every prototype gets about the same share of the batch and every sample's assignment
/// sums to 1. Outside of any graph.
///
/// Same values as lightly's `sinkhorn`.
///
/// # Shapes
/// `scores` (N, K); the result likewise.
///
/// # Errors
/// When `scores` are not of two axes.
pub fn sinkhorn(scores: &Tensor, epsilon: f64, iterations: usize) -> Result<Tensor> {
    let (n, _) = scores.dims2()?;
    let scores = (scores.detach().to_dtype(DType::F32)? * (1.0 / epsilon))?;
    // A factor that all entries share changes nothing, so the largest exponential is 1.
    let mut q = scores.broadcast_sub(&scores.max_all()?)?.exp()?;
    q = q.broadcast_div(&q.sum_all()?)?;
    for _ in 0..iterations {
        // A prototype so far from all samples that its column vanishes keeps it.
        q = q.broadcast_div(&(q.sum_keepdim(0)? + f64::from(f32::MIN_POSITIVE))?)?;
        q = (q.broadcast_div(&(q.sum_keepdim(D::Minus1)? + f64::from(f32::MIN_POSITIVE))?)? * (1.0 / n as f64))?;
    }
    Ok((q * n as f64)?)
}

impl Assignments {
    /// Measures distributions (N, K), rows that sum to 1.
    ///
    /// # Errors
    /// When `p` is not of two axes.
    pub fn of(p: &Tensor) -> Result<Self> {
        let p = p.detach();
        let (_, k) = p.dims2()?;
        let top = (k.max(2) as f64).ln();
        let entropy = |p: &Tensor| -> Result<Tensor> { Ok((p * (p + 1e-12)?.log()?)?.sum(D::Minus1)?.neg()?) };
        let usage = (entropy(&p.mean_keepdim(0)?)?.squeeze(0)?.exp()? * (1.0 / k as f64))?;
        Ok(Self { entropy: (entropy(&p)?.mean_all()? * (1.0 / top))?, usage, prototypes: k })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_sum_to_one_and_columns_are_alike() -> Result<()> {
        let scores: Vec<f32> = (0..60).map(|i| ((i * 7 % 13) as f32 - 6.0) / 10.0).collect();
        let q = sinkhorn(&Tensor::from_vec(scores, (12, 5), &Device::Cpu)?, 0.5, 50)?;
        for row in q.sum(1)?.to_vec1::<f32>()? {
            assert!((row - 1.0).abs() < 1e-5);
        }
        for column in q.sum(0)?.to_vec1::<f32>()? {
            assert!((column - 12.0 / 5.0).abs() < 0.05, "{column}");
        }
        Ok(())
    }

    #[test]
    fn scores_of_any_size_stay_finite() -> Result<()> {
        let scores = Tensor::new(&[[1000f32, 0.0, -1000.0], [900.0, 5.0, 0.0]], &Device::Cpu)?;
        let q = sinkhorn(&scores, 0.05, 3)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(q.iter().all(|v| v.is_finite()), "{q:?}");
        Ok(())
    }

    #[test]
    fn spread_is_measured() -> Result<()> {
        let value = |t: &Tensor| t.to_scalar::<f32>();
        let one_hot = Tensor::eye(4, DType::F32, &Device::Cpu)?;
        let found = Assignments::of(&one_hot)?;
        assert!(value(&found.entropy)?.abs() < 1e-5 && (value(&found.usage)? - 1.0).abs() < 1e-5);
        let flat = (Tensor::ones((3, 4), DType::F32, &Device::Cpu)? * 0.25)?;
        let found = Assignments::of(&flat)?;
        assert!((value(&found.entropy)? - 1.0).abs() < 1e-5 && (value(&found.usage)? - 1.0).abs() < 1e-5);
        let same = Tensor::new(&[[1f32, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], &Device::Cpu)?;
        let found = Assignments::of(&same)?;
        assert!(value(&found.entropy)?.abs() < 1e-5 && (value(&found.usage)? - 0.25).abs() < 1e-5);
        Ok(())
    }
}
