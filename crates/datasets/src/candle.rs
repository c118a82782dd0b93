//! candle-datasets beside our own readers: its loaders where they are right, and an adapter for what it returns.
//!
//! Right are its MNIST reader (unzipped IDX files under MNIST's names) and its CIFAR-10 binary reader (files of exactly
//! 10,000 records). Its CIFAR Parquet loader transposes height and width, so it is not offered.

use std::path::Path;

use candle_core::{DType, Tensor};
use candle_datasets::vision::Dataset as Vision;

use crate::formats::cifar::CLASSES_10;
use crate::{Error, PackedImages, Result};

/// The training and test images of a folder of unzipped MNIST files, read by candle-datasets.
///
/// # Errors
/// What candle-datasets says, with the folder.
pub fn mnist(folder: &Path) -> Result<(PackedImages, PackedImages)> {
    let found = candle_datasets::vision::mnist::load_dir(folder).map_err(|e| Error::bad(folder, e.to_string()))?;
    adapt("mnist", &found, (28, 28, 1), (0..10).map(|i| i.to_string()).collect())
}

/// The training and test images of a folder of CIFAR-10 binaries, read by candle-datasets.
///
/// # Errors
/// What candle-datasets says, with the folder.
pub fn cifar10(folder: &Path) -> Result<(PackedImages, PackedImages)> {
    let found = candle_datasets::vision::cifar::load_dir(folder).map_err(|e| Error::bad(folder, e.to_string()))?;
    adapt("cifar10", &found, (32, 32, 3), CLASSES_10.map(String::from).to_vec())
}

/// Turns candle-datasets' tensors, (N, C·H·W) or (N, C, H, W) of values in 0..1, back into images.
///
/// # Errors
/// Tensors of other sizes than `width` × `height` × `channels`.
pub fn adapt(
    name: &str,
    found: &Vision,
    (width, height, channels): (u32, u32, usize),
    classes: Vec<String>,
) -> Result<(PackedImages, PackedImages)> {
    let wrong = |e: candle_core::Error| Error::bad(name, e.to_string());
    let pack = |images: &Tensor, labels: &Tensor| -> Result<PackedImages> {
        let n = images.dim(0).map_err(wrong)?;
        let pixels = images
            .reshape((n, channels, height as usize, width as usize))
            .and_then(|t| t.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<f32>())
            .map_err(wrong)?;
        let pixels = pixels.into_iter().map(|v| (v * 255.0).round() as u8).collect();
        let labels = labels.to_dtype(DType::U32).and_then(|l| l.flatten_all()?.to_vec1::<u32>()).map_err(wrong)?;
        PackedImages::new(name, pixels, (width, height, channels), Some(labels), classes.clone())
    };
    Ok((pack(&found.train_images, &found.train_labels)?, pack(&found.test_images, &found.test_labels)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;
    use crate::formats::{cifar, idx};

    #[test]
    fn its_mnist_reader_agrees_with_ours() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        for (split, count) in [("train", 5_u32), ("t10k", 3)] {
            let mut images = vec![0, 0, 8, 3];
            [count, 28, 28].iter().for_each(|d| images.extend(d.to_be_bytes()));
            images.extend((0..count * 784).map(|i| (i * 37 % 251) as u8));
            let mut labels = vec![0, 0, 8, 1];
            labels.extend(count.to_be_bytes());
            labels.extend((0..count).map(|i| (i % 10) as u8));
            std::fs::write(dir.path().join(format!("{split}-images-idx3-ubyte")), images)?;
            std::fs::write(dir.path().join(format!("{split}-labels-idx1-ubyte")), labels)?;
        }
        let (train, test) = mnist(dir.path())?;
        for (split, theirs) in [("train", train), ("t10k", test)] {
            let file = |kind: &str| dir.path().join(format!("{split}-{kind}-ubyte"));
            let classes = (0..10).map(|i| i.to_string()).collect();
            let ours = idx::dataset("mnist", &file("images-idx3"), Some(&file("labels-idx1")), classes)?;
            assert_eq!((ours.pixels(), ours.labels()), (theirs.pixels(), theirs.labels()));
        }
        Ok(())
    }

    #[test]
    fn its_cifar_reader_agrees_with_ours() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        for i in 0..6_usize {
            let name = if i < 5 { format!("data_batch_{}.bin", i + 1) } else { "test_batch.bin".into() };
            let raw: Vec<u8> = (0..10_000 * 3073_usize)
                .map(|j| if j % 3073 == 0 { ((j / 3073 + i) % 10) as u8 } else { (j * 31 + i * 7) as u8 })
                .collect();
            std::fs::write(dir.path().join(name), raw)?;
        }
        let (train, test) = cifar10(dir.path())?;
        for (is_train, theirs) in [(true, train), (false, test)] {
            let ours = cifar::read(dir.path(), cifar::Kind::Ten, is_train)?;
            assert_eq!(ours.len(), theirs.len());
            assert!(ours.pixels() == theirs.pixels() && ours.labels() == theirs.labels());
        }
        Ok(())
    }
}
