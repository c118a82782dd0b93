//! PyTorch's files: a zip archive of a pickle and the tensors' bytes. candle reads the pickle into plain objects and runs nothing.
//!
//! Before it does, the pickle is walked here: candle takes lengths as they are given, copies what is remembered each time it is
//! used, drops nested objects by recursion and shifts long numbers as far as they say. So unknown operations, kinds of objects
//! that are no tensors or plain containers, lengths beyond the end, deep nesting and growth are refused first. Tensors are then
//! taken from the objects here too, since candle's own way ends the program where arguments are missing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{Object, Stack};
use zip::{CompressionMethod, ZipArchive};

use super::{Entry, Weights, bad};
use crate::Result;

/// The longest pickle that is read; those of checkpoints have a few hundred kilobytes.
const LONGEST: u64 = 32 << 20;
/// The deepest nesting.
const DEEPEST: u32 = 64;
/// Objects, each copy counted.
const MOST_OBJECTS: u64 = 2_000_000;
/// Tensors may share memory, but not so often that reading all of them would fill it.
const MOST_COPIES: u64 = 4;

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
    check(&pickle).map_err(refuse)?;

    let mut stack = Stack::empty();
    stack.read_loop(&mut &pickle[..]).map_err(|e| refuse(format!("holds a damaged pickle: {e}")))?;
    let object = stack.finalize().map_err(|e| refuse(format!("holds a damaged pickle: {e}")))?;
    let mut found = Found { folder, places: &places, entries: BTreeMap::new(), passed_over: BTreeSet::new(), bytes: 0 };
    found.walk("", &object).map_err(refuse)?;
    if found.bytes > total.saturating_mul(MOST_COPIES) {
        return Err(refuse(format!("claims tensors of {} bytes in a file of {total}", found.bytes)));
    }
    let (entries, passed_over) = (found.entries, found.passed_over.into_iter().collect());
    Ok(Weights { files: vec![path.into()], entries, passed_over })
}

/// What becomes of an object of a known kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A plain container.
    Container,
    /// A tensor, or a part of what describes one.
    Tensor,
    /// Settings and numbers beside the weights, which are passed over.
    Inert,
}

fn kind(module: &str, name: &str) -> Option<Kind> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Kind::Container,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter") | ("torch._tensor", "_rebuild_from_type_v2") => Kind::Tensor,
        ("torch.nn.parameter", "Parameter") | ("torch", "Tensor" | "Size" | "device") => Kind::Tensor,
        ("torch", storage) if dtype(storage).is_some() || storage == "BoolStorage" => Kind::Tensor,
        ("torch", "float32" | "float64" | "float16" | "bfloat16" | "int64" | "int32" | "uint8" | "bool") => Kind::Inert,
        ("argparse", "Namespace") | ("_codecs", "encode") | ("__builtin__" | "builtins", "set") => Kind::Inert,
        ("numpy", "dtype" | "ndarray") => Kind::Inert,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct") => Kind::Inert,
        _ => return None,
    })
}

fn dtype(storage: &str) -> Option<DType> {
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

/// Nesting and number of the parts of an object.
#[derive(Clone, Copy)]
struct Size {
    depth: u32,
    count: u64,
    mark: bool,
}

const LEAF: Size = Size { depth: 1, count: 1, mark: false };

/// Walks a pickle without making its objects. The error says what it holds that it must not.
fn check(pickle: &[u8]) -> Result<(), String> {
    let mut rest = pickle;
    let mut stack: Vec<Size> = Vec::new();
    let mut memo: HashMap<u32, Size> = HashMap::new();
    let mut copies = 0_u64;
    loop {
        let op = take(&mut rest, 1)?[0];
        match op {
            0x80 => drop(take(&mut rest, 1)?),
            b'c' => {
                let (module, name) = (line(&mut rest)?, line(&mut rest)?);
                if kind(&module, &name).is_none() {
                    return Err(format!(
                        "holds an object of kind `{module}.{name}`; only tensors in plain containers are read, and nothing is ever \
                         run. Save the weights alone: torch.save(model.state_dict(), FILE)"
                    ));
                }
                stack.push(LEAF);
            }
            b')' | b'}' | b']' | b'N' | 0x88 | 0x89 => stack.push(LEAF),
            b'(' => stack.push(Size { mark: true, ..LEAF }),
            b'X' => {
                let length = number(&mut rest, 4)?;
                take(&mut rest, length as usize)?;
                stack.push(LEAF);
            }
            b'J' | b'G' | b'K' | b'M' => {
                let length = match op {
                    b'J' => 4,
                    b'G' => 8,
                    b'K' => 1,
                    _ => 2,
                };
                take(&mut rest, length)?;
                stack.push(LEAF);
            }
            0x8a => {
                let length = number(&mut rest, 1)?;
                if length > 8 {
                    return Err(format!("holds a number of {length} bytes"));
                }
                take(&mut rest, length as usize)?;
                stack.push(LEAF);
            }
            b'q' | b'r' => {
                let key = number(&mut rest, if op == b'q' { 1 } else { 4 })?;
                let top = *stack.last().ok_or("holds a damaged pickle: nothing to remember")?;
                copies += top.count;
                memo.insert(key, top);
            }
            b'h' | b'j' => {
                let key = number(&mut rest, if op == b'h' { 1 } else { 4 })?;
                let size = *memo.get(&key).ok_or("holds a damaged pickle: it remembers what never was")?;
                copies += size.count;
                stack.push(size);
            }
            b'Q' => wrap(&mut stack, 1)?,
            0x85 => wrap(&mut stack, 1)?,
            0x86 | b'R' | b'b' | 0x81 => wrap(&mut stack, 2)?,
            0x87 => wrap(&mut stack, 3)?,
            b't' => {
                let size = marked(&mut stack)?;
                stack.push(size);
            }
            b'a' => into_last(&mut stack, 1)?,
            b's' => into_last(&mut stack, 2)?,
            b'e' | b'u' => {
                let parts = marked(&mut stack)?;
                stack.push(parts);
                into_last(&mut stack, 1)?;
            }
            b'.' => return if stack.is_empty() { Err("holds an empty pickle".into()) } else { Ok(()) },
            other => {
                return Err(format!(
                    "holds a pickle with the operation {other:#04x}, which PyTorch's torch.save does not write (protocol 2); save it \
                     again with its defaults"
                ));
            }
        }
        let top = stack.last().copied().unwrap_or(LEAF);
        if top.depth > DEEPEST {
            return Err(format!("holds objects nested more than {DEEPEST} deep"));
        }
        if copies + stack.len() as u64 > MOST_OBJECTS || top.count > MOST_OBJECTS {
            return Err(format!("holds a pickle that grows to more than {MOST_OBJECTS} objects"));
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    if count > rest.len() {
        return Err("holds a pickle that is cut short".into());
    }
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    Ok(head)
}

/// A little-endian number of `bytes` bytes.
fn number(rest: &mut &[u8], bytes: usize) -> Result<u32, String> {
    Ok(take(rest, bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b)))
}

fn line(rest: &mut &[u8]) -> Result<String, String> {
    let end = rest.iter().position(|&b| b == b'\n').ok_or("holds a pickle that is cut short")?;
    let text = take(rest, end)?;
    take(rest, 1)?;
    Ok(String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text)).into_owned())
}

/// The top `count` objects become one that holds them.
fn wrap(stack: &mut Vec<Size>, count: usize) -> Result<(), String> {
    let at = stack.len().checked_sub(count).ok_or("holds a damaged pickle: too few objects")?;
    let size = holding(stack.drain(at..));
    stack.push(size);
    Ok(())
}

/// Everything above the last mark becomes one object.
fn marked(stack: &mut Vec<Size>) -> Result<Size, String> {
    let at = stack.iter().rposition(|s| s.mark).ok_or("holds a damaged pickle: a mark is missing")?;
    let size = holding(stack.drain(at..).skip(1));
    Ok(size)
}

/// The top `count` objects go into the one below them.
fn into_last(stack: &mut Vec<Size>, count: usize) -> Result<(), String> {
    wrap(stack, count + 1)
}

fn holding(parts: impl Iterator<Item = Size>) -> Size {
    parts.fold(LEAF, |all, part| Size {
        depth: all.depth.max(part.depth.saturating_add(1)),
        count: all.count.saturating_add(part.count),
        mark: false,
    })
}

/// The tensors found so far.
struct Found<'a> {
    folder: &'a str,
    places: &'a HashMap<String, (u64, u64)>,
    entries: BTreeMap<String, Entry>,
    passed_over: BTreeSet<String>,
    bytes: u64,
}

impl Found<'_> {
    fn walk(&mut self, name: &str, object: &Object) -> Result<(), String> {
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
                (Object::Class { module_name, class_name }, Object::Tuple(args)) => {
                    self.reduced(name, (module_name, class_name), args)?;
                }
                _ => self.pass_over(callable),
            },
            Object::Build { callable, .. } => match &**callable {
                Object::Reduce { callable, .. } => self.pass_over(callable),
                other => self.walk(name, other)?,
            },
            _ => {}
        }
        Ok(())
    }

    fn pass_over(&mut self, callable: &Object) {
        if let Object::Class { module_name, class_name } = callable {
            self.passed_over.insert(format!("{module_name}.{class_name}"));
        }
    }

    fn reduced(&mut self, name: &str, class: (&str, &str), args: &[Object]) -> Result<(), String> {
        match (class, args) {
            (("torch._utils", "_rebuild_tensor_v2"), args) => {
                let entry = self.tensor(args).ok_or_else(|| format!("describes tensor `{name}` in a way that is not known"))?;
                let entry = entry.map_err(|what| format!("tensor `{name}`: {what}"))?;
                let count: u64 = entry.shape.iter().map(|&n| n as u64).product();
                self.bytes = self.bytes.saturating_add(count * entry.dtype.size_in_bytes() as u64);
                self.entries.insert(name.to_string(), entry);
                Ok(())
            }
            (("torch._utils", "_rebuild_parameter"), [inner, ..]) => self.walk(name, inner),
            (("torch._tensor", "_rebuild_from_type_v2"), [Object::Class { module_name, class_name }, _, Object::Tuple(args), ..]) => {
                self.reduced(name, (module_name, class_name), args)
            }
            ((module, class), _) => {
                self.passed_over.insert(format!("{module}.{class}"));
                Ok(())
            }
        }
    }

    /// `None` where the arguments are not those of a tensor; an error where they lie.
    fn tensor(&self, args: &[Object]) -> Option<Result<Entry, String>> {
        let [Object::PersistentLoad(storage), offset, Object::Tuple(shape), Object::Tuple(strides), ..] = args else { return None };
        let Object::Tuple(storage) = &**storage else { return None };
        let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] = &storage[..] else { return None };
        let (offset, shape, strides) = (index(offset)?, indices(shape)?, indices(strides)?);
        if shape.len() != strides.len() {
            return None;
        }
        let Some(dtype) = dtype(class_name) else { return Some(Err(format!("numbers of kind {class_name} are not known"))) };
        let Some(&(start, length)) = self.places.get(&format!("{}data/{key}", self.folder)) else {
            return Some(Err(format!("its bytes `data/{key}` are missing")));
        };
        let size = dtype.size_in_bytes() as u64;
        let room = length / size;
        let count = shape.iter().try_fold(1_u64, |n, &side| n.checked_mul(side as u64));
        let last = shape.iter().zip(&strides).try_fold(offset as u64, |at, (&n, &step)| {
            at.checked_add((n as u64).saturating_sub(1).checked_mul(step as u64)?)
        });
        match (count, last) {
            (Some(0), _) => {}
            (Some(count), Some(last)) if count <= room && last < room => {}
            _ => return Some(Err(format!("shape {shape:?} and strides {strides:?} reach beyond its {length} bytes"))),
        }
        let mut step = 1;
        let contiguous = shape.iter().zip(&strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == step;
            step *= n;
            fits
        });
        let offset = start + offset as u64 * size;
        Some(Ok(Entry { file: 0, offset, dtype, shape, strides: (!contiguous).then_some(strides) }))
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
