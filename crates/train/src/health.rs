//! Whether training is healthy, told without labels: how far embeddings spread, and when to stop with a diagnosis.

use candle_core::{DType, Tensor};
use twinsight_knn::{Matrix, health};

use crate::{Diagnosis, Result};

/// Spread of a batch's embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    /// Mean standard deviation of the dimensions of L2-normalised rows, times √dim: 1 when they fill the sphere, 0 when all
    /// images are mapped to one point (Chen & He 2021, figure 2).
    pub feature_std: f64,
    /// Effective rank of the rows (RankMe, Garrido et al. 2023), between 1 and min(rows, dim).
    pub effective_rank: f64,
}

impl Health {
    /// Measures (N, D) embeddings, or the first 512 rows of them.
    ///
    /// # Errors
    /// A tensor that is no matrix.
    pub fn of(embedding: &Tensor) -> Result<Self> {
        let (n, dim) = embedding.dims2()?;
        let rows = n.min(512);
        let data = embedding.narrow(0, 0, rows)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let matrix = Matrix { data: &data, rows, dim };
        let std = health::std_per_dimension(matrix)?;
        let mean = std.iter().map(|&s| f64::from(s)).sum::<f64>() / dim as f64;
        Ok(Self { feature_std: mean * (dim as f64).sqrt(), effective_rank: health::effective_rank(matrix)? })
    }
}

/// Watches losses and health over the steps of a run. Its state is part of the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Watch {
    /// Health measurements in a row that looked collapsed.
    pub collapsed: u64,
}

/// Below this [`Health::feature_std`] the embeddings are one point for all practical purposes (cosine similarity of
/// any two above 0.9996).
const COLLAPSED_STD: f64 = 0.02;
/// So many measurements in a row make a collapse: a network starts with similar outputs for all images.
const PATIENCE: u64 = 5;

impl Watch {
    /// Judges the loss of a step before it is used.
    pub fn loss(&self, step: u64, loss: f64, lr: f64, method: &str) -> Option<Diagnosis> {
        (!loss.is_finite()).then(|| Diagnosis {
            step,
            finding: format!("the loss of {method} is {loss}"),
            advice: lower_rate(lr),
        })
    }

    /// The diagnosis of a gradient that is not finite although the loss is: `finding` names the parameter.
    pub fn gradient(&self, step: u64, finding: &str, lr: f64) -> Diagnosis {
        Diagnosis { step, finding: finding.to_string(), advice: lower_rate(lr) }
    }

    /// Judges a health measurement.
    pub fn health(&mut self, step: u64, health: Health, method: &str) -> Option<Diagnosis> {
        let collapsed = health.feature_std.is_nan() || health.feature_std < COLLAPSED_STD;
        self.collapsed = if collapsed { self.collapsed + 1 } else { 0 };
        (self.collapsed >= PATIENCE).then(|| Diagnosis {
            step,
            finding: format!(
                "the embeddings of {method} have collapsed to one point (spread {:.4}, healthy values are 0.1 to 1)",
                health.feature_std
            ),
            advice: "Lower schedule.lr, lengthen schedule.warmup_epochs, or use a larger batch; for DINO also lower \
                     options.teacher_temperature and check that the centre is updated. a new run with --set log.on_collapse=warn trains on regardless"
                .into(),
        })
    }
}

/// What to do when numbers grow beyond all bounds at learning rate `lr`.
fn lower_rate(lr: f64) -> String {
    format!(
        "Most often the learning rate is too high (it is {lr:.3e}): try --set schedule.lr at a third of it, a longer warm-up \
         (schedule.warmup_epochs), or --set optimizer.clip_norm=3"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn one_point_is_a_collapse_and_a_sphere_is_not() -> Result<()> {
        let point = Tensor::ones((64, 16), DType::F32, &Device::Cpu)?;
        let spread: Vec<f32> = (0..64 * 16).map(|i| ((i * 7919 % 1009) as f32 / 504.5) - 1.0).collect();
        let spread = Tensor::from_vec(spread, (64, 16), &Device::Cpu)?;
        assert!(Health::of(&point)?.feature_std < 1e-3);
        let healthy = Health::of(&spread)?;
        assert!((0.8..1.05).contains(&healthy.feature_std), "{healthy:?}");
        assert!(healthy.effective_rank > 8.0, "{healthy:?}");
        let mut watch = Watch::default();
        let found: Vec<bool> = (0..6).map(|s| Ok(watch.health(s, Health::of(&point)?, "x").is_some())).collect::<Result<_>>()?;
        assert_eq!(found, [false, false, false, false, true, true]);
        assert!(watch.health(7, healthy, "x").is_none());
        assert_eq!(watch.collapsed, 0);
        Ok(())
    }

    #[test]
    fn a_loss_that_is_not_finite_is_named() {
        let watch = Watch::default();
        assert!(watch.loss(3, 1.0, 0.1, "simclr").is_none());
        let text = watch.loss(3, f64::NAN, 0.1, "simclr").expect("diagnosis").to_string();
        assert!(text.contains("step 3") && text.contains("schedule.lr"), "{text}");
    }
}
