//! Encoded images decoded once and kept: no image is decoded twice, and every bad file is known before training begins.

use std::path::PathBuf;

use image::{DynamicImage, GrayImage, RgbImage};
use rayon::prelude::*;

use crate::encoded::{EncodedImages, Item};
use crate::labels::Labels;
use crate::open::BadFile;
use crate::part::{Choose, Part, Rect};
use crate::place::Place;
use crate::{Bands, Dataset, Error, Result, Sample};

impl EncodedImages {
    /// Decodes everything, in parallel: (the images that can be read, the files that can't).
    ///
    /// # Errors
    /// Under `strict` the first bad file; no readable image at all.
    pub fn into_memory(self, strict: bool) -> Result<(InMemory, Vec<BadFile>)> {
        let is_bands = self.is_bands();
        let decode = |item: &Item| match is_bands {
            true => item.decode_bands(&self.root, self.levels).map(Kept::Bands),
            false => item.decode(&self.root, self.channels, self.levels).map(|image| Kept::Picture(Pixels::new(image))),
        };
        let decoded: Vec<Result<Kept>> = self.items.par_iter().map(decode).collect();
        let total = self.items.len();
        let (mut images, mut ids, mut kept, mut bad) = (Vec::with_capacity(total), Vec::new(), Vec::new(), Vec::new());
        let mut files = Vec::new();
        for (i, (result, item)) in decoded.into_iter().zip(self.items).enumerate() {
            match result {
                Ok(image) => {
                    images.push(image);
                    ids.push(item.id);
                    files.push(match item.place {
                        Place::File(path) => Some(path),
                        Place::Part { .. } => None,
                    });
                    kept.push(i);
                }
                Err(e) if strict => return Err(e),
                Err(e) => bad.push(BadFile::new(item.id, &e)),
            }
        }
        if let (true, Some(first)) = (images.is_empty(), bad.first()) {
            return Err(Error::NotFound(format!("{}: none of its {total} images can be read: {first}", self.root.display())));
        }
        let labels = self.labels.map(|l| Labels { of: kept.iter().map(|&i| l.of[i]).collect(), ..l });
        Ok((InMemory { name: self.name, images, ids, files, labels, channels: self.channels }, bad))
    }
}

/// Decoded images that keep their names.
pub struct InMemory {
    name: String,
    images: Vec<Kept>,
    ids: Vec<String>,
    /// The files that they are, where they are files by themselves.
    files: Vec<Option<PathBuf>>,
    labels: Option<Labels>,
    channels: usize,
}

/// One image.
enum Kept {
    Picture(Pixels),
    Bands(Bands),
}

/// 8-bit pixels of the data set's channels.
struct Pixels {
    width: u32,
    height: u32,
    data: Box<[u8]>,
}

impl Kept {
    fn size(&self) -> (u32, u32) {
        match self {
            Self::Picture(p) => (p.width, p.height),
            Self::Bands(b) => (b.width(), b.height()),
        }
    }

    fn image(&self, channels: usize) -> Option<DynamicImage> {
        match self {
            Self::Picture(p) => p.image(channels),
            Self::Bands(b) => Some(b.preview()),
        }
    }

    fn part(&self, channels: usize, choose: &mut Choose<'_>) -> Option<Part> {
        match self {
            Self::Picture(p) => p.part(channels, choose),
            Self::Bands(b) => Some(Part::whole(b.preview())),
        }
    }
}

impl Pixels {
    fn new(image: DynamicImage) -> Self {
        Self { width: image.width(), height: image.height(), data: image.into_bytes().into() }
    }

    fn image(&self, channels: usize) -> Option<DynamicImage> {
        image(self.width, self.height, channels, self.data.to_vec())
    }

    /// A copy of what `choose` wants, rather than of all; it is never reduced, since nothing is decoded.
    fn part(&self, channels: usize, choose: &mut Choose<'_>) -> Option<Part> {
        let (_, Rect { left, top, width, height }) = Rect::wanted(choose, self.width, self.height);
        let rows = self.data.chunks_exact(self.width as usize * channels).skip(top as usize).take(height as usize);
        let columns = left as usize * channels..(left + width) as usize * channels;
        let mut data = Vec::with_capacity(columns.len() * height as usize);
        rows.for_each(|row| data.extend_from_slice(&row[columns.clone()]));
        let (left, top) = (left as i32, top as i32);
        let image = image(width, height, channels, data)?;
        Some(Part { image, left, top, width: self.width, height: self.height, reduction: 1 })
    }
}

fn image(width: u32, height: u32, channels: usize, data: Vec<u8>) -> Option<DynamicImage> {
    match channels {
        1 => GrayImage::from_raw(width, height, data).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, data).map(DynamicImage::from),
    }
}

impl Dataset for InMemory {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.ids.len()
    }
    fn get(&self, index: usize) -> Result<Sample> {
        match self.images.get(index).and_then(|p| p.image(self.channels)) {
            Some(image) => Ok(Sample { image, label: self.label(index) }),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> Result<Part> {
        let missing = || Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()));
        self.images.get(index).and_then(|p| p.part(self.channels, choose)).ok_or_else(missing)
    }
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        match self.images.get(index) {
            Some(Kept::Bands(bands)) => Some(Ok(bands.clone())),
            _ => None,
        }
    }
    fn file(&self, index: usize) -> Option<PathBuf> {
        self.files.get(index).cloned().flatten()
    }
    fn is_kept(&self) -> bool {
        true
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.of.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|l| l.classes.as_slice())
    }
    fn id(&self, index: usize) -> String {
        self.ids.get(index).cloned().unwrap_or_else(|| format!("#{index}"))
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn side(&self) -> Option<(u32, u32)> {
        let first = self.images.first().map(Kept::size)?;
        self.images.iter().all(|kept| kept.size() == first).then_some(first)
    }
}
