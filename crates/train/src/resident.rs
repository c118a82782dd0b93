//! Images in one block of bytes, small enough to lie on the training device as a whole.

use std::sync::Arc;

use image::{DynamicImage, GrayImage, RgbImage};
use rayon::prelude::*;
use twinsight_datasets::Dataset;

/// All images of a data set: rows of interleaved 8-bit channels, image after image, of one size or many.
#[derive(Debug, Clone)]
pub struct Resident {
    bytes: Arc<Vec<u8>>,
    /// Where each image begins.
    places: Vec<u64>,
    /// Width and height of each.
    sizes: Arc<Vec<(u32, u32)>>,
    channels: usize,
}

impl Resident {
    /// Copies the images of `dataset`, which must be kept decoded, be 8-bit pictures of `channels` (1 or 3) and take at most `most` bytes.
    ///
    /// # Errors
    /// Why they can't, in words that fit behind "since".
    pub fn of(dataset: &dyn Dataset, channels: usize, most: u64) -> Result<Self, String> {
        if !dataset.is_kept() {
            return Err("the images are decoded when they are wanted (data.keep_bytes)".into());
        }
        if !matches!(channels, 1 | 3) || dataset.bands(0).is_some() {
            return Err(format!("the images are no 8-bit pictures (they have {} channels)", dataset.channels()));
        }
        if let Some((width, height)) = dataset.side() {
            fits(dataset.len() as u64 * u64::from(width) * u64::from(height) * channels as u64, most)?;
        }
        // In parts, so that images of unknown sizes that do not fit are noticed before memory is full of them.
        let (mut bytes, mut places, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for start in (0..dataset.len()).step_by(PART) {
            let part: Vec<_> = (start..dataset.len().min(start + PART))
                .into_par_iter()
                .map(|i| picture(dataset, i, channels))
                .collect::<Result<_, String>>()?;
            for (size, raw) in part {
                places.push(bytes.len() as u64);
                sizes.push(size);
                bytes.extend(raw);
                fits(bytes.len() as u64, most)?;
            }
        }
        Ok(Self { bytes: Arc::new(bytes), places, sizes: Arc::new(sizes), channels })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where image `index` begins, and its width and height; `None` past the end.
    pub fn image(&self, index: usize) -> Option<(u64, (u32, u32))> {
        Some((*self.places.get(index)?, *self.sizes.get(index)?))
    }

    /// Width and height of every image.
    pub fn sizes(&self) -> Arc<Vec<(u32, u32)>> {
        self.sizes.clone()
    }

    /// 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Image `index` as a picture; `None` past the end.
    pub fn picture(&self, index: usize) -> Option<DynamicImage> {
        let (place, (width, height)) = self.image(index)?;
        let length = width as usize * height as usize * self.channels;
        let raw = self.bytes.get(place as usize..place as usize + length)?.to_vec();
        match self.channels {
            1 => GrayImage::from_raw(width, height, raw).map(DynamicImage::from),
            _ => RgbImage::from_raw(width, height, raw).map(DynamicImage::from),
        }
    }

    /// The same, without the bytes: where images lie once these are elsewhere.
    #[must_use]
    pub fn without_bytes(self) -> Self {
        Self { bytes: Arc::default(), ..self }
    }
}

/// Images that are copied at a time.
const PART: usize = 4096;

fn fits(bytes: u64, most: u64) -> Result<(), String> {
    let mebibytes = |b: u64| b.div_ceil(1 << 20);
    match bytes <= most {
        true => Ok(()),
        false => Err(format!("the images take {} MiB or more and {} MiB are free for them", mebibytes(bytes), mebibytes(most))),
    }
}

/// Size and bytes of an image that has the form wanted.
fn picture(dataset: &dyn Dataset, index: usize, channels: usize) -> Result<((u32, u32), Vec<u8>), String> {
    let id = || dataset.id(index);
    let image = dataset.get(index).map_err(|e| format!("{} can't be read ({e})", id()))?.image;
    let size = (image.width(), image.height());
    match (image, channels) {
        (DynamicImage::ImageLuma8(image), 1) => Ok((size, image.into_raw())),
        (DynamicImage::ImageRgb8(image), 3) => Ok((size, image.into_raw())),
        (other, _) => Err(format!("{} is {:?} and the views have {channels} channels of 8 bits", id(), other.color())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_datasets::{PackedImages, Subset};

    #[test]
    fn images_lie_one_behind_the_other_and_what_does_not_fit_is_told() -> anyhow::Result<()> {
        let pixels: Vec<u8> = (0..5 * 3 * 2 * 3).collect();
        let set = Arc::new(PackedImages::new("x", pixels, (3, 2, 3), None, Vec::new())?);
        let part = Subset::new(set.clone(), vec![4, 1])?;
        let resident = Resident::of(&part, 3, 36).map_err(anyhow::Error::msg)?;
        assert_eq!((resident.bytes()[0], resident.bytes()[18], resident.bytes().len()), (72, 18, 36));
        assert_eq!(resident.image(1), Some((18, (3, 2))));
        assert_eq!(resident.picture(1), Some(set.get(1)?.image));
        assert!(resident.image(2).is_none() && resident.picture(2).is_none());
        let told = Resident::of(&part, 3, 35).expect_err("too large");
        assert!(told.contains("1 MiB"), "{told}");
        assert!(Resident::of(&part, 1, 36).expect_err("colour").contains("1 channels"));
        assert!(Resident::of(&part, 5, 36).is_err());
        Ok(())
    }
}
