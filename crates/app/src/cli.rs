//! The command line: what can be typed, with examples in every help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Self-supervised learning of image encoders: images without labels in, an encoder and its figures out.
#[derive(Debug, Parser)]
#[command(name = "twinsight", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  twinsight demo                              ten minutes on the built-in images, to see it work
  twinsight train --data ~/pictures           train on a folder of images
  twinsight resume runs/pictures-simclr       go on with a run that was stopped
  twinsight embed runs/pictures-simclr --data ~/pictures --out vectors.npy")]
pub struct Cli {
    /// Print one machine-readable JSON line last (words go to standard error).
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a small encoder on 10,000 built-in images and compare it with pixels and with an untrained one.
    #[command(after_help = "Examples:
  twinsight demo
  twinsight demo --seed 1 --json
  twinsight demo --epochs 2 --out /tmp/quick")]
    Demo(DemoArgs),
    /// Train an encoder on a folder of images or a named data set.
    #[command(after_help = "Examples:
  twinsight train --data ~/pictures
  twinsight train --data fashion-mnist-mini --method byol --epochs 10 --out runs/byol
  twinsight train --data cifar --recipe simclr-small --set options.temperature=0.3 --set schedule.lr=0.1
  twinsight train --data cifar --method dino --encoder vit_tiny --limit 10000")]
    Train(Box<TrainArgs>),
    /// Go on with a run that was stopped, from its last checkpoint.
    #[command(after_help = "Examples:
  twinsight resume runs/pictures-simclr")]
    Resume(ResumeArgs),
    /// Data sets: list, fetch, look into.
    #[command(after_help = "Examples:
  twinsight data list
  twinsight data fetch cifar10 eurosat
  twinsight data info ~/pictures
  twinsight data check ~/pictures
  twinsight data convert ~/pictures --out shards
  twinsight data convert ~/pictures --size 64 --out pictures.safetensors
  twinsight data split ~/pictures --test 0.2 --out split.csv")]
    Data {
        /// What to do with data sets.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// k-NN accuracy of a trained encoder on labelled images, settings chosen on images held out.
    #[command(after_help = "Examples:
  twinsight knn runs/pictures-simclr
  twinsight knn runs/pictures-simclr --metric euclidean --per-class
  twinsight knn runs/pictures-simclr --leave-one-out --k 1,5,20
  twinsight knn runs/pictures-simclr/encoder.safetensors --data cifar10 --json")]
    Knn(KnnArgs),
    /// Accuracy with labels: our own protocol and those that others print, with linear classifiers and fine-tuning on request.
    #[command(after_help = "Examples:
  twinsight eval runs/pictures-simclr
  twinsight eval runs/cifar-seed0 runs/cifar-seed1 runs/cifar-seed2 --protocol own
  twinsight eval runs/pictures-simclr --protocol simclr --shares 0.01,0.1,1 --seeds 3
  twinsight eval runs/pictures-simclr --protocol own --fine-tune full --shares 0.1")]
    Eval(EvalArgs),
    /// Write one vector an image, as Parquet, npy or CSV.
    #[command(after_help = "Examples:
  twinsight embed runs/pictures-simclr --data ~/pictures --out vectors.parquet
  twinsight embed runs/pictures-simclr --data ~/pictures --out vectors.npy
  twinsight embed runs/pictures-simclr --data ~/pictures --out vectors.csv

A Parquet file has the columns path, label (where there are labels) and vector (a fixed-size list). An .npy file comes with an .images.csv beside it that names the image (and label) of each row.")]
    Embed(EmbedArgs),
    /// Turn a file of weights from elsewhere into an encoder file of this program.
    #[command(after_help = "Examples:
  twinsight import resnet50.pth --encoder resnet50
  twinsight import dinov2_vits14_reg4_pretrain.pth --encoder vit_small --image-size 224 --out dinov2.safetensors
  twinsight import dino_checkpoint.pth --encoder vit_small --prefix student.backbone
  twinsight import vit-s-300ep.pth.tar --encoder vit_small --heads 12

Files are read as .safetensors (also several with an index) and PyTorch's .pth, .pt and .bin; nothing in them is run. Names are
those of torchvision, timm, transformers, DINO, DINOv2, MoCo, lightly or solo-learn; what was mapped, skipped and missing is told.")]
    Import(ImportArgs),
    /// Write a trained encoder in another form: safetensors, timm, torchvision, transformers, onnx.
    #[command(after_help = "Examples:
  twinsight export runs/pictures-simclr --format timm
  twinsight export runs/pictures-dino --format onnx --out onnx
  twinsight export encoder.safetensors --format transformers --out hub")]
    Export(ExportArgs),
    /// Draw what a vision transformer looks at in an image: attention of each head, and main directions of its patches.
    #[command(after_help = "Examples:
  twinsight attention runs/pictures-dino ~/pictures/cat.jpg --out maps
  twinsight attention runs/pictures-dino ~/pictures/cat.jpg --out maps --size 448")]
    Attention(AttentionArgs),
    /// What an encoder costs: parameters, multiply-adds, length of a vector, memory of a training step.
    #[command(after_help = "Examples:
  twinsight info resnet50
  twinsight info vit_small --size 96 --batch 64
  twinsight info runs/pictures-simclr")]
    Info(InfoArgs),
    /// Name the classes of images from a few labelled ones, with a confidence; unsure ones may be left to a person.
    #[command(after_help = "Examples:
  twinsight classify runs/pictures-simclr --labels few.csv new/*.jpg
  twinsight classify runs/pictures-simclr --labels sorted/ unsorted/ --abstain 0.6 --out classes.csv
  twinsight classify runs/pictures-simclr --labels sorted/ unsorted/ --abstain auto
  twinsight classify runs/cifar-simclr --labels cifar10 --per-class 10 --data cifar10 --test --abstain 0.6

A CSV file of labels has a line `image,label` each, paths relative to the file. A folder's sub-folders are the classes.")]
    Classify(ClassifyArgs),
    /// Find the images that are most similar to one.
    #[command(after_help = "Examples:
  twinsight search runs/pictures-simclr cat.jpg
  twinsight search runs/pictures-simclr cat.jpg --data ~/pictures --k 20 --out found.png")]
    Search(SearchArgs),
    /// Find groups of images that are nearly the same.
    #[command(after_help = "Examples:
  twinsight duplicates runs/pictures-simclr --data ~/pictures
  twinsight duplicates runs/pictures-simclr --similarity 0.99 --out duplicates.csv")]
    Duplicates(DuplicatesArgs),
    /// Sort images into clusters without any labels.
    #[command(after_help = "Examples:
  twinsight cluster runs/pictures-simclr --data ~/pictures --out clusters.csv
  twinsight cluster runs/pictures-simclr --clusters 12")]
    Cluster(ClusterArgs),
    /// Write a run's report again, or a page that compares several runs.
    #[command(after_help = "Examples:
  twinsight report runs/pictures-simclr
  twinsight report runs/a runs/b runs/c --out comparison.html")]
    Report(ReportArgs),
    /// Draw the views that a method makes of images, as a PNG sheet.
    #[command(after_help = "Examples:
  twinsight views ~/pictures/cat.jpg --out views.png
  twinsight views ~/pictures --method dino --count 4 --out views.png
  twinsight views fashion-mnist-mini --set options.temperature=0.2 --out views.png")]
    Views(ViewsArgs),
    /// List methods, encoders, data sets or recipes.
    #[command(after_help = "Examples:
  twinsight list methods
  twinsight list recipes --json
  twinsight list keys --method dino")]
    List(ListArgs),
    /// Measure speed.
    #[command(after_help = "Examples:
  twinsight bench step --method simclr --encoder resnet18 --batch 128 --size 32 --steps 3 --json")]
    Bench {
        /// What to measure.
        #[command(subcommand)]
        command: BenchCommand,
    },
}

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
    /// A folder of images, or the name of a data set.
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
    /// Start from the weights of a run or a file: this program's, or what `import` reads [default: drawn from the seed].
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
        /// Only check what is there; reach for no network.
        #[arg(long)]
        offline: bool,
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
}

/// What computes a trained encoder's vectors.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// What computes: cpu, cuda, cuda:N or metal, where the program was built for it.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file of weights, an index of several, or a folder of one.
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
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
    /// Where vectors come from: pooled, patch-mean, class+mean, last-N, last-N+mean or depth-N.
    #[arg(long, default_value = "pooled")]
    pub features: String,
    /// Where the encoder runs.
    #[command(flatten)]
    pub on: DeviceArgs,
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

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to list.
    #[arg(value_enum)]
    pub what: Listed,
    /// Of which method, for `keys`.
    #[arg(long, default_value = "simclr")]
    pub method: String,
    /// The page about the methods, in Markdown, instead of the list of `methods`.
    #[arg(long)]
    pub markdown: bool,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Listed {
    /// Self-supervised methods.
    Methods,
    /// Encoders.
    Encoders,
    /// Data sets.
    Datasets,
    /// Recipes.
    Recipes,
    /// The keys that `--set` takes, with their defaults for a method.
    Keys,
}

/// `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Images a second of a training step on random views.
    Step(BenchStepArgs),
    /// Rates of every operation, beside the highest that the machine reaches.
    Kernels(BenchKernelsArgs),
    /// Images a second of decoding and views, without training.
    Data(BenchDataArgs),
}

/// `bench data`.
#[derive(Debug, Args)]
pub struct BenchDataArgs {
    /// A folder of images (or an archive, table or manifest).
    pub data: String,
    /// The method whose views are made.
    #[arg(long, default_value = "simclr")]
    pub method: String,
    /// Side of the views in pixels.
    #[arg(long, default_value_t = 32)]
    pub size: usize,
    /// Images to make views of, at least; those of the folder are repeated, for a second or longer.
    #[arg(long, default_value_t = 2000)]
    pub count: usize,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// `bench kernels`.
#[derive(Debug, Args)]
pub struct BenchKernelsArgs {
    /// Only operations whose name (operation, pass and shape) holds this.
    pub filter: Option<String>,
    /// Seconds for each.
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    pub time: f64,
    /// Threads [default: one a core].
    #[arg(long)]
    pub threads: Option<usize>,
}

fn side(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(side) if (1..=4096).contains(&side) => Ok(side),
        _ => Err("expected a side of 1 to 4096 pixels".into()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=3600.0).contains(&s) => Ok(s),
        _ => Err("expected seconds, 0 to 3600".into()),
    }
}

/// `bench step`.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// The method.
    #[arg(long, default_value = "simclr")]
    pub method: String,
    /// The encoder.
    #[arg(long, default_value = "resnet18")]
    pub encoder: String,
    /// Images a step.
    #[arg(long, default_value_t = 128)]
    pub batch: usize,
    /// Side of the views in pixels.
    #[arg(long, default_value_t = 32)]
    pub size: usize,
    /// Side of DINO's local views in pixels.
    #[arg(long, default_value_t = 16)]
    pub local_size: usize,
    /// Images in the encoder at a time; 0: the whole batch.
    #[arg(long, default_value_t = 0)]
    pub micro_batch: usize,
    /// The precision of the step.
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,
    /// What computes: cpu, cuda, cuda:N or metal, where the program was built for it.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Timed steps, after one that warms up.
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Print where the time of a step goes.
    #[arg(long)]
    pub profile: bool,
    /// Threads [default: one a core].
    #[arg(long)]
    pub threads: Option<usize>,
}
