//! Copies of what lies within compressed files, where it can be read at any place.
//!
//! A gzipped archive or a Parquet table can only be read from front to back, so what is in it is copied once, into the folder `copies` of
//! the cache. A copy is known by its source's path, size and time, and is used again as long as these stay the same; the one before it is
//! removed when they change. A copy of some parts of the source alone is known by these as well; there is one copy of a source at a time.
//! Where the cache can't be written to, the copy is a temporary file that is gone with its last reader. The
//! folder may be deleted at any time.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::place::OpenFile;
use crate::{Error, Result};

/// The copy of what `source` holds, of kind `kind` (a file's ending). Where there is none, `fill` writes it and says whether it is to be kept:
/// one that is not serves this reader alone. Where no more than some `parts` of the source are wanted (a name for them), a copy of these
/// will do as well as one of all, and `fill` writes these.
///
/// # Errors
/// A source that is gone, what `fill` says, a full disk.
pub(crate) fn copied(
    source: &Path,
    cache: &Path,
    kind: &str,
    parts: Option<&str>,
    fill: &mut dyn FnMut(&mut BufWriter<File>) -> Result<bool>,
) -> Result<Arc<OpenFile>> {
    let about = std::fs::metadata(source).map_err(Error::io(source))?;
    let changed = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos());
    let mut hash = DefaultHasher::new();
    source.canonicalize().unwrap_or_else(|_| source.to_path_buf()).hash(&mut hash);
    let begin = format!("{:016x}-", hash.finish());
    let name = format!("{begin}{}-{changed}.{kind}", about.len());
    let folder = cache.join("copies");
    let mut path = folder.join(&name);
    if let Ok(file) = File::open(&path) {
        return Ok(OpenFile::new(file, source));
    }
    if let Some(parts) = parts {
        path = folder.join(format!("{name}-{parts}"));
        if let Ok(file) = File::open(&path) {
            return Ok(OpenFile::new(file, source));
        }
    }
    let kept = std::fs::create_dir_all(&folder).and_then(|()| tempfile::NamedTempFile::new_in(&folder));
    let Ok(kept) = kept else {
        let elsewhere = std::env::temp_dir();
        let mut out = BufWriter::new(tempfile::tempfile_in(&elsewhere).map_err(Error::io(&elsewhere))?);
        fill(&mut out)?;
        return Ok(OpenFile::new(flushed(out, &elsewhere)?, source));
    };
    // The second handle is the one that is read, whatever becomes of the name.
    let mut out = BufWriter::new(kept.reopen().map_err(Error::io(&folder))?);
    let is_kept = fill(&mut out)?;
    let file = flushed(out, &folder)?;
    if is_kept {
        let earlier = |p: &PathBuf| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let ending = name.strip_prefix(&begin).and_then(|n| n.split_once('.')).map(|(_, ending)| ending);
            ending.and_then(|e| e.strip_prefix(kind)).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let entries = std::fs::read_dir(&folder).map_err(Error::io(&folder))?;
        entries.flatten().map(|e| e.path()).filter(earlier).for_each(|old| {
            // One that another process removed first is gone as well.
            let _ = std::fs::remove_file(old);
        });
        kept.persist(&path).map_err(|e| Error::io(&path)(e.error))?;
    }
    Ok(OpenFile::new(file, source))
}

fn flushed(out: BufWriter<File>, folder: &Path) -> Result<File> {
    let mut file = out.into_inner().map_err(|e| Error::io(folder)(e.into_error()))?;
    file.flush().map_err(Error::io(folder))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_made_once_and_anew_when_its_source_changes() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (source, cache) = (dir.path().join("source"), dir.path().join("cache"));
        let mut made = 0;
        let mut copy = |cache: &Path, whole: bool| -> anyhow::Result<Vec<u8>> {
            let text = std::fs::read(&source)?;
            let file = copied(&source, cache, "x", None, &mut |out| {
                made += 1;
                out.write_all(&text).map_err(Error::io("x"))?;
                Ok(whole)
            })?;
            let mut raw = vec![0; file.length()? as usize];
            file.read_at(&mut raw, 0)?;
            Ok(raw)
        };
        std::fs::write(&source, "one")?;
        assert_eq!(copy(&cache, false)?, b"one", "what is not whole is not kept");
        assert_eq!((copy(&cache, true)?, copy(&cache, true)?), (b"one".to_vec(), b"one".to_vec()));
        std::fs::write(&source, "another")?;
        assert_eq!(copy(&cache, true)?, b"another");
        assert_eq!(std::fs::read_dir(cache.join("copies"))?.count(), 1, "the earlier copy is gone");
        // A cache that can't be made: a file has its name.
        assert_eq!(copy(&source, true)?, b"another");
        assert_eq!(made, 4);
        Ok(())
    }
}
