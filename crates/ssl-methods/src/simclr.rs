//! SimCLR (Chen et al. 2020): two views of an image attract each other, all other views of the batch repel.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_encoders::Encoder;
use twinsight_kernels::{cross_entropy_soft, l2_normalize, linear};
use twinsight_nn::{Builder, ParamStore, StateVisitor};

use crate::config::{defaults, ensure, read};
use crate::networks::{check_views, encode_views};
use crate::{At, Keys, LossOutput, Method, MethodContext, MethodSpec, ProjectionHead, Result, ViewContext, views};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "SimCLR",
    paper: "Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations",
    summary: "contrastive: two views of an image attract, all other views of the batch repel; likes large batches",
    defaults: defaults::<SimClrConfig>,
    views: |table, context| read::<SimClrConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(SimClr::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<SimClrConfig> },
};

const NAME: &str = "simclr";

const KEYS: &[(&str, &str)] = &[
    ("temperature", "divides similarities; over 0 (0.5 for small images, 0.1 for ImageNet)"),
    ("hidden_dim", "hidden width of the projector; 0: as wide as the encoder's vectors"),
    ("projection_dim", "elements of a projection"),
];

/// SimCLR's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimClrConfig {
    /// Divides similarities; over 0. The paper has 0.5 for CIFAR-10 and 0.1 for ImageNet.
    pub temperature: f64,
    /// Hidden width of the projector; 0: as wide as the encoder's vectors.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: SimclrViews,
}

impl Default for SimClrConfig {
    fn default() -> Self {
        Self {
            temperature: 0.5,
            hidden_dim: 0,
            projection_dim: 128,
            views: views::by_size(&SimclrViews::small(), &SimclrViews::default()),
        }
    }
}

impl SimClrConfig {
    /// Two views of full size.
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        let views = views::resolve(&self.views, &SimclrViews::for_size(context.image_size));
        let plan = ViewPlan::simclr(context.image_size, context.channels, &views).with_normalize(context.normalize.clone());
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.temperature > 0.0 && self.temperature.is_finite(), "temperature", self.temperature, "over 0")?;
        ensure(NAME, self.projection_dim > 0, "projection_dim", self.projection_dim, "at least 1")
    }
}

/// SimCLR at work.
pub struct SimClr {
    config: SimClrConfig,
    plan: ViewPlan,
    backbone: Box<dyn Encoder>,
    projector: ProjectionHead,
    student: ParamStore,
}

impl SimClr {
    /// Builds backbone and projector.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &SimClrConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let b = Builder::new(context.seed, &context.device);
        let backbone = (context.encoder.build)(&context.encoder_config, &b.under("backbone"))?;
        let dim = backbone.dim();
        let hidden = if config.hidden_dim == 0 { dim } else { config.hidden_dim };
        let projector = ProjectionHead::two_layers(&b.under("projector"), dim, hidden, config.projection_dim, true)?;
        Ok(Self { config: config.clone(), plan, backbone, projector, student: b.finish() })
    }
}

impl Method for SimClr {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn loss(&mut self, views: &[Tensor], at: &At) -> Result<LossOutput> {
        let n = check_views(&self.plan, views)?;
        let mode = at.mode();
        let vectors = encode_views(&*self.backbone, views, &mode)?;
        let z = self.projector.forward(&vectors, &mode.with_stat_groups(views.len()))?;
        let logits = similarities(&z, self.config.temperature)?;
        let targets = partners(n, &z)?;
        let found = logits.detach().argmax(D::Minus1)?.eq(&targets.argmax(D::Minus1)?)?;
        Ok(LossOutput {
            loss: cross_entropy_soft(&logits, &targets)?,
            embedding: z.detach().narrow(0, 0, n)?,
            metrics: vec![("contrastive_accuracy", found.to_dtype(DType::F32)?.mean_all()?)],
        })
    }

    fn student(&self) -> &ParamStore {
        &self.student
    }

    fn teacher(&self) -> Option<&ParamStore> {
        None
    }

    fn encoder(&self) -> &dyn Encoder {
        &*self.backbone
    }

    fn encoder_params(&self) -> ParamStore {
        self.student.sub_store("backbone")
    }

    fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        Ok(visitor.params("student", &self.student)?)
    }
}

/// The normalised temperature-scaled cross-entropy of Chen et al. 2020: for each of the 2 N projections, the cross-entropy of
/// finding its partner among the 2 N − 1 others by cosine similarity over `temperature`; the mean over all.
///
/// Same values as lightly's `NTXentLoss` without a memory bank.
///
/// # Shapes
/// `a` and `b`: (N, D), row i of both from one image. The result is a scalar.
///
/// # Errors
/// When shapes differ.
pub fn nt_xent(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Tensor> {
    let z = Tensor::cat(&[a, b], 0)?;
    Ok(cross_entropy_soft(&similarities(&z, temperature)?, &partners(a.dim(0)?, &z)?)?)
}

/// (2 N, 2 N) cosine similarities over `temperature`, those of a row with itself so low that it is never chosen.
fn similarities(z: &Tensor, temperature: f64) -> Result<Tensor> {
    let rows = z.dim(0)?;
    let z = l2_normalize(z, 1e-12)?;
    let logits = (linear(&z, &z, None)? * (1.0 / temperature))?;
    let itself = (Tensor::eye(rows, DType::F32, z.device())? * -1e9)?;
    Ok((logits + itself)?)
}

/// (2 N, 2 N), 1 where row i and column i ± N are views of one image.
fn partners(n: usize, like: &Tensor) -> Result<Tensor> {
    let mut targets = vec![0f32; 4 * n * n];
    for i in 0..n {
        targets[i * 2 * n + i + n] = 1.0;
        targets[(i + n) * 2 * n + i] = 1.0;
    }
    Ok(Tensor::from_vec(targets, (2 * n, 2 * n), like.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use twinsight_test_support::{Golden, assert_close};

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        let golden = Golden::load("loss_nt_xent")?;
        let var = |key| -> anyhow::Result<Var> {
            let t = golden.get(key)?;
            Ok(Var::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?)
        };
        let (a, b) = (var("a")?, var("b")?);
        let loss = nt_xent(&a, &b, golden.number("temperature")?)?;
        assert_close("loss", &[loss.to_scalar::<f32>()?], &golden.get("loss")?.data, 1e-5)?;
        let gradients = loss.backward()?;
        for (key, v) in [("grad_a", &a), ("grad_b", &b)] {
            let gradient = gradients.get(v).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            assert_close(key, &gradient, &golden.get(key)?.data, 1e-5)?;
        }
        Ok(())
    }

    #[test]
    fn equal_pairs_that_are_orthogonal_to_the_rest_give_the_known_value() -> anyhow::Result<()> {
        let z = Tensor::eye(4, DType::F32, &Device::Cpu)?;
        let loss = f64::from(nt_xent(&z, &z, 0.5)?.to_scalar::<f32>()?);
        let want = (2f64.exp() + 6.0).ln() - 2.0;
        assert!((loss - want).abs() < 1e-5, "{loss} against {want}");
        Ok(())
    }
}
