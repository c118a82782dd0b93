//! Names of repositories and of what lies in them.

use super::super::HUB;
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
            if word.is_empty() || revision.contains("..") || !lies_below(&revision) {
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

/// Whether a revision is a commit's hash. Hugging Face's client makes paths of it.
pub(in crate::remote) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a path in a repository stays below it on every system. Hugging Face's client makes paths of it.
pub(super) fn lies_below(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains(['\\', ':', '\0'])
}
