//! The data sets that have names: where they come from, how they are checked, under which licence they stand. One file a family.
//!
//! Checksums are those that their authors or a large library of data sets publish for the same files (TensorFlow Datasets, torchvision,
//! MedMNIST): SHA-256 where there is one, MD5 for MedMNIST, whose authors publish no other.

mod cifar;
mod eurosat;
mod imagenette;
mod medmnist;
mod mnist;
mod stl10;

use std::path::PathBuf;

use crate::formats::cifar::Kind;
use crate::{Error, Result};

#[cfg(feature = "fashion-mnist-mini")]
pub(crate) use mnist::FASHION_CLASSES;

/// How the files of a data set are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Part of the library.
    Embedded,
    /// Four gzipped IDX files under MNIST's names.
    Mnist,
    /// The distributed archive of CIFAR binaries.
    Cifar(Kind),
    /// STL-10's labelled training and test images, out of its distributed archive.
    Stl10,
    /// STL-10's images without labels, out of the same.
    Stl10Unlabelled,
    /// One npz file of MedMNIST's form.
    Npz,
    /// An archive of a folder of images, unpacked beside it; the images lie in this folder of it.
    Folder(&'static str),
}

/// How a file is known to be the right one, in lower-case hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256.
    Sha256(&'static str),
    /// MD5: against damage, not against malice.
    Md5(&'static str),
}

/// How many images the splits have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitSizes {
    /// Images to train on.
    pub train: usize,
    /// Images to test on.
    pub test: usize,
}

/// The size of a file to download, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// It has exactly as many.
    Exact(u64),
    /// Its authors do not say; it has no more than these, whatever a server sends.
    AtMost(u64),
}

impl Size {
    /// The most that the file may have.
    pub fn most(self) -> u64 {
        match self {
            Self::Exact(bytes) | Self::AtMost(bytes) => bytes,
        }
    }

    /// What it has, where that is known.
    pub fn exact(self) -> Option<u64> {
        match self {
            Self::Exact(bytes) => Some(bytes),
            Self::AtMost(_) => None,
        }
    }
}

/// A file to download.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFile {
    /// Its name in the cache.
    pub name: &'static str,
    /// Addresses to try, in order.
    pub urls: &'static [&'static str],
    /// Its size.
    pub size: Size,
    /// The checksum of its content.
    pub checksum: Checksum,
}

/// A data set with a name.
#[derive(Debug, Clone, Copy)]
pub struct DatasetSpec {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// Its licence, as its authors state it.
    pub licence: &'static str,
    /// Where to read more.
    pub homepage: &'static str,
    /// The paper to cite.
    pub citation: &'static str,
    /// Names of its classes, in the order of its labels; empty where the files tell.
    pub classes: &'static [&'static str],
    /// How many images its splits have.
    pub splits: SplitSizes,
    /// Files to download.
    pub files: &'static [RemoteFile],
    /// How they are read.
    pub layout: Layout,
}

/// Every data set with a name.
pub static DATASETS: &[DatasetSpec] = &[
    mnist::FASHION_MNIST_MINI,
    mnist::FASHION_MNIST,
    mnist::MNIST,
    mnist::KMNIST,
    cifar::CIFAR10,
    cifar::CIFAR100,
    stl10::STL10,
    stl10::STL10_UNLABELLED,
    imagenette::IMAGENETTE,
    imagenette::IMAGENETTE_160,
    eurosat::EUROSAT,
    medmnist::PATH,
    medmnist::CHEST,
    medmnist::DERMA,
    medmnist::OCT,
    medmnist::PNEUMONIA,
    medmnist::RETINA,
    medmnist::BREAST,
    medmnist::BLOOD,
    medmnist::TISSUE,
    medmnist::ORGAN_A,
    medmnist::ORGAN_C,
    medmnist::ORGAN_S,
];

impl DatasetSpec {
    /// The folder of the cache that its files lie in: its name, or that of the data set whose files they are.
    pub fn folder(&self) -> &'static str {
        if self.layout == Layout::Stl10Unlabelled { stl10::STL10.name } else { self.name }
    }
}

/// The data set called `name`; `_` is taken for `-`.
///
/// # Errors
/// An unknown name, with the nearest.
pub fn dataset(name: &str) -> Result<&'static DatasetSpec> {
    find(name).ok_or_else(|| {
        let nearest = DATASETS
            .iter()
            .map(|d| (strsim::jaro_winkler(d.name, name), d.name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(String::new(), |(_, n)| format!("; did you mean `{n}`?"));
        Error::NotFound(format!("no data set `{name}`{nearest} (`twinsight list datasets` shows them)"))
    })
}

/// Names that stand for several data sets.
pub static GROUPS: &[(&str, &[DatasetSpec])] = &[("medmnist", medmnist::ALL)];

/// The data sets that `name` stands for: one, or those of a group.
///
/// # Errors
/// As [`dataset`].
pub fn datasets(name: &str) -> Result<Vec<&'static DatasetSpec>> {
    match GROUPS.iter().find(|(group, _)| *group == name) {
        Some((_, members)) => members.iter().map(|spec| dataset(spec.name)).collect(),
        None => Ok(vec![dataset(name)?]),
    }
}

/// The data set called `name`, if there is one.
pub(crate) fn find(name: &str) -> Option<&'static DatasetSpec> {
    DATASETS.iter().find(|d| d.name == name || name.contains('_') && d.name == name.replace('_', "-"))
}

/// Where downloaded data lies: `TWINSIGHT_DATA`, or `twinsight` in the platform's cache folder.
pub fn data_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("TWINSIGHT_DATA") {
        return dir;
    }
    let home = set("HOME").or_else(|| set("USERPROFILE"));
    let cache = if cfg!(windows) {
        set("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home.clone().map(|h| h.join("Library/Caches"))
    } else {
        set("XDG_CACHE_HOME").or_else(|| home.clone().map(|h| h.join(".cache")))
    };
    cache.or(home).unwrap_or_else(std::env::temp_dir).join("twinsight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_whole() {
        for spec in DATASETS {
            assert!(std::ptr::eq(dataset(spec.name).expect("registered"), spec));
            assert_eq!(spec.files.is_empty(), spec.layout == Layout::Embedded, "{}", spec.name);
            for file in spec.files {
                assert!(!file.urls.is_empty() && file.urls.iter().all(|u| u.starts_with("https://")), "{}", file.name);
                let (text, length) = match file.checksum {
                    Checksum::Sha256(text) => (text, 64),
                    Checksum::Md5(text) => (text, 32),
                };
                assert!((1..4 << 30).contains(&file.size.most()), "{}: {:?}", file.name, file.size);
                assert!(text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{text}");
            }
        }
        assert_eq!(dataset("fashion_mnist").map(|d| d.name).ok(), Some("fashion-mnist"));
        let names: std::collections::BTreeSet<&str> = DATASETS.iter().map(|d| d.name).collect();
        assert_eq!(names.len(), DATASETS.len(), "names differ");
        assert_eq!(datasets("medmnist").map(|d| d.len()).ok(), Some(12));
        assert!(datasets("stl10").is_ok_and(|d| d.len() == 1) && datasets("medmnits").is_err());
        assert!(GROUPS.iter().all(|(name, _)| find(name).is_none()), "groups and data sets have different names");
        let text = dataset("cifra10").expect_err("unknown").to_string();
        assert!(text.contains("`cifar10`"), "{text}");
    }
}
