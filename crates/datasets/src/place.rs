//! Where the bytes of one encoded image lie, and how they are had.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decode::{MAX_BYTES, content};
use crate::{Error, Result};

/// Where the bytes of one image lie.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A file of its own.
    File(PathBuf),
    /// `length` bytes of a larger file.
    Part {
        /// The larger file.
        file: Arc<OpenFile>,
        /// The first byte.
        start: u64,
        /// How many.
        length: u64,
    },
}

/// A file that is read at any place by any number of threads.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    path: PathBuf,
}

/// What [`Place::reader`] reads at a time: a header fits into it.
const AT_A_TIME: usize = 4 << 10;

/// A part of a file, read from front to back or at any place of it.
struct PartReader {
    file: Arc<OpenFile>,
    start: u64,
    length: u64,
    at: u64,
}

impl Place {
    /// The first `most` bytes, or fewer where there are no more.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn read(&self, most: u64) -> Result<Vec<u8>> {
        match self {
            Self::File(path) => content(path, most),
            Self::Part { file, start, length } => {
                let mut raw = vec![0; (*length).min(most).min(MAX_BYTES + 1) as usize];
                file.read_at(&mut raw, *start)?;
                Ok(raw)
            }
        }
    }
}

impl Place {
    /// All of it, of which as little is read as is asked for.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn reader(&self) -> Result<impl BufRead + Seek + 'static> {
        let part = match self {
            Self::File(path) => {
                let file = OpenFile::open(path)?;
                PartReader { length: file.length()?, file, start: 0, at: 0 }
            }
            Self::Part { file, start, length } => PartReader { file: file.clone(), start: *start, length: *length, at: 0 },
        };
        Ok(BufReader::with_capacity(AT_A_TIME, part))
    }
}

impl OpenFile {
    /// A file that is open already; `path` is told in errors.
    pub(crate) fn new(file: File, path: &Path) -> Arc<Self> {
        Arc::new(Self { file, path: path.to_path_buf() })
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { file: File::open(path).map_err(Error::io(path))?, path: path.to_path_buf() }))
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn length(&self) -> Result<u64> {
        self.file.metadata().map(|m| m.len()).map_err(Error::io(&self.path))
    }

    /// Fills `out` with the bytes from `start` on.
    ///
    /// # Errors
    /// A file that ends before, or can't be read.
    pub(crate) fn read_at(&self, out: &mut [u8], start: u64) -> Result<()> {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_exact_at(&self.file, out, start);
        #[cfg(windows)]
        let read = read_exact_at(&self.file, out, start);
        read.map_err(Error::io(&self.path))
    }
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut start: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, start)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                start += n as u64;
            }
        }
    }
    Ok(())
}

impl Read for PartReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = (out.len() as u64).min(self.length.saturating_sub(self.at)) as usize;
        self.file.read_at(&mut out[..count], self.start + self.at).map_err(std::io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for PartReader {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_whole_at_any_place_and_never_past_their_end() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("short");
        std::fs::write(&path, b"one and three")?;
        let file = OpenFile::open(&path)?;
        let part = Place::Part { file: file.clone(), start: 4, length: 3 };
        assert_eq!((part.read(99)?, part.read(2)?), (b"and".to_vec(), b"an".to_vec()));
        let mut reader = part.reader()?;
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        assert_eq!((all.as_slice(), reader.seek(SeekFrom::End(-1))?), (&b"and"[..], 2));
        let mut last = String::new();
        reader.read_to_string(&mut last)?;
        assert!(last == "d" && reader.seek(SeekFrom::Current(-9)).is_err());
        let text = file.read_at(&mut [0; 4], 10).expect_err("it ends before").to_string();
        assert!(text.contains("short") && file.length()? == 13, "{text}");
        Ok(())
    }
}
