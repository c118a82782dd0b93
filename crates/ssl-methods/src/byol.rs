//! BYOL (Grill et al. 2020): a student's prediction from one view meets the teacher's projection of the other; the teacher
//! is the student's moving average, and there are no negatives.
//!
//! The teacher runs in training mode, on the statistics of the batch, as the paper's target network does; its running
//! statistics are its own and serve nothing else.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{ByolViews, ViewPlan};
use twinsight_encoders::Encoder;
use twinsight_kernels::l2_normalize;
use twinsight_nn::{Builder, ParamStore, StateVisitor};

use crate::config::{defaults, ensure, read};
use crate::networks::{check_views, encode_views, follow, momentum_at, start_teacher};
use crate::{At, Keys, LossOutput, Method, MethodContext, MethodSpec, ProjectionHead, Result, ViewContext, views};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "BYOL",
    paper: "Grill et al. 2020, Bootstrap Your Own Latent",
    summary: "no negatives: a student predicts what its own moving average sees in another view; small batches do",
    defaults: defaults::<ByolConfig>,
    views: |table, context| read::<ByolConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Byol::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: ByolViews::KEYS, defaults: defaults::<ByolConfig> },
};

const NAME: &str = "byol";

const KEYS: &[(&str, &str)] = &[
    ("momentum", "of the teacher at the start, growing to 1 by a cosine; 0 to 1 (0.996 in the paper)"),
    ("hidden_dim", "hidden width of projector and predictor (4096 in the paper)"),
    ("projection_dim", "elements of a projection"),
];

/// BYOL's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByolConfig {
    /// Momentum of the teacher at the start, growing to 1 by a cosine; 0 to 1. The paper has 0.996 for 1000 epochs of
    /// ImageNet; fewer steps want a faster teacher.
    pub momentum: f64,
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
            momentum: 0.99,
            hidden_dim: 1024,
            projection_dim: 256,
            views: views::by_size(&ByolViews::small(), &ByolViews::default()),
        }
    }
}

impl ByolConfig {
    /// Two views of full size, made differently.
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        let views = views::resolve(&self.views, &ByolViews::for_size(context.image_size));
        let plan = ViewPlan::byol(context.image_size, context.channels, &views).with_normalize(context.normalize.clone());
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, (0.0..=1.0).contains(&self.momentum), "momentum", self.momentum, "0 to 1")?;
        ensure(NAME, self.hidden_dim > 0, "hidden_dim", self.hidden_dim, "at least 1")?;
        ensure(NAME, self.projection_dim > 0, "projection_dim", self.projection_dim, "at least 1")
    }
}

/// BYOL at work.
pub struct Byol {
    config: ByolConfig,
    plan: ViewPlan,
    online: Branch,
    predictor: ProjectionHead,
    student: ParamStore,
    target: Branch,
    teacher: ParamStore,
}

impl Byol {
    /// Builds student and teacher, which start alike.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &ByolConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let b = Builder::new(context.seed, &context.device);
        let online = Branch::new(&b, config, context)?;
        let dim = config.projection_dim;
        let predictor = ProjectionHead::two_layers(&b.under("predictor"), dim, config.hidden_dim, dim, false)?;
        let student = b.finish();
        let b = Builder::new(context.seed, &context.device);
        let target = Branch::new(&b, config, context)?;
        let teacher = b.finish();
        start_teacher(&teacher, &student)?;
        Ok(Self { config: config.clone(), plan, online, predictor, student, target, teacher })
    }
}

impl Method for Byol {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn loss(&mut self, views: &[Tensor], at: &At) -> Result<LossOutput> {
        let n = check_views(&self.plan, views)?;
        let mode = at.mode();
        let projection = self.online.forward(views, &mode)?;
        let prediction = self.predictor.forward(&projection, &mode.with_stat_groups(views.len()))?;
        // Row i of the swapped targets is the other view's projection of the image in row i of the predictions.
        let target = self.target.forward(views, &mode.without_grad())?;
        let swapped = Tensor::cat(&[target.narrow(0, n, n)?, target.narrow(0, 0, n)?], 0)?;
        let momentum = momentum_at(self.config.momentum, at.progress());
        Ok(LossOutput {
            loss: (negative_cosine(&prediction, &swapped)? + 1.0)?,
            embedding: projection.detach().narrow(0, 0, n)?,
            metrics: vec![("momentum", Tensor::new(momentum as f32, projection.device())?)],
        })
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        follow(&self.teacher, &self.student, momentum_at(self.config.momentum, at.progress()))
    }

    fn student(&self) -> &ParamStore {
        &self.student
    }

    fn teacher(&self) -> Option<&ParamStore> {
        Some(&self.teacher)
    }

    fn encoder(&self) -> &dyn Encoder {
        &*self.online.backbone
    }

    fn encoder_params(&self) -> ParamStore {
        self.student.sub_store("backbone")
    }

    fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        visitor.params("student", &self.student)?;
        Ok(visitor.params("teacher", &self.teacher)?)
    }
}

/// What student and teacher both have.
struct Branch {
    backbone: Box<dyn Encoder>,
    projector: ProjectionHead,
}

impl Branch {
    fn new(b: &Builder, config: &ByolConfig, context: &MethodContext) -> Result<Self> {
        let backbone = (context.encoder.build)(&context.encoder_config, &b.under("backbone"))?;
        let (inputs, hidden) = (backbone.dim(), config.hidden_dim);
        let projector = ProjectionHead::two_layers(&b.under("projector"), inputs, hidden, config.projection_dim, false)?;
        Ok(Self { backbone, projector })
    }

    fn forward(&self, views: &[Tensor], mode: &twinsight_nn::Mode) -> Result<Tensor> {
        let vectors = encode_views(&*self.backbone, views, mode)?;
        self.projector.forward(&vectors, &mode.with_stat_groups(views.len()))
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
