//! numpy's `.npz`: MedMNIST's 2-D sets (`train_images`, `train_labels`, `val_…`, `test_…`), others of the same form (`x_train`, `y_train`), and
//! files of one split each (`images` and `labels`, or `x` and `y`), whose split is in their names (`test-0.npz`).
//!
//! Images are `uint8` or `uint16`, N × height × width or N × height × width × channels (1 to 16); labels are whole numbers, N or N × 1. Sets with
//! several labels an image (N × k) are taken as not labelled. Several files are taken as parts of one data set. The arrays' headers are
//! parsed here: the crates that do it bring a parser generator along.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::ZipArchive;

use crate::bands::MAX_CHANNELS;
use crate::sources::Split;
use crate::{BandImages, BandLevels, Dataset, Error, PackedImages, Result};

/// Largest array that is read.
const MOST: u64 = 1 << 32;

/// Names of images and labels, and the split that they are of; `None`: that of the file's name.
const NAMES: [(&str, &str, Option<Split>); 9] = [
    ("train_images", "train_labels", Some(Split::Train)),
    ("val_images", "val_labels", Some(Split::Validation)),
    ("test_images", "test_labels", Some(Split::Test)),
    ("x_train", "y_train", Some(Split::Train)),
    ("x_val", "y_val", Some(Split::Validation)),
    ("x_test", "y_test", Some(Split::Test)),
    ("images", "labels", None),
    ("x", "y", None),
    ("X", "y", None),
];

/// The splits of npz files.
pub(crate) struct Splits {
    /// Training images.
    pub(crate) train: Arc<dyn Dataset>,
    /// Test images, or where there are none validation images.
    pub(crate) test: Option<Arc<dyn Dataset>>,
    /// How labels were understood, and what was left out.
    pub(crate) understood: String,
}

/// Images and labels of one split in one file.
struct Part {
    split: Split,
    levels: BandLevels,
    /// Width, height and channels.
    shape: (u32, u32, usize),
    /// Labels, or why there are none.
    labels: std::result::Result<Vec<u32>, String>,
    path: PathBuf,
}

/// Reads `files` of the data set at `root`; `classes` are the names of the classes where they are known.
///
/// # Errors
/// A file that is no zip archive of arrays, arrays of other names, types or shapes than those above, files that do not fit together.
pub(crate) fn read(root: &Path, files: &[PathBuf], classes: &[&str]) -> Result<Splits> {
    let mut parts = Vec::new();
    for path in files {
        parts.extend(read_file(root, path)?);
    }
    if parts.iter().all(|p| p.split != Split::Train) {
        parts.iter_mut().for_each(|p| p.split = Split::Train);
    }
    let most = parts.iter().filter_map(|p| p.labels.as_ref().ok()).flatten().max();
    let count = most.map_or(0, |&m| m as usize + 1).max(classes.len());
    let names: Vec<String> = (0..count).map(|i| classes.get(i).map_or_else(|| i.to_string(), ToString::to_string)).collect();
    let name = root.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut take = |split: Split| -> Result<Option<Part>> {
        let (taken, rest) = std::mem::take(&mut parts).into_iter().partition(|p: &Part| p.split == split);
        parts = rest;
        joined(taken)
    };
    let none = || Error::bad(root, "holds no images");
    let (train, validation, test) = (take(Split::Train)?.ok_or_else(none)?, take(Split::Validation)?, take(Split::Test)?);
    let mut understood = match &train.labels {
        Ok(_) => format!("labels come with the data set: {count} classes"),
        Err(why) => format!("no labels: {why}"),
    };
    if let (Some(left_out), true) = (&validation, test.is_some()) {
        let count = left_out.levels.len() / left_out.size();
        understood.push_str(&format!("; {count} validation images are left out, since there are test images"));
    }
    let labelled = train.labels.is_ok();
    let pack = |part: Part| -> Result<Arc<dyn Dataset>> {
        let labels = part.labels.ok().filter(|_| labelled);
        Ok(match part.levels {
            BandLevels::Bytes(pixels) if matches!(part.shape.2, 1 | 3) => {
                Arc::new(PackedImages::new(name.clone(), pixels, part.shape, labels, names.clone())?)
            }
            levels => Arc::new(BandImages::new(name.clone(), levels, part.shape, labels, names.clone())?),
        })
    };
    Ok(Splits { train: pack(train)?, test: test.or(validation).map(pack).transpose()?, understood })
}

impl Part {
    /// Levels an image.
    fn size(&self) -> usize {
        (self.shape.0 as usize * self.shape.1 as usize * self.shape.2).max(1)
    }
}

/// Parts one behind the other; `None` where there are none.
fn joined(parts: Vec<Part>) -> Result<Option<Part>> {
    let mut parts = parts.into_iter();
    let Some(mut all) = parts.next() else { return Ok(None) };
    for part in parts {
        if part.shape != all.shape {
            let [a, b] = [part.shape, all.shape].map(|(w, h, c)| format!("{w} × {h} × {c}"));
            return Err(Error::bad(part.path, format!("its images are {a}, and those of {} are {b}", all.path.display())));
        }
        match (&mut all.levels, part.levels) {
            (BandLevels::Bytes(all), BandLevels::Bytes(more)) => all.extend(more),
            (BandLevels::Words(all), BandLevels::Words(more)) => all.extend(more),
            _ => return Err(Error::bad(part.path, format!("its images have other bits than those of {}", all.path.display()))),
        }
        all.labels = match (all.labels, part.labels) {
            (Ok(mut all), Ok(more)) => {
                all.extend(more);
                Ok(all)
            }
            (Err(why), _) | (_, Err(why)) => Err(why),
        };
    }
    Ok(Some(all))
}

fn read_file(root: &Path, path: &Path) -> Result<Vec<Part>> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut zip = ZipArchive::new(file).map_err(|e| Error::bad(path, format!("no npz file: {e}")))?;
    let names: Vec<String> = zip.file_names().flatten().map(|n| n.trim_end_matches(".npy").to_string()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let mut parts: Vec<Part> = Vec::new();
    for (image, label, split) in NAMES {
        let split = split.unwrap_or_else(|| Split::of_path(root, path));
        if !has(image) || parts.iter().any(|p| p.split == split) {
            continue;
        }
        let (levels, shape) = images(&mut zip, image, path)?;
        let labels = if has(label) { labels(&mut zip, label, path)? } else { Err("there are none".into()) };
        let count = levels.len() / (shape.0 as usize * shape.1 as usize * shape.2).max(1);
        if let Some(found) = labels.as_ref().ok().map(Vec::len).filter(|&n| n != count) {
            return Err(Error::bad(path, format!("{label} holds {found} labels of the {count} images in {image}")));
        }
        parts.push(Part { split, levels, shape, labels, path: path.to_path_buf() });
    }
    match parts.is_empty() {
        false => Ok(parts),
        true => {
            let reason = format!("expected arrays train_images, x_train, images or x, found {}", names.join(", "));
            Err(Error::bad(path, reason))
        }
    }
}

/// Levels, and width, height and channels.
fn images(zip: &mut Zip, name: &str, path: &Path) -> Result<(BandLevels, (u32, u32, usize))> {
    let bad = |reason: String| Error::bad(path, format!("{name}: {reason}"));
    let (Header { kind, fortran, shape }, data, size) = member(zip, name, path)?;
    let (height, width, channels) = match shape[..] {
        [_, h, w] => (h, w, 1),
        [_, h, w, c] if (1..=MAX_CHANNELS as u64).contains(&c) => (h, w, c),
        _ => return Err(bad(format!("has axes {shape:?}, expected images × height × width, or these × channels (1 to 16)"))),
    };
    let bytes = match kind.as_str() {
        "|u1" => 1,
        "<u2" | ">u2" => 2,
        _ => return Err(bad(format!("is of type {kind}, expected uint8 or uint16 in C order"))),
    };
    if fortran {
        return Err(bad("is in Fortran order, expected C order".into()));
    }
    let count = shape.iter().try_fold(bytes, |n: u64, &d| n.checked_mul(d)).filter(|&n| n <= MOST && n <= size);
    let count = count.ok_or_else(|| bad(format!("has axes {shape:?} and {size} bytes, at most {MOST} are read")))?;
    if count == 0 {
        return Err(bad(format!("has axes {shape:?}: there are no images in it")));
    }
    let mut raw = Vec::with_capacity(count as usize);
    data.take(count).read_to_end(&mut raw).map_err(|e| bad(e.to_string()))?;
    if raw.len() as u64 != count {
        return Err(bad(format!("breaks off after {} of {count} bytes", raw.len())));
    }
    let word = if kind == ">u2" { u16::from_be_bytes } else { u16::from_le_bytes };
    let levels = match bytes {
        1 => BandLevels::Bytes(raw),
        _ => BandLevels::Words(raw.as_chunks::<2>().0.iter().map(|&b| word(b)).collect()),
    };
    let side = |n: u64| u32::try_from(n).map_err(|_| bad(format!("has axes {shape:?}")));
    Ok((levels, (side(width)?, side(height)?, channels as usize)))
}

/// Labels, or why there are none.
fn labels(zip: &mut Zip, name: &str, path: &Path) -> Result<std::result::Result<Vec<u32>, String>> {
    let bad = |reason: String| Error::bad(path, format!("{name}: {reason}"));
    let (Header { kind, shape, .. }, mut data, size) = member(zip, name, path)?;
    let count = match shape[..] {
        [n] | [n, 1] => n,
        [_, k] => return Ok(Err(format!("every image has {k}"))),
        _ => return Err(bad(format!("has axes {shape:?}, expected one number an image"))),
    };
    let width = match kind.as_str() {
        "|u1" | "|i1" => 1,
        "<u2" | "<i2" => 2,
        "<u4" | "<i4" => 4,
        "<i8" | "<u8" => 8,
        _ => return Err(bad(format!("is of type {kind}, expected whole numbers, the lowest byte first"))),
    };
    let mut raw = Vec::new();
    data.read_to_end(&mut raw).map_err(|e| bad(e.to_string()))?;
    if count.checked_mul(width as u64) != Some(raw.len() as u64) || size > MOST {
        return Err(bad(format!("has axes {shape:?} and {} bytes of {kind}", raw.len())));
    }
    let value = |bytes: &[u8]| {
        let negative = kind.contains('i') && bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..width].copy_from_slice(bytes);
        i64::from_le_bytes(whole)
    };
    let values: Vec<i64> = raw.chunks_exact(width).map(value).collect();
    match values.iter().find(|v| !(0..65536).contains(*v)) {
        Some(v) => Err(bad(format!("holds label {v}, expected 0 to 65535"))),
        None => Ok(Ok(values.into_iter().map(|v| v as u32).collect())),
    }
}

type Zip = ZipArchive<BufReader<File>>;

/// What an array's header says (numpy's NEP 1).
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// The type of its elements: `|u1`, `<i8`, …
    kind: String,
    /// Whether the first axis runs fastest.
    fortran: bool,
    /// Its axes.
    shape: Vec<u64>,
}

/// One array's header, its data, and how many bytes the member has when unpacked.
fn member<'a>(zip: &'a mut Zip, name: &str, path: &Path) -> Result<(Header, impl Read + 'a, u64)> {
    let bad = |reason: String| Error::bad(path, format!("{name}: {reason}"));
    let entry = zip.by_name(&format!("{name}.npy")).map_err(|e| bad(e.to_string()))?;
    let size = entry.size();
    // What unpacks to more than it says is cut there, and then too short.
    let mut data = entry.take(size);
    let header = header(&mut data).map_err(|e| bad(e.to_string()))?;
    let header = header.ok_or_else(|| bad("is no array of numpy's".into()))?;
    Ok((header, data, size))
}

/// Reads a header: magic, version, length, and a Python dictionary of three known keys.
fn header(data: &mut impl Read) -> std::io::Result<Option<Header>> {
    let mut start = [0; 8];
    data.read_exact(&mut start)?;
    let mut length = [0; 4];
    data.read_exact(&mut length[..if start[6] == 1 { 2 } else { 4 }])?;
    let length = u32::from_le_bytes(length);
    if start[..6] != *b"\x93NUMPY" || length > 1 << 16 {
        return Ok(None);
    }
    let mut raw = vec![0; length as usize];
    data.read_exact(&mut raw)?;
    Ok(std::str::from_utf8(&raw).ok().and_then(parse))
}

fn parse(text: &str) -> Option<Header> {
    let after = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
    let kind = after("descr")?.strip_prefix('\'')?.split_once('\'')?.0.to_string();
    let fortran = after("fortran_order")?.starts_with("True");
    let axes = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let axes = axes.split(',').map(str::trim).filter(|a| !a.is_empty());
    let shape = axes.map(|a| a.parse().ok()).collect::<Option<Vec<u64>>>()?;
    Some(Header { kind, fortran, shape })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_are_python_dictionaries() {
        let text = "{'descr': '<i8', 'fortran_order': False, 'shape': (3, 1), }   \n";
        let header = Header { kind: "<i8".into(), fortran: false, shape: vec![3, 1] };
        assert_eq!(parse(text), Some(header));
        let text = "{'descr': '|u1', 'fortran_order': True, 'shape': (5,), }";
        assert_eq!(parse(text), Some(Header { kind: "|u1".into(), fortran: true, shape: vec![5] }));
        for text in ["", "{'descr': [('a', '<i4')], 'shape': (1,)}", "{'descr': '|u1', 'fortran_order': False, 'shape': (x,)}"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_header_and_never_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = header(&mut raw.as_slice());
            let _ = header(&mut [b"\x93NUMPY\x01\0\x40\0", raw.as_slice()].concat().as_slice());
        }
    }
}
