//! Images for training and evaluation, labelled or not, from wherever they lie: folders, IDX files, CIFAR binaries, and a small
//! data set embedded in the library.
//!
//! Everything is a [`Dataset`]: a numbered list of images, each with an optional label. [`open`] takes a path or the name of an
//! entry of [`DATASETS`] and says in a [`ScanReport`] how labels were understood and which files can't be read. The crate
//! knows no tensor library; an image is an [`image::DynamicImage`].

#[cfg(feature = "candle-datasets")]
pub mod candle;
mod dataset;
#[cfg(feature = "download")]
pub mod download;
mod error;
#[cfg(feature = "fashion-mnist-mini")]
mod fashion_mini;
pub mod folder;
pub mod formats;
mod memory;
mod open;
mod registry;

pub use dataset::{Dataset, Sample, Subset, hold_out, spread, verify};
pub use error::{Error, Result};
pub use folder::SingleImage;
pub use memory::PackedImages;
pub use open::{BadFile, LabelMode, OpenOptions, Opened, ScanReport, open};
pub use registry::{DATASETS, DatasetSpec, Layout, RemoteFile, data_dir, dataset};
