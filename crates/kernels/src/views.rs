//! Views of images that lie on a device as bytes: the table of what was drawn, which the kernels of `cuda/views.cu` read.
//!
//! The kernels do the steps that SimCLR's, BYOL's and DINO's views are made of, on 8-bit levels with the rounding of the crate
//! `augment`. A table holds views of one size and number of channels; every entry is checked here, once, so that nothing that a kernel reads
//! or writes through it lies outside of its memory.

use candle_core::{Result, bail};

mod images;

pub use images::DeviceImages;

/// A step of a view after crop, resizing and flip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ViewStep<'a> {
    /// Levels times a factor.
    Brightness(f32),
    /// Distances from the view's mean luma times a factor.
    Contrast(f32),
    /// Distances from a pixel's own luma times a factor; nothing in one channel.
    Saturation(f32),
    /// Hue turned by so many 255ths of the circle; nothing in one channel.
    Hue(i32),
    /// Luma in all three channels; nothing in one.
    Grayscale,
    /// A symmetric blur with reflected edges, across and down: the weights from the centre outwards, not rounded in between.
    Blur(&'a [f32]),
    /// Levels from this one on inverted.
    Solarize(u8),
    /// A rectangle filled with the levels that stand for nothing. What lies beyond the view is ignored.
    Erase {
        /// Distance from the left edge in pixels.
        left: u32,
        /// Distance from the top edge in pixels.
        top: u32,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// A channel filled with the level that stands for nothing.
    DropChannel(usize),
    /// Levels cut to these bits.
    Mask(u8),
}

/// Where a view is cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewCrop {
    /// Where the image's first byte lies among those on the device; rows of interleaved channels follow one another.
    pub place: u64,
    /// The image's width and height in pixels.
    pub image: (u32, u32),
    /// The crop's left, top, width and height in pixels.
    pub crop: (u32, u32, u32, u32),
    /// Whether left and right change places.
    pub flip: bool,
}

/// How levels become values: `level · factor + offset`; and the level that stands for nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ViewChannel {
    /// The factor.
    pub factor: f32,
    /// The offset.
    pub offset: f32,
    /// The level of what is erased.
    pub nothing: u8,
}

/// Views of one size, drawn: words for the kernels.
#[derive(Debug, Clone)]
pub struct ViewTable {
    size: usize,
    cubic: bool,
    channels: Vec<ViewChannel>,
    views: Vec<u32>,
    steps: Vec<u32>,
    taps: Vec<f32>,
    /// The first byte after the last image.
    end: u64,
    /// The longest side of a crop.
    longest: u32,
}

/// The views of `table`, of images that are `bytes`, by the kernels' sources behind a C++ compiler (`c++`, or what `CXX` names): what a
/// device would make of them.
///
/// # Errors
/// A table of images beyond the bytes.
///
/// # Panics
/// When there is no such compiler.
#[cfg(any(test, feature = "emulation"))]
pub fn emulated(bytes: &[u8], table: &ViewTable) -> Result<Vec<f32>> {
    use crate::cuda::{emulated::Host, launch::Engine, launch::Upload, launch::View, views};
    let host = Host::new();
    let images = host.upload(Upload::U8(bytes))?;
    let words = host.upload(Upload::U32(&table.words()))?;
    Ok(views::render(&host, &images, bytes.len(), table, View::all(&words), candle_core::DType::F32)?.read())
}

/// Words of a view and of a step, as `views.cu` has them.
const VIEW_WORDS: usize = 12;
const STEP_WORDS: usize = 8;
/// The word of a view that holds the end of its steps.
const LAST: usize = 9;
/// The largest side of a view, so that sums and places within it fit 32 bits.
const MOST_SIDE: usize = 16384;

impl ViewTable {
    /// An empty table of `size` × `size` views with one or three `channels`, resized with triangles (bilinear) or Catmull and Rom's
    /// cubic, both antialiased.
    ///
    /// # Errors
    /// Another number of channels, no size.
    pub fn new(size: usize, cubic: bool, channels: &[ViewChannel]) -> Result<Self> {
        if !matches!(channels.len(), 1 | 3) || !(1..=MOST_SIDE).contains(&size) {
            bail!("views: {} channels of {size} pixels, expected 1 or 3 channels and a side of 1 to {MOST_SIDE}", channels.len());
        }
        let channels = channels.to_vec();
        Ok(Self { size, cubic, channels, views: Vec::new(), steps: Vec::new(), taps: Vec::new(), end: 0, longest: 1 })
    }

    /// Adds a view without steps.
    ///
    /// # Errors
    /// A crop that is empty or reaches beyond its image.
    pub fn push(&mut self, view: &ViewCrop) -> Result<()> {
        let (left, top, width, height) = view.crop;
        let inside = |start: u32, length: u32, side: u32| length > 0 && u64::from(start) + u64::from(length) <= u64::from(side);
        if !inside(left, width, view.image.0) || !inside(top, height, view.image.1) {
            bail!("views: the crop {:?} (left, top, width, height) is empty or not within {:?}", view.crop, view.image);
        }
        let bytes = u64::from(view.image.0) * u64::from(view.image.1) * self.channels.len() as u64;
        let Some(end) = view.place.checked_add(bytes) else { bail!("views: an image at byte {} has no end", view.place) };
        let first = self.count_of_steps()?;
        let (low, high) = (view.place as u32, (view.place >> 32) as u32);
        self.views.extend([low, high, view.image.0, left, top, width, height, u32::from(view.flip), first, first, 0, 0]);
        self.end = self.end.max(end);
        self.longest = self.longest.max(width).max(height);
        Ok(())
    }

    /// Adds a step to the view that was added last.
    ///
    /// # Errors
    /// No view yet, a factor that is not finite, a channel that the view lacks, a blur without weights.
    pub fn step(&mut self, step: &ViewStep<'_>) -> Result<()> {
        let words = match *step {
            ViewStep::Brightness(factor) => self.factor(0, factor)?,
            ViewStep::Contrast(factor) => self.factor(1, factor)?,
            ViewStep::Saturation(factor) => self.factor(2, factor)?,
            ViewStep::Hue(shift) => [3, (shift & 0xff) as u32, 0, 0, 0],
            ViewStep::Grayscale => [4, 0, 0, 0, 0],
            ViewStep::Blur(weights) => {
                if weights.is_empty() || weights.len() > MOST_SIDE || weights.iter().any(|w| !w.is_finite()) {
                    bail!("views: a blur of {} weights, expected 1 to {MOST_SIDE}, all finite", weights.len());
                }
                let Ok(first) = u32::try_from(self.taps.len()) else { bail!("views: too many weights of blurs for one table") };
                self.taps.extend(weights);
                [5, first, weights.len() as u32 - 1, 0, 0]
            }
            ViewStep::Solarize(threshold) => [6, threshold.into(), 0, 0, 0],
            ViewStep::Erase { left, top, width, height } => {
                [7, left, top, left.saturating_add(width), top.saturating_add(height)]
            }
            ViewStep::DropChannel(c) if c < self.channels.len() => [8, c as u32, 0, 0, 0],
            ViewStep::DropChannel(c) => bail!("views: channel {c} of {} does not exist", self.channels.len()),
            ViewStep::Mask(mask) => [9, mask.into(), 0, 0, 0],
        };
        if self.views.is_empty() {
            bail!("views: a step without a view");
        }
        self.steps.extend(words);
        self.steps.extend([0; STEP_WORDS - 5]);
        let last = self.count_of_steps()?;
        let at = self.views.len() - VIEW_WORDS + LAST;
        self.views[at] = last;
        Ok(())
    }

    /// How many views there are.
    pub fn len(&self) -> usize {
        self.views.len() / VIEW_WORDS
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// Side of the views in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Channels of the views and of the images.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Whether crops are resized with the cubic.
    pub fn is_cubic(&self) -> bool {
        self.cubic
    }

    /// The words of all views.
    pub fn view_words(&self) -> &[u32] {
        &self.views
    }

    /// Everything that the kernels read, as words: views, steps, weights of blurs, and factor, offset and level of nothing a channel.
    #[cfg(any(feature = "cuda", feature = "emulation", test))]
    pub(crate) fn words(&self) -> Vec<u32> {
        let normal = self.channels.iter().flat_map(|c| [c.factor, c.offset, c.nothing.into()]);
        let floats = self.taps.iter().copied().chain(normal).map(f32::to_bits);
        self.views.iter().chain(&self.steps).copied().chain(floats).collect()
    }

    /// Where steps, weights and channels begin among the words.
    #[cfg(any(feature = "cuda", feature = "emulation", test))]
    pub(crate) fn places(&self) -> [usize; 3] {
        let steps = self.views.len();
        let taps = steps + self.steps.len();
        [steps, taps, taps + self.taps.len()]
    }

    /// Pixels that weigh in one output pixel along an axis, at most: the stride of the table of weights.
    pub fn window(&self) -> usize {
        let scale = (f64::from(self.longest) / self.size as f64).max(1.0);
        let radius = if self.cubic { 2.0 } else { 1.0 } * scale;
        2 * radius.ceil() as usize + 1
    }

    /// Refuses a table whose images reach beyond `bytes`.
    ///
    /// # Errors
    /// When one does.
    pub fn check_within(&self, bytes: usize) -> Result<()> {
        if self.end > bytes as u64 {
            bail!("views: an image ends at byte {}, and {bytes} bytes lie on the device", self.end);
        }
        Ok(())
    }

    fn factor(&self, kind: u32, factor: f32) -> Result<[u32; 5]> {
        if !factor.is_finite() || factor < 0.0 {
            bail!("views: a factor of {factor}, expected a finite number from 0");
        }
        Ok([kind, factor.to_bits(), 0, 0, 0])
    }

    /// The number of steps, which the kernels count in 31 bits, words included.
    fn count_of_steps(&self) -> Result<u32> {
        if self.steps.len() > i32::MAX as usize {
            bail!("views: too many steps for one table");
        }
        Ok((self.steps.len() / STEP_WORDS) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: ViewChannel = ViewChannel { factor: 1.0, offset: 0.0, nothing: 7 };
    const CROP: ViewCrop = ViewCrop { place: 5, image: (6, 4), crop: (1, 0, 5, 4), flip: true };

    #[test]
    fn words_lie_where_the_kernels_look_for_them() -> Result<()> {
        let mut table = ViewTable::new(3, false, &[CHANNEL; 3])?;
        table.push(&ViewCrop { place: (7 << 32) + 5, ..CROP })?;
        table.step(&ViewStep::Blur(&[0.5, 0.25]))?;
        table.push(&CROP)?;
        table.step(&ViewStep::Brightness(1.5))?;
        table.step(&ViewStep::Erase { left: 1, top: u32::MAX, width: 3, height: 4 })?;
        table.push(&CROP)?;
        let words = table.view_words();
        assert_eq!((table.len(), &words[..LAST + 1]), (3, &[5, 7, 6, 1, 0, 5, 4, 1, 0, 1][..]));
        assert_eq!([words[VIEW_WORDS + 8], words[VIEW_WORDS + LAST]], [1, 3]);
        assert_eq!([words[2 * VIEW_WORDS + 8], words[2 * VIEW_WORDS + LAST]], [3, 3]);
        let (words, [steps, taps, normal]) = (table.words(), table.places());
        assert_eq!(words[..steps], *table.view_words());
        assert_eq!((steps, taps, normal, words.len()), (3 * VIEW_WORDS, 3 * VIEW_WORDS + 3 * STEP_WORDS, taps + 2, normal + 9));
        assert_eq!(words[taps..], [0.5, 0.25, 1.0, 0.0, 7.0, 1.0, 0.0, 7.0, 1.0, 0.0, 7.0_f32].map(f32::to_bits));
        let steps = &words[steps..];
        assert_eq!(steps[..3], [5, 0, 1]);
        assert_eq!(steps[STEP_WORDS..STEP_WORDS + 2], [0, 1.5f32.to_bits()]);
        assert_eq!(steps[2 * STEP_WORDS..2 * STEP_WORDS + 5], [7, 1, u32::MAX, 4, u32::MAX]);
        // 5 pixels become 3: a radius of 5/3.
        assert_eq!(table.window(), 5);
        assert_eq!(ViewTable::new(3, true, &[CHANNEL])?.window(), 5);
        Ok(())
    }

    #[test]
    fn what_would_reach_outside_is_refused() -> Result<()> {
        assert!(ViewTable::new(3, false, &[CHANNEL; 2]).is_err() && ViewTable::new(0, false, &[CHANNEL]).is_err());
        let mut table = ViewTable::new(3, false, &[CHANNEL])?;
        assert!(table.step(&ViewStep::Grayscale).is_err(), "no view yet");
        for crop in [(0, 0, 7, 1), (6, 0, 1, 1), (0, 0, 0, 1), (0, 4, 1, 1), (u32::MAX, 0, 2, 1)] {
            assert!(table.push(&ViewCrop { crop, ..CROP }).is_err(), "{crop:?}");
        }
        assert!(table.push(&ViewCrop { place: u64::MAX, ..CROP }).is_err());
        table.push(&CROP)?;
        assert!(table.check_within(5 + 24).is_ok() && table.check_within(5 + 23).is_err());
        for step in [
            ViewStep::DropChannel(1),
            ViewStep::Brightness(f32::NAN),
            ViewStep::Contrast(-1.0),
            ViewStep::Blur(&[]),
            ViewStep::Blur(&[f32::INFINITY]),
        ] {
            assert!(table.step(&step).is_err(), "{step:?}");
        }
        assert_eq!((table.len(), table.steps.len(), table.taps.len()), (1, 0, 0));
        Ok(())
    }
}
