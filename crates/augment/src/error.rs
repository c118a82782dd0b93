//! What can go wrong in this crate.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of a view plan is out of its range.
    #[error("views: `{key}` of `{group}` is {found}; expected {expected}")]
    BadSetting {
        /// The setting's name, as in the option structs: `crop_scale_min`, `jitter_p`, …
        key: String,
        /// The group of views that has it, or `plan`.
        group: String,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// An image without pixels.
    #[error("the image has no pixels ({width}×{height}); a view needs at least 1×1")]
    EmptyImage {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
    },
    /// A view that the plan does not have.
    #[error("view {view} does not exist: the plan has {count} views, counted from 0")]
    NoSuchView {
        /// The view asked for.
        view: usize,
        /// How many the plan has.
        count: usize,
    },
    /// An output slice of the wrong length.
    #[error("the output holds {found} values; the view is {channels}×{size}×{size} = {expected}")]
    WrongLength {
        /// The slice's length.
        found: usize,
        /// The length needed.
        expected: usize,
        /// Channels of the plan.
        channels: usize,
        /// Side of the view in pixels.
        size: usize,
    },
    /// The resizer refused the crop.
    #[error("resizing a {width}×{height} image: {reason}")]
    Resize {
        /// The image's width in pixels.
        width: u32,
        /// The image's height in pixels.
        height: u32,
        /// What the resizer said.
        reason: String,
    },
    /// A picture's channels can't become the plan's.
    #[error(
        "an image of {found} channels can't become a view of {expected}; views of other than 1 or 3 need as many as they have"
    )]
    WrongChannels {
        /// The image's channels.
        found: usize,
        /// The plan's.
        expected: usize,
    },
    /// A view could not be written as JPEG.
    #[error("JPEG of a {width}×{height}×{channels} view: {reason}")]
    Jpeg {
        /// The view's width in pixels.
        width: usize,
        /// The view's height in pixels.
        height: usize,
        /// The view's channels.
        channels: usize,
        /// Why not.
        reason: String,
    },
}
