//! What is done with a trained encoder: `knn`, `eval`, `embed`, `classify`, `search`, `duplicates`, `cluster`, `report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::DeviceArgs;

/// Which vectors of an encoder, and where it runs.
#[derive(Debug, Args)]
pub struct VectorArgs {
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
}

/// `knn`.
#[derive(Debug, Args)]
pub struct KnnArgs {
    /// A run folder, or an encoder file of one.
    pub run: PathBuf,
    /// Labelled images [default: those of the run].
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// At most this many training images.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Numbers of neighbours to choose from [default: the run's own, or 5,10,20,50,200].
    #[arg(long, value_delimiter = ',')]
    pub k: Vec<usize>,
    /// Vote temperatures to choose from [default: the run's own, or 0.03,0.07,0.1,0.2].
    #[arg(long, value_delimiter = ',')]
    pub temperature: Vec<f64>,
    /// What nearness means.
    #[arg(long, value_enum, default_value_t = MetricArg::Cosine)]
    pub metric: MetricArg,
    /// Instead, the accuracy of all training images, each predicted by the others, for every pair of settings; nothing is chosen.
    #[arg(long)]
    pub leave_one_out: bool,
    /// Print the share of each class that is recognised.
    #[arg(long)]
    pub per_class: bool,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// What nearness means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricArg {
    /// The cosine of the angle between two vectors.
    Cosine,
    /// Minus their distance.
    Euclidean,
}

/// `embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// A run folder, or an encoder file of one.
    pub run: PathBuf,
    /// The images [default: those of the run].
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Where to: a file ending in .parquet, .npy or .csv.
    #[arg(long)]
    pub out: PathBuf,
    /// The test images of the data set instead of the training images.
    #[arg(long)]
    pub test: bool,
    /// Stop at the first image that can't be read.
    #[arg(long)]
    pub strict: bool,
    /// Images a forward pass.
    #[arg(long, default_value_t = 256)]
    pub batch: usize,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Run folders, or encoder files; several runs of other seeds give an interval over them.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Labelled images [default: those of the run].
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// At most this many training images.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Protocols: own, lightly, dino, simclr.
    #[arg(long, value_delimiter = ',', default_values = ["own", "lightly", "dino", "simclr"])]
    pub protocol: Vec<String>,
    /// Shares of the labels that linear classifiers and fine-tuning learn from, each class its share.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0])]
    pub shares: Vec<f64>,
    /// Draws of labels for a share below 1, and runs of fine-tuning; several give an interval over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Print the share of each class that is recognised.
    #[arg(long)]
    pub per_class: bool,
    /// Judge the pixels, and the encoder as it was before training, by the same protocols.
    #[arg(long)]
    pub baselines: bool,
    /// Fine-tune the encoder too: `full`, or how many of the last blocks.
    #[arg(long, value_name = "full|BLOCKS")]
    pub fine_tune: Option<String>,
    /// Passes of fine-tuning over the labelled images [default: as many as make 300 steps, and 10 at least].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: Option<u64>,
    /// Peak learning rate of fine-tuning [default: the best of 0, 0.002, 0.01 and 0.05 on a held-out fifth of the labels].
    #[arg(long)]
    pub lr: Option<f64>,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// `classify`.
#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// A run folder, or an encoder file of one.
    pub run: PathBuf,
    /// Images to classify: files, or one folder.
    pub images: Vec<PathBuf>,
    /// The labelled images: a CSV file, a folder whose sub-folders are classes, or a data set.
    #[arg(long, value_name = "CSV|FOLDER|NAME")]
    pub labels: String,
    /// Of a folder or data set of labels, only so many images of each class.
    #[arg(long)]
    pub per_class: Option<usize>,
    /// Decides which.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Draws of --per-class, from --seed on; the accuracy is told with an interval over them.
    #[arg(long, requires = "per_class", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Images to classify from a folder or data set; where it has labels too, the accuracy is told.
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Of that data set the test images.
    #[arg(long, requires = "data")]
    pub test: bool,
    /// Of that data set at most so many images.
    #[arg(long, requires = "data")]
    pub limit: Option<usize>,
    /// Neighbours that vote [default: chosen by leaving each labelled image out].
    #[arg(long)]
    pub k: Option<usize>,
    /// Say nothing about images whose class has less than this share of the votes, 0 to 1; `auto` takes the lowest at which 90 % of the
    /// labelled images, each left out of its own vote, are right (or the one at which most are).
    #[arg(long, default_value = "0", value_name = "SHARE|auto")]
    pub abstain: String,
    /// Write image, class, confidence and nearest labelled image as CSV instead of printing them.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// `search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// A run folder, or an encoder file of one.
    pub run: PathBuf,
    /// The image to look for.
    pub image: PathBuf,
    /// Where to look [default: the run's images].
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Images to find.
    #[arg(long, default_value_t = 10)]
    pub k: usize,
    /// Draw the image and those found, as PNG.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// `duplicates`.
#[derive(Debug, Args)]
pub struct DuplicatesArgs {
    /// A run folder, or an encoder file of one.
    pub run: PathBuf,
    /// The images [default: those of the run].
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Cosine similarity from which two images are duplicates, up to 1.
    #[arg(long, default_value_t = 0.98)]
    pub similarity: f32,
    /// Look for neighbours in a graph of near images instead of comparing all: for millions of them. What it finds of the nearest is told.
    #[cfg(feature = "approximate")]
    #[arg(long)]
    pub approximate: bool,
    /// Write group, image and similarity as CSV instead of printing them.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// `cluster`.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// A run folder, or an encoder file of one.
    pub run: PathBuf,
    /// The images [default: those of the run].
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Clusters [default: by silhouette, 2 to 20].
    #[arg(long)]
    pub clusters: Option<usize>,
    /// Decides the starts of k-means.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write image, cluster and distance to its centre as CSV.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Which vectors, and where they are computed.
    #[command(flatten)]
    pub vectors: VectorArgs,
}

/// `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run folders: one to write its report again, several to compare.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Where the images of a single run lie now, when they were moved.
    #[arg(long, value_name = "PATH_OR_NAME")]
    pub data: Option<String>,
    /// Where a comparison goes [default: comparison.html].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Write over a comparison that is there already.
    #[arg(long)]
    pub force: bool,
}
