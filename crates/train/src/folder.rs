//! The run folder: what lies in it, how it is created, and how a checkpoint is written and found again.
//!
//! | file | content |
//! | --- | --- |
//! | `config.toml` | the resolved configuration |
//! | `metrics.jsonl` | one JSON object a logged step, evaluation or event |
//! | `events.out.tfevents.*` | the same for TensorBoard |
//! | `checkpoint.safetensors` | everything that the next step needs |
//! | `checkpoint.previous.safetensors` | the one before it |
//! | `encoder.safetensors` | the trained encoder, at the end |
//! | `result.json`, `report.html`, `views.png` | figures and pictures |
//!
//! Nothing in it is pickled and no path in it is absolute, so that a folder can be moved; only `data.path` is kept as given.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use twinsight_nn::{load_tensors, save_tensors, write_atomic};

use crate::{Error, Result, RunConfig};

/// A run folder on disk.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

/// Tensors and words of a checkpoint.
pub type Checkpoint = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

impl RunFolder {
    /// Makes a new run folder at `root` and writes the configuration.
    ///
    /// # Errors
    /// A folder that already holds a run (nothing in it is touched), a place that can't be written.
    pub fn create(root: &Path, config: &RunConfig) -> Result<Self> {
        let folder = Self { root: root.to_path_buf() };
        if root.is_file() {
            return Err(Error::run(root, "is a file; --out names a folder for the run"));
        }
        if folder.config_path().exists() || folder.checkpoint_path().exists() {
            return Err(Error::run(root, "already holds a run; choose another --out, or go on with it by `twinsight resume`"));
        }
        std::fs::create_dir_all(root).map_err(Error::io(root))?;
        folder.write("config.toml", config.to_toml()?.as_bytes())?;
        Ok(folder)
    }

    /// Opens the run at `root`.
    ///
    /// # Errors
    /// No folder, or one without a run.
    pub fn open(root: &Path) -> Result<(Self, RunConfig)> {
        if !root.is_dir() {
            return Err(Error::run(root, "no such run folder"));
        }
        let folder = Self { root: root.to_path_buf() };
        let path = folder.config_path();
        if !path.exists() {
            return Err(Error::run(root, "holds no run: there is no config.toml in it"));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let config = RunConfig::parse(&text).map_err(|e| Error::run(&path, e.to_string()))?;
        Ok((folder, config))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The trained encoder.
    pub fn encoder_path(&self) -> PathBuf {
        self.path("encoder.safetensors")
    }

    /// The newest checkpoint.
    pub fn checkpoint_path(&self) -> PathBuf {
        self.path("checkpoint.safetensors")
    }

    fn config_path(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// Writes a whole file under a temporary name and renames it.
    ///
    /// # Errors
    /// A full disk, missing rights; an earlier file stays as it was.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(write_atomic(&self.path(name), |out| out.write_all(bytes))?)
    }

    /// Saves a checkpoint; the one before it stays beside it.
    ///
    /// # Errors
    /// A full disk, missing rights; both earlier checkpoints stay readable.
    pub fn save_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (newest, next) = (self.checkpoint_path(), self.path("checkpoint.next.safetensors"));
        save_tensors(&next, &checkpoint.0, &checkpoint.1)?;
        if newest.exists() {
            let previous = self.path("checkpoint.previous.safetensors");
            std::fs::rename(&newest, &previous).map_err(Error::io(&newest))?;
        }
        std::fs::rename(&next, &newest).map_err(Error::io(&next))
    }

    /// Loads the newest checkpoint; `None` when none was written yet.
    ///
    /// A process that was killed between two renames leaves the newest under another name; it is found there.
    ///
    /// # Errors
    /// A damaged checkpoint: the line says which file, and that the previous one can take its place.
    pub fn load_checkpoint(&self, device: &Device) -> Result<Option<Checkpoint>> {
        let newest = self.checkpoint_path();
        let previous = self.path("checkpoint.previous.safetensors");
        if newest.exists() {
            return match load_tensors(&newest, device) {
                Ok(checkpoint) => Ok(Some(checkpoint)),
                Err(e) if previous.exists() => Err(Error::run(
                    &newest,
                    format!(
                        "{e}; the checkpoint before it is whole or not by itself: to go on from there, move {} over it",
                        previous.display()
                    ),
                )),
                Err(e) => Err(e.into()),
            };
        }
        for rest in [self.path("checkpoint.next.safetensors"), previous] {
            if rest.exists() {
                return Ok(Some(load_tensors(&rest, device)?));
            }
        }
        Ok(None)
    }
}

/// `metrics.jsonl`, appended to line by line.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl MetricsFile {
    /// Opens the file and cuts it to `length` bytes: what had been written when the checkpoint was saved. Lines that a
    /// killed run wrote after it are written again by the resumed one.
    ///
    /// # Errors
    /// Missing rights, a full disk.
    pub fn open(folder: &RunFolder, length: u64) -> Result<Self> {
        let path = folder.path("metrics.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let found = file.metadata().map_err(Error::io(&path))?.len();
        let length = length.min(found);
        file.set_len(length).map_err(Error::io(&path))?;
        Ok(Self { path, file, length })
    }

    /// Appends one object.
    ///
    /// # Errors
    /// A full disk.
    pub fn append(&mut self, line: &serde_json::Value) -> Result<()> {
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))?;
        self.length += text.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Makes sure that the disk has everything.
    ///
    /// # Errors
    /// A full disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

/// Reads `metrics.jsonl` of a run; an unfinished last line is passed over.
///
/// # Errors
/// A file that can't be read.
pub fn read_metrics(folder: &RunFolder) -> Result<Vec<serde_json::Value>> {
    let path = folder.path("metrics.jsonl");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
}
