//! The configuration of a run: typed, complete, written to `config.toml` as resolved.
//!
//! It is made in layers, later ones over earlier ones: defaults, a recipe, a file, options of the command line,
//! `--set key=value`. The layers are TOML tables; every key of every layer must exist, and an unknown one is refused with
//! the nearest that does. What comes out is a [`RunConfig`].

mod check;
mod defaults;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use twinsight_datasets::{LevelRange, Levels, OpenOptions};
use twinsight_encoders::{EncoderConfig, Ffn, Stem};
use twinsight_nn::{NormKind, OptimizerConfig, Precision};
use twinsight_ssl_methods::method;

use defaults::defaults;

pub use defaults::all_keys;

use crate::fit::Free;
use crate::layers::{Layer, dotted_keys, merge, value_at};
use crate::{Error, Result, recipe};

/// Everything that decides what a run computes. Paths aside, nothing else does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The method's name in the registry.
    pub method: String,
    /// The encoder's name in the registry.
    pub encoder: String,
    /// How often every training image is seen.
    pub epochs: u64,
    /// Images a step.
    pub batch: usize,
    /// Images that go through the encoder at a time; 0: the whole batch. Gradients stay those of the batch, at the cost of a second pass
    /// forward; batch norm's statistics are those of the part.
    #[serde(default)]
    pub micro_batch: usize,
    /// Decides weights, order of images and views.
    pub seed: u64,
    /// What computes: `cpu`, `cuda:N` or `metal`, where the program was built for it. The same steps on another device differ by rounding.
    #[serde(default = "cpu")]
    pub device: String,
    /// Where images come from and how they are prepared.
    pub data: DataConfig,
    /// The encoder's shape.
    pub network: NetworkConfig,
    /// How weights are updated.
    pub optimizer: OptimizerSettings,
    /// Learning rate and weight decay over time.
    pub schedule: ScheduleConfig,
    /// k-NN during and after training.
    pub eval: EvalConfig,
    /// What is written while training, and how often.
    pub log: LogConfig,
    /// The method's own settings; its file lists them.
    pub options: Table,
    /// What may still be fitted to the number of images, before a run begins; no part of the file.
    #[serde(skip)]
    pub free: Free,
}

/// Where images come from and how they are prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A folder, or the name of a data set in the registry.
    pub path: String,
    /// At most this many training images, spread evenly over the classes (and a fifth as many test images); 0 for all.
    pub limit: usize,
    /// Whether the first unreadable image ends the run.
    pub strict: bool,
    /// `auto`, `folder` or `none`: whether sub-folders are labels.
    pub labels: String,
    /// The share of training images held out for choosing settings, where labels exist; 0 to 0.5.
    pub held_out: f64,
    /// The side of the square views in pixels; 0 takes the images' own when they are alike and at most 64 pixels, else 224.
    pub image_size: usize,
    /// Mean of each channel of values in 0..1; empty to measure it on the training images.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel; empty to measure it.
    pub std: Vec<f32>,
    /// Threads that make views; 0 for one a core.
    pub workers: usize,
    /// What makes views: `cpu`; `device`, the training device, from images that it keeps as bytes; or `auto`, the device where it can. The
    /// views are the same.
    #[serde(default = "auto")]
    pub views_on: String,
    /// Images that take at most this many bytes when decoded are decoded at once and kept; others are read when they are wanted, and what
    /// can't be read is found then.
    #[serde(default = "keep_bytes")]
    pub keep_bytes: u64,
    /// Whether a JPEG that is read when it is wanted may be decoded at 1/2, 1/4 or 1/8 of its size for training views, where that leaves at
    /// least two pixels for each of every view's on both axes: sooner, and the views are nearly the same. `false` decodes at full size, as
    /// versions without this key did.
    #[serde(default)]
    pub reduced_decode: bool,
    /// How levels of 16 bits become the pipeline's: `full` takes 0 to 65,535 as they are; `range:LOW:HIGH` cuts these off and stretches
    /// what is between them over all; `percentile:LOW:HIGH` (in percent) measures them on the training images when the run begins, and is
    /// a `range` from then on. Levels of 8 bits stay as they are.
    #[serde(default = "full_levels")]
    pub levels: String,
}

fn full_levels() -> String {
    Levels::Full.to_string()
}

impl DataConfig {
    /// What `levels` says.
    ///
    /// # Errors
    /// A text that is no such setting.
    pub fn levels(&self) -> Result<Levels> {
        self.levels.parse().map_err(|e| Error::Config(format!("data.levels: {e}")))
    }

    /// The range that levels of 16 bits are mapped by, where they are and it is known.
    ///
    /// # Errors
    /// As [`DataConfig::levels`].
    pub fn level_range(&self) -> Result<Option<LevelRange>> {
        Ok(match self.levels()? {
            Levels::Range(range) => Some(range),
            Levels::Full | Levels::Percentile(..) => None,
        })
    }
}

fn auto() -> String {
    "auto".into()
}

fn keep_bytes() -> u64 {
    OpenOptions::default().keep_bytes
}

/// The encoder's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// `auto`, `cifar` or `imagenet`: the first layers of a ResNet or ConvNeXt.
    pub stem: Stem,
    /// The side of a ViT's patches in pixels; 0 takes 4 up to 64 pixels and 16 above. Of a ConvNeXt, 0 takes what the stem says.
    pub patch: usize,
    /// Register tokens of a ViT.
    #[serde(default)]
    pub registers: usize,
    /// What the factors of a ViT's branches start at (DINOv2: 1e-5); 0 for none.
    #[serde(default)]
    pub layer_scale: f64,
    /// `mlp`, or `swiglu` for a ViT's gated layers.
    #[serde(default)]
    pub ffn: Ffn,
    /// Attention heads of a ViT; 0 takes its paper's (MoCo v3's small one has 12 instead of 6).
    #[serde(default)]
    pub heads: usize,
    /// Stochastic depth of a ViT or ConvNeXt, 0 to below 1.
    pub drop_path: f64,
    /// Of ResNets: every block starts as the identity (its last batch norm at 0).
    pub zero_init_residual: bool,
    /// Of ResNets: `batch` norm, or `group` norm, whose statistics are each image's own.
    #[serde(default)]
    pub norm: NormKind,
    /// `f32`; `tf32`, which lets GPUs multiply in TF32; or `bf16`, with which GPUs multiply bfloat16 numbers, and the CPU keeps what ResNets' blocks
    /// need for the backward pass in half the memory.
    #[serde(default)]
    pub precision: Precision,
    /// Keep only what goes into each block, and compute the rest again in the backward pass: less memory, more time.
    #[serde(default)]
    pub checkpoint_activations: bool,
    /// Parameters of the encoder that are not trained: names in which `*` stands for any run of characters.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// A file of weights, or a run, that the encoder starts from; empty for a drawn start.
    #[serde(default)]
    pub init: String,
}

/// How weights are updated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// `sgd`, `adamw` or `lars`.
    pub kind: String,
    /// Of `sgd` and `lars`, 0 to below 1.
    pub momentum: f64,
    /// Of `sgd` and `lars`.
    pub nesterov: bool,
    /// Of `adamw`.
    pub beta1: f64,
    /// Of `adamw`.
    pub beta2: f64,
    /// Of `adamw` and `lars`.
    pub eps: f64,
    /// Of `lars`: η of You et al. 2017.
    pub trust_coefficient: f64,
    /// Of `lars`: whether the trust ratio is clipped at 1 (solo-learn's choice).
    pub clip_lr: bool,
    /// Largest norm of all gradients together; 0 for no clipping.
    pub clip_norm: f64,
}

/// Learning rate and weight decay over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Peak learning rate for a batch of `lr_batch` images; it is scaled linearly with the batch.
    pub lr: f64,
    /// The batch that `lr` is for; 0 takes `lr` as it is.
    pub lr_batch: usize,
    /// Epochs of linear warm-up from 0.
    pub warmup_epochs: f64,
    /// Learning rate at the end, as a share of the peak.
    pub lr_end: f64,
    /// Whether the learning rate moves from epoch to epoch only, as lightly's benchmark has it, instead of from step to step.
    #[serde(default)]
    pub by_epoch: bool,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay at the end (cosine between).
    pub weight_decay_end: f64,
}

/// k-NN during and after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Every how many epochs k-NN accuracy on the held-out images is measured; 0 only at the end.
    pub every: u64,
    /// Numbers of neighbours to choose from, on the held-out images.
    pub k: Vec<usize>,
    /// Vote temperatures to choose from, on the held-out images.
    pub temperature: Vec<f64>,
    /// Images a forward pass of an evaluation.
    pub batch: usize,
    /// Whether k-NN on raw pixels and on the untrained encoder are measured before training.
    pub baselines: bool,
    /// Images a step whose labels train a linear probe on the backbone's features beside the method (no gradient goes back); 0 for none.
    #[serde(default)]
    pub probe_images: usize,
    /// Whether each evaluation also records k-NN as lightly's benchmarks print it (k = 200, T = 0.1, test images against all training
    /// images), so that its maximum over epochs can be told beside the honest figure. Nothing is chosen by it.
    #[serde(default)]
    pub published: bool,
}

/// What is written while training, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Steps between two lines of `metrics.jsonl`.
    pub every: u64,
    /// Seconds between two checkpoints within an epoch; each epoch ends with one.
    pub checkpoint_seconds: u64,
    /// Whether a collapse ends the run (`stop`) or is only reported (`warn`). What is not finite always ends it.
    pub on_collapse: String,
}

impl RunConfig {
    /// Puts `layers` over the defaults of the method and encoder that they name.
    ///
    /// The method is found first (last layer that names one). Where no layer is a recipe, the method's `small` recipe lies under
    /// the layers, as the default for a few thousand images on a CPU. A warm-up of a recipe is cut to the length of the run.
    ///
    /// # Errors
    /// An unknown key (with the nearest), a value of the wrong type, a setting out of range.
    pub fn resolve(layers: &[Layer]) -> Result<Self> {
        let named = |key: &str| layers.iter().rev().find_map(|l| l.table.get(key)).and_then(Value::as_str);
        let method_name = named("method").unwrap_or("simclr");
        let spec = method(method_name)?;
        let mut table = defaults();
        table.insert("method".into(), method_name.into());
        table.insert("options".into(), Value::Table((spec.defaults)()));
        let own = recipe::small_for(method_name).filter(|_| !layers.iter().any(|l| l.recipe));
        let small = own.map(recipe::RecipeSpec::layer).transpose()?;
        for layer in small.iter().chain(layers) {
            let keys = dotted_keys(&table);
            merge(&mut table, &layer.table, "", &layer.origin, &keys)?;
        }
        let mut config: Self =
            table.try_into().map_err(|e: toml::de::Error| Error::Config(format!("configuration: {}", e.message())))?;
        let asked = |l: &Layer| !l.recipe && l.table.get("schedule").is_some_and(|s| s.get("warmup_epochs").is_some());
        if !layers.iter().any(asked) {
            config.schedule.warmup_epochs = config.schedule.warmup_epochs.min(config.epochs as f64);
        }
        config.free = Free::of(layers);
        config.check()?;
        Ok(config)
    }

    /// Reads a resolved configuration.
    ///
    /// # Errors
    /// Text that is no TOML, or lacks or adds a key.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| Error::Config(e.to_string().replace('\n', " ")))?;
        config.check()?;
        Ok(config)
    }

    /// The keys by which this differs from a configuration's text in what decides the numbers of a run; where images lie, threads, logs
    /// and evaluation don't.
    ///
    /// # Errors
    /// Text that is no TOML.
    pub fn differences(&self, text: &str) -> Result<Vec<String>> {
        let free = |key: &str| {
            matches!(key, "device" | "data.path" | "data.workers" | "data.strict" | "data.views_on") || key.starts_with("log.")
                // The probe's weights are part of a checkpoint.
                || key.starts_with("eval.") && key != "eval.probe_images"
        };
        let read = |text: &str| toml::from_str::<Table>(text).map_err(|e| Error::Config(e.message().replace('\n', " ")));
        // A run of an earlier version lacks keys that came since; they have their defaults.
        let theirs = match Self::parse(text) {
            Ok(config) => read(&config.to_toml()?)?,
            Err(_) => read(text)?,
        };
        let ours = read(&self.to_toml()?)?;
        let mut keys = dotted_keys(&ours);
        keys.extend(dotted_keys(&theirs));
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|k| !free(k) && value_at(&ours, k) != value_at(&theirs, k));
        Ok(keys)
    }

    /// The text of `config.toml`.
    ///
    /// # Errors
    /// A value that TOML can't hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::Config(format!("configuration: {e}")))
    }

    /// The peak learning rate at this batch size.
    pub fn peak_lr(&self) -> f64 {
        match self.schedule.lr_batch {
            0 => self.schedule.lr,
            reference => self.schedule.lr * self.batch as f64 / reference as f64,
        }
    }

    /// The optimizer in `nn`'s form.
    pub fn optimizer_config(&self) -> OptimizerConfig {
        let o = &self.optimizer;
        let weight_decay = self.schedule.weight_decay;
        match o.kind.as_str() {
            "adamw" => OptimizerConfig::AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay },
            "lars" => OptimizerConfig::Lars {
                momentum: o.momentum,
                weight_decay,
                trust_coefficient: o.trust_coefficient,
                eps: o.eps,
                clip: o.clip_lr,
                nesterov: o.nesterov,
            },
            _ => OptimizerConfig::Sgd { momentum: o.momentum, nesterov: o.nesterov, weight_decay },
        }
    }

    /// The encoder's configuration for images of `channels` channels.
    pub fn encoder_config(&self, channels: usize) -> EncoderConfig {
        EncoderConfig {
            channels,
            image_size: self.data.image_size,
            stem: self.network.stem,
            patch: (self.network.patch > 0).then_some(self.network.patch),
            drop_path: self.network.drop_path,
            zero_init_residual: self.network.zero_init_residual,
            norm: self.network.norm,
            registers: self.network.registers,
            layer_scale: self.network.layer_scale,
            ffn: self.network.ffn,
            heads: self.network.heads,
            checkpoint_activations: self.network.checkpoint_activations,
            freeze: self.network.freeze.clone(),
        }
    }
}

fn cpu() -> String {
    "cpu".into()
}
