//! What can go wrong in this crate.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate; each names the encoder, setting or file and says what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer, a parameter or a file of weights.
    #[error(transparent)]
    Nn(#[from] twinsight_nn::Error),
    /// candle failed: shapes, types or a device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// No encoder has this name.
    #[error("unknown encoder `{name}`; did you mean `{nearest}`? Known encoders: {known}")]
    UnknownEncoder {
        /// What was asked for.
        name: String,
        /// The known name that is spelt most alike.
        nearest: &'static str,
        /// All known names.
        known: String,
    },
    /// A setting of an encoder is out of its range.
    #[error("encoder setting {key} = {value}: expected {expected}")]
    BadSetting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A batch that the encoder cannot take.
    #[error("{0}")]
    BadInput(String),
    /// A file of weights that is damaged, malicious or holds something else.
    #[error("{path}: {reason}")]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what was expected.
        reason: String,
    },
    /// A format that can't hold an encoder.
    #[error("{0}")]
    Unsupported(String),
    /// A file that would be written over.
    #[error("{path}: {reason}")]
    Exists {
        /// The file.
        path: PathBuf,
        /// What to do.
        reason: String,
    },
    /// A file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of weights does not say which encoder it holds, or says it wrongly.
    #[error("{path}: {reason}")]
    BadMetadata {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
}
