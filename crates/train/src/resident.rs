//! Images in one block of bytes, small enough to lie on the training device as a whole. Where each lies is known before the first is copied,
//! so that they go there part by part, and the host needs the room for one part beside the images that it keeps.

use std::sync::Arc;

use image::{DynamicImage, GrayImage, RgbImage};
use rayon::prelude::*;
use twinsight_datasets::{Dataset, Rect, Wanted};

use crate::{Error, Result};

/// Where the images of a data set lie in a block of bytes: rows of interleaved 8-bit channels, image after image, of one size or many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Where each image begins.
    starts: Vec<u64>,
    /// Width and height of each.
    sizes: Arc<Vec<(u32, u32)>>,
    channels: usize,
    bytes: u64,
}

impl Places {
    /// Looks at the images of `dataset`, which must be kept decoded, be 8-bit pictures of `channels` (1 or 3) and take at most `most` bytes.
    ///
    /// # Errors
    /// Why they can't lie in one block, in words that fit behind "since".
    pub fn of(dataset: &dyn Dataset, channels: usize, most: u64) -> Result<Self, String> {
        if !dataset.is_kept() {
            return Err("the images are decoded when they are wanted (data.keep_bytes)".into());
        }
        if !matches!(channels, 1 | 3) || dataset.bands(0).is_some() {
            return Err(format!("the images are no 8-bit pictures (they have {} channels)", dataset.channels()));
        }
        if let Some((width, height)) = dataset.side() {
            fits(dataset.len() as u64 * length((width, height), channels), most)?;
        }
        let look = |i: usize| look(dataset, i, channels);
        let sizes = (0..dataset.len()).into_par_iter().map(look).collect::<Result<Vec<_>, String>>()?;
        let (mut starts, mut bytes) = (Vec::with_capacity(sizes.len()), 0);
        for &size in &sizes {
            starts.push(bytes);
            bytes += length(size, channels);
        }
        fits(bytes, most)?;
        Ok(Self { starts, sizes: Arc::new(sizes), channels, bytes })
    }

    /// How many bytes the images take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where image `index` begins, and its width and height; `None` past the end.
    pub fn image(&self, index: usize) -> Option<(u64, (u32, u32))> {
        Some((*self.starts.get(index)?, *self.sizes.get(index)?))
    }

    /// Width and height of every image.
    pub fn sizes(&self) -> Arc<Vec<(u32, u32)>> {
        self.sizes.clone()
    }

    /// 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Gives `take` all bytes in order, in parts of whole images that have at most `most` bytes (one image, where that has more). Only one
    /// part is held at a time. `dataset` is the one that was looked at.
    ///
    /// # Errors
    /// Images that are not as they were; what `take` says.
    pub fn each_part(&self, dataset: &dyn Dataset, most: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut part = Vec::new();
        let mut first = 0;
        while first < self.sizes.len() {
            let begin = self.starts[first];
            let end = |index: usize| self.starts.get(index).copied().unwrap_or(self.bytes);
            let fitting = (first + 1..self.sizes.len()).take_while(|&i| end(i + 1) - begin <= most as u64).count();
            let last = first + 1 + fitting;
            part.resize((end(last) - begin) as usize, 0);
            let mut rest = &mut part[..];
            let mut slots = Vec::with_capacity(last - first);
            for index in first..last {
                let (slot, behind) = rest.split_at_mut(length(self.sizes[index], self.channels) as usize);
                slots.push((index, slot));
                rest = behind;
            }
            slots.into_par_iter().try_for_each(|(index, slot)| self.write(dataset, index, slot))?;
            take(&part)?;
            first = last;
        }
        Ok(())
    }

    /// Writes image `index` into its place.
    fn write(&self, dataset: &dyn Dataset, index: usize, slot: &mut [u8]) -> Result<()> {
        let (size, raw) = picture(dataset, index, self.channels).map_err(Error::Config)?;
        if size != self.sizes[index] || raw.len() != slot.len() {
            let (id, was) = (dataset.id(index), self.sizes[index]);
            return Err(Error::Config(format!(
                "{id}: the image was {was:?} and is {size:?} now; images must not change in a run"
            )));
        }
        slot.copy_from_slice(&raw);
        Ok(())
    }
}

/// All images of a data set on the processor.
#[derive(Debug, Clone)]
pub struct Resident {
    bytes: Arc<Vec<u8>>,
    places: Places,
}

impl Resident {
    /// Copies the images of `dataset`, of which [`Places::of`] says which can be.
    ///
    /// # Errors
    /// As [`Places::of`].
    pub fn of(dataset: &dyn Dataset, channels: usize, most: u64) -> Result<Self, String> {
        let places = Places::of(dataset, channels, most)?;
        let mut bytes = Vec::with_capacity(places.bytes() as usize);
        let mut take = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        places.each_part(dataset, PART, &mut take).map_err(|e| e.to_string())?;
        Ok(Self { bytes: Arc::new(bytes), places })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where images lie among the bytes.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Image `index` as a picture; `None` past the end.
    pub fn picture(&self, index: usize) -> Option<DynamicImage> {
        let (place, (width, height)) = self.places.image(index)?;
        let length = length((width, height), self.places.channels) as usize;
        let raw = self.bytes.get(place as usize..place as usize + length)?.to_vec();
        match self.places.channels {
            1 => GrayImage::from_raw(width, height, raw).map(DynamicImage::from),
            _ => RgbImage::from_raw(width, height, raw).map(DynamicImage::from),
        }
    }
}

/// Bytes of images that are copied at a time.
pub(crate) const PART: usize = 64 << 20;

/// Bytes of an image.
fn length((width, height): (u32, u32), channels: usize) -> u64 {
    u64::from(width) * u64::from(height) * channels as u64
}

fn fits(bytes: u64, most: u64) -> Result<(), String> {
    let mebibytes = |b: u64| b.div_ceil(1 << 20);
    match bytes <= most {
        true => Ok(()),
        false => Err(format!("the images take {} MiB or more and {} MiB are free for them", mebibytes(bytes), mebibytes(most))),
    }
}

/// Size of an image that has the form wanted, by its first pixel.
fn look(dataset: &dyn Dataset, index: usize, channels: usize) -> Result<(u32, u32), String> {
    let corner = Wanted { parts: vec![Rect { left: 0, top: 0, width: 1, height: 1 }], reduction: 1 };
    let part = dataset.get_part(index, &mut |_, _| corner.clone());
    let part = part.map_err(|e| format!("{} can't be read ({e})", dataset.id(index)))?;
    match (&part.image, channels) {
        (DynamicImage::ImageLuma8(_), 1) | (DynamicImage::ImageRgb8(_), 3) => Ok((part.width, part.height)),
        (other, _) => Err(unfit(dataset, index, other, channels)),
    }
}

fn unfit(dataset: &dyn Dataset, index: usize, image: &DynamicImage, channels: usize) -> String {
    format!("{} is {:?} and the views have {channels} channels of 8 bits", dataset.id(index), image.color())
}

/// Size and bytes of an image that has the form wanted.
fn picture(dataset: &dyn Dataset, index: usize, channels: usize) -> Result<((u32, u32), Vec<u8>), String> {
    let image = dataset.get(index).map_err(|e| format!("{} can't be read ({e})", dataset.id(index)))?.image;
    let size = (image.width(), image.height());
    match (image, channels) {
        (DynamicImage::ImageLuma8(image), 1) => Ok((size, image.into_raw())),
        (DynamicImage::ImageRgb8(image), 3) => Ok((size, image.into_raw())),
        (other, _) => Err(unfit(dataset, index, &other, channels)),
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
        assert_eq!(resident.places().image(1), Some((18, (3, 2))));
        assert_eq!(resident.picture(1), Some(set.get(1)?.image));
        assert!(resident.places().image(2).is_none() && resident.picture(2).is_none());
        let told = Resident::of(&part, 3, 35).expect_err("too large");
        assert!(told.contains("1 MiB"), "{told}");
        assert!(Resident::of(&part, 1, 36).expect_err("colour").contains("1 channels"));
        assert!(Resident::of(&part, 5, 36).is_err());
        Ok(())
    }

    /// Gray pictures of these sizes, of levels that tell pixels apart.
    struct Mixed(Vec<(u32, u32)>);

    impl Dataset for Mixed {
        fn name(&self) -> &str {
            "mixed"
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn get(&self, index: usize) -> twinsight_datasets::Result<twinsight_datasets::Sample> {
            let (width, height) = self.0[index];
            let image = GrayImage::from_fn(width, height, |x, y| image::Luma([(index as u32 * 50 + y * 10 + x) as u8]));
            Ok(twinsight_datasets::Sample { image: image.into(), label: None })
        }
        fn is_kept(&self) -> bool {
            true
        }
        fn channels(&self) -> usize {
            1
        }
    }

    #[test]
    fn parts_are_whole_images_in_order_and_none_is_larger_than_it_may_be() -> anyhow::Result<()> {
        let set = Mixed(vec![(3, 2), (1, 1), (5, 4), (2, 2), (2, 1), (3, 1)]);
        let whole = Resident::of(&set, 1, 36).map_err(anyhow::Error::msg)?;
        let places = whole.places();
        assert_eq!((places.bytes(), whole.bytes().len(), places.channels()), (36, 36, 1));
        assert_eq!(
            (0..6).map(|i| whole.picture(i)).collect::<Vec<_>>(),
            (0..6).map(|i| Some(set.get(i).ok()?.image)).collect::<Vec<_>>()
        );
        // Images take 6, 1, 20, 4, 2 and 3 bytes.
        for (most, lengths) in [
            (1, vec![6, 1, 20, 4, 2, 3]),
            (6, vec![6, 1, 20, 6, 3]),
            (7, vec![7, 20, 6, 3]),
            (26, vec![7, 26, 3]),
            (36, vec![36]),
        ] {
            let (mut found, mut bytes) = (Vec::new(), Vec::new());
            places.each_part(&set, most, &mut |part| {
                found.push(part.len());
                bytes.extend_from_slice(part);
                Ok(())
            })?;
            assert_eq!((found, &bytes[..]), (lengths, whole.bytes()), "parts of {most} bytes");
        }
        assert!(Places::of(&set, 1, 35).expect_err("too large").contains("MiB"));
        let none = Places::of(&Mixed(Vec::new()), 1, 0).map_err(anyhow::Error::msg)?;
        none.each_part(&Mixed(Vec::new()), 9, &mut |_| Err(Error::Config("no images have no part".into())))?;
        Ok(())
    }

    #[test]
    fn images_that_changed_and_a_taker_that_fails_end_it() -> anyhow::Result<()> {
        let set = Mixed(vec![(3, 2), (1, 1), (5, 4)]);
        let places = Places::of(&set, 1, 100).map_err(anyhow::Error::msg)?;
        let other = Mixed(vec![(3, 2), (1, 1), (4, 5)]);
        let mut taken = 0;
        let told = places.each_part(&other, 7, &mut |part| {
            taken += part.len();
            Ok(())
        });
        let told = told.expect_err("another size").to_string();
        assert!(taken == 7 && told.contains("#2") && told.contains("(5, 4)") && told.contains("(4, 5)"), "{taken}: {told}");
        assert!(places.each_part(&set, 7, &mut |_| Err(Error::Config("full".into()))).is_err());
        Ok(())
    }
}
