//! EuroSAT: patches of Sentinel-2 images in red, green and blue.

use super::{Checksum, DatasetSpec, Layout, RemoteFile, Size, SplitSizes};

/// EuroSAT in three channels.
pub(super) const EUROSAT: DatasetSpec = DatasetSpec {
    name: "eurosat",
    summary: "27,000 satellite images, 64 × 64, 10 kinds of land use (94 MB)",
    licence: "MIT",
    homepage: "https://github.com/phelber/EuroSAT",
    citation: "Helber, Bischke, Dengel, Borth: EuroSAT, IEEE JSTARS 2019",
    classes: &[],
    splits: SplitSizes { train: 27_000, test: 0 },
    files: &[RemoteFile {
        name: "EuroSAT.zip",
        urls: &[
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
        ],
        size: Size::Exact(94_280_567),
        checksum: Checksum::Sha256("8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd"),
    }],
    layout: Layout::Folder("2750"),
};
