//! Barlow Twins (Zbontar et al. 2021): over a batch, the projections of two views correlate in every element with
//! themselves and not at all with each other. No negatives, no teacher, no predictor.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use twinsight_augment::{ByolViews, ViewPlan};
use twinsight_kernels::{BatchNormConfig, batch_norm_train, linear};
use twinsight_nn::Mode;

use crate::config::{defaults, ensure, read};
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "Barlow Twins",
    paper: "Zbontar et al. 2021, Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    summary: "no negatives: elements of two views' projections correlate with themselves alone; likes wide projectors",
    encoder: EncoderNeed::Any,
    needs: "128 images a batch or more; a wide projector, whose last layers take more memory than a small backbone",
    choose: "without negatives and without a second network; robust where SimCLR's batch would have to be large",
    defaults: defaults::<BarlowTwinsConfig>,
    views: |table, context| read::<BarlowTwinsConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(BarlowTwins::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: ByolViews::KEYS, defaults: defaults::<BarlowTwinsConfig> },
};

const NAME: &str = "barlow_twins";

const KEYS: &[(&str, &str)] = &[
    ("lambda", "weight of the correlations between different elements; over 0 (0.0051 in the paper)"),
    ("scale", "factor of the whole loss; over 0 (1 in the paper, 0.024 in its program, for LARS)"),
    ("hidden_dim", "width of the projector's two hidden layers (8192 in the paper)"),
    ("projection_dim", "elements of a projection (8192 in the paper)"),
];

/// Barlow Twins' settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BarlowTwinsConfig {
    /// Weight of the correlations between different elements; over 0. The paper has 0.0051.
    pub lambda: f64,
    /// Factor of the whole loss; over 0. The paper's text has none; its program multiplies by 0.024 and solo-learn by 0.1, both
    /// for LARS.
    pub scale: f64,
    /// Width of the projector's two hidden layers.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size. The paper
    /// takes BYOL's.
    pub views: ByolViews,
}

impl Default for BarlowTwinsConfig {
    fn default() -> Self {
        Self { lambda: 0.0051, scale: 1.0, hidden_dim: 8192, projection_dim: 8192, views: views::by_size(ByolViews::for_size) }
    }
}

impl BarlowTwinsConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::different(&self.views, ByolViews::for_size, context)
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.lambda > 0.0 && self.lambda.is_finite(), "lambda", self.lambda, "over 0")?;
        ensure(NAME, self.scale > 0.0 && self.scale.is_finite(), "scale", self.scale, "over 0")?;
        ensure(NAME, self.hidden_dim > 0, "hidden_dim", self.hidden_dim, "at least 1")?;
        ensure(NAME, self.projection_dim > 1, "projection_dim", self.projection_dim, "at least 2")
    }
}

/// Barlow Twins at work.
pub struct BarlowTwins {
    config: BarlowTwinsConfig,
    plan: ViewPlan,
    net: Single<ProjectionHead>,
    target: Target,
}

impl BarlowTwins {
    /// Builds backbone and projector.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &BarlowTwinsConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, outputs) = (config.hidden_dim, config.projection_dim);
        let net = Single::new(context, |b, dim| {
            ProjectionHead::normed(&b.under("projector"), &[dim, hidden, hidden, outputs], HeadNorm::None)
        })?;
        let target = Target::new(outputs, config.lambda, &context.device)?;
        Ok(Self { config: config.clone(), plan, net, target })
    }
}

impl Method for BarlowTwins {
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
        let correlation = correlation(&z)?;
        let loss = (self.target.loss(&correlation)? * self.config.scale)?;
        let own = (correlation.detach() * &self.target.identity)?.sum(1)?.sum_all()?;
        let [embedding, partner] = halves(&z.detach())?;
        Ok(LossOutput {
            loss,
            embedding,
            partner: Some(partner),
            assignments: None,
            metrics: vec![("correlation", (own / self.config.projection_dim as f64)?)],
        })
    }
}

/// The loss of Zbontar et al. 2021, equation 1: Σᵢ (1 − Cᵢᵢ)² + λ Σᵢ Σⱼ≠ᵢ Cᵢⱼ² with the cross-correlation C of the two
/// batches, each standardised element by element (biased variance, eps 1e-5, as their program's batch norm).
///
/// Same values as lightly's `BarlowTwinsLoss`.
///
/// # Shapes
/// `a` and `b`: (N, D), row i of both from one image. The result is a scalar.
///
/// # Errors
/// When shapes differ.
pub fn barlow_twins_loss(a: &Tensor, b: &Tensor, lambda: f64) -> Result<Tensor> {
    let (_, d) = a.dims2()?;
    Target::new(d, lambda, a.device())?.loss(&correlation(&Tensor::cat(&[a, b], 0)?)?)
}

/// (D, D) from (2 N, D): the cross-correlation of the first N rows with the others.
fn correlation(z: &Tensor) -> Result<Tensor> {
    let n = z.dim(0)? / 2;
    let z = batch_norm_train(z, None, None, None, BatchNormConfig { groups: 2, ..BatchNormConfig::default() })?.y;
    let (a, b) = (z.narrow(0, 0, n)?, z.narrow(0, n, n)?);
    Ok((linear(&a.t()?, &b.t()?, None)? * (1.0 / n as f64))?)
}

/// What the cross-correlation should be, and the root of what a deviation from it weighs.
struct Target {
    identity: Tensor,
    weights: Tensor,
}

impl Target {
    fn new(d: usize, lambda: f64, device: &Device) -> Result<Self> {
        let identity = Tensor::eye(d, DType::F32, device)?;
        let root = lambda.sqrt();
        let weights = identity.affine(1.0 - root, root)?;
        Ok(Self { identity, weights })
    }

    fn loss(&self, correlation: &Tensor) -> Result<Tensor> {
        // By rows first: on a GPU a sum of all numbers at once is one block's.
        Ok(((correlation - &self.identity)? * &self.weights)?.sqr()?.sum(1)?.sum_all()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use twinsight_test_support::{Golden, assert_close};

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        let golden = Golden::load("loss_barlow_twins")?;
        let var = |key| -> anyhow::Result<Var> {
            let t = golden.get(key)?;
            Ok(Var::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?)
        };
        let (a, b) = (var("a")?, var("b")?);
        let loss = barlow_twins_loss(&a, &b, golden.number("lambda_param")?)?;
        assert_close("loss", &[loss.to_scalar::<f32>()?], &golden.get("loss")?.data, 1e-5)?;
        let gradients = loss.backward()?;
        for (key, v) in [("grad_a", &a), ("grad_b", &b)] {
            let gradient = gradients.get(v).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            assert_close(key, &gradient, &golden.get(key)?.data, 1e-4)?;
        }
        Ok(())
    }

    #[test]
    fn independent_elements_cost_nothing_and_equal_ones_cost_lambda_a_pair() -> anyhow::Result<()> {
        // Columns of a Hadamard matrix: mean 0, variance 1, no correlation between columns.
        let columns = [[1f32, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0]];
        let of = |columns: &[[f32; 4]]| -> anyhow::Result<Tensor> {
            let rows: Vec<Vec<f32>> = (0..4).map(|i| columns.iter().map(|c| c[i]).collect()).collect();
            Ok(Tensor::new(rows, &Device::Cpu)?)
        };
        let z = of(&columns)?;
        let loss = f64::from(barlow_twins_loss(&z, &z, 0.5)?.to_scalar::<f32>()?);
        assert!(loss.abs() < 1e-6, "{loss}");
        let same = of(&[columns[0], columns[0]])?;
        let loss = f64::from(barlow_twins_loss(&same, &same, 0.5)?.to_scalar::<f32>()?);
        assert!((loss - 2.0 * 0.5).abs() < 1e-3, "{loss}");
        Ok(())
    }
}
