//! CIFAR-10 and CIFAR-100 in their binary form.

use super::{Checksum, DatasetSpec, Kind, Layout, RemoteFile, Size, SplitSizes};
use crate::formats::cifar::CLASSES_10;

const SPLITS: SplitSizes = SplitSizes { train: 50_000, test: 10_000 };
const CITATION: &str = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009";
const LICENCE: &str = "not stated; free for research by custom";
const HOMEPAGE: &str = "https://www.cs.toronto.edu/~kriz/cifar.html";

/// CIFAR-10.
pub(super) const CIFAR10: DatasetSpec = DatasetSpec {
    name: "cifar10",
    summary: "50,000 + 10,000 colour pictures, 32 × 32, 10 classes (170 MB)",
    licence: LICENCE,
    homepage: HOMEPAGE,
    citation: CITATION,
    classes: &CLASSES_10,
    splits: SPLITS,
    files: &[RemoteFile {
        name: "cifar-10-binary.tar.gz",
        urls: &[
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
        ],
        size: Size::Exact(170_052_171),
        checksum: Checksum::Sha256("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    }],
    layout: Layout::Cifar(Kind::Ten),
};

/// CIFAR-100.
pub(super) const CIFAR100: DatasetSpec = DatasetSpec {
    name: "cifar100",
    summary: "50,000 + 10,000 colour pictures, 32 × 32, 100 classes (169 MB)",
    licence: LICENCE,
    homepage: HOMEPAGE,
    citation: CITATION,
    classes: &[],
    splits: SPLITS,
    files: &[RemoteFile {
        name: "cifar-100-binary.tar.gz",
        urls: &["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"],
        size: Size::Exact(168_513_733),
        checksum: Checksum::Sha256("58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    }],
    layout: Layout::Cifar(Kind::Hundred),
};
