//! A data set of one image file: for looking at the views of one picture.

use std::path::{Path, PathBuf};

use image::DynamicImage;

use crate::decode::{MAX_BYTES, bands, content, decode_mapped};
use crate::encoded::stored_words;
use crate::levels::LevelRange;
use crate::part::Wanted;
use crate::{Bands, Dataset, Error, Result, Sample};

/// One image file.
pub struct SingleImage {
    name: String,
    path: PathBuf,
    image: DynamicImage,
    bands: Option<Bands>,
}

impl SingleImage {
    /// Reads `path`, and maps levels of 16 bits by `levels`.
    ///
    /// # Errors
    /// A file that is no readable image.
    pub fn open(path: &Path, levels: Option<LevelRange>) -> Result<Self> {
        let bands = Self::bands_of(path, levels)?;
        let image = match &bands {
            Some(bands) => bands.preview(),
            None => decode_mapped(&content(path, MAX_BYTES + 1)?, path, levels, &mut |_, _| Wanted::all())?.image,
        };
        Ok(Self { name: path.display().to_string(), path: path.to_path_buf(), image, bands })
    }

    /// The bands of the file at `path`, with levels of 16 bits mapped by `levels`; `None` where it is a picture, of which no more is read than tells that.
    ///
    /// # Errors
    /// A file that can't be read, or of bands that can't be decoded.
    pub fn bands_of(path: &Path, levels: Option<LevelRange>) -> Result<Option<Bands>> {
        if !bands::is_tiff(&content(path, 4)?) {
            return Ok(None);
        }
        let raw = content(path, MAX_BYTES + 1)?;
        let has_bands = bands::shape(std::io::Cursor::new(&raw)).is_some_and(|s| !s.is_picture);
        let bands = has_bands.then(|| bands::decode(raw, path)).transpose()?;
        Ok(match levels {
            Some(range) => bands.map(|bands| range.bands(bands)),
            None => bands,
        })
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
    fn bands(&self, _: usize) -> Option<Result<Bands>> {
        self.bands.clone().map(Ok)
    }
    fn words(&self, index: usize) -> Option<Result<Vec<u16>>> {
        if index > 0 {
            return None;
        }
        content(&self.path, MAX_BYTES + 1).and_then(|raw| stored_words(&raw, &self.path)).transpose()
    }
    fn file(&self, index: usize) -> Option<PathBuf> {
        (index == 0).then(|| self.path.clone())
    }
    fn id(&self, _: usize) -> String {
        self.name.clone()
    }
    fn channels(&self) -> usize {
        match &self.bands {
            Some(bands) => bands.channels(),
            None if self.image.color().has_color() => 3,
            None => 1,
        }
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((self.image.width(), self.image.height()))
    }
}
