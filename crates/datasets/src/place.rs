//! Where the bytes of one encoded image lie, and how they are had.

use std::fs::File;
use std::io::Write;
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

/// Bytes of many images, one behind the other, in a file without a name that is gone with its last reader.
pub(crate) struct Spool {
    file: File,
    folder: PathBuf,
    length: u64,
    places: Vec<(u64, u64)>,
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

impl OpenFile {
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

impl Spool {
    /// An empty one in `folder`, or where the system keeps temporary files if that can't be.
    ///
    /// # Errors
    /// Neither can be written to.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let (file, folder) = match tempfile::tempfile_in(folder) {
            Ok(file) => (file, folder.to_path_buf()),
            Err(_) => {
                let folder = std::env::temp_dir();
                (tempfile::tempfile_in(&folder).map_err(Error::io(&folder))?, folder)
            }
        };
        Ok(Self { file, folder, length: 0, places: Vec::new() })
    }

    /// Appends the bytes of one image.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn add(&mut self, raw: &[u8]) -> Result<()> {
        self.file.write_all(raw).map_err(Error::io(&self.folder))?;
        self.places.push((self.length, raw.len() as u64));
        self.length += raw.len() as u64;
        Ok(())
    }

    /// The file of all images; `path` is told in errors.
    pub(crate) fn file(self, path: &Path) -> Arc<OpenFile> {
        Arc::new(OpenFile { file: self.file, path: path.to_path_buf() })
    }

    /// Where the images lie, in the order in which they were added; `path` is told in errors.
    pub(crate) fn places(self, path: &Path) -> Vec<Place> {
        let file = Arc::new(OpenFile { file: self.file, path: path.to_path_buf() });
        self.places.into_iter().map(|(start, length)| Place::Part { file: file.clone(), start, length }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spooled_comes_back_in_part_or_whole() -> anyhow::Result<()> {
        for folder in [std::env::temp_dir(), PathBuf::from("no such folder")] {
            let mut spool = Spool::new(&folder)?;
            for raw in [&b"one"[..], b"", b"three"] {
                spool.add(raw)?;
            }
            let places = spool.places(Path::new("x"));
            let read = |i: usize, most| places[i].read(most);
            assert_eq!((read(0, 99)?, read(1, 99)?, read(2, 2)?), (b"one".to_vec(), Vec::new(), b"th".to_vec()));
        }
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("short"), b"abc")?;
        let file = OpenFile::open(&dir.path().join("short"))?;
        let text = file.read_at(&mut [0; 4], 1).expect_err("it ends before").to_string();
        assert!(text.contains("short") && file.length()? == 3, "{text}");
        Ok(())
    }
}
