//! `demo`, `train`, `resume`, and the settings that other commands share with them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Decides weights, order of images and views.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
    /// The run folder [default: runs/demo, or the next free number after it].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Passes over the images; fewer for a quick look.
    #[arg(long)]
    pub epochs: Option<u64>,
}

/// Settings that `train` and `views` share.
#[derive(Debug, Args, Default)]
pub struct SettingArgs {
    /// The method (see `list methods`) [default: simclr].
    #[arg(long)]
    pub method: Option<String>,
    /// Settings by name (see `list recipes`).
    #[arg(long)]
    pub recipe: Option<String>,
    /// A TOML file of settings, over the recipe.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One setting, over everything else; may be given again. See `list keys`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Side of the square views in pixels [default: the images' own up to 64, else 224].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Decides weights, order of images and views [default: 0].
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
}

/// The precision of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Everything in 32 bits.
    F32,
    /// As f32, but GPUs may multiply in TF32.
    Tf32,
    /// On a GPU, products and the encoder's activations in bfloat16; on the CPU, ResNets keep what the backward pass needs so, in half the memory.
    Bf16,
}

impl PrecisionArg {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// What a collapse means for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnCollapse {
    /// The run ends with a diagnosis.
    Stop,
    /// The diagnosis is printed, and training goes on.
    Warn,
}

/// `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A folder of images, the name of a data set, or a place elsewhere: hf:owner/name, s3://bucket/train-{000..009}.tar (built with the
    /// features hub and object-store).
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// The encoder (see `list encoders`) [default: resnet_mini].
    #[arg(long)]
    pub encoder: Option<String>,
    /// The precision of training [default: f32].
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// What computes: cpu, cuda, cuda:N or metal, where the program was built for it [default: cpu].
    #[arg(long)]
    pub device: Option<String>,
    /// Passes over the images.
    #[arg(long)]
    pub epochs: Option<u64>,
    /// Images a step.
    #[arg(long)]
    pub batch: Option<usize>,
    /// Start from the weights of a run, a file or hf:owner/name: this program's, or what `import` reads [default: drawn from the seed].
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,
    /// Leave parameters of the encoder as they are: a name in which * stands for anything; may be given again.
    #[arg(long, value_name = "PATTERN")]
    pub freeze: Vec<String>,
    /// Compute what is inside the blocks again in the backward pass instead of keeping it: less memory, more time.
    #[arg(long)]
    pub checkpoint_activations: bool,
    /// Images in the encoder at a time, where a batch does not fit into memory; the gradients stay the batch's, but for batch norm, whose
    /// statistics are then each part's (--set network.norm=group has none) [default: the batch].
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Whether a collapse or a growing loss ends the run [default: stop].
    #[arg(long, value_enum)]
    pub on_collapse: Option<OnCollapse>,
    /// The run folder [default: runs/DATA-METHOD, or the next free number after it].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// At most this many training images, spread over the classes.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Stop at the first image that can't be read instead of naming and skipping it.
    #[arg(long)]
    pub strict: bool,
    /// Whether sub-folders are labels.
    #[arg(long, value_enum)]
    pub labels: Option<Labels>,
    /// Threads that make views [default: one a core].
    #[arg(long)]
    pub workers: Option<usize>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// Whether sub-folders are labels.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Labels {
    /// Where it looks so.
    Auto,
    /// Yes.
    Folder,
    /// No.
    None,
}

/// `resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The run folder.
    pub run: PathBuf,
    /// Where its images lie now, when they were moved.
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Another device than the run had: cpu, cuda, cuda:N or metal.
    #[arg(long)]
    pub device: Option<String>,
}

/// What computes a trained encoder's vectors.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// What computes: cpu, cuda, cuda:N or metal, where the program was built for it.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}
