//! Where an encoder's weights come from: a run, a folder that `export` wrote, a file of this program, or one of another home; of this
//! machine, or of the Hugging Face Hub.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use twinsight_datasets::{LevelRange, Levels};
use twinsight_encoders::weights::{Weights, beside, import};
use twinsight_encoders::{LoadedEncoder, load_encoder, peek_encoder};

use crate::{Error, Result, RunConfig, RunFolder};

/// An encoder with what is known of it.
pub struct Source {
    /// Network, parameters and metadata; `normalize` is among it.
    pub network: LoadedEncoder,
    /// The settings of the run that it comes from, where that is known.
    pub run: Option<RunConfig>,
    /// The file that it was read from.
    pub file: PathBuf,
}

/// Mean and standard deviation of each channel of values in 0 to 1, that images are normalised by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// Means.
    pub mean: Vec<f32>,
    /// Standard deviations.
    pub std: Vec<f32>,
}

/// Who says how images are normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file's own metadata.
    File,
    /// A configuration beside the file, by its name.
    Beside(String),
    /// Nobody; for three channels, what torchvision's and timm's networks were trained with.
    ImageNet,
    /// Nobody, and there is no custom for so many channels.
    Assumed,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File => f.write_str("the file's own"),
            Self::Beside(name) => write!(f, "that of {name}"),
            Self::ImageNet => f.write_str("ImageNet's, since nothing says another"),
            Self::Assumed => f.write_str("assumed, since nothing says one"),
        }
    }
}

/// What the networks of torchvision and timm were trained with.
const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

impl Source {
    /// Reads the encoder of a run folder, of an exported folder, or of a file. A file of another home is read where the `config.json`
    /// beside it says which encoder it holds.
    ///
    /// # Errors
    /// None of these, a run that is not finished, a damaged file, a file that nothing says which encoder it holds.
    pub fn load(path: &Path) -> Result<Self> {
        let (file, run) = encoder_file(path)?;
        if peek_encoder(&file)?.is_some() {
            return Ok(Self { network: load_encoder(&file, &Device::Cpu)?, run, file });
        }
        let weights = Weights::open(&file)?;
        let said = beside(&file);
        let Some(spec) = said.encoder else {
            return Err(Error::run(
                &file,
                "does not say which encoder it holds, and no config.json beside it does; \
                 `twinsight import FILE --encoder NAME` makes an encoder file of it",
            ));
        };
        let adopted = import(&weights, spec, &said.options(spec))?;
        let (numbers, _) = normalisation(&file, adopted.encoder.config().channels)?;
        let report = adopted.report;
        let metadata = BTreeMap::from([
            ("normalize".to_string(), serde_json::json!(numbers).to_string()),
            ("imported".to_string(), format!("{} layout, prefix `{}`", report.layout, report.prefix)),
        ]);
        Ok(Self { network: LoadedEncoder { spec, encoder: adopted.encoder, params: adopted.params, metadata }, run, file })
    }

    /// How images are normalised for it.
    ///
    /// # Errors
    /// A file that does not say so.
    pub fn numbers(&self) -> Result<Numbers> {
        said_numbers(&self.file, &self.network.metadata)?
            .ok_or_else(|| Error::run(&self.file, "does not say how images are normalised"))
    }

    /// How levels of 16 bits are mapped for it: as in the run that it comes from, or as its file says.
    ///
    /// # Errors
    /// Metadata that is damaged.
    pub fn levels(&self) -> Result<Option<LevelRange>> {
        if let Some(run) = &self.run {
            return run.data.level_range();
        }
        let Some(text) = self.network.metadata.get("levels") else { return Ok(None) };
        match text.parse() {
            Ok(Levels::Full) => Ok(None),
            Ok(Levels::Range(range)) => Ok(Some(range)),
            Ok(Levels::Percentile(..)) => Err(Error::run(&self.file, format!("levels in its metadata: `{text}` is no range"))),
            Err(e) => Err(Error::run(&self.file, format!("levels in its metadata: {e}"))),
        }
    }
}

/// How images of `channels` channels are normalised for the weights in `file`, and who says so: the file's own metadata, the
/// `config.json` or `preprocessor_config.json` beside it, or else ImageNet's numbers (for other than 3 channels 0.5 and 0.25).
///
/// # Errors
/// Metadata that is damaged.
pub fn normalisation(file: &Path, channels: usize) -> Result<(Numbers, Origin)> {
    if let Some((_, _, words)) = peek_encoder(file)?
        && let Some(numbers) = said_numbers(file, &words)?
    {
        return Ok((numbers, Origin::File));
    }
    if let Some((mean, std, place)) = beside(file).normalize.filter(|(mean, _, _)| mean.len() == channels) {
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok((Numbers { mean, std }, Origin::Beside(name)));
    }
    Ok(match channels {
        3 => (Numbers { mean: IMAGENET[0].to_vec(), std: IMAGENET[1].to_vec() }, Origin::ImageNet),
        n => (Numbers { mean: vec![0.5; n], std: vec![0.25; n] }, Origin::Assumed),
    })
}

/// The numbers in a file's metadata.
fn said_numbers(file: &Path, words: &BTreeMap<String, String>) -> Result<Option<Numbers>> {
    let wrong = |e: serde_json::Error| Error::run(file, format!("normalize in its metadata: {e}"));
    words.get("normalize").map(|text| serde_json::from_str(text).map_err(wrong)).transpose()
}

/// The encoder file of a run folder, with the run's settings; the weights of an exported folder; those of a repository of the Hugging
/// Face Hub (`hf:owner/name`: [`crate::hub`]); or `path` itself where it is a file.
///
/// # Errors
/// None of these, a run that is not finished, weights of the Hub that can't be had.
pub fn encoder_file(path: &Path) -> Result<(PathBuf, Option<RunConfig>)> {
    if let Some(file) = crate::hub::weights(path)? {
        return Ok((file, None));
    }
    if path.join("config.toml").is_file() {
        let (folder, config) = RunFolder::open(path)?;
        let file = folder.encoder_path();
        if !file.exists() {
            let reason =
                format!("the run is not finished: there is no encoder yet; go on with: twinsight resume {}", path.display());
            return Err(Error::run(path, reason));
        }
        return Ok((file, Some(config)));
    }
    if path.is_dir() {
        let file = Weights::in_folder(path);
        let file = file.ok_or_else(|| Error::run(path, "holds no run (no config.toml in it) and no file of weights"))?;
        return Ok((file, None));
    }
    if path.is_file() {
        return Ok((path.to_path_buf(), None));
    }
    Err(Error::run(path, "no such run folder or encoder file"))
}
