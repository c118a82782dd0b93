//! MNIST and the sets made after it, as gzipped IDX files.

use super::{Checksum, DatasetSpec, Layout, RemoteFile, Size, SplitSizes};

const SPLITS: SplitSizes = SplitSizes { train: 60_000, test: 10_000 };

macro_rules! file {
    ($name:literal, $size:expr, $sha256:literal, $($base:literal),+) => {
        RemoteFile { name: $name, urls: &[$(concat!($base, $name)),+], size: Size::Exact($size), checksum: Checksum::Sha256($sha256) }
    };
}

macro_rules! mnist {
    ($name:literal, $size:literal, $sha256:literal) => {
        file!(
            $name,
            $size,
            $sha256,
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/"
        )
    };
}

macro_rules! fashion {
    ($name:literal, $size:literal, $sha256:literal) => {
        file!(
            $name,
            $size,
            $sha256,
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
        )
    };
}

macro_rules! kmnist {
    ($name:literal, $size:literal, $sha256:literal) => {
        file!($name, $size, $sha256, "https://codh.rois.ac.jp/kmnist/dataset/kmnist/")
    };
}

/// The names of Fashion-MNIST's ten classes, in the order of its labels.
pub(crate) const FASHION_CLASSES: &[&str] =
    &["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];
const FASHION_CITATION: &str = "Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017";

/// A part of Fashion-MNIST that is built in.
pub(super) const FASHION_MNIST_MINI: DatasetSpec = DatasetSpec {
    name: "fashion-mnist-mini",
    summary: "built in: 10,000 + 2,000 gray pictures of clothes, 28 × 28, 10 classes",
    licence: "MIT",
    homepage: "https://github.com/zalandoresearch/fashion-mnist",
    citation: FASHION_CITATION,
    classes: FASHION_CLASSES,
    splits: SplitSizes { train: 10_000, test: 2_000 },
    files: &[],
    layout: Layout::Embedded,
};

/// Fashion-MNIST.
pub(super) const FASHION_MNIST: DatasetSpec = DatasetSpec {
    name: "fashion-mnist",
    summary: "60,000 + 10,000 gray pictures of clothes, 28 × 28, 10 classes (31 MB)",
    licence: "MIT",
    homepage: "https://github.com/zalandoresearch/fashion-mnist",
    citation: FASHION_CITATION,
    classes: FASHION_CLASSES,
    splits: SPLITS,
    files: &[
        fashion!("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        fashion!("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        fashion!("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        fashion!("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ],
    layout: Layout::Mnist,
};

/// MNIST.
pub(super) const MNIST: DatasetSpec = DatasetSpec {
    name: "mnist",
    summary: "60,000 + 10,000 gray handwritten digits, 28 × 28, 10 classes (11 MB)",
    licence: "CC-BY-SA-3.0",
    homepage: "https://yann.lecun.com/exdb/mnist/",
    citation: "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998",
    classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    splits: SPLITS,
    files: &[
        mnist!("train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        mnist!("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        mnist!("t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        mnist!("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ],
    layout: Layout::Mnist,
};

/// Kuzushiji-MNIST.
pub(super) const KMNIST: DatasetSpec = DatasetSpec {
    name: "kmnist",
    summary: "60,000 + 10,000 gray cursive Japanese characters, 28 × 28, 10 classes (21 MB)",
    licence: "CC-BY-SA-4.0",
    homepage: "https://github.com/rois-codh/kmnist",
    citation: "Clanuwat et al.: Deep Learning for Classical Japanese Literature, arXiv:1812.01718, 2018",
    classes: &["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
    splits: SPLITS,
    files: &[
        kmnist!("train-images-idx3-ubyte.gz", 18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
        kmnist!("train-labels-idx1-ubyte.gz", 29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
        kmnist!("t10k-images-idx3-ubyte.gz", 3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
        kmnist!("t10k-labels-idx1-ubyte.gz", 5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
    ],
    layout: Layout::Mnist,
};
