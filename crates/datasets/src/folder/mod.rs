//! Folders of image files.
//!
//! Every file with an image's ending below the folder is taken, in byte order of the paths. Links are followed, but never in
//! a circle; hidden files and folders (`.name`) and `__MACOSX` are passed over. A file whose first bytes are no image's is named and
//! left out at once; one that is damaged further in is found when everything is decoded ([`EncodedImages::into_memory`]) or when
//! it is read.
//!
//! A folder with sub-folders `train` and `test` (or `training`, `testing`, `val`, `valid`, `validation`, `dev`, in capitals or not) has these
//! as its splits ([`splits`]). Files of forms that are not read (`.heic`, say) are counted and told. Whether other sub-folders are labels is decided in `labels.rs`: [`LabelMode`].

mod single;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::decode::{ENDINGS, has_image_ending, unread_ending};
use crate::encoded::{EncodedImages, Item, Scan};
use crate::labels::{self, Understood};
use crate::open::{BadFile, LabelMode};
use crate::place::Place;
use crate::sources::Split;
use crate::{Error, Result};

pub use single::SingleImage;

/// The folders of a data set's splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// Training images.
    pub train: PathBuf,
    /// Test images.
    pub test: Option<PathBuf>,
}

/// Looks through `root`. The header of every file is read, in parallel, for its form, size and colour.
///
/// `classes` are those of another split, which this one is labelled by (`Some(&[])`: not labelled), with classes that it has beyond
/// them behind; without them, sub-folders are understood by `mode`.
///
/// # Errors
/// A folder that can't be read or holds no image; labels that were demanded and can't be; under `strict` the first bad
/// file.
pub fn scan(root: &Path, mode: LabelMode, classes: Option<&[String]>, strict: bool) -> Result<Scan> {
    let (found, mut bad, unread) = walk(root, strict)?;
    let items = found.into_iter().map(|(id, path)| Item { id, place: Place::File(path) }).collect();
    let name = root.file_name().map_or_else(|| root.display().to_string(), |n| n.to_string_lossy().into_owned());
    let (mut images, _, more) = EncodedImages::probe(name, root.to_path_buf(), items, strict)?;
    bad.extend(more);
    bad.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    if images.items.is_empty() {
        let more = match bad.first() {
            Some(first) => format!("; {} with an image's ending can't be read, such as {first}", bad.len()),
            None => format!(" (looked for {})", ENDINGS.join(", ")),
        };
        let unread = told(&unread).map_or(String::new(), |text| format!("; {text}"));
        return Err(Error::NotFound(format!("{}: no image in this folder{more}{unread}", root.display())));
    }
    let mut understood = understand(&mut images, mode, classes)?;
    if let Some(text) = told(&unread) {
        understood.push_str(if understood.is_empty() { "" } else { "; " });
        understood.push_str(&text);
    }
    Ok(Scan { images, bad, understood })
}

/// Labels by sub-folder, if they are any; says how they were understood.
fn understand(images: &mut EncodedImages, mode: LabelMode, classes: Option<&[String]>) -> Result<String> {
    let paths: Vec<String> = images.items.iter().map(|item| item.id.clone()).collect();
    let impossible = |why: String| Error::BadSetting(format!("{}: sub-folders can't be labels: {why}", images.root.display()));
    match classes {
        Some([]) => Ok("no labels, as in training images".into()),
        Some(classes) => match labels::of_known(&paths, classes) {
            Ok(labels) => {
                images.labels = Some(labels);
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
                images.labels = Some(labels);
                Ok(text)
            }
            Understood::Unlabelled(why) => Ok(why),
            Understood::Impossible(why) => Err(impossible(why)),
        },
    }
}

/// Finds the splits of a folder, and says which sub-folders with images are left out by them.
///
/// `train` (or `training`) beside `test` (or `testing`; else `val`, `valid`, `validation`, `dev`; the first of these that exists) are splits,
/// in capitals or not. `train` alone is one only where nothing beside it holds images, since it may as well be a class (of vehicles, say).
/// Everything else is one split.
///
/// # Errors
/// A folder that can't be read.
pub fn splits(root: &Path) -> Result<(Splits, Vec<String>)> {
    let (mut named, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(root).map_err(Error::io(root))? {
        let path = entry.map_err(Error::io(root))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            named.extend(Split::rank(&name).map(|(split, rank)| (split, rank, path.clone())));
        }
        folders.push((name, path));
    }
    named.sort_unstable_by(|a, b| (a.1, &a.2).cmp(&(b.1, &b.2)));
    let of = |wanted: Split| named.iter().find(|(split, ..)| *split == wanted).map(|(.., path)| path.clone());
    let unsplit = || Splits { train: root.to_path_buf(), test: None };
    let Some(train) = of(Split::Train) else { return Ok((unsplit(), Vec::new())) };
    let test = of(Split::Test).or_else(|| of(Split::Validation));
    let is_other =
        |path: &PathBuf| *path != train && Some(path) != test.as_ref() && !is_passed_over(path, true) && holds_images(path);
    let mut others: Vec<String> = folders.into_iter().filter(|(_, path)| is_other(path)).map(|(name, _)| name).collect();
    others.sort_unstable();
    if test.is_none() && !others.is_empty() {
        return Ok((unsplit(), Vec::new()));
    }
    Ok((Splits { train, test }, others))
}

/// A path below the root of a walk, with forward slashes, and where it lies.
type Found = (String, PathBuf);

/// How many files there are of each ending whose form is not read.
type Unread = BTreeMap<String, usize>;

/// Words about files of forms that are not read.
fn told(unread: &Unread) -> Option<String> {
    let count: usize = unread.values().sum();
    let each: Vec<String> = unread.iter().map(|(ending, count)| format!(".{ending}: {count}")).collect();
    (count > 0).then(|| format!("{count} files of forms that are not read ({})", each.join(", ")))
}

/// All files with an image's ending, in byte order, what could not be looked at, and what is of another form.
fn walk(root: &Path, strict: bool) -> Result<(Vec<Found>, Vec<BadFile>, Unread)> {
    let (mut found, mut bad, mut unread) = (Vec::new(), Vec::new(), Unread::new());
    for entry in WalkDir::new(root)
        .follow_links(true)
        .into_iter()
        .filter_entry(|e| e.depth() == 0 || !is_passed_over(e.path(), e.file_type().is_dir()))
    {
        match entry {
            Ok(entry) if !entry.file_type().is_dir() && has_image_ending(entry.path()) => {
                found.push((relative(root, entry.path()), entry.into_path()));
            }
            Ok(entry) if !entry.file_type().is_dir() => {
                if let Some(ending) = unread_ending(entry.path()) {
                    *unread.entry(ending).or_default() += 1;
                }
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
                // The system's own words: those around them would tell the path once more.
                let source = e.into_io_error().unwrap_or_else(|| std::io::Error::other("it can't be looked at"));
                let error = Error::Io { path: path.clone(), source };
                if strict || top {
                    return Err(error);
                }
                bad.push(BadFile::new(relative(root, &path), &error));
            }
        }
    }
    found.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()).then_with(|| a.1.cmp(&b.1)));
    Ok((found, bad, unread))
}

/// Files by which a folder is known to hold a training run, whose pictures are no data.
const RUN_FILES: [&str; 2] = ["config.toml", "metrics.jsonl"];

/// Whether a file below `path` has an image's ending.
pub(crate) fn holds_images(path: &Path) -> bool {
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
