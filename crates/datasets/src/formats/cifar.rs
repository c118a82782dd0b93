//! CIFAR-10 and CIFAR-100 in their binary form: records of one label byte (CIFAR-100: coarse, then fine) and 3,072 bytes, the
//! red, green and blue planes of a 32 × 32 image.
//!
//! candle-datasets reads CIFAR-10's binaries, but only files of exactly 10,000 records, and not CIFAR-100; its Parquet loader
//! transposes height and width.

use std::path::Path;

use super::archive;
use crate::{Error, PackedImages, Result};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CIFAR-10.
    Ten,
    /// CIFAR-100, by its fine labels.
    Hundred,
}

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

/// CIFAR-10's classes, in the order of its labels.
pub const CLASSES_10: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

impl Kind {
    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    /// The files of a split, and the one with the names of the classes.
    fn members(self, train: bool) -> (Vec<String>, &'static str) {
        match (self, train) {
            (Self::Ten, true) => ((1..=5).map(|i| format!("data_batch_{i}.bin")).collect(), "batches.meta.txt"),
            (Self::Ten, false) => (vec!["test_batch.bin".into()], "batches.meta.txt"),
            (Self::Hundred, true) => (vec!["train.bin".into()], "fine_label_names.txt"),
            (Self::Hundred, false) => (vec!["test.bin".into()], "fine_label_names.txt"),
        }
    }
}

/// Parses records: (interleaved pixels, labels). `path` is named in errors.
///
/// # Errors
/// A length that is no whole number of records, a label past the classes.
pub fn parse(raw: &[u8], kind: Kind, path: &Path) -> Result<(Vec<u8>, Vec<u32>)> {
    let record = kind.label_bytes() + 3 * PLANE;
    if raw.is_empty() || !raw.len().is_multiple_of(record) {
        return Err(Error::bad(path, format!("{} bytes are no whole number of records of {record} bytes", raw.len())));
    }
    let mut pixels = Vec::with_capacity(raw.len());
    let mut labels = Vec::with_capacity(raw.len() / record);
    for (number, one) in raw.chunks_exact(record).enumerate() {
        let label = u32::from(one[kind.label_bytes() - 1]);
        if label as usize >= kind.classes() {
            return Err(Error::bad(path, format!("record {number} has label {label}, expected below {}", kind.classes())));
        }
        labels.push(label);
        let planes = &one[kind.label_bytes()..];
        pixels.extend((0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]));
    }
    Ok((pixels, labels))
}

/// Reads the training (`train` true) or test records of a folder or of the distributed `.tar.gz`.
///
/// # Errors
/// Files that are missing or damaged.
pub fn read(path: &Path, kind: Kind, train: bool) -> Result<PackedImages> {
    let (names, list) = kind.members(train);
    let mut found = contents(path, &names, list)?;
    let classes = found.pop().flatten();
    pack(path, kind, &names, found, classes.as_deref())
}

/// Reads training and test records, going through an archive once.
///
/// # Errors
/// As [`read`].
pub fn read_both(path: &Path, kind: Kind) -> Result<(PackedImages, PackedImages)> {
    let ((mut names, list), (test, _)) = (kind.members(true), kind.members(false));
    let for_training = names.len();
    names.extend(test);
    let mut found = contents(path, &names, list)?;
    let classes = found.pop().flatten();
    let test = found.split_off(for_training);
    let train = pack(path, kind, &names[..for_training], found, classes.as_deref())?;
    Ok((train, pack(path, kind, &names[for_training..], test, classes.as_deref())?))
}

/// Parses and joins the contents of `names`; `list` is the text with the classes' names.
fn pack(path: &Path, kind: Kind, names: &[String], found: Vec<Option<Vec<u8>>>, list: Option<&[u8]>) -> Result<PackedImages> {
    let text = String::from_utf8_lossy(list.unwrap_or_default());
    let mut classes: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if classes.len() != kind.classes() {
        classes = match kind {
            Kind::Ten => CLASSES_10.map(String::from).to_vec(),
            Kind::Hundred => (0..100).map(|i| format!("class {i}")).collect(),
        };
    }
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (name, raw) in names.iter().zip(found) {
        let raw = raw.ok_or_else(|| Error::bad(path, format!("{name} is missing in it")))?;
        let (p, l) = parse(&raw, kind, &path.join(name))?;
        pixels.extend(p);
        labels.extend(l);
    }
    let name = if kind == Kind::Ten { "cifar10" } else { "cifar100" };
    PackedImages::new(name, pixels, (SIDE as u32, SIDE as u32, 3), Some(labels), classes)
}

/// The contents of `names` and of the list of classes, in that order; `None` for what is missing.
fn contents(path: &Path, names: &[String], list: &str) -> Result<Vec<Option<Vec<u8>>>> {
    /// More than the largest member (CIFAR-100's training records, 153.7 MB).
    const MOST: u64 = 200_000_000;
    let names: Vec<String> = names.iter().cloned().chain([list.to_string()]).collect();
    archive::contents(path, &names, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;
    use proptest::prelude::*;

    /// `count` records whose pixels tell plane and place.
    fn records(count: u8, kind: Kind) -> Vec<u8> {
        (0..count)
            .flat_map(|i| {
                let mut one = vec![0; kind.label_bytes()];
                one[kind.label_bytes() - 1] = i % 10;
                one.extend((0..3 * PLANE).map(|j| (j / PLANE * 80 + j % 31) as u8 ^ i));
                one
            })
            .collect()
    }

    #[test]
    fn folder_and_archive_give_the_same_images() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let archive = dir.path().join("cifar-10-binary.tar.gz");
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(std::fs::File::create(&archive)?, flate2::Compression::fast()));
        for i in 1..=5 {
            let raw = records(i, Kind::Ten);
            std::fs::write(dir.path().join(format!("data_batch_{i}.bin")), &raw)?;
            let mut header = tar::Header::new_gnu();
            header.set_size(raw.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("cifar-10-batches-bin/data_batch_{i}.bin"), raw.as_slice())?;
        }
        tar.into_inner()?.finish()?;
        let (a, b) = (read(dir.path(), Kind::Ten, true)?, read(&archive, Kind::Ten, true)?);
        assert_eq!((a.len(), a.pixels()), (15, b.pixels()));
        let pixel = a.get(0)?.image.to_rgb8().get_pixel(3, 2).0;
        let j = 2 * SIDE + 3;
        assert_eq!(pixel, [(j % 31) as u8, (80 + (PLANE + j) % 31) as u8, (160 + (2 * PLANE + j) % 31) as u8]);
        for text in [read(dir.path(), Kind::Ten, false).err(), read_both(&archive, Kind::Ten).err()] {
            let text = text.map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains("test_batch.bin"), "{text}");
        }
        std::fs::write(dir.path().join("test_batch.bin"), records(2, Kind::Ten))?;
        let (train, test) = read_both(dir.path(), Kind::Ten)?;
        assert_eq!((train.pixels(), test.len(), test.classes().map(|c| c[9].as_str())), (a.pixels(), 2, Some("truck")));
        // Cut short, the archive is damaged and not merely short of records.
        let whole = std::fs::read(&archive)?;
        std::fs::write(&archive, &whole[..whole.len() / 2])?;
        let text = read(&archive, Kind::Ten, true).expect_err("cut").to_string();
        assert!(text.contains("damaged"), "{text}");
        Ok(())
    }

    #[test]
    fn the_hundred_take_their_fine_label() -> anyhow::Result<()> {
        let (_, labels) = parse(&records(3, Kind::Hundred), Kind::Hundred, Path::new("x"))?;
        assert_eq!(labels, [0, 1, 2]);
        let mut bad = records(1, Kind::Ten);
        bad[0] = 10;
        assert!(parse(&bad, Kind::Ten, Path::new("x")).is_err());
        Ok(())
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let _ = parse(&raw, Kind::Ten, Path::new("x"));
            let _ = parse(&raw, Kind::Hundred, Path::new("x"));
        }
    }
}
