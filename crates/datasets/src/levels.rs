//! How levels of 16 bits fill their range: files of 12 bits, or of reflectances, fill a small part of it, and come out nearly black when the
//! upper 8 bits are taken. A range of levels is cut out and stretched over all of 0 to 65,535 as soon as an image is decoded. Levels of 8
//! bits stay as they are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use image::DynamicImage;
use rayon::prelude::*;

use crate::part::{Choose, Part};
use crate::{BandLevels, Bands, Dataset, Error, Opened, Result, Sample};

/// Images that percentiles are measured on, spread over a data set.
const MEASURED: usize = 1000;

/// A setting of how levels of 16 bits are mapped. Its text is `full`, `range:LOW:HIGH` (levels) or `percentile:LOW:HIGH` (percent).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// They stay as they are.
    Full,
    /// This range of them is stretched.
    Range(LevelRange),
    /// The range between these percentiles (0 to 100) of a data set's levels is stretched; [`measure`] finds it.
    Percentile(f64, f64),
}

/// Levels from the lowest to the highest, of 16 bits, which are stretched over all of 0 to 65,535; what is lower or higher is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelRange {
    low: u16,
    high: u16,
}

impl LevelRange {
    /// The range of `low` to `high`.
    ///
    /// # Errors
    /// A lowest level that is not below the highest.
    pub fn new(low: u16, high: u16) -> Result<Self> {
        match low < high {
            true => Ok(Self { low, high }),
            false => {
                Err(Error::BadSetting(format!("a range of levels from {low} to {high}: expected the first to be the lower")))
            }
        }
    }

    /// Where a level lies in the range, 0 to 65,535, rounded.
    pub fn map(self, level: u16) -> u16 {
        let span = u32::from(self.high - self.low);
        let above = u32::from(level.clamp(self.low, self.high) - self.low);
        // At most 65,535² + 32,767, which 32 bits hold.
        ((above * u32::from(u16::MAX) + span / 2) / span) as u16
    }

    /// A picture with its levels mapped, where they have 16 bits; alpha stays.
    pub(crate) fn image(self, mut image: DynamicImage) -> DynamicImage {
        let (samples, channels): (&mut [u16], usize) = match &mut image {
            DynamicImage::ImageLuma16(i) => (&mut **i, 1),
            DynamicImage::ImageLumaA16(i) => (&mut **i, 2),
            DynamicImage::ImageRgb16(i) => (&mut **i, 3),
            DynamicImage::ImageRgba16(i) => (&mut **i, 4),
            _ => return image,
        };
        let colours = colours(channels);
        samples.chunks_exact_mut(channels).flat_map(|p| &mut p[..colours]).for_each(|v| *v = self.map(*v));
        image
    }

    /// Bands with their levels mapped, where they have 16 bits.
    pub(crate) fn bands(self, mut bands: Bands) -> Bands {
        if let BandLevels::Words(words) = bands.levels_mut() {
            words.iter_mut().for_each(|v| *v = self.map(*v));
        }
        bands
    }
}

impl FromStr for Levels {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let known = "expected `full`, `range:LOW:HIGH` (levels, 0 to 65535) or `percentile:LOW:HIGH` (0 to 100)";
            Error::BadSetting(format!("levels `{text}`: {why}; {known}"))
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            ["full"] => Ok(Self::Full),
            ["range", low, high] => {
                let level = |word: &str| match word.parse::<u64>() {
                    Ok(level) => u16::try_from(level).map_err(|_| wrong(&format!("{word} is above 65535"))),
                    Err(_) => Err(wrong(&format!("`{word}` is no whole number from 0 on"))),
                };
                LevelRange::new(level(low)?, level(high)?).map(Self::Range).map_err(|_| wrong("LOW must be below HIGH"))
            }
            ["percentile", low, high] => {
                let percent = |word: &str| match word.parse::<f64>() {
                    Ok(share) if (0.0..=100.0).contains(&share) => Ok(share),
                    Ok(_) => Err(wrong(&format!("{word} is not within 0 to 100"))),
                    Err(_) => Err(wrong(&format!("`{word}` is no number"))),
                };
                let (low, high) = (percent(low)?, percent(high)?);
                if low >= high {
                    return Err(wrong("LOW must be below HIGH"));
                }
                Ok(Self::Percentile(low, high))
            }
            ["range" | "percentile", ..] => Err(wrong("two numbers are needed, each after a colon")),
            _ => Err(wrong("it is none of these")),
        }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Range(range) => write!(f, "range:{}:{}", range.low, range.high),
            Self::Percentile(low, high) => write!(f, "percentile:{low}:{high}"),
        }
    }
}

/// The levels between which lie those from `low` to `high` percent of a data set: of all channels together (alpha aside), over up to 1,000
/// images spread over it, each level counted once. A percentile is the lowest level that so large a share does not exceed. Images that
/// can't be read are passed over, and so are those of 8 bits.
///
/// # Errors
/// No image with levels of 16 bits; levels that are all alike.
pub fn measure(dataset: &dyn Dataset, low: f64, high: f64) -> Result<LevelRange> {
    let chosen: Vec<usize> = (0..dataset.len()).step_by(dataset.len().div_ceil(MEASURED).max(1)).collect();
    let none = || vec![0_u64; 1 << 16];
    // Sums of whole numbers, which are the same in any order.
    let counts = chosen
        .into_par_iter()
        .filter_map(|i| dataset.words(i)?.ok())
        .fold(none, |mut counts, words| {
            words.into_iter().for_each(|v| counts[usize::from(v)] += 1);
            counts
        })
        .reduce(none, |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        });
    let total: u64 = counts.iter().sum();
    if total == 0 {
        let reason = "no image with levels of 16 bits was found to measure percentiles on; expected levels `full`";
        return Err(Error::BadSetting(format!("{}: {reason}", dataset.name())));
    }
    let percentile = |share: f64| {
        let wanted = ((share * total as f64 / 100.0).ceil() as u64).clamp(1, total);
        let mut sum = 0;
        let place = counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        place.unwrap_or(counts.len() - 1) as u16
    };
    let (first, last) = (percentile(low), percentile(high));
    LevelRange::new(first, last).map_err(|_| {
        let reason = format!("its levels from {low} to {high} percent are all {first}: there is nothing to stretch");
        Error::BadSetting(format!("{}: {reason}; take percentiles that are farther apart", dataset.name()))
    })
}

/// The levels of a picture of 16 bits, alpha aside; `None` where it has 8.
pub(crate) fn words_of(image: DynamicImage) -> Option<Vec<u16>> {
    let (samples, channels) = match image {
        DynamicImage::ImageLuma16(i) => (i.into_raw(), 1),
        DynamicImage::ImageLumaA16(i) => (i.into_raw(), 2),
        DynamicImage::ImageRgb16(i) => (i.into_raw(), 3),
        DynamicImage::ImageRgba16(i) => (i.into_raw(), 4),
        _ => return None,
    };
    let colours = colours(channels);
    Some(samples.chunks_exact(channels).flat_map(|p| &p[..colours]).copied().collect())
}

/// Channels that are no alpha.
fn colours(channels: usize) -> usize {
    if channels.is_multiple_of(2) { channels - 1 } else { channels }
}

/// The same data sets with the levels of their bands mapped: for those whose images lie decoded.
pub(crate) fn mapped(opened: Opened, range: Option<LevelRange>) -> Opened {
    let Some(range) = range else { return opened };
    let of = |images: Arc<dyn Dataset>| -> Arc<dyn Dataset> { Arc::new(Mapped { images, range }) };
    Opened { train: of(opened.train), test: opened.test.map(of), report: opened.report }
}

/// A data set with the levels of its bands mapped.
struct Mapped {
    images: Arc<dyn Dataset>,
    range: LevelRange,
}

impl Dataset for Mapped {
    fn name(&self) -> &str {
        self.images.name()
    }
    fn len(&self) -> usize {
        self.images.len()
    }
    fn get(&self, index: usize) -> Result<Sample> {
        match self.bands(index) {
            Some(bands) => Ok(Sample { image: bands?.preview(), label: self.label(index) }),
            None => self.images.get(index),
        }
    }
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> Result<Part> {
        match self.bands(index) {
            Some(bands) => Ok(Part::whole(bands?.preview())),
            None => self.images.get_part(index, choose),
        }
    }
    fn encoded(&self, index: usize) -> Option<Result<Vec<u8>>> {
        self.images.encoded(index)
    }
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        self.images.bands(index).map(|bands| bands.map(|bands| self.range.bands(bands)))
    }
    fn words(&self, index: usize) -> Option<Result<Vec<u16>>> {
        self.images.words(index)
    }
    fn file(&self, index: usize) -> Option<PathBuf> {
        self.images.file(index)
    }
    fn order(&self, seed: u64, epoch: u64) -> Option<Vec<u32>> {
        self.images.order(seed, epoch)
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.images.label(index)
    }
    fn classes(&self) -> Option<&[String]> {
        self.images.classes()
    }
    fn id(&self, index: usize) -> String {
        self.images.id(index)
    }
    fn channels(&self) -> usize {
        self.images.channels()
    }
    fn side(&self) -> Option<(u32, u32)> {
        self.images.side()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BandImages, OpenOptions, open};

    #[test]
    fn settings_survive_their_text_and_bad_ones_are_named() -> Result<()> {
        for text in ["full", "range:0:4095", "range:100:65535", "percentile:1:99.5", "percentile:0:100"] {
            assert_eq!(text.parse::<Levels>()?.to_string(), text);
        }
        for (text, word) in [
            ("range:9:9", "LOW must be below HIGH"),
            ("range:4095:0", "LOW must be below HIGH"),
            ("range:0:65536", "65536 is above 65535"),
            ("range:a:3", "`a` is no whole number"),
            ("range:-1:3", "`-1` is no whole number"),
            ("range:0.5:3", "`0.5` is no whole number"),
            ("range:5", "two numbers"),
            ("percentile:1:2:3", "two numbers"),
            ("percentile:x:3", "`x` is no number"),
            ("percentile:-1:3", "-1 is not within 0 to 100"),
            ("percentile:1:101", "101 is not within 0 to 100"),
            ("percentile:nan:50", "nan is not within 0 to 100"),
            ("percentile:50:50", "LOW must be below HIGH"),
            ("all", "none of these"),
            ("", "none of these"),
        ] {
            let told = text.parse::<Levels>().expect_err(text).to_string();
            assert!(told.contains(word) && told.contains(&format!("levels `{text}`")), "{text}: {told}");
        }
        Ok(())
    }

    #[test]
    fn a_range_is_stretched_and_what_is_outside_cut_off() -> Result<()> {
        let range = LevelRange::new(100, 4195)?;
        assert_eq!([0, 100, 4195, 65_535].map(|v| range.map(v)), [0, 0, 65_535, 65_535]);
        for v in 100..4195 {
            let exact = f64::from(v - 100) * 65_535.0 / 4095.0;
            assert!((f64::from(range.map(v)) - exact).abs() <= 0.5, "{v}");
        }
        let all = LevelRange::new(0, u16::MAX)?;
        assert!((0..=u16::MAX).all(|v| all.map(v) == v));
        // Alpha and 8 bits stay.
        let image = image::ImageBuffer::<image::LumaA<u16>, _>::from_raw(1, 1, vec![4195, 7]).expect("one pixel");
        assert_eq!(range.image(image.into()).into_luma_alpha16().into_raw(), [65_535, 7]);
        let image = image::GrayImage::from_raw(1, 1, vec![7]).expect("one pixel");
        assert_eq!(range.image(image.into()).into_luma8().into_raw(), [7]);
        Ok(())
    }

    #[test]
    fn percentiles_are_those_of_all_levels() -> Result<()> {
        // Levels 0 to 999, one of each, in ten images.
        let words: Vec<u16> = (0..1000).map(|i| (i * 7 % 1000) as u16).collect();
        let set = BandImages::new("x", BandLevels::Words(words), (5, 10, 2), None, Vec::new())?;
        let of = |low, high| measure(&set, low, high);
        assert_eq!((of(0.0, 100.0)?, of(1.0, 99.0)?), (LevelRange::new(0, 999)?, LevelRange::new(9, 989)?));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            assert_eq!(pool.install(|| of(2.5, 97.5))?, LevelRange::new(24, 974)?, "{threads} threads");
        }
        let alike = BandImages::new("y", BandLevels::Words(vec![5; 8]), (2, 2, 2), None, Vec::new())?;
        let told = measure(&alike, 1.0, 99.0).expect_err("all alike").to_string();
        assert!(told.contains("y: its levels") && told.contains("all 5"), "{told}");
        let bytes = BandImages::new("z", BandLevels::Bytes(vec![5; 8]), (2, 2, 2), None, Vec::new())?;
        assert!(measure(&bytes, 1.0, 99.0).expect_err("8 bits").to_string().contains("no image with levels of 16 bits"));
        Ok(())
    }

    /// 12 bits in files of 16: PNGs (gray, and colour), a TIFF of one band and one of five; each is 8 × 6 pixels.
    fn write(folder: &std::path::Path, kind: &str) -> anyhow::Result<()> {
        for seed in 0..3_u32 {
            let levels = |count: u32| (0..count).map(|i| ((i * 83 + seed * 1301) % 4096) as u16).collect::<Vec<_>>();
            let path = |ending: &str| folder.join(format!("{seed}.{ending}"));
            let missing = || anyhow::anyhow!("levels of another number");
            match kind {
                "png" => image::ImageBuffer::<image::Luma<u16>, _>::from_raw(8, 6, levels(48))
                    .ok_or_else(missing)?
                    .save(path("png"))?,
                "rgb" => image::ImageBuffer::<image::Rgb<u16>, _>::from_raw(8, 6, levels(144))
                    .ok_or_else(missing)?
                    .save(path("png"))?,
                "tiff" => image::ImageBuffer::<image::Luma<u16>, _>::from_raw(8, 6, levels(48))
                    .ok_or_else(missing)?
                    .save(path("tif"))?,
                _ => std::fs::write(path("tif"), twinsight_test_support::tiff::bands((8, 6), 5, &levels(240))?)?,
            }
        }
        Ok(())
    }

    #[test]
    fn twelve_bits_fill_the_range_on_every_way_in() -> anyhow::Result<()> {
        let range = LevelRange::new(0, 4095)?;
        for kind in ["png", "rgb", "tiff", "bands"] {
            let dir = tempfile::tempdir()?;
            write(dir.path(), kind)?;
            let at = dir.path().display().to_string();
            let opened = |keep_bytes, levels| open(&at, &OpenOptions { keep_bytes, levels, ..OpenOptions::default() });
            let (dark, read, kept) = (opened(0, None)?.train, opened(0, Some(range))?.train, opened(1 << 20, Some(range))?.train);
            assert_eq!(measure(&*dark, 0.0, 100.0)?.low, 0, "{kind}");
            for i in 0..dark.len() {
                let image = read.get(i)?.image;
                let (before, after) = (dark.get(i)?.image.to_luma8(), image.to_luma8());
                let most = |i: &image::GrayImage| i.as_raw().iter().copied().max().unwrap_or(0);
                assert!(most(&before) <= 16 && most(&after) > 200, "{kind}: {} {}", most(&before), most(&after));
                assert_eq!(kept.get(i)?.image, image, "{kind}");
                assert_eq!(read.get_part(i, &mut |_, _| crate::Wanted::all())?.image, image, "{kind}");
                assert_eq!(kept.get_part(i, &mut |_, _| crate::Wanted::all())?.image, image, "{kind}");
                // A loose file, whose pictures keep their bits.
                let file = read.file(i).ok_or_else(|| anyhow::anyhow!("no file"))?;
                let single = crate::SingleImage::open(&file, Some(range))?;
                let loose = single.get(0)?.image;
                let loose = if image.color().has_color() { loose.to_rgb8().into() } else { DynamicImage::from(loose.to_luma8()) };
                assert_eq!(loose, image, "{kind}");
                let bands = |d: &dyn Dataset, i| d.bands(i).transpose();
                assert_eq!(bands(&*read, i)?, bands(&*kept, i)?);
                assert_eq!(bands(&*read, i)?, bands(&single, 0)?);
                // Once, and each level by itself; what is measured is what is in the file.
                let words = dark.words(i).ok_or_else(|| anyhow::anyhow!("8 bits"))??;
                assert_eq!(words, read.words(i).ok_or_else(|| anyhow::anyhow!("8 bits"))??);
                if let Some(bands) = bands(&*read, i)? {
                    assert_eq!(bands.levels(), &BandLevels::Words(words.iter().map(|&v| range.map(v)).collect()));
                }
            }
            // As a packed file of bands: mapped when it is read, once.
            if kind == "bands" {
                let packed = dir.path().join("packed.safetensors");
                crate::packed::pack(&[("train", &*dark)], 6, &packed, true)?;
                let path = packed.display().to_string();
                let as_it_is = open(&path, &OpenOptions::default())?.train;
                let mapped = open(&path, &OpenOptions { levels: Some(range), limit: Some(2), ..OpenOptions::default() })?.train;
                let (Some(before), Some(after)) = (as_it_is.bands(0).transpose()?, mapped.bands(0).transpose()?) else {
                    anyhow::bail!("no bands");
                };
                assert_eq!(range.bands(before), after);
                assert_eq!(mapped.get(0)?.image, after.preview());
            }
        }
        Ok(())
    }
}
