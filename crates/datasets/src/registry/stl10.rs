//! STL-10: few images with labels and many without.

use super::{Checksum, DatasetSpec, Layout, RemoteFile, Size, SplitSizes};
use crate::formats::stl10::CLASSES;

const FILES: &[RemoteFile] = &[RemoteFile {
    name: "stl10_binary.tar.gz",
    urls: &[
        "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    ],
    size: Size::Exact(2_640_397_119),
    checksum: Checksum::Sha256("f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),
}];
const LICENCE: &str = "not stated; images from ImageNet, for research";
const HOMEPAGE: &str = "https://cs.stanford.edu/~acoates/stl10/";
const CITATION: &str = "Coates, Lee, Ng: An Analysis of Single Layer Networks in Unsupervised Feature Learning, AISTATS 2011";

/// Its labelled images.
pub(super) const STL10: DatasetSpec = DatasetSpec {
    name: "stl10",
    summary: "5,000 + 8,000 colour pictures, 96 × 96, 10 classes (2.6 GB with those of stl10-unlabelled)",
    licence: LICENCE,
    homepage: HOMEPAGE,
    citation: CITATION,
    classes: &CLASSES,
    splits: SplitSizes { train: 5_000, test: 8_000 },
    files: FILES,
    layout: Layout::Stl10,
};

/// Its images without labels.
pub(super) const STL10_UNLABELLED: DatasetSpec = DatasetSpec {
    name: "stl10-unlabelled",
    summary: "100,000 colour pictures without labels, 96 × 96 (the same 2.6 GB as stl10)",
    licence: LICENCE,
    homepage: HOMEPAGE,
    citation: CITATION,
    classes: &[],
    splits: SplitSizes { train: 100_000, test: 0 },
    files: FILES,
    layout: Layout::Stl10Unlabelled,
};
