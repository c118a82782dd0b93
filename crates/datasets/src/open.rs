//! From a path or a name to data sets.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walkdir::WalkDir;

use crate::decode::has_image_ending;
use crate::formats::{cifar, idx, manifest, npz, stl10, webdataset};
use crate::levels::{LevelRange, mapped};
use crate::registry::{DATASETS, DatasetSpec, Layout, find};
use crate::remote::{self, Network};
use crate::sources::{assemble, load};
use crate::unpack::unpack;
use crate::{Dataset, Error, PackedImages, Result, Subset, data_dir, folder, packed};

/// Whether sub-folders are labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelMode {
    /// Where it looks so (the rule is in [`crate::folder`]).
    #[default]
    Auto,
    /// Yes; it is an error where they can't be.
    Folder,
    /// No.
    None,
}

/// How [`open`] opens.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Whether the first image that can't be read is an error.
    pub strict: bool,
    /// Where downloaded data sets lie.
    pub cache: PathBuf,
    /// At most this many training images, and a fifth as many test images; spread evenly over classes. Where everything is decoded
    /// at once, files among them that turn out to be bad are not replaced. Of Parquet tables no more row groups are read than hold enough
    /// images of each class, the first ones.
    pub limit: Option<usize>,
    /// Of Parquet tables, which are otherwise read whole, no more images than as if this were the limit; [`ScanReport::whole`] tells how
    /// many there are. For looking at a data set rather than for training on it. Other sources are opened as they always are. What lies
    /// elsewhere is fetched whole, whatever this and the limit are.
    pub sample: Option<usize>,
    /// Whether sub-folders are labels.
    pub labels: LabelMode,
    /// Folders that take at most this many bytes when decoded are decoded at once and kept, so that bad files are known before
    /// training begins.
    pub keep_bytes: u64,
    /// Whether and how images are fetched that lie elsewhere ([`crate::remote`]).
    pub network: Network,
    /// The range of levels of 16 bits that is stretched over all of them when images are decoded; `None` leaves them as they are.
    pub levels: Option<LevelRange>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        let network = Network::of_process();
        let (cache, labels) = (data_dir(), LabelMode::Auto);
        let (limit, sample, levels) = (None, None, None);
        Self { strict: false, cache, limit, sample, labels, keep_bytes: 2 << 30, network, levels }
    }
}

/// A file that can't be read, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    /// Its path below the data set.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Files that can't be read and were left out.
    pub bad_files: Vec<BadFile>,
    /// How labels were understood, in words.
    pub understood: String,
    /// How many images there are, where no more than some of a table's were read.
    pub whole: Option<Whole>,
}

/// How many images a table holds, by its labels alone. Rows without an image, or with one that can't be read, are among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whole {
    /// Training images.
    pub train: usize,
    /// Test images, where there is such a split.
    pub test: Option<usize>,
    /// Training images of each class, by name; none without labels.
    pub classes: BTreeMap<String, usize>,
}

/// Data sets under one name.
pub struct Opened {
    /// Training images.
    pub train: Arc<dyn Dataset>,
    /// Test images, where there are any.
    pub test: Option<Arc<dyn Dataset>>,
    /// What opening found.
    pub report: ScanReport,
}

impl BadFile {
    pub(crate) fn new(id: String, error: &Error) -> Self {
        let reason = match error {
            Error::BadImage { reason, .. } => reason.clone(),
            Error::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        Self { id, reason }
    }
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.reason)
    }
}

/// Opens a data set of the registry by name, a folder, a file, or what lies elsewhere (`hf:…`, `s3://…`: [`crate::remote`]).
///
/// A folder holds images ([`crate::folder`] says how it is understood), or at its top tar shards, Parquet tables, IDX files, CIFAR's or
/// STL-10's binaries, or npz files; or shards or tables in folders below. A file is a manifest (`.csv`, `.tsv`, `.jsonl`), an archive
/// (`.tar`, `.tar.gz`), a table (`.parquet`), arrays (`.npz`, `-idx3-ubyte`) or a packed file (`.safetensors`, of [`crate::packed::pack`]).
/// A folder in the current one that has a data set's name wins over the name.
///
/// # Errors
/// No such path or name (with the nearest name), a folder without images, a data set that was not downloaded (with the
/// command that does), what lies elsewhere and can't be had, under `strict` the first bad file.
pub fn open(name_or_path: &str, options: &OpenOptions) -> Result<Opened> {
    if let Some(opened) = remote::open(name_or_path, options) {
        return opened;
    }
    let path = Path::new(name_or_path);
    match find(name_or_path) {
        // The cache itself may be the current folder.
        Some(spec) if !path.is_dir() || same(path, &options.cache.join(spec.folder())) => match open_named(spec, options)? {
            opened if matches!(spec.layout, Layout::Folder(_)) => Ok(opened),
            opened => limited(opened, options),
        },
        _ if path.is_dir() => open_folder(path, options),
        _ if path.is_file() => open_file(path, options),
        _ => {
            let nearest = DATASETS
                .iter()
                .map(|d| (strsim::jaro_winkler(d.name, name_or_path), d.name))
                .filter(|(score, _)| *score > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, n)| format!("; did you mean `{n}`?"));
            Err(Error::NotFound(format!(
                "{name_or_path}: no such folder, and no data set of that name{}",
                nearest.unwrap_or_else(|| " (`twinsight list datasets` shows them)".into())
            )))
        }
    }
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn open_folder(path: &Path, options: &OpenOptions) -> Result<Opened> {
    if let Some(opened) = open_known_files(path, options)? {
        return limited(opened, options);
    }
    let (splits, left_out) = folder::splits(path)?;
    let mut report = ScanReport::default();
    let found = folder::scan(&splits.train, options.labels, None, options.strict)?;
    report.understood.clone_from(&found.understood);
    if !left_out.is_empty() {
        report.understood.push_str(&format!("; beside the splits and left out: {}", left_out.join(", ")));
    }
    let classes = found.images.classes().unwrap_or_default().to_vec();
    let prefix = |split: &Path| split.strip_prefix(path).ok().filter(|p| !p.as_os_str().is_empty()).map(Path::to_path_buf);
    let train = load(found, prefix(&splits.train).as_deref(), options.limit, options, &mut report)?;
    let Some(folder) = splits.test else { return Ok(Opened { train, test: None, report }) };
    let found = folder::scan(&folder, options.labels, Some(&classes), options.strict)?;
    if !classes.is_empty() && found.images.classes().is_none() {
        report.understood.push_str(&format!("; test images are not labelled: {}", found.understood));
    } else if !classes.is_empty() && !found.understood.is_empty() {
        report.understood.push_str(&format!("; beside the test images: {}", found.understood));
    }
    let test = load(found, prefix(&folder).as_deref(), options.limit.map(test_limit), options, &mut report)?;
    Ok(Opened { train, test: Some(test), report })
}

/// A folder that holds archives, tables or binaries of a known form at its top, or archives or tables in folders below (`data`, as on the
/// Hugging Face Hub, or one a split); `None` where it does not.
fn open_known_files(path: &Path, options: &OpenOptions) -> Result<Option<Opened>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if file.is_file() && !is_hidden(&file) {
            files.push(file);
        }
    }
    files.sort_unstable();
    if files.iter().any(|f| has_image_ending(f)) {
        return Ok(None);
    }
    let has = |name: &str| files.iter().any(|f| f.file_name().is_some_and(|n| n == name));
    for zip in ["", ".gz"] {
        // LeCun's own files have a dot where others have a hyphen.
        for dot in ["-", "."] {
            let name = |split: &str, kind: &str| format!("{split}-{}-ubyte{zip}", kind.replacen('-', dot, 1));
            if has(&name("train", "images-idx3")) {
                return open_idx(path, &|split, kind| path.join(name(split, kind))).map(Some);
            }
        }
    }
    if has("train_X.bin") && has("train_y.bin") {
        let (train, test) = stl10::labelled(path)?;
        return Ok(Some(both(train, test)));
    }
    for (first, kind) in [("data_batch_1.bin", cifar::Kind::Ten), ("train.bin", cifar::Kind::Hundred)] {
        if has(first) {
            let (train, test) = cifar::read_both(path, kind)?;
            return Ok(Some(both(train, test)));
        }
    }
    // An archive beside what was unpacked from it is left alone.
    if folder::holds_images(path) {
        return Ok(None);
    }
    let of = |files: &[PathBuf], wanted: &dyn Fn(&Path) -> bool| files.iter().filter(|f| wanted(f)).cloned().collect::<Vec<_>>();
    let (is_table, is_shard) = (|f: &Path| has_ending(f, "parquet"), |f: &Path| webdataset::is_archive(f));
    let all = |files: &[PathBuf]| (of(files, &is_table), of(files, &is_shard));
    let (mut tables, mut shards) = all(&files);
    if tables.is_empty() && shards.is_empty() {
        (tables, shards) = all(&files_below(path));
        let data = path.join("data");
        if tables.iter().any(|t| t.starts_with(&data)) {
            tables.retain(|t| t.starts_with(&data));
        }
    }
    if !tables.is_empty() {
        return open_parquet(path, &tables, options).map(Some);
    }
    if !shards.is_empty() {
        // The limit is applied while the samples are still undecoded.
        let opened = assemble(path, webdataset::read(path, &shards, &options.cache)?, options)?;
        return Ok(Some(opened));
    }
    match &of(&files, &|f| has_ending(f, "npz"))[..] {
        [] => Ok(None),
        several => open_npz(path, several, &[], options).map(Some),
    }
}

/// The tables or tar shards `files`, which lie below `root`; `told` is said of them beside how labels were understood.
#[cfg(any(feature = "hub", feature = "object-store"))]
pub(crate) fn open_files(root: &Path, files: &[PathBuf], told: &str, options: &OpenOptions) -> Result<Opened> {
    // A file by itself is named by itself.
    let root = if let [one] = files { one } else { root };
    let mut opened = match files.iter().all(|f| has_ending(f, "parquet")) {
        true => open_parquet(root, files, options)?,
        false => assemble(root, webdataset::read(root, files, &options.cache)?, options)?,
    };
    opened.report.understood.push_str(told);
    Ok(opened)
}

/// Files in the folders below `path`, up to three deep, in order; hidden ones are passed over.
fn files_below(path: &Path) -> Vec<PathBuf> {
    let walk = WalkDir::new(path).min_depth(1).max_depth(4).follow_links(true).sort_by_file_name();
    let entries = walk.into_iter().filter_entry(|e| !is_hidden(e.path())).flatten();
    entries.filter(|e| e.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
}

/// Endings of files that are data sets, beside those of archives and IDX files.
const FILES: [&str; 7] = ["csv", "tsv", "jsonl", "ndjson", "parquet", "npz", "safetensors"];

/// Whether a file's name is that of a data set: a manifest, an archive, a table, arrays, a packed file.
pub fn is_data_file(path: &Path) -> bool {
    webdataset::is_archive(path) || FILES.iter().any(|e| has_ending(path, e)) || idx::is_images(path)
}

/// A file that is a data set.
fn open_file(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let is = |endings: &[&str]| endings.iter().any(|e| has_ending(path, e));
    let alone = [path.to_path_buf()];
    if webdataset::is_archive(path) {
        assemble(path, webdataset::read(path, &alone, &options.cache)?, options)
    } else if is(&manifest::ENDINGS) {
        assemble(path, manifest::read(path)?, options)
    } else if is(&["parquet"]) {
        open_parquet(path, &alone, options)
    } else if is(&["npz"]) {
        limited(open_npz(path, &alone, &[], options)?, options)
    } else if is(&["safetensors"]) {
        limited(mapped(packed::open(path)?, options.levels), options)
    } else if idx::is_images(path) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let labels = path.with_file_name(name.replace("images", "labels").replace("idx3", "idx1"));
        let labels = labels.is_file().then_some(labels);
        let (train, understood) = one_idx(&name, path, labels.as_deref(), 0)?;
        let report = ScanReport { understood, ..ScanReport::default() };
        limited(Opened { train: Arc::new(train), test: None, report }, options)
    } else {
        let known =
            "a folder of images, a file ending in .csv, .tsv, .jsonl, .tar, .tar.gz, .parquet, .npz, .safetensors or -idx3-ubyte";
        Err(Error::NotFound(format!("{}: is a file of no known kind; expected {known}, or a data set's name", path.display())))
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

#[cfg(feature = "parquet")]
fn open_parquet(path: &Path, files: &[PathBuf], options: &OpenOptions) -> Result<Opened> {
    assemble(path, crate::formats::parquet::read(path, files, options)?, options)
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(path: &Path, _: &[PathBuf], _: &OpenOptions) -> Result<Opened> {
    Err(Error::NotFound(format!("{}: this build leaves Parquet out (feature parquet)", path.display())))
}

fn open_npz(path: &Path, files: &[PathBuf], classes: &[&str], options: &OpenOptions) -> Result<Opened> {
    let npz::Splits { train, test, understood } = npz::read(path, files, classes)?;
    let report = ScanReport { understood, ..ScanReport::default() };
    Ok(mapped(Opened { train, test, report }, options.levels))
}

/// IDX files under MNIST's names in a folder; `file` makes a path of a split and a kind.
fn open_idx(path: &Path, file: &dyn Fn(&str, &str) -> PathBuf) -> Result<Opened> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let labels = |split: &str| Some(file(split, "labels-idx1")).filter(|l| l.exists());
    let (train, test) = (labels("train"), labels("t10k"));
    let count = idx::classes(train.as_deref())?.max(idx::classes(test.as_deref())?);
    let (trained, understood) = one_idx(&name, &file("train", "images-idx3"), train.as_deref(), count)?;
    let images = file("t10k", "images-idx3");
    let tested = images.exists().then(|| one_idx(&name, &images, test.as_deref(), count)).transpose()?;
    let report = ScanReport { understood, ..ScanReport::default() };
    Ok(Opened { train: Arc::new(trained), test: tested.map(|(t, _)| Arc::new(t) as Arc<dyn Dataset>), report })
}

/// One IDX file of images with its labels, which are of `count` classes or more; and how they were understood.
fn one_idx(name: &str, images: &Path, labels: Option<&Path>, count: usize) -> Result<(PackedImages, String)> {
    let count = idx::classes(labels)?.max(count);
    let classes = (0..count).map(|i| i.to_string()).collect();
    let understood = match labels {
        Some(_) => format!("labels come with the data set: {count} classes"),
        None => "no labels: there is no file of them".into(),
    };
    Ok((idx::dataset(name, images, labels, classes)?, understood))
}

fn both(train: PackedImages, test: PackedImages) -> Opened {
    Opened { train: Arc::new(train), test: Some(Arc::new(test)), report: known() }
}

fn open_named(spec: &DatasetSpec, options: &OpenOptions) -> Result<Opened> {
    let dir = options.cache.join(spec.folder());
    let missing = spec.files.iter().map(|f| dir.join(f.name)).find(|p| !p.exists());
    if let Some(path) = missing {
        return Err(Error::NotFound(format!(
            "{}: not downloaded yet ({} is missing); get it with: twinsight data fetch {0}",
            spec.name,
            path.display()
        )));
    }
    let classes = || spec.classes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let idx = |images: &str, labels: &str| idx::dataset(spec.name, &dir.join(images), Some(&dir.join(labels)), classes());
    let (train, test) = match spec.layout {
        #[cfg(feature = "fashion-mnist-mini")]
        Layout::Embedded => {
            let (train, test) = crate::fashion_mini::open()?;
            return Ok(Opened { train, test: Some(test), report: known() });
        }
        #[cfg(not(feature = "fashion-mnist-mini"))]
        Layout::Embedded => {
            return Err(Error::NotFound(format!("{}: this build leaves it out (feature fashion-mnist-mini)", spec.name)));
        }
        Layout::Mnist => (
            idx("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")?,
            idx("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")?,
        ),
        Layout::Cifar(kind) => {
            let archive = dir.join(spec.files[0].name);
            cifar::read_both(&archive, kind)?
        }
        Layout::Stl10 => stl10::labelled(&dir.join(spec.files[0].name))?,
        Layout::Stl10Unlabelled => {
            let train = stl10::unlabelled(&dir.join(spec.files[0].name), &options.cache)?;
            let understood = "no labels: these are STL-10's images without".into();
            let report = ScanReport { understood, ..ScanReport::default() };
            return Ok(Opened { train: Arc::new(train), test: None, report });
        }
        Layout::Npz => {
            let file = dir.join(spec.files[0].name);
            return open_npz(&file.clone(), &[file], spec.classes, options);
        }
        Layout::Folder(below) => return open_folder(&unpack(&dir.join(spec.files[0].name), &dir)?.join(below), options),
    };
    Ok(Opened { train: Arc::new(train), test: Some(Arc::new(test)), report: known() })
}

fn known() -> ScanReport {
    ScanReport { understood: "labels come with the data set".into(), ..ScanReport::default() }
}

fn limited(opened: Opened, options: &OpenOptions) -> Result<Opened> {
    let Some(limit) = options.limit else { return Ok(opened) };
    let train = Arc::new(Subset::limited(opened.train, limit)?);
    let test = opened.test.map(|t| Subset::limited(t, test_limit(limit)).map(|s| Arc::new(s) as Arc<dyn Dataset>)).transpose()?;
    Ok(Opened { train, test, report: opened.report })
}

/// Test images under a limit of training images.
pub(crate) fn test_limit(train: usize) -> usize {
    (train / 5).max(1)
}
