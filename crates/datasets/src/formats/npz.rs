//! numpy's `.npz`: MedMNIST's 2-D sets (`train_images`, `train_labels`, `val_…`, `test_…`) and others of the same form (`x_train`, `y_train`).
//!
//! Images are `uint8`, N × height × width or N × height × width × 3; labels are whole numbers, N or N × 1. Sets with several labels an
//! image (N × k) are taken as not labelled.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use npyz::{NpyFile, Order};
use zip::ZipArchive;

use crate::{Error, PackedImages, Result};

/// Largest array that is read.
const MOST: u64 = 1 << 32;

/// A name by which arrays are known in one of the known forms, by split.
const NAMES: [(&str, [(&str, &str); 3]); 2] = [
    ("train_images", [("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels")]),
    ("x_train", [("x_train", "y_train"), ("x_val", "y_val"), ("x_test", "y_test")]),
];

/// The splits of an npz file.
pub(crate) struct Splits {
    /// Training images.
    pub(crate) train: PackedImages,
    /// Test images, or where there are none validation images.
    pub(crate) test: Option<PackedImages>,
    /// How labels were understood.
    pub(crate) understood: String,
}

/// Reads a file; `classes` are the names of the classes where they are known.
///
/// # Errors
/// A file that is no zip archive of arrays, arrays of other names, types or shapes than those above.
pub(crate) fn read(path: &Path, classes: &[&str]) -> Result<Splits> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut zip = ZipArchive::new(file).map_err(|e| Error::bad(path, format!("no npz file: {e}")))?;
    let names: Vec<String> = zip.file_names().flatten().map(|n| n.trim_end_matches(".npy").to_string()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let Some((_, splits)) = NAMES.iter().find(|(first, _)| has(first)) else {
        let reason = format!("expected arrays train_images or x_train, found {}", names.join(", "));
        return Err(Error::bad(path, reason));
    };
    let [train, val, test] = splits;
    let train_images = images(&mut zip, train.0, path)?;
    let held = [test, val].into_iter().find(|(images, _)| has(images));
    let test_images = held.map(|(name, _)| images(&mut zip, name, path)).transpose()?;
    let mut read_labels = |name: &str| if has(name) { labels(&mut zip, name, path) } else { Ok(Err("there are none".into())) };
    let train_labels = read_labels(train.1)?;
    let test_labels = held.map(|(_, name)| read_labels(name)).transpose()?;
    let most = [Some(&train_labels), test_labels.as_ref()].into_iter().flatten().flatten().flatten().max();
    let count = most.map_or(0, |&m| m as usize + 1).max(classes.len());
    let names: Vec<String> = (0..count).map(|i| classes.get(i).map_or_else(|| i.to_string(), ToString::to_string)).collect();
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let understood = match &train_labels {
        Ok(_) => format!("labels come with the data set: {count} classes"),
        Err(why) => format!("no labels: {why}"),
    };
    let pack = |(pixels, shape): (Vec<u8>, (u32, u32, usize)), labels: Option<Vec<u32>>| {
        PackedImages::new(name.clone(), pixels, shape, labels, names.clone())
    };
    let labelled = train_labels.is_ok();
    let test = test_images.map(|i| pack(i, test_labels.and_then(std::result::Result::ok).filter(|_| labelled))).transpose()?;
    Ok(Splits { train: pack(train_images, train_labels.ok())?, test, understood })
}

/// Pixels, and width, height and channels.
fn images(zip: &mut Zip, name: &str, path: &Path) -> Result<(Vec<u8>, (u32, u32, usize))> {
    let bad = |reason: String| Error::bad(path, format!("{name}: {reason}"));
    let (array, size) = member(zip, name, path)?;
    let shape = array.shape().to_vec();
    let (height, width, channels) = match shape[..] {
        [_, h, w] => (h, w, 1),
        [_, h, w, c @ (1 | 3)] => (h, w, c),
        _ => return Err(bad(format!("has axes {shape:?}, expected images × height × width, or these × 3"))),
    };
    let kind = array.dtype().descr();
    if !kind.contains("|u1") || array.order() != Order::C {
        return Err(bad(format!("is of type {kind}, expected uint8 in C order")));
    }
    let count = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= MOST && n <= size);
    let count = count.ok_or_else(|| bad(format!("has axes {shape:?} and {size} bytes, at most {MOST} are read")))?;
    let mut pixels = Vec::with_capacity(count as usize);
    let mut data = array.into_inner().take(count);
    data.read_to_end(&mut pixels).map_err(|e| bad(e.to_string()))?;
    if pixels.len() as u64 != count {
        return Err(bad(format!("breaks off after {} of {count} bytes", pixels.len())));
    }
    let side = |n: u64| u32::try_from(n).map_err(|_| bad(format!("has axes {shape:?}")));
    Ok((pixels, (side(width)?, side(height)?, channels as usize)))
}

/// Labels, or why there are none.
fn labels(zip: &mut Zip, name: &str, path: &Path) -> Result<std::result::Result<Vec<u32>, String>> {
    let bad = |reason: String| Error::bad(path, format!("{name}: {reason}"));
    let (array, size) = member(zip, name, path)?;
    match array.shape() {
        [_] | [_, 1] => {}
        [_, k] => return Ok(Err(format!("every image has {k}"))),
        shape => return Err(bad(format!("has axes {shape:?}, expected one number an image"))),
    }
    if array.shape().iter().product::<u64>() > size {
        return Err(bad(format!("has axes {:?} and {size} bytes", array.shape())));
    }
    let kind = array.dtype().descr();
    let io = |e: std::io::Error| bad(e.to_string());
    let values: Vec<i64> = match kind.trim_matches('\'') {
        "|u1" => array.into_vec::<u8>().map_err(io)?.into_iter().map(i64::from).collect(),
        "|i1" => array.into_vec::<i8>().map_err(io)?.into_iter().map(i64::from).collect(),
        "<i4" | ">i4" => array.into_vec::<i32>().map_err(io)?.into_iter().map(i64::from).collect(),
        "<i8" | ">i8" => array.into_vec::<i64>().map_err(io)?,
        _ => return Err(bad(format!("is of type {kind}, expected whole numbers"))),
    };
    match values.iter().find(|v| !(0..65536).contains(*v)) {
        Some(v) => Err(bad(format!("holds label {v}, expected 0 to 65535"))),
        None => Ok(Ok(values.into_iter().map(|v| v as u32).collect())),
    }
}

type Zip = ZipArchive<BufReader<File>>;

/// One array, and how many bytes it has when unpacked.
fn member<'a>(zip: &'a mut Zip, name: &str, path: &Path) -> Result<(NpyFile<impl Read + 'a>, u64)> {
    let bad = |reason: String| Error::bad(path, format!("{name}: {reason}"));
    let entry = zip.by_name(&format!("{name}.npy")).map_err(|e| bad(e.to_string()))?;
    let size = entry.size();
    // What unpacks to more than it says is cut there, and then too short.
    let array = NpyFile::new(entry.take(size)).map_err(|e| bad(e.to_string()))?;
    Ok((array, size))
}
