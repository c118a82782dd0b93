//! A trained encoder, found in a run folder or an encoder file, with what is needed to feed it.

use std::path::Path;

use candle_core::Device;
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_datasets::{Dataset, LevelRange};
use twinsight_encoders::{Encoder, EncoderConfig, FeatureSource, LoadedEncoder, Probe};
use twinsight_nn::{Builder, ParamStore};
use twinsight_ssl_methods::MethodContext;

use crate::data::normalize;
use crate::evaluate::{Evaluation, Features, encode};
use crate::source::Source;
use crate::{Error, Result, RunConfig};

/// An encoder with its input form.
pub struct Trained {
    /// The encoder.
    pub encoder: Box<dyn Encoder>,
    /// How an image becomes its input.
    pub plan: ViewPlan,
    /// The settings of the run that it comes from, where that is known.
    pub config: Option<RunConfig>,
    /// How levels of 16 bits were mapped for it, and are to be.
    pub levels: Option<LevelRange>,
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
        Self::load_on(path, Device::Cpu)
    }

    /// As [`Trained::load`], onto a device.
    ///
    /// # Errors
    /// As [`Trained::load`].
    pub fn load_on(path: &Path, device: Device) -> Result<Self> {
        let source = Source::load(path)?;
        let numbers = source.numbers()?;
        let levels = source.levels()?;
        let config = source.network.encoder.config();
        let plan = ViewPlan {
            normalize: Normalize { mean: numbers.mean, std: numbers.std },
            ..ViewPlan::eval(config.image_size, config.channels)
        };
        plan.check()?;
        let encoder = if device.is_cpu() {
            source.network.encoder
        } else {
            rebuilt(&source.network, source.network.encoder.config(), &device)?.0
        };
        Ok(Self { encoder, plan, config: source.run, levels, file: source.file, device })
    }

    /// Where the encoder's parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One vector an image, by batches of `batch`.
    ///
    /// # Errors
    /// A failing forward pass; images none of which can be read; a vector that is not finite, with encoder file and image.
    pub fn embed(&self, dataset: &dyn Dataset, batch: usize) -> Result<Features> {
        encode(dataset, &*self.encoder, &self.plan, batch, &self.device).map_err(|e| self.named(e))
    }

    /// Puts the encoder's file before what is wrong with its vectors.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::Vector { .. } => Error::run(&self.file, error.to_string()),
            other => other,
        }
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

    /// The encoder as the run began with it: drawn from the run's seed, or of the file that the run started from. Its vectors are the pooled
    /// ones.
    ///
    /// # Errors
    /// An encoder file instead of a run; a start that is no longer there.
    pub fn before_training(&self) -> Result<Self> {
        let Some(config) = &self.config else {
            return Err(Error::run(
                &self.file,
                "does not say how it was trained; name a run folder to have its encoder before training",
            ));
        };
        let context = MethodContext {
            encoder: twinsight_encoders::encoder(&config.encoder)?,
            encoder_config: config.encoder_config(self.encoder.config().channels),
            normalize: normalize(config),
            batch_size: config.batch,
            epochs: config.epochs,
            steps_per_epoch: 1,
            seed: config.seed,
            device: self.device.clone(),
        };
        let method = (twinsight_ssl_methods::method(&config.method)?.build)(&config.options, &context)?;
        crate::init::start(&*method, &mut config.clone())?;
        let builder = Builder::zeros(&self.device);
        let encoder = (context.encoder.build)(method.encoder().config(), &builder)?;
        builder.finish().copy_from(&method.encoder_params())?;
        Ok(Self {
            encoder,
            plan: self.plan.clone(),
            config: self.config.clone(),
            levels: self.levels,
            file: self.file.clone(),
            device: self.device.clone(),
        })
    }

    /// The features of the labelled images of `evaluation`, for protocols that look at them in several ways.
    ///
    /// # Errors
    /// A failing forward pass.
    pub fn encoded(&self, evaluation: &Evaluation) -> Result<crate::protocols::Encoded> {
        crate::protocols::Encoded::new(evaluation, &*self.encoder, &self.device).map_err(|e| self.named(e))
    }
}

/// The network built again on `device`, by settings that leave its parameters' names and shapes as they are.
pub(crate) fn rebuilt(
    network: &LoadedEncoder,
    config: &EncoderConfig,
    device: &Device,
) -> Result<(Box<dyn Encoder>, ParamStore)> {
    let builder = Builder::zeros(device);
    let encoder = (network.spec.build)(config, &builder)?;
    let params = builder.finish();
    params.copy_from(&network.params)?;
    Ok((encoder, params))
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
