//! Tar archives: WebDataset shards, and plain archives of folders.
//!
//! Members whose names agree up to the first dot are one sample: an image (`.jpg`, `.png`, …), and perhaps its label (`.cls`, or `label` in
//! `.json`, whose `class` is a name that goes before both). A sample gives one image: the first whose ending has no inner dot (`x.jpg`
//! before `x.seg.png`); the others are counted. Where all have inner dots and nothing else belongs to the sample, these are names
//! (`2024.05.01.jpg`) and every one is an image. Where no member is a label, folders in the names may be, by the rule for folders.
//!
//! Only the headers are read when an archive is opened, many archives at a time; images are then read from their places in it, in any order,
//! or window by window as a stream with a shuffle buffer would give them ([`crate::Dataset::order`]). Gzipped archives can't be read so:
//! they are unzipped once (`copies.rs`).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use rayon::prelude::*;
use serde_json::Value;

use crate::copies::copied;
use crate::decode::has_image_ending;
use crate::encoded::Item;
use crate::open::BadFile;
use crate::place::{OpenFile, Place};
use crate::sources::{Entries, Entry, Split};
use crate::{Error, Result};

/// Endings of archives.
pub(crate) const ENDINGS: [&str; 3] = [".tar", ".tar.gz", ".tgz"];

/// Largest label or description that is read.
const MOST_TEXT: u64 = 1 << 20;

/// What a shard's members say of one sample.
#[derive(Default)]
struct Sample {
    key: String,
    /// Images, and whether their endings have no inner dot.
    images: Vec<(Item, bool)>,
    label: Option<String>,
    /// Whether it has members that are no images.
    has_others: bool,
}

/// Whether a file's name is an archive's.
pub(crate) fn is_archive(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    ENDINGS.iter().any(|e| name.ends_with(e))
}

/// Reads the headers of `shards`, which lie below `root`. A shard that can't be read is named as bad.
///
/// # Errors
/// A copy of a gzipped shard that can't be written.
pub(crate) fn read(root: &Path, shards: &[PathBuf], cache: &Path) -> Result<Entries> {
    let read = |shard: &PathBuf| -> Result<Entries> {
        let mut found = Entries::default();
        let zipped = !shard.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"));
        let split = Split::of_path(root, shard);
        let read = if zipped { read_zipped(shard, split, cache, &mut found)? } else { read_file(shard, split, &mut found) };
        let id = shard
            .strip_prefix(root)
            .ok()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new(shard.file_name().unwrap_or_default()));
        let id = id.to_string_lossy().replace('\\', "/");
        if let Err(e) = read {
            // What came before the damage is whole.
            found.bad.push(BadFile::new(id.clone(), &e));
        }
        if shards.len() > 1 {
            // Names are told apart by their shard, which must not look like a folder, and so like a label.
            let prefix = id.rsplit_once('.').map_or(id.as_str(), |(stem, _)| stem).replace('/', "-");
            for entry in found.found.iter_mut().filter(|e| !e.item.id.contains('/')) {
                entry.item.id = format!("{prefix}:{}", entry.item.id);
            }
        }
        Ok(found)
    };
    let mut entries = Entries { labelled_by: "the archive (.cls or .json)", in_windows: true, ..Entries::default() };
    // In the shards' order, however many threads read them.
    for part in shards.par_iter().map(read).collect::<Vec<_>>() {
        let Entries { found, bad, passed_over, .. } = part?;
        entries.found.extend(found);
        entries.bad.extend(bad);
        entries.passed_over += passed_over;
    }
    Ok(entries)
}

fn read_file(shard: &Path, split: Split, entries: &mut Entries) -> Result<()> {
    read_plain(shard, OpenFile::open(shard)?, split, entries)
}

fn read_plain(shard: &Path, file: Arc<OpenFile>, split: Split, entries: &mut Entries) -> Result<()> {
    let length = file.length()?;
    let mut archive = tar::Archive::new(Place::Part { file: file.clone(), start: 0, length }.reader()?);
    let members = archive.entries_with_seek().map_err(|e| damaged(shard, e))?;
    let place = |entry: &mut tar::Entry<'_, _>| -> Result<Place> {
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err(Error::bad(shard, "the archive breaks off within it"));
        }
        Ok(Place::Part { file: file.clone(), start, length: size })
    };
    walk(shard, members, place, split, entries)
}

/// The inner result is that of the shard, the outer one that of the copy.
fn read_zipped(shard: &Path, split: Split, cache: &Path, entries: &mut Entries) -> Result<Result<()>> {
    let mut damage = None;
    let plain = copied(shard, cache, "tar", None, &mut |out| {
        let file = File::open(shard).map_err(Error::io(shard))?;
        // Images hardly shrink; what grows a hundred times over is no archive of images.
        let most = file.metadata().map_or(0, |m| m.len()).saturating_mul(100).saturating_add(64 << 20);
        let mut unzipped = MultiGzDecoder::new(BufReader::new(file)).take(most + 1);
        let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
        loop {
            match unzipped.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) if total + count as u64 > most => {
                    damage = Some(Error::bad(shard, format!("grows past {most} bytes when it is unzipped")));
                    return Ok(false);
                }
                Ok(count) => {
                    total += count as u64;
                    std::io::Write::write_all(out, &buffer[..count]).map_err(Error::io(shard))?;
                }
                Err(e) => {
                    damage = Some(damaged(shard, e));
                    return Ok(false);
                }
            }
        }
    });
    let plain = match plain {
        Ok(plain) => plain,
        // A shard that is gone or closed is one bad file; a disk that is full ends it.
        Err(e) if File::open(shard).is_err() => return Ok(Err(e)),
        Err(e) => return Err(e),
    };
    let read = read_plain(shard, plain, split, entries);
    Ok(damage.map_or(read, Err))
}

/// Goes through the members of an archive and gathers samples.
fn walk<R: Read>(
    shard: &Path,
    members: tar::Entries<'_, R>,
    mut place: impl FnMut(&mut tar::Entry<'_, R>) -> Result<Place>,
    split: Split,
    entries: &mut Entries,
) -> Result<()> {
    let mut sample = Sample::default();
    for member in members {
        let mut member = match member {
            Ok(member) => member,
            Err(e) => {
                finish(&mut sample, split, entries);
                return Err(damaged(shard, e));
            }
        };
        let Ok(path) = member.path().map(std::borrow::Cow::into_owned) else { continue };
        let Some(name) = plain_name(&path).filter(|_| member.header().entry_type().is_file()) else { continue };
        let (key, ending) = split_key(&name);
        if key != sample.key {
            finish(&mut sample, split, entries);
            sample.key = key.to_string();
        }
        let ending = ending.to_ascii_lowercase();
        if has_image_ending(&path) {
            match place(&mut member) {
                Ok(place) => sample.images.push((Item { id: name, place }, !ending.contains('.'))),
                Err(e) => entries.bad.push(BadFile::new(name, &e)),
            }
            continue;
        }
        sample.has_others = true;
        if (ending == "cls" || ending == "json") && member.size() <= MOST_TEXT {
            let mut text = String::new();
            if member.read_to_string(&mut text).is_err() {
                entries.bad.push(BadFile { id: name, reason: "its label is no text".into() });
            } else if ending == "cls" {
                sample.label = Some(text.trim().to_string()).filter(|l| !l.is_empty());
            } else if let Ok(about) = serde_json::from_str::<Value>(&text) {
                let name = about.get("class").and_then(Value::as_str).map(String::from);
                let label = about.get("label").or_else(|| about.get("cls")).filter(|v| !v.is_null());
                let label = || label.map(|v| v.as_str().map_or_else(|| v.to_string(), String::from));
                sample.label = name.or_else(|| sample.label.take()).or_else(label);
            }
        }
    }
    finish(&mut sample, split, entries);
    Ok(())
}

fn finish(sample: &mut Sample, split: Split, entries: &mut Entries) {
    let Sample { images, label, has_others, .. } = std::mem::take(sample);
    let plain = images.iter().position(|(_, plain)| *plain);
    let chosen = plain.or(has_others.then_some(0));
    for (i, (item, _)) in images.into_iter().enumerate() {
        match chosen {
            Some(chosen) if chosen != i => entries.passed_over += 1,
            _ => entries.found.push(Entry { item, label: label.clone(), split }),
        }
    }
}

/// A member's name with forward slashes, unless it is hidden or leads out of the archive.
fn plain_name(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    let hidden = parts.iter().any(|p| p.starts_with('.') || *p == "__MACOSX");
    (!hidden && !parts.is_empty()).then(|| parts.join("/"))
}

/// A name up to the first dot of its last part, and what follows the dot.
fn split_key(name: &str) -> (&str, &str) {
    let last = name.rfind('/').map_or(0, |i| i + 1);
    match name[last..].find('.') {
        Some(dot) => (&name[..last + dot], &name[last + dot + 1..]),
        None => (name, ""),
    }
}

fn damaged(shard: &Path, e: std::io::Error) -> Error {
    Error::bad(shard, format!("damaged archive: {e}"))
}

/// The order in which a stream of shards with a shuffle buffer gives its samples: shards in random order, each from front to back, through
/// a buffer of `buffer` samples of which a random one leaves whenever another comes. `files` tells each sample's shard.
pub(crate) fn windowed(files: &[*const OpenFile], buffer: usize, rng: &mut impl rand::Rng) -> Vec<u32> {
    use rand::seq::SliceRandom;
    let mut starts: Vec<usize> = (0..files.len()).filter(|&i| i == 0 || files[i] != files[i - 1]).collect();
    starts.push(files.len());
    let mut shards: Vec<(usize, usize)> = starts.windows(2).map(|w| (w[0], w[1])).collect();
    shards.shuffle(rng);
    let (mut held, mut order) = (Vec::with_capacity(buffer), Vec::with_capacity(files.len()));
    for sample in shards.into_iter().flat_map(|(from, to)| from as u32..to as u32) {
        if held.len() < buffer.max(1) {
            held.push(sample);
        } else {
            let leaves = rng.random_range(0..held.len() as u32) as usize;
            order.push(std::mem::replace(&mut held[leaves], sample));
        }
    }
    held.shuffle(rng);
    order.extend(held);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn keys_end_at_the_first_dot_of_the_last_part() {
        assert_eq!(split_key("a.b/c.seg.png"), ("a.b/c", "seg.png"));
        assert_eq!((split_key("a/b"), split_key("x.jpg")), (("a/b", ""), ("x", "jpg")));
        assert_eq!(plain_name(Path::new("./a/b.png")).as_deref(), Some("a/b.png"));
        assert_eq!((plain_name(Path::new("../a.png")), plain_name(Path::new("/a.png"))), (None, None));
        assert!(is_archive(Path::new("x-0.TAR")) && is_archive(Path::new("x.tar.gz")) && !is_archive(Path::new("tar")));
    }

    #[test]
    fn a_window_reads_shards_from_front_to_back() {
        let files: Vec<*const OpenFile> = (0..1000).map(|i| (8 * (1 + i / 100)) as *const OpenFile).collect();
        let order = windowed(&files, 50, &mut ChaCha8Rng::seed_from_u64(1));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000), "a permutation");
        assert_ne!(order, windowed(&files, 50, &mut ChaCha8Rng::seed_from_u64(2)));
        // A sample leaves the buffer some 50 samples after it came: few shards are open at a time.
        let shards = |part: &[u32]| part.iter().map(|i| i / 100).collect::<std::collections::BTreeSet<_>>().len();
        assert!(order.chunks(50).all(|part| shards(part) <= 5), "shards are read one after the other");
        assert!(order.windows(2).filter(|w| w[0] + 1 == w[1]).count() < 200, "neighbours are parted");
    }
}
