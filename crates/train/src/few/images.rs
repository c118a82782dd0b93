//! Loose image files, and tables that name them with labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use twinsight_datasets::{Bands, Dataset, LevelRange, SingleImage};

use crate::{Error, Result};

/// Image files by path, decoded when asked for, with or without labels: pictures, or files of [`Bands`] where views have other than 1 or 3
/// channels. What is of another kind, or has another number of bands, can't be read.
pub struct ImageFiles {
    name: String,
    files: Vec<PathBuf>,
    labels: Option<(Vec<u32>, Vec<String>)>,
    channels: usize,
    levels: Option<LevelRange>,
}

impl ImageFiles {
    /// The files as they are, without labels. `channels`: what a view should have, 1 to 16.
    pub fn new(name: impl Into<String>, files: Vec<PathBuf>, channels: usize) -> Self {
        Self { name: name.into(), files, labels: None, channels, levels: None }
    }

    /// The same files with levels of 16 bits mapped when they are decoded.
    #[must_use]
    pub fn with_levels(self, levels: Option<LevelRange>) -> Self {
        Self { levels, ..self }
    }

    /// Reads labels from a CSV file: a line `image,label` each, the image's path relative to the file's folder (or absolute). A first
    /// line that says `image,label` or `path,label` is a heading.
    ///
    /// An image that is named twice with one label counts once.
    ///
    /// # Errors
    /// A file that can't be read, a line that names no image file, an empty label, or another label than an earlier line gave the same
    /// image, by its line.
    pub fn from_csv(path: &Path, channels: usize) -> Result<Self> {
        let wrong = |e: csv::Error| Error::run(path, e.to_string());
        let mut reader = csv::ReaderBuilder::new();
        let reader = reader.has_headers(false).flexible(true).trim(csv::Trim::All).from_path(path);
        let mut reader = reader.map_err(wrong)?;
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let (mut files, mut words) = (Vec::new(), Vec::new());
        let mut seen: BTreeMap<PathBuf, (u64, String)> = BTreeMap::new();
        for (i, line) in reader.records().enumerate() {
            let line = line.map_err(wrong)?;
            let number = line.position().map_or(i as u64 + 1, csv::Position::line);
            let (image, label) = (line.get(0).unwrap_or_default(), line.get(1).unwrap_or_default());
            if i == 0 && ["image", "path"].contains(&image) && label == "label" {
                continue;
            }
            if image.is_empty() || label.is_empty() {
                return Err(Error::run(path, format!("line {number}: expected `image,label`, got `{image},{label}`")));
            }
            let file = folder.join(image);
            if !file.is_file() {
                return Err(Error::run(path, format!("line {number}: no such image: {}", file.display())));
            }
            let same = std::path::absolute(&file).map_err(Error::io(&file))?;
            let same = same.canonicalize().unwrap_or(same);
            match seen.get(&same) {
                Some((_, earlier)) if earlier == label => continue,
                Some((first, earlier)) => {
                    let reason =
                        format!("lines {first} and {number} give {image} two labels, `{earlier}` and `{label}`; keep one");
                    return Err(Error::run(path, reason));
                }
                None => seen.insert(same, (number, label.to_string())),
            };
            files.push(file);
            words.push(label.to_string());
        }
        if files.is_empty() {
            return Err(Error::run(path, "names no images; expected a line `image,label` each"));
        }
        let mut classes = words.clone();
        classes.sort_unstable();
        classes.dedup();
        let number: BTreeMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let labels = words.iter().map(|w| number[w.as_str()]).collect();
        Ok(Self { name: path.display().to_string(), files, labels: Some((labels, classes)), channels, levels: None })
    }
}

impl Dataset for ImageFiles {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.files.len()
    }
    fn get(&self, index: usize) -> twinsight_datasets::Result<twinsight_datasets::Sample> {
        let file = self.files.get(index).ok_or_else(|| {
            twinsight_datasets::Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))
        })?;
        let mut sample = SingleImage::open(file, self.levels)?.get(0)?;
        sample.label = self.label(index);
        Ok(sample)
    }
    fn bands(&self, index: usize) -> Option<twinsight_datasets::Result<Bands>> {
        let file = self.files.get(index)?;
        let are_pictures = matches!(self.channels, 1 | 3);
        let wrong = |found: String| {
            let wanted = if are_pictures { "pictures".into() } else { format!("files of {} bands", self.channels) };
            let reason = format!("{found}; {wanted} are expected here");
            Some(Err(twinsight_datasets::Error::BadImage { path: file.clone(), reason }))
        };
        match SingleImage::bands_of(file, self.levels) {
            // 16-bit gray or colour is taken for a picture where pictures are wanted.
            Ok(Some(b)) if b.channels() == self.channels || are_pictures && matches!(b.channels(), 1 | 3) => Some(Ok(b)),
            Ok(Some(b)) => wrong(format!("has {} bands", b.channels())),
            Ok(None) if are_pictures => None,
            Ok(None) => wrong("is a picture, or no image at all".into()),
            Err(e) => Some(Err(e)),
        }
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|(labels, _)| labels.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|(_, classes)| classes.as_slice())
    }
    fn id(&self, index: usize) -> String {
        self.files.get(index).map_or_else(|| format!("#{index}"), |f| f.display().to_string())
    }
    fn channels(&self) -> usize {
        self.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loose_files_of_bands_are_read_in_all_their_bands() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let write = |name: &str, bands: u16, level: u16| -> anyhow::Result<PathBuf> {
            let samples: Vec<u16> = (0..6 * 5 * bands).map(|i| level + 257 * (i % bands)).collect();
            std::fs::write(dir.path().join(name), twinsight_test_support::tiff::bands((6, 5), bands, &samples)?)?;
            Ok(dir.path().join(name))
        };
        let (a, b, other) = (write("a.tif", 6, 0)?, write("b.tif", 6, 25_700)?, write("other.tif", 5, 0)?);
        image::RgbImage::new(6, 5).save(dir.path().join("picture.png"))?;
        let picture = dir.path().join("picture.png");
        let table = dir.path().join("few.csv");
        std::fs::write(&table, "a.tif,dark\nb.tif,light\n")?;
        let labelled = ImageFiles::from_csv(&table, 6)?;
        assert_eq!((labelled.label(1), labelled.channels()), (Some(1), 6));
        let plan = twinsight_augment::ViewPlan::eval(4, 6).with_normalize(twinsight_augment::Normalize::none(6));
        let key = twinsight_augment::DrawKey { seed: 0, epoch: 0, sample: 0, view: 0 };
        for (index, light) in [(0, 0.0), (1, 100.0)] {
            let mut out = vec![0.0; plan.view_len(0)];
            crate::picture::Picture::load(&labelled, index)?.render(&plan, 0, key, &mut out)?;
            for (c, plane) in out.chunks_exact(16).enumerate() {
                let want = (light + c as f32) / 255.0;
                assert!(plane.iter().all(|v| (v - want).abs() < 1e-6), "image {index}, band {c}: {plane:?}");
            }
        }
        let files = ImageFiles::new("images", vec![a.clone(), other.clone(), picture.clone(), b], 6);
        let told = |files: &ImageFiles, i: usize| match crate::picture::Picture::load(files, i) {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        };
        assert_eq!((told(&files, 0), told(&files, 3)), (String::new(), String::new()));
        assert!(told(&files, 1).contains("has 5 bands; files of 6 bands are expected"), "{}", told(&files, 1));
        assert!(told(&files, 2).contains("is a picture") && told(&files, 2).contains("picture.png"), "{}", told(&files, 2));
        let pictures = ImageFiles::new("images", vec![picture, a], 3);
        assert_eq!(told(&pictures, 0), "");
        assert!(told(&pictures, 1).contains("has 6 bands; pictures are expected"), "{}", told(&pictures, 1));
        Ok(())
    }

    #[test]
    fn a_table_of_labels_is_read_and_its_faults_named_by_line() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        image::RgbImage::new(2, 2).save(dir.path().join("a.png"))?;
        let read = |text: &str| -> anyhow::Result<Result<ImageFiles>> {
            let path = dir.path().join("few.csv");
            std::fs::write(&path, text)?;
            Ok(ImageFiles::from_csv(&path, 3))
        };
        image::RgbImage::new(3, 2).save(dir.path().join("c.png"))?;
        let files = read("image,label\na.png,cat\nc.png,ant\n./a.png,cat\n")??;
        assert_eq!((files.len(), files.classes().map(<[String]>::to_vec)), (2, Some(vec!["ant".into(), "cat".into()])));
        assert_eq!((files.label(0), files.get(0)?.label), (Some(1), Some(1)));
        for (text, words) in [
            ("a.png,cat\nb.png,dog\n", "line 2: no such image"),
            ("a.png\n", "line 1: expected"),
            ("", "names no"),
            ("a.png,cat\nc.png,cat\n./a.png,dog\n", "lines 1 and 3 give ./a.png two labels, `cat` and `dog`"),
        ] {
            let told = read(text)?.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(told.contains(words) && told.contains("few.csv"), "{text:?}: {told}");
        }
        Ok(())
    }
}
