//! Weights out: an encoder in the form of another home, with its configuration and a model card beside it.

mod card;
mod homes;
mod onnx;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::Tensor;
use serde_json::Value;
use twinsight_nn::{ParamStore, save_tensors, write_atomic};

use crate::weights::{Form, layout};
use crate::{Arch, EncoderConfig, EncoderSpec, Error, Ffn, Result, describe};

pub use onnx::{INPUT, OUTPUT, TOKENS};

/// A form that an encoder can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// This program's own: safetensors under the names of torchvision (residual networks) and timm, with settings in the metadata.
    Safetensors,
    /// timm's, to be loaded from a folder.
    Timm,
    /// torchvision's names.
    Torchvision,
    /// Those of the models in transformers.
    Transformers,
    /// An ONNX graph.
    Onnx,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Safetensors, Self::Timm, Self::Torchvision, Self::Transformers, Self::Onnx];

    /// What the file of the weights is called.
    pub fn weights_file(self) -> &'static str {
        if self == Self::Onnx { "model.onnx" } else { "model.safetensors" }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Timm => "timm",
            Self::Torchvision => "torchvision",
            Self::Transformers => "transformers",
            Self::Onnx => "onnx",
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| Error::BadSetting {
            key: "format",
            value: text.into(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// What is known about an encoder beside its weights.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// Mean of each channel of values in 0..1 that images are normalised by.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
    /// Facts for the model card: method, images, accuracy.
    pub facts: Vec<(String, String)>,
    /// Where the weights were imported from, for those that were; others were trained here, without labels.
    pub imported: Option<String>,
    /// Further metadata of the encoder's own file.
    pub notes: BTreeMap<String, String>,
}

/// An encoder to be written.
pub struct Export<'a> {
    /// Its kind.
    pub spec: &'static EncoderSpec,
    /// Its settings.
    pub config: &'a EncoderConfig,
    /// Its parameters.
    pub params: &'a ParamStore,
    /// What else is known.
    pub provenance: &'a Provenance,
}

impl Export<'_> {
    /// Writes the encoder into the folder `dir` (made where it is missing): the weights, `config.json` and a model card,
    /// `README.md`. Each file appears whole or not at all; files that are there already are written over only where `replace` says
    /// so. Gives what was written.
    ///
    /// # Errors
    /// A format that can't hold this encoder, with the reason; files that are there; a folder that can't be written.
    pub fn write(&self, dir: &Path, format: Format, replace: bool) -> Result<Vec<PathBuf>> {
        if format != Format::Safetensors && matches!(self.spec.arch, Arch::ViT(shape) if shape.backbone.is_some()) {
            return Err(Error::Unsupported(format!(
                "{} has no home elsewhere: its patches are cut from a small residual network's maps; only `safetensors` holds it",
                self.spec.name
            )));
        }
        let home = homes::home(self, format)?;
        let json = |value: &Value| format!("{value:#}\n").into_bytes();
        let mut files = vec![("config.json", json(&home.config)), ("README.md", card::card(self, format, &home).into_bytes())];
        if let Some(processor) = &home.processor {
            files.push(("preprocessor_config.json", json(processor)));
        }
        let weights = dir.join(format.weights_file());
        let mut targets = std::iter::once(weights.clone()).chain(files.iter().map(|(name, _)| dir.join(name)));
        if let Some(path) = targets.find(|path| !replace && path.exists()) {
            let reason = "is there already; name another folder, or ask for it to be written over (--force)".into();
            return Err(Error::Exists { path, reason });
        }
        let tensors = self.params.snapshot()?;
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.into(), source })?;
        let mut written = Vec::new();
        match format {
            Format::Onnx => {
                let words = describe(self.spec.name, self.config)?;
                let dim = homes::dim(&self.spec.arch);
                let bytes = onnx::encode(self.spec, self.config, &tensors, dim, &words)?;
                write_atomic(&weights, |out| out.write_all(&bytes))?;
            }
            Format::Safetensors => {
                let mut words = self.provenance.notes.clone();
                words.extend(describe(self.spec.name, self.config)?);
                save_tensors(&weights, &tensors, &words)?;
            }
            _ => save_tensors(&weights, &self.renamed(&tensors, &home)?, &BTreeMap::from([("format".into(), "pt".into())]))?,
        }
        written.push(weights);
        for (name, bytes) in files {
            let path = dir.join(name);
            write_atomic(&path, |out| out.write_all(&bytes))?;
            written.push(path);
        }
        Ok(written)
    }

    /// The tensors under the names and in the shapes of a home.
    fn renamed(&self, tensors: &BTreeMap<String, Tensor>, home: &homes::Home) -> Result<BTreeMap<String, Tensor>> {
        let missing = || Error::Unsupported(format!("{}: no layout `{}`", self.spec.name, home.layout));
        let layout = layout(&self.spec.arch, home.layout).ok_or_else(missing)?;
        let tensors = home.tokens(tensors, self.config)?;
        let mut out = BTreeMap::new();
        for (name, tensor) in &tensors {
            let Some(source) = (layout.sources)(name, self.config.ffn).into_iter().next() else {
                return Err(Error::Unsupported(format!("{} has no place for `{name}`", home.layout)));
            };
            let shaped = match source.form {
                Form::Same => tensor.clone(),
                Form::Linear if tensor.rank() == 4 => tensor.flatten_from(1)?,
                Form::Linear => tensor.clone(),
                Form::Channels => tensor.reshape((tensor.elem_count(), 1, 1))?,
            };
            let parts = shaped.chunk(source.parts.len(), 0)?;
            if name.ends_with("running_mean") {
                let counter = source.parts[0].replace("running_mean", "num_batches_tracked");
                out.insert(counter, Tensor::new(0_i64, tensor.device())?);
            }
            for (part, tensor) in source.parts.into_iter().zip(parts) {
                out.insert(part, tensor.contiguous()?);
            }
        }
        out.extend(home.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        Ok(out)
    }
}

/// To how many pixels the shorter side of an image is resized before its middle `side` × `side` pixels are taken: as they are up to 64,
/// 8/7 of them above, as is usual for ImageNet (256 for 224). It is what evaluation does in this program, and what exported
/// configurations tell other programs to do.
pub fn shorter_side(side: usize) -> usize {
    if side <= 64 { side } else { (side * 8).div_ceil(7) }
}

/// Whether a transformer needs DINOv2's form.
fn like_dinov2(config: &EncoderConfig) -> bool {
    config.registers > 0 || config.layer_scale > 0.0 || config.ffn == Ffn::SwiGlu
}

/// Whether the encoder is a transformer.
fn is_vit(arch: &Arch) -> bool {
    matches!(arch, Arch::ViT(_))
}
