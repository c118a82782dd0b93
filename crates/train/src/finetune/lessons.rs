//! What fine-tuning learns from, batch by batch, and the losses that come of it.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use twinsight_augment::{Interpolation, Transform, ViewGroup, ViewPlan, ViewSpec};
use twinsight_datasets::Dataset;

use crate::loader::{Loader, LoaderConfig};
use crate::renderer::{Choice, ViewRenderer, choose};
use crate::{Error, Result};

/// Labelled images to learn from, and who makes their views.
pub(super) struct Lessons {
    pub images: Arc<dyn Dataset>,
    /// The training view.
    pub plan: ViewPlan,
    /// The device, where it can; it keeps the images from one training to the next.
    pub renderer: Option<Box<dyn ViewRenderer>>,
}

impl Lessons {
    /// Of `images` that are judged by the view of `plan`. `progress` is told why a device does not make the views.
    pub fn new(images: &Arc<dyn Dataset>, plan: &ViewPlan, device: &Device, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let plan = crops(plan);
        let Choice { renderer, words } = choose("auto", &**images, &plan, device)?;
        words.iter().for_each(|words| progress(words));
        Ok(Self { images: images.clone(), plan, renderer })
    }

    /// The labels of these images, by index.
    pub fn labels(&self, samples: &[usize]) -> Vec<u32> {
        samples.iter().filter_map(|&i| self.images.label(i)).collect()
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.images.classes().map_or(0, <[String]>::len)
    }

    /// Threads that make batches, and the renderer while they do.
    pub fn loader(&mut self, batch: usize, seed: u64, device: &Device) -> Result<Loader> {
        let loader = LoaderConfig {
            dataset: self.images.clone(),
            plan: self.plan.clone(),
            batch,
            seed,
            threads: 0,
            // A part of evaluation, whose figures must not depend on how images are decoded.
            reduced_decode: false,
            strict: false,
        };
        Loader::start_with(loader, 0, device, self.renderer.take())
    }
}

/// Losses of steps, read at once, on CUDA an epoch later at the latest: the host need not wait for each.
pub(super) struct Losses {
    defers: bool,
    unread: Vec<(u64, Tensor)>,
    sum: f64,
}

impl Losses {
    /// None yet.
    pub fn new(defers: bool) -> Self {
        Self { defers, unread: Vec::new(), sum: 0.0 }
    }

    /// Takes up the loss of a step. `lr` is for the words about a loss that is not finite.
    pub fn push(&mut self, step: u64, loss: &Tensor, lr: f64) -> Result<()> {
        self.unread.push((step, loss.detach().to_dtype(DType::F32)?));
        match !self.defers || self.unread.len() >= MOST_UNREAD {
            true => self.read(lr),
            false => Ok(()),
        }
    }

    fn read(&mut self, lr: f64) -> Result<()> {
        if self.unread.is_empty() {
            return Ok(());
        }
        let values = Tensor::stack(&self.unread.iter().map(|(_, loss)| loss).collect::<Vec<_>>(), 0)?.to_vec1::<f32>()?;
        for ((step, _), value) in self.unread.drain(..).zip(values.into_iter().map(f64::from)) {
            if !value.is_finite() {
                return Err(Error::Config(format!("fine-tuning: the loss is {value} at step {step}; lower --lr (it is {lr})")));
            }
            self.sum += value;
        }
        Ok(())
    }

    /// The sum since the last call of this.
    pub fn take(&mut self, lr: f64) -> Result<f64> {
        self.read(lr)?;
        Ok(std::mem::take(&mut self.sum))
    }
}

/// Losses that wait to be read, at most.
pub(super) const MOST_UNREAD: usize = 100;

/// The training view: random crops and flips, normalised as the evaluation view.
fn crops(plan: &ViewPlan) -> ViewPlan {
    let crop =
        Transform::RandomResizedCrop { scale: (0.25, 1.0), ratio: (0.75, 4.0 / 3.0), interpolation: Interpolation::Bilinear };
    let spec = ViewSpec { size: plan.view(0).size, transforms: vec![crop, Transform::HorizontalFlip { p: 0.5 }] };
    ViewPlan { groups: vec![ViewGroup { name: "train".into(), count: 1, spec }], ..plan.clone() }
}
