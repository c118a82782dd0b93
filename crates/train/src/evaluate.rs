//! Features of a data set and their k-NN accuracy, with settings chosen on images held out from training.
//!
//! The protocol: part of the labelled training images is held out. Number of neighbours and temperature are chosen by the
//! accuracy of the held-out images against the rest. The final figure is that of the test images against all training
//! images with those settings; test images choose nothing. Pixels and the untrained encoder go through the same.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_encoders::Encoder;
use twinsight_knn::{Matrix, Metric};
use twinsight_nn::Mode;

use crate::config::EvalConfig;
use crate::picture::Picture;
use crate::{Error, Result};

/// Feature rows of images, those that could not be read left out.
#[derive(Debug, Clone, Default)]
pub struct Features {
    /// Rows one after the other, `dim` numbers each.
    pub rows: Vec<f32>,
    /// Numbers a row.
    pub dim: usize,
    /// Which image each row is of, by index in the data set.
    pub index: Vec<usize>,
    /// Labels, where the data set has them.
    pub labels: Vec<u32>,
    /// Images that could not be read, with the reason.
    pub bad: Vec<(String, String)>,
}

/// k-NN settings and the accuracy that they reached where they were chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Neighbours.
    pub k: usize,
    /// Vote temperature.
    pub temperature: f64,
    /// Accuracy of the held-out images, as a fraction.
    pub accuracy: f64,
}

/// The labelled parts of one data set that an evaluation needs.
#[derive(Clone)]
pub struct Evaluation {
    /// Training images without the held-out ones.
    pub bank: Arc<dyn Dataset>,
    /// Training images held out for choosing settings.
    pub held_out: Arc<dyn Dataset>,
    /// Test images, where there are any.
    pub test: Option<Arc<dyn Dataset>>,
    /// Number of classes.
    pub classes: usize,
    /// How an image becomes a tensor.
    pub plan: ViewPlan,
    /// Settings to choose from.
    pub config: EvalConfig,
}

/// What an evaluation found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Settings, with the held-out accuracy.
    pub chosen: Chosen,
    /// Accuracy of the test images with them; `None` without test images.
    pub test: Option<f64>,
    /// Effective rank (RankMe) of the features of the images that the headline is of, the first [`RANK_ROWS`] of them;
    /// `None` for pixels.
    pub effective_rank: Option<f64>,
}

/// Most rows whose effective rank is taken, which is then at most this.
pub const RANK_ROWS: usize = 1024;

impl Score {
    /// The figure to report: the test images' where there are any, the held-out images' otherwise.
    pub fn headline(&self) -> f64 {
        self.test.unwrap_or(self.chosen.accuracy)
    }
}

impl Features {
    /// The rows as the search takes them.
    pub fn matrix(&self) -> Matrix<'_> {
        Matrix { data: &self.rows, rows: self.index.len(), dim: self.dim }
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.rows.extend_from_slice(&other.rows);
        self.index.extend_from_slice(&other.index);
        self.labels.extend_from_slice(&other.labels);
    }
}

impl Evaluation {
    /// Held-out accuracy with the best of the settings: the figure shown while training.
    ///
    /// # Errors
    /// A failing forward pass or search.
    pub fn held_out_accuracy(&self, encoder: &dyn Encoder, device: &Device) -> Result<Chosen> {
        Ok(self.held_out_with_features(encoder, device)?.0)
    }

    /// As [`Evaluation::held_out_accuracy`], with the features of the held-out images.
    ///
    /// # Errors
    /// A failing forward pass or search.
    pub fn held_out_with_features(&self, encoder: &dyn Encoder, device: &Device) -> Result<(Chosen, Features)> {
        let bank = encode(&*self.bank, encoder, &self.plan, self.config.batch, device)?;
        let queries = encode(&*self.held_out, encoder, &self.plan, self.config.batch, device)?;
        Ok((self.choose(&bank, &queries)?, queries))
    }

    /// The whole protocol on an encoder's features.
    ///
    /// # Errors
    /// A failing forward pass or search.
    pub fn score(&self, encoder: &dyn Encoder, device: &Device) -> Result<Score> {
        self.protocol(|d| encode(d, encoder, &self.plan, self.config.batch, device), true)
    }

    /// The whole protocol on the pixels themselves.
    ///
    /// # Errors
    /// A failing search.
    pub fn score_pixels(&self) -> Result<Score> {
        self.protocol(|d| pixels(d, &self.plan), false)
    }

    fn protocol(&self, features: impl Fn(&dyn Dataset) -> Result<Features>, ranked: bool) -> Result<Score> {
        let rank = |of: &Features| if ranked { effective_rank(of.matrix()).map(Some) } else { Ok(None) };
        let mut bank = features(&*self.bank)?;
        let held_out = features(&*self.held_out)?;
        let chosen = self.choose(&bank, &held_out)?;
        let Some(test) = &self.test else {
            return Ok(Score { chosen, test: None, effective_rank: rank(&held_out)? });
        };
        let test = features(&**test)?;
        bank.extend(&held_out);
        let found = twinsight_knn::search(bank.matrix(), test.matrix(), chosen.k, Metric::Cosine, false)?;
        let predicted = twinsight_knn::vote(&found, &bank.labels, self.classes, chosen.temperature as f32)?;
        let accuracy = twinsight_knn::top1(&predicted, &test.labels);
        Ok(Score { chosen, test: Some(accuracy), effective_rank: rank(&test)? })
    }

    fn choose(&self, bank: &Features, queries: &Features) -> Result<Chosen> {
        let ks: Vec<usize> = self.config.k.iter().copied().filter(|&k| k <= bank.index.len()).collect();
        let ks = if ks.is_empty() { vec![bank.index.len()] } else { ks };
        let temperatures: Vec<f32> = self.config.temperature.iter().map(|&t| t as f32).collect();
        let best = twinsight_knn::choose(
            bank.matrix(),
            &bank.labels,
            queries.matrix(),
            &queries.labels,
            self.classes,
            &ks,
            &temperatures,
            Metric::Cosine,
        )?;
        Ok(Chosen { k: best.k, temperature: f64::from(best.temperature), accuracy: best.accuracy })
    }
}

/// Effective rank of the first [`RANK_ROWS`] rows.
pub(crate) fn effective_rank(of: Matrix) -> Result<f64> {
    let rows = of.rows.min(RANK_ROWS);
    Ok(twinsight_knn::health::effective_rank(Matrix { data: &of.data[..rows * of.dim], rows, dim: of.dim })?)
}

/// Pooled features (N, D) of all images, in order, by batches of `batch`.
///
/// # Errors
/// A failing forward pass; images none of which can be read.
pub fn encode(dataset: &dyn Dataset, encoder: &dyn Encoder, plan: &ViewPlan, batch: usize, device: &Device) -> Result<Features> {
    let side = plan.view(0).size;
    let mut all = Features { dim: encoder.dim(), ..Features::default() };
    for start in (0..dataset.len()).step_by(batch) {
        let part = tensors(dataset, plan, start..(start + batch).min(dataset.len()))?;
        if !part.index.is_empty() {
            let x = Tensor::from_vec(part.rows, (part.index.len(), plan.channels, side, side), device)?;
            let pooled = encoder.forward(&x, &Mode::EVAL)?.pooled.to_dtype(DType::F32)?;
            all.rows.extend(pooled.flatten_all()?.to_vec1::<f32>()?);
        }
        all.index.extend(part.index);
        all.labels.extend(part.labels);
        all.bad.extend(part.bad);
    }
    nonempty(all, dataset)
}

/// The normalised pixels of all images as features: the baseline without any encoder. Images are made [`PIXEL_SIDE`] pixels
/// wide where they are larger: more would take gigabytes, and serves pixels rather less.
///
/// # Errors
/// Images none of which can be read.
pub fn pixels(dataset: &dyn Dataset, plan: &ViewPlan) -> Result<Features> {
    let side = plan.view(0).size.min(PIXEL_SIDE);
    let plan = ViewPlan { normalize: plan.normalize.clone(), ..ViewPlan::eval(side, plan.channels) };
    let mut all = Features { dim: plan.channels * side * side, ..Features::default() };
    for start in (0..dataset.len()).step_by(1024) {
        let part = tensors(dataset, &plan, start..(start + 1024).min(dataset.len()))?;
        all.extend(&part);
        all.bad.extend(part.bad);
    }
    nonempty(all, dataset)
}

/// Most pixels a side of the images whose pixels are compared.
pub const PIXEL_SIDE: usize = 32;

fn nonempty(features: Features, dataset: &dyn Dataset) -> Result<Features> {
    if features.index.is_empty() {
        return Err(Error::Config(format!("{}: none of its {} images can be read", dataset.name(), dataset.len())));
    }
    Ok(features)
}

/// The evaluation views of the images in `range`, made in parallel and put together in order.
fn tensors(dataset: &dyn Dataset, plan: &ViewPlan, range: std::ops::Range<usize>) -> Result<Features> {
    let side = plan.view(0).size;
    let dim = plan.channels * side * side;
    let made: Vec<_> = range
        .into_par_iter()
        .map(|i| {
            let sample = match Picture::load(dataset, i) {
                Ok(sample) => sample,
                Err(e) => return Ok((i, None, Some((dataset.id(i), e.to_string())))),
            };
            let mut row = vec![0.0; dim];
            sample.render(plan, 0, DrawKey { seed: 0, epoch: 0, sample: i as u64, view: 0 }, &mut row)?;
            Ok((i, Some((row, dataset.label(i))), None))
        })
        .collect::<Result<_>>()?;
    let mut all = Features { dim, ..Features::default() };
    for (i, row, bad) in made {
        if let Some((row, label)) = row {
            all.rows.extend(row);
            all.index.push(i);
            all.labels.extend(label);
        }
        all.bad.extend(bad);
    }
    Ok(all)
}
