//! SimCLR (Chen et al. 2020): two views of an image attract each other, all other views of the batch repel.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_nn::Mode;

use crate::config::{defaults, ensure, read};
use crate::contrast::PairTable;
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "SimCLR",
    paper: "Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations",
    summary: "contrastive: two views of an image attract, all other views of the batch repel; likes large batches",
    encoder: EncoderNeed::Any,
    needs: "hundreds of images a batch, better thousands (`--micro-batch` makes any batch fit); no second network",
    choose: "the baseline to begin with: simple, steady, and its loss tells how far it is",
    defaults: defaults::<SimClrConfig>,
    views: |table, context| read::<SimClrConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(SimClr::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<SimClrConfig> },
};

const NAME: &str = "simclr";

const KEYS: &[(&str, &str)] = &[
    (
        "temperature",
        "divides similarities; over 0 (0.5 for small images, 0.1 for ImageNet); lower tells near images apart, higher forgives \
         batches that hold many images of one kind",
    ),
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
        Self { temperature: 0.5, hidden_dim: 0, projection_dim: 128, views: views::by_size(SimclrViews::for_size) }
    }
}

impl SimClrConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::alike(&self.views, SimclrViews::for_size, context)
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
    net: Single<ProjectionHead>,
}

impl SimClr {
    /// Builds backbone and projector.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &SimClrConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let net = Single::new(context, |b, dim| {
            let hidden = if config.hidden_dim == 0 { dim } else { config.hidden_dim };
            ProjectionHead::normed(&b.under("projector"), &[dim, hidden, config.projection_dim], HeadNorm::Batch)
        })?;
        Ok(Self { config: config.clone(), plan, net })
    }
}

impl Method for SimClr {
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
        let table = PairTable::new(&a, &b, self.config.temperature)?;
        Ok(LossOutput {
            loss: pair_loss(&table)?,
            embedding: a.detach(),
            partner: Some(b.detach()),
            assignments: None,
            metrics: vec![("contrastive_accuracy", table.accuracy()?)],
        })
    }
}

/// The first and the second view's rows of (2 N, D).
pub(crate) fn halves(z: &Tensor) -> Result<[Tensor; 2]> {
    let n = z.dim(0)? / 2;
    Ok([z.narrow(0, 0, n)?, z.narrow(0, n, n)?])
}

fn pair_loss(table: &PairTable) -> Result<Tensor> {
    Ok((table.log_sum_all()? - table.positives())?.mean_all()?)
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
    pair_loss(&PairTable::new(a, b, temperature)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
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
