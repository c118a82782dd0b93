//! One image of a data set on its way to a view: a picture, or bands.

use image::DynamicImage;
use twinsight_augment::{DrawKey, Levels, Raster, ViewPlan, render, render_image, render_raster};
use twinsight_datasets::{BandLevels, Bands, Dataset};

use crate::Result;

/// What views are made of.
#[derive(Debug, Clone)]
pub enum Picture {
    /// An image of 1 to 4 channels.
    Image(DynamicImage),
    /// An image of 1 to 16 channels, 8 or 16 bits each.
    Bands(Bands),
}

impl Picture {
    /// Image number `index` of a data set.
    ///
    /// # Errors
    /// An image that can't be read.
    pub fn load(dataset: &dyn Dataset, index: usize) -> twinsight_datasets::Result<Self> {
        match dataset.bands(index) {
            Some(bands) => Ok(Self::Bands(bands?)),
            None => Ok(Self::Image(dataset.get(index)?.image)),
        }
    }

    /// As [`render`]: makes view `view` of the plan and writes it to `out`.
    ///
    /// # Errors
    /// A plan that has no such view, or does not fit the image's channels.
    pub fn render(&self, plan: &ViewPlan, view: usize, key: DrawKey, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Image(image) => Ok(render(plan, view, image, key, out)?),
            // Gray and colour become one another, as pictures do.
            Self::Bands(bands)
                if bands.channels() != plan.channels && [bands.channels(), plan.channels].iter().all(is_picture) =>
            {
                Ok(render(plan, view, &bands.preview(), key, out)?)
            }
            Self::Bands(bands) => Ok(render_raster(plan, view, &raster(bands)?, key, out)?),
        }
    }

    /// The same view as a picture for people: of bands the first three channels as colour, or the first as gray.
    ///
    /// # Errors
    /// As [`Picture::render`].
    pub fn view(&self, plan: &ViewPlan, view: usize, key: DrawKey) -> Result<DynamicImage> {
        if let Self::Image(image) = self {
            return Ok(render_image(plan, view, image, key)?);
        }
        let side = plan.find(view).map_or(0, |spec| spec.size);
        let mut values = vec![0.0; plan.channels * side * side];
        self.render(plan, view, key, &mut values)?;
        Ok(crate::attention::picture(&values, plan, side).into())
    }

    /// It as a picture for people.
    pub fn preview(&self) -> DynamicImage {
        match self {
            Self::Image(image) => image.clone(),
            Self::Bands(bands) => bands.preview(),
        }
    }
}

fn is_picture(channels: &usize) -> bool {
    matches!(channels, 1 | 3)
}

fn raster(bands: &Bands) -> Result<Raster<'_>> {
    let levels = match bands.levels() {
        BandLevels::Bytes(v) => Levels::Bytes(v),
        BandLevels::Words(v) => Levels::Words(v),
    };
    Ok(Raster::new(bands.width(), bands.height(), bands.channels(), levels)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_augment::Normalize;
    use twinsight_datasets::BandImages;

    #[test]
    fn bands_are_rendered_in_all_their_channels_and_shown_in_three() -> anyhow::Result<()> {
        let words: Vec<u16> = (0..8 * 8 * 5).map(|i| (i % 5) * 50 * 257).collect();
        let set = BandImages::new("x", BandLevels::Words(words), (8, 8, 5), None, Vec::new())?;
        let plan = ViewPlan::eval(8, 5).with_normalize(Normalize::none(5));
        let key = DrawKey { seed: 0, epoch: 0, sample: 0, view: 0 };
        let picture = Picture::load(&set, 0)?;
        let mut out = vec![0.0; plan.view_len(0)];
        picture.render(&plan, 0, key, &mut out)?;
        for (c, plane) in out.chunks_exact(64).enumerate() {
            assert!(plane.iter().all(|v| (v - c as f32 * 50.0 / 255.0).abs() < 1e-6), "channel {c}: {plane:?}");
        }
        assert_eq!(picture.view(&plan, 0, key)?.to_rgb8().get_pixel(3, 3).0, [0, 50, 100]);
        let told = picture.render(&ViewPlan::eval(8, 3), 0, key, &mut [0.0; 192]).expect_err("five are not three").to_string();
        assert!(told.contains("5 channels"), "{told}");
        // Gray of 16 bits for an encoder of colours.
        let gray = BandImages::new("x", BandLevels::Words(vec![257 * 9; 64]), (8, 8, 1), None, Vec::new())?;
        let plan = ViewPlan::eval(8, 3).with_normalize(Normalize::none(3));
        let mut out = vec![0.0; 192];
        Picture::load(&gray, 0)?.render(&plan, 0, key, &mut out)?;
        assert!(out.iter().all(|v| (v - 9.0 / 255.0).abs() < 1e-6));
        Ok(())
    }
}
