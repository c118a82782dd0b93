//! `data` and `views`: images before anything is learned from them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::SettingArgs;

/// `data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// The data sets that can be named.
    List,
    /// Download data sets into the cache (or TWINSIGHT_DATA), checked by their checksums.
    Fetch {
        /// Their names; `medmnist` stands for all of its 2-D sets.
        #[arg(required = true)]
        names: Vec<String>,
        /// Another folder than the cache.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// What a folder, file or data set holds: counts, sizes, labels, files that can't be read.
    Info {
        /// A folder, a manifest, an archive or table, or the name of a data set.
        data: String,
        /// Fail at the first image that can't be read.
        #[arg(long)]
        strict: bool,
    },
    /// Decode every image; list those that can't be, with the reason, and those that occur twice, within a split or in both.
    #[command(
        after_help = "Exit code 0: every file can be read; 1: some can't; 2: nothing could be checked, or --strict stopped."
    )]
    Check {
        /// A folder, a manifest, an archive or table, or the name of a data set.
        data: String,
        /// Fail at the first image that can't be read.
        #[arg(long)]
        strict: bool,
    },
    /// Write the images as WebDataset shards, or decoded and of one size as a packed file.
    Convert(ConvertArgs),
    /// Write a manifest that splits the images of a folder or manifest into training and test images, class by class.
    Split(SplitArgs),
}

/// `data convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A folder, a manifest, an archive or table, or the name of a data set.
    pub data: String,
    /// Where to: a folder for shards, or a packed file ending in .safetensors.
    #[arg(long)]
    pub out: PathBuf,
    /// Side of the images of a packed file in pixels: shorter side resized to it, middle square taken [default: 256, or the images' own
    /// up to 64].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub size: Option<u32>,
    /// Images a shard.
    #[arg(long, default_value_t = 5000)]
    pub shard: usize,
    /// Fail at the first image that can't be read.
    #[arg(long)]
    pub strict: bool,
}

/// `data split`.
#[derive(Debug, Args)]
pub struct SplitArgs {
    /// A folder of images, or a manifest.
    pub data: PathBuf,
    /// Where to: a manifest ending in .csv, which is not there yet.
    #[arg(long)]
    pub out: PathBuf,
    /// The share of test images.
    #[arg(long, default_value_t = 0.1)]
    pub test: f64,
    /// Decides which.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `views`.
#[derive(Debug, Args)]
pub struct ViewsArgs {
    /// An image, a folder, a manifest, an archive or table, or the name of a data set.
    pub data: String,
    /// Where to: a PNG file.
    #[arg(long)]
    pub out: PathBuf,
    /// Images to draw.
    #[arg(long, default_value_t = 4)]
    pub count: usize,
    /// Sets of views an image.
    #[arg(long, default_value_t = 2)]
    pub draws: usize,
    /// A view for every step of all views by itself, at its full strength.
    #[arg(long)]
    pub steps: bool,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}
