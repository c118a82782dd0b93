//! Self-supervised methods, one file each: how views are made, what the loss is, and what happens after a step.
//!
//! [`METHODS`] lists them; [`method`] finds one by name. A [`Method`] owns its networks and all other state. The caller
//! makes the views that [`Method::views`] asks for, calls [`Method::loss`], goes backward, lets
//! [`Method::adjust_gradients`] see the gradients, updates the parameters of [`Method::student`], and calls
//! [`Method::after_step`]. The losses themselves are pure functions ([`nt_xent`], [`barlow_twins_loss`], [`negative_cosine`], [`dino_loss`]) for
//! those who bring networks of their own.

mod barlow_twins;
mod byol;
mod config;
mod dino;
mod error;
mod heads;
mod networks;
mod registry;
mod simclr;
mod views;

use candle_core::{Device, Tensor};
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_encoders::{Encoder, EncoderConfig, EncoderSpec};
use twinsight_nn::{DrawKey, Gradients, Mode, ParamStore, Precision, StateVisitor};

pub use barlow_twins::{BarlowTwins, BarlowTwinsConfig, barlow_twins_loss};
pub use byol::{Byol, ByolConfig, negative_cosine};
pub use dino::{Dino, DinoConfig, dino_loss, teacher_distribution};
pub use error::{Error, Result};
pub use heads::{Activation, DinoHead, DinoHeadShape, HeadLayer, ProjectionHead};
pub use networks::{encode_views, momentum_at};
pub use registry::{KeyDoc, Keys, METHODS, MethodSpec, method};
pub use simclr::{SimClr, SimClrConfig, nt_xent};

/// A self-supervised method at work: networks, loss and everything that changes from step to step.
pub trait Method: Send {
    /// The views of an image that a step needs, in the order that [`Method::loss`] takes them.
    fn views(&self) -> &ViewPlan;

    /// The loss of one batch of N images. `views`: one f32 tensor (N, C, S, S) for each view of the plan, in its order.
    /// Networks run in training mode, so running statistics change.
    ///
    /// # Errors
    /// Another number, size or order of views than the plan's.
    fn loss(&mut self, views: &[Tensor], at: &At) -> Result<LossOutput>;

    /// Sees the student's gradients before the optimizer does, to clip or drop some.
    ///
    /// # Errors
    /// When candle fails.
    fn adjust_gradients(&mut self, _gradients: &mut Gradients, _at: &At) -> Result<()> {
        Ok(())
    }

    /// What follows the optimizer's step: the teacher, the centre.
    ///
    /// # Errors
    /// When candle fails.
    fn after_step(&mut self, _at: &At) -> Result<()> {
        Ok(())
    }

    /// What the optimizer trains, under `backbone.`, `projector.` and, where there is one, `predictor.`.
    fn student(&self) -> &ParamStore;

    /// The network that follows the student without gradients, if there is one, under the same names.
    fn teacher(&self) -> Option<&ParamStore>;

    /// The backbone that is evaluated and exported.
    fn encoder(&self) -> &dyn Encoder;

    /// The parameters of [`Method::encoder`] under the encoder's own names.
    fn encoder_params(&self) -> ParamStore;

    /// Shows everything that a later step depends on to `visitor`, which saves or overwrites it. Between steps, that is
    /// after [`Method::after_step`], nothing else is left to keep.
    ///
    /// # Errors
    /// What the visitor says, such as a missing tensor.
    fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()>;
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
    /// Scalars worth a plot, without a graph.
    pub metrics: Vec<(&'static str, Tensor)>,
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
