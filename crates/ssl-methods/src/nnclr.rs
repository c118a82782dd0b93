//! NNCLR (Dwibedi et al. 2021): the positive of a view is not the other view of its image but the nearest of past projections to
//! it, taken from a queue, so that pairs differ by more than augmentation can make them.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_kernels::{l2_normalize, linear};
use twinsight_nn::{Mode, StateVisitor};

use crate::config::{defaults, ensure, read};
use crate::contrast::match_rows;
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::queue::Queue;
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "NNCLR",
    paper: "Dwibedi et al. 2021, With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning",
    summary: "contrastive: a view's positive is its nearest neighbour among past projections; needs less augmentation",
    encoder: EncoderNeed::Any,
    needs: "256 images a batch or more, and a queue much longer than there are kinds of images; no second network",
    choose: "where augmentation cannot show how images of one kind differ",
    defaults: defaults::<NnclrConfig>,
    views: |table, context| read::<NnclrConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Nnclr::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<NnclrConfig> },
};

const NAME: &str = "nnclr";

const KEYS: &[(&str, &str)] = &[
    ("temperature", "divides similarities; over 0 (0.1 in the paper)"),
    ("hidden_dim", "width of the projector's two hidden layers (2048 in the paper)"),
    ("projection_dim", "elements of a projection (256 in the paper)"),
    ("predictor_hidden_dim", "hidden width of the predictor (4096 in the paper)"),
    ("queue_size", "past projections that neighbours are looked for in (98304 in the paper); at most a few epochs' images"),
];

/// NNCLR's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NnclrConfig {
    /// Divides similarities; over 0. The paper has 0.1.
    pub temperature: f64,
    /// Width of the projector's two hidden layers. The paper has 2048.
    pub hidden_dim: usize,
    /// Elements of a projection. The paper has 256.
    pub projection_dim: usize,
    /// Hidden width of the predictor. The paper has 4096.
    pub predictor_hidden_dim: usize,
    /// Past projections that neighbours are looked for in. The paper has 98304.
    pub queue_size: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: SimclrViews,
}

impl Default for NnclrConfig {
    fn default() -> Self {
        Self {
            temperature: 0.1,
            hidden_dim: 2048,
            projection_dim: 256,
            predictor_hidden_dim: 4096,
            queue_size: 98304,
            views: views::by_size(SimclrViews::for_size),
        }
    }
}

impl NnclrConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::alike(&self.views, SimclrViews::for_size, context)
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.temperature > 0.0 && self.temperature.is_finite(), "temperature", self.temperature, "over 0")?;
        for (key, value) in [
            ("hidden_dim", self.hidden_dim),
            ("projection_dim", self.projection_dim),
            ("predictor_hidden_dim", self.predictor_hidden_dim),
            ("queue_size", self.queue_size),
        ] {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        Ok(())
    }
}

/// NNCLR at work.
pub struct Nnclr {
    config: NnclrConfig,
    plan: ViewPlan,
    net: Single<(ProjectionHead, ProjectionHead)>,
    queue: Queue,
    /// The first views' projections since the last step.
    seen: Option<Tensor>,
}

impl Nnclr {
    /// Builds backbone, projector, predictor and queue.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &NnclrConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, dim) = (config.hidden_dim, config.projection_dim);
        let net = Single::new(context, |b, inputs| {
            // Behind the last norm no scale and shift: the predictor's own batch norm would undo the shift.
            let projector = ProjectionHead::normed(&b.under("projector"), &[inputs, hidden, hidden, dim], HeadNorm::Plain)?;
            let widths = [dim, config.predictor_hidden_dim, dim];
            Ok((projector, ProjectionHead::normed_with_bias(&b.under("predictor"), &widths)?))
        })?;
        let queue = Queue::new(config.queue_size, dim, context.seed, &context.device)?;
        Ok(Self { config: config.clone(), plan, net, queue, seen: None })
    }
}

impl Method for Nnclr {
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
        let mode = at.mode().with_views(2);
        let (projector, predictor) = &self.net.branch.head;
        let z = projector.forward(&rows(&outputs.student[0])?, &mode)?;
        let [p1, p2] = halves(&predictor.forward(&z, &mode)?)?;
        let [z1, z2] = halves(&z.detach())?;
        let (loss, accuracy) = swapped(&z1, &z2, &p1, &p2, &self.queue.rows(), self.config.temperature)?;
        self.seen = Some(z1.clone());
        Ok(LossOutput {
            loss,
            embedding: z1,
            partner: Some(z2),
            assignments: None,
            metrics: vec![("contrastive_accuracy", accuracy)],
        })
    }

    fn after_step(&mut self, _at: &At) -> Result<()> {
        match self.seen.take() {
            Some(rows) => self.queue.put(&rows),
            None => Ok(()),
        }
    }

    fn visit_own_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.seen = None;
        self.queue.visit("queue", visitor)
    }
}

/// The loss of Dwibedi et al. 2021 (algorithm 1): the neighbour in `queue` of each view's projection is to be found among the predictions
/// from the other views; the mean of both directions. Only the predictions get gradients.
///
/// # Shapes
/// `z1`, `z2`, `p1`, `p2`: (N, D), row i of all from one image; `queue`: (Q, D). The result is a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn nnclr_loss(z1: &Tensor, z2: &Tensor, p1: &Tensor, p2: &Tensor, queue: &Tensor, temperature: f64) -> Result<Tensor> {
    Ok(swapped(z1, z2, p1, p2, queue, temperature)?.0)
}

fn swapped(z1: &Tensor, z2: &Tensor, p1: &Tensor, p2: &Tensor, queue: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let queue = l2_normalize(&queue.detach(), 1e-12)?;
    let neighbours = |z: &Tensor| -> Result<Tensor> {
        let similarity = linear(&l2_normalize(&z.detach(), 1e-12)?, &queue, None)?;
        Ok(queue.index_select(&similarity.argmax(D::Minus1)?, 0)?)
    };
    let (first, accuracy) = match_rows(&neighbours(z1)?, p2, temperature)?;
    let (second, _) = match_rows(&neighbours(z2)?, p1, temperature)?;
    Ok((((first + second)? * 0.5)?, accuracy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn neighbours_take_the_place_of_the_other_view() -> anyhow::Result<()> {
        let unit = Tensor::eye(3, DType::F32, &Device::Cpu)?;
        // Each projection leans to a direction of its own, whose exact form lies in the queue.
        let z = (&unit + 0.2)?;
        let loss =
            |p: &Tensor| -> anyhow::Result<f64> { Ok(f64::from(nnclr_loss(&z, &z, p, p, &unit, 0.5)?.to_scalar::<f32>()?)) };
        // With the neighbours as predictions: similarity 1 to one's own, 0 to the two others.
        let want = (1.0 + 2.0 * (-2f64).exp()).ln();
        assert!((loss(&unit)? - want).abs() < 1e-5, "{} against {want}", loss(&unit)?);
        // Predictions of the neighbours of other images cost more.
        let turned = Tensor::cat(&[unit.narrow(0, 1, 2)?, unit.narrow(0, 0, 1)?], 0)?;
        assert!((loss(&turned)? - (want + 2.0)).abs() < 1e-5);
        Ok(())
    }
}
