//! numpy's `.npz`: MedMNIST's 2-D sets (`train_images`, `train_labels`, `val_…`, `test_…`) and others of the same form (`x_train`, `y_train`).
//!
//! Images are `uint8`, N × height × width or N × height × width × 3; labels are whole numbers, N or N × 1. Sets with several labels an
//! image (N × k) are taken as not labelled. The arrays' headers are parsed here: the crates that do it bring a parser generator along.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

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
    let (Header { kind, fortran, shape }, data, size) = member(zip, name, path)?;
    let (height, width, channels) = match shape[..] {
        [_, h, w] => (h, w, 1),
        [_, h, w, c @ (1 | 3)] => (h, w, c),
        _ => return Err(bad(format!("has axes {shape:?}, expected images × height × width, or these × 3"))),
    };
    if kind != "|u1" || fortran {
        return Err(bad(format!("is of type {kind}, expected uint8 in C order")));
    }
    let count = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= MOST && n <= size);
    let count = count.ok_or_else(|| bad(format!("has axes {shape:?} and {size} bytes, at most {MOST} are read")))?;
    let mut pixels = Vec::with_capacity(count as usize);
    data.take(count).read_to_end(&mut pixels).map_err(|e| bad(e.to_string()))?;
    if pixels.len() as u64 != count {
        return Err(bad(format!("breaks off after {} of {count} bytes", pixels.len())));
    }
    let side = |n: u64| u32::try_from(n).map_err(|_| bad(format!("has axes {shape:?}")));
    Ok((pixels, (side(width)?, side(height)?, channels as usize)))
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
