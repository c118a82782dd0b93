//! Images of one size kept as bytes: small data sets that were decoded once.

use image::{DynamicImage, GrayImage, RgbImage};

use crate::{Dataset, Error, Result, Sample};

/// Images of one size, 1 or 3 channels, 8 bits, in one block of bytes (rows of interleaved pixels, image after image).
#[derive(Debug, Clone)]
pub struct PackedImages {
    name: String,
    pixels: Vec<u8>,
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
    width: u32,
    height: u32,
    channels: usize,
}

impl PackedImages {
    /// Images in `pixels`, each `height · width · channels` bytes, with one label each or none at all.
    ///
    /// # Errors
    /// Bytes that are no whole number of images, labels of another number or past the classes, channels other than 1 and 3.
    pub fn new(
        name: impl Into<String>,
        pixels: Vec<u8>,
        (width, height, channels): (u32, u32, usize),
        labels: Option<Vec<u32>>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let name = name.into();
        let size = width as usize * height as usize * channels;
        if !matches!(channels, 1 | 3) || size == 0 || !pixels.len().is_multiple_of(size) {
            return Err(Error::BadSetting(format!(
                "{name}: {} bytes are no whole number of {width} × {height} images of {channels} channels (1 or 3 are possible)",
                pixels.len()
            )));
        }
        if let Some(labels) = &labels {
            if labels.len() != pixels.len() / size {
                return Err(Error::BadSetting(format!("{name}: {} images and {} labels", pixels.len() / size, labels.len())));
            }
            if let Some(label) = labels.iter().find(|&&l| l as usize >= classes.len()) {
                return Err(Error::BadSetting(format!("{name}: label {label} is not below the {} classes", classes.len())));
            }
        }
        Ok(Self { name, pixels, labels, classes, width, height, channels })
    }

    /// All bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// All labels.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    fn size(&self) -> usize {
        self.width as usize * self.height as usize * self.channels
    }
}

impl Dataset for PackedImages {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.pixels.len() / self.size()
    }
    fn get(&self, index: usize) -> Result<Sample> {
        let size = self.size();
        let bytes = self.pixels.get(index * size..(index + 1) * size).map(<[u8]>::to_vec);
        let image = bytes.and_then(|b| match self.channels {
            1 => GrayImage::from_raw(self.width, self.height, b).map(DynamicImage::from),
            _ => RgbImage::from_raw(self.width, self.height, b).map(DynamicImage::from),
        });
        match image {
            Some(image) => Ok(Sample { image, label: self.label(index) }),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|_| self.classes.as_slice())
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn is_kept(&self) -> bool {
        true
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((self.width, self.height))
    }
}
