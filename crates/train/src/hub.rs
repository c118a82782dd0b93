//! Weights of the Hugging Face Hub: `hf:owner/name` or `hf:owner/name@revision` wherever a file of weights is named.
//!
//! What is fetched is `model.safetensors`, or the files of an index, or `pytorch_model.bin`, the first of these that there is, and
//! `config.json` and `preprocessor_config.json` beside it, which say what it holds, all of them of the commit that the revision is at. They
//! lie in the cache of Hugging Face's own programs, so that what these fetched is taken too; `twinsight_datasets::remote::hub` says what
//! decides.

use std::path::{Path, PathBuf};

use twinsight_datasets::remote::{hub_id, is_remote};

use crate::{Error, Result};

/// The file of weights in the cache that `path` names in the Hub, fetched where that is needed; `None` where `path` is one of this machine.
///
/// # Errors
/// An address of another kind, a repository without weights or a closed one, a network that fails; offline, weights that were never
/// fetched; a build without the feature `hub`.
pub fn weights(path: &Path) -> Result<Option<PathBuf>> {
    let Some(name) = path.to_str().filter(|name| is_remote(name)) else { return Ok(None) };
    if hub_id(name).is_none() {
        return Err(Error::run(path, "weights are read from this machine or from the Hugging Face Hub (hf:owner/name)"));
    }
    fetch(name).map(Some)
}

/// The name of the Hub at the commit that `file`, which [`weights`] found for it, is of, so that a run's configuration goes on to mean the
/// same weights; `None` of what is no name of the Hub.
pub fn pinned(name: &str, file: &Path) -> Option<String> {
    hub_id(name)?;
    // The repository's folder is the innermost that has `snapshots`; weights lie in none of their own.
    let parts: Vec<&std::ffi::OsStr> = file.iter().collect();
    let at = parts.iter().rposition(|part| *part == "snapshots")?;
    let commit = parts.get(at + 1)?.to_str().filter(|c| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let repository = name.split_once('@').map_or(name, |(repository, _)| repository);
    Some(format!("{repository}@{commit}"))
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &str) -> Result<PathBuf> {
    let instead = "fetch the repository's model.safetensors and config.json yourself and name their folder";
    Err(Error::Config(twinsight_datasets::remote::left_out(name, "hub", instead)))
}

#[cfg(feature = "hub")]
fn fetch(name: &str) -> Result<PathBuf> {
    use twinsight_datasets::remote::Network;
    use twinsight_datasets::remote::hub::{HubId, Repository};

    /// What tells of the weights beside them.
    const BESIDE: [&str; 2] = ["config.json", "preprocessor_config.json"];
    const INDEX: &str = "model.safetensors.index.json";

    let id = HubId::parse(name)?;
    let hub = Repository::models(&id, name, Network::of_process())?;
    let revision = id.revision.as_deref();
    let listing = if hub.is_offline() {
        None
    } else {
        hub.note("looking for weights");
        hub.files(revision)?
    };
    // Every file is asked for at one commit: the hub's, or the one that was written down.
    let get = |file: &str| match &listing {
        Some(listing) => match listing.size(file) {
            Some(size) => hub.get(file, Some(&listing.commit), Some(size)),
            None => Ok(None),
        },
        None => hub.cached(file, revision),
    };
    for file in BESIDE {
        get(file)?;
    }
    for file in ["model.safetensors", INDEX, "pytorch_model.bin"] {
        let Some(path) = get(file)? else { continue };
        if file == INDEX {
            for shard in shards(&path).map_err(|reason| hub.wrong(reason))? {
                get(&shard)?.ok_or_else(|| hub.wrong(format!("its index names the file `{shard}`, which is not there")))?;
            }
        }
        if let Some(listing) = &listing {
            hub.note(&format!("{file} at commit {}", listing.commit));
            hub.remember(revision, &listing.commit, file, &path)?;
        }
        return Ok(path);
    }
    Err(hub
        .wrong(match &listing {
            Some(listing) => {
                format!("holds none of model.safetensors, {INDEX} and pytorch_model.bin (commit {})", listing.commit)
            }
            None if hub.is_offline() => "the cache has none of its weights, and nothing is fetched offline".to_string(),
            None => "the cache has none of its weights, and the hub can't be reached; try again later".to_string(),
        })
        .into())
}

/// The files that an index of weights names, each once. They lie beside it: no other name is asked for.
#[cfg(feature = "hub")]
fn shards(index: &Path) -> Result<Vec<String>, String> {
    use std::path::Component;

    /// The longest index that is read.
    const LONGEST: u64 = 64 << 20;
    let damaged = |e: &dyn std::fmt::Display| format!("its index of weights can't be read: {e}");
    let length = std::fs::metadata(index).map_err(|e| damaged(&e))?.len();
    if length > LONGEST {
        return Err(damaged(&format!("it has {length} bytes")));
    }
    let text = std::fs::read(index).map_err(|e| damaged(&e))?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| damaged(&e))?;
    let map = value["weight_map"].as_object().ok_or_else(|| damaged(&"it has no `weight_map`"))?;
    let names: std::collections::BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    let inside = |name: &str| {
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if plain && !name.contains(['/', '\\']) && !name.starts_with('.') {
            Ok(name.to_string())
        } else {
            Err(format!("its index names the file `{name}`; the files of an index must lie beside it"))
        }
    };
    names.into_iter().map(inside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_of_the_hub_is_left_alone_or_refused() -> anyhow::Result<()> {
        assert_eq!(weights(Path::new("runs/a"))?, None);
        let told = |name: &str| weights(Path::new(name)).expect_err(name).to_string();
        assert!(told("s3://b/model.safetensors").contains("hf:owner/name"));
        if cfg!(feature = "hub") {
            assert!(told("hf:someone").contains("expected hf:owner/name"));
            assert!(told("hf:a/b:small").contains("no configurations"));
        } else {
            assert!(told("hf:a/b").contains("--features hub"));
        }
        Ok(())
    }

    #[test]
    fn a_name_is_pinned_to_its_commit() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let file = Path::new("/data/snapshots/hub/models--a--b/snapshots").join(commit).join("model.safetensors");
        for name in ["hf:a/b", "hf:a/b@main", "hf:a/b@refs/pr/1", &format!("hf:a/b@{commit}")] {
            assert_eq!(pinned(name, &file), Some(format!("hf:a/b@{commit}")), "{name}");
        }
        assert_eq!(pinned("runs/a", &file), None);
        assert_eq!(pinned("hf:a/b", Path::new("/cache/snapshots/main/model.safetensors")), None);
    }

    #[cfg(feature = "hub")]
    #[test]
    fn an_index_names_what_lies_beside_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("index.json");
        let of = |text: &str| -> anyhow::Result<Result<Vec<String>, String>> {
            std::fs::write(&path, text)?;
            Ok(shards(&path))
        };
        let names = of(r#"{"weight_map":{"a":"2.safetensors","b":"1.safetensors","c":"2.safetensors"}}"#)?;
        assert_eq!(names, Ok(vec!["1.safetensors".to_string(), "2.safetensors".into()]));
        for name in ["../x", "/x", "a/x", ".", "..", ".hidden", r"..\\x", ""] {
            let told = of(&format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#))?.expect_err(name);
            assert!(told.contains("must lie beside it"), "{name}: {told}");
        }
        for text in ["{", "[]", r#"{"weight_map":3}"#] {
            assert!(of(text)?.expect_err(text).contains("can't be read"), "{text}");
        }
        Ok(())
    }
}
