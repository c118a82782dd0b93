//! IDX, the format of MNIST and its kin: two zero bytes, the element type (8 for bytes), the number of axes, each axis as a
//! big-endian 32-bit number, the elements. Gzipped files are recognised by their first bytes.
//!
//! candle-datasets reads MNIST's images too, but not gzipped, and its errors name no file.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, PackedImages, Result};

/// The content of an IDX file of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx {
    /// Sizes, outermost first.
    pub dims: Vec<usize>,
    /// Elements in row-major order.
    pub data: Vec<u8>,
}

/// Most elements that are read: far above any data set of this format, far below what would exhaust memory.
const MOST: usize = 1 << 32;

/// Reads an IDX file of bytes, gzipped or not.
///
/// # Errors
/// A file that can't be read, has another header, or another length than its header says.
pub fn read(path: &Path) -> Result<Idx> {
    let raw = std::fs::read(path).map_err(Error::io(path))?;
    if raw.starts_with(&[0x1f, 0x8b]) {
        let mut data = Vec::new();
        let limit = MOST as u64 + 4096;
        MultiGzDecoder::new(raw.as_slice())
            .take(limit)
            .read_to_end(&mut data)
            .map_err(|e| Error::bad(path, format!("damaged gzip data: {e}")))?;
        return parse(&data, path);
    }
    parse(&raw, path)
}

/// Parses the bytes of an IDX file; `path` is named in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(raw: &[u8], path: &Path) -> Result<Idx> {
    let head = raw.get(..4).ok_or_else(|| Error::bad(path, format!("{} bytes are too few for an IDX file", raw.len())))?;
    if head[..2] != [0, 0] || head[2] != 8 || !(1..=4).contains(&head[3]) {
        return Err(Error::bad(
            path,
            format!("begins with {head:02x?}; an IDX file of bytes begins with 00 00 08 and 1 to 4 axes"),
        ));
    }
    let axes = head[3] as usize;
    let sizes = raw.get(4..4 + 4 * axes).ok_or_else(|| Error::bad(path, "ends within its header"))?;
    let dims: Vec<usize> = sizes.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    let count = dims.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MOST);
    let data = &raw[4 + 4 * axes..];
    if count != Some(data.len()) {
        return Err(Error::bad(path, format!("holds {} bytes of elements, its header says {dims:?}", data.len())));
    }
    Ok(Idx { dims, data: data.to_vec() })
}

/// Whether a file's name is that of IDX images: `…-idx3-ubyte`, `….idx3-ubyte`, `….idx3`, gzipped or not.
pub fn is_images(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    ["-idx3-ubyte", ".idx3-ubyte", ".idx3"].iter().any(|end| name.ends_with(end))
}

/// How many classes the labels of a file have, by the highest; 0 where there is no file.
///
/// # Errors
/// As [`read`].
pub fn classes(labels: Option<&Path>) -> Result<usize> {
    let Some(path) = labels else { return Ok(0) };
    Ok(read(path)?.data.iter().max().map_or(0, |&m| usize::from(m) + 1))
}

/// Reads a pair of image and label files (labels optional) as a data set called `name`.
///
/// # Errors
/// As [`read`]; images that are no stack of pictures, labels of another number or past the classes.
pub fn dataset(name: &str, images: &Path, labels: Option<&Path>, classes: Vec<String>) -> Result<PackedImages> {
    let pixels = read(images)?;
    let [_, height, width] = pixels.dims[..] else {
        return Err(Error::bad(images, format!("has axes {:?}, expected images × height × width", pixels.dims)));
    };
    let labels = match labels {
        None => None,
        Some(path) => {
            let found = read(path)?;
            if found.dims != [pixels.dims[0]] {
                return Err(Error::bad(
                    path,
                    format!("has axes {:?}, expected [{}] as there are images", found.dims, pixels.dims[0]),
                ));
            }
            Some(found.data.into_iter().map(u32::from).collect())
        }
    };
    PackedImages::new(name, pixels.data, (width as u32, height as u32, 1), labels, classes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;
    use proptest::prelude::*;
    use std::io::Write;

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| out.extend(d.to_be_bytes()));
        out.extend_from_slice(data);
        out
    }

    #[test]
    fn images_of_unequal_sides_come_back_gzipped_or_not() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (images, labels) = (dir.path().join("images"), dir.path().join("labels.gz"));
        let pixels: Vec<u8> = (0..2 * 3 * 5).collect();
        std::fs::write(&images, idx(&[2, 3, 5], &pixels))?;
        let mut zip = flate2::write::GzEncoder::new(std::fs::File::create(&labels)?, flate2::Compression::default());
        zip.write_all(&idx(&[2], &[1, 0]))?;
        zip.finish()?;
        let set = dataset("x", &images, Some(&labels), vec!["a".into(), "b".into()])?;
        assert_eq!((set.len(), set.side(), set.label(0)), (2, Some((5, 3)), Some(1)));
        assert_eq!(set.get(1)?.image.to_luma8().as_raw(), &pixels[15..]);
        assert!(dataset("x", &images, Some(&labels), vec!["a".into()]).is_err(), "label 1 of one class");
        Ok(())
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&raw, Path::new("garbage"));
        }

        #[test]
        fn a_wrong_length_is_refused(rows in 0u32..5, extra in 1usize..4) {
            let good = idx(&[rows, 2], &vec![7; rows as usize * 2]);
            prop_assert!(parse(&good, Path::new("x")).is_ok());
            let mut long = good.clone();
            long.extend(vec![0; extra]);
            prop_assert!(parse(&long, Path::new("x")).is_err());
            prop_assert!(parse(&good[..good.len() - 1], Path::new("x")).is_err());
        }
    }
}
