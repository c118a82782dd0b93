//! Features of a data set, and the labelled parts that an evaluation needs.
//!
//! Part of the labelled training images is held out. [`crate::protocols`] says which images choose settings and which are judged; the judged
//! ones choose nothing. Pixels and the untrained encoder go through the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_encoders::Encoder;
use twinsight_knn::Matrix;
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
    /// Accuracy of the images that they were chosen on, as a fraction.
    pub accuracy: f64,
    /// Whether these were the training images, each left out of its own vote, and not the held-out ones.
    pub left_out: bool,
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

/// Most rows whose effective rank is taken, which is then at most this.
pub const RANK_ROWS: usize = 1024;

impl Features {
    /// The rows as the search takes them.
    pub fn matrix(&self) -> Matrix<'_> {
        Matrix { data: &self.rows, rows: self.index.len(), dim: self.dim }
    }

    /// Some of the rows, by their places.
    pub(crate) fn part(&self, rows: &[usize]) -> Self {
        let labelled = self.labels.len() == self.index.len();
        Self {
            rows: rows.iter().flat_map(|&r| self.matrix().row(r)).copied().collect(),
            dim: self.dim,
            index: rows.iter().map(|&r| self.index[r]).collect(),
            labels: if labelled { rows.iter().map(|&r| self.labels[r]).collect() } else { Vec::new() },
            bad: Vec::new(),
        }
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.rows.extend_from_slice(&other.rows);
        self.index.extend_from_slice(&other.index);
        self.labels.extend_from_slice(&other.labels);
        self.bad.extend_from_slice(&other.bad);
    }
}

impl Evaluation {
    /// Says how many test images are of classes that no training image has, and which these are; `None` where there are none.
    pub fn unknown_classes(&self) -> Option<String> {
        let test = self.test.as_ref()?;
        let seen: BTreeSet<u32> =
            [&self.bank, &self.held_out].into_iter().flat_map(|d| (0..d.len()).filter_map(|i| d.label(i))).collect();
        let strange: Vec<u32> = (0..test.len()).filter_map(|i| test.label(i)).filter(|l| !seen.contains(l)).collect();
        let classes: BTreeSet<u32> = strange.iter().copied().collect();
        let name = |&c: &u32| test.classes().and_then(|n| n.get(c as usize)).map_or_else(|| c.to_string(), String::clone);
        let names: Vec<String> = classes.iter().map(name).collect();
        (!names.is_empty()).then(|| {
            let (count, all, names) = (strange.len(), test.len(), names.join(", "));
            format!("{count} of {all} test images are of classes that no training image has ({names}); they count as mistaken")
        })
    }
}

/// Up to `most` of `count` rows, drawn by `seed`, in their order: for what takes too long on all.
pub fn sample_rows(count: usize, most: usize, seed: u64) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let mut rows = rand::seq::index::sample(&mut ChaCha8Rng::seed_from_u64(seed), count, most).into_vec();
    rows.sort_unstable();
    rows
}

/// The shortest number that this `f32` was written as: 0.03, not 0.029999999329447746.
pub(crate) fn plain(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Effective rank of up to [`RANK_ROWS`] rows, spread evenly: images often come class by class.
pub(crate) fn effective_rank(of: Matrix) -> Result<f64> {
    let count = of.rows.min(RANK_ROWS);
    let rows: Vec<f32> = (0..count).flat_map(|i| of.row(i * of.rows / count)).copied().collect();
    Ok(twinsight_knn::health::effective_rank(Matrix { data: &rows, rows: count, dim: of.dim })?)
}

/// Pooled features (N, D) of all images, in order, by batches of `batch`.
///
/// # Errors
/// A failing forward pass; images none of which can be read; a vector that is not finite ([`Error::Vector`]); labels for some images only.
pub fn encode(dataset: &dyn Dataset, encoder: &dyn Encoder, plan: &ViewPlan, batch: usize, device: &Device) -> Result<Features> {
    let side = plan.view(0).size;
    let mut all = Features { dim: encoder.dim(), ..Features::default() };
    for start in (0..dataset.len()).step_by(batch) {
        let part = tensors(dataset, plan, start..(start + batch).min(dataset.len()))?;
        if !part.index.is_empty() {
            let x = Tensor::from_vec(part.rows, (part.index.len(), plan.channels, side, side), device)?;
            let pooled = encoder.forward(&x, &Mode::EVAL)?.pooled.to_dtype(DType::F32)?;
            let rows = pooled.flatten_all()?.to_vec1::<f32>()?;
            if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
                return Err(Error::Vector { image: dataset.id(part.index[at / all.dim]), value: rows[at] });
            }
            all.rows.extend(rows);
        }
        all.index.extend(part.index);
        all.labels.extend(part.labels);
        all.bad.extend(part.bad);
    }
    checked(all, dataset)
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
    }
    checked(all, dataset)
}

/// Most pixels a side of the images whose pixels are compared.
pub const PIXEL_SIDE: usize = 32;

fn checked(features: Features, dataset: &dyn Dataset) -> Result<Features> {
    let (images, labels) = (features.index.len(), features.labels.len());
    if images == 0 {
        return Err(Error::Config(format!("{}: none of its {} images can be read", dataset.name(), dataset.len())));
    }
    if labels != 0 && labels != images {
        let reason = "a data set has labels for all of its images or for none";
        return Err(Error::Config(format!("{}: {labels} labels for {images} images; {reason}", dataset.name())));
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

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_datasets::PackedImages;

    #[test]
    fn a_part_of_many_rows_is_decided_by_the_seed() {
        assert_eq!(sample_rows(7, 10, 3), [0, 1, 2, 3, 4, 5, 6]);
        let part = sample_rows(50_000, 10_000, 3);
        assert!(part.len() == 10_000 && part.windows(2).all(|w| w[0] < w[1]) && part[9_999] < 50_000);
        assert!(part == sample_rows(50_000, 10_000, 3) && part != sample_rows(50_000, 10_000, 4));
        assert_eq!((plain(0.03), plain(0.1)), (0.03, 0.1));
    }

    #[test]
    fn rank_is_of_rows_from_all_over_the_table() -> Result<()> {
        // Images of one kind first: the first rows alone would have rank 1.
        let rows: Vec<f32> = (0..2 * RANK_ROWS).flat_map(|i| if i < RANK_ROWS { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        assert!((effective_rank(Matrix { data: &rows, rows: 2 * RANK_ROWS, dim: 2 })? - 2.0).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn test_images_of_classes_without_training_images_are_told() -> anyhow::Result<()> {
        let images = |labels: Vec<u32>, classes: &[&str]| -> anyhow::Result<Arc<dyn Dataset>> {
            let classes = classes.iter().map(ToString::to_string).collect();
            Ok(Arc::new(PackedImages::new("x", vec![0; labels.len()], (1, 1, 1), Some(labels), classes)?))
        };
        let known = ["cat", "dog"];
        let evaluation = Evaluation {
            bank: images(vec![0, 0, 1], &known)?,
            held_out: images(vec![0], &known)?,
            test: Some(images(vec![0, 2, 2, 1], &["cat", "dog", "zebra"])?),
            classes: 2,
            plan: ViewPlan::eval(1, 1),
            config: crate::RunConfig::resolve(&[])?.eval,
        };
        let told = evaluation.unknown_classes().unwrap_or_default();
        assert!(told.starts_with("2 of 4 test images") && told.contains("(zebra)"), "{told}");
        assert_eq!(Evaluation { test: Some(evaluation.bank.clone()), ..evaluation }.unknown_classes(), None);
        Ok(())
    }
}
