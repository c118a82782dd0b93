//! `fashion-mnist-mini`: the first 10,000 training and 2,000 test images of Fashion-MNIST (Xiao et al. 2017, MIT licence, Zalando
//! SE), embedded: an atlas of 120 × 100 tiles as PNG, and one byte a label. `examples/pack_fashion_mnist.rs` makes both from the
//! IDX files.

use std::sync::{Arc, LazyLock};

use crate::registry::FASHION_CLASSES;
use crate::{Error, PackedImages, Result};

/// Training and test images in the embedded files.
const TRAIN: usize = 10_000;
const TEST: usize = 2_000;
const SIDE: usize = 28;
const COLUMNS: usize = 120;
static ATLAS: &[u8] = include_bytes!("../data/fashion-mnist-mini.png");
static LABELS: &[u8] = include_bytes!("../data/fashion-mnist-mini.labels");

type Both = (Arc<PackedImages>, Arc<PackedImages>);

/// Training and test images, decoded at the first call and shared by all.
///
/// # Errors
/// Never in a library that was built from whole files.
pub(crate) fn open() -> Result<Both> {
    static DECODED: LazyLock<Result<Both, String>> = LazyLock::new(|| decode().map_err(|e| e.to_string()));
    DECODED.clone().map_err(|reason| Error::bad("fashion-mnist-mini (embedded)", reason))
}

fn decode() -> Result<Both> {
    let damaged = |reason: String| Error::bad("fashion-mnist-mini (embedded)", reason);
    let atlas =
        image::load_from_memory_with_format(ATLAS, image::ImageFormat::Png).map_err(|e| damaged(e.to_string()))?.to_luma8();
    let width = atlas.width() as usize;
    if width != COLUMNS * SIDE || atlas.height() as usize * COLUMNS != (TRAIN + TEST) * SIDE || LABELS.len() != TRAIN + TEST {
        return Err(damaged(format!("the atlas is {} × {} pixels for {} labels", width, atlas.height(), LABELS.len())));
    }
    let mut pixels = Vec::with_capacity((TRAIN + TEST) * SIDE * SIDE);
    for tile in 0..TRAIN + TEST {
        let (row, column) = (tile / COLUMNS, tile % COLUMNS);
        for y in 0..SIDE {
            let start = (row * SIDE + y) * width + column * SIDE;
            pixels.extend_from_slice(&atlas.as_raw()[start..start + SIDE]);
        }
    }
    let test = pixels.split_off(TRAIN * SIDE * SIDE);
    let make = |pixels: Vec<u8>, labels: &[u8]| {
        let labels = labels.iter().map(|&l| u32::from(l)).collect();
        let classes = FASHION_CLASSES.iter().map(ToString::to_string).collect();
        PackedImages::new("fashion-mnist-mini", pixels, (SIDE as u32, SIDE as u32, 1), Some(labels), classes).map(Arc::new)
    };
    Ok((make(pixels, &LABELS[..TRAIN])?, make(test, &LABELS[TRAIN..])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_embedded_images_are_the_originals() -> Result<()> {
        let (train, test) = open()?;
        assert_eq!((train.len(), test.len()), (TRAIN, TEST));
        let mut hash = Sha256::new();
        for part in [&train, &test] {
            hash.update(part.pixels());
            hash.update(part.labels().into_iter().flatten().map(|&l| l as u8).collect::<Vec<u8>>());
        }
        // Computed from the distributed IDX files by examples/pack_fashion_mnist.rs.
        let want = include_str!("../data/fashion-mnist-mini.sha256").trim();
        assert_eq!(format!("{:x}", hash.finalize()), want);
        assert_eq!(train.label(0), Some(9), "the first training image is an ankle boot");
        Ok(())
    }
}
