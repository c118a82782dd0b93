//! Weights in and out, and what an encoder looks like: `import`, `export`, `attention`, `info`.

use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, side};

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file of weights, an index of several, a folder of one, or hf:owner/name.
    pub file: PathBuf,
    /// What it holds (see `list encoders`).
    #[arg(long)]
    pub encoder: String,
    /// Where to [default: ENCODER.safetensors].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// What the encoder's names begin with, where the file holds several networks.
    #[arg(long)]
    pub prefix: Option<String>,
    /// Side of the images in pixels; a transformer's positions are resampled for it [default: the file's].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Mean of each channel that images are normalised by [default: what the file or a config.json beside it says, else ImageNet's].
    #[arg(long, value_delimiter = ',')]
    pub mean: Vec<f32>,
    /// Standard deviation of each channel [default: likewise].
    #[arg(long, value_delimiter = ',')]
    pub std: Vec<f32>,
    /// Attention heads of a transformer, which no shape tells [default: as many as its paper has; 12 for MoCo v3's small one].
    #[arg(long)]
    pub heads: Option<usize>,
    /// Leave out a tensor that is no part of the encoder and no known head's: a name in which * stands for anything; may be given again.
    #[arg(long, value_name = "PATTERN")]
    pub skip: Vec<String>,
    /// Write over a file that is there already.
    #[arg(long)]
    pub force: bool,
}

/// `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run folder, or an encoder file.
    pub run: PathBuf,
    /// The form: safetensors, timm, torchvision, transformers or onnx.
    #[arg(long, default_value = "safetensors")]
    pub format: String,
    /// The folder to write into [default: RUN/export-FORMAT, or beside the file].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Write over files that are there already.
    #[arg(long)]
    pub force: bool,
}

/// `attention`.
#[derive(Debug, Args)]
pub struct AttentionArgs {
    /// A run folder, or an encoder file.
    pub run: PathBuf,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
    /// The image.
    pub image: PathBuf,
    /// The folder for the pictures.
    #[arg(long)]
    pub out: PathBuf,
    /// Side in pixels at which the encoder looks, a multiple of its patches [default: that of its training].
    #[arg(long, value_name = "PIXELS", value_parser = side)]
    pub size: Option<usize>,
}

/// `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// An encoder's name, a run folder, an exported folder, or an encoder file.
    pub encoder: String,
    /// Side of the images in pixels [default: 224, or the file's].
    #[arg(long, value_name = "PIXELS", value_parser = side)]
    pub size: Option<usize>,
    /// Images of a training step.
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
}
