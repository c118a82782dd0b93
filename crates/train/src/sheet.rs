//! Pictures of rows of images, the image itself first: the views that a plan makes of it, or those that an encoder finds like it.

use image::{DynamicImage, RgbImage, imageops};
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;

use crate::Result;
use crate::evaluate::Features;
use crate::picture::Picture;

/// How the sheet is laid out.
#[derive(Debug, Clone, Copy)]
pub struct SheetLayout {
    /// How often each image's set of views is drawn anew.
    pub draws: usize,
    /// Smallest side of a tile in pixels; smaller views are enlarged by whole factors.
    pub min_tile: u32,
}

impl Default for SheetLayout {
    fn default() -> Self {
        Self { draws: 2, min_tile: 64 }
    }
}

/// Draws the views of the images `samples`. Local crops keep their size relative to the global ones. The row of an image that can't be read
/// stays white.
///
/// # Errors
/// Images none of which can be read, a plan that does not fit.
pub fn view_sheet(dataset: &dyn Dataset, samples: &[usize], plan: &ViewPlan, seed: u64, layout: SheetLayout) -> Result<RgbImage> {
    plan.check()?;
    const GAP: u32 = 4;
    let largest = (0..plan.view_count()).map(|v| plan.view(v).size).max().unwrap_or(1) as u32;
    let scale = layout.min_tile.div_ceil(largest).max(1);
    let tile = largest * scale;
    let columns = 1 + (plan.view_count() * layout.draws) as u32;
    let step = tile + GAP;
    let mut sheet = RgbImage::from_pixel(columns * step + GAP, samples.len() as u32 * step + GAP, image::Rgb([255; 3]));
    let mut unread = None;
    let mut drawn = 0;
    for (row, &sample) in samples.iter().enumerate() {
        let picture = match Picture::load(dataset, sample) {
            Ok(picture) => picture,
            Err(e) => {
                unread.get_or_insert(e);
                continue;
            }
        };
        drawn += 1;
        let image = picture.preview();
        let y = GAP + row as u32 * step;
        let longest = image.width().max(image.height()).max(1);
        let filter = if longest < tile { imageops::FilterType::Nearest } else { imageops::FilterType::Triangle };
        let original = image.resize(tile, tile, filter);
        place(&mut sheet, &original, GAP, y, tile);
        for draw in 0..layout.draws {
            for view in 0..plan.view_count() {
                let key = DrawKey { seed, epoch: draw as u64, sample: sample as u64, view: view as u64 };
                let made = picture.view(plan, view, key)?;
                let side = plan.view(view).size as u32 * scale;
                let made = made.resize_exact(side, side, imageops::FilterType::Nearest);
                let column = 1 + (draw * plan.view_count() + view) as u32;
                place(&mut sheet, &made, GAP + column * step, y, tile);
            }
        }
    }
    match unread {
        Some(e) if drawn == 0 => Err(e.into()),
        _ => Ok(sheet),
    }
}

/// Draws images with those whose features are most similar to theirs: a row for each of `queries` images spread over the rows, itself first,
/// then its `k` nearest. Images that can't be read any more stay white.
///
/// # Errors
/// Fewer than k + 1 rows, features that are not finite.
pub fn neighbour_sheet(dataset: &dyn Dataset, features: &Features, queries: usize, k: usize) -> Result<RgbImage> {
    const TILE: u32 = 48;
    let rows = features.index.len();
    let found = twinsight_knn::search(features.matrix(), features.matrix(), k, twinsight_knn::Metric::Cosine, true)?;
    let queries = queries.min(rows);
    let mut sheet = RgbImage::from_pixel((k as u32 + 1) * TILE, queries as u32 * TILE, image::Rgb([255; 3]));
    for (y, q) in (0..queries).map(|i| i * rows / queries).enumerate() {
        let line = std::iter::once(q).chain(found.row(q).0.iter().map(|&n| n as usize));
        for (x, row) in line.enumerate() {
            if let Ok(sample) = dataset.get(features.index[row]) {
                let longest = sample.image.width().max(sample.image.height());
                let filter = if longest < TILE { imageops::FilterType::Nearest } else { imageops::FilterType::Triangle };
                let small = sample.image.resize(TILE - 2, TILE - 2, filter);
                place(&mut sheet, &small, x as u32 * TILE, y as u32 * TILE, TILE);
            }
        }
    }
    Ok(sheet)
}

/// Puts `image` into the middle of the tile at (x, y).
fn place(sheet: &mut RgbImage, image: &DynamicImage, x: u32, y: u32, tile: u32) {
    let dx = (tile.saturating_sub(image.width())) / 2;
    let dy = (tile.saturating_sub(image.height())) / 2;
    imageops::overlay(sheet, &image.to_rgb8(), i64::from(x + dx), i64::from(y + dy));
}
