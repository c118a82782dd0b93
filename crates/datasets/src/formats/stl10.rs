//! STL-10 in its binary form: 96 × 96 images as red, green and blue planes whose columns lie one after the other; labels from 1.
//!
//! The distributed archive, or the folder that it unpacks to. The 100,000 unlabelled images (2.8 GB) are read from their file, or
//! copied from the archive into one once (`copies.rs`), and never all in memory.

use std::io::{Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;

use super::archive;
use crate::copies::copied;
use crate::place::OpenFile;
use crate::{Error, PackedFile, PackedImages, Result};

const SIDE: usize = 96;
const IMAGE: usize = 3 * SIDE * SIDE;
/// The classes, in the order of the labels.
pub(crate) const CLASSES: [&str; 10] = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];
/// More than the largest file that is read into memory (8,000 test images).
const MOST: u64 = 300_000_000;
/// The file of images without labels.
const UNLABELLED: &str = "unlabeled_X.bin";

/// Training images with their labels, and test images.
///
/// # Errors
/// Files that are missing or damaged.
pub(crate) fn labelled(path: &Path) -> Result<(PackedImages, PackedImages)> {
    let names = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"];
    let found = archive::contents(path, &names.map(String::from), MOST)?;
    let mut found = names.iter().zip(found).map(|(n, raw)| raw.ok_or_else(|| Error::bad(path, format!("{n} is missing in it"))));
    let mut next = || found.next().unwrap_or_else(|| Err(Error::bad(path, "is empty")));
    let mut split = || Ok::<_, Error>((next()?, next()?));
    let (train, test) = (split()?, split()?);
    Ok((pack(path, &train)?, pack(path, &test)?))
}

/// The images without labels.
///
/// # Errors
/// Files that are missing or damaged; a copy that can't be written.
pub(crate) fn unlabelled(path: &Path, cache: &Path) -> Result<PackedFile> {
    let file = match path.is_dir() {
        true => OpenFile::open(&path.join(UNLABELLED))?,
        false => copied(path, cache, "stl10", None, &mut |out| copy_unlabelled(path, out).map(|()| true))?,
    };
    let count = file.length()? / IMAGE as u64;
    PackedFile::new("stl10-unlabelled", file, 0, count as usize, (SIDE as u32, SIDE as u32, 3), true)
}

fn copy_unlabelled(path: &Path, out: &mut impl Write) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let damaged = |e: std::io::Error| Error::bad(path, format!("damaged archive: {e}"));
    let mut archive = tar::Archive::new(GzDecoder::new(std::io::BufReader::new(file)));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.path().is_ok_and(|p| p.file_name().is_some_and(|n| n == UNLABELLED)) {
            continue;
        }
        let mut raw = vec![0; IMAGE];
        for _ in 0..entry.size() / IMAGE as u64 {
            entry.read_exact(&mut raw).map_err(damaged)?;
            out.write_all(&raw).map_err(Error::io(path))?;
        }
        return Ok(());
    }
    Err(Error::bad(path, format!("{UNLABELLED} is missing in it")))
}

fn pack(path: &Path, (images, labels): &(Vec<u8>, Vec<u8>)) -> Result<PackedImages> {
    if images.len() != labels.len() * IMAGE {
        let reason = format!("{} bytes of images and {} labels, expected {IMAGE} bytes a label", images.len(), labels.len());
        return Err(Error::bad(path, reason));
    }
    if let Some(label) = labels.iter().find(|l| !(1..=10).contains(*l)) {
        return Err(Error::bad(path, format!("holds label {label}, expected 1 to 10")));
    }
    let mut pixels = vec![0; images.len()];
    for (raw, out) in images.chunks_exact(IMAGE).zip(pixels.chunks_exact_mut(IMAGE)) {
        upright(raw, SIDE, SIDE, 3, out);
    }
    let labels = labels.iter().map(|&l| u32::from(l) - 1).collect();
    PackedImages::new("stl10", pixels, (SIDE as u32, SIDE as u32, 3), Some(labels), CLASSES.map(String::from).to_vec())
}

/// From planes of columns to rows of interleaved pixels.
pub(crate) fn upright(raw: &[u8], width: usize, height: usize, channels: usize, out: &mut [u8]) {
    for y in 0..height {
        for x in 0..width {
            for c in 0..channels {
                out[(y * width + x) * channels + c] = raw[(c * width + x) * height + y];
            }
        }
    }
}
