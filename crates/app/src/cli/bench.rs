//! `bench`: speed.

use clap::{Args, Subcommand};

use super::PrecisionArg;

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
    /// Decode at full size, however small the views are.
    #[arg(long)]
    pub full_decode: bool,
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

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=3600.0).contains(&s) => Ok(s),
        _ => Err("expected seconds, 0 to 3600".into()),
    }
}
