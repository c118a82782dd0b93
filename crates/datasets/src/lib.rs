//! Images for training and evaluation, labelled or not, from wherever they lie: folders, manifests, tar shards, Parquet tables, npz and
//! IDX files, CIFAR's and STL-10's binaries, packed files, and a small data set embedded in the library.
//!
//! Everything is a [`Dataset`]: a numbered list of images, each with an optional label. [`open`] takes a path or the name of an
//! entry of [`DATASETS`], or a place elsewhere ([`remote`]), and says in a [`ScanReport`] how labels were understood and which files can't be read. The crate
//! knows no tensor library; an image is an [`image::DynamicImage`], or [`Bands`] where it has other channels or depths.

mod bands;
#[cfg(feature = "candle-datasets")]
pub mod candle;
mod copies;
mod dataset;
pub mod decode;
#[cfg(feature = "download")]
pub mod download;
pub mod duplicates;
mod encoded;
mod error;
#[cfg(feature = "fashion-mnist-mini")]
mod fashion_mini;
pub mod folder;
pub mod formats;
mod kept;
mod labels;
pub mod levels;
#[cfg(any(feature = "download", feature = "object-store"))]
mod lock;
mod memory;
mod open;
pub mod packed;
mod part;
mod place;
mod registry;
pub mod remote;
pub mod shards;
mod sources;
mod unpack;

pub use bands::{BandImages, BandLevels, Bands};
pub use dataset::{Dataset, Sample, Subset, hold_out, spread, verify};
pub use encoded::{EncodedImages, Scan};
pub use error::{Error, Result};
pub use folder::SingleImage;
pub use kept::InMemory;
pub use levels::{LevelRange, Levels};
pub use memory::PackedImages;
pub use open::{BadFile, LabelMode, OpenOptions, Opened, ScanReport, Whole, is_data_file, open};
pub use packed::PackedFile;
pub use part::{Choose, Part, Rect, Wanted};
pub use registry::{Checksum, DATASETS, DatasetSpec, GROUPS, Layout, RemoteFile, Size, SplitSizes, data_dir, dataset, datasets};
pub use unpack::unpack;
