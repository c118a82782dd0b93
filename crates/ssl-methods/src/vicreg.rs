//! VICReg (Bardes et al. 2022): two views' projections are drawn together, while every element keeps a variance over the batch and
//! no two elements say the same. No negatives, no teacher, no predictor, nothing normalised.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{ByolViews, ViewPlan};
use twinsight_kernels::{linear, relu};
use twinsight_nn::Mode;

use crate::config::{defaults, ensure, read};
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Error, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "VICReg",
    paper: "Bardes et al. 2022, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
    summary: "no negatives: views agree, every element varies over the batch, no two elements say the same",
    encoder: EncoderNeed::Any,
    needs: "128 images a batch or more; a wide projector",
    choose: "as Barlow Twins, with three terms that can be weighed and read one by one",
    defaults: defaults::<VicRegConfig>,
    views: |table, context| read::<VicRegConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(VicReg::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: ByolViews::KEYS, defaults: defaults::<VicRegConfig> },
};

const NAME: &str = "vicreg";

const KEYS: &[(&str, &str)] = &[
    ("invariance", "weight of the views' squared distance (25 in the paper)"),
    ("variance", "weight of the elements' variance (25 in the paper); higher where embeddings shrink"),
    ("covariance", "weight of the covariances between elements (1 in the paper); higher where the effective rank is low"),
    ("hidden_dim", "width of the projector's two hidden layers (8192 in the paper)"),
    ("projection_dim", "elements of a projection (8192 in the paper)"),
];

/// Added to variances, as the reference implementation does.
const EPS: f64 = 1e-4;

/// VICReg's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VicRegConfig {
    /// Weight of the views' squared distance: λ, 25 in the paper.
    pub invariance: f64,
    /// Weight of the elements' variance: μ, 25 in the paper.
    pub variance: f64,
    /// Weight of the covariances between elements: ν, 1 in the paper.
    pub covariance: f64,
    /// Width of the projector's two hidden layers. The paper has 8192.
    pub hidden_dim: usize,
    /// Elements of a projection. The paper has 8192.
    pub projection_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size. The paper
    /// takes BYOL's.
    pub views: ByolViews,
}

impl Default for VicRegConfig {
    fn default() -> Self {
        Self {
            invariance: 25.0,
            variance: 25.0,
            covariance: 1.0,
            hidden_dim: 8192,
            projection_dim: 8192,
            views: views::by_size(ByolViews::for_size),
        }
    }
}

impl VicRegConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::different(&self.views, ByolViews::for_size, context)
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [("invariance", self.invariance), ("variance", self.variance), ("covariance", self.covariance)] {
            ensure(NAME, value >= 0.0 && value.is_finite(), key, value, "0 or more")?;
        }
        ensure(NAME, self.hidden_dim > 0, "hidden_dim", self.hidden_dim, "at least 1")?;
        ensure(NAME, self.projection_dim > 1, "projection_dim", self.projection_dim, "at least 2")
    }
}

/// VICReg at work.
pub struct VicReg {
    config: VicRegConfig,
    plan: ViewPlan,
    net: Single<ProjectionHead>,
}

impl VicReg {
    /// Builds backbone and projector.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &VicRegConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, outputs) = (config.hidden_dim, config.projection_dim);
        let net = Single::new(context, |b, dim| {
            ProjectionHead::normed(&b.under("projector"), &[dim, hidden, hidden, outputs], HeadNorm::None)
        })?;
        Ok(Self { config: config.clone(), plan, net })
    }
}

impl Method for VicReg {
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
        let terms = Terms::of(&a, &b)?;
        Ok(LossOutput {
            loss: terms.weighted(self.config.invariance, self.config.variance, self.config.covariance)?,
            embedding: a.detach(),
            partner: Some(b.detach()),
            assignments: None,
            metrics: vec![
                ("invariance", terms.invariance.detach()),
                ("variance", terms.variance.detach()),
                ("covariance", terms.covariance.detach()),
            ],
        })
    }
}

/// The loss of Bardes et al. 2022: `invariance` · mean squared difference + `variance` · ½ Σ over the views of the elements' mean
/// max(0, 1 − √(Var + 1e-4)) + `covariance` · Σ over the views of the squared covariances between different elements over D.
///
/// The hinge is halved as in the authors' program and lightly's `VICRegLoss`, whose values these are; solo-learn's is not.
///
/// # Shapes
/// `a` and `b`: (N, D) with N ≥ 2, row i of both from one image. The result is a scalar.
///
/// # Errors
/// When shapes differ, or a batch of one image has no variance.
pub fn vicreg_loss(a: &Tensor, b: &Tensor, invariance: f64, variance: f64, covariance: f64) -> Result<Tensor> {
    Terms::of(a, b)?.weighted(invariance, variance, covariance)
}

/// The three terms, unweighted.
struct Terms {
    invariance: Tensor,
    variance: Tensor,
    covariance: Tensor,
}

impl Terms {
    fn of(a: &Tensor, b: &Tensor) -> Result<Self> {
        let (n, _) = a.dims2()?;
        if n < 2 || a.dims() != b.dims() {
            return Err(Error::BadViews(format!(
                "projections of shapes {:?} and {:?}, expected twice (N, D) with two images or more",
                a.dims(),
                b.dims()
            )));
        }
        let (first, second) = (spread(a)?, spread(b)?);
        Ok(Self {
            invariance: (a - b)?.sqr()?.mean_all()?,
            variance: ((first.0 + second.0)? * 0.5)?,
            covariance: (first.1 + second.1)?,
        })
    }

    fn weighted(&self, invariance: f64, variance: f64, covariance: f64) -> Result<Tensor> {
        let sum = ((&self.invariance * invariance)? + (&self.variance * variance)?)?;
        Ok((sum + (&self.covariance * covariance)?)?)
    }
}

/// Of one view's projections: how far deviations fall short of 1, and the squared covariances between different elements over D.
fn spread(z: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, d) = z.dims2()?;
    let centred = z.broadcast_sub(&z.mean_keepdim(0)?)?;
    let variances = (centred.sqr()?.sum(0)? * (1.0 / (n - 1) as f64))?;
    let short = relu(&(&variances + EPS)?.sqrt()?.affine(-1.0, 1.0)?)?.mean_all()?;
    let columns = centred.t()?.contiguous()?;
    let covariances = (linear(&columns, &columns, None)? * (1.0 / (n - 1) as f64))?;
    // By rows first: on a GPU a sum of all numbers at once is one block's.
    let between = (covariances.sqr()?.sum(1)?.sum_all()? - variances.sqr()?.sum_all()?)?;
    Ok((short, (between * (1.0 / d as f64))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::matches_golden_pair;
    use candle_core::Device;

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        matches_golden_pair("loss_vicreg", |a, b, g| {
            Ok(vicreg_loss(a, b, g.number("lambda_param")?, g.number("mu_param")?, g.number("nu_param")?)?)
        })
    }

    #[test]
    fn each_term_is_what_it_says() -> anyhow::Result<()> {
        // Columns of a Hadamard matrix scaled to unbiased variance 1: uncorrelated, of deviation 1.
        let s = (3f32 / 4.0).sqrt();
        let z = Tensor::new(&[[s, s], [s, -s], [-s, s], [-s, -s]], &Device::Cpu)?;
        let value = |a: &Tensor, b: &Tensor, w: [f64; 3]| -> anyhow::Result<f32> {
            Ok(vicreg_loss(a, b, w[0], w[1], w[2])?.to_scalar()?)
        };
        assert!(value(&z, &z, [1.0, 1.0, 1.0])?.abs() < 1e-4);
        assert!((value(&z, &(&z + 2.0)?, [1.0, 0.0, 0.0])? - 4.0).abs() < 1e-4);
        assert!((value(&(&z * 0.5)?, &(&z * 0.5)?, [0.0, 1.0, 0.0])? - 0.5).abs() < 1e-3);
        let same = Tensor::cat(&[z.narrow(1, 0, 1)?, z.narrow(1, 0, 1)?], 1)?;
        assert!((value(&same, &same, [0.0, 0.0, 1.0])? - 2.0).abs() < 1e-4);
        assert!(vicreg_loss(&z.narrow(0, 0, 1)?, &z.narrow(0, 0, 1)?, 1.0, 1.0, 1.0).is_err());
        Ok(())
    }
}
