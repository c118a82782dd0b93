//! The training loop: steps, logs, checkpoints, evaluation; stopped and gone on with at any step.
//!
//! Everything that the next step depends on is in the checkpoint: the method's and the optimizer's whole state and the
//! loop's own ([`LoopState`]). Images and random draws follow from (seed, step). So a run that was killed and resumed ends
//! with the same bytes as one that never was.

mod judge;
mod result;
mod start;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use candle_core::Device;
use serde_json::json;
use twinsight_encoders::weights::ImportReport;
use twinsight_nn::{Optimizer, Schedule, Shape as ScheduleShape, StateSaver, StateVisitor};
use twinsight_ssl_methods::{At, Method};

use crate::config::RunConfig;
use crate::data::RunData;
use crate::evaluate::Evaluation;
use crate::folder::{MetricsFile, RunFolder};
use crate::health::Watch;
use crate::loader::LoaderConfig;
use crate::observe::{Event, Observer};
use crate::probe::OnlineProbe;
use crate::protocols::Encoded;
use crate::spread::Spread;
use crate::tensorboard::EventFile;
use crate::{Error, Result, report, sheet};

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
    /// Whether losses are looked at only where a line is logged or a checkpoint written: so that the host need not wait for the device.
    defers: bool,
    /// The commit that the program was built from.
    commit: Option<String>,
    /// What was done with the weights that the run starts from, if it starts from any.
    begun: Option<ImportReport>,
    /// Held while the run goes on, so that no other process writes into its folder.
    _lock: std::fs::File,
}

impl Trainer {
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
        result
    }

    /// Where the next step stands.
    fn at(&self) -> At {
        let step = self.state.step;
        At {
            step,
            epoch: step / self.per_epoch,
            steps_per_epoch: self.per_epoch,
            epochs: self.config.epochs,
            seed: self.config.seed,
            precision: self.config.network.precision,
        }
    }

    /// An error of what is measured with the encoder, with what to do where the device's memory was too small.
    fn judged<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| crate::memory::explained_judging(error, &self.config.device, self.config.eval.batch))
    }

    fn run_inner(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let mut metrics = MetricsFile::open(&self.folder, self.state.metrics_bytes)?;
        let mut events = EventFile::create(&self.folder, self.state.step)?;
        if self.state.step == 0 {
            let begun = self.begin(observer, &mut metrics, &mut events);
            self.judged(begun)?;
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
        let result = self.finish(observer, &mut metrics, &mut events);
        Ok(Outcome::Finished(Box::new(self.judged(result)?)))
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
