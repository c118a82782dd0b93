//! PyTorch's files: a zip archive of a pickle and the tensors' bytes.
//!
//! The pickle is walked first ([`check`]), then made into plain objects ([`make`]), and tensors are taken from these. Objects of other
//! kinds are left alone, with the tensors in them; whoever looks for a tensor there is told the kind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::Object;
use zip::{CompressionMethod, ZipArchive};

use super::objects::make;
use super::opcodes::{check, refusal};
use super::{Entry, MOST_TENSORS, Weights, bad};
use crate::Result;

/// The longest pickle that is read; those of checkpoints have a few hundred kilobytes.
pub(super) const LONGEST: u64 = 32 << 20;
/// Tensors may share memory, but not so often that reading all of them would fill it.
const MOST_COPIES: u64 = 4;

/// The longest name of a tensor, all its dictionaries' keys joined.
const LONGEST_NAME: usize = 4096;
/// Most axes of a tensor; weights have up to 4.
const MOST_AXES: usize = 8;

/// Looks into a file.
pub(super) fn open(path: &Path) -> Result<Weights> {
    let refuse = |reason: String| bad(path, reason);
    let file = File::open(path).map_err(|e| bad(path, e))?;
    let total = file.metadata().map_err(|e| bad(path, e))?.len();
    let mut zip =
        ZipArchive::new(BufReader::new(file)).map_err(|e| refuse(format!("is damaged or no file of PyTorch's ({e})")))?;
    // Bytes of every entry: place and length in the file.
    let mut places: HashMap<String, (u64, u64)> = HashMap::new();
    let mut pickles = Vec::new();
    for i in 0..zip.len() {
        let entry = zip.by_index(i).map_err(|e| refuse(format!("is damaged: {e}")))?;
        let name = entry.name().map_err(|e| refuse(format!("is damaged: {e}")))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() || entry.encrypted() {
            return Err(refuse(format!(
                "holds `{name}` compressed ({} bytes that claim to be {}); PyTorch compresses nothing, so this is refused",
                entry.compressed_size(),
                entry.size()
            )));
        }
        let start = entry.data_start().ok_or_else(|| refuse(format!("does not say where `{name}` lies")))?;
        if start.checked_add(entry.size()).is_none_or(|end| end > total) {
            return Err(refuse(format!("is damaged: `{name}` reaches beyond its end")));
        }
        if let Some(folder) = name.strip_suffix("data.pkl") {
            pickles.push((i, folder.to_string()));
        }
        places.insert(name, (start, entry.size()));
    }
    let [(number, folder)] = &pickles[..] else {
        return Err(refuse(format!("holds {} pickles, expected one `data.pkl`: no file of PyTorch's torch.save", pickles.len())));
    };
    if let Some(&(_, length)) = places.get(&format!("{folder}byteorder")).filter(|p| p.1 < 16) {
        let mut order = String::new();
        let mut entry = zip.by_name(&format!("{folder}byteorder")).map_err(|e| refuse(e.to_string()))?;
        entry.by_ref().take(length).read_to_string(&mut order).map_err(|e| bad(path, e))?;
        if order.trim() != "little" {
            return Err(refuse(format!("has numbers in {order} byte order, expected little")));
        }
    }
    let entry = zip.by_index(*number).map_err(|e| refuse(e.to_string()))?;
    if entry.size() > LONGEST {
        return Err(refuse(format!("holds a pickle of {} bytes, expected at most {LONGEST}", entry.size())));
    }
    let mut pickle = Vec::with_capacity(entry.size() as usize);
    entry.take(LONGEST).read_to_end(&mut pickle).map_err(|e| bad(path, e))?;
    let (object, _) = object(&pickle).map_err(refuse)?;
    let data = format!("{folder}data/");
    let storages = places.into_iter().filter_map(|(name, place)| Some((name.strip_prefix(&data)?.to_string(), place))).collect();
    tensors(path, &object, &storages, total)
}

/// Reads the pickle at the start of `bytes` into plain objects. Gives its length too.
pub(super) fn object(bytes: &[u8]) -> Result<(Object, usize), String> {
    let length = check(bytes)?;
    Ok((make(&bytes[..length])?, length))
}

/// The tensors in `object`, whose storages lie at `storages` (place and length, by key) in the file of `total` bytes.
pub(super) fn tensors(path: &Path, object: &Object, storages: &HashMap<String, (u64, u64)>, total: u64) -> Result<Weights> {
    let mut found = Found { storages, entries: BTreeMap::new(), passed_over: BTreeSet::new(), closed: BTreeMap::new(), bytes: 0 };
    found.walk("", object).map_err(|reason| bad(path, reason))?;
    if found.bytes > total.saturating_mul(MOST_COPIES) {
        return Err(bad(path, format!("claims tensors of {} bytes in a file of {total}", found.bytes)));
    }
    if let (true, Some(kind)) = (found.entries.is_empty(), found.closed.values().next()) {
        return Err(bad(path, refusal(kind)));
    }
    let (entries, passed_over) = (found.entries, found.passed_over.into_iter().collect());
    Ok(Weights { files: vec![path.into()], entries, passed_over, closed: found.closed })
}

/// The numbers of a storage of PyTorch's.
pub(super) fn dtype(storage: &str) -> Option<DType> {
    Some(match storage {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "ByteStorage" | "CharStorage" => DType::U8,
        "ShortStorage" => DType::I16,
        "IntStorage" => DType::I32,
        "LongStorage" => DType::I64,
        _ => return None,
    })
}

/// The tensors found so far.
struct Found<'a> {
    storages: &'a HashMap<String, (u64, u64)>,
    entries: BTreeMap<String, Entry>,
    passed_over: BTreeSet<String>,
    /// Names and kinds of objects that hold tensors and are not looked into.
    closed: BTreeMap<String, String>,
    bytes: u64,
}

impl Found<'_> {
    fn walk(&mut self, name: &str, object: &Object) -> Result<(), String> {
        if name.len() > LONGEST_NAME {
            let told: String = name.chars().take(40).collect();
            let refused = || format!("holds a tensor whose name, `{told}…`, has {} bytes", name.len());
            return if holds_tensors(object) { Err(refused()) } else { Ok(()) };
        }
        let below = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        match object {
            Object::Dict(pairs) => {
                for (key, value) in pairs {
                    match key {
                        Object::Unicode(key) => self.walk(&below(key), value)?,
                        Object::Int(key) => self.walk(&below(&key.to_string()), value)?,
                        _ => {}
                    }
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.walk(&below(&i.to_string()), item)?;
                }
            }
            Object::Reduce { callable, args } => match (&**callable, &**args) {
                (Object::Class { module_name, class_name }, Object::Tuple(args)) if rebuilds(module_name, class_name) => {
                    self.rebuilt(name, class_name, args)?;
                }
                _ => self.unknown(name, object)?,
            },
            Object::Build { callable, .. } => match &**callable {
                Object::Dict(_) | Object::List(_) | Object::Tuple(_) => self.walk(name, callable)?,
                Object::Reduce { callable: of, .. } => match &**of {
                    Object::Class { module_name, class_name } if rebuilds(module_name, class_name) => {
                        self.walk(name, callable)?
                    }
                    _ => self.unknown(name, object)?,
                },
                _ => self.unknown(name, object)?,
            },
            _ => {}
        }
        Ok(())
    }

    /// Passes over an object of a kind that is not known, unless it is all that the file holds.
    fn unknown(&mut self, name: &str, object: &Object) -> Result<(), String> {
        let kind = kind(object).unwrap_or_else(|| "an unnamed callable".into());
        if name.is_empty() {
            return Err(refusal(&kind));
        }
        if holds_tensors(object) {
            self.closed.insert(name.to_string(), kind.clone());
            if self.closed.len() > MOST_TENSORS {
                return Err(format!("holds more than {MOST_TENSORS} objects of unknown kinds with tensors in them"));
            }
        }
        self.passed_over.insert(kind);
        Ok(())
    }

    /// What one of PyTorch's functions makes of its arguments.
    fn rebuilt(&mut self, name: &str, function: &str, args: &[Object]) -> Result<(), String> {
        match (function, args) {
            ("_rebuild_parameter" | "_rebuild_parameter_with_state", [inner, ..]) => self.walk(name, inner),
            ("_rebuild_from_type_v2", [Object::Class { module_name, class_name }, _, Object::Tuple(args), ..])
                if rebuilds(module_name, class_name) =>
            {
                self.rebuilt(name, class_name, args)
            }
            ("_rebuild_tensor_v2", args) => {
                let unknown = || format!("describes tensor `{name}` in a way that is not known");
                let (class, key) = args.first().and_then(storage).ok_or_else(unknown)?;
                let Some(dtype) = dtype(class) else {
                    self.passed_over.insert(format!("torch.{class}"));
                    return Ok(());
                };
                let entry = self.tensor(dtype, key, args).ok_or_else(unknown)?;
                let entry = entry.map_err(|what| format!("tensor `{name}`: {what}"))?;
                let count: u64 = entry.shape.iter().map(|&n| n as u64).product();
                self.bytes = self.bytes.saturating_add(count * entry.dtype.size_in_bytes() as u64);
                self.entries.insert(name.to_string(), entry);
                if self.entries.len() > MOST_TENSORS {
                    return Err(format!("holds more than {MOST_TENSORS} tensors"));
                }
                Ok(())
            }
            _ => Err(format!("describes tensor `{name}` in a way that is not known")),
        }
    }

    /// `None` where the arguments are not those of a tensor; an error where they lie.
    fn tensor(&self, dtype: DType, key: &str, args: &[Object]) -> Option<Result<Entry, String>> {
        let [_, offset, Object::Tuple(shape), Object::Tuple(strides), ..] = args else { return None };
        let (offset, shape, strides) = (index(offset)?, indices(shape)?, indices(strides)?);
        if shape.len() != strides.len() || shape.len() > MOST_AXES {
            return None;
        }
        let Some(&(start, length)) = self.storages.get(key) else {
            return Some(Err(format!("its bytes `data/{key}` are missing")));
        };
        let size = dtype.size_in_bytes() as u64;
        let room = length / size;
        let count = shape.iter().try_fold(1_u64, |n, &side| n.checked_mul(side as u64));
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset as u64, |at, (&n, &step)| at.checked_add((n as u64).saturating_sub(1).checked_mul(step as u64)?));
        match (count, last) {
            (Some(0), _) => {}
            (Some(count), Some(last)) if count <= room && last < room => {}
            _ => return Some(Err(format!("shape {shape:?} and strides {strides:?} reach beyond its {length} bytes"))),
        }
        let mut step = 1_usize;
        let contiguous = shape.iter().zip(&strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == step;
            step = step.saturating_mul(n);
            fits
        });
        let offset = start + offset as u64 * size;
        Some(Ok(Entry { file: 0, offset, dtype, shape, strides: (!contiguous).then_some(strides) }))
    }
}

/// Whether a function is one of those by which PyTorch's pickles make tensors.
fn rebuilds(module: &str, name: &str) -> bool {
    match module {
        "torch._utils" => matches!(name, "_rebuild_tensor_v2" | "_rebuild_parameter" | "_rebuild_parameter_with_state"),
        "torch._tensor" => name == "_rebuild_from_type_v2",
        _ => false,
    }
}

/// Class and key of a storage.
pub(super) fn storage(object: &Object) -> Option<(&str, &str)> {
    let Object::PersistentLoad(storage) = object else { return None };
    let Object::Tuple(storage) = &**storage else { return None };
    match &storage[..] {
        [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] => Some((class_name, key)),
        _ => None,
    }
}

/// The objects that an object is made of.
pub(super) fn parts(object: &Object) -> Vec<&Object> {
    match object {
        Object::Dict(pairs) => pairs.iter().flat_map(|(key, value)| [key, value]).collect(),
        Object::List(items) | Object::Tuple(items) => items.iter().collect(),
        Object::Reduce { callable, args } | Object::Build { callable, args } => vec![callable, args],
        _ => Vec::new(),
    }
}

/// Whether numbers of tensors are somewhere in an object. Objects are nested less deep than the stack is.
fn holds_tensors(object: &Object) -> bool {
    matches!(object, Object::PersistentLoad(_)) || parts(object).into_iter().any(holds_tensors)
}

/// Module and name of what an object is made by.
fn kind(object: &Object) -> Option<String> {
    match object {
        Object::Class { module_name, class_name } => Some(format!("{module_name}.{class_name}")),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            let name = kind(callable)?;
            match &**args {
                // A class within a class.
                Object::Tuple(args) if matches!(&name[..], "__builtin__.getattr" | "builtins.getattr") => match &args[..] {
                    [of, Object::Unicode(inner)] => Some(format!("{}.{inner}", kind(of)?)),
                    _ => Some(name),
                },
                _ => Some(name),
            }
        }
        _ => None,
    }
}

fn index(object: &Object) -> Option<usize> {
    match object {
        Object::Int(n) => usize::try_from(*n).ok(),
        Object::Long(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

fn indices(objects: &[Object]) -> Option<Vec<usize>> {
    objects.iter().map(index).collect()
}

#[cfg(test)]
mod tests;
