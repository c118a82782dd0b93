//! The training loop: steps, logs, checkpoints, evaluation; stopped and gone on with at any step.
//!
//! Everything that the next step depends on is in the checkpoint: the method's and the optimizer's whole state and the
//! loop's own ([`LoopState`]). Images and random draws follow from (seed, step). So a run that was killed and resumed ends
//! with the same bytes as one that never was.

mod judge;
mod result;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use twinsight_encoders::weights::ImportReport;
use twinsight_nn::{Mode, Optimizer, Schedule, Shape as ScheduleShape, StateLoader, StateSaver, StateVisitor};
use twinsight_ssl_methods::{At, Backward, Method, MethodContext, backward, method};

use crate::config::RunConfig;
use crate::data::{RunData, fingerprint, normalize};
use crate::evaluate::Evaluation;
use crate::folder::{MetricsFile, RunFolder};
use crate::health::{Health, Watch};
use crate::loader::{Loader, LoaderConfig, steps_per_epoch};
use crate::observe::{Event, Observer, StepReport};
use crate::probe::OnlineProbe;
use crate::protocols::Encoded;
use crate::spread::Spread;
use crate::tensorboard::EventFile;
use crate::{Error, Result, init, report, sheet};

pub use result::RunResult;

use judge::PUBLISHED;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are done; the figures are in the folder too.
    Finished(Box<RunResult>),
    /// It was asked to stop, and did after a whole step.
    Interrupted {
        /// Steps done.
        step: u64,
        /// Steps in all.
        total: u64,
    },
}

/// The loop's own state, part of every checkpoint.
#[derive(Debug, Clone, Default)]
struct LoopState {
    step: u64,
    metrics_bytes: u64,
    seconds: f64,
    pixels: f64,
    random: f64,
    random_rank: f64,
    loss: f64,
    watch: Watch,
    /// How the features were spread before the first step; among a checkpoint's words.
    spread: Option<Spread>,
}

impl LoopState {
    /// Before the first step: nothing is measured.
    fn fresh() -> Self {
        let nan = f64::NAN;
        Self { pixels: nan, random: nan, random_rank: nan, loss: nan, ..Self::default() }
    }
}

/// A run in progress.
pub struct Trainer {
    config: RunConfig,
    folder: RunFolder,
    data: RunData,
    method: Box<dyn Method>,
    optimizer: Optimizer,
    probe: Option<OnlineProbe>,
    device: Device,
    state: LoopState,
    per_epoch: u64,
    started: Instant,
    /// [`fingerprint`] of the training images.
    images: String,
    /// Images that could not be read while training and evaluating, by id, with the reason; kept over a resume.
    bad: BTreeMap<String, String>,
    /// Those of them that were named.
    told: BTreeSet<String>,
    /// The commit that the program was built from.
    commit: Option<String>,
    /// What was done with the weights that the run starts from, if it starts from any.
    begun: Option<ImportReport>,
    /// Held while the run goes on, so that no other process writes into its folder.
    _lock: std::fs::File,
}

impl Trainer {
    /// Prepares a new run in `out`. Nothing is written before data, encoder and method are known to be good.
    ///
    /// # Errors
    /// Bad settings, unreadable data, a folder that already holds a run.
    pub fn create(mut config: RunConfig, out: &Path) -> Result<Self> {
        let started = Instant::now();
        if out.join("config.toml").exists() || out.join("checkpoint.safetensors").exists() {
            return Err(Error::run(out, "already holds a run; choose another --out, or go on with it by `twinsight resume`"));
        }
        let data = RunData::open(&mut config)?;
        let (method, optimizer, per_epoch, device) = build(&config, &data)?;
        let begun = init::start(&*method, &config)?;
        try_views(&*method, &device)?;
        let folder = RunFolder::create(out, &config)?;
        let lock = folder.lock()?;
        let (images, bad) = (fingerprint(&*data.train), BTreeMap::new());
        let probe = build_probe(&config, &data, &*method, &device)?;
        Ok(Self {
            config,
            folder,
            data,
            method,
            optimizer,
            probe,
            device,
            state: LoopState::fresh(),
            per_epoch,
            started,
            images,
            bad,
            told: BTreeSet::new(),
            commit: None,
            begun,
            _lock: lock,
        })
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
        let (method, optimizer, per_epoch, device) = build(&config, &data)?;
        let (images, bad) = (fingerprint(&*data.train), BTreeMap::new());
        let probe = build_probe(&config, &data, &*method, &device)?;
        let mut trainer = Self {
            config,
            folder,
            data,
            method,
            optimizer,
            probe,
            device,
            state: LoopState::fresh(),
            per_epoch,
            started,
            images,
            bad,
            told: BTreeSet::new(),
            commit: None,
            begun: None,
            _lock: lock,
        };
        if let Some((tensors, words)) = checkpoint {
            let place = trainer.folder.checkpoint_path();
            if words.get("format").map(String::as_str) != Some(FORMAT) {
                return Err(Error::run(&place, "is no checkpoint of this program, or one of another version"));
            }
            let changed = trainer.config.differences(words.get("config").map_or("", String::as_str))?;
            if !changed.is_empty() {
                return Err(Error::run(
                    trainer.folder.path("config.toml"),
                    format!(
                        "{} changed since the run began; put back what it was, or start a new run with the new settings",
                        changed.join(", ")
                    ),
                ));
            }
            let images = trainer.data.train.len().to_string();
            if words.get("training_images") != Some(&images) {
                return Err(Error::run(
                    &place,
                    format!(
                        "was made with {} training images and {} now has {images}; the images of a run must not change",
                        words.get("training_images").map_or("an unknown number of", String::as_str),
                        trainer.config.data.path
                    ),
                ));
            }
            if words.get("images") != Some(&trainer.images) {
                let path = &trainer.config.data.path;
                return Err(Error::run(
                    &place,
                    format!("was made with other images than {path} has now: files or labels differ"),
                ));
            }
            let mut loader = StateLoader::new(tensors, place.display().to_string());
            trainer.visit_state(&mut loader)?;
            loader.finish()?;
            // Checkpoints of earlier versions lack these words; nothing is computed from them.
            let word = |key: &str| words.get(key).map_or("null", String::as_str);
            trainer.bad = serde_json::from_str(word("left_out")).unwrap_or_default();
            trainer.state.spread = serde_json::from_str(word("spread")).unwrap_or_default();
        } else {
            trainer.begun = init::start(&*trainer.method, &trainer.config)?;
        }
        Ok(trainer)
    }

    /// Says which commit the program was built from, for the run's figures.
    pub fn set_commit(&mut self, commit: Option<&str>) {
        self.commit = commit.map(String::from);
    }

    /// The configuration, resolved.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The images.
    pub fn data(&self) -> &RunData {
        &self.data
    }

    /// The run folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.per_epoch * self.config.epochs
    }

    /// Trains until the end, or until `stop` is set and the step in progress is done.
    ///
    /// # Errors
    /// A loss that is not finite or a collapse (unless only warned of), unreadable images under `strict`, a full disk.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let result = self.run_inner(observer, stop);
        observer.event(&Event::End);
        result.map_err(|error| {
            let RunConfig { device, batch, micro_batch, .. } = &self.config;
            crate::device::out_of_memory(&error, device, *batch, *micro_batch).unwrap_or(error)
        })
    }

    fn run_inner(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let mut metrics = MetricsFile::open(&self.folder, self.state.metrics_bytes)?;
        let mut events = EventFile::create(&self.folder, self.state.step)?;
        if self.state.step == 0 {
            self.begin(observer, &mut metrics, &mut events)?;
        }
        let total = self.total_steps();
        if self.state.step < total {
            observer.event(&Event::Start { step: self.state.step, total });
            let trained = self.train(observer, stop, &mut metrics, &mut events);
            self.tell_left_out(observer);
            trained?;
            if self.state.step < total {
                return Ok(Outcome::Interrupted { step: self.state.step, total });
            }
        }
        let result = self.finish(observer, &mut metrics, &mut events)?;
        Ok(Outcome::Finished(Box::new(result)))
    }

    /// What is done once, before the first step: the picture of the views and the baselines.
    fn begin(&mut self, observer: &mut dyn Observer, metrics: &mut MetricsFile, events: &mut EventFile) -> Result<()> {
        let samples: Vec<usize> = (0..4).map(|i| i * self.data.train.len() / 4).collect();
        match sheet::view_sheet(&*self.data.train, &samples, self.method.views(), self.config.seed, sheet::SheetLayout::default())
        {
            Ok(picture) => {
                let mut png = std::io::Cursor::new(Vec::new());
                picture
                    .write_to(&mut png, image::ImageFormat::Png)
                    .map_err(|e| Error::run(self.folder.path("views.png"), e.to_string()))?;
                self.folder.write("views.png", png.get_ref())?;
                events.image(0, "views", picture.width(), picture.height(), png.get_ref())?;
                let path = self.folder.path("views.png");
                observer.event(&Event::Note(format!("the views that {} sees: {}", self.config.method, path.display())));
            }
            Err(e) => observer.event(&Event::Note(format!("no picture of the views: {e}"))),
        }
        if let Some(report) = &self.begun {
            observer.event(&Event::Note(format!(
                "starts from {}: {}; heads are drawn",
                self.config.network.init,
                report.summary()
            )));
            metrics.append(&json!({
                "event": "init", "from": self.config.network.init, "layout": report.layout, "prefix": report.prefix,
                "mapped": report.mapped.len(), "skipped": report.skipped, "passed_over": report.passed_over,
                "resampled": report.resampled,
            }))?;
        }
        let evaluation = self.data.evaluation.clone();
        if let Some(text) = evaluation.as_ref().and_then(Evaluation::unknown_classes) {
            observer.event(&Event::Note(text));
        }
        if !self.config.eval.baselines {
            return Ok(());
        }
        match self.baselines(evaluation, observer, metrics, events) {
            // The first step will find the same, and says what to change.
            Err(e @ Error::Vector { .. }) => {
                observer.event(&Event::Note(format!("nothing is measured before training: {e}")));
                Ok(())
            }
            other => other,
        }
    }

    /// What pixels and the encoder before training are worth.
    fn baselines(
        &mut self,
        evaluation: Option<Evaluation>,
        observer: &mut dyn Observer,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<()> {
        let shown = report::shown(&self.data)?;
        let (features, spread) = self.spread(&shown)?;
        self.state.spread = Some(spread);
        self.state.random_rank = spread.effective_rank;
        let eval = self.config.eval.clone();
        let Some(evaluation) = evaluation else {
            self.left_out(&features.bad)?;
            metrics.append(&json!({
                "event": "baselines", "effective_rank": spread.effective_rank, "uniformity": spread.uniformity,
                "alignment": spread.alignment
            }))?;
            return Ok(());
        };
        let encoded = Encoded::pixels(&evaluation)?;
        let most = encoded.most_neighbours();
        if let Some(k) = eval.k.iter().filter(|&&k| k > most).min() {
            observer.event(&Event::Note(format!(
                "eval.k: {k} and more neighbours are not tried, since settings are chosen among {most} images"
            )));
        }
        if eval.published && PUBLISHED.0 > encoded.kept {
            let kept = encoded.kept;
            let (k, _) = PUBLISHED;
            observer.event(&Event::Note(format!("eval.published: {kept} images are too few for k = {k}; nothing is recorded")));
        }
        let pixels = encoded.own_knn(&eval.k, &eval.temperature)?.1.top1;
        let encoded = Encoded::new(&evaluation, self.method.encoder(), &self.device)?;
        self.left_out(&encoded.bad)?;
        let random = encoded.own_knn(&eval.k, &eval.temperature)?.1.top1;
        (self.state.pixels, self.state.random) = (pixels, random);
        self.state.random_rank = encoded.effective_rank()?;
        metrics.append(&json!({"event": "baselines", "knn_pixels": pixels, "knn_random": random}))?;
        events.scalars(0, &[("knn/pixels", pixels), ("knn/random", random)])?;
        observer.event(&Event::Note(format!(
            "before training, k-NN accuracy is {:.1} % on pixels and {:.1} % on the encoder {}",
            pixels * 100.0,
            random * 100.0,
            if self.config.network.init.is_empty() { "untrained" } else { "that it starts from" }
        )));
        Ok(())
    }

    fn train(
        &mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<()> {
        let mut loader = Loader::start(self.loader_config(), self.state.step, &self.device)?;
        let trained = self.steps(&mut loader, observer, stop, metrics, events);
        self.bad.extend(loader.bad_images());
        trained
    }

    fn steps(
        &mut self,
        loader: &mut Loader,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<()> {
        let total = self.total_steps();
        let (lr, decay) = self.schedules();
        let (mut busy, mut waited, mut images) = (0.0, 0.0, 0_u64);
        let mut saved = Instant::now();
        while self.state.step < total {
            let begun = Instant::now();
            let step = self.state.step;
            let at = At {
                step,
                epoch: step / self.per_epoch,
                steps_per_epoch: self.per_epoch,
                epochs: self.config.epochs,
                seed: self.config.seed,
                precision: self.config.network.precision,
            };
            let rate = lr.at(if self.config.schedule.by_epoch { step - step % self.per_epoch } else { step });
            let batch = loader.next_batch()?;
            let Backward { output: out, gradients } = backward(&mut *self.method, &batch.views, &at, self.config.micro_batch)?;
            let lesson = self.probe.as_ref().map(|p| p.lesson(&batch, &*self.data.train)).transpose()?;
            drop(batch);
            let loss = f64::from(out.loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            let bad = self.state.watch.loss(step, loss, rate, &self.config.method);
            let (Some(mut gradients), None) = (gradients, &bad) else {
                // The update is not made: weights and checkpoints stay as good as they were.
                let found = bad.unwrap_or_else(|| self.state.watch.gradient(step, "the step has no gradients", rate));
                metrics.append(&json!({"event": "diverged", "step": step, "finding": found.finding}))?;
                metrics.sync()?;
                return Err(Error::Diverged(found));
            };
            if let Err(e) = gradients.check_finite() {
                let found = self.state.watch.gradient(step, &e.to_string(), rate);
                metrics.append(&json!({"event": "diverged", "step": step, "finding": found.finding}))?;
                metrics.sync()?;
                return Err(Error::Diverged(found));
            }
            self.method.adjust_gradients(&mut gradients, &at)?;
            if self.config.optimizer.clip_norm > 0.0 {
                gradients.clip_norm(self.config.optimizer.clip_norm)?;
            }
            self.optimizer.step(&gradients, rate, decay.at(step))?;
            self.method.after_step(&at)?;
            if let (Some(probe), Some(lesson)) = (&mut self.probe, &lesson) {
                probe.learn(self.method.encoder(), lesson)?;
            }
            self.state.step += 1;
            self.state.loss = loss;

            busy += begun.elapsed().as_secs_f64();
            waited += loader.take_waited().as_secs_f64();
            images += self.config.batch as u64;
            let epoch_done = self.state.step.is_multiple_of(self.per_epoch);
            let logged = self.state.step.is_multiple_of(self.config.log.every) || epoch_done || self.state.step == total;
            let health = if logged { Some(Health::of(&out)?) } else { None };
            let report = StepReport {
                step: self.state.step,
                epoch: at.epoch,
                loss,
                lr: rate,
                images_per_s: images as f64 / busy,
                wait_share: waited / busy,
                health,
            };
            if let Some(health) = health {
                self.log(&report, health, &out.metrics, decay.at(step), metrics, events)?;
            }
            let grown = self.state.watch.trend(step, loss, rate, &self.config.method);
            let found = health.and_then(|h| self.state.watch.health(step, &h, &self.config.method));
            if let Some(found) = found.or(grown) {
                if self.config.log.on_collapse == "stop" {
                    metrics.append(&json!({"event": "collapsed", "step": step, "finding": found.finding}))?;
                    events.flush()?;
                    self.save(metrics)?;
                    return Err(Error::Diverged(found));
                }
                observer.event(&Event::Note(format!("warning: {}. {}", found.finding, found.advice)));
                self.state.watch = Watch::default();
            }
            observer.event(&Event::Step(report));
            drop(out);
            let epoch = self.state.step / self.per_epoch;
            let every = self.config.eval.every;
            let due = epoch_done && every > 0 && epoch.is_multiple_of(every) && self.state.step < total;
            let evaluated = if due { self.evaluate(epoch, observer, metrics, events) } else { Ok(()) };
            if let Err(error) = evaluated {
                if !matches!(error, Error::Vector { .. }) {
                    return Err(error);
                }
                let found = self.state.watch.gradient(step, &error.to_string(), rate);
                metrics.append(&json!({"event": "diverged", "step": step, "finding": found.finding}))?;
                metrics.sync()?;
                return Err(Error::Diverged(found));
            }
            let stopping = stop.load(Ordering::Relaxed);
            if stopping || epoch_done || saved.elapsed().as_secs() >= self.config.log.checkpoint_seconds {
                events.flush()?;
                self.bad.extend(loader.bad_images());
                self.save(metrics)?;
                saved = Instant::now();
            }
            if stopping {
                break;
            }
        }
        Ok(())
    }

    fn log(
        &self,
        report: &StepReport,
        health: Health,
        extra: &[(&'static str, candle_core::Tensor)],
        weight_decay: f64,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<()> {
        let mut values = vec![
            ("train/loss", report.loss),
            ("train/lr", report.lr),
            ("train/weight_decay", weight_decay),
            ("health/feature_std", health.feature_std),
            ("health/effective_rank", health.effective_rank),
            ("health/uniformity", health.uniformity),
            ("speed/images_per_s", report.images_per_s),
            ("speed/wait_share", report.wait_share),
        ];
        let more = [
            ("health/alignment", health.alignment),
            ("health/teacher_entropy", health.assignment_entropy),
            ("health/prototype_usage", health.prototype_usage),
        ];
        values.extend(more.iter().filter_map(|&(name, value)| Some((name, value?))));
        let mut named: Vec<(String, f64)> = Vec::new();
        for (name, value) in extra {
            named.push((format!("method/{name}"), f64::from(value.to_dtype(DType::F32)?.to_scalar::<f32>()?)));
        }
        values.extend(named.iter().map(|(n, v)| (n.as_str(), *v)));
        let mut line = json!({"event": "step", "step": report.step, "epoch": report.epoch});
        for (tag, value) in &values {
            line[tag.rsplit('/').next().unwrap_or(tag)] = json!(value);
        }
        metrics.append(&line)?;
        events.scalars(report.step, &values)
    }

    fn export_encoder(&self) -> Result<()> {
        let pair = json!({"mean": self.config.data.mean, "std": self.config.data.std});
        let mut notes =
            BTreeMap::from([("normalize".to_string(), pair.to_string()), ("method".to_string(), self.config.method.clone())]);
        if self.config.data.level_range()?.is_some() {
            notes.insert("levels".into(), self.config.data.levels.clone());
        }
        let spec = twinsight_encoders::encoder(&self.config.encoder)?;
        let config = self.method.encoder().config();
        let path = self.folder.encoder_path();
        Ok(twinsight_encoders::save_encoder(&path, spec, config, &self.method.encoder_params(), &notes)?)
    }

    fn save(&mut self, metrics: &MetricsFile) -> Result<()> {
        metrics.sync()?;
        self.state.metrics_bytes = metrics.len();
        let seconds = self.state.seconds;
        self.state.seconds += self.started.elapsed().as_secs_f64();
        let mut saver = StateSaver::new();
        let saved = self.visit_state(&mut saver);
        self.state.seconds = seconds;
        saved?;
        let words = BTreeMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("config".to_string(), self.config.to_toml()?),
            ("images".to_string(), self.images.clone()),
            ("training_images".to_string(), self.data.train.len().to_string()),
            ("left_out".to_string(), json!(self.bad).to_string()),
            ("spread".to_string(), json!(self.state.spread).to_string()),
        ]);
        self.folder.save_checkpoint(&(saver.into_tensors(), words))
    }

    fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.method.visit_state(visitor)?;
        self.optimizer.visit_state(visitor)?;
        if let Some(probe) = &mut self.probe {
            probe.visit_state(visitor)?;
        }
        let s = &mut self.state;
        visitor.counter("loop.step", &mut s.step)?;
        visitor.counter("loop.metrics_bytes", &mut s.metrics_bytes)?;
        s.watch.visit_state(visitor)?;
        visitor.scalar("loop.seconds", &mut s.seconds)?;
        visitor.scalar("loop.knn_pixels", &mut s.pixels)?;
        visitor.scalar("loop.knn_random", &mut s.random)?;
        visitor.scalar("loop.random_rank", &mut s.random_rank)?;
        visitor.scalar("loop.loss", &mut s.loss)?;
        Ok(())
    }

    fn loader_config(&self) -> LoaderConfig {
        LoaderConfig {
            dataset: self.data.train.clone(),
            plan: self.method.views().clone(),
            batch: self.config.batch,
            seed: self.config.seed,
            threads: self.config.data.workers,
            reduced_decode: self.config.data.reduced_decode,
            strict: self.config.data.strict,
        }
    }

    fn schedules(&self) -> (Schedule, Schedule) {
        let s = &self.config.schedule;
        let total = self.total_steps();
        let peak = self.config.peak_lr();
        let lr = Schedule {
            start: peak,
            end: peak * s.lr_end,
            warmup_steps: (s.warmup_epochs * self.per_epoch as f64).round() as u64,
            warmup_start: 0.0,
            total_steps: total,
            shape: ScheduleShape::Cosine,
        };
        let decay = Schedule {
            start: s.weight_decay,
            end: s.weight_decay_end,
            warmup_steps: 0,
            warmup_start: 0.0,
            total_steps: total,
            shape: ScheduleShape::Cosine,
        };
        (lr, decay)
    }
}

/// The name of the checkpoints' form.
const FORMAT: &str = "twinsight-checkpoint-1";

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

/// Builds method and optimizer from a resolved configuration.
fn build(config: &RunConfig, data: &RunData) -> Result<(Box<dyn Method>, Optimizer, u64, Device)> {
    let device = crate::device::open(&config.device)?;
    let per_epoch = steps_per_epoch(data.train.len(), config.batch)?;
    let context = MethodContext {
        encoder: twinsight_encoders::encoder(&config.encoder)?,
        encoder_config: config.encoder_config(data.channels),
        normalize: normalize(config),
        batch_size: config.batch,
        epochs: config.epochs,
        steps_per_epoch: per_epoch,
        seed: config.seed,
        device: device.clone(),
    };
    let method = (method(&config.method)?.build)(&config.options, &context)?;
    let optimizer = Optimizer::new(&config.optimizer_config(), method.student())?;
    Ok((method, optimizer, per_epoch, device))
}
