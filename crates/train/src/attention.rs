//! Pictures of what a vision transformer looks at: the attention of its last block, head by head, over the image, and the main
//! directions of its patches' tokens as colours.

use candle_core::{Device, Tensor};
use image::imageops::{FilterType, replace, resize};
use image::{ImageBuffer, Luma, Rgb, RgbImage};
use nalgebra::{DMatrix, SymmetricEigen};
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_encoders::Encoder;
use twinsight_nn::Mode;

use crate::picture::Picture;
use crate::{Error, Result, Trained};

/// Pictures of one image, all of one size.
#[derive(Debug, Clone)]
pub struct AttentionMaps {
    /// The image as the encoder sees it.
    pub image: RgbImage,
    /// For each head, how much the class token looks at each place, laid over the image.
    pub heads: Vec<RgbImage>,
    /// The mean of the heads, likewise.
    pub mean: RgbImage,
    /// The first three principal components of the patches' tokens as red, green and blue (Oquab et al. 2024, DINOv2).
    pub components: RgbImage,
}

/// The largest side that is looked at.
const MOST_PIXELS: usize = 4096;

/// Looks at image number `index` of `dataset` at `side` pixels (`None`: the encoder's own), which patches must divide.
///
/// # Errors
/// An encoder without attention, an image that can't be read, a side that patches do not divide.
pub fn attention_maps(trained: &Trained, dataset: &dyn Dataset, index: usize, side: Option<usize>) -> Result<AttentionMaps> {
    let side = side.unwrap_or(trained.plan.view(0).size);
    if !(1..=MOST_PIXELS).contains(&side) {
        return Err(Error::Config(format!("a side of {side} pixels: expected 1 to {MOST_PIXELS}, a multiple of the patches'")));
    }
    let plan = ViewPlan { normalize: trained.plan.normalize.clone(), ..ViewPlan::eval(side, trained.plan.channels) };
    plan.check()?;
    let no_patches = || Error::Config("attention maps need a vision transformer; this encoder has no attention".into());
    maps(&*trained.encoder, &plan, dataset, index, trained.device())?.ok_or_else(no_patches)
}

/// Images in rows: the image, the mean attention of the last block's heads over it, then each head's. Images that can't be read are passed
/// over; `None` for encoders without attention. `device`: where the encoder's parameters are.
///
/// # Errors
/// A failing forward pass.
pub fn attention_sheet(
    encoder: &dyn Encoder,
    plan: &ViewPlan,
    dataset: &dyn Dataset,
    samples: &[usize],
    device: &Device,
) -> Result<Option<RgbImage>> {
    const GAP: u32 = 4;
    let mut rows = Vec::new();
    for &sample in samples.iter().filter(|&&s| dataset.get(s).is_ok()) {
        let Some(found) = maps(encoder, plan, dataset, sample, device)? else { return Ok(None) };
        let pictures = [found.image, found.mean].into_iter().chain(found.heads);
        rows.push(pictures.map(|p| resize(&p, TILE, TILE, FilterType::Triangle)).collect::<Vec<_>>());
    }
    let Some(columns) = rows.first().map(Vec::len) else { return Ok(None) };
    let [width, height] = [columns, rows.len()].map(|count| GAP + count as u32 * (TILE + GAP));
    let mut sheet = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    for (y, row) in rows.iter().enumerate() {
        for (x, picture) in row.iter().enumerate() {
            let [x, y] = [x, y].map(|place| i64::from(GAP + place as u32 * (TILE + GAP)));
            replace(&mut sheet, picture, x, y);
        }
    }
    Ok(Some(sheet))
}

/// Side of a picture on the sheet.
const TILE: u32 = 128;

fn maps(
    encoder: &dyn Encoder,
    plan: &ViewPlan,
    dataset: &dyn Dataset,
    index: usize,
    device: &Device,
) -> Result<Option<AttentionMaps>> {
    let side = plan.view(0).size;
    let sample = Picture::load(dataset, index)?;
    let mut values = vec![0.0; plan.channels * side * side];
    sample.render(plan, 0, DrawKey { seed: 0, epoch: 0, sample: index as u64, view: 0 }, &mut values)?;
    let picture = picture(&values, plan, side);
    let x = Tensor::from_vec(values, (1, plan.channels, side, side), device)?;
    let Some(weights) = encoder.attention(&x)? else { return Ok(None) };
    let weights = weights.squeeze(0)?.to_vec2::<f32>()?;
    let Some(tokens) = encoder.forward(&x, &Mode::EVAL)?.tokens else { return Ok(None) };
    let tokens = tokens.narrow(1, 1, tokens.dim(1)? - 1)?.squeeze(0)?.to_vec2::<f32>()?;
    let grid = tokens.len().isqrt() as u32;
    // Small images are drawn larger, so that there is something to see.
    let shown = side as u32 * 256_u32.div_ceil(side as u32).max(1);
    let image = resize(&picture, shown, shown, FilterType::Nearest);
    let count = weights.len() as f32;
    let mean: Vec<f32> = (0..tokens.len()).map(|i| weights.iter().map(|head| head[i]).sum::<f32>() / count).collect();
    Ok(Some(AttentionMaps {
        heads: weights.iter().map(|head| overlay(&image, head, grid)).collect(),
        mean: overlay(&image, &mean, grid),
        components: colours(&tokens, grid, shown),
        image,
    }))
}

/// The image with its normalisation undone.
pub(crate) fn picture(values: &[f32], plan: &ViewPlan, side: usize) -> RgbImage {
    let area = side * side;
    let at = |c: usize, i: usize| {
        let c = c.min(plan.channels - 1);
        let value = values[c * area + i] * plan.normalize.std[c] + plan.normalize.mean[c];
        (value * 255.0).round().clamp(0.0, 255.0) as u8
    };
    // One or two channels are shown as gray.
    let channel = |c: usize| if plan.channels < 3 { 0 } else { c };
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let i = y as usize * side + x as usize;
        Rgb([at(channel(0), i), at(channel(1), i), at(channel(2), i)])
    })
}

/// Weights of patches over an image: dark where they are low, through red to yellow where they are highest.
fn overlay(image: &RgbImage, weights: &[f32], grid: u32) -> RgbImage {
    let most = weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let map = ImageBuffer::from_fn(grid, grid, |x, y| Luma([weights[(y * grid + x) as usize] / most]));
    let map = resize(&map, image.width(), image.height(), FilterType::Triangle);
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let heat = map.get_pixel(x, y).0[0].clamp(0.0, 1.0);
        let colour = [255.0 * (2.0 * heat).min(1.0), 255.0 * (2.0 * heat - 1.0).max(0.0), 0.0];
        let pixel = image.get_pixel(x, y).0;
        Rgb(std::array::from_fn(|c| (0.45 * f32::from(pixel[c]) + 0.55 * colour[c]).round() as u8))
    })
}

/// The first three principal components of rows, each from its lowest to its highest value.
fn colours(tokens: &[Vec<f32>], grid: u32, side: u32) -> RgbImage {
    let components = principal_components(tokens, 3);
    let scaled: Vec<Vec<u8>> = components
        .iter()
        .map(|values| {
            let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
            values.iter().map(|v| ((v - low) / (high - low).max(f64::MIN_POSITIVE) * 255.0).round() as u8).collect()
        })
        .collect();
    let at = |c: usize, i: usize| scaled.get(c).map_or(0, |values| values[i]);
    let map = RgbImage::from_fn(grid, grid, |x, y| {
        let i = (y * grid + x) as usize;
        Rgb([at(0, i), at(1, i), at(2, i)])
    });
    resize(&map, side, side, FilterType::Nearest)
}

/// Each row's coordinate along the first `count` directions of largest variance. The sign of a direction, which the data leave open,
/// is the one that makes the coordinate largest in size positive.
///
/// Of the rows' products with each other and the columns', which have the same eigenvalues, the smaller table is decomposed: its side
/// is at most the length of a row, however many rows there are.
fn principal_components(rows: &[Vec<f32>], count: usize) -> Vec<Vec<f64>> {
    let (n, dim) = (rows.len(), rows.first().map_or(0, Vec::len));
    let mut x = DMatrix::from_fn(n, dim, |i, j| f64::from(rows[i][j]));
    for mut column in x.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    let few_rows = n <= dim;
    let eigen = SymmetricEigen::new(if few_rows { &x * x.transpose() } else { x.transpose() * &x });
    let mut order: Vec<usize> = (0..n.min(dim)).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    order
        .into_iter()
        .take(count)
        .map(|k| {
            let direction = eigen.eigenvectors.column(k);
            let values: Vec<f64> = match few_rows {
                true => direction.iter().map(|v| v * eigen.eigenvalues[k].max(0.0).sqrt()).collect(),
                false => (&x * direction).iter().copied().collect(),
            };
            let largest = values.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(1.0);
            values.into_iter().map(|v| if largest < 0.0 { -v } else { v }).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_the_directions_of_most_variance() {
        // Points along (3, 4) / 5 with a little across.
        let rows: Vec<Vec<f32>> = [(-2.0, 0.1), (-1.0, -0.1), (0.0, 0.0), (3.0, 0.0)]
            .iter()
            .map(|&(a, b): &(f32, f32)| vec![0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b])
            .collect();
        let found = principal_components(&rows, 3);
        for (got, want) in found[0].iter().zip([-2.0, -1.0, 0.0, 3.0]) {
            assert!((got - want).abs() < 0.05, "{got} against {want}");
        }
        assert!(found[1].iter().all(|v| v.abs() < 0.15) && found.len() == 2);
        // The same with more columns than rows, those added without variance, goes by the other table.
        let wide: Vec<Vec<f32>> = rows.iter().map(|row| [&row[..], &[1.0; 4]].concat()).collect();
        let again = principal_components(&wide, 3);
        for (got, want) in again[0].iter().chain(&again[1]).zip(found[0].iter().chain(&found[1])) {
            assert!((got - want).abs() < 1e-6, "{got} against {want}");
        }
        assert!(again[2].iter().all(|v| v.abs() < 1e-6));
    }

    #[test]
    fn the_place_looked_at_is_the_brightest() {
        let image = RgbImage::from_pixel(64, 64, Rgb([100, 100, 100]));
        let picture = overlay(&image, &[0.0, 0.0, 0.9, 0.0], 2);
        assert_eq!(picture.get_pixel(2, 61).0, [185, 185, 45]);
        assert_eq!(picture.get_pixel(61, 2).0, [45, 45, 45]);
    }
}
