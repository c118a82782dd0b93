//! Tensors in safetensors files that appear whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, View};

use crate::{Error, Result};

/// Has `write` make a file under a temporary name beside `path`, flushes it to disk and renames it over `path`. A device or
/// pipe, which a rename would replace by a file, is written itself.
///
/// # Errors
/// A full disk, missing rights; the temporary file is removed and an earlier file at `path` stays as it was.
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let failed = |source| Error::Io { path: path.to_path_buf(), source };
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return write(path).map_err(failed);
    }
    let temporary = temporary_name(path);
    let attempt = || -> io::Result<()> {
        write(&temporary)?;
        File::options().write(true).open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_folder(path)
    };
    attempt().map_err(|source| {
        // The first failure is what is reported.
        let _ = std::fs::remove_file(&temporary);
        failed(source)
    })
}

/// As [`replace_file`], with a writer in place of a name.
///
/// # Errors
/// As [`replace_file`].
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    replace_file(path, |target| {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(target)?);
        write(&mut out)?;
        out.flush()
    })
}

/// Makes sure that the disk knows the names in the folder of `path`: a rename counts after a power cut only then.
///
/// # Errors
/// A disk that fails.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    // Elsewhere folders can't be opened as files, and renames are made durable by the system.
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    let _ = path;
    Ok(())
}

/// Saves tensors with metadata. The same input gives the same bytes.
///
/// # Errors
/// As [`write_atomic`]; an element type that the format does not know.
pub fn save_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let views = tensors.iter().map(|(name, t)| Ok((name.as_str(), Raw::new(t)?))).collect::<Result<Vec<_>>>()?;
    // The format's writer takes a hash map, whose order would differ from run to run; with one entry at most the bytes are
    // the same each time, so that all words go into one.
    let words = match metadata.len() {
        0 => None,
        _ => {
            let text = serde_json::to_string(metadata).map_err(|e| bad(path, e))?;
            Some(HashMap::from([(WORDS.to_string(), text)]))
        }
    };
    let bytes = safetensors::serialize(views, words).map_err(|e| bad(path, e))?;
    write_atomic(path, |out| out.write_all(&bytes))
}

/// Loads all tensors of a file, with its metadata.
///
/// # Errors
/// A file that is missing, cut short or otherwise damaged: one line that names it.
pub fn load_tensors(path: &Path, device: &Device) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    let damaged = |e: &dyn std::fmt::Display| Error::BadFile {
        path: path.to_path_buf(),
        reason: format!("is damaged or no safetensors file ({e}; {} bytes)", bytes.len()),
    };
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let dtype = DType::try_from(view.dtype()).map_err(|e| damaged(&e))?;
        tensors.insert(name, Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?);
    }
    Ok((tensors, words(&header).map_err(|e| damaged(&e))?))
}

/// The metadata of a file alone: of its bytes only the header is read.
///
/// # Errors
/// A file that is missing or whose header is damaged.
pub fn load_metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    let damaged = |e: &dyn std::fmt::Display| bad(path, format!("is damaged or no safetensors file ({e})"));
    let failed = |source| Error::Io { path: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > total - 8 {
        return Err(damaged(&format!("its header claims {length} bytes, the file has {total}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(failed)?;
    let header: safetensors::tensor::Metadata = serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
    words(&header).map_err(|e| damaged(&e))
}

/// The words of a header, those that [`save_tensors`] put into one entry included.
fn words(header: &safetensors::tensor::Metadata) -> std::result::Result<BTreeMap<String, String>, serde_json::Error> {
    let mut metadata: BTreeMap<String, String> =
        header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(text) = metadata.remove(WORDS) {
        metadata.extend(serde_json::from_str::<BTreeMap<String, String>>(&text)?);
    }
    Ok(metadata)
}

/// The metadata key under which [`save_tensors`] puts all words.
const WORDS: &str = "twinsight";

/// A tensor's bytes in little-endian order.
struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Raw {
    fn new(t: &Tensor) -> Result<Self> {
        let flat = t.flatten_all()?;
        let (dtype, bytes) = match t.dtype() {
            DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::F64 => (Dtype::F64, flat.to_vec1::<f64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::U32 => (Dtype::U32, flat.to_vec1::<u32>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::U8 => (Dtype::U8, flat.to_vec1::<u8>()?),
            other => return Err(Error::BadSetting(format!("tensors of element type {other:?} are not saved"))),
        };
        Ok(Self { dtype, shape: t.dims().to_vec(), bytes })
    }
}

impl View for Raw {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

fn bad(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::BadFile { path: path.to_path_buf(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
        let t = Tensor::from_vec((0..40).map(|i| i as f32).collect::<Vec<_>>(), (5, 8), &Device::Cpu)?;
        let tensors = BTreeMap::from([
            ("w".to_string(), t.clone()),
            ("turned".to_string(), t.t()?),
            ("n".to_string(), Tensor::new(7_i64, &Device::Cpu)?),
        ]);
        let words = (0..9).map(|i| (format!("key{i}"), format!("value \"{i}\""))).collect();
        Ok((tensors, words))
    }

    #[test]
    fn files_come_back_and_are_the_same_each_time() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (tensors, words) = some()?;
        let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        save_tensors(&a, &tensors, &words)?;
        save_tensors(&b, &tensors.clone(), &words.clone())?;
        assert_eq!(std::fs::read(&a).expect("a"), std::fs::read(&b).expect("b"));
        let (got, got_words) = load_tensors(&a, &Device::Cpu)?;
        assert_eq!(got_words, words);
        assert_eq!(got["turned"].to_vec2::<f32>()?, tensors["turned"].to_vec2::<f32>()?);
        assert_eq!(got["n"].to_scalar::<i64>()?, 7);
        Ok(())
    }

    #[test]
    fn damage_is_one_line_that_names_the_file() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("c.safetensors");
        let (tensors, words) = some()?;
        save_tensors(&path, &tensors, &words)?;
        let whole = std::fs::read(&path).expect("c");
        let mut lying = whole.clone();
        lying[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        for bytes in [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &whole[..5], &[], &lying] {
            std::fs::write(&path, bytes).expect("written");
            let text = load_tensors(&path, &Device::Cpu).expect_err("must be refused").to_string();
            assert!(text.contains("c.safetensors") && !text.contains('\n'), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_file() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("d.bin");
        write_atomic(&path, |out| out.write_all(b"first"))?;
        let full = |out: &mut dyn Write| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let text = write_atomic(&path, full).expect_err("no room").to_string();
        assert!(text.contains("d.bin"), "{text}");
        assert_eq!(std::fs::read(&path).expect("d"), b"first");
        assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 1, "a temporary file was left");
        let error = write_atomic(&dir.path().join("no/such/folder"), |_| Ok(())).expect_err("no folder");
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("no/such/folder")), "{error}");
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_is_an_error_and_stays_a_device() -> Result<()> {
        use std::os::unix::fs::FileTypeExt;
        let path = Path::new("/dev/full");
        let (tensors, words) = some()?;
        let error = save_tensors(path, &tensors, &words).expect_err("no room");
        assert!(matches!(&error, Error::Io { path: p, .. } if p == path), "{error}");
        assert!(std::fs::metadata(path).expect("/dev/full").file_type().is_char_device());
        Ok(())
    }

    proptest::proptest! {
        /// Whatever bytes a file holds, reading ends in tensors or in one line that names it.
        #[test]
        fn no_damage_panics(cut in 0.0..1.0_f64, at in 0.0..1.0_f64, byte in 0..=255_u8, shorten in proptest::bool::ANY) {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let path = dir.path().join("e.safetensors");
            let (tensors, words) = some().expect("tensors");
            save_tensors(&path, &tensors, &words).expect("saved");
            let mut bytes = std::fs::read(&path).expect("e");
            let place = (at * bytes.len() as f64) as usize;
            bytes[place] = byte;
            if shorten {
                bytes.truncate((cut * bytes.len() as f64) as usize);
            }
            std::fs::write(&path, bytes).expect("written");
            match load_tensors(&path, &Device::Cpu) {
                Ok(_) => proptest::prop_assert!(!shorten, "a file cut short was read"),
                Err(e) => {
                    let text = e.to_string();
                    proptest::prop_assert!(text.contains("e.safetensors") && !text.contains('\n'), "{}", text);
                }
            }
        }
    }
}
