//! MoCo v2 (He et al. 2020; Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning"): a query from one view is to
//! be told from the keys of past batches, which a slowly moving copy of the encoder made; the queue of keys stands in for a large
//! batch.
//!
//! Batch norm lets a network cheat: a query and its key, normalised with the same images around them, carry marks of their batch.
//! The paper trains on several devices, each with batch statistics of its own, and shuffles the keys' images among them. Here the
//! batch is cut into [`MocoV2Config::norm_groups`] parts with statistics of their own, and the keys' images are shuffled before and
//! put back in order after: the same effect on one device.

use candle_core::Tensor;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_kernels::{Similarities, l2_normalize, log_sum_exp};
use twinsight_nn::{Mode, StateVisitor};

use crate::config::{defaults, ensure, read};
use crate::heads::ProjectionHead;
use crate::networks::{Pair, joined, momentum_at, rows};
use crate::queue::Queue;
use crate::simsiam::moderate;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "MoCo v2",
    paper: "He et al. 2020, Momentum Contrast for Unsupervised Visual Representation Learning; Chen et al. 2020 (v2)",
    summary: "contrastive: negatives come from a queue of past keys, made by a moving average of the encoder; small batches do",
    encoder: EncoderNeed::Any,
    needs: "64 images a batch will do; a second network without gradients, and a queue",
    choose: "contrastive training where a large batch does not fit",
    defaults: defaults::<MocoV2Config>,
    views: |table, context| read::<MocoV2Config>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(MocoV2::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<MocoV2Config> },
};

const NAME: &str = "moco_v2";

const KEYS: &[(&str, &str)] = &[
    ("temperature", "divides similarities; over 0 (0.2 in the paper)"),
    ("hidden_dim", "hidden width of the projector; 0: as wide as the encoder's vectors (2048 in the paper)"),
    ("projection_dim", "elements of a projection (128 in the paper)"),
    ("queue_size", "past keys (65536 in the paper); fewer than an epoch's images, or an image meets its own old key"),
    ("momentum", "of the key encoder at the start; 0 to 1 (0.999 in the paper); lower for runs of few steps"),
    ("momentum_end", "of the key encoder at the end, a cosine between; 0 to 1; below 0 it stays, as in the paper"),
    (
        "norm_groups",
        "parts of a batch with batch-norm statistics of their own, the keys' shuffled (8 devices in the paper); 1: none",
    ),
    ("symmetric", "whether both views are queries and keys: twice the work a step, and more learned from it"),
];

/// MoCo v2's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MocoV2Config {
    /// Divides similarities; over 0. The paper has 0.2.
    pub temperature: f64,
    /// Hidden width of the projector; 0: as wide as the encoder's vectors.
    pub hidden_dim: usize,
    /// Elements of a projection. The paper has 128.
    pub projection_dim: usize,
    /// Past keys. The paper has 65536.
    pub queue_size: usize,
    /// Momentum of the key encoder at the start; 0 to 1. The paper has 0.999.
    pub momentum: f64,
    /// The same at the end, a cosine between; below 0 it stays.
    pub momentum_end: f64,
    /// Parts of a batch with batch-norm statistics of their own, the keys' images shuffled among them; 1: none. A batch that it does not
    /// divide gets the next smaller number that does. With `--micro-batch` each part of the batch is cut so, and shuffled by itself.
    pub norm_groups: usize,
    /// Whether both views are queries and keys. The paper's first is the query and the second the key.
    pub symmetric: bool,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: SimclrViews,
}

impl Default for MocoV2Config {
    fn default() -> Self {
        Self {
            temperature: 0.2,
            hidden_dim: 0,
            projection_dim: 128,
            queue_size: 65536,
            momentum: 0.999,
            momentum_end: -1.0,
            norm_groups: 8,
            symmetric: false,
            views: views::by_size(moderate),
        }
    }
}

impl MocoV2Config {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::alike(&self.views, moderate, context)
    }

    /// At the start and at the end.
    fn momenta(&self) -> [f64; 2] {
        [self.momentum, if self.momentum_end < 0.0 { self.momentum } else { self.momentum_end }]
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.temperature > 0.0 && self.temperature.is_finite(), "temperature", self.temperature, "over 0")?;
        ensure(NAME, (0.0..=1.0).contains(&self.momentum), "momentum", self.momentum, "0 to 1")?;
        ensure(NAME, self.momentum_end <= 1.0, "momentum_end", self.momentum_end, "0 to 1, or below 0")?;
        for (key, value) in
            [("projection_dim", self.projection_dim), ("queue_size", self.queue_size), ("norm_groups", self.norm_groups)]
        {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        Ok(())
    }
}

/// MoCo v2 at work.
pub struct MocoV2 {
    config: MocoV2Config,
    plan: ViewPlan,
    net: Pair<ProjectionHead>,
    queue: Queue,
    /// Keys since the last step.
    seen: Option<Tensor>,
}

impl MocoV2 {
    /// Builds query encoder, key encoder and queue.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &MocoV2Config, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let head = |b: &twinsight_nn::Builder, dim: usize| {
            let hidden = if config.hidden_dim == 0 { dim } else { config.hidden_dim };
            ProjectionHead::plain(&b.under("projector"), &[dim, hidden, config.projection_dim])
        };
        let net = Pair::new(context, head, |_| Ok(()))?;
        let queue = Queue::new(config.queue_size, config.projection_dim, context.seed, &context.device)?;
        Ok(Self { config: config.clone(), plan, net, queue, seen: None })
    }

    /// The largest number of parts, at most the setting, that `n` images can be cut into with two or more in each.
    fn groups(&self, n: usize) -> usize {
        (1..=self.config.norm_groups.min(n / 2).max(1)).rev().find(|&g| n.is_multiple_of(g)).unwrap_or(1)
    }
}

impl Method for MocoV2 {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks(false)
    }

    fn student_views(&self) -> std::ops::Range<usize> {
        if self.config.symmetric { 0..2 } else { 0..1 }
    }

    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        let n = views[0].dim(0)?;
        let mode = mode.with_views(views.len()).with_stat_groups(views.len() * self.groups(n));
        let pooled = self.net.student.backbone.forward(&joined(views)?, &mode)?.pooled;
        Ok(vec![pooled.reshape((views.len(), n, ()))?])
    }

    fn teacher_outputs(&self, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
        let views = if self.config.symmetric { views } else { &views[1..] };
        let n = views[0].dim(0)?;
        let groups = self.groups(n);
        let first = mode.slice.map_or(0, |slice| slice.first) as u64;
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.shuffle(&mut mode.with_pass(first).key.rng("shuffle"));
        let back = inverse(&order);
        let device = views[0].device();
        let (order, back) = (Tensor::from_vec(order, n, device)?, Tensor::from_vec(back, n, device)?);
        let shuffled = views.iter().map(|v| Ok(v.index_select(&order, 0)?)).collect::<Result<Vec<_>>>()?;
        let mode = mode.with_views(views.len()).with_stat_groups(views.len() * groups);
        let pooled = self.net.teacher.backbone.forward(&joined(&shuffled)?, &mode)?.pooled;
        Ok(vec![pooled.reshape((views.len(), n, ()))?.index_select(&back, 1)?])
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let mode = at.mode();
        let n = outputs.student[0].dim(1)?;
        let queries = self.net.student.head.forward(&rows(&outputs.student[0])?, &mode)?;
        let keys = self.net.teacher.head.forward(&rows(&outputs.teacher[0])?, &mode.without_grad())?;
        // With both views as both, a query's key is the other view's.
        let others =
            if self.config.symmetric { Tensor::cat(&[keys.narrow(0, n, n)?, keys.narrow(0, 0, n)?], 0)? } else { keys.clone() };
        let (loss, accuracy) = against_queue(&queries, &others, &self.queue.rows(), self.config.temperature)?;
        self.seen = Some(keys);
        Ok(LossOutput {
            loss,
            embedding: queries.detach().narrow(0, 0, n)?,
            partner: Some(others.narrow(0, 0, n)?),
            assignments: None,
            metrics: vec![("contrastive_accuracy", accuracy)],
        })
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        if let Some(keys) = self.seen.take() {
            self.queue.put(&keys)?;
        }
        self.net.follow(momentum_at(self.config.momenta(), at.progress()))
    }

    fn visit_own_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.seen = None;
        self.queue.visit("queue", visitor)
    }
}

/// Where each of the numbers stands in `order`, which holds every one below its length once.
fn inverse(order: &[u32]) -> Vec<u32> {
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &image)| back[image as usize] = place as u32);
    back
}

/// InfoNCE of He et al. 2020, equation 1: the cross-entropy of finding a query's key among it and the queue, by cosine similarity over
/// `temperature`; the mean over the queries. Keys and queue get no gradient.
///
/// # Shapes
/// `queries` and `keys`: (N, D), row i of both from one image; `queue`: (Q, D). The result is a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn queue_contrast_loss(queries: &Tensor, keys: &Tensor, queue: &Tensor, temperature: f64) -> Result<Tensor> {
    Ok(against_queue(queries, keys, queue, temperature)?.0)
}

fn against_queue(queries: &Tensor, keys: &Tensor, queue: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let queries = (l2_normalize(queries, 1e-12)? * (1.0 / temperature))?;
    let (keys, queue) = (l2_normalize(&keys.detach(), 1e-12)?, l2_normalize(&queue.detach(), 1e-12)?);
    let positives = (&queries * keys)?.sum(1)?;
    let negatives = Similarities::new(&queries, &queue)?;
    let both = Tensor::stack(&[&positives, &negatives.log_sum_exp(&[])?], 1)?;
    let loss = (log_sum_exp(&both, &[])? - &positives)?.mean_all()?;
    let found = positives.detach().gt(&negatives.row_max(&[])?)?;
    Ok((loss, found.to_dtype(candle_core::DType::F32)?.mean_all()?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use twinsight_augment::Normalize;
    use twinsight_encoders::{EncoderConfig, encoder};
    use twinsight_nn::DrawKey;

    use super::*;
    use crate::test::{golden_tensor, matches_golden};

    fn moco(norm_groups: usize) -> Result<MocoV2> {
        let context = MethodContext {
            encoder: encoder("resnet_mini")?,
            encoder_config: EncoderConfig { channels: 1, image_size: 16, ..EncoderConfig::default() },
            normalize: Normalize { mean: vec![0.5], std: vec![0.25] },
            batch_size: 8,
            epochs: 1,
            steps_per_epoch: 1,
            seed: 0,
            device: Device::Cpu,
        };
        MocoV2::new(&MocoV2Config { norm_groups, queue_size: 8, projection_dim: 8, ..MocoV2Config::default() }, &context)
    }

    /// Keys of shuffled groups: each row is its own image's, normalised with the images of its group in the shuffled order.
    #[test]
    fn keys_come_back_in_order_from_groups_of_shuffled_images() -> anyhow::Result<()> {
        let values = (0..8 * 256).map(|i| ((i % 256) as f32 * 0.1 * (1 + i / 256) as f32).sin() + (i / 256) as f32);
        let images = Tensor::from_vec(values.collect(), (8, 1, 16, 16), &Device::Cpu)?;
        let views = [images.clone(), images.clone()];
        let mode = Mode::train(DrawKey { seed: 5, step: 3, pass: 0 });
        let method = moco(2)?;
        let keys = method.teacher_outputs(&views, &mode.without_grad())?[0].get(0)?.to_vec2::<f32>()?;
        let mut order: Vec<u32> = (0..8).collect();
        order.shuffle(&mut mode.key.rng("shuffle"));
        assert_ne!(order, (0..8).collect::<Vec<u32>>());
        let other = moco(2)?;
        let mut crossed = 0;
        for (group, members) in order.chunks_exact(4).enumerate() {
            crossed += members.iter().filter(|&&image| image as usize / 4 != group).count();
            let part = images.index_select(&Tensor::new(members, &Device::Cpu)?, 0)?;
            let alone = other.net.teacher.backbone.forward(&part, &mode.without_grad())?.pooled.to_vec2::<f32>()?;
            for (row, &image) in alone.iter().zip(members) {
                for (a, b) in row.iter().zip(&keys[image as usize]) {
                    assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "image {image}: {a} and {b}");
                }
            }
        }
        assert!(crossed > 0, "keys were normalised with the very images that their queries were");
        let whole = moco(1)?.teacher_outputs(&views, &mode.without_grad())?[0].get(0)?.to_vec2::<f32>()?;
        assert!(whole != keys, "groups have statistics of their own");
        Ok(())
    }

    #[test]
    fn the_loss_equals_the_reference() -> anyhow::Result<()> {
        matches_golden("loss_moco_queue", &[("query", "grad_query")], |x, g| {
            let (key, queue) = (golden_tensor(g, "key")?, golden_tensor(g, "queue")?);
            Ok(queue_contrast_loss(&x[0], &key, &queue, g.number("temperature")?)?)
        })
    }
}
