//! Features from any depth of an encoder, for evaluation: an encoder whose vector is another than the last layer's.

use std::str::FromStr;

use candle_core::{D, Tensor};
use twinsight_nn::Mode;

use crate::{Encoder, EncoderConfig, Error, Features, Masking, Result};

/// Where an image's vector is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSource {
    /// What [`Encoder::forward`] pools: the class token, or the global average. `pooled`.
    Pooled,
    /// The mean of the patches' tokens. `patch-mean`.
    PatchMean,
    /// The class token and, behind it, the mean of the patches' tokens (DINOv2's linear evaluation). `class+mean`.
    ClassAndMean,
    /// The class tokens (or averages) of the last so many depths, one behind the other (DINO's linear evaluation: 4). `last-4`.
    Last(usize),
    /// The same and, behind them, the mean of the last one's patches (DINO's linear evaluation of base networks: 1). `last-4+mean`.
    LastAndMean(usize),
    /// The vector of one depth, counted from 1: a block of a transformer, a stage of a convolutional network. `depth-3`.
    Depth(usize),
}

impl FromStr for FeatureSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str, prefix: &str| text.strip_prefix(prefix)?.parse::<usize>().ok().filter(|&n| n > 0);
        let with_mean = text.strip_suffix("+mean").and_then(|rest| number(rest, "last-"));
        Ok(match text {
            "pooled" => Self::Pooled,
            "patch-mean" => Self::PatchMean,
            "class+mean" => Self::ClassAndMean,
            _ => match (number(text, "last-"), with_mean, number(text, "depth-")) {
                (Some(n), _, _) => Self::Last(n),
                (_, Some(n), _) => Self::LastAndMean(n),
                (_, _, Some(n)) => Self::Depth(n),
                _ => {
                    return Err(Error::BadSetting {
                        key: "features",
                        value: text.into(),
                        expected: "pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N with N from 1".into(),
                    });
                }
            },
        })
    }
}

/// The mean of the patches' tokens, (N, D).
fn patch_mean(features: &Features) -> Result<Tensor> {
    let no_patches = || Error::BadInput("the encoder has no patches to take the mean of; a vision transformer has".into());
    let tokens = features.tokens.as_ref().ok_or_else(no_patches)?;
    Ok(tokens.narrow(1, 1, tokens.dim(1)? - 1)?.mean(1)?)
}

/// An encoder that gives vectors from another place.
pub struct Probe {
    inner: Box<dyn Encoder>,
    source: FeatureSource,
    dim: usize,
}

impl Probe {
    /// `inner` with vectors from `source`. A small picture goes through to find out how long they are.
    ///
    /// # Errors
    /// A source that `inner` does not have: patches of a convolutional network, a depth beyond its last.
    pub fn new(inner: Box<dyn Encoder>, source: FeatureSource) -> Result<Self> {
        let config = inner.config();
        let shape = (1, config.channels, config.image_size, config.image_size);
        let empty = Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let mut probe = Self { inner, source, dim: 0 };
        probe.dim = probe.forward(&empty, &Mode::EVAL)?.pooled.dim(D::Minus1)?;
        Ok(probe)
    }
}

impl Encoder for Probe {
    fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Features> {
        let last = |of: usize| -> Result<Vec<Features>> {
            let all = self.inner.depths(x, mode)?;
            if of > all.len() {
                return Err(Error::BadSetting {
                    key: "features",
                    value: of.to_string(),
                    expected: format!("1 to {}: the encoder has so many depths", all.len()),
                });
            }
            Ok(all)
        };
        match self.source {
            FeatureSource::Pooled => self.inner.forward(x, mode),
            FeatureSource::PatchMean | FeatureSource::ClassAndMean => {
                let features = self.inner.forward(x, mode)?;
                let mean = patch_mean(&features)?;
                let pooled = match self.source {
                    FeatureSource::PatchMean => mean,
                    _ => Tensor::cat(&[&features.pooled, &mean], 1)?,
                };
                Ok(Features { pooled, ..features })
            }
            FeatureSource::Last(n) | FeatureSource::LastAndMean(n) => {
                let all = last(n)?;
                let mut vectors: Vec<Tensor> = all[all.len() - n..].iter().map(|f| f.pooled.clone()).collect();
                if matches!(self.source, FeatureSource::LastAndMean(_)) {
                    vectors.extend(all.last().map(patch_mean).transpose()?);
                }
                Ok(Features::of_vectors(Tensor::cat(&vectors, 1)?))
            }
            FeatureSource::Depth(n) => Ok(last(n)?.swap_remove(n - 1)),
        }
    }

    fn forward_masked(&self, x: &Tensor, masking: &Masking, mode: &Mode) -> Result<Features> {
        self.inner.forward_masked(x, masking, mode)
    }

    fn depths(&self, x: &Tensor, mode: &Mode) -> Result<Vec<Features>> {
        self.inner.depths(x, mode)
    }

    fn attention(&self, x: &Tensor) -> Result<Option<Tensor>> {
        self.inner.attention(x)
    }

    fn patches(&self, side: usize) -> Option<usize> {
        self.inner.patches(side)
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn config(&self) -> &EncoderConfig {
        self.inner.config()
    }
}
