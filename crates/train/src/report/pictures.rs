//! Small pictures of images: one sheet of thumbnails that the page and TensorBoard's projector share.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::imageops::{self, FilterType};
use image::{DynamicImage, RgbImage};
use rayon::prelude::*;
use twinsight_datasets::Dataset;

use crate::{Error, Result};

/// A sheet of square thumbnails, row by row.
pub(super) struct Sheet {
    /// PNG.
    pub png: Vec<u8>,
    /// Side of a thumbnail in pixels.
    pub side: u32,
    /// Thumbnails a row.
    pub columns: u32,
}

/// Side of a thumbnail.
const SIDE: u32 = 40;

/// The thumbnails of the images `index`. An image that can't be read any more stays black.
///
/// # Errors
/// A sheet that can't be encoded.
pub(super) fn sheet(dataset: &dyn Dataset, index: &[usize]) -> Result<Sheet> {
    let columns = (index.len() as f64).sqrt().ceil().max(1.0) as u32;
    let rows = (index.len() as u32).div_ceil(columns).max(1);
    let small: Vec<Option<RgbImage>> = index.par_iter().map(|&i| Some(small(&dataset.get(i).ok()?.image))).collect();
    let mut all = RgbImage::new(columns * SIDE, rows * SIDE);
    for (i, image) in (0..).zip(&small) {
        if let Some(image) = image {
            let (dx, dy) = ((SIDE - image.width()) / 2, (SIDE - image.height()) / 2);
            imageops::replace(&mut all, image, i64::from(i % columns * SIDE + dx), i64::from(i / columns * SIDE + dy));
        }
    }
    Ok(Sheet { png: png(&DynamicImage::ImageRgb8(all))?, side: SIDE, columns })
}

fn small(image: &DynamicImage) -> RgbImage {
    let filter = if image.width().max(image.height()) < SIDE { FilterType::Nearest } else { FilterType::Triangle };
    image.resize(SIDE, SIDE, filter).to_rgb8()
}

/// `image` as PNG.
pub(super) fn png(image: &DynamicImage) -> Result<Vec<u8>> {
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).map_err(|e| Error::Config(format!("report: a picture: {e}")))?;
    Ok(png.into_inner())
}

/// A PNG as a page embeds it.
pub(super) fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64.encode(png))
}
