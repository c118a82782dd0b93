//! Images of the Hugging Face Hub: which Parquet files of a repository are a data set's splits, and their way into the cache.
//!
//! Two layouts are known. A repository's own files are called `SPLIT-00000-of-00001.parquet`, in `data` or in a folder that is called
//! like the configuration. The Hub's converted branch (`refs/convert/parquet`), which is taken where a repository has none of its own,
//! has `CONFIGURATION/SPLIT/0000.parquet`. Of the splits, training images are taken and test images beside them (validation images
//! where there are none), or the one that is named. A repository's card may map files to splits in other ways; that is not read.
//!
//! What a repository holds at which commit is written into the folder `hub` of the data sets' cache, so that the same files are found
//! offline.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::hub::{Datasets, HubId, Listing, Repository, is_commit};
use super::{Fetched, Network, safe, size_in_words};
use crate::sources::Split;
use crate::{Error, Result};

/// The branch of tables that the Hub makes of what a repository holds.
const CONVERTED: &str = "refs/convert/parquet";
/// What such a branch calls the first part of a split that was too large for it.
const PARTIAL: &str = "partial-";

/// One Parquet file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    path: String,
    size: u64,
    config: String,
    split: String,
}

/// Finds the files of the data set `name` and fetches those that the cache has not.
///
/// # Errors
/// A name of another form, no such repository, configuration or split, no Parquet files, a network that fails.
pub(super) fn fetch(name: &str, cache: &Path, network: Network) -> Result<Fetched> {
    let id = HubId::parse(name)?;
    fetch_from(&Repository::datasets(&id, name, network)?, &id, cache)
}

/// The same of a repository of this id.
pub(super) fn fetch_from(hub: &Repository<Datasets>, id: &HubId, cache: &Path) -> Result<Fetched> {
    let folder = match hub.elsewhere() {
        None => cache.join("hub"),
        Some(other) => cache.join("hub").join(safe(other)),
    };
    let folder = folder.join(format!("datasets--{}--{}", id.owner, id.name));
    let mut told = String::new();
    let mut listing = listing(hub, &folder, id.revision.as_deref(), false)?;
    let mut tables = tables_of(&listing, id.revision.as_deref() == Some(CONVERTED));
    if tables.is_empty() && id.revision.is_none() {
        hub.note(&format!("holds no Parquet files; looking at the branch {CONVERTED}"));
        listing = self::listing(hub, &folder, Some(CONVERTED), true)?;
        tables = tables_of(&listing, true);
        told.push_str(&format!("; as the Hub converted them ({CONVERTED})"));
    }
    if tables.is_empty() {
        let beside = if id.revision.is_none() { ", and the Hub's conversion has none" } else { "; the Hub's conversion is at @" };
        let branch = if id.revision.is_none() { "" } else { CONVERTED };
        return Err(hub.wrong(format!("holds no Parquet files{beside}{branch}")));
    }
    let (tables, left_out) = select(tables, id.config.as_deref(), id.split.as_deref()).map_err(|e| hub.wrong(e))?;
    if !left_out.is_empty() {
        told.push_str(&format!("; left out of the repository's splits: {}", left_out.join(", ")));
    }
    if tables.iter().any(|t| t.path.contains(&format!("/{PARTIAL}"))) {
        told.push_str("; the Hub converted the first part only");
    }
    let commit = Some(listing.commit.as_str());
    let mut missing = Vec::new();
    for table in &tables {
        if hub.cached(&table.path, commit)?.is_none() {
            missing.push(table);
        }
    }
    let bytes = missing.iter().fold(0_u64, |sum, t| sum.saturating_add(t.size));
    if let ([first, ..], true) = (&missing[..], hub.is_offline()) {
        let reason = format!(
            "{} of its files are not in the cache ({}, …; {}), and nothing is fetched offline",
            missing.len(),
            first.path,
            size_in_words(bytes)
        );
        return Err(hub.wrong(reason));
    }
    if !missing.is_empty() {
        hub.note(&format!("fetching {} files of {}, {}", missing.len(), tables.len(), size_in_words(bytes)));
    }
    let mut files = Vec::new();
    for table in &tables {
        let file = hub.get(&table.path, commit, Some(table.size))?;
        files.push(file.ok_or_else(|| hub.wrong(format!("lists the file {}, but does not have it", table.path)))?);
    }
    Ok(Fetched { root: root_of(&files, &tables), files, told })
}

/// The folder of the commit: a file's path without what it is called in the repository.
fn root_of(files: &[PathBuf], tables: &[Table]) -> PathBuf {
    let depth = tables.first().map_or(0, |t| t.path.split('/').count());
    files.first().and_then(|f| f.ancestors().nth(depth)).unwrap_or(Path::new("")).to_path_buf()
}

/// What the repository holds at `revision`: as the hub says now, or as it said when it was last asked. A revision that `may_be_missing`
/// holds nothing then.
fn listing(hub: &Repository<Datasets>, folder: &Path, revision: Option<&str>, may_be_missing: bool) -> Result<Listing> {
    let path = folder.join(format!("{}.json", revision.unwrap_or("main").replace('/', "%2F")));
    let asked = if hub.is_offline() { None } else { hub.files(revision, may_be_missing)? };
    if let Some(listing) = asked {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let text = json!({"commit": listing.commit, "files": listing.files}).to_string();
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(Error::io(&path))?;
        file.persist(&path).map_err(|e| Error::io(&path)(e.error))?;
        return Ok(listing);
    }
    let Ok(text) = std::fs::read(&path) else {
        let why = match hub.is_offline() {
            true => "was never fetched, and nothing is asked offline",
            false => "is not known: the hub can't be reached",
        };
        return Err(hub.wrong(format!("what it holds at {} {why}", revision.unwrap_or("main"))));
    };
    if !hub.is_offline() {
        hub.note("the hub can't be reached; going on with what was fetched before");
    }
    let damaged = || Error::bad(&path, "is damaged; delete it");
    let value: Value = serde_json::from_slice(&text).map_err(|_| damaged())?;
    let file = |v: &Value| Some((v.get(0)?.as_str()?.to_string(), v.get(1)?.as_u64()?));
    // Of a branch that is not there nothing is known.
    let commit = value["commit"].as_str().filter(|c| c.is_empty() || is_commit(c)).ok_or_else(damaged)?.to_string();
    let files = value["files"].as_array().and_then(|f| f.iter().map(file).collect()).ok_or_else(damaged)?;
    Ok(Listing { commit, files })
}

/// The Parquet files among those of a repository, in the order of their names.
fn tables_of(listing: &Listing, converted: bool) -> Vec<Table> {
    let table = |(path, size): &(String, u64)| {
        let (config, split) = if converted { of_converted(path)? } else { of_own(path)? };
        Some(Table { path: path.clone(), size: *size, config, split })
    };
    let mut tables: Vec<Table> = listing.files.iter().filter_map(table).collect();
    tables.sort_by(|a, b| a.path.cmp(&b.path));
    tables
}

/// Configuration and split of a file of the converted branch.
fn of_converted(path: &str) -> Option<(String, String)> {
    let mut parts = path.strip_suffix(".parquet")?.split('/');
    let (config, split, _) = (parts.next()?, parts.next()?, parts.next()?);
    let split = split.strip_prefix(PARTIAL).unwrap_or(split);
    parts.next().is_none().then(|| (config.into(), split.into()))
}

/// Configuration and split of a repository's own file.
fn of_own(path: &str) -> Option<(String, String)> {
    let stem = path.strip_suffix(".parquet")?;
    let (folders, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    let hidden = |part: &&str| part.starts_with('.');
    if stem.split('/').any(|part| hidden(&part)) {
        return None;
    }
    let folders: Vec<&str> = folders.split('/').filter(|f| !f.is_empty() && *f != "data").collect();
    let word = || name.split(|c: char| !c.is_ascii_alphanumeric()).next().filter(|w| Split::named(w).is_some());
    let folder = || folders.iter().rev().find(|f| Split::named(f).is_some()).copied();
    let split = numbered(name).or_else(word).or_else(folder).unwrap_or("train");
    let config: Vec<&str> = folders.iter().filter(|f| **f != split).copied().collect();
    Some((if config.is_empty() { "default".into() } else { config.join("/") }, split.into()))
}

/// What stands before the numbers in `train-00000-of-00002` or `train-00000-of-00002-0123456789abcdef`.
fn numbered(name: &str) -> Option<&str> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (before, after) = name.split_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    (digits(number) && digits(after.split('-').next()?) && !split.is_empty()).then_some(split)
}

/// The files that are wanted, and the names of splits that are not.
fn select(tables: Vec<Table>, config: Option<&str>, split: Option<&str>) -> Result<(Vec<Table>, Vec<String>), String> {
    let names = |of: &dyn Fn(&Table) -> &str, tables: &[Table]| -> Vec<String> {
        let set: std::collections::BTreeSet<&str> = tables.iter().map(of).collect();
        set.into_iter().map(String::from).collect()
    };
    let configs = names(&|t| &t.config, &tables);
    let chosen = match config {
        Some(config) if configs.iter().any(|c| c == config) => config.to_string(),
        Some(config) => return Err(format!("has no configuration `{config}`; expected one of {}", configs.join(", "))),
        None if configs.len() == 1 => configs[0].clone(),
        None if configs.iter().any(|c| c == "default") => "default".to_string(),
        None => return Err(format!("has several configurations; name one of {} behind a colon", configs.join(", "))),
    };
    let tables: Vec<Table> = tables.into_iter().filter(|t| t.config == chosen).collect();
    let splits = names(&|t| &t.split, &tables);
    let is = |kind: Split| splits.iter().filter(move |s| Split::named(s) == Some(kind)).cloned();
    let wanted: Vec<String> = match split {
        Some(split) if splits.iter().any(|s| s == split) => vec![split.into()],
        Some(split) => return Err(format!("has no split `{split}`; expected one of {}", splits.join(", "))),
        None => {
            let judged = || {
                is(Split::Test).next().map_or_else(|| is(Split::Validation).collect(), |_| is(Split::Test).collect::<Vec<_>>())
            };
            let known: Vec<String> = is(Split::Train).chain(judged()).collect();
            // Splits of unknown names are all that there is to train on where none is called so.
            if is(Split::Train).next().is_some() || splits.iter().all(|s| Split::named(s).is_some()) {
                known
            } else {
                splits.clone()
            }
        }
    };
    let left_out = splits.into_iter().filter(|s| !wanted.contains(s)).collect();
    Ok((tables.into_iter().filter(|t| wanted.contains(&t.split)).collect(), left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_and_splits_are_read_off_the_paths() {
        let own = |path: &str| of_own(path).map(|(c, s)| format!("{c} {s}"));
        for (path, want) in [
            ("data/train-00000-of-00001.parquet", "default train"),
            ("data/train_small-00000-of-00001-b8b9d5a1a1e1b9a7.parquet", "default train_small"),
            ("plain_text/test-00000-of-00001.parquet", "plain_text test"),
            ("small/data/validation-00000-of-00001.parquet", "small validation"),
            ("train.parquet", "default train"),
            ("val_1.parquet", "default val"),
            ("test/0001.parquet", "default test"),
            ("small/test/0001.parquet", "small test"),
            ("images.parquet", "default train"),
        ] {
            assert_eq!(own(path).as_deref(), Some(want), "{path}");
        }
        assert_eq!((own("README.md"), own(".cache/train-00000-of-00001.parquet")), (None, None));
        let converted = |path: &str| of_converted(path).map(|(c, s)| format!("{c} {s}"));
        assert_eq!(converted("default/train/0000.parquet").as_deref(), Some("default train"));
        assert_eq!(converted("x/partial-test/0001.parquet").as_deref(), Some("x test"));
        assert_eq!((converted("train/0000.parquet"), converted("a/b/c/0.parquet"), converted("README.md")), (None, None, None));
    }

    #[test]
    fn what_is_needed_is_taken_and_the_rest_named() {
        let tables = |list: &[(&str, &str)]| -> Vec<Table> {
            let table = |(config, split): &(&str, &str)| Table {
                path: format!("{config}/{split}"),
                size: 1,
                config: config.to_string(),
                split: split.to_string(),
            };
            list.iter().map(table).collect()
        };
        let taken = |list: &[(&str, &str)], config: Option<&str>, split: Option<&str>| {
            select(tables(list), config, split)
                .map(|(t, left)| (t.into_iter().map(|t| t.path).collect::<Vec<_>>().join(" "), left.join(" ")))
        };
        let all = [("default", "train"), ("default", "test"), ("default", "validation"), ("default", "extra"), ("b", "train")];
        let pair = |a: &str, b: &str| Ok((a.to_string(), b.to_string()));
        assert_eq!(taken(&all, None, None), pair("default/train default/test", "extra validation"));
        assert_eq!(taken(&all, Some("b"), None), pair("b/train", ""));
        assert_eq!(taken(&all, None, Some("extra")), pair("default/extra", "test train validation"));
        assert_eq!(taken(&[("a", "train"), ("a", "dev")], None, None), pair("a/train a/dev", ""));
        assert_eq!(taken(&[("a", "one"), ("a", "two")], None, None), pair("a/one a/two", ""));
        assert_eq!(taken(&[("a", "test")], None, None), pair("a/test", ""));
        for (list, config, split, words) in [
            (&all[..], Some("c"), None, "no configuration `c`; expected one of b, default"),
            (&all[..], None, Some("dev"), "no split `dev`; expected one of extra, test, train, validation"),
            (&[("a", "train"), ("b", "train")][..], None, None, "several configurations; name one of a, b"),
        ] {
            let told = taken(list, config, split).expect_err(words);
            assert!(told.contains(words), "{told}");
        }
    }
}
