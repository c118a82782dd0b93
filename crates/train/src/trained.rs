//! A trained encoder, found in a run folder or an encoder file, with what is needed to feed it.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Deserialize;
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_encoders::{Encoder, FeatureSource, LoadedEncoder, Probe};
use twinsight_nn::Builder;
use twinsight_ssl_methods::MethodContext;

use crate::data::normalize;
use crate::evaluate::{Evaluation, Features, encode};
use crate::{Error, Result, RunConfig, RunFolder};

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
    /// Loads the encoder of a run folder, or an encoder file.
    ///
    /// # Errors
    /// Neither of the two, a run that is not finished, a damaged file.
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_on(path, Device::Cpu)
    }

    /// As [`Trained::load`], onto a device.
    ///
    /// # Errors
    /// As [`Trained::load`].
    pub fn load_on(path: &Path, device: Device) -> Result<Self> {
        let (file, run) = encoder_file(path)?;
        let loaded = twinsight_encoders::load_encoder(&file, &device)?;
        let text = loaded.metadata.get("normalize");
        let text = text.ok_or_else(|| Error::run(&file, "does not say how images are normalised"))?;
        let numbers: Numbers =
            serde_json::from_str(text).map_err(|e| Error::run(&file, format!("normalize in its metadata: {e}")))?;
        let config = loaded.encoder.config();
        let plan = ViewPlan {
            normalize: Normalize { mean: numbers.mean, std: numbers.std },
            ..ViewPlan::eval(config.image_size, config.channels)
        };
        plan.check()?;
        Ok(Self { encoder: loaded.encoder, plan, config: run, file, device })
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
            return Err(Error::run(&self.file, "does not say how it was trained; name a run folder to have its encoder before training"));
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
        crate::init::start(&*method, config)?;
        let builder = Builder::zeros(&self.device);
        let encoder = (context.encoder.build)(method.encoder().config(), &builder)?;
        builder.finish().copy_from(&method.encoder_params())?;
        Ok(Self { encoder, plan: self.plan.clone(), config: self.config.clone(), file: self.file.clone(), device: self.device.clone() })
    }

    /// The features of the labelled images of `evaluation`, for protocols that look at them in several ways.
    ///
    /// # Errors
    /// A failing forward pass.
    pub fn encoded(&self, evaluation: &Evaluation) -> Result<crate::protocols::Encoded> {
        crate::protocols::Encoded::new(evaluation, &*self.encoder, &self.device).map_err(|e| self.named(e))
    }
}

/// The encoder file of a run folder, with the run's settings; or `path` itself where it is a file.
///
/// # Errors
/// Neither of the two, a run that is not finished.
pub fn encoder_file(path: &Path) -> Result<(PathBuf, Option<RunConfig>)> {
    if path.is_dir() {
        let (folder, config) = RunFolder::open(path)?;
        let file = folder.encoder_path();
        if !file.exists() {
            let reason =
                format!("the run is not finished: there is no encoder yet; go on with: twinsight resume {}", path.display());
            return Err(Error::run(path, reason));
        }
        Ok((file, Some(config)))
    } else if path.is_file() {
        Ok((path.to_path_buf(), None))
    } else {
        Err(Error::run(path, "no such run folder or encoder file"))
    }
}

/// The network of a run folder or an encoder file with its parameters and metadata, and the run's settings.
///
/// # Errors
/// As [`encoder_file`]; a damaged file.
pub fn load_network(path: &Path) -> Result<(LoadedEncoder, Option<RunConfig>)> {
    let (file, run) = encoder_file(path)?;
    Ok((twinsight_encoders::load_encoder(&file, &Device::Cpu)?, run))
}

/// Mean and standard deviation of each channel.
#[derive(Deserialize)]
struct Numbers {
    mean: Vec<f32>,
    std: Vec<f32>,
}
