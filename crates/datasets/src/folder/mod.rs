//! Folders of image files.
//!
//! Every file with an image's ending below the folder is taken, in byte order of the paths. Links are followed, but never in
//! a circle; hidden files and folders (`.name`) and `__MACOSX` are passed over. A file whose first bytes are no image's is named and
//! left out at once; one that is damaged further in is found when everything is decoded ([`ImageFolder::into_memory`]) or when
//! it is read.
//!
//! A folder with sub-folders `train` and `test` (or `val`, `valid`, `validation`) has these as its splits ([`splits`]). Whether
//! other sub-folders are labels is decided in `labels.rs`: [`LabelMode`].

mod decode;
mod labels;
mod memory;
mod single;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use walkdir::WalkDir;

use crate::open::{BadFile, LabelMode};
use crate::{Dataset, Error, Result, Sample};
use decode::{Header, decode_as, has_image_ending, probe};
use labels::{Labels, Understood};

pub use decode::{ENDINGS, decode};
pub use single::SingleImage;

/// Image files below a folder, decoded when asked for, in 8 bits and 1 or 3 channels.
pub struct ImageFolder {
    name: String,
    root: PathBuf,
    /// Paths below the root, with forward slashes, and where the files lie.
    files: Vec<(String, PathBuf)>,
    headers: Vec<Header>,
    labels: Option<Labels>,
    channels: usize,
}

/// What a scan found.
pub struct Scan {
    /// The images.
    pub folder: ImageFolder,
    /// Files with an image's ending that are none, by path below the folder.
    pub bad: Vec<BadFile>,
    /// How sub-folders were understood.
    pub understood: String,
}

/// The folders of a data set's splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// Training images.
    pub train: PathBuf,
    /// Test images.
    pub test: Option<PathBuf>,
}

impl ImageFolder {
    /// Looks through `root`. The header of every file is read, in parallel, for its form, size and colour.
    ///
    /// `classes` are those of another split, which this one is labelled by (`Some(&[])`: not labelled); without them,
    /// sub-folders are understood by `mode`.
    ///
    /// # Errors
    /// A folder that can't be read or holds no image; labels that were demanded and can't be; under `strict` the first bad
    /// file.
    pub fn scan(root: &Path, mode: LabelMode, classes: Option<&[String]>, strict: bool) -> Result<Scan> {
        let (found, mut bad) = walk(root, strict)?;
        let probed: Vec<Result<Header>> = found.par_iter().map(|(_, path)| probe(path)).collect();
        let (mut files, mut headers) = (Vec::new(), Vec::new());
        for (file, result) in found.into_iter().zip(probed) {
            match result {
                Ok(header) => {
                    files.push(file);
                    headers.push(header);
                }
                Err(e) if strict => return Err(e),
                Err(e) => bad.push(BadFile::new(file.0, &e)),
            }
        }
        bad.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        if files.is_empty() {
            let more = match bad.first() {
                Some(first) => format!("; {} with an image's ending can't be read, such as {first}", bad.len()),
                None => format!(" (looked for {})", ENDINGS.join(", ")),
            };
            return Err(Error::NotFound(format!("{}: no image in this folder{more}", root.display())));
        }
        let name = root.file_name().map_or_else(|| root.display().to_string(), |n| n.to_string_lossy().into_owned());
        let channels = if headers.iter().all(|h| h.gray) { 1 } else { 3 };
        let mut folder = Self { name, root: root.to_path_buf(), files, headers, labels: None, channels };
        let understood = folder.understand(mode, classes)?;
        Ok(Scan { folder, bad, understood })
    }

    /// Leaves only the images `index`.
    #[must_use]
    pub fn keep(self, index: &[usize]) -> Self {
        let labels = self.labels.map(|l| Labels { of: index.iter().map(|&i| l.of[i]).collect(), ..l });
        let mut files: Vec<Option<(String, PathBuf)>> = self.files.into_iter().map(Some).collect();
        let files = index.iter().filter_map(|&i| files[i].take()).collect();
        Self { files, headers: index.iter().map(|&i| self.headers[i]).collect(), labels, ..self }
    }

    /// Bytes that all images take when decoded.
    pub fn decoded_bytes(&self) -> u64 {
        self.headers.iter().map(|h| h.bytes(self.channels)).sum()
    }

    /// Labels by sub-folder, if they are any; says how they were understood.
    fn understand(&mut self, mode: LabelMode, classes: Option<&[String]>) -> Result<String> {
        let paths: Vec<String> = self.files.iter().map(|(id, _)| id.clone()).collect();
        let impossible = |why: String| Error::BadSetting(format!("{}: sub-folders can't be labels: {why}", self.root.display()));
        match classes {
            Some([]) => Ok("no labels, as in training images".into()),
            Some(classes) => match labels::of_known(&paths, classes) {
                Ok(of) => {
                    self.labels = Some(Labels { of, classes: classes.to_vec() });
                    Ok(String::new())
                }
                Err(path) if mode == LabelMode::Folder => {
                    Err(impossible(format!("{path} is in none of the classes of the training images ({})", classes.join(", "))))
                }
                Err(path) => Ok(format!("{path} is in none of the classes of the training images")),
            },
            None => match labels::understand(&paths, mode) {
                Understood::Labels(labels) => {
                    let text = format!("labels by sub-folder: {} classes", labels.classes.len());
                    self.labels = Some(labels);
                    Ok(text)
                }
                Understood::Unlabelled(why) => Ok(why),
                Understood::Impossible(why) => Err(impossible(why)),
            },
        }
    }
}

impl Dataset for ImageFolder {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.files.len()
    }
    fn get(&self, index: usize) -> Result<Sample> {
        match self.files.get(index) {
            Some((_, path)) => Ok(Sample { image: decode_as(path, self.channels)?, label: self.label(index) }),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.of.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|l| l.classes.as_slice())
    }
    fn id(&self, index: usize) -> String {
        self.files.get(index).map_or_else(|| format!("#{index}"), |(id, _)| id.clone())
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn side(&self) -> Option<(u32, u32)> {
        let first = self.headers.first()?.size;
        self.headers.iter().all(|h| h.size == first).then_some(first)
    }
}

/// Finds the splits of a folder, and says which sub-folders with images are left out by them.
///
/// `train` beside `test` (or `val`, `valid`, `validation`; the first of these that exists) are splits. `train` alone is one only
/// where nothing beside it holds images, since it may as well be a class (of vehicles, say). Everything else is one split.
///
/// # Errors
/// A folder that can't be read.
pub fn splits(root: &Path) -> Result<(Splits, Vec<String>)> {
    let train = root.join("train");
    if !train.is_dir() {
        return Ok((Splits { train: root.to_path_buf(), test: None }, Vec::new()));
    }
    let test = ["test", "val", "valid", "validation"].iter().map(|name| root.join(name)).find(|p| p.is_dir());
    let mut others = Vec::new();
    for entry in std::fs::read_dir(root).map_err(Error::io(root))? {
        let path = entry.map_err(Error::io(root))?.path();
        if path != train && Some(&path) != test.as_ref() && !is_passed_over(&path, true) && holds_images(&path) {
            others.push(path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
        }
    }
    others.sort_unstable();
    if test.is_none() && !others.is_empty() {
        return Ok((Splits { train: root.to_path_buf(), test: None }, Vec::new()));
    }
    Ok((Splits { train, test }, others))
}

/// A path below the root of a walk, with forward slashes, and where it lies.
type Found = (String, PathBuf);

/// All files with an image's ending, in byte order, and what could not be looked at.
fn walk(root: &Path, strict: bool) -> Result<(Vec<Found>, Vec<BadFile>)> {
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for entry in WalkDir::new(root)
        .follow_links(true)
        .into_iter()
        .filter_entry(|e| e.depth() == 0 || !is_passed_over(e.path(), e.file_type().is_dir()))
    {
        match entry {
            Ok(entry) if !entry.file_type().is_dir() && has_image_ending(entry.path()) => {
                found.push((relative(root, entry.path()), entry.into_path()));
            }
            Ok(_) => {}
            // A link back to a folder that is being walked: its images are found without it.
            Err(e) if e.loop_ancestor().is_some() => {}
            Err(e) => {
                let path = e.path().unwrap_or(root).to_path_buf();
                let missing = e.io_error().is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound);
                // A link to nothing matters only where it is called an image.
                if e.depth() > 0 && missing && !has_image_ending(&path) {
                    continue;
                }
                let top = e.depth() == 0;
                let error = Error::Io { path: path.clone(), source: e.into() };
                if strict || top {
                    return Err(error);
                }
                bad.push(BadFile::new(relative(root, &path), &error));
            }
        }
    }
    found.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()).then_with(|| a.1.cmp(&b.1)));
    Ok((found, bad))
}

/// Files by which a folder is known to hold a training run, whose pictures are no data.
const RUN_FILES: [&str; 2] = ["config.toml", "metrics.jsonl"];

fn holds_images(path: &Path) -> bool {
    let walk =
        WalkDir::new(path).follow_links(true).into_iter().filter_entry(|e| !is_passed_over(e.path(), e.file_type().is_dir()));
    walk.flatten().any(|e| !e.file_type().is_dir() && has_image_ending(e.path()))
}

/// Hidden folders, archives' leftovers, and training runs that were written among the images.
fn is_passed_over(path: &Path, is_folder: bool) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".") || n == "__MACOSX")
        || is_folder && RUN_FILES.iter().all(|name| path.join(name).is_file())
}

/// `path` below `root`, with forward slashes.
fn relative(root: &Path, path: &Path) -> String {
    let parts = path.strip_prefix(root).unwrap_or(path).components();
    parts.map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
