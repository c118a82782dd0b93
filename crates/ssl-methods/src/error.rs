//! What can go wrong in this crate.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate; each names the method, key or tensor and says what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No method has this name.
    #[error("unknown method `{name}`; did you mean `{nearest}`? Known methods: {known}")]
    UnknownMethod {
        /// What was asked for.
        name: String,
        /// The known name that is spelt most alike.
        nearest: &'static str,
        /// All known names.
        known: String,
    },
    /// A setting that the method does not have.
    #[error("{method} has no setting `{key}`; did you mean `{nearest}`? Known settings: {known}")]
    UnknownKey {
        /// The method.
        method: &'static str,
        /// What was set.
        key: String,
        /// The known key that is spelt most alike.
        nearest: String,
        /// All known keys.
        known: String,
    },
    /// A setting that is out of its range.
    #[error("{method}: setting {key} = {value}: expected {expected}")]
    BadValue {
        /// The method.
        method: &'static str,
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Settings that cannot be read: a value of the wrong type, say.
    #[error("{method}: settings: {reason}")]
    BadConfig {
        /// The method.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An encoder that the method cannot train.
    #[error("{method} hides patches and needs a vision transformer, such as vit_mini or vit_tiny; {encoder} has none")]
    EncoderKind {
        /// The method.
        method: &'static str,
        /// The encoder.
        encoder: &'static str,
    },
    /// Batches that are not those of the view plan.
    #[error("view batches do not fit the plan: {0}")]
    BadViews(String),
    /// The view plan is wrong.
    #[error(transparent)]
    Views(#[from] twinsight_augment::Error),
    /// The backbone.
    #[error(transparent)]
    Encoder(#[from] twinsight_encoders::Error),
    /// A layer, a parameter or the state.
    #[error(transparent)]
    Nn(#[from] twinsight_nn::Error),
    /// candle failed: shapes, types or a device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
