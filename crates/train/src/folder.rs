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
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use twinsight_nn::{load_tensors, save_tensors, sync_folder, write_atomic};

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
        std::fs::rename(&next, &newest).and_then(|()| sync_folder(&newest)).map_err(Error::io(&next))
    }

    /// Takes the folder for this process until the returned file is dropped (or the process ends in whatever way).
    ///
    /// # Errors
    /// Another process trains in it.
    pub fn lock(&self) -> Result<File> {
        let path = self.path(".lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(Error::run(&self.root, "another process is training in this folder; wait for it or stop it first"))
            }
            // A file system without locks: go on without.
            Err(TryLockError::Error(_)) => Ok(file),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn fresh(dir: &Path) -> Result<RunFolder> {
        RunFolder::create(&dir.join("run"), &RunConfig::resolve(&[])?)
    }

    fn checkpoint(step: f32) -> Result<Checkpoint> {
        let tensor = Tensor::full(step, 2, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok((BTreeMap::from([("step".to_string(), tensor)]), BTreeMap::new()))
    }

    fn step(folder: &RunFolder) -> Result<Option<f32>> {
        let found = folder.load_checkpoint(&Device::Cpu)?;
        found.map(|(tensors, _)| Ok(tensors["step"].to_vec1::<f32>()?[0])).transpose()
    }

    #[test]
    fn the_newest_checkpoint_is_found_wherever_a_kill_left_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = fresh(dir.path())?;
        assert_eq!(step(&folder)?, None);
        folder.save_checkpoint(&checkpoint(1.0)?)?;
        folder.save_checkpoint(&checkpoint(2.0)?)?;
        assert_eq!(step(&folder)?, Some(2.0));
        // Killed after the older one was moved away and before the new one took its name.
        save_tensors(&folder.path("checkpoint.next.safetensors"), &checkpoint(3.0)?.0, &BTreeMap::new())?;
        std::fs::rename(folder.checkpoint_path(), folder.path("checkpoint.previous.safetensors"))?;
        assert_eq!(step(&folder)?, Some(3.0));
        std::fs::remove_file(folder.path("checkpoint.next.safetensors"))?;
        assert_eq!(step(&folder)?, Some(2.0));
        std::fs::write(folder.checkpoint_path(), "half")?;
        let told = step(&folder).expect_err("damaged").to_string();
        assert!(told.contains("checkpoint.previous.safetensors"), "{told}");
        Ok(())
    }

    #[test]
    fn metrics_are_cut_back_to_the_checkpoint() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = fresh(dir.path())?;
        let mut metrics = MetricsFile::open(&folder, 0)?;
        metrics.append(&serde_json::json!({"step": 1}))?;
        let kept = metrics.len();
        metrics.append(&serde_json::json!({"step": 2}))?;
        drop(metrics);
        assert_eq!(read_metrics(&folder)?.len(), 2);
        let mut metrics = MetricsFile::open(&folder, kept)?;
        metrics.append(&serde_json::json!({"step": 3}))?;
        let steps: Vec<_> = read_metrics(&folder)?.iter().map(|m| m["step"].as_u64()).collect();
        assert_eq!(steps, [Some(1), Some(3)]);
        Ok(())
    }

    #[test]
    fn one_process_at_a_time() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = fresh(dir.path())?;
        let held = folder.lock()?;
        assert!(folder.lock().expect_err("held").to_string().contains("another process"));
        drop(held);
        folder.lock()?;
        assert!(RunFolder::create(folder.root(), &RunConfig::resolve(&[])?).is_err());
        Ok(())
    }
}
