//! Decoupled contrastive learning (Yeh et al. 2022): SimCLR without the positive pair in the denominator, so that a pair that is
//! already close still pulls with full strength and small batches lose little; weighted (DCLW), pairs that are far apart pull more.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_kernels::{l2_normalize, softmax};
use twinsight_nn::Mode;

use crate::config::{defaults, ensure, read};
use crate::contrast::PairTable;
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry of DCL.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: "dcl",
    title: "DCL",
    paper: PAPER,
    summary: "contrastive: SimCLR without the positive pair among the negatives; small batches do",
    encoder: EncoderNeed::Any,
    needs: "64 images a batch will do, 256 are better; no second network",
    choose: "instead of SimCLR where the batch is small or the run short",
    defaults: defaults::<DclConfig>,
    views: |table, context| plan(&read::<DclConfig>("dcl", table)?.views, context),
    build: |table, context| Ok(Box::new(Dcl::new(&read("dcl", table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<DclConfig> },
};

/// The registry's entry of DCLW.
pub(crate) const WEIGHTED_SPEC: MethodSpec = MethodSpec {
    name: "dclw",
    title: "DCLW",
    summary: "contrastive: DCL that weighs each positive pair, far ones more",
    choose: "instead of DCL where views of one image differ much in how hard they are",
    defaults: defaults::<DclwConfig>,
    views: |table, context| plan(&read::<DclwConfig>("dclw", table)?.views, context),
    build: |table, context| Ok(Box::new(Dcl::weighted(&read("dclw", table)?, context)?)),
    keys: Keys { own: WEIGHTED_KEYS, views: SimclrViews::KEYS, defaults: defaults::<DclwConfig> },
    ..SPEC
};

const PAPER: &str = "Yeh et al. 2022, Decoupled Contrastive Learning";

const KEYS: &[(&str, &str)] = &[
    ("temperature", "divides similarities; over 0 (0.1 in the paper, 0.07 for CIFAR-10)"),
    ("hidden_dim", "hidden width of the projector; 0: as wide as the encoder's vectors"),
    ("projection_dim", "elements of a projection"),
];

const WEIGHTED_KEYS: &[(&str, &str)] = &[
    KEYS[0],
    ("sigma", "divides the similarities that weigh pairs; over 0 (0.5 in the paper); higher weighs all pairs alike"),
    KEYS[1],
    KEYS[2],
];

/// DCL's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DclConfig {
    /// Divides similarities; over 0. The paper has 0.1 for ImageNet and 0.07 for CIFAR-10.
    pub temperature: f64,
    /// Hidden width of the projector; 0: as wide as the encoder's vectors.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: SimclrViews,
}

impl Default for DclConfig {
    fn default() -> Self {
        Self { temperature: 0.1, hidden_dim: 0, projection_dim: 128, views: views::by_size(SimclrViews::for_size) }
    }
}

/// DCLW's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DclwConfig {
    /// Divides similarities; over 0. The paper has 0.1.
    pub temperature: f64,
    /// Divides the similarities that weigh pairs; over 0. The paper has 0.5.
    pub sigma: f64,
    /// Hidden width of the projector; 0: as wide as the encoder's vectors.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: SimclrViews,
}

impl Default for DclwConfig {
    fn default() -> Self {
        let DclConfig { temperature, hidden_dim, projection_dim, views } = DclConfig::default();
        Self { temperature, sigma: 0.5, hidden_dim, projection_dim, views }
    }
}

/// DCL or DCLW at work.
pub struct Dcl {
    temperature: f64,
    /// Of DCLW.
    sigma: Option<f64>,
    plan: ViewPlan,
    net: Single<ProjectionHead>,
}

impl Dcl {
    /// Builds backbone and projector.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &DclConfig, context: &MethodContext) -> Result<Self> {
        Self::build("dcl", config, None, context)
    }

    /// Builds backbone and projector for the weighted loss.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn weighted(config: &DclwConfig, context: &MethodContext) -> Result<Self> {
        let DclwConfig { temperature, sigma, hidden_dim, projection_dim, views } = config.clone();
        ensure("dclw", sigma > 0.0 && sigma.is_finite(), "sigma", sigma, "over 0")?;
        Self::build("dclw", &DclConfig { temperature, hidden_dim, projection_dim, views }, Some(sigma), context)
    }

    fn build(name: &'static str, config: &DclConfig, sigma: Option<f64>, context: &MethodContext) -> Result<Self> {
        let DclConfig { temperature, hidden_dim, projection_dim, .. } = *config;
        ensure(name, temperature > 0.0 && temperature.is_finite(), "temperature", temperature, "over 0")?;
        ensure(name, projection_dim > 0, "projection_dim", projection_dim, "at least 1")?;
        let plan = plan(&config.views, &context.view_context())?;
        let net = Single::new(context, |b, dim| {
            let hidden = if hidden_dim == 0 { dim } else { hidden_dim };
            ProjectionHead::normed(&b.under("projector"), &[dim, hidden, projection_dim], HeadNorm::Batch)
        })?;
        Ok(Self { temperature, sigma, plan, net })
    }
}

impl Method for Dcl {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks()
    }

    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.branch.vectors(views, mode)
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let z = self.net.branch.head.forward(&rows(&outputs.student[0])?, &at.mode().with_views(2))?;
        let [a, b] = halves(&z)?;
        let table = PairTable::new(&a, &b, self.temperature)?;
        let weights = self.sigma.map(|sigma| weights(&a, &b, sigma)).transpose()?;
        Ok(LossOutput {
            loss: decoupled(&table, weights.as_ref())?,
            embedding: a.detach(),
            partner: Some(b.detach()),
            assignments: None,
            metrics: vec![("contrastive_accuracy", table.accuracy()?)],
        })
    }
}

/// Two views of full size.
fn plan(views: &SimclrViews, context: &ViewContext) -> Result<ViewPlan> {
    views::alike(views, SimclrViews::for_size, context)
}

/// The loss of Yeh et al. 2022, equation 6: for each of the 2 N projections, −s⁺ / `temperature` + log Σ exp(s / `temperature`) over the
/// views of other images; the mean over all.
///
/// Same values as lightly's `DCLLoss`.
///
/// # Shapes
/// `a` and `b`: (N, D) with N ≥ 2, row i of both from one image. The result is a scalar.
///
/// # Errors
/// When shapes differ, or a batch of one image leaves no negatives.
pub fn dcl_loss(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Tensor> {
    decoupled(&PairTable::new(a, b, temperature)?, None)
}

/// As [`dcl_loss`], with each positive pair weighted by 2 − N softmaxₙ(⟨a, b⟩ / `sigma`), without a gradient through the weights: the
/// negative von Mises-Fisher weights of Yeh et al. 2022.
///
/// Same values as lightly's `DCLWLoss`.
///
/// # Errors
/// As [`dcl_loss`].
pub fn dclw_loss(a: &Tensor, b: &Tensor, temperature: f64, sigma: f64) -> Result<Tensor> {
    decoupled(&PairTable::new(a, b, temperature)?, Some(&weights(a, b, sigma)?))
}

fn decoupled(table: &PairTable, weights: Option<&Tensor>) -> Result<Tensor> {
    let positives = table.positives();
    let positives = weights.map_or_else(|| Ok(positives.clone()), |w| positives * w)?;
    Ok((table.log_sum_negatives()? - positives)?.mean_all()?)
}

/// (2 N): a weight for each pair, twice.
fn weights(a: &Tensor, b: &Tensor, sigma: f64) -> Result<Tensor> {
    let (a, b) = (l2_normalize(&a.detach(), 1e-12)?, l2_normalize(&b.detach(), 1e-12)?);
    let n = a.dim(0)? as f64;
    let weights = softmax(&((a * b)?.sum(D::Minus1)? * (1.0 / sigma))?)?.affine(-n, 2.0)?;
    Ok(Tensor::cat(&[&weights, &weights], 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::{check_pair, matches_golden_pair};

    #[test]
    fn both_losses_equal_lightly() -> anyhow::Result<()> {
        matches_golden_pair("loss_dcl", |a, b, g| Ok(dcl_loss(a, b, g.number("temperature")?)?))?;
        matches_golden_pair("loss_dclw", |a, b, g| Ok(dclw_loss(a, b, g.number("temperature")?, g.number("sigma")?)?))
    }

    #[test]
    fn a_closer_pair_costs_less_and_a_single_image_is_refused() -> anyhow::Result<()> {
        let (a, b) = check_pair(6, 4)?;
        let closer = ((&b * 0.5)? + (&a * 0.5)?)?;
        let loss = |b: &Tensor| -> anyhow::Result<f32> { Ok(dcl_loss(&a, b, 0.1)?.to_scalar()?) };
        assert!(loss(&closer)? < loss(&b)?);
        assert!(dcl_loss(&a.narrow(0, 0, 1)?, &b.narrow(0, 0, 1)?, 0.1).is_err());
        Ok(())
    }
}
