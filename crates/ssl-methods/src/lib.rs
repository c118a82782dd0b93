//! Self-supervised methods, one file each: how views are made, what the loss is, and what happens after a step.
//!
//! [`METHODS`] lists them; [`method`] finds one by name. A [`Method`] owns its networks and all other state. The caller
//! makes the views that [`Method::views`] asks for, calls [`backward`], lets [`Method::adjust_gradients`] see the gradients, updates the
//! parameters of [`Method::student`], and calls [`Method::after_step`]. The losses themselves are pure functions ([`nt_xent`],
//! [`vicreg_loss`], [`dino_loss`] and their kin) for those who bring networks of their own.

mod assign;
mod barlow_twins;
mod byol;
mod config;
mod contrast;
mod dcl;
mod dino;
mod dinov2;
mod distill;
mod error;
mod heads;
mod ibot;
mod koleo;
mod lejepa;
mod mae;
mod masks;
mod moco_v2;
mod moco_v3;
mod networks;
mod nnclr;
mod queue;
mod registry;
mod simclr;
mod simsiam;
mod step;
mod swav;
#[cfg(test)]
mod test;
mod vicreg;
mod views;

use std::ops::Range;

use candle_core::{Device, Tensor};
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_encoders::{Encoder, EncoderConfig, EncoderSpec};
use twinsight_nn::{DrawKey, Gradients, Mode, ParamStore, Precision, StateVisitor};

pub use assign::sinkhorn;
pub use barlow_twins::{BarlowTwins, BarlowTwinsConfig, barlow_twins_loss};
pub use byol::{Byol, ByolConfig, negative_cosine};
pub use dcl::{Dcl, DclConfig, DclwConfig, dcl_loss, dclw_loss};
pub use dino::{Dino, DinoConfig, dino_loss, teacher_distribution};
pub use dinov2::{DinoV2, DinoV2Config};
pub use error::{Error, Result};
pub use heads::{Activation, DinoHead, DinoHeadShape, HeadLayer, HeadNorm, ProjectionHead};
pub use ibot::{Centering, Ibot, IbotConfig, ibot_patch_loss};
pub use koleo::koleo_loss;
pub use lejepa::{LeJepa, LeJepaConfig, lejepa_loss, sigreg};
pub use mae::{Mae, MaeConfig, mae_loss};
pub use moco_v2::{MocoV2, MocoV2Config, queue_contrast_loss};
pub use moco_v3::{MocoV3, MocoV3Config, moco_v3_loss};
pub use networks::{momentum_at, vectors};
pub use nnclr::{Nnclr, NnclrConfig, nnclr_loss};
pub use registry::{EncoderNeed, KeyDoc, Keys, METHODS, MethodSpec, method};
pub use simclr::{SimClr, SimClrConfig, nt_xent};
pub use simsiam::{SimSiam, SimSiamConfig};
pub use step::{Backward, backward, backward_unseen};
pub use swav::{Swav, SwavConfig, swav_loss};
pub use vicreg::{VicReg, VicRegConfig, vicreg_loss};

/// A self-supervised method at work: networks, loss and everything that changes from step to step.
///
/// A step has two halves, so that a batch may go through the backbones in parts ([`backward`]): [`Method::student_outputs`] and
/// [`Method::teacher_outputs`] look at views of some images, [`Method::objective`] at what they made of the whole batch.
pub trait Method: Send {
    /// The views of an image that a step needs, in the order that [`Method::loss`] takes them.
    fn views(&self) -> &ViewPlan;

    /// The networks that are trained, that follow, and that are evaluated.
    fn networks(&self) -> Networks<'_>;

    /// What the student's backbone makes of `views`: neighbours in the plan, all of one size, the first of them number `first`. One or
    /// more tensors (V, N, …), V for views and N for images; those that only the first views have come last.
    ///
    /// # Errors
    /// Input that the encoder refuses.
    fn student_outputs(&self, views: &[Tensor], first: usize, mode: &Mode) -> Result<Vec<Tensor>>;

    /// What the teacher's backbone makes of the plan's views, of all of which it is given the batches: tensors (V, N, …) without a
    /// graph.
    ///
    /// # Errors
    /// Input that the encoder refuses.
    fn teacher_outputs(&self, _views: &[Tensor], _mode: &Mode) -> Result<Vec<Tensor>> {
        Ok(Vec::new())
    }

    /// The views that the student sees.
    fn student_views(&self) -> Range<usize> {
        0..self.views().view_count()
    }

    /// The loss of a whole batch, from what the backbones made of it: here are the heads.
    ///
    /// # Errors
    /// When candle fails.
    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput>;

    /// The loss of one batch of N images. `views`: one f32 tensor (N, C, S, S) for each view of the plan, in its order.
    /// Networks run in training mode, so running statistics change.
    ///
    /// # Errors
    /// Another number, size or order of views than the plan's.
    fn loss(&mut self, views: &[Tensor], at: &At) -> Result<LossOutput> {
        step::check_views(self.views(), views)?;
        let mode = at.mode();
        let student = step::student(self, views, &mode)?;
        let teacher = self.teacher_outputs(views, &mode.without_grad())?;
        self.objective(&Outputs { student, teacher }, at)
    }

    /// Sees the student's gradients before the optimizer does, to clip or drop some.
    ///
    /// # Errors
    /// When candle fails.
    fn adjust_gradients(&mut self, _gradients: &mut Gradients, _at: &At) -> Result<()> {
        Ok(())
    }

    /// What follows the optimizer's step: the teacher, the centre, the queue.
    ///
    /// # Errors
    /// When candle fails.
    fn after_step(&mut self, _at: &At) -> Result<()> {
        Ok(())
    }

    /// What the optimizer trains, under `backbone.`, `projector.` and, where there is one, `predictor.`.
    fn student(&self) -> &ParamStore {
        self.networks().student
    }

    /// The network that follows the student without gradients, if there is one, under the same names.
    fn teacher(&self) -> Option<&ParamStore> {
        self.networks().teacher
    }

    /// The backbone that is evaluated and exported.
    fn encoder(&self) -> &dyn Encoder {
        self.networks().encoder
    }

    /// The parameters of [`Method::encoder`] under the encoder's own names.
    fn encoder_params(&self) -> ParamStore {
        let networks = self.networks();
        networks.teacher.filter(|_| networks.teacher_is_evaluated).unwrap_or(networks.student).sub_store("backbone")
    }

    /// Shows everything that a later step depends on to `visitor`, which saves or overwrites it. Between steps, that is
    /// after [`Method::after_step`], nothing else is left to keep.
    ///
    /// # Errors
    /// What the visitor says, such as a missing tensor.
    fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        let networks = self.networks();
        visitor.params("student", networks.student)?;
        if let Some(teacher) = networks.teacher {
            visitor.params("teacher", teacher)?;
        }
        self.visit_own_state(visitor)
    }

    /// The part of [`Method::visit_state`] that is not parameters: queue, centre, counters. What was seen since the last step is
    /// forgotten.
    ///
    /// # Errors
    /// What the visitor says.
    fn visit_own_state(&mut self, _visitor: &mut dyn StateVisitor) -> Result<()> {
        Ok(())
    }
}

/// A method's networks.
pub struct Networks<'a> {
    /// What the optimizer trains.
    pub student: &'a ParamStore,
    /// What follows it, if anything does.
    pub teacher: Option<&'a ParamStore>,
    /// The backbone that is evaluated.
    pub encoder: &'a dyn Encoder,
    /// Whether that is the teacher's.
    pub teacher_is_evaluated: bool,
}

/// What the backbones made of a batch of N images.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// The student's tensors, (V, N, …).
    pub student: Vec<Tensor>,
    /// The teacher's, without a graph.
    pub teacher: Vec<Tensor>,
}

/// What a method is built for.
#[derive(Debug, Clone)]
pub struct MethodContext {
    /// The kind of backbone.
    pub encoder: &'static EncoderSpec,
    /// Its settings; image size and channels are those of the views too.
    pub encoder_config: EncoderConfig,
    /// How views are normalised.
    pub normalize: Normalize,
    /// Images a step.
    pub batch_size: usize,
    /// How often every image is seen.
    pub epochs: u64,
    /// Steps an epoch.
    pub steps_per_epoch: u64,
    /// Decides all starting weights.
    pub seed: u64,
    /// Where the networks live.
    pub device: Device,
}

impl MethodContext {
    /// What the views of this context are made for.
    pub fn view_context(&self) -> ViewContext {
        ViewContext {
            image_size: self.encoder_config.image_size,
            channels: self.encoder_config.channels,
            patch: self.encoder_config.resolved_patch(),
            normalize: self.normalize.clone(),
        }
    }
}

/// What views are made for.
#[derive(Debug, Clone)]
pub struct ViewContext {
    /// Side of a full view in pixels.
    pub image_size: usize,
    /// Channels of the images.
    pub channels: usize,
    /// Side of a transformer's patches in pixels: local views are cut to whole ones.
    pub patch: usize,
    /// How views are normalised.
    pub normalize: Normalize,
}

/// Where in its training a method is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The optimizer step, counted from 0 over all epochs.
    pub step: u64,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// Steps an epoch.
    pub steps_per_epoch: u64,
    /// Epochs in all.
    pub epochs: u64,
    /// The run's seed.
    pub seed: u64,
    /// The precision of the step.
    pub precision: Precision,
}

impl At {
    /// The share of all steps that is done before this one, in [0, 1).
    pub fn progress(&self) -> f64 {
        let total = (self.epochs * self.steps_per_epoch).max(1);
        self.step.min(total - 1) as f64 / total as f64
    }

    /// Training with a graph, with the draws of this step.
    pub fn mode(&self) -> Mode {
        Mode::train(DrawKey { seed: self.seed, step: self.step, pass: 0 }).with_precision(self.precision)
    }
}

/// What a method makes of a batch.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// The scalar to go backward from.
    pub loss: Tensor,
    /// (N, D) without a graph: the student's projection of the first view, for watching over collapse.
    pub embedding: Tensor,
    /// (N, D): the same of another view of the same images, where the method makes one.
    pub partner: Option<Tensor>,
    /// What the images are assigned to, for methods with prototypes.
    pub assignments: Option<Assignments>,
    /// Scalars worth a plot, without a graph.
    pub metrics: Vec<(&'static str, Tensor)>,
}

/// How a batch is spread over prototypes. The tensors are scalars in 0 to 1.
#[derive(Debug, Clone)]
pub struct Assignments {
    /// The mean entropy of an image's distribution over K prototypes, as a share of log K: 0 is one prototype an image, 1 is all alike.
    pub entropy: Tensor,
    /// The perplexity of the batch's mean distribution, as a share of K: 1 / K when all images share one prototype.
    pub usage: Tensor,
    /// K.
    pub prototypes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_runs_from_zero_to_below_one() {
        let at = |step| At { step, epoch: 0, steps_per_epoch: 5, epochs: 2, seed: 0, precision: Precision::F32 };
        assert_eq!(at(0).progress(), 0.0);
        assert_eq!(at(5).progress(), 0.5);
        assert_eq!(at(9).progress(), 0.9);
        assert_eq!(at(99).progress(), 0.9);
        assert_eq!(At { epochs: 0, ..at(3) }.progress(), 0.0);
    }
}
