//! Makes the embedded files of `fashion-mnist-mini` from Fashion-MNIST's four IDX files.
//!
//! `cargo run -p twinsight-datasets --example pack_fashion_mnist -- IDX_FOLDER OUT_FOLDER`

use std::path::Path;

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use sha2::{Digest, Sha256};
use twinsight_datasets::formats::idx;

const SIDE: usize = 28;
const COLUMNS: usize = 120;

fn main() -> anyhow::Result<()> {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = folders.as_slice() else { anyhow::bail!("usage: pack_fashion_mnist IDX_FOLDER OUT_FOLDER") };
    let (mut pixels, mut labels, mut hash) = (Vec::new(), Vec::new(), Sha256::new());
    for (split, count) in [("train", 10_000), ("t10k", 2_000)] {
        let images = idx::read(&Path::new(from).join(format!("{split}-images-idx3-ubyte.gz")))?;
        let found = idx::read(&Path::new(from).join(format!("{split}-labels-idx1-ubyte.gz")))?;
        anyhow::ensure!(images.dims[1..] == [SIDE, SIDE] && images.dims[0] >= count, "unexpected sizes {:?}", images.dims);
        hash.update(&images.data[..count * SIDE * SIDE]);
        hash.update(&found.data[..count]);
        pixels.extend_from_slice(&images.data[..count * SIDE * SIDE]);
        labels.extend_from_slice(&found.data[..count]);
    }
    let (width, height) = (COLUMNS * SIDE, labels.len() / COLUMNS * SIDE);
    let mut atlas = vec![0; width * height];
    for (tile, image) in pixels.chunks_exact(SIDE * SIDE).enumerate() {
        for (y, row) in image.chunks_exact(SIDE).enumerate() {
            let start = (tile / COLUMNS * SIDE + y) * width + tile % COLUMNS * SIDE;
            atlas[start..start + SIDE].copy_from_slice(row);
        }
    }
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive).write_image(
        &atlas,
        width as u32,
        height as u32,
        image::ExtendedColorType::L8,
    )?;
    let to = Path::new(to);
    std::fs::write(to.join("fashion-mnist-mini.png"), &png)?;
    std::fs::write(to.join("fashion-mnist-mini.labels"), &labels)?;
    std::fs::write(to.join("fashion-mnist-mini.sha256"), format!("{:x}\n", hash.finalize()))?;
    println!("{} images in {} bytes", labels.len(), png.len());
    Ok(())
}
