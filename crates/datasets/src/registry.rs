//! The data sets that have names: where they come from, how they are checked, under which licence they stand. The checksums
//! are those that TensorFlow Datasets publishes for the same files.

use std::path::PathBuf;

use crate::formats::cifar::{CLASSES_10, Kind};
use crate::{Error, Result};

/// How the files of a data set are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Part of the library.
    Embedded,
    /// Four gzipped IDX files under MNIST's names.
    Mnist,
    /// The distributed archive of CIFAR binaries.
    Cifar(Kind),
}

/// A file to download.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFile {
    /// Its name in the cache.
    pub name: &'static str,
    /// Addresses to try, in order.
    pub urls: &'static [&'static str],
    /// The SHA-256 of its content, in lower-case hexadecimal.
    pub sha256: &'static str,
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
    /// Files to download.
    pub files: &'static [RemoteFile],
    /// How they are read.
    pub layout: Layout,
}

macro_rules! mnist_file {
    ($name:literal, $sha256:literal) => {
        RemoteFile {
            name: $name,
            urls: &[
                concat!("https://ossci-datasets.s3.amazonaws.com/mnist/", $name),
                concat!("https://storage.googleapis.com/cvdf-datasets/mnist/", $name),
            ],
            sha256: $sha256,
        }
    };
}

macro_rules! fashion_file {
    ($name:literal, $sha256:literal) => {
        RemoteFile {
            name: $name,
            urls: &[
                concat!("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/", $name),
                concat!("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/", $name),
            ],
            sha256: $sha256,
        }
    };
}

/// The names of Fashion-MNIST's ten classes, in the order of its labels.
pub(crate) const FASHION_CLASSES: &[&str] =
    &["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];
const FASHION_CITATION: &str = "Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017";
const CIFAR_CITATION: &str = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009";

/// Every data set with a name.
pub static DATASETS: &[DatasetSpec] = &[
    DatasetSpec {
        name: "fashion-mnist-mini",
        summary: "built in: 10,000 + 2,000 gray pictures of clothes, 28 × 28, 10 classes",
        licence: "MIT",
        homepage: "https://github.com/zalandoresearch/fashion-mnist",
        citation: FASHION_CITATION,
        classes: FASHION_CLASSES,
        files: &[],
        layout: Layout::Embedded,
    },
    DatasetSpec {
        name: "fashion-mnist",
        summary: "60,000 + 10,000 gray pictures of clothes, 28 × 28, 10 classes (31 MB)",
        licence: "MIT",
        homepage: "https://github.com/zalandoresearch/fashion-mnist",
        citation: FASHION_CITATION,
        classes: FASHION_CLASSES,
        files: &[
            fashion_file!("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            fashion_file!("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            fashion_file!("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            fashion_file!("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ],
        layout: Layout::Mnist,
    },
    DatasetSpec {
        name: "mnist",
        summary: "60,000 + 10,000 gray handwritten digits, 28 × 28, 10 classes (11 MB)",
        licence: "CC-BY-SA-3.0",
        homepage: "https://yann.lecun.com/exdb/mnist/",
        citation: "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998",
        classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        files: &[
            mnist_file!("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            mnist_file!("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            mnist_file!("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            mnist_file!("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ],
        layout: Layout::Mnist,
    },
    DatasetSpec {
        name: "cifar10",
        summary: "50,000 + 10,000 colour pictures, 32 × 32, 10 classes (170 MB)",
        licence: "not stated; free for research by custom",
        homepage: "https://www.cs.toronto.edu/~kriz/cifar.html",
        citation: CIFAR_CITATION,
        classes: &CLASSES_10,
        files: &[RemoteFile {
            name: "cifar-10-binary.tar.gz",
            urls: &["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"],
            sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        }],
        layout: Layout::Cifar(Kind::Ten),
    },
    DatasetSpec {
        name: "cifar100",
        summary: "50,000 + 10,000 colour pictures, 32 × 32, 100 classes (169 MB)",
        licence: "not stated; free for research by custom",
        homepage: "https://www.cs.toronto.edu/~kriz/cifar.html",
        citation: CIFAR_CITATION,
        classes: &[],
        files: &[RemoteFile {
            name: "cifar-100-binary.tar.gz",
            urls: &["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"],
            sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        }],
        layout: Layout::Cifar(Kind::Hundred),
    },
];

/// The data set called `name`.
///
/// # Errors
/// An unknown name, with the nearest.
pub fn dataset(name: &str) -> Result<&'static DatasetSpec> {
    DATASETS.iter().find(|d| d.name == name).ok_or_else(|| {
        let nearest = DATASETS
            .iter()
            .map(|d| (strsim::jaro_winkler(d.name, name), d.name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(String::new(), |(_, n)| format!("; did you mean `{n}`?"));
        Error::NotFound(format!("no data set `{name}`{nearest} (`twinsight list datasets` shows them)"))
    })
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
                let text = file.sha256;
                assert!(text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{text}");
            }
        }
        let text = dataset("cifra10").expect_err("unknown").to_string();
        assert!(text.contains("`cifar10`"), "{text}");
    }
}
