//! Weights in: files of tensors as people have them, read without running anything and within bounds, and their names and
//! layouts turned into an encoder's.

mod adopt;
mod beside;
mod layouts;
mod legacy;
mod objects;
mod opcodes;
mod pickle;
mod positions;
mod safetensors;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

pub use adopt::{Adopted, ImportOptions, ImportReport, import, initialise, settings};
pub use beside::{Beside, beside};
pub(crate) use layouts::{Form, Layout, Source, layout, layouts_of};

/// Most tensors of a file; checkpoints have thousands, optimizer and all.
const MOST_TENSORS: usize = 100_000;

/// The tensors of a file (or of several that belong together), by name; nothing but names, shapes and places is in memory.
#[derive(Debug)]
pub struct Weights {
    files: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
    /// Kinds of objects in a pickle that are no tensors and were passed over.
    passed_over: Vec<String>,
    /// Names and kinds of those among them that hold tensors.
    closed: BTreeMap<String, String>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    file: usize,
    offset: u64,
    dtype: DType,
    shape: Vec<usize>,
    /// Steps in elements along each axis; `None` for rows one after the other.
    strides: Option<Vec<usize>>,
}

impl Weights {
    /// Looks into a `.safetensors` file, an index of several (`model.safetensors.index.json`), a PyTorch `.pth`, `.pt`, `.bin` or
    /// `.ckpt` file, or a folder that holds one of them.
    ///
    /// Pickles (PyTorch's archives, and its older files of pickles and storages) are read, never run. Objects of other kinds that lie
    /// beside the tensors (settings, say) are passed over unmade, with the tensors that they may hold; one that the file consists of, that
    /// holds all of its tensors, or whose kind exists to run something ends the reading with its name. Memory stays within what the file's own size allows, whatever
    /// sizes it claims.
    ///
    /// # Errors
    /// A missing, damaged or malicious file: one line that names it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = match path.is_dir() {
            true => Self::in_folder(path).ok_or_else(|| bad(path, format!("holds none of {}", NAMES.join(", "))))?,
            false => path.to_path_buf(),
        };
        let name = file.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        if name.ends_with(".json") {
            return safetensors::open_index(&file);
        }
        let mut head = [0; 8];
        let count = File::open(&file).and_then(|f| read_up_to(f, &mut head)).map_err(|e| bad(&file, e))?;
        match &head[..count] {
            [b'P', b'K', 3, 4, ..] => pickle::open(&file),
            [0x80, 2..=5, ..] => legacy::open(&file),
            _ => safetensors::open(&file),
        }
    }

    /// The file of weights in a folder, if it has one of the usual names.
    pub fn in_folder(folder: &Path) -> Option<PathBuf> {
        NAMES.iter().map(|name| folder.join(name)).find(|p| p.is_file())
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shapes of all tensors.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    /// All names that begin with `prefix`, in order.
    pub(crate) fn names_below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let from = self.entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.map(|(name, _)| name.as_str()).take_while(move |name| name.starts_with(prefix))
    }

    /// Whether the tensor `name` holds whole numbers: a counter or an index, no weights.
    pub(crate) fn is_whole(&self, name: &str) -> bool {
        let floats = [DType::F32, DType::F64, DType::F16, DType::BF16];
        self.entries.get(name).is_some_and(|e| !floats.contains(&e.dtype))
    }

    /// The files that are read: the index, if there is one, and those that it names.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The shape of the tensor `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| &e.shape[..])
    }

    /// Kinds of objects that were passed over.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Names and kinds of objects that hold tensors which are not read, in order.
    pub(crate) fn closed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.closed.iter().map(|(name, kind)| (name.as_str(), kind.as_str()))
    }

    /// Reads the tensor `name` as `f32`.
    ///
    /// # Errors
    /// No such tensor, an empty one, whole numbers, a value that is not finite, a file that changed meanwhile.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            return Err(bad(&self.files[0], format!("has no tensor `{name}`")));
        };
        let path = &self.files[entry.file];
        let size = entry.dtype.size_in_bytes();
        let count: usize = entry.shape.iter().product();
        if count == 0 {
            return Err(bad(path, format!("tensor `{name}` of shape {:?} is empty", entry.shape)));
        }
        let span = match &entry.strides {
            None => count,
            Some(strides) => 1 + entry.shape.iter().zip(strides).map(|(n, step)| (n - 1) * step).sum::<usize>(),
        };
        let mut bytes = vec![0; span * size];
        let mut file = File::open(path).map_err(|e| bad(path, e))?;
        file.seek(SeekFrom::Start(entry.offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| bad(path, e))?;
        let flat = Tensor::from_raw_buffer(&bytes, entry.dtype, &[span], &Device::Cpu)?;
        let flat = match entry.dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => flat.to_dtype(DType::F32)?,
            other => return Err(bad(path, format!("tensor `{name}` holds numbers of type {other:?}, expected floats"))),
        };
        let mut values = flat.to_vec1::<f32>()?;
        if let Some(strides) = &entry.strides {
            values = gather(&values, &entry.shape, strides);
        }
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(bad(path, format!("tensor `{name}` holds {value}: weights must be finite")));
        }
        Ok(Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu)?)
    }

    /// The file that is named in errors.
    pub(crate) fn path(&self) -> &Path {
        &self.files[0]
    }
}

/// What files of weights are called in the folders of programs that write them.
const NAMES: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "encoder.safetensors",
    "pytorch_model.bin",
    "model.pth",
    "model.pt",
    "checkpoint.pth",
    "checkpoint.pth.tar",
];

/// Elements of a strided tensor, row by row.
fn gather(values: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let mut index = vec![0; shape.len()];
    (0..count)
        .map(|_| {
            let at: usize = index.iter().zip(strides).map(|(i, step)| i * step).sum();
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
            values[at]
        })
        .collect()
}

fn read_up_to(mut file: File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read(&mut buffer[count..])? {
            0 => break,
            n => count += n,
        }
    }
    Ok(count)
}

fn bad(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::BadWeights { path: path.into(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_tensors_are_put_in_order() {
        assert_eq!(gather(&[0., 1., 2., 3., 4., 5.], &[3, 2], &[1, 3]), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(gather(&[7.], &[], &[]), [7.]);
    }
}
