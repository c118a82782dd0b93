//! MoCo v3 (Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers"): no queue; a prediction from each view
//! is to be told from the batch's keys of the other, which a moving average of the encoder made. A transformer's patch projection
//! stays at its random start, which keeps training steady.

use candle_core::Tensor;
use rand::Rng;
use serde::{Deserialize, Serialize};
use twinsight_augment::{ByolViews, ViewPlan};
use twinsight_encoders::Kind;
use twinsight_nn::{DrawKey, Gradients, Mode, ParamStore};

use crate::config::{defaults, ensure, read};
use crate::contrast::match_rows;
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Pair, momentum_at, rows};
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "MoCo v3",
    paper: "Chen et al. 2021, An Empirical Study of Training Self-Supervised Vision Transformers",
    summary: "contrastive: predictions are told from the batch's keys, made by a moving average of the encoder",
    encoder: EncoderNeed::Any,
    needs: "hundreds of images a batch, better thousands (`--micro-batch` makes any batch fit); a second network without gradients",
    choose: "contrastive training of transformers",
    defaults: defaults::<MocoV3Config>,
    views: |table, context| read::<MocoV3Config>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(MocoV3::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: ByolViews::KEYS, defaults: defaults::<MocoV3Config> },
};

const NAME: &str = "moco_v3";

const KEYS: &[(&str, &str)] = &[
    ("temperature", "divides similarities; over 0 (0.2 in the paper for transformers, 1 for ResNet-50)"),
    ("hidden_dim", "hidden width of projector and predictor (4096 in the paper)"),
    ("projection_dim", "elements of a projection (256 in the paper)"),
    ("momentum", "of the key encoder at the start, moving to `momentum_end` by a cosine; 0 to 1 (0.99 in the paper)"),
    ("momentum_end", "of the key encoder at the end; 0 to 1; as `momentum` for one that stays"),
    (
        "freeze_patch_embed",
        "whether a transformer's patch projection stays at its random start (a hybrid's convolutions train); steadier",
    ),
];

/// MoCo v3's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MocoV3Config {
    /// Divides similarities; over 0. The paper has 0.2 for transformers.
    pub temperature: f64,
    /// Hidden width of projector and predictor. The paper has 4096.
    pub hidden_dim: usize,
    /// Elements of a projection. The paper has 256.
    pub projection_dim: usize,
    /// Momentum of the key encoder at the start, moving to `momentum_end` by a cosine; 0 to 1. The paper has 0.99.
    pub momentum: f64,
    /// Momentum of the key encoder at the end; 0 to 1.
    pub momentum_end: f64,
    /// Whether a transformer's patch projection stays at its random start.
    pub freeze_patch_embed: bool,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: ByolViews,
}

impl Default for MocoV3Config {
    fn default() -> Self {
        Self {
            temperature: 0.2,
            hidden_dim: 4096,
            projection_dim: 256,
            momentum: 0.99,
            momentum_end: 1.0,
            freeze_patch_embed: true,
            views: views::by_size(ByolViews::for_size),
        }
    }
}

impl MocoV3Config {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::different(&self.views, ByolViews::for_size, context)
    }

    /// At the start and at the end.
    fn momenta(&self) -> [f64; 2] {
        [self.momentum, self.momentum_end]
    }

    fn check(&self) -> Result<()> {
        ensure(NAME, self.temperature > 0.0 && self.temperature.is_finite(), "temperature", self.temperature, "over 0")?;
        for (key, value) in [("momentum", self.momentum), ("momentum_end", self.momentum_end)] {
            ensure(NAME, (0.0..=1.0).contains(&value), key, value, "0 to 1")?;
        }
        ensure(NAME, self.hidden_dim > 0, "hidden_dim", self.hidden_dim, "at least 1")?;
        ensure(NAME, self.projection_dim > 0, "projection_dim", self.projection_dim, "at least 1")
    }
}

/// MoCo v3 at work.
pub struct MocoV3 {
    config: MocoV3Config,
    plan: ViewPlan,
    net: Pair<ProjectionHead, ProjectionHead>,
}

impl MocoV3 {
    /// Builds both encoders with their heads: a projector of two layers for convolutional encoders and of three for transformers, as in
    /// the authors' program.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &MocoV3Config, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, dim, is_vit) = (config.hidden_dim, config.projection_dim, context.encoder.kind == Kind::Vit);
        let net = Pair::new(
            context,
            |b, inputs| {
                let widths = if is_vit { vec![inputs, hidden, hidden, dim] } else { vec![inputs, hidden, dim] };
                ProjectionHead::normed(&b.under("projector"), &widths, HeadNorm::Plain)
            },
            |b| {
                let last = if is_vit { HeadNorm::Plain } else { HeadNorm::None };
                ProjectionHead::normed(&b.under("predictor"), &[dim, hidden, dim], last)
            },
        )?;
        if config.freeze_patch_embed {
            for params in [&net.params, &net.teacher_params] {
                start_frozen(params, context.seed)?;
            }
        }
        Ok(Self { config: config.clone(), plan, net })
    }
}

/// The start of a patch projection that stays as it starts: Xavier's uniform distribution over a patch of three channels as one linear
/// layer, no bias, as in the authors' program.
fn start_frozen(params: &ParamStore, seed: u64) -> Result<()> {
    let Some(weight) = params.get(&format!("{PATCHES}.weight")) else { return Ok(()) };
    let dims = weight.value().dims().to_vec();
    let bound = (6.0 / (3 * dims[2] * dims[3] + dims[0]) as f64).sqrt() as f32;
    let mut rng = DrawKey { seed, step: 0, pass: 0 }.rng("frozen patches");
    let values: Vec<f32> = (0..weight.value().elem_count()).map(|_| rng.random_range(-bound..=bound)).collect();
    weight.set(&Tensor::from_vec(values, dims, weight.value().device())?)?;
    if let Some(bias) = params.get(&format!("{PATCHES}.bias")) {
        bias.set(&bias.value().zeros_like()?)?;
    }
    Ok(())
}

/// A transformer's patch projection.
const PATCHES: &str = "backbone.patch_embed.proj";

impl Method for MocoV3 {
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
        let [q1, q2] = halves(&self.net.predictor.forward(&projection, &mode)?)?;
        let [k1, k2] = halves(&self.net.teacher.head.forward(&rows(&outputs.teacher[0])?, &mode.without_grad())?)?;
        let (loss, accuracy) = symmetric([&q1, &q2], [&k1, &k2], self.config.temperature)?;
        let [embedding, partner] = halves(&projection.detach())?;
        let momentum = momentum_at(self.config.momenta(), at.progress());
        Ok(LossOutput {
            metrics: vec![("contrastive_accuracy", accuracy), ("momentum", Tensor::new(momentum as f32, loss.device())?)],
            loss,
            embedding,
            partner: Some(partner),
            assignments: None,
        })
    }

    fn adjust_gradients(&mut self, gradients: &mut Gradients, _at: &At) -> Result<()> {
        if self.config.freeze_patch_embed {
            for part in ["weight", "bias"] {
                gradients.remove(&format!("{PATCHES}.{part}"));
            }
        }
        Ok(())
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        self.net.follow(momentum_at(self.config.momenta(), at.progress()))
    }
}

/// The loss of Chen et al. 2021 (algorithm 1): 2 `temperature` times the cross-entropy of finding the key of each view's query among the
/// batch's keys of the other view, summed over both directions. Keys get no gradient.
///
/// # Shapes
/// `queries` and `keys` of both views: (N, D), row i of all from one image. The result is a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn moco_v3_loss(queries: [&Tensor; 2], keys: [&Tensor; 2], temperature: f64) -> Result<Tensor> {
    Ok(symmetric(queries, keys, temperature)?.0)
}

fn symmetric(queries: [&Tensor; 2], keys: [&Tensor; 2], temperature: f64) -> Result<(Tensor, Tensor)> {
    let (first, accuracy) = match_rows(queries[0], &keys[1].detach(), temperature)?;
    let (second, _) = match_rows(queries[1], &keys[0].detach(), temperature)?;
    Ok((((first + second)? * (2.0 * temperature))?, accuracy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::{golden_tensor, matches_golden};

    #[test]
    fn the_loss_equals_the_reference() -> anyhow::Result<()> {
        matches_golden("loss_moco_v3", &[("q1", "grad_q1"), ("q2", "grad_q2")], |x, g| {
            let (k1, k2) = (golden_tensor(g, "k1")?, golden_tensor(g, "k2")?);
            Ok(moco_v3_loss([&x[0], &x[1]], [&k1, &k2], g.number("temperature")?)?)
        })
    }
}
