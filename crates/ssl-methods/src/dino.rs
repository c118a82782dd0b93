//! DINO (Caron et al. 2021): a student matches the teacher's distribution over prototypes, from large views and small crops;
//! centring and sharpening of the teacher stand against collapse.
//!
//! The teacher sees the global views only and runs in training mode without drop path, as the reference's does. It is the
//! network that is evaluated and exported. Batch norm, where the encoder has it, takes the views of one size together, as the
//! reference's passes over concatenated crops do.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{DinoViews, ViewPlan};
use twinsight_kernels::softmax;
use twinsight_nn::{Gradients, Mode, StateVisitor};

use crate::config::{defaults, ensure, read};
use crate::distill::{Center, WarmUp, between_views};
use crate::networks::{Pair, momentum_at, rows};
use crate::{
    Assignments, At, DinoHead, DinoHeadShape, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks,
    Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "DINO",
    paper: "Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers",
    summary: "self-distillation: small crops must tell what a moving average sees in large views; made for transformers",
    encoder: EncoderNeed::Any,
    needs: "64 images a batch will do; a second network, and several small crops an image; thousands of prototypes",
    choose: "for transformers, and where k-NN on the features is the aim; longer runs than SimCLR's",
    defaults: defaults::<DinoConfig>,
    views: |table, context| read::<DinoConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Dino::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: DinoViews::KEYS, defaults: defaults::<DinoConfig> },
};

const NAME: &str = "dino";

/// How many views the teacher sees.
pub(crate) const GLOBAL_VIEWS: usize = 2;

const KEYS: &[(&str, &str)] = &[
    ("hidden_dim", "hidden width of the head"),
    ("bottleneck_dim", "elements of the normalised vector before the last layer"),
    ("out_dim", "prototypes, that is outputs of the head (65536 in the paper)"),
    ("use_bn_in_head", "whether the head's hidden layers are batch-normalised; convolutional encoders learn sooner"),
    ("norm_last_layer", "whether prototypes keep length 1; steadier"),
    ("freeze_last_layer_epochs", "epochs at the start in which the last layer stays as it is"),
    ("student_temperature", "sharpness of the student; over 0"),
    ("teacher_temperature", "sharpness of the teacher after warm-up; over 0; lower where the teacher's entropy stays near 1"),
    ("warmup_teacher_temperature", "sharpness of the teacher at the start; over 0"),
    ("warmup_teacher_epochs", "epochs in which the teacher's temperature grows linearly"),
    ("center_momentum", "of the moving average of the teacher's outputs; 0 to 1"),
    ("momentum", "of the teacher at the start, moving to `momentum_end` by a cosine; 0 to 1"),
    ("momentum_end", "of the teacher at the end; 0 to 1; as `momentum` for one that stays"),
    ("clip_gradient", "largest norm of each parameter's gradient; 0: no limit"),
    ("local_views", "small crops an image"),
    ("local_size", "side of small crops in pixels; 0: 3/7 of the image size, so that patches fit"),
];

/// DINO's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DinoConfig {
    /// Hidden width of the head.
    pub hidden_dim: usize,
    /// Elements of the normalised vector before the last layer.
    pub bottleneck_dim: usize,
    /// Prototypes, that is outputs of the head. The paper has 65536; a few thousand images want fewer.
    pub out_dim: usize,
    /// Whether the hidden layers of the head are batch-normalised (the reference's `--use_bn_in_head`). A convolutional encoder's
    /// pooled vectors are never negative, so that all point nearly the same way; taking out their mean lets the head tell
    /// images apart from the first steps on.
    pub use_bn_in_head: bool,
    /// Whether prototypes keep length 1.
    pub norm_last_layer: bool,
    /// Epochs at the start in which the last layer stays as it is.
    pub freeze_last_layer_epochs: u64,
    /// Divides the student's outputs; over 0.
    pub student_temperature: f64,
    /// Divides the teacher's centred outputs after warm-up; over 0.
    pub teacher_temperature: f64,
    /// The same at the start; over 0.
    pub warmup_teacher_temperature: f64,
    /// Epochs in which the teacher's temperature grows linearly between the two.
    pub warmup_teacher_epochs: u64,
    /// Momentum of the moving average of the teacher's outputs; 0 to 1.
    pub center_momentum: f64,
    /// Momentum of the teacher at the start, moving to `momentum_end` by a cosine; 0 to 1.
    pub momentum: f64,
    /// Momentum of the teacher at the end; 0 to 1.
    pub momentum_end: f64,
    /// Largest L2 norm of each parameter's gradient; 0: no limit.
    pub clip_gradient: f64,
    /// Small crops an image. The paper's program makes 8, its longest runs 10.
    pub local_views: usize,
    /// Side of small crops in pixels; 0: 3/7 of the image size (96 for 224), rounded to a
    /// multiple of the encoder's patches.
    pub local_size: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: DinoViews,
    /// Leaves the centre at zero, which lets one prototype win everywhere (section 5.3 of the paper). For tests of whether
    /// that is noticed; no file can set it.
    #[serde(skip)]
    pub without_centering: bool,
}

impl Default for DinoConfig {
    fn default() -> Self {
        Self {
            hidden_dim: 2048,
            bottleneck_dim: 256,
            out_dim: 65536,
            use_bn_in_head: false,
            norm_last_layer: true,
            freeze_last_layer_epochs: 1,
            student_temperature: 0.1,
            teacher_temperature: 0.07,
            warmup_teacher_temperature: 0.04,
            warmup_teacher_epochs: 30,
            center_momentum: 0.9,
            momentum: 0.996,
            momentum_end: 1.0,
            clip_gradient: 3.0,
            local_views: 8,
            local_size: 0,
            views: views::by_size(DinoViews::for_size),
            without_centering: false,
        }
    }
}

impl DinoConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::multi_crop(&self.views, DinoViews::for_size, [self.local_views, self.local_size], context)
    }

    /// At the start and at the end.
    fn momenta(&self) -> [f64; 2] {
        [self.momentum, self.momentum_end]
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [
            ("student_temperature", self.student_temperature),
            ("teacher_temperature", self.teacher_temperature),
            ("warmup_teacher_temperature", self.warmup_teacher_temperature),
        ] {
            ensure(NAME, value > 0.0 && value.is_finite(), key, value, "over 0")?;
        }
        for (key, value) in
            [("center_momentum", self.center_momentum), ("momentum", self.momentum), ("momentum_end", self.momentum_end)]
        {
            ensure(NAME, (0.0..=1.0).contains(&value), key, value, "0 to 1")?;
        }
        for (key, value) in [("hidden_dim", self.hidden_dim), ("bottleneck_dim", self.bottleneck_dim), ("out_dim", self.out_dim)]
        {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        ensure(NAME, self.clip_gradient >= 0.0, "clip_gradient", self.clip_gradient, "0 (no limit) or more")
    }

    fn warm_up(&self) -> WarmUp {
        WarmUp { start: self.warmup_teacher_temperature, end: self.teacher_temperature, epochs: self.warmup_teacher_epochs }
    }
}

/// DINO at work.
pub struct Dino {
    config: DinoConfig,
    plan: ViewPlan,
    net: Pair<DinoHead>,
    center: Center,
}

impl Dino {
    /// Builds student and teacher, which start alike, and a centre of zeros.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &DinoConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let shape = DinoHeadShape {
            hidden: config.hidden_dim,
            bottleneck: config.bottleneck_dim,
            outputs: config.out_dim,
            norm_last_layer: config.norm_last_layer,
            batch_norm: config.use_bn_in_head,
        };
        let net = Pair::new(context, |b, dim| DinoHead::new(&b.under("projector"), dim, &shape), |_| Ok(()))?;
        let momentum = if config.without_centering { 1.0 } else { config.center_momentum };
        let center = Center::new(config.out_dim, momentum, &context.device)?;
        Ok(Self { config: config.clone(), plan, net, center })
    }
}

impl Method for Dino {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks(true)
    }

    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.student.joint_vectors(views, mode)
    }

    fn teacher_outputs(&self, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.teacher.joint_vectors(&views[..GLOBAL_VIEWS], mode)
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let (count, n, _) = outputs.student[0].dims3()?;
        let (mode, k) = (at.mode(), self.config.out_dim);
        let (_, teacher) = self.net.teacher.head.forward(&rows(&outputs.teacher[0])?, &mode.without_grad())?;
        let (bottleneck, student) = self.net.student.head.forward(&rows(&outputs.student[0])?, &mode)?;

        let temperature = self.config.warm_up().at(at.epoch);
        let targets = teacher_distribution(&teacher, self.center.value(), temperature)?;
        let logits = student.reshape((count, n, k))?;
        let loss = dino_loss(&logits, &targets.reshape((GLOBAL_VIEWS, n, k))?, self.config.student_temperature)?;
        self.center.see(&teacher)?;

        let scalar = |v: f64| Tensor::new(v as f32, loss.device());
        let bottleneck = bottleneck.detach();
        Ok(LossOutput {
            embedding: bottleneck.narrow(0, 0, n)?,
            partner: Some(bottleneck.narrow(0, n, n)?),
            assignments: Some(Assignments::of(&targets)?),
            metrics: vec![
                ("teacher_temperature", scalar(temperature)?),
                ("momentum", scalar(momentum_at(self.config.momenta(), at.progress()))?),
            ],
            loss,
        })
    }

    fn adjust_gradients(&mut self, gradients: &mut Gradients, at: &At) -> Result<()> {
        tame(gradients, &self.net, self.config.clip_gradient, at.epoch < self.config.freeze_last_layer_epochs)
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        self.center.follow()?;
        self.net.follow(momentum_at(self.config.momenta(), at.progress()))
    }

    fn visit_own_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.center.visit("center", visitor)
    }
}

/// Clips each parameter's gradient to length `clip` (0: not at all), and drops those of the heads' last layers while they are frozen.
pub(crate) fn tame<H, P>(gradients: &mut Gradients, net: &Pair<H, P>, clip: f64, frozen: bool) -> Result<()> {
    if clip > 0.0 {
        gradients.clip_each(clip)?;
    }
    if frozen {
        for p in net.params.trainable().filter(|p| p.name().contains(".last_layer.")) {
            gradients.remove(p.name());
        }
    }
    Ok(())
}

/// softmax((`outputs` − `center`) / `temperature`), outside of any graph.
///
/// # Shapes
/// `outputs` (…, K), `center` (K); the result is shaped as `outputs`.
///
/// # Errors
/// When shapes differ.
pub fn teacher_distribution(outputs: &Tensor, center: &Tensor, temperature: f64) -> Result<Tensor> {
    let centered = outputs.detach().broadcast_sub(&center.detach())?;
    Ok(softmax(&(centered * (1.0 / temperature))?)?)
}

/// The cross-entropy of Caron et al. 2021 between the teacher's distributions of T views and the student's of S views, the
/// first T of which are the same: the mean over all pairs of different views and all images.
///
/// Same values as lightly's `DINOLoss`, with the teacher's side from [`teacher_distribution`].
///
/// # Shapes
/// `student` (S, N, K): outputs; `targets` (T, N, K): distributions, T ≤ S. The result is a scalar.
///
/// # Errors
/// When shapes do not fit, or S is 1, which leaves no pair.
pub fn dino_loss(student: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    between_views(student, targets, temperature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use twinsight_test_support::{Golden, assert_close};

    #[test]
    fn two_calls_equal_lightly() -> anyhow::Result<()> {
        let golden = Golden::load("loss_dino")?;
        let tensor = |key: String| -> anyhow::Result<Tensor> {
            let t = golden.get(&key)?;
            Ok(Tensor::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?)
        };
        let mut center = Tensor::zeros(20, DType::F32, &Device::Cpu)?;
        for call in 0..2 {
            let teacher = tensor(format!("teacher{call}"))?;
            let student = Var::from_tensor(&tensor(format!("student{call}"))?)?;
            let targets = teacher_distribution(&teacher, &center, golden.number("teacher_temp")?)?;
            let loss = dino_loss(&student, &targets, golden.number("student_temp")?)?;
            let want = &golden.get(&format!("loss{call}"))?.data;
            assert_close("loss", &[loss.to_scalar::<f32>()?], want, 1e-5)?;
            let gradient = loss.backward()?.get(&student).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            assert_close("gradient", &gradient, &golden.get(&format!("grad_student{call}"))?.data, 1e-5)?;
            let m = golden.number("center_momentum")?;
            center = ((center * m)? + (teacher.flatten(0, 1)?.mean(0)? * (1.0 - m))?)?;
            assert_close("center", &center.to_vec1::<f32>()?, &golden.get(&format!("center{call}"))?.data, 1e-5)?;
        }
        Ok(())
    }
}
