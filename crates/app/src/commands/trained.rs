//! A trained encoder, found in a run folder or an encoder file, with what is needed to feed it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_encoders::Encoder;

/// An encoder with its input form.
pub struct Trained {
    /// The encoder.
    pub encoder: Box<dyn Encoder>,
    /// How an image becomes its input.
    pub plan: ViewPlan,
    /// The data of the run that it comes from, where that is known.
    pub data: Option<String>,
}

/// Loads the encoder of a run folder, or an encoder file.
///
/// # Errors
/// Neither of the two, a run that is not finished, a damaged file.
pub fn load(path: &Path, device: &Device) -> Result<Trained> {
    let (file, data) = if path.is_dir() {
        let (folder, config) = twinsight_train::RunFolder::open(path)?;
        let file = folder.encoder_path();
        if !file.exists() {
            bail!("{}: the run is not finished: there is no encoder yet; go on with: twinsight resume {0}", path.display());
        }
        (file, Some(config.data.path))
    } else if path.is_file() {
        (path.to_path_buf(), None)
    } else {
        bail!("{}: no such run folder or encoder file", path.display());
    };
    let loaded = twinsight_encoders::load_encoder(&file, device)?;
    let words = loaded.metadata;
    let config = loaded.encoder.config().clone();
    let normalize =
        words.get("normalize").with_context(|| format!("{}: does not say how images are normalised", file.display()))?;
    let numbers: serde_json::Value =
        serde_json::from_str(normalize).with_context(|| format!("{}: normalize in its metadata", file.display()))?;
    let list = |key: &str| -> Result<Vec<f32>> {
        let found = numbers[key].as_array().with_context(|| format!("{}: normalize.{key} is no list", file.display()))?;
        Ok(found.iter().filter_map(|v| v.as_f64()).map(|v| v as f32).collect())
    };
    let plan = ViewPlan {
        normalize: Normalize { mean: list("mean")?, std: list("std")? },
        ..ViewPlan::eval(config.image_size, config.channels)
    };
    plan.check()?;
    Ok(Trained { encoder: loaded.encoder, plan, data })
}
