//! Imagenette: ten classes of ImageNet, as a folder of JPEG files.

use super::{Checksum, DatasetSpec, Layout, RemoteFile, Size, SplitSizes};

const SPLITS: SplitSizes = SplitSizes { train: 9_469, test: 3_925 };
const LICENCE: &str = "Apache-2.0 (the selection); images from ImageNet, for research";
const HOMEPAGE: &str = "https://github.com/fastai/imagenette";
const CITATION: &str = "Howard: Imagenette, 2019";

/// Shorter side 320 pixels.
pub(super) const IMAGENETTE: DatasetSpec = DatasetSpec {
    name: "imagenette",
    summary: "9,469 + 3,925 photographs, shorter side 320, 10 classes of ImageNet (342 MB)",
    licence: LICENCE,
    homepage: HOMEPAGE,
    citation: CITATION,
    classes: &[],
    splits: SPLITS,
    files: &[RemoteFile {
        name: "imagenette2-320.tgz",
        urls: &["https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"],
        size: Size::Exact(341_663_724),
        checksum: Checksum::Md5("3df6f0d01a2c9592104656642f5e78a3"),
    }],
    layout: Layout::Folder("imagenette2-320"),
};

/// Shorter side 160 pixels.
pub(super) const IMAGENETTE_160: DatasetSpec = DatasetSpec {
    name: "imagenette-160",
    summary: "the same, shorter side 160 (99 MB)",
    licence: LICENCE,
    homepage: HOMEPAGE,
    citation: CITATION,
    classes: &[],
    splits: SPLITS,
    files: &[RemoteFile {
        name: "imagenette2-160.tgz",
        urls: &["https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"],
        size: Size::AtMost(110_000_000),
        checksum: Checksum::Md5("e793b78cc4c9e9a4ccc0c1155377a412"),
    }],
    layout: Layout::Folder("imagenette2-160"),
};
