//! Files of known formats, read strictly: every length is checked before anything is believed.

pub(crate) mod archive;
pub mod cifar;
pub mod idx;
pub(crate) mod manifest;
pub(crate) mod npz;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;
pub(crate) mod stl10;
pub(crate) mod webdataset;
