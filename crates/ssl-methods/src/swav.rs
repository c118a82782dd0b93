//! SwAV (Caron et al. 2020): views are assigned to prototypes, evenly over the batch; what one view is assigned to must be told from
//! another. No negatives, no teacher; small crops come cheap.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{DinoViews, Interpolation, ViewPlan};
use twinsight_kernels::{l2_normalize, linear, softmax};
use twinsight_nn::{Gradients, Init, Mode, Parameter, Role, StateVisitor};

use crate::assign::sinkhorn;
use crate::config::{defaults, ensure, read};
use crate::dino::GLOBAL_VIEWS;
use crate::distill::between_views;
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::queue::Queue;
use crate::{
    Assignments, At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext,
    views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "SwAV",
    paper: "Caron et al. 2020, Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    summary: "clustering: a view must tell which prototypes another was assigned to; assignments are balanced over the batch",
    encoder: EncoderNeed::Any,
    needs: "256 images a batch, or a queue of past ones; several small crops an image; no second network",
    choose: "where images fall into many kinds of about the same size",
    defaults: defaults::<SwavConfig>,
    views: |table, context| read::<SwavConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Swav::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: DinoViews::KEYS, defaults: defaults::<SwavConfig> },
};

const NAME: &str = "swav";

const KEYS: &[(&str, &str)] = &[
    ("temperature", "divides the student's scores; over 0 (0.1 in the paper)"),
    ("epsilon", "sharpness of the assignments; over 0 (0.05 in the paper); lower where their entropy stays near 1"),
    ("sinkhorn_iterations", "rounds of balancing (3 in the paper)"),
    ("hidden_dim", "hidden width of the projector (2048 in the paper)"),
    ("projection_dim", "elements of a projection (128 in the paper)"),
    ("prototypes", "prototypes (3000 in the paper); several times the kinds of images that are expected"),
    ("freeze_prototypes_steps", "steps at the start in which prototypes stay as they are (313 in the reference implementation)"),
    ("queue_size", "past projections of each large view that assignments are balanced with; 0: none; for small batches"),
    ("queue_start_epoch", "the epoch, from 0, from which on the queue counts (15 in the paper)"),
    ("local_views", "small crops an image (6 in the paper)"),
    ("local_size", "side of small crops in pixels; 0: 3/7 of the image size, so that patches fit"),
];

/// SwAV's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwavConfig {
    /// Divides the student's scores; over 0.
    pub temperature: f64,
    /// Sharpness of the assignments; over 0.
    pub epsilon: f64,
    /// Rounds of balancing.
    pub sinkhorn_iterations: usize,
    /// Hidden width of the projector.
    pub hidden_dim: usize,
    /// Elements of a projection.
    pub projection_dim: usize,
    /// Prototypes.
    pub prototypes: usize,
    /// Steps at the start in which prototypes stay as they are.
    pub freeze_prototypes_steps: u64,
    /// Past projections of each large view that assignments are balanced with; 0: none. The paper has 3840 for batches of 256.
    pub queue_size: usize,
    /// The epoch, from 0, from which on the queue counts.
    pub queue_start_epoch: u64,
    /// Small crops an image.
    pub local_views: usize,
    /// Side of small crops in pixels; 0: 3/7 of the image size (96 for 224), rounded to a multiple of the encoder's patches.
    pub local_size: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: DinoViews,
}

impl Default for SwavConfig {
    fn default() -> Self {
        Self {
            temperature: 0.1,
            epsilon: 0.05,
            sinkhorn_iterations: 3,
            hidden_dim: 2048,
            projection_dim: 128,
            prototypes: 3000,
            freeze_prototypes_steps: 313,
            queue_size: 0,
            queue_start_epoch: 15,
            local_views: 6,
            local_size: 0,
            views: views::by_size(swav_views),
        }
    }
}

/// The reference implementation's views: SimCLR's colours in all crops, large ones of 14 to 100 % of the area, small ones of 5 to 14 %.
fn swav_views(size: usize) -> DinoViews {
    let blur = if size <= ViewPlan::SMALL { 0.0 } else { 0.5 };
    DinoViews {
        crop_scale_min: 0.14,
        local_scale_min: 0.05,
        local_scale_max: 0.14,
        interpolation: Interpolation::Bilinear,
        jitter_brightness: 0.8,
        jitter_contrast: 0.8,
        jitter_saturation: 0.8,
        jitter_hue: 0.2,
        blur_p_1: blur,
        blur_p_2: blur,
        blur_p_local: blur,
        solarize_p_2: 0.0,
        ..DinoViews::default()
    }
}

impl SwavConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::multi_crop(&self.views, swav_views, [self.local_views, self.local_size], context)
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [("temperature", self.temperature), ("epsilon", self.epsilon)] {
            ensure(NAME, value > 0.0 && value.is_finite(), key, value, "over 0")?;
        }
        for (key, value) in [
            ("sinkhorn_iterations", self.sinkhorn_iterations),
            ("hidden_dim", self.hidden_dim),
            ("projection_dim", self.projection_dim),
        ] {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        ensure(NAME, self.prototypes > 1, "prototypes", self.prototypes, "at least 2")
    }
}

/// SwAV at work.
pub struct Swav {
    config: SwavConfig,
    plan: ViewPlan,
    net: Single<(ProjectionHead, Parameter)>,
    /// One for each large view, if there are any.
    queues: Vec<Queue>,
    /// The large views' projections since the last step.
    seen: Option<Tensor>,
}

impl Swav {
    /// Builds backbone, projector, prototypes and queues.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &SwavConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let dim = config.projection_dim;
        let net = Single::new(context, |b, inputs| {
            let projector = ProjectionHead::normed(&b.under("projector"), &[inputs, config.hidden_dim, dim], HeadNorm::None)?;
            let shape = [config.prototypes, dim];
            let prototypes = b.under("prototypes").parameter("weight", &shape, Role::Weight, Init::TorchDefault)?;
            prototypes.set(&l2_normalize(prototypes.value(), 1e-12)?)?;
            Ok((projector, prototypes))
        })?;
        let queues = match config.queue_size {
            0 => Vec::new(),
            size => (0..GLOBAL_VIEWS as u64)
                .map(|view| Queue::new(size, dim, context.seed ^ view, &context.device))
                .collect::<Result<_>>()?,
        };
        Ok(Self { config: config.clone(), plan, net, queues, seen: None })
    }
}

impl Method for Swav {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks()
    }

    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.branch.joint_vectors(views, mode)
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let (count, n, _) = outputs.student[0].dims3()?;
        let mode = at.mode();
        let (projector, prototypes) = &self.net.branch.head;
        let z = projector.forward(&rows(&outputs.student[0])?, &mode)?;
        let z = l2_normalize(&z, 1e-12)?;
        let scores = linear(&z, prototypes.get(&mode), None)?.reshape((count, n, ()))?;
        let z = z.detach();
        let mut codes = Vec::with_capacity(GLOBAL_VIEWS);
        for view in 0..GLOBAL_VIEWS {
            let own = scores.detach().get(view)?;
            let used = |q: &&Queue| q.is_full() && at.epoch >= self.config.queue_start_epoch;
            let all = match self.queues.get(view).filter(used) {
                Some(queue) => Tensor::cat(&[own, linear(&queue.rows(), prototypes.value(), None)?], 0)?,
                None => own,
            };
            codes.push(sinkhorn(&all, self.config.epsilon, self.config.sinkhorn_iterations)?.narrow(0, 0, n)?);
        }
        let large = (rows(&scores.detach().narrow(0, 0, GLOBAL_VIEWS)?)? * (1.0 / self.config.temperature))?;
        self.seen = Some(z.narrow(0, 0, GLOBAL_VIEWS * n)?);
        let codes = Tensor::stack(&codes, 0)?;
        Ok(LossOutput {
            loss: between_views(&scores, &codes, self.config.temperature)?,
            embedding: z.narrow(0, 0, n)?,
            partner: Some(z.narrow(0, n, n)?),
            // Codes are balanced whatever happens; what the scores by themselves say is what can collapse.
            assignments: Some(Assignments::of(&softmax(&large)?)?),
            metrics: Vec::new(),
        })
    }

    fn adjust_gradients(&mut self, gradients: &mut Gradients, at: &At) -> Result<()> {
        if at.step < self.config.freeze_prototypes_steps {
            gradients.remove(self.net.branch.head.1.name());
        }
        Ok(())
    }

    fn after_step(&mut self, _at: &At) -> Result<()> {
        let prototypes = &self.net.branch.head.1;
        prototypes.set(&l2_normalize(prototypes.value(), 1e-12)?)?;
        if let Some(seen) = self.seen.take() {
            let n = seen.dim(0)? / GLOBAL_VIEWS;
            for (view, queue) in self.queues.iter_mut().enumerate() {
                queue.put(&seen.narrow(0, view * n, n)?)?;
            }
        }
        Ok(())
    }

    fn visit_own_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.seen = None;
        self.queues.iter_mut().enumerate().try_for_each(|(i, queue)| queue.visit(&format!("queue_{i}"), visitor))
    }
}

/// The loss of Caron et al. 2020 (SwAV), equation 2 with multi-crop: the cross-entropy between the balanced assignments ([`sinkhorn`]) of
/// the first `large` views and every other view's scores over `temperature`; the mean over pairs and images.
///
/// Same values as lightly's `SwaVLoss`.
///
/// # Shapes
/// `scores` (V, N, K): cosines of projections and prototypes. The result is a scalar.
///
/// # Errors
/// When there is one view, or fewer than `large`.
pub fn swav_loss(scores: &Tensor, large: usize, temperature: f64, epsilon: f64, iterations: usize) -> Result<Tensor> {
    let codes = (0..large).map(|view| sinkhorn(&scores.detach().get(view)?, epsilon, iterations)).collect::<Result<Vec<_>>>()?;
    between_views(scores, &Tensor::stack(&codes, 0)?, temperature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::matches_golden;

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        matches_golden("loss_swav", &[("high", "grad_high"), ("low", "grad_low")], |x, g| {
            let scores = Tensor::cat(&[&x[0], &x[1]], 0)?;
            let iterations = g.number("sinkhorn_iterations")? as usize;
            Ok(swav_loss(&scores, x[0].dim(0)?, g.number("temperature")?, g.number("epsilon")?, iterations)?)
        })
    }
}
