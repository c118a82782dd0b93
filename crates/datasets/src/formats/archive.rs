//! Known files out of a folder or a gzipped tar archive, without unpacking anything else.

use std::io::Read;
use std::path::{Component, Path};

use flate2::read::GzDecoder;

use crate::{Error, Result};

/// The contents of `names` in a folder or archive, in that order; `None` for what is missing.
///
/// # Errors
/// A damaged archive, a file of more than `most` bytes.
pub(crate) fn contents(path: &Path, names: &[String], most: u64) -> Result<Vec<Option<Vec<u8>>>> {
    if path.is_dir() { from_folder(path, names, most) } else { from_archive(path, names, most) }
}

fn from_folder(path: &Path, names: &[String], most: u64) -> Result<Vec<Option<Vec<u8>>>> {
    let read = |name: &String| {
        let file = path.join(name);
        let Ok(about) = std::fs::metadata(&file) else { return Ok(None) };
        if about.len() > most {
            return Err(Error::bad(file, format!("has {} bytes, expected at most {most}", about.len())));
        }
        std::fs::read(&file).map(Some).map_err(Error::io(file))
    };
    names.iter().map(read).collect()
}

/// Members are looked at by file name only, those with absolute paths or `..` not at all, and nothing is written anywhere.
fn from_archive(path: &Path, names: &[String], most: u64) -> Result<Vec<Option<Vec<u8>>>> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let damaged = |e: std::io::Error| Error::bad(path, format!("damaged archive: {e}"));
    let mut archive = tar::Archive::new(GzDecoder::new(std::io::BufReader::new(file)));
    let mut found = vec![None; names.len()];
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let Ok(member) = entry.path().map(std::borrow::Cow::into_owned) else { continue };
        let plain = member.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !entry.header().entry_type().is_file() || !plain {
            continue;
        }
        let name = member.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(slot) = names.iter().position(|n| *n == name) {
            if entry.size() > most {
                return Err(Error::bad(path, format!("{name} in it has {} bytes, expected at most {most}", entry.size())));
            }
            let mut raw = Vec::new();
            entry.by_ref().take(most).read_to_end(&mut raw).map_err(damaged)?;
            found[slot] = Some(raw);
        }
    }
    Ok(found)
}
