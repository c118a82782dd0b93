//! Images that are no pictures for the eye: 1 to 16 channels of 8 or 16 bits (bands of a satellite, stains, slices).
//!
//! A data set of such images gives its levels by [`Dataset::bands`]; what [`Dataset::get`] gives is a picture of them for people: the
//! first three channels as red, green and blue, or the first one as gray.

use image::{DynamicImage, GrayImage, ImageBuffer, Luma, RgbImage};

use crate::{Dataset, Error, Result, Sample};

/// Most channels of an image.
pub const MAX_CHANNELS: usize = 16;

/// One image: rows of pixels of interleaved channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bands {
    width: u32,
    height: u32,
    channels: usize,
    levels: BandLevels,
}

/// Levels, height × width × channels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BandLevels {
    /// 8 bits a channel.
    Bytes(Vec<u8>),
    /// 16 bits a channel.
    Words(Vec<u16>),
}

impl BandLevels {
    /// How many levels there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(v) => v.len(),
            Self::Words(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn part(&self, range: std::ops::Range<usize>) -> Option<Self> {
        Some(match self {
            Self::Bytes(v) => Self::Bytes(v.get(range)?.to_vec()),
            Self::Words(v) => Self::Words(v.get(range)?.to_vec()),
        })
    }

    /// Level number `i` in 8 bits.
    fn byte(&self, i: usize) -> u8 {
        match self {
            Self::Bytes(v) => v[i],
            Self::Words(v) => ((u32::from(v[i]) + 128) / 257) as u8,
        }
    }
}

impl Bands {
    /// `levels` of a `width` × `height` image of `channels` (1 to 16).
    ///
    /// # Errors
    /// Another number of channels, no pixels, levels of another number.
    pub fn new(width: u32, height: u32, channels: usize, levels: BandLevels) -> Result<Self> {
        let wanted = width as usize * height as usize * channels;
        if !(1..=MAX_CHANNELS).contains(&channels) || wanted == 0 || levels.len() != wanted {
            let found = levels.len();
            let reason = format!("{found} levels are no image of {width} × {height} pixels and {channels} channels (1 to 16)");
            return Err(Error::BadSetting(reason));
        }
        Ok(Self { width, height, channels, levels })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Channels, 1 to 16.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The levels: height × width × channels.
    pub fn levels(&self) -> &BandLevels {
        &self.levels
    }

    /// The levels, where they have 16 bits.
    pub(crate) fn into_words(self) -> Option<Vec<u16>> {
        match self.levels {
            BandLevels::Words(words) => Some(words),
            BandLevels::Bytes(_) => None,
        }
    }

    /// The levels, to be mapped.
    pub(crate) fn levels_mut(&mut self) -> &mut BandLevels {
        &mut self.levels
    }

    /// A picture of them in 8 bits: the first three channels as colour, or the first one as gray where there are one or two.
    pub fn preview(&self) -> DynamicImage {
        let shown = if self.channels < 3 { 1 } else { 3 };
        let pixels = self.width as usize * self.height as usize;
        let raw = (0..pixels).flat_map(|p| (0..shown).map(move |c| p * self.channels + c)).map(|i| self.levels.byte(i)).collect();
        let image = match shown {
            1 => GrayImage::from_raw(self.width, self.height, raw).map(DynamicImage::from),
            _ => RgbImage::from_raw(self.width, self.height, raw).map(DynamicImage::from),
        };
        // The number of levels was checked when the image was made.
        image.unwrap_or_default()
    }

    /// The planes of the channels as gray pictures of the image's own depth.
    pub(crate) fn planes(&self) -> Vec<DynamicImage> {
        let plane = |c: usize| {
            let image = match &self.levels {
                BandLevels::Bytes(v) => {
                    let plane = v[c..].iter().step_by(self.channels).copied().collect();
                    GrayImage::from_raw(self.width, self.height, plane).map(DynamicImage::from)
                }
                BandLevels::Words(v) => {
                    let plane = v[c..].iter().step_by(self.channels).copied().collect();
                    ImageBuffer::<Luma<u16>, _>::from_raw(self.width, self.height, plane).map(DynamicImage::from)
                }
            };
            image.unwrap_or_default()
        };
        (0..self.channels).map(plane).collect()
    }
}

/// Images of one size and any channels in one block of memory.
#[derive(Debug, Clone)]
pub struct BandImages {
    name: String,
    levels: BandLevels,
    shape: (u32, u32, usize),
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
}

impl BandImages {
    /// Images in `levels` of (width, height, channels), with one label each or none at all.
    ///
    /// # Errors
    /// Levels that are no whole number of images, labels of another number or past the classes, channels other than 1 to 16.
    pub fn new(
        name: impl Into<String>,
        levels: BandLevels,
        shape: (u32, u32, usize),
        labels: Option<Vec<u32>>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let name = name.into();
        let (width, height, channels) = shape;
        let size = width as usize * height as usize * channels;
        if size == 0 || channels > MAX_CHANNELS || !levels.len().is_multiple_of(size) {
            return Err(Error::BadSetting(format!(
                "{name}: {} levels are no whole number of {width} × {height} images of {channels} channels (1 to 16 are possible)",
                levels.len()
            )));
        }
        let count = levels.len() / size;
        if let Some(labels) = labels.as_ref().filter(|l| l.len() != count) {
            return Err(Error::BadSetting(format!("{name}: {count} images and {} labels", labels.len())));
        }
        if let Some(label) = labels.iter().flatten().find(|&&l| l as usize >= classes.len()) {
            return Err(Error::BadSetting(format!("{name}: label {label} is not below the {} classes", classes.len())));
        }
        Ok(Self { name, levels, shape, labels, classes })
    }

    fn image(&self, index: usize) -> Result<Bands> {
        let (width, height, channels) = self.shape;
        let size = width as usize * height as usize * channels;
        let none = || Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()));
        let levels = index.checked_mul(size).and_then(|start| self.levels.part(start..start + size)).ok_or_else(none)?;
        Bands::new(width, height, channels, levels)
    }
}

impl Dataset for BandImages {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.levels.len() / (self.shape.0 as usize * self.shape.1 as usize * self.shape.2)
    }
    fn get(&self, index: usize) -> Result<Sample> {
        Ok(Sample { image: self.image(index)?.preview(), label: self.label(index) })
    }
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        Some(self.image(index))
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|_| self.classes.as_slice())
    }
    fn channels(&self) -> usize {
        self.shape.2
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((self.shape.0, self.shape.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_planes_and_previews_agree() -> Result<()> {
        let words: Vec<u16> = (0..2 * 3 * 2 * 4).map(|i| i * 1000).collect();
        let set =
            BandImages::new("x", BandLevels::Words(words.clone()), (3, 2, 4), Some(vec![1, 0]), vec!["a".into(), "b".into()])?;
        assert_eq!((set.len(), set.channels(), set.label(0), set.side()), (2, 4, Some(1), Some((3, 2))));
        let second = set.bands(1).expect("bands")?;
        assert_eq!(second.levels(), &BandLevels::Words(words[24..].to_vec()));
        let preview = second.preview().to_rgb8();
        assert_eq!(preview.get_pixel(1, 0).0, [28, 29, 30].map(|i: u32| ((i * 1000 + 128) / 257) as u8));
        assert_eq!(second.planes()[3].to_luma16().get_pixel(1, 0).0, [31_000]);
        assert!(set.get(2).is_err() && Bands::new(1, 1, 17, BandLevels::Bytes(vec![0; 17])).is_err());
        assert!(BandImages::new("x", BandLevels::Bytes(vec![0; 7]), (1, 1, 2), None, Vec::new()).is_err());
        Ok(())
    }
}
