//! The steps of a run: loss, gradients, update, and what is looked at on the way.
//!
//! On the processor and on Metal every step's loss and gradients are looked at before the update. CUDA works on while the host prepares the
//! next step, unless the host asks for a number: there losses wait to be read until a line is logged or a checkpoint is due. A step that
//! is looked at is as on the processor: its gradients, and all losses up to it, are finite before its update is made, so that no
//! checkpoint holds anything else. A loss that is not finite in between is found then, under its own step; that the weights in memory have
//! gone bad by that time costs nothing, since the run ends and its last checkpoint is from before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Tensor};
use serde_json::json;
use twinsight_ssl_methods::{Backward, backward, backward_unseen};

use super::Trainer;
use crate::folder::MetricsFile;
use crate::health::{Health, Watch};
use crate::loader::Loader;
use crate::observe::{Event, Observer, StepReport};
use crate::renderer::{Choice, choose};
use crate::tensorboard::EventFile;
use crate::{Diagnosis, Error, Result};

/// The loss of a step that nobody has looked at yet.
struct Unread {
    step: u64,
    rate: f64,
    loss: Tensor,
}

/// What losses told.
struct Read {
    /// The last one.
    loss: f64,
    /// The first that is not finite.
    bad: Option<Diagnosis>,
    /// Whether they grew, the last one left out.
    grown: Option<Diagnosis>,
}

impl Trainer {
    pub(super) fn train(
        &mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<()> {
        let config = self.loader_config();
        let Choice { renderer, words } = choose(&self.config.data.views_on, &*config.dataset, &config.plan, &self.device)?;
        words.into_iter().for_each(|words| observer.event(&Event::Note(words)));
        let mut loader = Loader::start_with(config, self.state.step, &self.device, renderer)?;
        let trained = self.steps(&mut loader, observer, stop, metrics, events);
        self.bad.extend(loader.bad_images());
        trained.map_err(|error| {
            // While the loader lives, whose images and batches lie in the device's memory too.
            let (at, part) = (self.at(), crate::memory::part(self.config.batch, self.config.micro_batch));
            let sizes = (self.config.batch, part);
            crate::memory::explained(error, &mut *self.method, (&self.device, &self.config.device), &at, sizes)
        })
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
        let mut unread: Vec<Unread> = Vec::new();
        while self.state.step < total {
            let begun = Instant::now();
            let step = self.state.step;
            let at = self.at();
            let rate = lr.at(if self.config.schedule.by_epoch { step - step % self.per_epoch } else { step });
            let epoch_done = (step + 1).is_multiple_of(self.per_epoch);
            let logged = (step + 1).is_multiple_of(self.config.log.every) || epoch_done || step + 1 == total;
            let due = || stop.load(Ordering::Relaxed) || saved.elapsed().as_secs() >= self.config.log.checkpoint_seconds;
            let looks = !self.defers || logged || due();
            let batch = loader.next_batch()?;
            let backward = if looks { backward } else { backward_unseen };
            let Backward { output: out, gradients } = backward(&mut *self.method, &batch.views, &at, self.config.micro_batch)?;
            let lesson = self.probe.as_ref().map(|p| p.lesson(&batch, &*self.data.train)).transpose()?;
            drop(batch);
            unread.push(Unread { step, rate, loss: out.loss.to_dtype(DType::F32)? });
            let (mut loss, mut earlier) = (self.state.loss, None);
            if looks {
                let found = self.read(&mut unread)?;
                (loss, earlier) = (found.loss, found.grown);
                let bad = found
                    .bad
                    .or_else(|| gradients.is_none().then(|| self.state.watch.gradient(step, "the step has no gradients", rate)));
                // The update is not made: weights and checkpoints stay as good as they were.
                if let Some(bad) = bad {
                    return Err(diverged(metrics, bad)?);
                }
            }
            let mut gradients = gradients.unwrap_or_default();
            if looks && let Err(e) = gradients.check_finite() {
                let found = self.state.watch.gradient(step, &e.to_string(), rate);
                return Err(diverged(metrics, found)?);
            }
            self.method.adjust_gradients(&mut gradients, &at)?;
            if self.config.optimizer.clip_norm > 0.0 {
                gradients.limit_norm(self.config.optimizer.clip_norm)?;
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
            let grown = if looks { self.state.watch.trend(step, loss, rate, &self.config.method) } else { None };
            let found = health.and_then(|h| self.state.watch.health(step, &h, &self.config.method));
            if let Some(found) = found.or(earlier).or(grown) {
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
            if let Err(error) = self.judged(evaluated) {
                if !matches!(error, Error::Vector { .. }) {
                    return Err(error);
                }
                let found = self.state.watch.gradient(step, &error.to_string(), rate);
                return Err(diverged(metrics, found)?);
            }
            // What was not looked at is not kept, and no run ends on it.
            if !looks {
                continue;
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

    /// Reads losses in order; all but the last one are told to the watch.
    fn read(&mut self, unread: &mut Vec<Unread>) -> Result<Read> {
        let mut read = Read { loss: self.state.loss, bad: None, grown: None };
        let count = unread.len();
        let losses = match &unread[..] {
            [one] => vec![one.loss.to_scalar::<f32>()?],
            more => Tensor::stack(&more.iter().map(|u| &u.loss).collect::<Vec<_>>(), 0)?.to_vec1::<f32>()?,
        };
        for (i, (Unread { step, rate, .. }, loss)) in unread.drain(..).zip(losses).enumerate() {
            read.loss = f64::from(loss);
            read.bad = self.state.watch.loss(step, read.loss, rate, &self.config.method);
            if read.bad.is_some() {
                break;
            }
            if i + 1 < count {
                let grown = self.state.watch.trend(step, read.loss, rate, &self.config.method);
                read.grown = read.grown.or(grown);
            }
        }
        Ok(read)
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
}

/// Notes in the metrics that a run ends on what was found; the error for that.
fn diverged(metrics: &mut MetricsFile, found: Diagnosis) -> Result<Error> {
    metrics.append(&json!({"event": "diverged", "step": found.step, "finding": found.finding}))?;
    metrics.sync()?;
    Ok(Error::Diverged(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use toml::{Table, Value};

    use crate::observe::Silent;
    use crate::{Layer, Outcome, RunConfig};

    /// A run of 6 steps an epoch on 24 small pictures.
    fn trainer(place: &Path, name: &str, text: &str) -> anyhow::Result<Trainer> {
        let images = place.join("images");
        std::fs::create_dir_all(&images)?;
        for i in 0..24_u32 {
            let level = |x: u32, y: u32, c: u32| (x * (7 + i) + y * (3 + c) + i * 29) as u8;
            let picture = image::RgbImage::from_fn(18, 16, |x, y| image::Rgb([0, 1, 2].map(|c| level(x, y, c))));
            picture.save(images.join(format!("{i:02}.png")))?;
        }
        let text = format!(
            "encoder = 'resnet_mini'\nbatch = 4\nepochs = 2\n{text}\n[log]\nevery = 4\n\
             [data]\nlabels = 'none'\nimage_size = 16\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
        );
        let mut table: Table = text.parse()?;
        table["data"].as_table_mut().expect("a table").insert("path".into(), Value::from(images.display().to_string()));
        Ok(Trainer::create(RunConfig::resolve(&[Layer::new("test", table)])?, &place.join(name))?)
    }

    /// The lines of the metrics, without what depends on time.
    fn lines(place: &Path, name: &str) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(place.join(name).join("metrics.jsonl"))?;
        let timeless = |line: &str| {
            let mut line: Table = serde_json::from_str(line)?;
            line.retain(|key, _| !["images_per_s", "wait_share", "seconds"].contains(&key) && !key.contains("per_s"));
            Ok(Value::Table(line))
        };
        text.lines().filter(|l| l.contains("\"step\"")).map(timeless).collect()
    }

    #[test]
    fn steps_that_nobody_looks_at_give_the_same_run() -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let never = AtomicBool::new(false);
        let mut weights = Vec::new();
        for (name, defers) in [("each", false), ("deferred", true)] {
            let text = "method = 'dino'\noptimizer.clip_norm = 3.0\n\
                        options = { local_views = 2, out_dim = 16, hidden_dim = 16, bottleneck_dim = 8, clip_gradient = 1.0 }";
            let mut trainer = trainer(place.path(), name, text)?;
            trainer.defers = defers;
            assert!(matches!(trainer.run(&mut Silent, &never)?, Outcome::Finished(_)));
            weights.push(std::fs::read(trainer.folder.encoder_path())?);
        }
        assert!(weights[0] == weights[1], "the encoders differ");
        assert_eq!(lines(place.path(), "each")?, lines(place.path(), "deferred")?);
        Ok(())
    }

    #[test]
    fn a_loss_that_is_not_finite_is_found_under_its_step_and_no_checkpoint_holds_it() -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let never = AtomicBool::new(false);
        let mut found = Vec::new();
        for (name, defers) in [("each", false), ("deferred", true)] {
            let text = "method = 'vicreg'\noptimizer.kind = 'sgd'\noptions = { hidden_dim = 32, projection_dim = 16 }\n\
                        schedule = { lr = 900.0, lr_batch = 0, warmup_epochs = 0.0, weight_decay = 0.0, weight_decay_end = 0.0 }";
            let mut trainer = trainer(place.path(), name, text)?;
            trainer.defers = defers;
            let error = trainer.run(&mut Silent, &never).err();
            let Some(Error::Diverged(diagnosis)) = error else { anyhow::bail!("no divergence: {error:?}") };
            found.push((diagnosis.step, trainer.folder.load_checkpoint(&candle_core::Device::Cpu)?));
        }
        for (step, checkpoint) in &found {
            for (name, tensor) in checkpoint.iter().flat_map(|(tensors, _)| tensors) {
                let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                // What was not measured in the loop's own numbers is not a number.
                assert!(
                    name.starts_with("loop.") || values.iter().all(|v| v.is_finite()),
                    "{name} of the run that ended in {step}"
                );
            }
        }
        // A gradient that is not finite is noticed by the loss that follows, if nobody looks at it.
        assert!((found[0].0..=found[0].0 + 1).contains(&found[1].0), "{} and {}", found[0].0, found[1].0);
        Ok(())
    }
}
