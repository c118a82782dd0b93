//! What can go wrong between a configuration and a finished run.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate, or of one below it with what it said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Images could not be opened or read.
    #[error(transparent)]
    Data(#[from] twinsight_datasets::Error),
    /// A view plan is wrong, or an image could not be turned into views.
    #[error(transparent)]
    Augment(#[from] twinsight_augment::Error),
    /// An encoder is unknown or could not be built, read or written.
    #[error(transparent)]
    Encoder(#[from] twinsight_encoders::Error),
    /// A method is unknown, wrongly configured or failed.
    #[error(transparent)]
    Method(#[from] twinsight_ssl_methods::Error),
    /// Parameters, optimizer or checkpoint failed.
    #[error(transparent)]
    Nn(#[from] twinsight_nn::Error),
    /// A nearest-neighbour search failed.
    #[error(transparent)]
    Knn(#[from] twinsight_knn::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A setting is unknown or out of range.
    #[error("{0}")]
    Config(String),
    /// An encoder makes a vector that is not finite.
    #[error(
        "the encoder makes {value} of image {image}: its weights are damaged, or it was trained until its numbers overflowed"
    )]
    Vector {
        /// The image, by its name in the data set.
        image: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A run folder is not what it should be.
    #[error("{path}: {reason}")]
    Run {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Training went wrong in a way that more steps will not mend.
    #[error("{0}")]
    Diverged(Diagnosis),
}

/// Why training was stopped, in words that say what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The step at which it was seen, counted from 0.
    pub step: u64,
    /// What was seen.
    pub finding: String,
    /// The likely cause and what to change.
    pub advice: String,
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stopped at step {}: {}. {}", self.step, self.finding, self.advice)
    }
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::Run`] about `path`.
    pub(crate) fn run(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Run { path: path.into(), reason: reason.into() }
    }
}
