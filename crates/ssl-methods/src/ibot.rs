//! iBOT (Zhou et al. 2022): DINO, whose student also sees its large views with patches hidden, and must tell what the teacher's patch
//! tokens are assigned to there.
//!
//! The patch centre follows the teacher's outputs at the hidden patches, as DINOv2's program has it (the authors' own takes all).

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use twinsight_augment::{DinoViews, ViewPlan};
use twinsight_encoders::Masking;
use twinsight_kernels::{cross_entropy_soft, pick_rows};
use twinsight_nn::{Gradients, Init, Mode, Parameter, Role, StateVisitor};

use crate::assign::sinkhorn;
use crate::config::{defaults, ensure, read};
use crate::dino::{GLOBAL_VIEWS, tame, teacher_distribution};
use crate::distill::{Center, WarmUp, between_views};
use crate::koleo::koleo_loss;
use crate::masks::{blocks, share_of, strata};
use crate::networks::{Pair, joined, momentum_at, rows};
use crate::{
    Assignments, At, DinoHead, DinoHeadShape, EncoderNeed, Error, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks,
    Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "iBOT",
    paper: "Zhou et al. 2022, iBOT: Image BERT Pre-Training with Online Tokenizer",
    summary: "self-distillation of views and of hidden patches; for transformers",
    encoder: EncoderNeed::Vit,
    needs: "a vision transformer; 64 images a batch will do; a second network, small crops, and prototypes for patches too",
    choose: "for transformers whose patch features matter: segments, retrieval of parts",
    defaults: defaults::<IbotConfig>,
    views: |table, context| read::<IbotConfig>(NAME, table)?.plan(DinoViews::for_size, context),
    build: |table, context| Ok(Box::new(Ibot::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: DinoViews::KEYS, defaults: defaults::<IbotConfig> },
};

const NAME: &str = "ibot";

pub(crate) const KEYS: &[(&str, &str)] = &[
    ("hidden_dim", "hidden width of the heads"),
    ("bottleneck_dim", "elements of the normalised vector before the last layer"),
    ("patch_bottleneck_dim", "the same of the patches' own head; 0: as `bottleneck_dim`"),
    ("out_dim", "prototypes (8192 in iBOT's paper, 65536 and more in DINOv2's)"),
    ("use_bn_in_head", "whether the heads' hidden layers are batch-normalised"),
    ("norm_last_layer", "whether prototypes keep length 1; steadier"),
    ("shared_head", "whether views and patches share one head"),
    ("freeze_last_layer_epochs", "epochs at the start in which last layers stay as they are"),
    ("student_temperature", "sharpness of the student; over 0"),
    ("teacher_temperature", "sharpness of the teacher after warm-up; over 0; lower where the teacher's entropy stays near 1"),
    ("warmup_teacher_temperature", "sharpness of the teacher at the start; over 0"),
    ("warmup_teacher_epochs", "epochs in which the teacher's temperature grows linearly"),
    ("centering", "what keeps the teacher from one prototype: `center`, or `sinkhorn` over the batch"),
    ("center_momentum", "of the moving average of the teacher's outputs; 0 to 1"),
    ("momentum", "of the teacher at the start, moving to `momentum_end` by a cosine; 0 to 1"),
    ("momentum_end", "of the teacher at the end; 0 to 1; as `momentum` for one that stays"),
    ("clip_gradient", "largest norm of each parameter's gradient; 0: no limit"),
    ("patch_weight", "weight of the patches' loss beside the views'; 0 or more"),
    ("koleo_weight", "weight of the regulariser that keeps class tokens apart (0.1 in DINOv2); 0 or more"),
    ("mask_probability", "share of the large views that have patches hidden; above 0, at most 1"),
    ("mask_ratio_min", "least share of patches hidden in such a view"),
    ("mask_ratio_max", "most of them; 0 to 1"),
    (
        "stratified_masks",
        "whether the shares of hidden patches are spread evenly over the batch's views (DINOv2), or drawn for each",
    ),
    ("mask_block_min", "least patches of a hidden rectangle; 0: a ninth of the patches (iBOT); 4 in DINOv2"),
    ("local_views", "small crops an image"),
    ("local_size", "side of small crops in pixels; 0: 3/7 of the image size, so that patches fit"),
];

/// What keeps the teacher from assigning everything to one prototype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Centering {
    /// The moving average of its outputs is taken off them.
    Center,
    /// Assignments are balanced over the batch.
    Sinkhorn,
}

/// iBOT's settings; DINOv2's recipe has the same with other defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IbotConfig {
    /// Hidden width of the heads.
    pub hidden_dim: usize,
    /// Elements of the normalised vector before the last layer.
    pub bottleneck_dim: usize,
    /// The same of the patches' head, where it is not shared; 0: as [`IbotConfig::bottleneck_dim`].
    pub patch_bottleneck_dim: usize,
    /// Prototypes. The paper has 8192.
    pub out_dim: usize,
    /// Whether the heads' hidden layers are batch-normalised.
    pub use_bn_in_head: bool,
    /// Whether prototypes keep length 1.
    pub norm_last_layer: bool,
    /// Whether views and patches share one head, as in the paper.
    pub shared_head: bool,
    /// Epochs at the start in which last layers stay as they are.
    pub freeze_last_layer_epochs: u64,
    /// Divides the student's outputs; over 0.
    pub student_temperature: f64,
    /// Divides the teacher's outputs after warm-up; over 0.
    pub teacher_temperature: f64,
    /// The same at the start; over 0.
    pub warmup_teacher_temperature: f64,
    /// Epochs in which the teacher's temperature grows linearly between the two.
    pub warmup_teacher_epochs: u64,
    /// What keeps the teacher from one prototype.
    pub centering: Centering,
    /// Momentum of the moving average of the teacher's outputs; 0 to 1.
    pub center_momentum: f64,
    /// Momentum of the teacher at the start, moving to `momentum_end` by a cosine; 0 to 1.
    pub momentum: f64,
    /// Momentum of the teacher at the end; 0 to 1.
    pub momentum_end: f64,
    /// Largest L2 norm of each parameter's gradient; 0: no limit.
    pub clip_gradient: f64,
    /// Weight of the patches' loss.
    pub patch_weight: f64,
    /// Weight of [`koleo_loss`].
    pub koleo_weight: f64,
    /// Share of the large views that have patches hidden.
    pub mask_probability: f64,
    /// Least share of patches hidden in such a view.
    pub mask_ratio_min: f64,
    /// Most of them.
    pub mask_ratio_max: f64,
    /// Whether exactly [`IbotConfig::mask_probability`] of a batch's large views have patches hidden, with shares spread evenly between the
    /// two ratios, as DINOv2's program has it; otherwise each view draws both by itself, as iBOT's.
    pub stratified_masks: bool,
    /// Least patches of a hidden rectangle; 0: the square of a third of the side, as in iBOT's program. DINOv2's has 4.
    pub mask_block_min: usize,
    /// Small crops an image. The paper has 10.
    pub local_views: usize,
    /// Side of small crops in pixels; 0: 3/7 of the image size (96 for 224), rounded to a multiple of the encoder's patches.
    pub local_size: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: DinoViews,
}

impl Default for IbotConfig {
    fn default() -> Self {
        Self {
            hidden_dim: 2048,
            bottleneck_dim: 256,
            patch_bottleneck_dim: 0,
            out_dim: 8192,
            use_bn_in_head: false,
            norm_last_layer: true,
            shared_head: true,
            freeze_last_layer_epochs: 1,
            student_temperature: 0.1,
            teacher_temperature: 0.07,
            warmup_teacher_temperature: 0.04,
            warmup_teacher_epochs: 30,
            centering: Centering::Center,
            center_momentum: 0.9,
            momentum: 0.996,
            momentum_end: 1.0,
            clip_gradient: 3.0,
            patch_weight: 1.0,
            koleo_weight: 0.0,
            mask_probability: 0.5,
            mask_ratio_min: 0.1,
            mask_ratio_max: 0.5,
            stratified_masks: false,
            mask_block_min: 0,
            local_views: 10,
            local_size: 0,
            views: views::by_size(DinoViews::for_size),
        }
    }
}

impl IbotConfig {
    /// `decided`: views by the size of the image, where the settings leave it to that.
    pub(crate) fn plan(&self, decided: fn(usize) -> DinoViews, context: &ViewContext) -> Result<ViewPlan> {
        views::multi_crop(&self.views, decided, [self.local_views, self.local_size], context)
    }

    /// At the start and at the end.
    fn momenta(&self) -> [f64; 2] {
        [self.momentum, self.momentum_end]
    }

    fn check(&self, name: &'static str) -> Result<()> {
        for (key, value) in [
            ("student_temperature", self.student_temperature),
            ("teacher_temperature", self.teacher_temperature),
            ("warmup_teacher_temperature", self.warmup_teacher_temperature),
        ] {
            ensure(name, value > 0.0 && value.is_finite(), key, value, "over 0")?;
        }
        for (key, value) in [
            ("center_momentum", self.center_momentum),
            ("momentum", self.momentum),
            ("momentum_end", self.momentum_end),
            ("mask_ratio_min", self.mask_ratio_min),
            ("mask_ratio_max", self.mask_ratio_max),
        ] {
            ensure(name, (0.0..=1.0).contains(&value), key, value, "0 to 1")?;
        }
        for (key, value) in [("hidden_dim", self.hidden_dim), ("bottleneck_dim", self.bottleneck_dim), ("out_dim", self.out_dim)]
        {
            ensure(name, value > 0, key, value, "at least 1")?;
        }
        for (key, value) in
            [("clip_gradient", self.clip_gradient), ("patch_weight", self.patch_weight), ("koleo_weight", self.koleo_weight)]
        {
            ensure(name, value >= 0.0 && value.is_finite(), key, value, "0 or more")?;
        }
        let share = self.mask_probability;
        ensure(name, share > 0.0 && share <= 1.0, "mask_probability", share, "above 0, at most 1")?;
        let ordered = self.mask_ratio_min <= self.mask_ratio_max;
        ensure(name, ordered, "mask_ratio_min", self.mask_ratio_min, "at most mask_ratio_max")
    }

    fn warm_up(&self) -> WarmUp {
        WarmUp { start: self.warmup_teacher_temperature, end: self.teacher_temperature, epochs: self.warmup_teacher_epochs }
    }
}

/// One head for class tokens, and one for patches where it is not the same.
struct Heads {
    views: DinoHead,
    patches: Option<DinoHead>,
}

impl Heads {
    fn patches(&self) -> &DinoHead {
        self.patches.as_ref().unwrap_or(&self.views)
    }
}

/// iBOT, or DINOv2's recipe, at work.
pub struct Ibot {
    config: IbotConfig,
    plan: ViewPlan,
    /// The predictor is the token that stands for hidden patches.
    net: Pair<Heads, Parameter>,
    view_center: Center,
    patch_center: Center,
    /// Patches along a side of a large view.
    side: usize,
}

impl Ibot {
    /// Builds student and teacher, which start alike.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder; an encoder without patches.
    pub fn new(config: &IbotConfig, context: &MethodContext) -> Result<Self> {
        Self::named(NAME, config, DinoViews::for_size, context)
    }

    pub(crate) fn named(
        name: &'static str,
        config: &IbotConfig,
        decided: fn(usize) -> DinoViews,
        context: &MethodContext,
    ) -> Result<Self> {
        SPEC.encoder.check(name, context)?;
        config.check(name)?;
        let plan = config.plan(decided, &context.view_context())?;
        let shape = DinoHeadShape {
            hidden: config.hidden_dim,
            bottleneck: config.bottleneck_dim,
            outputs: config.out_dim,
            norm_last_layer: config.norm_last_layer,
            batch_norm: config.use_bn_in_head,
        };
        let width = std::cell::Cell::new(0);
        let net = Pair::new(
            context,
            |b, dim| {
                width.set(dim);
                let b = b.under("projector");
                let bottleneck = if config.patch_bottleneck_dim == 0 { shape.bottleneck } else { config.patch_bottleneck_dim };
                let patches = || DinoHead::new(&b.under("patches"), dim, &DinoHeadShape { bottleneck, ..shape });
                Ok(Heads { views: DinoHead::new(&b, dim, &shape)?, patches: (!config.shared_head).then(patches).transpose()? })
            },
            |b| Ok(b.parameter("mask_token", &[1, 1, width.get()], Role::Token, Init::TruncNormal(0.02))?),
        )?;
        let center = || Center::new(config.out_dim, config.center_momentum, &context.device);
        let side = context.encoder_config.image_size / context.encoder_config.resolved_patch();
        let config = config.clone();
        Ok(Self { config, plan, net, view_center: center()?, patch_center: center()?, side })
    }

    /// Which patches are hidden in rows of large views, as 0 and 1: (rows, P).
    fn hidden(&self, mode: &Mode, rows: usize) -> Vec<Vec<bool>> {
        let c = &self.config;
        let (draws, range) = (mode.key, (c.mask_ratio_min, c.mask_ratio_max));
        let all = mode.blocks * mode.slice.map_or(rows / mode.blocks.max(1), |slice| slice.of);
        let strata = c.stratified_masks.then(|| strata(draws, all, c.mask_probability, range));
        mode.places(rows)
            .map(|place| {
                // One view of every batch has something hidden, so that no parameter goes without a gradient.
                let share = match &strata {
                    Some(shares) => shares[place],
                    None => share_of(draws, place, if place == 0 { 1.0 } else { c.mask_probability }, range),
                };
                // A share of nothing that is to be hidden still hides a patch.
                let share = if place == 0 && strata.is_none() { share.max(f64::MIN_POSITIVE) } else { share };
                blocks(draws, place, self.side, share, c.mask_block_min)
            })
            .collect()
    }

    /// The teacher's outputs as distributions.
    fn targets(&self, outputs: &Tensor, center: &Center, temperature: f64) -> Result<Tensor> {
        match self.config.centering {
            Centering::Center => teacher_distribution(outputs, center.value(), temperature),
            Centering::Sinkhorn => sinkhorn(outputs, temperature, 3),
        }
    }
}

impl Method for Ibot {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks(true)
    }

    /// Class tokens (V, N, D), and of large views, seen with patches hidden, the patch tokens (2, N, P, D).
    fn student_outputs(&self, views: &[Tensor], first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        if first >= GLOBAL_VIEWS {
            return self.net.student.joint_vectors(views, mode);
        }
        let (large, n) = (&views[..GLOBAL_VIEWS], views[0].dim(0)?);
        let mode = mode.with_views(GLOBAL_VIEWS).with_stat_groups(1);
        let hidden = self.hidden(&mode, GLOBAL_VIEWS * n);
        // As bytes: devices take small copies without waiting.
        let mask: Vec<u8> = hidden.iter().flatten().map(|&h| u8::from(h)).collect();
        let mask = Tensor::from_vec(mask, (GLOBAL_VIEWS * n, self.side * self.side), views[0].device())?.to_dtype(DType::F32)?;
        let masking = Masking::Replace { mask, token: self.net.predictor.get(&mode).clone() };
        let features = self.net.student.backbone.forward_masked(&joined(large)?, &masking, &mode)?;
        let [mut pooled, patches] = view_tensors(features, n)?;
        if views.len() > GLOBAL_VIEWS {
            // Small crops as large as the large ones come in the same group.
            let small = self.net.student.joint_vectors(&views[GLOBAL_VIEWS..], &mode)?;
            pooled = Tensor::cat(&[&pooled, &small[0]], 0)?;
        }
        Ok(vec![pooled, patches])
    }

    fn teacher_outputs(&self, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
        let n = views[0].dim(0)?;
        let mode = mode.with_views(GLOBAL_VIEWS).with_stat_groups(1);
        let features = self.net.teacher.backbone.forward(&joined(&views[..GLOBAL_VIEWS])?, &mode)?;
        Ok(view_tensors(features, n)?.to_vec())
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let (student, teacher, c) = (&self.net.student.head, &self.net.teacher.head, &self.config);
        let (count, n, _) = outputs.student[0].dims3()?;
        let (mode, k) = (at.mode(), c.out_dim);
        let still = mode.without_grad();
        let temperature = c.warm_up().at(at.epoch);

        let (_, teacher_views) = teacher.views.forward(&rows(&outputs.teacher[0])?, &still)?;
        let targets = self.targets(&teacher_views, &self.view_center, temperature)?;
        let (bottleneck, logits) = student.views.forward(&rows(&outputs.student[0])?, &mode)?;
        let per_view = |t: &Tensor, views: usize| t.reshape((views, n, k));
        let view_loss = between_views(&per_view(&logits, count)?, &per_view(&targets, GLOBAL_VIEWS)?, c.student_temperature)?;

        let hidden = self.hidden(&mode.with_views(GLOBAL_VIEWS), GLOBAL_VIEWS * n);
        let patches = self.side * self.side;
        let mut places = Vec::new();
        let mut weights = Vec::new();
        for (row, hidden) in hidden.iter().enumerate() {
            let count = hidden.iter().filter(|&&h| h).count();
            for patch in (0..patches).filter(|&p| hidden[p]) {
                places.push((row * patches + patch) as u32);
                weights.push(1.0 / count as f32);
            }
        }
        let pick = |t: &Tensor| -> Result<Tensor> { Ok(pick_rows(&t.flatten(0, 2)?, &places)?) };
        let (_, teacher_patches) = teacher.patches().forward(&pick(&outputs.teacher[1])?, &still)?;
        let patch_targets = self.targets(&teacher_patches, &self.patch_center, temperature)?;
        let (_, patch_logits) = student.patches().forward(&pick(&outputs.student[1])?, &mode)?;
        let patch_loss = ibot_patch_loss(&patch_logits, &patch_targets, &weights, GLOBAL_VIEWS * n, c.student_temperature)?;

        let mut loss = (&view_loss + (&patch_loss * c.patch_weight)?)?;
        let mut metrics = vec![("view_loss", view_loss.detach()), ("patch_loss", patch_loss.detach())];
        if c.koleo_weight > 0.0 && n > 1 {
            let apart = (koleo_loss(&outputs.student[0].get(0)?)? + koleo_loss(&outputs.student[0].get(1)?)?)?;
            metrics.push(("koleo", apart.detach()));
            loss = (loss + (apart * c.koleo_weight)?)?;
        }
        let patches = Assignments::of(&spread(&teacher_patches, &self.patch_center, temperature)?)?;
        metrics.extend([("patch_entropy", patches.entropy), ("patch_prototype_usage", patches.usage)]);
        let scalar = |v: f64| Tensor::new(v as f32, loss.device());
        metrics.push(("teacher_temperature", scalar(temperature)?));
        metrics.push(("momentum", scalar(momentum_at(c.momenta(), at.progress()))?));
        self.view_center.see(&teacher_views)?;
        self.patch_center.see(&teacher_patches)?;
        let bottleneck = bottleneck.detach();
        Ok(LossOutput {
            loss,
            embedding: bottleneck.narrow(0, 0, n)?,
            partner: Some(bottleneck.narrow(0, n, n)?),
            assignments: Some(Assignments::of(&spread(&teacher_views, &self.view_center, temperature)?)?),
            metrics,
        })
    }

    fn adjust_gradients(&mut self, gradients: &mut Gradients, at: &At) -> Result<()> {
        tame(gradients, &self.net, self.config.clip_gradient, at.epoch < self.config.freeze_last_layer_epochs)
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        self.view_center.follow()?;
        self.patch_center.follow()?;
        self.net.follow(momentum_at(self.config.momenta(), at.progress()))
    }

    fn visit_own_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.view_center.visit("center", visitor)?;
        self.patch_center.visit("patch_center", visitor)
    }
}

/// What outputs over `temperature` say by themselves, their moving average taken off: Sinkhorn's assignments are balanced whatever happens,
/// these are what can collapse.
fn spread(outputs: &Tensor, center: &Center, temperature: f64) -> Result<Tensor> {
    teacher_distribution(outputs, center.value(), temperature)
}

/// Class tokens (V, N, D) and patch tokens (V, N, P, D).
fn view_tensors(features: twinsight_encoders::Features, n: usize) -> Result<[Tensor; 2]> {
    let tokens = features.tokens.ok_or_else(|| Error::BadViews("the encoder gave no tokens".into()))?;
    let (rows, count, dim) = tokens.dims3()?;
    let patches = tokens.narrow(1, 1, count - 1)?.contiguous()?.reshape((rows / n, n, count - 1, dim))?;
    Ok([features.pooled.reshape((rows / n, n, dim))?, patches])
}

/// The patches' loss of Zhou et al. 2022, equation 2: the cross-entropy between the teacher's distributions at hidden patches and the
/// student's outputs there over `temperature`, each patch by `weights` (one over the number of hidden ones of its view), summed, over the
/// number of `views`.
///
/// Same values as lightly's `IBOTPatchLoss`.
///
/// # Shapes
/// `student` and `targets` (M, K): hidden patches of all views; M `weights`. The result is a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn ibot_patch_loss(student: &Tensor, targets: &Tensor, weights: &[f32], views: usize, temperature: f64) -> Result<Tensor> {
    let (m, _) = student.dims2()?;
    if weights.len() != m {
        return Err(Error::BadViews(format!("{} weights for {m} hidden patches", weights.len())));
    }
    let weights = Tensor::from_vec(weights.to_vec(), (m, 1), student.device())?.to_dtype(DType::F32)?;
    let logits = (student * (1.0 / temperature))?;
    Ok((cross_entropy_soft(&logits, &targets.detach().broadcast_mul(&weights)?)? * (m as f64 / views as f64))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::{golden_tensor, matches_golden};

    #[test]
    fn the_patch_loss_equals_lightly() -> anyhow::Result<()> {
        matches_golden("loss_ibot", &[("student", "grad_student")], |x, g| {
            let teacher = golden_tensor(g, "teacher")?;
            let center = teacher.get(0)?.zeros_like()?;
            let targets = teacher_distribution(&teacher, &center, g.number("teacher_temp")?)?;
            let mask = g.get("mask")?;
            let (views, patches) = (mask.shape[0], mask.shape[1] * mask.shape[2]);
            let weights: Vec<f32> = mask
                .data
                .chunks_exact(patches)
                .flat_map(|view| {
                    let count = view.iter().filter(|&&h| h > 0.0).count();
                    vec![1.0 / count as f32; count]
                })
                .collect();
            Ok(ibot_patch_loss(&x[0], &targets, &weights, views, g.number("student_temp")?)?)
        })
    }
}
