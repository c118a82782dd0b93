//! Fine-tuning: a trained encoder with a linear head learns from labels, whole or in its last blocks only.
//!
//! The head starts as the logistic regression on the frozen features (Kumar et al. 2022, arXiv:2202.10054: a head that starts at random
//! spoils what the encoder has learned). Then SGD with Nesterov momentum 0.9, a cosine learning rate after a short warm-up, random
//! resized crops (at least a quarter of the image) and flips. The learning rate is chosen on a fifth of the labelled images. Blocks that are
//! not trained change in nothing: all batch norms then keep the statistics that the features were judged with. Nothing is chosen on the
//! judged images.
//!
//! All of that runs on the device that is named, but for what the features are classified by: the logistic regression and, where the device
//! can't make them, the views are the processor's. Batches reach a device, and losses come back, as in training (`trainer`).

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use twinsight_augment::ViewPlan;
use twinsight_datasets::{Dataset, hold_out};
use twinsight_encoders::{Encoder, EncoderConfig};
use twinsight_kernels::cross_entropy_soft;
use twinsight_knn::linear::Logistic;
use twinsight_knn::{Predictions, top1};
use twinsight_nn::{Builder, DrawKey, Gradients, Linear, Mode, Optimizer, OptimizerConfig, ParamStore, Schedule, Shape};

use crate::device::runs_ahead;
use crate::evaluate::encode;
use crate::linear::{fit_chosen, widened};
use crate::loader::steps_per_epoch;
use crate::trained::rebuilt;
use crate::{Error, Result};

mod lessons;

use lessons::{Lessons, Losses};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything.
    Full,
    /// The head, and so many of the last blocks (a ResNet's stages, a ViT's blocks and last norm).
    Last(usize),
}

/// Settings of fine-tuning.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTuneConfig {
    /// What is trained.
    pub depth: Depth,
    /// Passes over the labelled images; `None` for as many as make [`STEPS`] steps, and 10 at least.
    pub epochs: Option<u64>,
    /// Images a step (fewer where there are not so many).
    pub batch: usize,
    /// Peak learning rate; `None` for that of [`RATES`] that recognises most of a held-out fifth of the labelled images.
    pub lr: Option<f64>,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decides which fifth is held out, the order of images, and crops.
    pub seed: u64,
}

/// Learning rates that are tried. The first leaves everything at its start: the logistic regression on frozen features.
pub const RATES: [f64; 4] = [0.0, 0.002, 0.01, 0.05];
/// Fewest steps of a fine-tuning whose epochs are not given.
pub const STEPS: u64 = 300;

impl Default for FineTuneConfig {
    fn default() -> Self {
        Self { depth: Depth::Full, epochs: None, batch: 64, lr: None, weight_decay: 1e-4, seed: 0 }
    }
}

/// What fine-tuning reached.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTuned {
    /// What the judged images are taken for, among all their classes.
    pub predicted: Predictions,
    /// Their labels.
    pub labels: Vec<u32>,
    /// Classes that were learned; labels from this number on are of others.
    pub known: usize,
    /// The peak learning rate.
    pub lr: f64,
    /// Rates that were tried, with the share of the held-out fifth that was recognised; empty where the rate was given, or there were too
    /// few images to choose it on.
    pub tried: Vec<(f64, f64)>,
    /// Passes over the labelled images.
    pub epochs: u64,
    /// Steps.
    pub steps: u64,
    /// Images that could not be read, with the reason.
    pub bad: Vec<(String, String)>,
}

/// Fine-tunes the encoder of the file `encoder` on the labelled images `train` and judges it on `test`, both on `device`. `plan` is the
/// evaluation view; `progress` is told what is being done.
///
/// # Errors
/// Images without labels (the first is named), fewer than two classes, a loss that is not finite, a `Last` that no block answers to.
pub fn fine_tune(
    encoder: &Path,
    train: &Arc<dyn Dataset>,
    test: &dyn Dataset,
    plan: &ViewPlan,
    config: &FineTuneConfig,
    device: &Device,
    progress: &mut dyn FnMut(&str),
) -> Result<FineTuned> {
    let known = train.classes().map_or(0, <[String]>::len);
    for (part, what) in [(&**train, "fine-tuning"), (test, "judging it")] {
        if let Some(i) = (0..part.len()).find(|&i| part.label(i).is_none()) {
            return Err(Error::Config(format!("{}: {what} needs labels, and {} has none", part.name(), part.id(i))));
        }
    }
    if known < 2 {
        return Err(Error::Config(format!("{}: fine-tuning needs labels of 2 classes or more", train.name())));
    }
    let mut bad = Vec::new();
    let (lr, tried) = match config.lr {
        Some(lr) => (lr, Vec::new()),
        None => choose_rate(encoder, train, plan, config, device, progress)?,
    };
    let mut network = Network::new(encoder, config.depth, device)?;
    let (start, unreadable) = network.start(train, plan, known, config.seed)?;
    bad.extend(unreadable);
    let mut lessons = Lessons::new(train, plan, device, progress)?;
    let (epochs, steps) = network.train(&mut lessons, config, &start, lr, progress).map_err(too_large)?;
    let (predicted, features) = network.predict(test, plan)?;
    bad.extend(features.bad);
    let classes = test.classes().map_or(known, |c| c.len().max(known));
    Ok(FineTuned { predicted: widened(predicted, classes), labels: features.labels, known, lr, tried, epochs, steps, bad })
}

/// An error with what to do where the device's memory was too small.
fn too_large(error: Error) -> Error {
    if !crate::device::is_out_of_memory(&error) {
        return error;
    }
    Error::Config(format!(
        "fine-tuning does not fit into the device's memory ({error}): fine-tune fewer blocks (--fine-tune 1), or on the processor \
         (--device cpu)"
    ))
}

/// The rate of [`RATES`] with which most of a held-out fifth is recognised, the lowest of equally good ones, and what each reached.
fn choose_rate(
    encoder: &Path,
    train: &Arc<dyn Dataset>,
    plan: &ViewPlan,
    config: &FineTuneConfig,
    device: &Device,
    progress: &mut dyn FnMut(&str),
) -> Result<(f64, Vec<(f64, f64)>)> {
    let middle = RATES[RATES.len() / 2];
    let (rest, held) = hold_out(train.clone(), 0.2, config.seed)?;
    let first = rest.label(0);
    if held.is_empty() || (0..rest.len()).all(|i| rest.label(i) == first) {
        return Ok((middle, Vec::new()));
    }
    let known = train.classes().map_or(0, <[String]>::len);
    let (start, _) = Network::new(encoder, config.depth, device)?.start(&rest, plan, known, config.seed)?;
    let mut lessons = Lessons::new(&rest, plan, device, &mut |_| {})?;
    let mut tried = Vec::new();
    for rate in RATES {
        let mut network = Network::new(encoder, config.depth, device)?;
        network.train(&mut lessons, config, &start, rate, progress).map_err(too_large)?;
        let (predicted, features) = network.predict(&*held, plan)?;
        let accuracy = top1(&predicted, &features.labels);
        progress(&format!("learning rate {rate}: {:.2} % of {} held-out images", accuracy * 100.0, held.len()));
        tried.push((rate, accuracy));
    }
    let best = tried.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
    Ok((best.map_or(middle, |b| b.0), tried))
}

/// An encoder with its head.
struct Network {
    encoder: Box<dyn Encoder>,
    body: ParamStore,
    head: Option<Logistic>,
    /// Whether anything of the encoder is trained, and whether all of it is.
    trained: (bool, bool),
    device: Device,
    /// Whether losses may be read later than they are there.
    defers: bool,
}

impl Network {
    /// The encoder of a file, on `device`, in which what `depth` leaves alone is frozen.
    fn new(file: &Path, depth: Depth, device: &Device) -> Result<Self> {
        let loaded = crate::source::Source::load(file)?.network;
        let names: Vec<&str> = loaded.params.trainable().map(|p| p.name()).collect();
        let trained = trained_names(names.iter().copied(), depth)?;
        let frozen: Vec<String> = names.iter().filter(|n| !trained.iter().any(|t| t == *n)).map(ToString::to_string).collect();
        let flags = (!trained.is_empty(), frozen.is_empty());
        let of = |encoder, body| {
            Ok(Self { encoder, body, head: None, trained: flags, device: device.clone(), defers: runs_ahead(device) })
        };
        if frozen.is_empty() && device.is_cpu() {
            return of(loaded.encoder, loaded.params);
        }
        let config = loaded.encoder.config();
        let freeze = if frozen.is_empty() { config.freeze.clone() } else { frozen };
        let (encoder, body) = rebuilt(&loaded, &EncoderConfig { freeze, ..config.clone() }, device)?;
        of(encoder, body)
    }

    /// The head to start from, fitted to the encoder's features of the labelled images, and those that could not be read.
    fn start(
        &self,
        train: &Arc<dyn Dataset>,
        plan: &ViewPlan,
        classes: usize,
        seed: u64,
    ) -> Result<(Logistic, Vec<(String, String)>)> {
        let features = encode(&**train, &*self.encoder, plan, BATCH, &self.device)?;
        let fitted = fit_chosen(features.matrix(), &features.labels, classes, seed)?.fitted;
        Ok((fitted, features.bad))
    }

    /// Trains from `start`: (epochs, steps).
    fn train(
        &mut self,
        lessons: &mut Lessons,
        config: &FineTuneConfig,
        start: &Logistic,
        lr: f64,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(u64, u64)> {
        let builder = Builder::zeros(&self.device);
        let head = Linear::torch_default(&builder.under("head"), start.dim, start.classes, true)?;
        let params = builder.finish();
        let numbers = |of: &[f64]| of.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let weight = Tensor::from_vec(numbers(&start.weight), (start.classes, start.dim), &self.device)?;
        let bias = Tensor::from_vec(numbers(&start.bias), start.classes, &self.device)?;
        for (name, value) in [("head.weight", weight), ("head.bias", bias)] {
            if let Some(parameter) = params.get(name) {
                parameter.set(&value)?;
            }
        }
        let images = lessons.images.len();
        let per_epoch = steps_per_epoch(images, config.batch.min(images))?;
        let epochs = config.epochs.unwrap_or_else(|| STEPS.div_ceil(per_epoch).max(10));
        let total = if lr > 0.0 { per_epoch * epochs } else { 0 };
        if total > 0 {
            self.steps(lessons, config, (&head, &params), lr, (per_epoch, total), progress)?;
        }
        let values = |name: &str| -> Result<Vec<f64>> {
            let found = params.get(name).map(|p| p.value().flatten_all()?.to_vec1::<f32>()).transpose()?;
            Ok(found.unwrap_or_default().into_iter().map(f64::from).collect())
        };
        self.head = Some(Logistic { weight: values("head.weight")?, bias: values("head.bias")?, ..start.clone() });
        Ok((epochs, total))
    }

    fn steps(
        &self,
        lessons: &mut Lessons,
        config: &FineTuneConfig,
        (head, head_params): (&Linear, &ParamStore),
        lr: f64,
        (per_epoch, total): (u64, u64),
        progress: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: config.weight_decay };
        let mut head_optimizer = Optimizer::new(&sgd, head_params)?;
        let mut body_optimizer = Optimizer::new(&sgd, &self.body)?;
        let schedule = Schedule {
            start: lr,
            end: 0.0,
            warmup_steps: (total / 20).max(1).min(total / 2),
            warmup_start: 0.0,
            total_steps: total,
            shape: Shape::Cosine,
        };
        let classes = lessons.classes();
        let mut loader = lessons.loader(config.batch.min(lessons.images.len()), config.seed, &self.device)?;
        let mut losses = Losses::new(self.defers);
        for step in 0..total {
            let views = loader.next_batch()?;
            let targets = one_hot(&lessons.labels(&views.samples), classes, &self.device)?;
            let mode = Mode::train(DrawKey { seed: config.seed, step, pass: 0 });
            let body = match self.trained {
                (_, true) => mode,
                (true, false) => Mode { train: false, ..mode },
                (false, _) => Mode::EVAL,
            };
            let pooled = self.encoder.forward(&views.views[0], &body)?.pooled;
            let objective = cross_entropy_soft(&head.forward(&pooled, &mode)?, &targets)?;
            losses.push(step, &objective, lr)?;
            let store = objective.backward()?;
            let rate = schedule.at(step);
            head_optimizer.step(&Gradients::collect(&store, head_params)?, rate, config.weight_decay)?;
            if self.trained.0 {
                body_optimizer.step(&Gradients::collect(&store, &self.body)?, rate, config.weight_decay)?;
            }
            if (step + 1).is_multiple_of(per_epoch) {
                let (epoch, sum) = ((step + 1) / per_epoch, losses.take(lr)?);
                if epoch.is_multiple_of((total / per_epoch).div_ceil(10)) {
                    let (of, loss) = (total / per_epoch, sum / per_epoch as f64);
                    progress(&format!("learning rate {lr}, epoch {epoch} of {of}: loss {loss:.4}"));
                }
            }
        }
        lessons.renderer = loader.take_renderer();
        Ok(())
    }

    /// What the head takes images for, with their features.
    fn predict(&self, images: &dyn Dataset, plan: &ViewPlan) -> Result<(Predictions, crate::evaluate::Features)> {
        let Some(head) = &self.head else { return Err(Error::Config("fine-tuning: there is no head yet".into())) };
        let features = encode(images, &*self.encoder, plan, BATCH, &self.device)?;
        Ok((head.predict(features.matrix())?, features))
    }
}

/// Images a forward pass without a graph.
const BATCH: usize = 256;

/// The names of the encoder's parameters that are trained.
fn trained_names<'a>(names: impl Iterator<Item = &'a str>, depth: Depth) -> Result<Vec<String>> {
    let names: Vec<&str> = names.collect();
    let count = match depth {
        Depth::Full => return Ok(names.iter().map(ToString::to_string).collect()),
        Depth::Last(0) => return Ok(Vec::new()),
        Depth::Last(count) => count,
    };
    // `blocks.7.` of transformers, `layer3.` of residual networks, `stages.2.` of others, in their order.
    let block = |name: &str| -> Option<String> {
        let mut parts = name.split('.');
        let first = parts.next()?;
        match first {
            "blocks" | "stages" => Some(format!("{first}.{}.", parts.next()?)),
            _ if first.starts_with("layer") && first.len() > 5 => Some(format!("{first}.")),
            _ => None,
        }
    };
    let mut blocks: Vec<String> = names.iter().filter_map(|n| block(n)).collect();
    blocks.dedup();
    if count > blocks.len() {
        return Err(Error::Config(format!("the last {count} blocks: the encoder has {}", blocks.len())));
    }
    let last = &blocks[blocks.len() - count..];
    // What follows the blocks (a last norm) learns too.
    let end = names.iter().rposition(|n| block(n).is_some()).map_or(names.len(), |i| i + 1);
    Ok(names
        .iter()
        .enumerate()
        .filter(|(i, n)| *i >= end || last.iter().any(|b| n.starts_with(b.as_str())))
        .map(|(_, n)| n.to_string())
        .collect())
}

fn one_hot(labels: &[u32], classes: usize, device: &Device) -> Result<Tensor> {
    let mut rows = vec![0.0f32; labels.len() * classes];
    labels.iter().enumerate().for_each(|(i, &l)| rows[i * classes + l as usize] = 1.0);
    Ok(Tensor::from_vec(rows, (labels.len(), classes), device)?)
}

#[cfg(test)]
mod tests;
