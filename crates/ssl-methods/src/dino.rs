//! DINO (Caron et al. 2021): a student matches the teacher's distribution over prototypes, from large views and small crops;
//! centring and sharpening of the teacher stand against collapse.
//!
//! The teacher sees the global views only and runs in training mode without drop path, as the reference's does. It is the
//! network that is evaluated and exported.

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use twinsight_augment::{DinoViews, ViewPlan};
use twinsight_encoders::{Encoder, EncoderConfig};
use twinsight_kernels::{cross_entropy_soft, softmax};
use twinsight_nn::{Builder, Gradients, Mode, ParamStore, StateVisitor};

use crate::config::{defaults, ensure, read};
use crate::networks::{check_views, encode_views, follow, momentum_at, start_teacher};
use crate::{At, DinoHead, DinoHeadShape, Keys, LossOutput, Method, MethodContext, MethodSpec, Result, ViewContext, views};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "DINO",
    paper: "Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers",
    summary: "self-distillation: small crops must tell what a moving average sees in large views; made for transformers",
    defaults: defaults::<DinoConfig>,
    views: |table, context| read::<DinoConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(Dino::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: DinoViews::KEYS, defaults: defaults::<DinoConfig> },
};

const NAME: &str = "dino";

/// How many views the teacher sees.
const GLOBAL_VIEWS: usize = 2;

const KEYS: &[(&str, &str)] = &[
    ("hidden_dim", "hidden width of the head"),
    ("bottleneck_dim", "elements of the normalised vector before the last layer"),
    ("out_dim", "prototypes, that is outputs of the head (65536 in the paper)"),
    ("use_bn_in_head", "whether the head's hidden layers are batch-normalised; convolutional encoders learn sooner"),
    ("norm_last_layer", "whether prototypes keep length 1; steadier"),
    ("freeze_last_layer_epochs", "epochs at the start in which the last layer stays as it is"),
    ("student_temperature", "sharpness of the student; over 0"),
    ("teacher_temperature", "sharpness of the teacher after warm-up; over 0"),
    ("warmup_teacher_temperature", "sharpness of the teacher at the start; over 0"),
    ("warmup_teacher_epochs", "epochs in which the teacher's temperature grows linearly"),
    ("center_momentum", "of the moving average of the teacher's outputs; 0 to 1"),
    ("momentum", "of the teacher at the start, growing to 1 by a cosine; 0 to 1"),
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
    /// Momentum of the teacher at the start, growing to 1 by a cosine; 0 to 1.
    pub momentum: f64,
    /// Largest L2 norm of each parameter's gradient; 0: no limit.
    pub clip_gradient: f64,
    /// Small crops an image.
    pub local_views: usize,
    /// Side of small crops in pixels; 0: 3/7 of the image size (96 for 224), rounded to a
    /// multiple of the encoder's patches.
    pub local_size: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: DinoViews,
}

impl Default for DinoConfig {
    fn default() -> Self {
        Self {
            hidden_dim: 2048,
            bottleneck_dim: 256,
            out_dim: 4096,
            use_bn_in_head: false,
            norm_last_layer: true,
            freeze_last_layer_epochs: 1,
            student_temperature: 0.1,
            teacher_temperature: 0.07,
            warmup_teacher_temperature: 0.04,
            warmup_teacher_epochs: 30,
            center_momentum: 0.9,
            momentum: 0.996,
            clip_gradient: 3.0,
            local_views: 6,
            local_size: 0,
            views: views::by_size(&DinoViews::small(), &DinoViews::default()),
        }
    }
}

impl DinoConfig {
    /// Two global views and the local ones.
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        let local = match self.local_size {
            0 => DinoViews::local_size(context.image_size, context.patch),
            size => size,
        };
        let views = views::resolve(&self.views, &DinoViews::for_size(context.image_size));
        let plan = ViewPlan::dino(context.image_size, local, self.local_views, context.channels, &views)
            .with_normalize(context.normalize.clone());
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [
            ("student_temperature", self.student_temperature),
            ("teacher_temperature", self.teacher_temperature),
            ("warmup_teacher_temperature", self.warmup_teacher_temperature),
        ] {
            ensure(NAME, value > 0.0 && value.is_finite(), key, value, "over 0")?;
        }
        for (key, value) in [("center_momentum", self.center_momentum), ("momentum", self.momentum)] {
            ensure(NAME, (0.0..=1.0).contains(&value), key, value, "0 to 1")?;
        }
        for (key, value) in [("hidden_dim", self.hidden_dim), ("bottleneck_dim", self.bottleneck_dim), ("out_dim", self.out_dim)]
        {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        ensure(NAME, self.clip_gradient >= 0.0, "clip_gradient", self.clip_gradient, "0 (no limit) or more")
    }

    /// As the reference: linear from epoch to epoch during warm-up, constant after it.
    fn teacher_temperature_at(&self, epoch: u64) -> f64 {
        if epoch >= self.warmup_teacher_epochs || self.warmup_teacher_epochs == 0 {
            return self.teacher_temperature;
        }
        let share = epoch as f64 / (self.warmup_teacher_epochs - 1).max(1) as f64;
        self.warmup_teacher_temperature + share * (self.teacher_temperature - self.warmup_teacher_temperature)
    }
}

/// DINO at work.
pub struct Dino {
    config: DinoConfig,
    plan: ViewPlan,
    student: Branch,
    student_params: ParamStore,
    teacher: Branch,
    teacher_params: ParamStore,
    /// (K): the moving average of the teacher's outputs.
    center: Var,
    /// Sum of the mean teacher outputs since the last step, and how many; empty between steps.
    outputs: Option<(Tensor, usize)>,
}

impl Dino {
    /// Builds student and teacher, which start alike, and a centre of zeros.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &DinoConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let build = |encoder_config: &EncoderConfig| -> Result<(Branch, ParamStore)> {
            let b = Builder::new(context.seed, &context.device);
            Ok((Branch::new(&b, config, encoder_config, context)?, b.finish()))
        };
        let (student, student_params) = build(&context.encoder_config)?;
        let (teacher, teacher_params) = build(&EncoderConfig { drop_path: 0.0, ..context.encoder_config.clone() })?;
        start_teacher(&teacher_params, &student_params)?;
        let center = Var::zeros(config.out_dim, DType::F32, &context.device)?;
        let config = config.clone();
        Ok(Self { config, plan, student, student_params, teacher, teacher_params, center, outputs: None })
    }
}

impl Method for Dino {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn loss(&mut self, views: &[Tensor], at: &At) -> Result<LossOutput> {
        let n = check_views(&self.plan, views)?;
        let mode = at.mode();
        let k = self.config.out_dim;
        let (_, teacher) = self.teacher.forward(&views[..GLOBAL_VIEWS], &mode.without_grad())?;
        let (bottleneck, student) = self.student.forward(views, &mode)?;

        let temperature = self.config.teacher_temperature_at(at.epoch);
        let targets = teacher_distribution(&teacher, self.center.as_tensor(), temperature)?;
        let logits = student.reshape((views.len(), n, k))?;
        let loss = dino_loss(&logits, &targets.reshape((GLOBAL_VIEWS, n, k))?, self.config.student_temperature)?;

        let mean = teacher.mean(0)?;
        self.outputs = Some(match self.outputs.take() {
            Some((sum, count)) => ((sum + mean)?, count + 1),
            None => (mean, 1),
        });
        let scalar = |v: f64| Tensor::new(v as f32, loss.device());
        let entropy = (&targets * (&targets + 1e-12)?.log()?)?.sum_all()?.affine(-1.0 / targets.dim(0)? as f64, 0.0)?;
        let metrics = vec![
            ("teacher_entropy", entropy),
            ("teacher_temperature", scalar(temperature)?),
            ("momentum", scalar(momentum_at(self.config.momentum, at.progress()))?),
        ];
        Ok(LossOutput { loss, embedding: bottleneck.detach().narrow(0, 0, n)?, metrics })
    }

    fn adjust_gradients(&mut self, gradients: &mut Gradients, at: &At) -> Result<()> {
        if self.config.clip_gradient > 0.0 {
            gradients.clip_each(self.config.clip_gradient)?;
        }
        if at.epoch < self.config.freeze_last_layer_epochs {
            for p in self.student_params.trainable().filter(|p| p.name().starts_with("projector.last_layer.")) {
                gradients.remove(p.name());
            }
        }
        Ok(())
    }

    fn after_step(&mut self, at: &At) -> Result<()> {
        if let Some((sum, count)) = self.outputs.take() {
            let m = self.config.center_momentum;
            let center = (self.center.affine(m, 0.0)? + sum.affine((1.0 - m) / count as f64, 0.0)?)?;
            self.center.set(&center.detach())?;
        }
        follow(&self.teacher_params, &self.student_params, momentum_at(self.config.momentum, at.progress()))
    }

    fn student(&self) -> &ParamStore {
        &self.student_params
    }

    fn teacher(&self) -> Option<&ParamStore> {
        Some(&self.teacher_params)
    }

    fn encoder(&self) -> &dyn Encoder {
        &*self.teacher.backbone
    }

    fn encoder_params(&self) -> ParamStore {
        self.teacher_params.sub_store("backbone")
    }

    fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        visitor.params("student", &self.student_params)?;
        visitor.params("teacher", &self.teacher_params)?;
        visitor.tensor("center", &self.center)?;
        // Views seen since the last step belong to the state that is replaced.
        self.outputs = None;
        Ok(())
    }
}

/// What student and teacher both have.
struct Branch {
    backbone: Box<dyn Encoder>,
    head: DinoHead,
}

impl Branch {
    fn new(b: &Builder, config: &DinoConfig, encoder_config: &EncoderConfig, context: &MethodContext) -> Result<Self> {
        let backbone = (context.encoder.build)(encoder_config, &b.under("backbone"))?;
        let shape = DinoHeadShape {
            hidden: config.hidden_dim,
            bottleneck: config.bottleneck_dim,
            outputs: config.out_dim,
            norm_last_layer: config.norm_last_layer,
            batch_norm: config.use_bn_in_head,
        };
        let head = DinoHead::new(&b.under("projector"), backbone.dim(), &shape)?;
        Ok(Self { backbone, head })
    }

    /// Bottlenecks and logits, (V N, …).
    fn forward(&self, views: &[Tensor], mode: &Mode) -> Result<(Tensor, Tensor)> {
        self.head.forward(&encode_views(&*self.backbone, views, mode)?, mode)
    }
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
    let (s, n, k) = student.dims3()?;
    let (t, ..) = targets.dims3()?;
    if t == 0 || t > s || s < 2 || targets.dims() != [t, n, k] {
        return Err(crate::Error::BadViews(format!(
            "the student's outputs have shape {:?} and the teacher's {:?}, expected (S, N, K) and (T, N, K) with T ≤ S and S ≥ 2",
            student.dims(),
            targets.dims()
        )));
    }
    // The loss is linear in the targets, so each student view takes the sum of those it is compared with in one go.
    let all = targets.sum_keepdim(0)?;
    let mut wanted = vec![all.broadcast_sub(targets)?];
    if s > t {
        wanted.push(all.broadcast_as((s - t, n, k))?);
    }
    let wanted = Tensor::cat(&wanted, 0)?.reshape((s * n, k))?;
    let logits = (student.reshape((s * n, k))? * (1.0 / temperature))?;
    let pairs = t * (s - 1);
    Ok((cross_entropy_soft(&logits, &wanted)? * (s as f64 / pairs as f64))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
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

    #[test]
    fn the_teacher_warms_up_by_epochs() {
        let config = DinoConfig { warmup_teacher_epochs: 4, ..DinoConfig::default() };
        for (epoch, want) in [(0, 0.04), (1, 0.05), (3, 0.07), (4, 0.07), (9, 0.07)] {
            assert!((config.teacher_temperature_at(epoch) - want).abs() < 1e-12, "epoch {epoch}");
        }
        let without = DinoConfig { warmup_teacher_epochs: 0, ..config };
        assert_eq!(without.teacher_temperature_at(0), 0.07);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> anyhow::Result<()> {
        let zeros = |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        for (student, targets) in [((1, 3, 4), (1, 3, 4)), ((2, 3, 4), (3, 3, 4)), ((2, 3, 4), (2, 3, 5))] {
            assert!(dino_loss(&zeros(student)?, &zeros(targets)?, 0.1).is_err());
        }
        Ok(())
    }
}
