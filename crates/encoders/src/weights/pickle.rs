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
        let kind = kind(object).map_or("an unnamed callable".into(), |(module, class)| format!("{module}.{class}"));
        if name.is_empty() {
            return Err(refusal(&kind));
        }
        if holds_tensors(object) {
            self.closed.insert(name.to_string(), kind.clone());
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
fn kind(object: &Object) -> Option<(&str, &str)> {
    match object {
        Object::Class { module_name, class_name } => Some((module_name, class_name)),
        Object::Reduce { callable, .. } | Object::Build { callable, .. } => kind(callable),
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
mod tests {
    use std::io::{Cursor, Write};
    use std::path::PathBuf;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A file as torch.save writes it: a pickle and one storage.
    fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, bytes) in [("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", storage)] {
            zip.start_file(name, plain).expect("a name");
            zip.write_all(bytes).expect("memory");
        }
        zip.finish().expect("memory").into_inner()
    }

    /// {"model": {"w": a tensor of `shape` by `strides` from `offset` in a storage of floats}}.
    fn tensor(offset: u8, shape: [i32; 2], strides: [i32; 2]) -> Vec<u8> {
        let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
        let pair = |p: [i32; 2]| [b"J", &p[0].to_le_bytes()[..], b"J", &p[1].to_le_bytes()[..], b"\x86"].concat();
        [
            b"\x80\x02}q\x00".to_vec(),
            text("model"),
            b"}".to_vec(),
            text("w"),
            b"ctorch._utils\n_rebuild_tensor_v2\nq\x01((".to_vec(),
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            text("0"),
            text("cpu"),
            b"K\x06tQ".to_vec(),
            vec![b'K', offset],
            pair(shape),
            pair(strides),
            b"\x89ccollections\nOrderedDict\n)RtRq\x02ss.".to_vec(),
        ]
        .concat()
    }

    fn open_bytes(dir: &Path, bytes: &[u8]) -> Result<Weights> {
        let path: PathBuf = dir.join("w.pth");
        std::fs::write(&path, bytes).expect("a temporary folder");
        Weights::open(&path)
    }

    fn floats() -> Vec<u8> {
        (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn tensors_in_nested_dictionaries_are_read() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        for (pickle, want) in [
            (tensor(0, [2, 3], [3, 1]), vec![vec![0., 1., 2.], vec![3., 4., 5.]]),
            (tensor(0, [2, 3], [1, 2]), vec![vec![0., 2., 4.], vec![1., 3., 5.]]),
            (tensor(2, [1, 2], [9, 1]), vec![vec![2., 3.]]),
        ] {
            let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
            assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
            assert_eq!(weights.read("model.w")?.to_vec2::<f32>()?, want);
        }
        Ok(())
    }

    #[test]
    fn what_could_run_or_grow_is_refused_before_it_is_read() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let laughs: Vec<u8> = (0..60).fold(b"\x80\x02]q\x00".to_vec(), |mut all, i| {
            all.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
            all
        });
        let deep = [&b"\x80\x02)"[..], &[0x85; 100_000], b"."].concat();
        // A megabyte of text, and one of name, remembered and taken out again and again.
        let text =
            |length: usize| [&b"\x80\x02]X"[..], &(length as u32).to_le_bytes()[..], &vec![b'a'; length], b"q\x01a"].concat();
        let often = |start: &[u8]| [start, &b"h\x01a".repeat(3000), b"."].concat();
        let name = [&b"\x80\x02]c"[..], &vec![b'a'; 1 << 20], b"\nb\nq\x01"].concat();
        for (pickle, words) in [
            (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00echo\x85R.".to_vec(), "`posix.system`"),
            (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.".to_vec(), "`os.system`"),
            (b"\x80\x02cbuiltins\neval\n)R.".to_vec(), "`builtins.eval`"),
            (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.".to_vec(), "operation 0x8c"),
            (b"\x80\x02ios\nsystem\n.".to_vec(), "operation 0x69"),
            (deep, "nested"),
            (laughs, "grows"),
            (often(&text(1 << 20)), "text of 1048576 bytes"),
            (often(&text(60 << 10)), "as much text"),
            (often(&name), "a name of 1048577 bytes"),
            (b"\x80\x02}X\x01\x00\x00\x00acsubprocess\nPopen\n)Rs.".to_vec(), "`subprocess.Popen`"),
            (b"\x80\x02cmy.models\nNet\n)\x81}b.".to_vec(), "`my.models.Net`"),
            (wrapped(b"cmy.models\nNet\n", &tensor(0, [2, 3], [3, 1])), "`my.models.Net`"),
            (below(&"k".repeat(5000), &tensor(0, [2, 3], [3, 1])), "whose name, `kkk"),
            (b"\x80\x02X\xff\xff\xff\xffa.".to_vec(), "cut short"),
            (b"\x80\x02\x8a\xff.".to_vec(), "255 bytes"),
            (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.".to_vec(), "not known"),
            (b"\x80\x02t.".to_vec(), "mark"),
            (b"\x80\x02.".to_vec(), "empty"),
            (b"\x80\x02h\x07.".to_vec(), "never was"),
            (b"\x80\x02R.".to_vec(), "too few"),
            (tensor(0, [2, 4], [4, 1]), "reach beyond"),
            (tensor(0, [1_000_000_000, 1_000_000_000], [0, 0]), "reach beyond"),
            (tensor(1, [2, 3], [3, 1]), "reach beyond"),
            (tensor(0, [-1, 3], [3, 1]), "not known"),
        ] {
            let told = open_bytes(dir.path(), &archive(&pickle, &floats())).expect_err(words).to_string();
            assert!(told.contains(words) && told.contains("w.pth") && !told.contains('\n'), "{words}: {told}");
        }
        Ok(())
    }

    /// {`key`: the root of `pickle`}.
    fn below(key: &str, pickle: &[u8]) -> Vec<u8> {
        let length = (key.len() as u32).to_le_bytes();
        [&b"\x80\x02}X"[..], &length, key.as_bytes(), &pickle[2..pickle.len() - 1], b"s."].concat()
    }

    /// {"weights": the root of `pickle` as the only argument of `class`}.
    fn wrapped(class: &[u8], pickle: &[u8]) -> Vec<u8> {
        [&b"\x80\x02}X\x07\x00\x00\x00weights"[..], class, &pickle[2..pickle.len() - 1], b"\x85Rs."].concat()
    }

    #[test]
    fn what_lies_beside_the_tensors_is_passed_over_unmade() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let whole = tensor(0, [2, 3], [3, 1]);
        // {"model": …, "hyper_parameters": DictConfig with a state}, as Lightning writes it for omegaconf, and a mask of booleans.
        let settings =
            b"X\x10\x00\x00\x00hyper_parameterscomegaconf.dictconfig\nDictConfig\n)\x81q\x05}X\x08\x00\x00\x00_contenth\x05sX\x04\x00\x00\x00kindc__builtin__\nlong\nsbs.";
        let mask = tensor(0, [2, 3], [3, 1]);
        let at = mask.windows(12).position(|w| w == b"FloatStorage").expect("a storage");
        let mask = [&mask[..at], b"BoolStorage", &mask[at + 12..]].concat();
        let settings = [&b"X\x04\x00\x00\x00mask"[..], &mask[2..mask.len() - 1], b"s", settings].concat();
        let pickle = [&whole[..whole.len() - 1], &settings].concat();
        let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
        assert_eq!(weights.passed_over(), ["omegaconf.dictconfig.DictConfig", "torch.BoolStorage"]);
        Ok(())
    }

    #[test]
    fn what_holds_tensors_beside_the_weights_stays_closed_and_is_named() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let whole = tensor(0, [2, 3], [3, 1]);
        let net = wrapped(b"cmy.models\nNet\n", &whole);
        // A dictionary of a class of its own, a deque in it, a class within a class, and a sparse tensor.
        let settings =
            b"X\x01\x00\x00\x00scmy\nSettings\n)\x81(X\x01\x00\x00\x00qccollections\ndeque\n)RK\x01aX\x01\x00\x00\x00i\
            c__builtin__\ngetattr\ncmy\nOuter\nX\x05\x00\x00\x00Inner\x86R)\x81us";
        let sparse = wrapped(b"ctorch._utils\n_rebuild_sparse_tensor\n", &whole);
        for (more, closed, kinds) in [
            (&net[3..], Some(("weights", "my.models.Net")), vec!["my.models.Net"]),
            (&[&settings[..], b"."].concat(), None, vec!["my.Settings"]),
            (&sparse[3..], Some(("weights", "torch._utils._rebuild_sparse_tensor")), vec!["torch._utils._rebuild_sparse_tensor"]),
        ] {
            let pickle = [&whole[..whole.len() - 1], more].concat();
            let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
            assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
            assert_eq!(weights.closed().collect::<Vec<_>>(), closed.into_iter().collect::<Vec<_>>());
            assert_eq!(weights.passed_over(), kinds);
        }
        Ok(())
    }

    #[test]
    fn weights_that_are_not_finite_are_refused_by_name() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        for value in [f32::NAN, f32::INFINITY] {
            let numbers: Vec<u8> = [0., 1., 2., value, 4., 5.].into_iter().flat_map(f32::to_le_bytes).collect();
            let weights = open_bytes(dir.path(), &archive(&tensor(0, [2, 3], [3, 1]), &numbers))?;
            let told = weights.read("model.w").expect_err("not finite").to_string();
            assert!(told.contains("`model.w` holds") && told.contains("must be finite"), "{told}");
        }
        Ok(())
    }

    #[test]
    fn a_compressed_entry_is_refused_unread() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut bytes = archive(&tensor(0, [2, 3], [3, 1]), &floats());
        // Every entry claims to be deflated, and to be four gigabytes inside.
        for at in 0..bytes.len() - 4 {
            let (method, size) = match &bytes[at..at + 4] {
                b"PK\x03\x04" => (8, 22),
                b"PK\x01\x02" => (10, 24),
                _ => continue,
            };
            bytes[at + method] = 8;
            bytes[at + size..at + size + 4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
        }
        let told = open_bytes(dir.path(), &bytes).expect_err("compressed").to_string();
        assert!(told.contains("w.pth") && told.to_lowercase().contains("compress"), "{told}");
        Ok(())
    }

    #[test]
    fn no_change_of_bytes_ends_the_program() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut state = 1_u64;
        let mut draw = |below: usize| {
            // Knuth's generator: the same bytes each time.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..800 {
            let mut pickle = tensor(0, [2, 3], [3, 1]);
            let mut whole = archive(&pickle, &floats());
            for _ in 0..1 + draw(5) {
                let (at, byte) = (draw(pickle.len()), draw(256) as u8);
                pickle[at] = byte;
                let at = draw(whole.len());
                whole[at] = byte;
            }
            pickle.truncate(pickle.len() - draw(40));
            for bytes in [archive(&pickle, &floats()), whole] {
                if let Ok(weights) = open_bytes(dir.path(), &bytes) {
                    for name in weights.names() {
                        let _ = weights.read(name);
                    }
                }
            }
        }
    }
}
