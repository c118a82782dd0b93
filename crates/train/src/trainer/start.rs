//! How a run begins: made new in a free folder, or gone on with from its newest checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use twinsight_nn::{Mode, Optimizer, StateLoader};
use twinsight_ssl_methods::{Method, MethodContext, method};

use super::{FORMAT, LoopState, Trainer};
use crate::config::RunConfig;
use crate::data::{RunData, fingerprint, normalize};
use crate::device::runs_ahead;
use crate::folder::{Checkpoint, RunFolder};
use crate::loader::steps_per_epoch;
use crate::probe::OnlineProbe;
use crate::{Error, Result, init};

/// What a configuration and its images make, before anything is written.
struct Parts {
    started: Instant,
    config: RunConfig,
    data: RunData,
    method: Box<dyn Method>,
    optimizer: Optimizer,
    per_epoch: u64,
    device: Device,
}

impl Trainer {
    /// Prepares a new run in `out`. Nothing is written before data, encoder and method are known to be good. Weights of the Hugging Face
    /// Hub stand in its configuration with their commit.
    ///
    /// # Errors
    /// Bad settings, unreadable data, a folder that already holds a run.
    pub fn create(mut config: RunConfig, out: &Path) -> Result<Self> {
        let started = Instant::now();
        if out.join("config.toml").exists() || out.join("checkpoint.safetensors").exists() {
            return Err(Error::run(out, "already holds a run; choose another --out, or go on with it by `twinsight resume`"));
        }
        let data = RunData::open(&mut config)?;
        let mut parts = Parts::build(started, config, data)?;
        let begun = init::start(&*parts.method, &mut parts.config)?;
        try_views(&*parts.method, &parts.device)?;
        let folder = RunFolder::create(out, &parts.config)?;
        let lock = folder.lock()?;
        Ok(Self { begun, ..parts.assemble(folder, lock)? })
    }

    /// Goes on with the run in `out` from its newest checkpoint (from the start when it was stopped before the first). `data`: where
    /// its images lie now, where they were moved. `device`: another one than before.
    ///
    /// # Errors
    /// No run there or one that goes on elsewhere, a damaged checkpoint, images or settings that changed.
    pub fn resume(out: &Path, data: Option<&str>, device: Option<&str>) -> Result<Self> {
        let started = Instant::now();
        let (folder, mut config) = RunFolder::open(out)?;
        let lock = folder.lock()?;
        if let Some(device) = device {
            config.device = device.to_string();
        }
        let checkpoint = folder.load_checkpoint(&Device::Cpu)?;
        if let Some(path) = data {
            config.data.path = path.to_string();
        }
        let data = RunData::open(&mut config).map_err(|e| {
            let here = std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default();
            Error::run(
                out,
                format!("{e}; the run's images are `{}`, looked for from {here}: --data names another place", config.data.path),
            )
        })?;
        let mut trainer = Parts::build(started, config, data)?.assemble(folder, lock)?;
        match checkpoint {
            Some(checkpoint) => trainer.take_up(checkpoint)?,
            None => trainer.begun = init::start(&*trainer.method, &mut trainer.config)?,
        }
        Ok(trainer)
    }

    /// Takes up the state of a checkpoint, if it is this run's.
    fn take_up(&mut self, (tensors, words): Checkpoint) -> Result<()> {
        let place = self.folder.checkpoint_path();
        if words.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(Error::run(&place, "is no checkpoint of this program, or one of another version"));
        }
        let changed = self.config.differences(words.get("config").map_or("", String::as_str))?;
        if !changed.is_empty() {
            return Err(Error::run(
                self.folder.path("config.toml"),
                format!(
                    "{} changed since the run began; put back what it was, or start a new run with the new settings",
                    changed.join(", ")
                ),
            ));
        }
        let images = self.data.train.len().to_string();
        if words.get("training_images") != Some(&images) {
            return Err(Error::run(
                &place,
                format!(
                    "was made with {} training images and {} now has {images}; the images of a run must not change",
                    words.get("training_images").map_or("an unknown number of", String::as_str),
                    self.config.data.path
                ),
            ));
        }
        if words.get("images") != Some(&self.images) {
            let path = &self.config.data.path;
            return Err(Error::run(&place, format!("was made with other images than {path} has now: files or labels differ")));
        }
        let mut loader = StateLoader::new(tensors, place.display().to_string());
        self.visit_state(&mut loader)?;
        loader.finish()?;
        // Checkpoints of earlier versions lack these words; nothing is computed from them.
        let word = |key: &str| words.get(key).map_or("null", String::as_str);
        self.bad = serde_json::from_str(word("left_out")).unwrap_or_default();
        self.state.spread = serde_json::from_str(word("spread")).unwrap_or_default();
        Ok(())
    }
}

impl Parts {
    /// Builds method and optimizer from a resolved configuration.
    fn build(started: Instant, config: RunConfig, data: RunData) -> Result<Self> {
        let device = crate::device::open(&config.device)?;
        config.network.precision.apply();
        let per_epoch = steps_per_epoch(data.train.len(), config.batch)?;
        let context = MethodContext {
            encoder: twinsight_encoders::encoder(&config.encoder)?,
            encoder_config: config.encoder_config(data.channels),
            normalize: normalize(&config),
            batch_size: config.batch,
            epochs: config.epochs,
            steps_per_epoch: per_epoch,
            seed: config.seed,
            device: device.clone(),
        };
        let method = (method(&config.method)?.build)(&config.options, &context)?;
        let optimizer = Optimizer::new(&config.optimizer_config(), method.student())?;
        Ok(Self { started, config, data, method, optimizer, per_epoch, device })
    }

    /// The run before its first step, in its folder.
    fn assemble(self, folder: RunFolder, lock: File) -> Result<Trainer> {
        let Self { started, config, data, method, optimizer, per_epoch, device } = self;
        Ok(Trainer {
            defers: runs_ahead(&device),
            images: fingerprint(&*data.train),
            probe: build_probe(&config, &data, &*method, &device)?,
            config,
            folder,
            data,
            method,
            optimizer,
            device,
            state: LoopState::fresh(),
            per_epoch,
            started,
            bad: BTreeMap::new(),
            told: BTreeSet::new(),
            commit: None,
            begun: None,
            _lock: lock,
        })
    }
}

/// Encodes an empty picture of each size that the method's views have, to find out what doesn't fit before anything is written.
fn try_views(method: &dyn Method, device: &Device) -> Result<()> {
    let plan = method.views();
    let mut sides: Vec<usize> = (0..plan.view_count()).map(|v| plan.view(v).size).collect();
    sides.sort_unstable();
    sides.dedup();
    for side in sides {
        let empty = Tensor::zeros((1, plan.channels, side, side), DType::F32, device)?;
        method.encoder().forward(&empty, &Mode::EVAL)?;
    }
    Ok(())
}

/// The online probe, where the configuration asks for one and there are labels.
fn build_probe(config: &RunConfig, data: &RunData, method: &dyn Method, device: &Device) -> Result<Option<OnlineProbe>> {
    let classes = data.train.classes().map_or(0, <[String]>::len);
    let wanted = config.eval.probe_images > 0 && classes > 1;
    wanted.then(|| OnlineProbe::new(method.encoder().dim(), classes, config.eval.probe_images, device)).transpose()
}
