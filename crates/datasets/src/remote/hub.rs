//! Repositories of the Hugging Face Hub: their names, and their files in the cache that Hugging Face's own programs use.
//!
//! A name is `hf:owner/name`, with `@revision` (a branch, a tag, a commit) where another than `main` is meant; of a data set also
//! `:configuration` and `/split`, in this order: `hf:owner/name@v1:small/test`. A revision's own slashes are written `%2F`, but
//! `refs/convert/NAME` and `refs/pr/NUMBER` are known as they are, as in Hugging Face's file systems.
//!
//! The environment is that of Hugging Face's programs: `HF_HOME` (or `HF_HUB_CACHE`) is where files go, `HF_TOKEN` (or the token that
//! was stored there) opens closed repositories, `HF_ENDPOINT` names another hub, and `HF_HUB_OFFLINE` forbids to ask it.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::repository::{RepoType, RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync};

use super::{HUB, Network, one_line};
use crate::{Error, Result};

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// The user or organisation.
    pub owner: String,
    /// The repository.
    pub name: String,
    /// A branch, a tag or a commit; `None`: `main`.
    pub revision: Option<String>,
    /// The configuration of a data set.
    pub config: Option<String>,
    /// The split of a data set.
    pub split: Option<String>,
}

/// Weights, a repository of this kind.
pub type Models = RepoTypeModel;
/// Images, a repository of this kind.
pub type Datasets = RepoTypeDataset;

/// A repository at a hub, or what the cache has of it.
pub struct Repository<T: RepoType> {
    of_hub: HFRepositorySync<T>,
    told: String,
    network: Network,
}

/// Tries of a file whose transfer broke off.
const TRIES: usize = 4;
/// How long the hub may take to take up a connection, and to send anything more.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));

impl HubId {
    /// Reads a name.
    ///
    /// # Errors
    /// Another form than `hf:owner/name[@revision][:configuration][/split]`.
    pub fn parse(name: &str) -> Result<Self> {
        let wrong = || Error::Download {
            url: name.into(),
            reason: format!(
                "expected {HUB}owner/name, with @revision, :configuration and /split behind it where they are meant ({HUB}owner/name@v1:small/test)"
            ),
        };
        let text = name.strip_prefix(HUB).ok_or_else(wrong)?;
        let (owner, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (repository, mut rest) = until(rest, &['@', ':', '/']);
        let plain = |word: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && word.chars().all(known) && word.chars().any(|c| c != '.')
        };
        if !plain(owner) || !plain(repository) {
            return Err(wrong());
        }
        let mut id = Self { owner: owner.into(), name: repository.into(), revision: None, config: None, split: None };
        if let Some(behind) = rest.strip_prefix('@') {
            let known = ["refs/convert/", "refs/pr/"].into_iter().find(|k| behind.starts_with(k)).unwrap_or_default();
            let (word, after) = until(&behind[known.len()..], &[':', '/']);
            let revision = format!("{known}{word}").replace("%2F", "/").replace("%2f", "/");
            if word.is_empty() || revision.contains("..") || revision.starts_with('/') {
                return Err(wrong());
            }
            (id.revision, rest) = (Some(revision), after);
        }
        if let Some(behind) = rest.strip_prefix(':') {
            let (word, after) = until(behind, &['/']);
            (id.config, rest) = (Some(word.to_string()).filter(|w| !w.is_empty()), after);
            if id.config.is_none() {
                return Err(wrong());
            }
        }
        if let Some(word) = rest.strip_prefix('/') {
            (id.split, rest) = (Some(word.to_string()).filter(|w| !w.is_empty() && !w.contains('/')), "");
            if id.split.is_none() {
                return Err(wrong());
            }
        }
        if rest.is_empty() { Ok(id) } else { Err(wrong()) }
    }
}

/// `text` up to the first of `ends`, and from there on.
fn until<'a>(text: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
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
        Ok(Self { of_hub: client(told)?.model(&id.owner, &id.name), told: told.into(), network: switched_off(network) })
    }
}

impl Repository<Datasets> {
    /// The images of `id`, which was typed as `told`.
    ///
    /// # Errors
    /// An address of a hub that is none.
    pub fn datasets(id: &HubId, told: &str, network: Network) -> Result<Self> {
        Ok(Self { of_hub: client(told)?.dataset(&id.owner, &id.name), told: told.into(), network: switched_off(network) })
    }

    /// The commit that `revision` is now, and every file of it with its length in bytes. `None` where the hub can't be reached. A
    /// revision that `may_be_missing` has no files then.
    ///
    /// # Errors
    /// No such repository or revision, or a closed one.
    pub(super) fn files(&self, revision: Option<&str>, may_be_missing: bool) -> Result<Option<Listing>> {
        let asked = || -> Result<Listing, HFError> {
            let commit = self.of_hub.info().maybe_revision(revision).send()?.sha.unwrap_or_default();
            let entries = self.of_hub.list_tree().revision(commit.as_str()).recursive(true).send()?;
            let file = |entry| match entry {
                hf_hub::repository::RepoTreeEntry::File { path, size, .. } => Some((path, size)),
                hf_hub::repository::RepoTreeEntry::Directory { .. } => None,
            };
            Ok(Listing { commit, files: entries.into_iter().filter_map(file).collect() })
        };
        match asked() {
            Ok(listing) => Ok(Some(listing)),
            Err(HFError::Request { .. }) => Ok(None),
            Err(HFError::RevisionNotFound { .. }) if may_be_missing => Ok(Some(Listing::default())),
            Err(e) => Err(self.failed(&e)),
        }
    }
}

impl<T: RepoType> Repository<T> {
    /// Whether nothing is asked of the hub.
    pub fn is_offline(&self) -> bool {
        self.network.offline
    }

    /// Tells how it goes.
    pub fn note(&self, text: &str) {
        (self.network.note)(&format!("{}: {text}", self.told));
    }

    /// The path of `file` in the cache, fetched where it is not there in the hub's own version; `None` where the repository, or offline the
    /// cache, has none. One that breaks off is begun anew, a few times.
    ///
    /// # Errors
    /// A closed repository, a hub that can't be reached, a full disk.
    pub fn get(&self, file: &str, revision: Option<&str>) -> Result<Option<PathBuf>> {
        self.asked(file, revision, self.network.offline)
    }

    /// The path of `file` in the cache, if it is there.
    ///
    /// # Errors
    /// A cache that can't be read.
    pub(super) fn cached(&self, file: &str, revision: Option<&str>) -> Result<Option<PathBuf>> {
        self.asked(file, revision, true)
    }

    fn asked(&self, file: &str, revision: Option<&str>, offline: bool) -> Result<Option<PathBuf>> {
        let mut tries = 0;
        loop {
            let asked = self.of_hub.download_file().filename(file).maybe_revision(revision).local_files_only(offline);
            match asked.send() {
                Ok(path) => return Ok(Some(path)),
                Err(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }) => return Ok(None),
                // The client has tried often to connect; a transfer that broke off it leaves.
                Err(HFError::Request { source, .. }) if tries + 1 < TRIES && !source.is_connect() => {
                    tries += 1;
                    self.note(&format!("{file} broke off ({}); once more", one_line(&source)));
                }
                Err(e) => return Err(self.failed(&e)),
            }
        }
    }

    /// What the hub's client said, as an error about this repository.
    fn failed(&self, error: &HFError) -> Error {
        let advice = match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } | HFError::RepoNotFound { .. } => {
                "; there is none of this name, or it is closed (HF_TOKEN opens it where you may)"
            }
            HFError::Request { .. } => "; --offline takes what was fetched before",
            _ => "",
        };
        Error::Download { url: self.told.clone(), reason: format!("{}{advice}", one_line(error)) }
    }

    /// An error about this repository.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Download { url: self.told.clone(), reason: reason.into() }
    }
}

/// The files of a repository at a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// The commit's hash.
    pub(super) commit: String,
    /// Paths and lengths in bytes.
    pub(super) files: Vec<(String, u64)>,
}

fn client(told: &str) -> Result<HFClientSync> {
    let failed = |e: &dyn std::fmt::Display| Error::Download { url: told.into(), reason: one_line(e) };
    let http = reqwest::Client::builder()
        .user_agent(concat!("twinsight/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(PATIENCE.0)
        .read_timeout(PATIENCE.1)
        .build()
        .map_err(|e| failed(&e))?;
    HFClient::builder().client(http).build_sync().map_err(|e| failed(&e))
}

/// The network, off where the environment says so.
fn switched_off(network: Network) -> Network {
    let says = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
    Network { offline: network.offline || std::env::var("HF_HUB_OFFLINE").is_ok_and(says), ..network }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() -> anyhow::Result<()> {
        let id = |text: &str| -> anyhow::Result<[Option<String>; 5]> {
            let HubId { owner, name, revision, config, split } = HubId::parse(text)?;
            Ok([Some(owner), Some(name), revision, config, split])
        };
        let parts = |words: [&str; 5]| words.map(|w| Some(w.to_string()).filter(|w| !w.is_empty()));
        for (text, words) in [
            ("hf:a/b", ["a", "b", "", "", ""]),
            ("hf:a/b.c-d_e@v1.0", ["a", "b.c-d_e", "v1.0", "", ""]),
            ("hf:a/b:small", ["a", "b", "", "small", ""]),
            ("hf:a/b/test", ["a", "b", "", "", "test"]),
            ("hf:a/b@v1:small/test", ["a", "b", "v1", "small", "test"]),
            ("hf:a/b@refs/convert/parquet:small/test", ["a", "b", "refs/convert/parquet", "small", "test"]),
            ("hf:a/b@refs/pr/3/test", ["a", "b", "refs/pr/3", "", "test"]),
            ("hf:a/b@feature%2Fx:y", ["a", "b", "feature/x", "y", ""]),
        ] {
            assert_eq!(id(text)?, parts(words), "{text}");
        }
        for text in [
            "hf:",
            "hf:a",
            "hf:/b",
            "hf:a/",
            "hf:a b/c",
            "hf:../c",
            "hf:a/..",
            "hf:a/b@",
            "hf:a/b@..%2Fx",
            "hf:a/b:",
            "hf:a/b/",
            "hf:a/b/c/d",
            "hf://datasets/a/b",
            "a/b",
        ] {
            let told = HubId::parse(text).expect_err(text).to_string();
            assert!(told.contains("expected hf:owner/name") && told.contains(text), "{told}");
        }
        Ok(())
    }
}
