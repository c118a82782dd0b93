//! Image encoders: residual networks, ConvNeXt and vision transformers under their PyTorch parameter names.
//!
//! An image batch (N, C, H, W) goes in, one vector an image comes out ([`Features`]). [`ENCODERS`] lists what there is;
//! [`encoder`] finds one by name; [`save_encoder`] and [`load_encoder`] keep one in a file that describes itself.
//!
//! ```no_run
//! use candle_core::Device;
//! use twinsight_encoders::{EncoderConfig, encoder};
//! use twinsight_nn::{Builder, Mode};
//!
//! # fn main() -> twinsight_encoders::Result<()> {
//! let builder = Builder::new(0, &Device::Cpu);
//! let config = EncoderConfig { image_size: 32, ..EncoderConfig::default() };
//! let network = (encoder("resnet18")?.build)(&config, &builder)?;
//! let images = candle_core::Tensor::zeros((8, 3, 32, 32), candle_core::DType::F32, &Device::Cpu)?;
//! let vectors = network.forward(&images, &Mode::EVAL)?.pooled; // (8, 512)
//! # Ok(())
//! # }
//! ```

mod config;
mod convnext;
mod depth;
mod error;
pub mod export;
mod file;
mod position;
mod registry;
mod resnet;
mod vit;
pub mod weights;

use candle_core::Tensor;
use twinsight_nn::Mode;

pub use config::{EncoderConfig, Ffn, MAX_CHANNELS, Stem};
pub use convnext::{ConvNext, ConvNextShape};
pub use depth::{FeatureSource, Probe};
pub use error::{Error, Result};
pub use file::{Description, LoadedEncoder, describe, load_encoder, peek_encoder, save_encoder};
pub use position::bicubic_matrix;
pub use registry::{Arch, ENCODERS, EncoderSpec, Kind, encoder};
pub use resnet::{ResNet, ResNetShape};
pub use vit::{ViT, ViTShape};

/// What an encoder makes of a batch of N images.
#[derive(Debug, Clone)]
pub struct Features {
    /// (N, D): the global average (convolutional networks) or the class token after the final norm (transformers).
    pub pooled: Tensor,
    /// (N, 1 + P, D): the class token and those of the patches, after the final norm. `None` for convolutional networks.
    pub tokens: Option<Tensor>,
    /// (N, R, D): the register tokens after the final norm, where the transformer has any.
    pub registers: Option<Tensor>,
}

impl Features {
    /// Of a network without tokens: one vector an image, (N, D).
    pub fn of_vectors(pooled: Tensor) -> Self {
        Self { pooled, tokens: None, registers: None }
    }
}

/// What a transformer sees of a batch's patches.
#[derive(Debug, Clone)]
pub enum Masking {
    /// Patches with a 1 in `mask` (N, P), f32, are replaced by `token` (1, 1, D) before positions are added (Zhou et al. 2022, iBOT).
    Replace {
        /// 1 for each patch to replace, 0 for the others.
        mask: Tensor,
        /// What takes their place.
        token: Tensor,
    },
    /// Only the patches with these numbers (N, K), u32, go in at all, behind the class token (He et al. 2022, MAE).
    Keep(Tensor),
}

/// A network that turns images into vectors.
pub trait Encoder: Send + Sync {
    /// Encodes `x`, an f32 batch (N, C, H, W) in PyTorch's layout, normalised as in training. H and W may differ from the
    /// size that the encoder was built for.
    ///
    /// # Errors
    /// Another number of axes or channels than the encoder was built for, or a size that it cannot take.
    fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Features>;

    /// As [`Encoder::forward`], with patches hidden. Patches are counted row by row from 0.
    ///
    /// # Errors
    /// An encoder without patches, or a mask that does not fit them.
    fn forward_masked(&self, _x: &Tensor, _masking: &Masking, _mode: &Mode) -> Result<Features> {
        Err(Error::BadInput("the encoder has no patches that could be hidden; a vision transformer has".into()))
    }

    /// What the network has made of `x` after each of its depths, the last of which gives what [`Encoder::forward`] does: after
    /// every block of a transformer (each time behind the final norm, as DINO's `get_intermediate_layers`), after every stage of a
    /// convolutional network.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    fn depths(&self, x: &Tensor, mode: &Mode) -> Result<Vec<Features>>;

    /// (N, heads, P): how much the class token looks at each patch in the last block, for each head; `None` for encoders
    /// without attention.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    fn attention(&self, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Patches that an image of `side` pixels is cut into; `None` for encoders without patches.
    fn patches(&self, _side: usize) -> Option<usize> {
        None
    }

    /// The number of elements D of a vector.
    fn dim(&self) -> usize;

    /// The settings that the encoder was built with.
    fn config(&self) -> &EncoderConfig;
}

/// Refuses input that is no f32 batch (N, `channels`, H, W), in one line. Gives (N, H, W).
fn check_input(x: &Tensor, channels: usize) -> Result<(usize, usize, usize)> {
    match *x.dims() {
        [n, c, h, w] if c == channels && n > 0 && h > 0 && w > 0 => Ok((n, h, w)),
        _ => Err(Error::BadInput(format!(
            "the encoder takes a batch of shape (N, {channels}, height, width), but got {:?}",
            x.dims()
        ))),
    }
}
