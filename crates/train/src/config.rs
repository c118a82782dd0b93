//! The configuration of a run: typed, complete, written to `config.toml` as resolved.
//!
//! It is made in layers, later ones over earlier ones: defaults, a recipe, a file, options of the command line,
//! `--set key=value`. The layers are TOML tables; every key of every layer must exist, and an unknown one is refused with
//! the nearest that does. What comes out is a [`RunConfig`].

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use twinsight_datasets::{LevelRange, Levels, OpenOptions};
use twinsight_encoders::{EncoderConfig, Ffn, Stem};
use twinsight_nn::{NormKind, OptimizerConfig, Precision};
use twinsight_ssl_methods::{METHODS, method};

use crate::fit::Free;
use crate::layers::{Layer, dotted_keys, merge, nearest, value_at};
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

    fn check(&self) -> Result<()> {
        twinsight_encoders::encoder(&self.encoder)?;
        crate::device::check(&self.device)?;
        let one_of = |key: &str, value: &str, allowed: &[&str]| -> Result<()> {
            if allowed.contains(&value) {
                return Ok(());
            }
            let guess = nearest(value, allowed.iter().copied()).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Err(Error::Config(format!("{key} = \"{value}\" is none of {}{guess}", allowed.join(", "))))
        };
        let within = |key: &str, value: f64, low: f64, high: f64| {
            if value >= low && value <= high {
                Ok(())
            } else {
                Err(Error::Config(format!("{key} = {value} is out of range: expected {low} to {high}")))
            }
        };
        one_of("optimizer.kind", &self.optimizer.kind, &["sgd", "adamw", "lars"])?;
        one_of("data.labels", &self.data.labels, &["auto", "folder", "none"])?;
        one_of("data.views_on", &self.data.views_on, &["auto", "cpu", "device"])?;
        self.data.levels()?;
        one_of("log.on_collapse", &self.log.on_collapse, &["stop", "warn"])?;
        within("epochs", self.epochs as f64, 1.0, 1e6)?;
        within("batch", self.batch as f64, 2.0, 1e6)?;
        within("micro_batch", self.micro_batch as f64, 0.0, 1e6)?;
        within("data.image_size", self.data.image_size as f64, 0.0, 4096.0)?;
        within("data.held_out", self.data.held_out, 0.0, 0.5)?;
        within("data.workers", self.data.workers as f64, 0.0, 1024.0)?;
        within("network.drop_path", self.network.drop_path, 0.0, 0.99)?;
        within("network.registers", self.network.registers as f64, 0.0, 1024.0)?;
        within("network.heads", self.network.heads as f64, 0.0, 1024.0)?;
        within("network.layer_scale", self.network.layer_scale, 0.0, 1e3)?;
        within("optimizer.momentum", self.optimizer.momentum, 0.0, 0.9999)?;
        within("optimizer.beta1", self.optimizer.beta1, 0.0, 0.9999)?;
        within("optimizer.beta2", self.optimizer.beta2, 0.0, 0.99999)?;
        within("optimizer.eps", self.optimizer.eps, 0.0, 1.0)?;
        within("optimizer.clip_norm", self.optimizer.clip_norm, 0.0, f64::MAX)?;
        within("schedule.lr", self.schedule.lr, 0.0, 1e3)?;
        within("schedule.lr_end", self.schedule.lr_end, 0.0, 1.0)?;
        within("schedule.warmup_epochs", self.schedule.warmup_epochs, 0.0, self.epochs as f64)?;
        within("schedule.weight_decay", self.schedule.weight_decay, 0.0, 10.0)?;
        within("schedule.weight_decay_end", self.schedule.weight_decay_end, 0.0, 10.0)?;
        within("eval.batch", self.eval.batch as f64, 1.0, 1e6)?;
        within("eval.probe_images", self.eval.probe_images as f64, 0.0, 1e6)?;
        within("log.every", self.log.every as f64, 1.0, 1e9)?;
        if self.eval.k.is_empty() || self.eval.k.contains(&0) {
            return Err(Error::Config("eval.k needs at least one number of neighbours, each 1 or more".into()));
        }
        if self.eval.temperature.is_empty() || self.eval.temperature.iter().any(|&t| t <= 0.0 || !t.is_finite()) {
            return Err(Error::Config("eval.temperature needs at least one number, each above 0".into()));
        }
        if self.data.mean.len() != self.data.std.len() || self.data.std.iter().any(|&s| s <= 0.0 || !s.is_finite()) {
            return Err(Error::Config("data.mean and data.std need one number a channel each, std above 0".into()));
        }
        Ok(())
    }
}

/// Every key of the configuration with the method's own, dotted.
pub fn all_keys(method_name: &str) -> Result<Vec<String>> {
    let mut table = defaults();
    table.insert("options".into(), Value::Table((method(method_name)?.defaults)()));
    Ok(dotted_keys(&table))
}

fn cpu() -> String {
    "cpu".into()
}

fn defaults() -> Table {
    let defaults = RunConfig {
        method: METHODS[0].name.to_string(),
        encoder: "resnet_mini".into(),
        epochs: 20,
        batch: 256,
        micro_batch: 0,
        seed: 0,
        device: cpu(),
        data: DataConfig {
            path: String::new(),
            limit: 0,
            strict: false,
            labels: "auto".into(),
            held_out: 0.1,
            image_size: 0,
            mean: Vec::new(),
            std: Vec::new(),
            workers: 0,
            views_on: auto(),
            keep_bytes: keep_bytes(),
            reduced_decode: true,
            levels: full_levels(),
        },
        network: NetworkConfig {
            stem: Stem::Auto,
            patch: 0,
            registers: 0,
            layer_scale: 0.0,
            ffn: Ffn::Mlp,
            heads: 0,
            drop_path: 0.0,
            zero_init_residual: false,
            norm: NormKind::Batch,
            precision: Precision::F32,
            checkpoint_activations: false,
            freeze: Vec::new(),
            init: String::new(),
        },
        optimizer: OptimizerSettings {
            kind: "sgd".into(),
            momentum: 0.9,
            nesterov: false,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            trust_coefficient: 0.001,
            clip_lr: false,
            clip_norm: 0.0,
        },
        schedule: ScheduleConfig {
            lr: 0.06,
            lr_batch: 128,
            warmup_epochs: 1.0,
            lr_end: 0.0,
            by_epoch: false,
            weight_decay: 5e-4,
            weight_decay_end: 5e-4,
        },
        eval: EvalConfig {
            every: 1,
            k: vec![5, 10, 20, 50, 200],
            temperature: vec![0.03, 0.07, 0.1, 0.2],
            batch: 256,
            baselines: true,
            probe_images: 0,
            published: false,
        },
        log: LogConfig { every: 10, checkpoint_seconds: 60, on_collapse: "stop".into() },
        options: Table::new(),
        free: Free::default(),
    };
    Table::try_from(defaults).expect("the defaults are plain numbers and words")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::parse_assignment;

    fn layer(text: &str) -> Layer {
        Layer::new("test", toml::from_str(text).expect("valid TOML"))
    }

    #[test]
    fn every_method_resolves_and_survives_a_round_trip() -> Result<()> {
        for spec in METHODS {
            let config = RunConfig::resolve(&[layer(&format!("method = \"{}\"\nepochs = 3", spec.name))])?;
            assert_eq!(config.epochs, 3);
            let read = RunConfig::parse(&config.to_toml()?)?;
            assert_eq!(RunConfig { free: config.free, ..read }, config);
        }
        Ok(())
    }

    #[test]
    fn a_run_of_before_reduced_decoding_and_levels_goes_on_without_them() -> Result<()> {
        let new = RunConfig::resolve(&[layer("[data]\nlevels = \"range:0:4095\"")])?;
        assert!(new.data.reduced_decode && new.data.level_range()?.is_some());
        let text = new.to_toml()?;
        assert_eq!(RunConfig::parse(&text)?.data, new.data);
        let is_new = |line: &str| ["reduced_decode", "levels"].iter().any(|key| line.starts_with(key));
        let without: String = text.lines().filter(|l| !is_new(l)).map(|l| format!("{l}\n")).collect();
        assert_eq!(text.lines().count(), without.lines().count() + 2);
        let old = RunConfig::parse(&without)?.data;
        assert!(!old.reduced_decode && old.levels == "full" && old.level_range()?.is_none());
        Ok(())
    }

    #[test]
    fn unknown_keys_and_values_name_the_nearest() {
        for (text, word) in [
            ("epoch = 3", "epochs"),
            ("[schedule]\nwarmup_epoch = 3", "schedule.warmup_epochs"),
            ("[options]\ntemprature = 3", "options.temperature"),
            ("[optimizer]\nkind = \"adam\"", "adamw"),
            ("method = \"simclear\"", "simclr"),
            ("encoder = \"resnet19\"", "resnet18"),
            ("[data]\nviews_on = \"devise\"", "did you mean `device`"),
            ("epochs = \"many\"", "integer"),
            ("batch = 1", "out of range"),
            ("[data]\nlevels = \"range:9:3\"", "data.levels"),
            ("[data]\nlevels = \"range:9:3\"", "LOW must be below HIGH"),
            ("[data]\nlevels = \"range:0:65536\"", "above 65535"),
            ("[data]\nlevels = \"percentile:a:3\"", "`a` is no number"),
        ] {
            let error = RunConfig::resolve(&[layer(text)]).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_recipe_stands_alone_and_its_warmup_fits_the_run() -> Result<()> {
        let lightly = recipe::recipe("simclr-lightly-cifar10")?.layer()?;
        let config = RunConfig::resolve(&[lightly])?;
        assert_eq!(config.options["views"]["crop_scale_min"].as_float(), Some(0.08));
        assert_eq!((config.options["temperature"].as_float(), config.schedule.warmup_epochs), (Some(0.5), 0.0));
        for spec in METHODS {
            let short = layer(&format!("method = \"{}\"\nepochs = 1", spec.name));
            assert!(RunConfig::resolve(std::slice::from_ref(&short))?.schedule.warmup_epochs <= 1.0);
            let asked = layer("[schedule]\nwarmup_epochs = 3.0");
            assert!(RunConfig::resolve(&[short, asked]).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_changed_setting_is_found_by_its_key() -> Result<()> {
        let config = RunConfig::resolve(&[])?;
        let mut other = config.clone();
        other.data.path = "elsewhere".into();
        other.log.every = 7;
        other.data.views_on = "cpu".into();
        assert!(config.differences(&other.to_toml()?)?.is_empty());
        other.batch = 8;
        other.options.insert("temperature".into(), Value::Float(0.9));
        assert_eq!(config.differences(&other.to_toml()?)?, ["batch", "options.temperature"]);
        Ok(())
    }

    #[test]
    fn assignments_take_toml_values_and_bare_words() -> Result<()> {
        let config = RunConfig::resolve(&[
            Layer::new("--set", parse_assignment("schedule.lr=1")?),
            Layer::new("--set", parse_assignment("optimizer.kind=adamw")?),
            Layer::new("--set", parse_assignment("eval.k=[5, 7]")?),
        ])?;
        assert_eq!((config.schedule.lr, config.optimizer.kind.as_str(), config.eval.k), (1.0, "adamw", vec![5, 7]));
        assert!(parse_assignment("lr").is_err());
        Ok(())
    }
}
