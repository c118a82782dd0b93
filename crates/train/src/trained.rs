//! A trained encoder, found in a run folder or an encoder file, with what is needed to feed it.

use std::path::Path;

use candle_core::Device;
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_encoders::{Encoder, FeatureSource, Probe};

use crate::evaluate::{Evaluation, Features, Score, encode};
use crate::source::Source;
use crate::{Result, RunConfig};

/// An encoder with its input form.
pub struct Trained {
    /// The encoder.
    pub encoder: Box<dyn Encoder>,
    /// How an image becomes its input.
    pub plan: ViewPlan,
    /// The settings of the run that it comes from, where that is known.
    pub config: Option<RunConfig>,
    /// The file that it was read from.
    pub file: std::path::PathBuf,
    device: Device,
}

impl Trained {
    /// Loads the encoder of a run folder, of an exported folder, or of a file ([`Source::load`]).
    ///
    /// # Errors
    /// None of these, a run that is not finished, a damaged file.
    pub fn load(path: &Path) -> Result<Self> {
        let source = Source::load(path)?;
        let numbers = source.numbers()?;
        let config = source.network.encoder.config();
        let plan = ViewPlan {
            normalize: Normalize { mean: numbers.mean, std: numbers.std },
            ..ViewPlan::eval(config.image_size, config.channels)
        };
        plan.check()?;
        Ok(Self { encoder: source.network.encoder, plan, config: source.run, file: source.file, device: Device::Cpu })
    }

    /// One vector an image, by batches of `batch`.
    ///
    /// # Errors
    /// A failing forward pass; images none of which can be read.
    pub fn embed(&self, dataset: &dyn Dataset, batch: usize) -> Result<Features> {
        encode(dataset, &*self.encoder, &self.plan, batch, &self.device)
    }

    /// The same with vectors from another place of the encoder than its last layer's.
    ///
    /// # Errors
    /// A place that the encoder does not have.
    pub fn with_features(self, source: FeatureSource) -> Result<Self> {
        Ok(match source {
            FeatureSource::Pooled => self,
            source => Self { encoder: Box::new(Probe::new(self.encoder, source)?), ..self },
        })
    }

    /// The features of the labelled images of `evaluation`, for protocols that look at them in several ways.
    ///
    /// # Errors
    /// A failing forward pass.
    pub fn encoded(&self, evaluation: &Evaluation) -> Result<crate::protocols::Encoded> {
        crate::protocols::Encoded::new(evaluation, &*self.encoder, &self.device)
    }

    /// k-NN accuracy of its features by `evaluation`'s protocol.
    ///
    /// # Errors
    /// A failing forward pass or search.
    pub fn score(&self, evaluation: &Evaluation) -> Result<Score> {
        evaluation.score(&*self.encoder, &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_augment::Transform;
    use twinsight_encoders::export::shorter_side;

    #[test]
    fn exported_configurations_tell_what_evaluation_does() {
        for side in [1, 28, 32, 63, 64, 65, 96, 100, 224, 225, 384] {
            let Some(Transform::Resize { shorter, .. }) = ViewPlan::eval(side, 3).view(0).transforms.first().cloned() else {
                panic!("{side} px: the first step is no resize");
            };
            assert_eq!(shorter, Some(shorter_side(side)), "{side} px");
        }
    }
}
