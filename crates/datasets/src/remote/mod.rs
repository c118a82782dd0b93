//! Images that lie elsewhere: in repositories of the Hugging Face Hub (`hf:owner/name`, feature `hub`), and in object stores and on web
//! servers (`s3://…`, `gs://…`, `az://…`, `https://…`, feature `object-store`).
//!
//! What is needed of them is copied to disk first, as a stream, and read from there by the readers of local files: training visits
//! every image in another order each epoch, which a network would be asked for again and again. So the images must fit on the disk, and
//! memory does not grow with them. Copies are kept: a second look asks only whether they are still current, and none is needed offline.

#[cfg(feature = "object-store")]
mod braces;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "object-store")]
mod objects;
#[cfg(feature = "object-store")]
mod place;
#[cfg(feature = "hub")]
mod tables;

use std::sync::OnceLock;

use crate::open::{OpenOptions, Opened};
use crate::{Error, Result};

/// What the name of a repository of the Hugging Face Hub begins with.
pub const HUB: &str = "hf:";

/// Schemes of addresses of objects.
pub const SCHEMES: [&str; 10] = ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "https", "http"];

/// How the network is used.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Whether nothing may be asked of it: what was fetched before is used as it is.
    pub offline: bool,
    /// Is told what is fetched, and what has to be tried again, a line each.
    pub note: fn(&str),
}

static OF_PROCESS: OnceLock<Network> = OnceLock::new();

impl Network {
    /// What [`Network::set_for_process`] decided; else a network that may be used, of which nothing is told.
    pub fn of_process() -> Self {
        OF_PROCESS.get().copied().unwrap_or(Self { offline: false, note: |_| {} })
    }

    /// Decides once how this process uses the network where nothing else is said; a second time nothing happens, and `false` is returned.
    pub fn set_for_process(self) -> bool {
        OF_PROCESS.set(self).is_ok()
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::of_process()
    }
}

/// The id in the name of a repository of the Hub, if `name` is one.
pub fn hub_id(name: &str) -> Option<&str> {
    name.strip_prefix(HUB)
}

/// Whether `name` is no path: a repository of the Hub, or an address.
pub fn is_remote(name: &str) -> bool {
    hub_id(name).is_some() || scheme(name).is_some()
}

/// A short name for what `name` says, fit for a folder; `None` where `name` is a path or a data set's name.
pub fn short_name(name: &str) -> Option<String> {
    let rest = match hub_id(name) {
        Some(id) => id.split('/').nth(1).unwrap_or(id).split(['@', ':']).next(),
        None => scheme(name).and_then(|_| name.trim_end_matches('/').rsplit('/').next()),
    }?;
    let plain = rest.split(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).next().unwrap_or_default();
    let stem = [".tar.gz", ".tgz", ".tar", ".parquet"].iter().find_map(|e| plain.strip_suffix(e)).unwrap_or(plain);
    let stem = stem.trim_matches(['-', '_', '.']);
    Some(if stem.is_empty() { "data".into() } else { stem.into() })
}

/// What stands before `://`, if that can be a scheme.
fn scheme(name: &str) -> Option<&str> {
    let (scheme, _) = name.split_once("://")?;
    let plain = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    plain.then_some(scheme)
}

/// Opens what lies elsewhere; `None` where `name` is a path or a data set's name.
pub(crate) fn open(name: &str, options: &OpenOptions) -> Option<Result<Opened>> {
    if hub_id(name).is_some() {
        return Some(open_hub(name, options));
    }
    let scheme = scheme(name)?;
    if !SCHEMES.contains(&scheme) {
        let known = SCHEMES.join("://, ");
        let reason = format!("there are no images of scheme `{scheme}`; expected {known}://, or {HUB}owner/name");
        return Some(Err(Error::Download { url: name.into(), reason }));
    }
    Some(open_objects(name, options))
}

/// That a build has not what `name` needs.
pub fn left_out(name: &str, feature: &str, instead: &str) -> String {
    format!(
        "{name}: this build has not the feature `{feature}` (cargo install --path crates/app --features {feature} has it); without it, \
         {instead}"
    )
}

#[cfg(feature = "hub")]
fn open_hub(name: &str, options: &OpenOptions) -> Result<Opened> {
    let fetched = tables::fetch(name, &options.cache, options.network)?;
    crate::open::open_files(&fetched.root, &fetched.files, &fetched.told, options)
}

#[cfg(not(feature = "hub"))]
fn open_hub(name: &str, _: &OpenOptions) -> Result<Opened> {
    Err(Error::NotFound(left_out(name, "hub", "fetch the repository's Parquet files yourself and name their folder")))
}

#[cfg(feature = "object-store")]
fn open_objects(name: &str, options: &OpenOptions) -> Result<Opened> {
    let fetched = objects::fetch(name, &options.cache, options.network)?;
    crate::open::open_files(&fetched.root, &fetched.files, &fetched.told, options)
}

#[cfg(not(feature = "object-store"))]
fn open_objects(name: &str, _: &OpenOptions) -> Result<Opened> {
    Err(Error::NotFound(left_out(name, "object-store", "fetch the files yourself and name their folder")))
}

/// Files that were fetched.
#[cfg(any(feature = "hub", feature = "object-store"))]
struct Fetched {
    /// The folder that they lie below.
    root: std::path::PathBuf,
    /// The files, in order.
    files: Vec<std::path::PathBuf>,
    /// What is said of them beside how labels were understood; begins with a separator where it is not empty.
    told: String,
}

/// Where requests are waited for: on a thread of its own, since the caller may be within another runtime already.
#[cfg(any(feature = "hub", feature = "object-store"))]
struct Runtime(Option<tokio::runtime::Runtime>);

#[cfg(any(feature = "hub", feature = "object-store"))]
impl Runtime {
    fn new() -> std::io::Result<Self> {
        Ok(Self(Some(tokio::runtime::Builder::new_current_thread().enable_all().build()?)))
    }

    fn block_on<F: Future<Output: Send>>(&self, work: impl FnOnce() -> F + Send) -> F::Output {
        let runtime = self.0.as_ref().expect("it is taken only when it is dropped");
        std::thread::scope(|scope| {
            scope.spawn(|| runtime.block_on(work())).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[cfg(any(feature = "hub", feature = "object-store"))]
impl Drop for Runtime {
    fn drop(&mut self) {
        // Within another runtime it must not be waited for.
        self.0.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

/// An error's words on one line of bearable length.
#[cfg(any(feature = "hub", feature = "object-store"))]
fn one_line(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("{:.400}", words.join(" "))
}

/// A name that every file system takes for a file: other bytes than letters, digits and `._-=@` as `%` and their number, and so the dots of
/// a name of dots alone.
#[cfg(any(feature = "hub", feature = "object-store"))]
fn safe(name: &str) -> String {
    let dots = name.bytes().all(|b| b == b'.');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-=@".contains(&b) || b == b'.' && !dots;
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Bytes in words.
#[cfg(any(feature = "hub", feature = "object-store"))]
fn size_in_words(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_told_from_what_lies_elsewhere() {
        for name in ["hf:a/b", "hf:", "s3://b/x.tar", "https://h/x.tar", "ftp://h/x.tar"] {
            assert!(is_remote(name), "{name}");
        }
        for name in ["cifar10", "./hf:a/b", "a/b", "C:\\x", "C:/x", "://x", "a b://x", "/x/s3://y"] {
            assert!(!is_remote(name), "{name}");
            assert!(open(name, &OpenOptions::default()).is_none(), "{name}");
        }
    }

    #[test]
    fn short_names_are_fit_for_folders() {
        let of = |name: &str| short_name(name).unwrap_or_default();
        assert_eq!((of("hf:a/b@v1:small/test"), of("hf:a/b.c"), of("hf:")), ("b".into(), "b.c".into(), "data".into()));
        assert_eq!(
            (of("s3://b/d/train-{0..9}.tar"), of("s3://b/d/"), of("https://h/x.tar.gz")),
            ("train".into(), "d".into(), "x".into())
        );
        assert_eq!((of("gs://b/{a,b}/"), short_name("runs/a")), ("data".into(), None));
    }

    #[test]
    fn unknown_schemes_and_features_that_are_left_out_are_told() {
        let told = |name: &str| open(name, &OpenOptions::default()).and_then(Result::err).map(|e| e.to_string());
        for name in ["ftp://h/x.tar", "file:///x.tar"] {
            let told = told(name).unwrap_or_default();
            assert!(told.contains(name) && told.contains("expected s3://") && told.contains("hf:owner/name"), "{told}");
        }
        if cfg!(not(feature = "hub")) {
            let told = told("hf:a/b").unwrap_or_default();
            assert!(told.contains("--features hub") && told.contains("Parquet"), "{told}");
        }
        if cfg!(not(feature = "object-store")) {
            let told = told("s3://b/x.tar").unwrap_or_default();
            assert!(told.contains("--features object-store"), "{told}");
        }
    }
}
