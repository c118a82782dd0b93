//! What sources of several splits have in common: entries with an optional label and split become data sets.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::dataset::spread;
use crate::encoded::{EncodedImages, Item, Scan};
use crate::labels::{self, Labels, Understood};
use crate::open::{BadFile, LabelMode, OpenOptions, Opened, ScanReport, Whole, test_limit};
use crate::{Dataset, Error, Result};

/// One image that a source holds.
pub(crate) struct Entry {
    /// Its name and place.
    pub(crate) item: Item,
    /// Its label's name, if it has one.
    pub(crate) label: Option<String>,
    /// The split that it belongs to.
    pub(crate) split: Split,
}

/// The parts of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// To be trained on.
    Train,
    /// To be tested on where there is nothing to test on.
    Validation,
    /// To be tested on.
    Test,
}

/// Everything that a source holds.
#[derive(Default)]
pub(crate) struct Entries {
    /// The images, in the source's order.
    pub(crate) found: Vec<Entry>,
    /// What should be images and is none.
    pub(crate) bad: Vec<BadFile>,
    /// The names of the classes in the order of their numbers, where the source knows.
    pub(crate) classes: Option<Vec<String>>,
    /// Where labels come from, in words.
    pub(crate) labelled_by: &'static str,
    /// Whether to read archives from front to back.
    pub(crate) in_windows: bool,
    /// Images that belong to samples which have another one.
    pub(crate) passed_over: usize,
    /// How many images there are, where the source read only some.
    pub(crate) whole: Option<Whole>,
}

/// The words that name a split, in lower case; of several of one kind the first goes before the others.
const SPLIT_WORDS: [(Split, &[&str]); 3] = [
    (Split::Train, &["train", "training"]),
    (Split::Test, &["test", "testing", "t10k"]),
    (Split::Validation, &["val", "valid", "validation", "dev"]),
];

impl Split {
    /// The split that a word names, in capitals or not; `None` where it names none.
    pub(crate) fn named(word: &str) -> Option<Self> {
        Self::rank(word).map(|(split, _)| split)
    }

    /// As [`Split::named`], with the word's place among those of its split.
    pub(crate) fn rank(word: &str) -> Option<(Self, usize)> {
        let word = word.trim().to_ascii_lowercase();
        let place = |(split, words): &(Self, &[&str])| Some((*split, words.iter().position(|w| *w == word)?));
        SPLIT_WORDS.iter().find_map(place)
    }

    /// All words that name a split, for messages.
    pub(crate) fn words() -> String {
        SPLIT_WORDS.iter().flat_map(|(_, words)| words.iter().copied()).collect::<Vec<_>>().join(", ")
    }

    /// The split that a file below `root` belongs to, by the first word of its name (`test-00000-of-00001.parquet`, `val_003.tar`), or else
    /// by the nearest of its folders that is called like a split; without either it is one of training images.
    pub(crate) fn of_path(root: &Path, path: &Path) -> Self {
        let below = path.strip_prefix(root).ok().filter(|p| !p.as_os_str().is_empty()).unwrap_or(path);
        let name = below.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let word = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let folders = || below.parent().into_iter().flat_map(Path::ancestors).filter_map(Path::file_name);
        // Folders above the data set say nothing about it.
        // The Hugging Face Hub says so of a split of which it converted the first part only.
        let named = |f: &std::ffi::OsStr| Self::named(f.to_string_lossy().trim_start_matches("partial-"));
        let folder = || if below == path { None } else { folders().find_map(named) };
        Self::named(word).or_else(folder).unwrap_or(Self::Train)
    }
}

/// Makes data sets of what a source found.
///
/// # Errors
/// No readable image for training; labels that were demanded and are missing; under `strict` the first bad image.
pub(crate) fn assemble(path: &Path, mut entries: Entries, options: &OpenOptions) -> Result<Opened> {
    if let (true, Some(first)) = (options.strict, entries.bad.first()) {
        return Err(Error::bad(path, first.to_string()));
    }
    let has_test = entries.found.iter().any(|e| e.split == Split::Test);
    let left_out = entries.found.iter().filter(|e| has_test && e.split == Split::Validation).count();
    if entries.found.iter().all(|e| e.split != Split::Train) {
        entries.found.iter_mut().for_each(|e| e.split = Split::Train);
    }
    let names: BTreeSet<&str> = entries.found.iter().filter_map(|e| e.label.as_deref()).collect();
    let classes = entries.classes.clone().unwrap_or_else(|| in_order(&names));
    let mut report = ScanReport { bad_files: entries.bad, understood: String::new(), whole: entries.whole };
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for entry in entries.found {
        match entry.split {
            Split::Train => train.push(entry),
            Split::Validation if has_test => {}
            _ => test.push(entry),
        }
    }
    let scanned = |part: Vec<Entry>, known: Option<&[String]>| -> Result<Scan> {
        let wanted: Vec<Option<String>> = part.iter().map(|e| e.label.clone()).collect();
        let name = path.file_stem().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let items = part.into_iter().map(|e| e.item).collect();
        let (mut images, kept, bad) = EncodedImages::probe(name, path.to_path_buf(), items, options.strict)?;
        images.in_windows = entries.in_windows;
        let wanted: Vec<Option<String>> = kept.into_iter().map(|i| wanted[i].clone()).collect();
        let understood = label(&mut images, &wanted, &classes, entries.labelled_by, options.labels, known, path)?;
        Ok(Scan { images, bad, understood })
    };
    let scan = scanned(train, None)?;
    if scan.images.is_empty() {
        let first = report.bad_files.iter().chain(&scan.bad).next();
        let more = first.map_or(String::new(), |first| format!("; the first that can't be read is {first}"));
        return Err(Error::NotFound(format!("{}: holds no readable image for training{more}", path.display())));
    }
    report.understood.clone_from(&scan.understood);
    if left_out > 0 {
        report.understood.push_str(&format!("; {left_out} validation images are left out, since there are test images"));
    }
    if entries.passed_over > 0 {
        let count = entries.passed_over;
        report.understood.push_str(&format!("; {count} further images of samples are left out: a sample gives one"));
    }
    let known = scan.images.classes().map(<[String]>::to_vec).unwrap_or_default();
    let train = load(scan, None, options.limit, options, &mut report)?;
    let scan = scanned(test, Some(&known))?;
    let test = match scan.images.is_empty() {
        true => {
            report.bad_files.extend(scan.bad);
            None
        }
        false => Some(load(scan, None, options.limit.map(test_limit), options, &mut report)?),
    };
    Ok(Opened { train, test, report })
}

/// Labels `images` with what the source says of each, or by the folders in their names; says how that was understood. `known` are
/// the classes of the training images where these are others.
fn label(
    images: &mut EncodedImages,
    wanted: &[Option<String>],
    classes: &[String],
    by: &str,
    mode: LabelMode,
    known: Option<&[String]>,
    path: &Path,
) -> Result<String> {
    if mode == LabelMode::None {
        return Ok("no labels, as asked for".into());
    }
    let demanded = |why: String| match mode {
        LabelMode::Folder => Err(Error::BadSetting(format!("{}: the images can't be labelled: {why}", path.display()))),
        _ => Ok(format!("no labels: {why}")),
    };
    if wanted.iter().all(Option::is_none) {
        let paths: Vec<String> = images.items.iter().map(|item| item.id.clone()).collect();
        return match known {
            Some([]) => Ok(String::new()),
            Some(known) => {
                images.labels = labels::of_known(&paths, known).ok();
                Ok(String::new())
            }
            None => match labels::understand(&paths, mode) {
                Understood::Labels(labels) => {
                    let text = format!("labels by the folders in the images' names: {} classes", labels.classes.len());
                    images.labels = Some(labels);
                    Ok(text)
                }
                Understood::Unlabelled(why) => Ok(why),
                Understood::Impossible(why) => demanded(why),
            },
        };
    }
    let number = |name: &Option<String>| name.as_ref().and_then(|n| classes.iter().position(|c| c == n)).map(|n| n as u32);
    let of: Vec<Option<u32>> = wanted.iter().map(number).collect();
    if let Some(i) = of.iter().position(Option::is_none) {
        let missing = of.iter().filter(|l| l.is_none()).count();
        let what = wanted[i].as_ref().map_or("none".into(), |l| format!("`{l}`, which is no class"));
        return demanded(format!("{missing} of {} images have none, such as {}: {what}", of.len(), images.items[i].id));
    }
    if known.is_some_and(<[String]>::is_empty) {
        return Ok("no labels, as in training images".into());
    }
    images.labels = Some(Labels { of: of.into_iter().flatten().collect(), classes: classes.to_vec() });
    Ok(format!("labels by {by}: {} classes", classes.len()))
}

/// Names of classes in order: by number where all are numbers, else by their bytes.
pub(crate) fn in_order(names: &BTreeSet<&str>) -> Vec<String> {
    let mut numbers: Vec<(i64, &str)> = names.iter().filter_map(|n| Some((n.parse().ok()?, *n))).collect();
    numbers.sort_unstable();
    let sorted: Vec<&str> = if numbers.len() == names.len() {
        numbers.into_iter().map(|(_, name)| name).collect()
    } else {
        names.iter().copied().collect()
    };
    sorted.into_iter().map(String::from).collect()
}

/// Cuts a scanned split down to the limit, and decodes it at once where it is small enough. `prefix` goes before the names of bad files.
pub(crate) fn load(
    scan: Scan,
    prefix: Option<&Path>,
    limit: Option<usize>,
    options: &OpenOptions,
    report: &mut ScanReport,
) -> Result<Arc<dyn Dataset>> {
    let images = match limit {
        Some(limit) => {
            let index = spread(&scan.images, limit)?;
            scan.images.keep(&index)
        }
        None => scan.images,
    };
    let images = EncodedImages { levels: options.levels, ..images };
    let mut add = |bad: Vec<BadFile>| {
        report.bad_files.extend(bad.into_iter().map(|b| match prefix {
            Some(p) => BadFile { id: format!("{}/{}", p.display(), b.id), ..b },
            None => b,
        }));
    };
    add(scan.bad);
    if images.decoded_bytes() > options.keep_bytes {
        return Ok(Arc::new(images));
    }
    let (kept, bad) = images.into_memory(options.strict)?;
    add(bad);
    Ok(Arc::new(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_are_numbers_are_in_their_order() {
        assert_eq!(in_order(&["10", "9", "0"].into()), ["0", "9", "10"]);
        assert_eq!(in_order(&["10", "9", "b"].into()), ["10", "9", "b"]);
    }

    #[test]
    fn splits_by_the_first_word() {
        let of = |name: &str| Split::of_path(Path::new("test"), &Path::new("test").join(name));
        assert_eq!(of("data/train-00000-of-00001.parquet"), Split::Train);
        assert_eq!((of("validation_1.tar"), of("Valid_1.tar")), (Split::Validation, Split::Validation));
        assert_eq!((of("test.tar.gz"), of("tests.tar"), of("0001.tar")), (Split::Test, Split::Train, Split::Train));
        assert_eq!((of("test/0001.parquet"), of("test/default/0001.parquet")), (Split::Test, Split::Test));
        assert_eq!((of("x/partial-test/0.parquet"), of("partial-val/0.parquet")), (Split::Test, Split::Validation));
        assert_eq!((of("test/train-1.parquet"), of("dev/x/train/1.tar")), (Split::Train, Split::Train));
        assert_eq!(Split::of_path(Path::new("test/1.tar"), Path::new("test/1.tar")), Split::Train);
        assert_eq!((Split::named(" Testing"), Split::named("tests"), Split::named("")), (Some(Split::Test), None, None));
    }
}
