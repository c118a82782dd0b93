//! LeJEPA (Balestriero & LeCun 2025): views are drawn to the mean of an image's large views, and the batch's projections to an isotropic
//! Gaussian distribution (SIGReg). No teacher, no predictor, no stopped gradient, no schedule: one weight between two terms.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{DinoViews, ViewPlan};
use twinsight_kernels::transfer::send;
use twinsight_kernels::{epps_pulley, l2_normalize, linear};
use twinsight_nn::{DrawKey, Mode};

use crate::config::{defaults, ensure, read};
use crate::dino::GLOBAL_VIEWS;
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::{
    At, EncoderNeed, Error, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "LeJEPA",
    paper: "Balestriero & LeCun 2025, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
    summary: "no teacher, no negatives: views agree, and projections are spread as a Gaussian",
    encoder: EncoderNeed::Any,
    needs: "128 images a batch or more; several small crops an image; no second network",
    choose: "where nothing is to be tuned but one weight; its loss follows the quality of the encoder",
    defaults: defaults::<LeJepaConfig>,
    views: |table, context| read::<LeJepaConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(LeJepa::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: DinoViews::KEYS, defaults: defaults::<LeJepaConfig> },
};

const NAME: &str = "lejepa";

const KEYS: &[(&str, &str)] = &[
    ("lambda", "share of SIGReg in the loss; above 0, below 1 (0.05 in the paper); higher where the effective rank is low"),
    ("slices", "random directions a step along which distributions are compared (1024 in the paper)"),
    ("knots", "frequencies at which they are compared (17 in the paper)"),
    ("max_frequency", "the highest of them; over 0 (3 in the reference implementation)"),
    ("hidden_dim", "width of the projector's two hidden layers (2048 in the reference implementation)"),
    ("projection_dim", "elements of a projection"),
    ("local_views", "small crops an image (6 in the paper)"),
    ("local_size", "side of small crops in pixels; 0: 3/7 of the image size, so that patches fit"),
];

/// LeJEPA's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeJepaConfig {
    /// Share of SIGReg in the loss; above 0, below 1. The paper has 0.05.
    pub lambda: f64,
    /// Random directions a step. The paper has 1024.
    pub slices: usize,
    /// Frequencies, from 0 to the highest in equal steps. The paper has 17.
    pub knots: usize,
    /// The highest frequency; over 0.
    pub max_frequency: f64,
    /// Width of the projector's two hidden layers.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// Small crops an image.
    pub local_views: usize,
    /// Side of small crops in pixels; 0: 3/7 of the image size (96 for 224), rounded to a multiple of the encoder's patches.
    pub local_size: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: DinoViews,
}

impl Default for LeJepaConfig {
    fn default() -> Self {
        Self {
            lambda: 0.05,
            slices: 1024,
            knots: 17,
            max_frequency: 3.0,
            hidden_dim: 2048,
            projection_dim: 128,
            local_views: 6,
            local_size: 0,
            views: views::by_size(lejepa_views),
        }
    }
}

/// The paper's crops: large ones of 30 to 100 % of the area, small ones of 5 to 30 %; colours as DINO's.
fn lejepa_views(size: usize) -> DinoViews {
    DinoViews { crop_scale_min: 0.3, local_scale_max: 0.3, ..DinoViews::for_size(size) }
}

impl LeJepaConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::multi_crop(&self.views, lejepa_views, [self.local_views, self.local_size], context)
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.lambda > 0.0 && self.lambda < 1.0, "lambda", self.lambda, "above 0 and below 1")?;
        let frequency = self.max_frequency;
        ensure(NAME, frequency > 0.0 && frequency.is_finite(), "max_frequency", frequency, "over 0")?;
        ensure(NAME, self.knots > 1, "knots", self.knots, "at least 2")?;
        for (key, value) in [("slices", self.slices), ("hidden_dim", self.hidden_dim), ("projection_dim", self.projection_dim)] {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        Ok(())
    }
}

/// LeJEPA at work.
pub struct LeJepa {
    config: LeJepaConfig,
    plan: ViewPlan,
    net: Single<ProjectionHead>,
}

impl LeJepa {
    /// Builds backbone and projector.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &LeJepaConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, outputs) = (config.hidden_dim, config.projection_dim);
        let net = Single::new(context, |b, dim| {
            ProjectionHead::normed(&b.under("projector"), &[dim, hidden, hidden, outputs], HeadNorm::None)
        })?;
        Ok(Self { config: config.clone(), plan, net })
    }
}

impl Method for LeJepa {
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
        let (count, n, _) = outputs.student[0].dims3()?;
        let c = &self.config;
        // The views count as one batch for the head's batch norm: each view's own statistics would make its distribution standard.
        let z = self.net.branch.head.forward(&rows(&outputs.student[0])?, &at.mode())?.reshape((count, n, ()))?;
        let key = DrawKey { seed: at.seed, step: at.step, pass: 0 };
        let slices = key.normals("slices", c.slices * c.projection_dim);
        let slices = l2_normalize(&send(slices, (c.slices, c.projection_dim), z.device())?, 1e-12)?;
        let spread = sigreg(&z, &slices, c.knots, c.max_frequency)?;
        let agreement = invariance(&z, GLOBAL_VIEWS)?;
        let fixed = z.detach();
        Ok(LossOutput {
            loss: ((&spread * c.lambda)? + (&agreement * (1.0 - c.lambda))?)?,
            embedding: fixed.get(0)?,
            partner: Some(fixed.get(1)?),
            assignments: None,
            metrics: vec![("sigreg", spread.detach()), ("invariance", agreement.detach())],
        })
    }
}

/// The loss of Balestriero & LeCun 2025: `lambda` · SIGReg of all views + (1 − `lambda`) · the mean squared difference of all views from the
/// mean of the first `large`.
///
/// Same values as lightly's `LeJEPALoss` with the given slices.
///
/// # Shapes
/// `z` (V, N, D): projections; `slices` (M, D): directions of length 1. The result is a scalar.
///
/// # Errors
/// When shapes do not fit, or there are fewer views than `large`.
pub fn lejepa_loss(z: &Tensor, large: usize, slices: &Tensor, lambda: f64, knots: usize, max_frequency: f64) -> Result<Tensor> {
    let spread = sigreg(z, slices, knots, max_frequency)?;
    Ok(((spread * lambda)? + (invariance(z, large)? * (1.0 - lambda))?)?)
}

/// SIGReg: how far the projections of each view lie from a standard Gaussian along each of the slices, by the Epps-Pulley statistic; the
/// mean over views and slices. N ∫ |φ̂(t) − φ(t)|² φ(t) dt over ±`max_frequency` by the trapezoidal rule at `knots` frequencies of each sign,
/// φ̂ the empirical characteristic function and φ(t) = exp(−t²/2).
///
/// Same values as lightly's `SIGReg`.
///
/// # Shapes
/// `z` (V, N, D), `slices` (M, D); the result is a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn sigreg(z: &Tensor, slices: &Tensor, knots: usize, max_frequency: f64) -> Result<Tensor> {
    if z.rank() != 3 || slices.rank() != 2 || z.dims()[2] != slices.dims()[1] {
        return Err(Error::BadViews(format!(
            "projections of shape {:?} and slices of {:?}, expected (V, N, D) and (M, D)",
            z.dims(),
            slices.dims()
        )));
    }
    Ok(epps_pulley(&linear(z, &slices.detach(), None)?, knots, max_frequency)?)
}

fn invariance(z: &Tensor, large: usize) -> Result<Tensor> {
    let centres = z.narrow(0, 0, large)?.mean_keepdim(0)?;
    Ok(z.broadcast_sub(&centres)?.sqr()?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::{golden_tensor, matches_golden};
    use candle_core::Var;
    use twinsight_test_support::{Golden, assert_close};

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        matches_golden("loss_lejepa", &[("global_proj", "grad_global"), ("local_proj", "grad_local")], |x, g| {
            let z = Tensor::cat(&[&x[0], &x[1]], 0)?;
            let slices = golden_tensor(g, "slices")?.t()?.contiguous()?;
            let (knots, top) = (g.number("knots")? as usize, g.number("t_max")?);
            Ok(lejepa_loss(&z, x[0].dim(0)?, &slices, g.number("lambda_param")?, knots, top)?)
        })?;
        let golden = Golden::load("loss_lejepa")?;
        let z = Tensor::cat(&[golden_tensor(&golden, "global_proj")?, golden_tensor(&golden, "local_proj")?], 0)?;
        let slices = golden_tensor(&golden, "slices")?.t()?.contiguous()?;
        let found = sigreg(&z, &slices, golden.number("knots")? as usize, golden.number("t_max")?)?;
        assert_close("sigreg", &[found.to_scalar::<f32>()?], &golden.get("sigreg")?.data, 1e-5)
    }

    #[test]
    fn a_gaussian_costs_less_than_a_point() -> anyhow::Result<()> {
        let values = DrawKey { seed: 0, step: 0, pass: 0 }.normals("x", 400 * 4);
        let z = Var::from_vec(values, (1, 400, 4), &candle_core::Device::Cpu)?;
        let slices = l2_normalize(&z.get(0)?.narrow(0, 0, 16)?.detach(), 1e-12)?;
        let cost = |z: &Tensor| -> anyhow::Result<f32> { Ok(sigreg(z, &slices, 17, 3.0)?.to_scalar()?) };
        assert!(cost(&z)? * 20.0 < cost(&(z.as_tensor() * 0.0)?)?);
        Ok(())
    }
}
