//! A data set of one image file: for looking at the views of one picture.

use std::path::Path;

use image::DynamicImage;

use crate::decode::decode;
use crate::{Dataset, Error, Result, Sample};

/// One image file.
pub struct SingleImage {
    name: String,
    image: DynamicImage,
}

impl SingleImage {
    /// Reads `path`.
    ///
    /// # Errors
    /// A file that is no readable image.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { name: path.display().to_string(), image: decode(path)? })
    }
}

impl Dataset for SingleImage {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        1
    }
    fn get(&self, index: usize) -> Result<Sample> {
        match index {
            0 => Ok(Sample { image: self.image.clone(), label: None }),
            _ => Err(Error::BadSetting(format!("{}: is one image; image {index} does not exist", self.name))),
        }
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn classes(&self) -> Option<&[String]> {
        None
    }
    fn id(&self, _: usize) -> String {
        self.name.clone()
    }
    fn channels(&self) -> usize {
        if self.image.color().has_color() { 3 } else { 1 }
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((self.image.width(), self.image.height()))
    }
}
