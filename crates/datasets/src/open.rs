//! From a path or a name to data sets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dataset::spread;
use crate::folder::{self, ImageFolder};
use crate::formats::{cifar, idx};
use crate::registry::{DATASETS, DatasetSpec, Layout};
use crate::{Dataset, Error, Result, Subset, data_dir};

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
    /// at once, files among them that turn out to be bad are not replaced.
    pub limit: Option<usize>,
    /// Whether sub-folders are labels.
    pub labels: LabelMode,
    /// Folders that take at most this many bytes when decoded are decoded at once and kept, so that bad files are known before
    /// training begins.
    pub keep_bytes: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { strict: false, cache: data_dir(), limit: None, labels: LabelMode::Auto, keep_bytes: 2 << 30 }
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

/// Opens a data set of the registry by name, or a folder of images ([`crate::folder`] says how it is understood). A folder in
/// the current one that has a data set's name wins over the name.
///
/// # Errors
/// No such path or name (with the nearest name), a folder without images, a data set that was not downloaded (with the
/// command that does), under `strict` the first bad file.
pub fn open(name_or_path: &str, options: &OpenOptions) -> Result<Opened> {
    let path = Path::new(name_or_path);
    match DATASETS.iter().find(|d| d.name == name_or_path) {
        // The cache itself may be the current folder.
        Some(spec) if !path.is_dir() || same(path, &options.cache.join(spec.name)) => {
            limited(open_named(spec, options)?, options)
        }
        _ if path.is_dir() => open_folder(path, options),
        _ if path.is_file() => {
            Err(Error::NotFound(format!("{name_or_path}: is a file, expected a folder of images or a data set's name")))
        }
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
    let (splits, left_out) = folder::splits(path)?;
    let mut report = ScanReport::default();
    let scan = ImageFolder::scan(&splits.train, options.labels, None, options.strict)?;
    report.understood.clone_from(&scan.understood);
    if !left_out.is_empty() {
        report.understood.push_str(&format!("; beside the splits and left out: {}", left_out.join(", ")));
    }
    let classes = scan.folder.classes().unwrap_or_default().to_vec();
    let train = load(scan, path, &splits.train, options.limit, options, &mut report)?;
    let Some(folder) = splits.test else { return Ok(Opened { train, test: None, report }) };
    let scan = ImageFolder::scan(&folder, options.labels, Some(&classes), options.strict)?;
    if !classes.is_empty() && scan.folder.classes().is_none() {
        report.understood.push_str(&format!("; test images are not labelled: {}", scan.understood));
    }
    let test = load(scan, path, &folder, options.limit.map(test_limit), options, &mut report)?;
    Ok(Opened { train, test: Some(test), report })
}

/// Cuts a scanned split down to the limit, and decodes it at once where it is small enough.
fn load(
    scan: folder::Scan,
    whole: &Path,
    root: &Path,
    limit: Option<usize>,
    options: &OpenOptions,
    report: &mut ScanReport,
) -> Result<Arc<dyn Dataset>> {
    let folder = match limit {
        Some(limit) => {
            let index = spread(&scan.folder, limit)?;
            scan.folder.keep(&index)
        }
        None => scan.folder,
    };
    let prefix = root.strip_prefix(whole).ok().filter(|p| !p.as_os_str().is_empty());
    let mut add = |bad: Vec<BadFile>| {
        report.bad_files.extend(bad.into_iter().map(|b| match prefix {
            Some(p) => BadFile { id: format!("{}/{}", p.display(), b.id), ..b },
            None => b,
        }));
    };
    add(scan.bad);
    if folder.decoded_bytes() > options.keep_bytes {
        return Ok(Arc::new(folder));
    }
    let (kept, bad) = folder.into_memory(options.strict)?;
    add(bad);
    Ok(Arc::new(kept))
}

fn open_named(spec: &DatasetSpec, options: &OpenOptions) -> Result<Opened> {
    let dir = options.cache.join(spec.name);
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
    };
    Ok(Opened { train: Arc::new(train), test: Some(Arc::new(test)), report: known() })
}

fn known() -> ScanReport {
    ScanReport { bad_files: Vec::new(), understood: "labels come with the data set".into() }
}

fn limited(opened: Opened, options: &OpenOptions) -> Result<Opened> {
    let Some(limit) = options.limit else { return Ok(opened) };
    let train = Arc::new(Subset::limited(opened.train, limit)?);
    let test = opened.test.map(|t| Subset::limited(t, test_limit(limit)).map(|s| Arc::new(s) as Arc<dyn Dataset>)).transpose()?;
    Ok(Opened { train, test, report: opened.report })
}

/// Test images under a limit of training images.
fn test_limit(train: usize) -> usize {
    (train / 5).max(1)
}
