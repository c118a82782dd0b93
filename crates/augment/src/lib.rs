//! An image in, random views out.
//!
//! A [`ViewPlan`] says which views a method wants of each image: how many, of what size, through which [`Transform`]s.
//! [`render`] makes one of them and writes it, normalised, as channels × height × width `f32`; [`render_image`] makes the
//! same view as a picture. The plans of SimCLR, BYOL, DINO and of evaluation are constructors of [`ViewPlan`], with their
//! settings in [`SimclrViews`], [`ByolViews`] and [`DinoViews`].
//!
//! # Randomness
//! A view depends on the plan, the image and its [`DrawKey`] (seed, epoch, sample, view) alone: not on threads, on the
//! order of calls or on a global generator. Within a view the transforms draw one after another, in the plan's order, from one
//! stream; what each draws is in the documentation of its [`Transform`].
//!
//! # Semantics
//! Random choices follow torchvision's transforms, and pixels follow what these do to a PIL image: 8-bit steps with PIL's
//! rounding between operations, so that results are the reference's up to a level. The operations themselves, without
//! randomness, are in [`ops`].
//!
//! # Parts of images
//! Where a view is cut from an image depends on the image's size alone, so that a reader can ask what is [`needed`] before it decodes, and
//! give [`render_excerpt`] that much. Where the view is much smaller than what it is cut from, the reader may give means of squares of
//! pixels instead of the pixels: see [`Needed::reduction`].
//!
//! # Drawing and rendering
//! All that is random about a view is a [`DrawnView`]: plain data, from which [`render_drawn`] makes it. The functions above draw and render
//! at once, through the same two steps. So another renderer of the same data (on a GPU, say) has the same distribution.
//!
//! # Kinds of images
//! Views have 1 to 16 channels. Those of other than 1 and 3 (satellites' bands, say) are made of images with as many, by
//! [`render_raster`] from a [`Raster`]; plans for them may hold no step that needs colour. For views of 1 and 3 channels
//! any 8- or 16-bit image of 1 to 4 channels is taken (floating-point images too, cut to 8 bits). The crop is resized at the image's own
//! depth; then 16 bits become 8 (`v / 257`, rounded), an alpha channel is dropped (as PIL's `convert("RGB")` does: pixels that were
//! transparent show the colour stored under them), and colour becomes the plan's [`ViewPlan::channels`]: gray is
//! replicated to three channels, colour becomes ITU-R 601 luma. In one-channel views brightness, contrast, blur, solarise and
//! erasing work; saturation, hue and grayscale change nothing (their draws are made all the same).
//!
//! ```
//! use twinsight_augment::{DrawKey, SimclrViews, ViewPlan, render};
//!
//! # fn main() -> twinsight_augment::Result<()> {
//! let plan = ViewPlan::simclr(32, 3, &SimclrViews::for_size(32));
//! plan.check()?;
//! let image = image::DynamicImage::new_rgb8(32, 32);
//! let mut view = vec![0.0; plan.view_len(0)];
//! render(&plan, 0, &image, DrawKey { seed: 0, epoch: 0, sample: 7, view: 0 }, &mut view)?;
//! # Ok(())
//! # }
//! ```

mod draw;
mod drawn;
mod error;
pub mod masks;
mod normalize;
pub mod ops;
mod pixels;
mod plan;
mod raster;
mod render;
pub mod sample;
mod transform;
mod views;

pub use draw::{DrawKey, Draws};
pub use drawn::{DrawnView, Step, Window};
pub use error::{Error, Result};
pub use normalize::Normalize;
pub use pixels::Pixels;
pub use plan::{ViewGroup, ViewPlan, ViewSpec};
pub use raster::{Levels, Raster};
pub use render::{Excerpt, Needed, needed, render, render_drawn, render_excerpt, render_image, render_raster};
pub use transform::{Interpolation, Transform};
pub use views::{ByolViews, DinoViews, SimclrViews};
