//! The command line: what can be typed, with examples in every help. The options of each group of commands lie in a file of their own.

mod bench;
mod data;
mod judge;
mod train;
mod weights;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use bench::*;
pub use data::*;
pub use judge::*;
pub use train::*;
pub use weights::*;

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
    /// Reach for no network: what was fetched before is used as it is.
    #[arg(long, global = true)]
    pub offline: bool,
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
  twinsight import hf:facebook/dinov2-small --encoder vit_small     (built with the feature hub)

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

fn side(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(side) if (1..=4096).contains(&side) => Ok(side),
        _ => Err("expected a side of 1 to 4096 pixels".into()),
    }
}
