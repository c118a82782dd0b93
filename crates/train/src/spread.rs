//! How the backbone's features are spread, told without labels: effective rank, uniformity and alignment, of the features that are kept in
//! the end and not of a projection head's.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_encoders::Encoder;
use twinsight_knn::{Matrix, health};
use twinsight_nn::Mode;

use crate::Result;
use crate::evaluate::{Features, effective_rank};
use crate::picture::Picture;

/// Images whose two views are compared, at most.
const PAIRS: usize = 256;
/// Images of a forward pass of views.
const BATCH: usize = 64;

/// The figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Images that rank and uniformity are of.
    pub images: usize,
    /// Effective rank (RankMe, Garrido et al. 2023), 1 to min(images, length of a vector).
    pub effective_rank: f64,
    /// Uniformity (Wang & Isola 2020): 0 for one point, near −4 for an even spread.
    pub uniformity: Option<f64>,
    /// Alignment (Wang & Isola 2020): mean squared distance of the features of two views of an image, drawn as in training; 0 where they
    /// fall together, 2 where they have nothing in common.
    pub alignment: Option<f64>,
}

impl Spread {
    /// Measures `features` (of `dataset`), and draws two views of up to 256 of the images by the first view of `plan`, decided by `seed`.
    ///
    /// # Errors
    /// A failing forward pass, features that are not finite.
    pub fn of(
        features: &Features,
        dataset: &dyn Dataset,
        encoder: &dyn Encoder,
        plan: &ViewPlan,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let table = features.matrix();
        Ok(Self {
            images: table.rows,
            effective_rank: effective_rank(table)?,
            uniformity: (table.rows > 1).then(|| health::uniformity(table)).transpose()?,
            alignment: alignment(features, dataset, encoder, plan, seed, device)?,
        })
    }
}

/// The mean squared distance of two views' features; `None` where no image can be read any more.
fn alignment(
    features: &Features,
    dataset: &dyn Dataset,
    encoder: &dyn Encoder,
    plan: &ViewPlan,
    seed: u64,
    device: &Device,
) -> Result<Option<f64>> {
    let count = features.index.len().min(PAIRS);
    let chosen: Vec<usize> = (0..count).map(|i| features.index[i * features.index.len() / count]).collect();
    let side = plan.view(0).size;
    let size = plan.channels * side * side;
    let mut tables = [Vec::new(), Vec::new()];
    for part in chosen.chunks(BATCH) {
        let made: Vec<Option<[Vec<f32>; 2]>> = part
            .par_iter()
            .map(|&i| {
                let Ok(picture) = Picture::load(dataset, i) else { return Ok(None) };
                let mut pair = [vec![0.0; size], vec![0.0; size]];
                for (draw, row) in (0..).zip(&mut pair) {
                    picture.render(plan, 0, DrawKey { seed, epoch: u64::MAX - draw, sample: i as u64, view: 0 }, row)?;
                }
                Ok(Some(pair))
            })
            .collect::<Result<_>>()?;
        let read: Vec<[Vec<f32>; 2]> = made.into_iter().flatten().collect();
        for (draw, table) in tables.iter_mut().enumerate().filter(|_| !read.is_empty()) {
            let views: Vec<f32> = read.iter().flat_map(|pair| &pair[draw]).copied().collect();
            let x = Tensor::from_vec(views, (read.len(), plan.channels, side, side), device)?;
            let pooled = encoder.forward(&x, &Mode::EVAL)?.pooled.to_dtype(DType::F32)?;
            table.extend(pooled.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    let rows = tables[0].len() / features.dim.max(1);
    let table = |data| Matrix { data, rows, dim: features.dim };
    Ok((rows > 0).then(|| health::alignment(table(&tables[0]), table(&tables[1]))).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_augment::SimclrViews;
    use twinsight_datasets::PackedImages;
    use twinsight_encoders::{EncoderConfig, encoder};
    use twinsight_nn::Builder;

    #[test]
    fn features_are_judged_without_labels_and_the_same_each_time() -> anyhow::Result<()> {
        let config = EncoderConfig { channels: 1, image_size: 16, ..EncoderConfig::default() };
        let network = (encoder("resnet_mini")?.build)(&config, &Builder::new(3, &Device::Cpu))?;
        let pixels = (0..40 * 256).map(|p: u32| (p.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let images = PackedImages::new("x", pixels, (16, 16, 1), None, Vec::new())?;
        let features = crate::evaluate::encode(&images, &*network, &ViewPlan::eval(16, 1), 16, &Device::Cpu)?;
        let plan = ViewPlan::simclr(16, 1, &SimclrViews::small());
        let found = Spread::of(&features, &images, &*network, &plan, 0, &Device::Cpu)?;
        assert_eq!(found.images, 40);
        assert!((1.0..=40.0).contains(&found.effective_rank) && found.uniformity.is_some_and(|u| u < 0.0), "{found:?}");
        assert!(found.alignment.is_some_and(|a| a > 0.0 && a < 2.0), "{found:?}");
        assert_eq!(Spread::of(&features, &images, &*network, &plan, 0, &Device::Cpu)?, found);
        Ok(())
    }
}
