//! Fine-tuning: a trained encoder with a linear head learns from labels, whole or in its last blocks only.
//!
//! The recipe is the usual one for small images: SGD with Nesterov momentum 0.9, cosine learning rate after a short warm-up, random
//! resized crops (at least a quarter of the image) and flips. Nothing is chosen on the test images.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use twinsight_augment::{Interpolation, Transform, ViewGroup, ViewPlan, ViewSpec};
use twinsight_datasets::Dataset;
use twinsight_kernels::cross_entropy_soft;
use twinsight_knn::{Predictions, accuracy};
use twinsight_nn::{Builder, DrawKey, Gradients, Linear, Mode, Optimizer, OptimizerConfig, Schedule, Shape};

use crate::loader::{Loader, LoaderConfig, steps_per_epoch};
use crate::{Error, Result};

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
    /// Passes over the labelled images.
    pub epochs: u64,
    /// Images a step (fewer where there are not so many).
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decides the head's weights, the order of images and crops.
    pub seed: u64,
}

impl Default for FineTuneConfig {
    fn default() -> Self {
        Self { depth: Depth::Full, epochs: 10, batch: 64, lr: 0.02, weight_decay: 1e-4, seed: 0 }
    }
}

/// What fine-tuning reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FineTuned {
    /// Accuracy on the judged images, as a fraction.
    pub top1: f64,
    /// The share whose first five classes hold the label.
    pub top5: f64,
    /// The mean loss of the last epoch.
    pub loss: f64,
}

/// Fine-tunes the encoder of the file `encoder` on the labelled images `train` and judges it on `test`. `plan` is the evaluation view;
/// `progress` is told epoch and mean loss.
///
/// # Errors
/// Images without labels, fewer than two of them, classes that differ, a loss that is not finite, a `Last` that no block answers to.
pub fn fine_tune(
    encoder: &Path,
    train: &Arc<dyn Dataset>,
    test: &dyn Dataset,
    plan: &ViewPlan,
    config: &FineTuneConfig,
    progress: &mut dyn FnMut(u64, f64),
) -> Result<FineTuned> {
    let device = Device::Cpu;
    let classes = train.classes().map_or(0, <[String]>::len);
    if classes < 2 || test.classes().map_or(0, <[String]>::len) != classes {
        return Err(Error::Config(format!(
            "{}: fine-tuning needs labels of the same 2 classes or more in training and test",
            train.name()
        )));
    }
    let loaded = crate::source::Source::load(encoder)?.network;
    let builder = Builder::new(config.seed, &device);
    let head = Linear::torch_default(&builder.under("head"), loaded.encoder.dim(), classes, true)?;
    let head_params = builder.finish();
    let trained = trained_names(loaded.params.trainable().map(|p| p.name()), config.depth)?;
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: config.weight_decay };
    let mut body_optimizer = Optimizer::new(&sgd, &loaded.params)?;
    let mut head_optimizer = Optimizer::new(&sgd, &head_params)?;

    let batch = config.batch.min(train.len());
    let per_epoch = steps_per_epoch(train.len(), batch)?;
    let total = per_epoch * config.epochs;
    let schedule = Schedule {
        start: config.lr,
        end: 0.0,
        warmup_steps: (total / 20).max(1).min(total / 2),
        warmup_start: 0.0,
        total_steps: total,
        shape: Shape::Cosine,
    };
    let loader = LoaderConfig { dataset: train.clone(), plan: crops(plan), batch, seed: config.seed, threads: 0, strict: false };
    let mut loader = Loader::start(loader, 0, &device)?;
    let frozen_body = trained.is_empty();
    let (mut sum, mut loss) = (0.0, f64::NAN);
    for step in 0..total {
        let views = loader.next_batch()?;
        let labels: Vec<u32> = views.samples.iter().map(|&i| train.label(i).unwrap_or(0)).collect();
        let targets = one_hot(&labels, classes, &device)?;
        let mode = Mode::train(DrawKey { seed: config.seed, step, pass: 0 });
        // Where only the head learns, batch norm keeps the statistics that the features were judged with.
        let body = if frozen_body { Mode::EVAL } else { mode };
        let pooled = loaded.encoder.forward(&views.views[0], &body)?.pooled;
        let objective = cross_entropy_soft(&head.forward(&pooled, &mode)?, &targets)?;
        let value = f64::from(objective.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::Config(format!(
                "fine-tuning: the loss is {value} at step {step}; lower --lr (it is {})",
                config.lr
            )));
        }
        let store = objective.backward()?;
        let rate = schedule.at(step);
        head_optimizer.step(&Gradients::collect(&store, &head_params)?, rate, config.weight_decay)?;
        if !frozen_body {
            let mut gradients = Gradients::collect(&store, &loaded.params)?;
            let all: Vec<String> = gradients.iter().map(|(name, _)| name.to_string()).collect();
            for name in all.iter().filter(|n| !trained.contains(n)) {
                gradients.remove(name);
            }
            body_optimizer.step(&gradients, rate, config.weight_decay)?;
        }
        sum += value;
        if (step + 1).is_multiple_of(per_epoch) {
            loss = sum / per_epoch as f64;
            sum = 0.0;
            progress((step + 1) / per_epoch, loss);
        }
    }
    drop(loader);

    let features = crate::evaluate::encode(test, &*loaded.encoder, plan, 256, &device)?;
    let rows = Tensor::from_slice(&features.rows, (features.index.len(), features.dim), &device)?;
    let logits = head.forward(&rows, &Mode::EVAL)?.to_vec2::<f32>()?;
    let ranked = logits
        .iter()
        .flat_map(|row| {
            let mut order: Vec<u32> = (0..classes as u32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            order
        })
        .collect();
    let predicted = Predictions { classes, ranked, share: vec![1.0 / classes as f32; logits.len() * classes] };
    let judged = accuracy(&predicted, &features.labels)?;
    Ok(FineTuned { top1: judged.top1, top5: judged.top5, loss })
}

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

/// The training view: random crops and flips, normalised as the evaluation view.
fn crops(plan: &ViewPlan) -> ViewPlan {
    let crop =
        Transform::RandomResizedCrop { scale: (0.25, 1.0), ratio: (0.75, 4.0 / 3.0), interpolation: Interpolation::Bilinear };
    let spec = ViewSpec { size: plan.view(0).size, transforms: vec![crop, Transform::HorizontalFlip { p: 0.5 }] };
    ViewPlan { groups: vec![ViewGroup { name: "train".into(), count: 1, spec }], ..plan.clone() }
}

fn one_hot(labels: &[u32], classes: usize, device: &Device) -> Result<Tensor> {
    let mut rows = vec![0.0f32; labels.len() * classes];
    labels.iter().enumerate().for_each(|(i, &l)| rows[i * classes + l as usize] = 1.0);
    Ok(Tensor::from_vec(rows, (labels.len(), classes), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_blocks_are_found_by_name() -> Result<()> {
        let vit = ["cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight"];
        assert_eq!(trained_names(vit.into_iter(), Depth::Last(1))?, ["blocks.1.norm1.weight", "norm.weight"]);
        let resnet = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight"];
        assert_eq!(trained_names(resnet.into_iter(), Depth::Last(1))?, ["layer2.0.conv1.weight"]);
        assert_eq!(trained_names(resnet.into_iter(), Depth::Full)?.len(), 4);
        assert!(trained_names(resnet.into_iter(), Depth::Last(0))?.is_empty());
        let told = trained_names(resnet.into_iter(), Depth::Last(3)).expect_err("two only").to_string();
        assert!(told.contains("has 2"), "{told}");
        Ok(())
    }
}
