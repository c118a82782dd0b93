//! What can go wrong in this crate.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate; each names the file, key or tensor and says what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// candle failed: shapes, types or a device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A parameter was registered twice under one name.
    #[error("parameter `{0}` is registered twice; every parameter needs a name of its own")]
    DuplicateParameter(String),
    /// A file or a set of tensors lacks a tensor that the network has.
    #[error("{place}: tensor `{name}` is missing (expected shape {expected:?})")]
    MissingTensor {
        /// The file, or what else was read.
        place: String,
        /// The tensor's full name.
        name: String,
        /// The shape that the network has.
        expected: Vec<usize>,
    },
    /// A file or a set of tensors holds a tensor that the network does not have.
    #[error("{place}: tensor `{name}` belongs to no parameter of the network")]
    ExtraTensor {
        /// The file, or what else was read.
        place: String,
        /// The tensor's full name.
        name: String,
    },
    /// A tensor has another shape than the network's.
    #[error("{place}: tensor `{name}` has shape {found:?}, expected {expected:?}")]
    ShapeMismatch {
        /// The file, or what else was read.
        place: String,
        /// The tensor's full name.
        name: String,
        /// The shape found.
        found: Vec<usize>,
        /// The shape that the network has.
        expected: Vec<usize>,
    },
    /// A trainable parameter got no gradient, which would leave it silently untrained.
    #[error("parameter `{0}` got no gradient; it is trainable, so the loss must depend on it (or freeze it)")]
    MissingGradient(String),
    /// A gradient holds NaN or infinity; a step with it would spoil the parameter for good.
    #[error("the gradient of parameter `{0}` holds a value that is not finite")]
    NonFiniteGradient(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its ending says, or is damaged.
    #[error("{path}: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what was expected.
        reason: String,
    },
    /// A setting is out of its range.
    #[error("{0}")]
    BadSetting(String),
}
