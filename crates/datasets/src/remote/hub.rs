//! Repositories of the Hugging Face Hub: their names, and their files in the cache that Hugging Face's own programs use.
//!
//! A name is `hf:owner/name`, with `@revision` (a branch, a tag, a commit) where another than `main` is meant; of a data set also
//! `:configuration` and `/split`, in this order: `hf:owner/name@v1:small/test`. A revision's own slashes are written `%2F`, but
//! `refs/convert/NAME` and `refs/pr/NUMBER` are known as they are, as in Hugging Face's file systems.
//!
//! The environment is that of Hugging Face's programs: `HF_HOME` (or `HF_HUB_CACHE`) is where files go, `HF_TOKEN` (or the token that
//! was stored there) opens closed repositories, `HF_ENDPOINT` names another hub, and `HF_HUB_OFFLINE` forbids to ask it.

mod id;
mod pulse;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::repository::{RepoTreeEntry, RepoType, RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClient, HFError, HFRepository};

use sha2::{Digest, Sha256};

pub use id::HubId;
pub(super) use id::is_commit;
use id::lies_below;
use pulse::Pulse;

use super::{HUB, Network, Runtime, one_line};
use crate::{Error, Result};

/// Weights, a repository of this kind.
pub type Models = RepoTypeModel;
/// Images, a repository of this kind.
pub type Datasets = RepoTypeDataset;

/// A repository at a hub, or what the cache has of it.
pub struct Repository<T: RepoType> {
    of_hub: HFRepository<T>,
    runtime: Runtime,
    told: String,
    network: Network,
    patience: Duration,
}

/// The files of a repository at a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The commit's hash: 40 hexadecimal digits.
    pub commit: String,
    /// Paths and lengths in bytes.
    pub files: Vec<(String, u64)>,
}

/// Tries of a file whose transfer broke off.
const TRIES: usize = 4;
/// How long the hub may take to take up a connection, and to send anything more.
const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));
/// How long nothing may happen at all. Hugging Face's client asks for a file's head without any time-out.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most files of a repository.
const MOST_FILES: usize = 1_000_000;

impl Listing {
    /// The length of `file` in bytes, if there is one.
    pub fn size(&self, file: &str) -> Option<u64> {
        self.files.iter().find(|(path, _)| path == file).map(|(_, size)| *size)
    }
}

impl Repository<Models> {
    /// The weights of `id`, which was typed as `told`.
    ///
    /// # Errors
    /// An address of a hub that is none; a configuration or split, which weights have not.
    pub fn models(id: &HubId, told: &str, network: Network) -> Result<Self> {
        if id.config.is_some() || id.split.is_some() {
            let reason =
                format!("weights have no configurations and splits; expected {HUB}owner/name, or {HUB}owner/name@revision");
            return Err(Error::Download { url: told.into(), reason });
        }
        Self::of(&Setup::default(), told, network, |client| client.model(&id.owner, &id.name))
    }

    /// The commit that `revision` is now, and every file of it with its length in bytes. `None` where the hub can't be reached or is out of
    /// order, which is told.
    ///
    /// # Errors
    /// No such repository or revision, or a closed one.
    pub fn files(&self, revision: Option<&str>) -> Result<Option<Listing>> {
        let commit = async { self.of_hub.info().maybe_revision(revision).send().await.map(|info| info.sha) };
        self.listed(commit, revision, false)
    }
}

impl Repository<Datasets> {
    /// The images of `id`, which was typed as `told`.
    ///
    /// # Errors
    /// An address of a hub that is none.
    pub fn datasets(id: &HubId, told: &str, network: Network) -> Result<Self> {
        Self::of(&Setup::default(), told, network, |client| client.dataset(&id.owner, &id.name))
    }

    /// What [`Repository::<Models>::files`] gives. A revision that `may_be_missing` has no files then.
    ///
    /// # Errors
    /// No such repository or revision, or a closed one.
    pub(super) fn files(&self, revision: Option<&str>, may_be_missing: bool) -> Result<Option<Listing>> {
        let commit = async { self.of_hub.info().maybe_revision(revision).send().await.map(|info| info.sha) };
        self.listed(commit, revision, may_be_missing)
    }
}

/// What is asked, and how.
struct Setup {
    /// A hub's address; `None`: that of the environment.
    endpoint: Option<String>,
    /// The cache; `None`: that of the environment.
    cache: Option<PathBuf>,
    /// How long nothing may happen.
    patience: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self { endpoint: None, cache: None, patience: PATIENCE }
    }
}

/// Why there is no answer.
enum Failure {
    Hub(HFError),
    /// Nothing happened for so long.
    Silence(Duration),
}

impl Failure {
    /// Whether it may go away by itself.
    fn passes(&self) -> bool {
        match self {
            Self::Silence(_) | Self::Hub(HFError::Request { .. } | HFError::RateLimited { .. }) => true,
            Self::Hub(HFError::Http { context }) => context.status.is_server_error() || context.status.as_u16() == 429,
            Self::Hub(_) => false,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Hub(error) => one_line(error),
            Self::Silence(time) => format!("nothing came of the hub for {} seconds", time.as_secs_f32()),
        }
    }
}

impl<T: RepoType> Repository<T> {
    fn of(setup: &Setup, told: &str, network: Network, of_hub: impl FnOnce(&HFClient) -> HFRepository<T>) -> Result<Self> {
        let runtime = Runtime::new().map_err(|e| failed(told, &e))?;
        Ok(Self {
            of_hub: of_hub(&client(setup, told)?),
            runtime,
            told: told.into(),
            network: switched_off(network),
            patience: setup.patience,
        })
    }

    /// Whether nothing is asked of the hub.
    pub fn is_offline(&self) -> bool {
        self.network.offline
    }

    /// The address of the hub, where it is another than Hugging Face's own.
    pub(super) fn elsewhere(&self) -> Option<&str> {
        Some(self.of_hub.client().endpoint().trim_end_matches('/')).filter(|&hub| hub != "https://huggingface.co")
    }

    /// Tells how it goes.
    pub fn note(&self, text: &str) {
        (self.network.note)(&format!("{}: {text}", self.told));
    }

    /// The path of `file` in the cache, fetched where it is not there at `revision`; `None` where the repository, or offline the cache, has
    /// none. One that breaks off, has not the `size` in bytes that the hub told, or was fetched now and is not what its SHA-256 (which the
    /// hub tells of large files) says, is begun anew, a few times.
    ///
    /// # Errors
    /// A closed repository, a hub that can't be reached, a full disk, a name that does not lie below the repository, another size or
    /// content.
    pub fn get(&self, file: &str, revision: Option<&str>, size: Option<u64>) -> Result<Option<PathBuf>> {
        let fresh = !self.network.offline && self.cached(file, revision)?.is_none();
        let Some(path) = self.asked(file, revision, self.network.offline, false)? else { return Ok(None) };
        let Some(fault) = fault(&path, size, fresh)? else { return Ok(Some(path)) };
        if self.network.offline {
            let place = path.display();
            return Err(self.wrong(format!("{place} {fault}; it is fetched anew where that is not forbidden")));
        }
        // Hugging Face's client takes whatever comes for the file's content, an error's page too.
        self.note(&format!("{file} {fault}; fetching it anew"));
        drop_copy(&path)?;
        let Some(path) = self.asked(file, revision, false, true)? else { return Ok(None) };
        let Some(fault) = self::fault(&path, size, true)? else { return Ok(Some(path)) };
        let target = drop_copy(&path)?;
        let (path, target) = (path.display(), target.display());
        Err(self.wrong(format!(
            "what the hub sent as {file} {fault}; try again later ({path} and {target}, which it led to, were removed again)"
        )))
    }

    /// The path of `file` in the cache, if it is there.
    ///
    /// # Errors
    /// A cache that can't be read, a name that does not lie below the repository.
    pub fn cached(&self, file: &str, revision: Option<&str>) -> Result<Option<PathBuf>> {
        self.asked(file, revision, true, false)
    }

    /// Writes down for later, offline, that `revision` was at `commit`, whose `file` lies at `path`.
    ///
    /// # Errors
    /// A cache that can't be written into.
    pub fn remember(&self, revision: Option<&str>, commit: &str, file: &str, path: &Path) -> Result<()> {
        let revision = revision.unwrap_or("main");
        let Some(folder) = path.ancestors().nth(file.split('/').count() + 2).filter(|_| !is_commit(revision)) else {
            return Ok(());
        };
        let target = folder.join("refs").join(revision);
        let parent = target.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let mut written = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
        std::io::Write::write_all(&mut written, commit.as_bytes()).map_err(Error::io(&target))?;
        written.persist(&target).map_err(|e| Error::io(&target)(e.error))?;
        Ok(())
    }

    /// The files at the commit that the hub tells.
    fn listed(
        &self,
        commit: impl Future<Output = Result<Option<String>, HFError>> + Send,
        revision: Option<&str>,
        may_be_missing: bool,
    ) -> Result<Option<Listing>> {
        let pulse = Pulse::default();
        let asked = async {
            let commit = commit.await?.unwrap_or_default();
            let mut files = Vec::new();
            if is_commit(&commit) {
                let mut entries = pin!(self.of_hub.list_tree().revision(commit.as_str()).recursive(true).send()?);
                while let Some(entry) = entries.next().await {
                    pulse.beat(files.len() as u64 + 1);
                    if let RepoTreeEntry::File { path, size, .. } = entry? {
                        files.push((path, size));
                    }
                    if files.len() > MOST_FILES {
                        break;
                    }
                }
            }
            Ok::<_, HFError>(Listing { commit, files })
        };
        let listing = match self.patiently(&pulse, asked) {
            Ok(listing) => listing,
            Err(Failure::Hub(HFError::RevisionNotFound { .. })) if may_be_missing => return Ok(Some(Listing::default())),
            Err(failure) if failure.passes() => {
                self.note(&failure.words());
                return Ok(None);
            }
            Err(failure) => return Err(self.failed(&failure)),
        };
        if !is_commit(&listing.commit) {
            let (name, commit) = (revision.unwrap_or("main"), &listing.commit);
            return Err(
                self.wrong(format!("the hub says that {name} is the commit `{commit:.60}`; expected 40 hexadecimal digits"))
            );
        }
        if listing.files.len() > MOST_FILES {
            return Err(self.wrong(format!("holds more than {MOST_FILES} files")));
        }
        Ok(Some(listing))
    }

    fn asked(&self, file: &str, revision: Option<&str>, offline: bool, anew: bool) -> Result<Option<PathBuf>> {
        if !lies_below(file) {
            return Err(self.wrong(format!("names the file `{file:.200}`, which does not lie below the repository")));
        }
        let mut tries = 0;
        loop {
            let pulse = Pulse::default();
            let asked = self.of_hub.download_file().filename(file).maybe_revision(revision).local_files_only(offline);
            let asked = asked.force_download(anew).progress(pulse.clone()).send();
            match self.patiently(&pulse, asked) {
                Ok(path) => return Ok(Some(path)),
                Err(Failure::Hub(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. })) => return Ok(None),
                // The client has tried often to connect; a transfer that broke off it leaves.
                Err(Failure::Hub(HFError::Request { source, .. })) if tries + 1 < TRIES && !source.is_connect() => {
                    tries += 1;
                    self.note(&format!("{file} broke off ({}); once more", one_line(&source)));
                }
                Err(failure) => return Err(self.wrong(format!("{file}: {}", self.told_of(&failure)))),
            }
        }
    }

    /// Waits for `work` as long as the pulse beats.
    fn patiently<V: Send>(&self, pulse: &Pulse, work: impl Future<Output = Result<V, HFError>> + Send) -> Result<V, Failure> {
        self.runtime.block_on(|| async {
            let mut work = pin!(work);
            loop {
                let left = self.patience.saturating_sub(pulse.silence());
                if left.is_zero() {
                    return Err(Failure::Silence(self.patience));
                }
                if let Ok(done) = tokio::time::timeout(left, work.as_mut()).await {
                    return done.map_err(Failure::Hub);
                }
            }
        })
    }

    /// What happened, with what may help.
    fn told_of(&self, failure: &Failure) -> String {
        let advice = match failure {
            Failure::Hub(HFError::AuthRequired { .. } | HFError::Forbidden { .. } | HFError::RepoNotFound { .. }) => {
                "; there is none of this name, or it is closed (HF_TOKEN opens it where you may)"
            }
            failure if failure.passes() => "; --offline takes what was fetched before",
            _ => "",
        };
        format!("{}{advice}", failure.words())
    }

    fn failed(&self, failure: &Failure) -> Error {
        self.wrong(self.told_of(failure))
    }

    /// An error about this repository.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Download { url: self.told.clone(), reason: reason.into() }
    }
}

/// What tells that a file of the cache is not the hub's: another length than `size`, or, where its content is looked at, another SHA-256
/// than the one that its copy is called by in the cache, as large files' are.
fn fault(path: &Path, size: Option<u64>, content: bool) -> Result<Option<String>> {
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if let Some(size) = size.filter(|&size| size != length) {
        return Ok(Some(format!("has {length} bytes where the hub told {size}")));
    }
    let copy = path.canonicalize().map_err(Error::io(path))?;
    let name = copy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !content || name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path).map_err(Error::io(path))?, &mut hash).map_err(Error::io(path))?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((!found.eq_ignore_ascii_case(name)).then(|| format!("has the SHA-256 {found} where the hub told {name}")))
}

/// Removes a file of the cache and what it is a link to, whose path is returned.
fn drop_copy(path: &Path) -> Result<PathBuf> {
    let target = path.canonicalize().map_err(Error::io(path))?;
    std::fs::remove_file(&target).map_err(Error::io(&target))?;
    // A copy where the system has no links.
    if std::fs::symlink_metadata(path).is_ok() {
        std::fs::remove_file(path).map_err(Error::io(path))?;
    }
    Ok(target)
}

fn failed(told: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Download { url: told.into(), reason: one_line(error) }
}

fn client(setup: &Setup, told: &str) -> Result<HFClient> {
    let http = reqwest::Client::builder()
        .user_agent(concat!("twinsight/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(TIMEOUTS.0)
        .read_timeout(TIMEOUTS.1)
        .build()
        .map_err(|e| failed(told, &e))?;
    let mut builder = HFClient::builder().client(http);
    if let Some(endpoint) = &setup.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(cache) = &setup.cache {
        builder = builder.cache_dir(cache);
    }
    builder.build().map_err(|e| failed(told, &e))
}

/// The network, off where the environment says so.
fn switched_off(network: Network) -> Network {
    let says = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
    Network { offline: network.offline || std::env::var("HF_HUB_OFFLINE").is_ok_and(says), ..network }
}

#[cfg(test)]
mod tests;
