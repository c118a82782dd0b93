//! Files of PyTorch before 1.6, such as those of MoCo v1 and v2: a number, a version, a pickle about the system, one of the objects, one
//! of the storages' keys, and then the storages, each behind its length.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::pickle::Object;

use super::pickle::{LONGEST, dtype, object, parts, storage, tensors};
use super::{Weights, bad};
use crate::Result;

/// The pickle of the number that such a file begins with.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// The pickle of the version that they all have, 1001.
const VERSION: &[u8] = b"\x80\x02M\xe9\x03.";

/// Looks into a file.
pub(super) fn open(path: &Path) -> Result<Weights> {
    let refuse = |reason: String| bad(path, reason);
    let mut file = File::open(path).map_err(|e| bad(path, e))?;
    let total = file.metadata().map_err(|e| bad(path, e))?.len();
    let mut head = Vec::new();
    file.by_ref().take(LONGEST).read_to_end(&mut head).map_err(|e| bad(path, e))?;
    let Some(rest) = head.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(VERSION)) else {
        return Err(refuse(
            "is a pickle, but none that PyTorch's torch.save wrote; load it where it comes from, and save the weights alone: \
             torch.save(model.state_dict(), FILE)"
                .into(),
        ));
    };
    let (system, length) = object(rest).map_err(refuse)?;
    if entry(&system, "little_endian") != Some(&Object::Bool(true)) {
        return Err(refuse("does not say that its numbers are in little byte order, the one that is read".into()));
    }
    let rest = &rest[length..];
    let (root, length) = object(rest).map_err(refuse)?;
    let rest = &rest[length..];
    let (keys, length) = object(rest).map_err(refuse)?;
    let Object::List(keys) = keys else { return Err(refuse("is damaged: it does not list its storages".into())) };
    let mut sizes = HashMap::new();
    element_sizes(&root, &mut sizes).map_err(refuse)?;

    let mut at = (head.len() - rest.len() + length) as u64;
    let mut storages = HashMap::new();
    for key in keys {
        let Object::Unicode(key) = key else { return Err(refuse("is damaged: a storage's key is no text".into())) };
        let Some(size) = sizes.get(&key) else {
            return Err(refuse(format!("is damaged: nothing says what numbers its storage `{key}` holds")));
        };
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut count))
            .map_err(|_| refuse(format!("is cut short: storage `{key}` is missing")))?;
        let start = at + 8;
        let length = u64::from_le_bytes(count).checked_mul(*size).filter(|&length| length <= total.saturating_sub(start));
        let Some(length) = length else {
            return Err(refuse(format!("is cut short: storage `{key}` claims {} numbers", u64::from_le_bytes(count))));
        };
        storages.insert(key, (start, length));
        at = start + length;
    }
    tensors(path, &root, &storages, total)
}

/// The value of a dictionary's key.
fn entry<'a>(object: &'a Object, key: &str) -> Option<&'a Object> {
    let Object::Dict(pairs) = object else { return None };
    pairs.iter().find(|(k, _)| matches!(k, Object::Unicode(k) if k == key)).map(|(_, value)| value)
}

/// Bytes of a number of each storage that an object speaks of, by key.
fn element_sizes(object: &Object, sizes: &mut HashMap<String, u64>) -> Result<(), String> {
    if let Object::PersistentLoad(words) = object {
        let Some((class, key)) = storage(object) else { return Ok(()) };
        if let Object::Tuple(words) = &**words
            && words.get(5).is_some_and(|view| *view != Object::None)
        {
            return Err(format!("holds storage `{key}` as a part of another, as PyTorch before 0.4 wrote it; save it again"));
        }
        let size = match (dtype(class), class) {
            (Some(dtype), _) => dtype.size_in_bytes() as u64,
            (None, "BoolStorage") => 1,
            (None, "ComplexFloatStorage") => 8,
            (None, "ComplexDoubleStorage") => 16,
            (None, other) => return Err(format!("holds numbers of kind {other}, which are not known")),
        };
        sizes.insert(key.to_string(), size);
    }
    parts(object).into_iter().try_for_each(|part| element_sizes(part, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `torch.save({"w": torch.tensor([[0., 1., 2.], [3., 4., 5.]])}, _use_new_zipfile_serialization=False)` writes.
    fn file(storages: &[u8]) -> Vec<u8> {
        let system = b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88u.";
        let root = b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03\
            ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x007q\x05X\x03\x00\x00\x00cpuq\x06K\x06Ntq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86\
            q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.";
        let keys = b"\x80\x02]q\x00X\x01\x00\x00\x007q\x01a.";
        [MAGIC, VERSION, system, root, keys, storages].concat()
    }

    #[test]
    fn a_file_of_old_is_read_and_one_that_lies_is_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("w.pth");
        let numbers: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let behind = |count: u64, numbers: &[u8]| [&count.to_le_bytes()[..], numbers].concat();
        std::fs::write(&path, file(&behind(6, &numbers)))?;
        let weights = Weights::open(&path)?;
        assert_eq!(weights.read("w")?.to_vec2::<f32>()?, [[0., 1., 2.], [3., 4., 5.]]);
        let whole = file(&behind(6, &numbers));
        let replaced = |from: &[u8], to: &[u8]| -> Vec<u8> {
            let at = whole.windows(from.len()).position(|w| w == from).expect("it is there");
            [&whole[..at], to, &whole[at + from.len()..]].concat()
        };
        for (bytes, word) in [
            (file(&behind(7, &numbers)), "cut short"),
            (file(&behind(u64::MAX / 2, &numbers)), "cut short"),
            (file(&behind(5, &numbers)), "reach beyond"),
            (file(b""), "cut short"),
            (MAGIC.to_vec(), "none that PyTorch"),
            (b"\x80\x03K\x01.".to_vec(), "none that PyTorch"),
            (replaced(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "byte order"),
            (replaced(b"ctorch\nFloatStorage", b"ctorch\nQUInt8Storage"), "QUInt8Storage"),
            (replaced(b"ctorch._utils\n_rebuild_tensor_v2", b"cos\nsystem"), "os.system"),
        ] {
            std::fs::write(&path, bytes)?;
            let told = Weights::open(&path).expect_err(word).to_string();
            assert!(told.contains("w.pth") && told.contains(word) && !told.contains('\n'), "{word}: {told}");
        }
        Ok(())
    }
}
