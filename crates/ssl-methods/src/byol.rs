//! BYOL (Grill et al. 2020): a student's prediction from one view meets the teacher's projection of the other; the teacher
//! is the student's moving average, and there are no negatives.
//!
//! The teacher runs in training mode, on the statistics of the batch, as the paper's target network does; its running
//! statistics are its own and serve nothing else.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{ByolViews, ViewPlan};
use twinsight_kernels::l2_normalize;
use twinsight_nn::Mode;

use crate::config::{defaults, ensure, read};
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Pair, momentum_at, rows};
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "BYOL",
    paper: "Grill et al. 2020, Bootstrap Your Own Latent",
    summary: "no negatives: a student predicts what its own moving average sees in another view; small batches do",
    encoder: EncoderNeed::Any,
    needs: "64 images a batch will do; a second network as large as the first",
    choose: "for small batches and images that are much alike; slow to start, strong in long runs",
    defaults: defaults::<ByolConfig>,
    views: |table, context| read::<ByolConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Byol::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: ByolViews::KEYS, defaults: defaults::<ByolConfig> },
};

const NAME: &str = "byol";

const KEYS: &[(&str, &str)] = &[
    (
        "momentum",
        "of the teacher at the start, moving to `momentum_end` by a cosine; 0 to 1 (0.996 in the paper); lower for runs of few steps",
    ),
    ("momentum_end", "of the teacher at the end; 0 to 1; as `momentum` for one that stays"),
    (
        "scale",
        "factor of the loss: 4 is the paper's sum over both directions, 1 lightly's mean; with SGD it multiplies the learning rate",
    ),
    ("hidden_dim", "hidden width of projector and predictor (4096 in the paper)"),
    ("projection_dim", "elements of a projection"),
];

/// BYOL's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByolConfig {
    /// Momentum of the teacher at the start, moving to `momentum_end` by a cosine; 0 to 1. The paper has 0.996 for
    /// 1000 epochs of ImageNet; fewer steps want a faster teacher.
    pub momentum: f64,
    /// Momentum of the teacher at the end; 0 to 1.
    pub momentum_end: f64,
    /// Factor of the loss 1 − cos, the mean over both directions. The paper's loss is 2 − 2 cos (equation 2) summed over both: 4.
    /// lightly's has the gradient of 1.
    pub scale: f64,
    /// Hidden width of projector and predictor. The paper has 4096.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: ByolViews,
}

impl Default for ByolConfig {
    fn default() -> Self {
        Self {
            momentum: 0.996,
            momentum_end: 1.0,
            scale: 4.0,
            hidden_dim: 4096,
            projection_dim: 256,
            views: views::by_size(ByolViews::for_size),
        }
    }
}

impl ByolConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::different(&self.views, ByolViews::for_size, context)
    }

    /// At the start and at the end.
    fn momenta(&self) -> [f64; 2] {
        [self.momentum, self.momentum_end]
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [("momentum", self.momentum), ("momentum_end", self.momentum_end)] {
            ensure(NAME, (0.0..=1.0).contains(&value), key, value, "0 to 1")?;
        }
        ensure(NAME, self.scale > 0.0 && self.scale.is_finite(), "scale", self.scale, "over 0")?;
        ensure(NAME, self.hidden_dim > 0, "hidden_dim", self.hidden_dim, "at least 1")?;
        ensure(NAME, self.projection_dim > 0, "projection_dim", self.projection_dim, "at least 1")
    }
}

/// BYOL at work.
pub struct Byol {
    config: ByolConfig,
    plan: ViewPlan,
    net: Pair<ProjectionHead, ProjectionHead>,
}

impl Byol {
    /// Builds student and teacher, which start alike.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &ByolConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, dim) = (config.hidden_dim, config.projection_dim);
        let net = Pair::new(
            context,
            |b, inputs| ProjectionHead::normed(&b.under("projector"), &[inputs, hidden, dim], HeadNorm::None),
            |b| ProjectionHead::normed(&b.under("predictor"), &[dim, hidden, dim], HeadNorm::None),
        )?;
        Ok(Self { config: config.clone(), plan, net })
    }
}

impl Method for Byol {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks(false)
    }

    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.student.vectors(views, mode)
    }

    fn teacher_outputs(&self, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.teacher.vectors(views, mode)
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let mode = at.mode().with_views(2);
        let projection = self.net.student.head.forward(&rows(&outputs.student[0])?, &mode)?;
        let prediction = self.net.predictor.forward(&projection, &mode)?;
        // Row i of the swapped targets is the other view's projection of the image in row i of the predictions.
        let target = self.net.teacher.head.forward(&rows(&outputs.teacher[0])?, &mode.without_grad())?;
        let [first, second] = halves(&target)?;
        let momentum = momentum_at(self.config.momenta(), at.progress());
        let [embedding, partner] = halves(&projection.detach())?;
        Ok(LossOutput {
            loss: negative_cosine(&prediction, &Tensor::cat(&[second, first], 0)?)?
                .affine(self.config.scale, self.config.scale)?,
            metrics: vec![("momentum", Tensor::new(momentum as f32, projection.device())?)],
            embedding,
            partner: Some(partner),
            assignments: None,
        })
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        self.net.follow(momentum_at(self.config.momenta(), at.progress()))
    }
}

/// −cos(aᵢ, bᵢ), the mean over the rows: −1 when every pair points the same way, 1 when opposite ways.
///
/// Same values as lightly's `NegativeCosineSimilarity`. The regression loss of Grill et al. 2020 is 2 + 2 times this.
///
/// # Shapes
/// `a` and `b`: (N, D). The result is a scalar.
///
/// # Errors
/// When shapes differ.
pub fn negative_cosine(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (rows, _) = a.dims2()?;
    let dots = (l2_normalize(a, 1e-8)? * l2_normalize(b, 1e-8)?)?;
    Ok((dots.sum_all()? * (-1.0 / rows as f64))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use twinsight_test_support::{Golden, assert_close};

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        let golden = Golden::load("loss_negative_cosine")?;
        let var = |key| -> anyhow::Result<Var> {
            let t = golden.get(key)?;
            Ok(Var::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?)
        };
        let (a, b) = (var("a")?, var("b")?);
        let loss = negative_cosine(&a, &b)?;
        assert_close("loss", &[loss.to_scalar::<f32>()?], &golden.get("loss")?.data, 1e-5)?;
        let gradients = loss.backward()?;
        for (key, v) in [("grad_a", &a), ("grad_b", &b)] {
            let gradient = gradients.get(v).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            assert_close(key, &gradient, &golden.get(key)?.data, 1e-5)?;
        }
        Ok(())
    }
}
