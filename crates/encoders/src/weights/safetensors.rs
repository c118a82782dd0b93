//! safetensors files, one or several with an index. The header is checked before anything is believed: its length against the
//! file's, and every tensor's place, size and type.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use candle_core::DType;
use safetensors::tensor::Metadata;

use super::{Entry, MOST_TENSORS, Weights, bad};
use crate::Result;

/// The longest header that is read.
const LONGEST_HEADER: u64 = 64 << 20;

/// Looks into one file.
pub(super) fn open(path: &Path) -> Result<Weights> {
    Ok(Weights { files: vec![path.into()], entries: entries(path, 0)?, passed_over: Vec::new(), closed: BTreeMap::new() })
}

/// Looks into the files that an index names. They lie beside it; a name that leads elsewhere is refused.
pub(super) fn open_index(path: &Path) -> Result<Weights> {
    let length = std::fs::metadata(path).map_err(|e| bad(path, e))?.len();
    if length > LONGEST_HEADER {
        return Err(bad(path, format!("is {length} bytes long, which no index of weights is")));
    }
    let text = std::fs::read(path).map_err(|e| bad(path, e))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| bad(path, format!("is no index of safetensors files, with a `weight_map` of tensors to files ({e})")))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let mut weights =
        Weights { files: vec![path.into()], entries: BTreeMap::new(), passed_over: Vec::new(), closed: BTreeMap::new() };
    for name in names {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(bad(path, format!("names the file `{name}`; the files of an index must lie beside it")));
        }
        let file = path.with_file_name(name);
        let found = entries(&file, weights.files.len())?;
        weights.files.push(file);
        if weights.entries.len() + found.len() > MOST_TENSORS {
            return Err(bad(path, format!("names files of more than {MOST_TENSORS} tensors")));
        }
        weights.entries.extend(found.into_iter().filter(|(tensor, _)| index.weight_map.get(tensor) == Some(name)));
    }
    match index.weight_map.iter().find(|(tensor, _)| !weights.entries.contains_key(*tensor)) {
        None => Ok(weights),
        Some((tensor, file)) => Err(bad(path, format!("says that tensor `{tensor}` is in {file}, where it is not"))),
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn entries(path: &Path, file: usize) -> Result<BTreeMap<String, Entry>> {
    let damaged = |what: &str| bad(path, format!("is damaged or no safetensors file: {what}"));
    let mut reader = File::open(path).map_err(|e| bad(path, e))?;
    let total = reader.metadata().map_err(|e| bad(path, e))?.len();
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(|_| damaged("it is too short for a header"))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > total - 8 {
        return Err(damaged(&format!("its header claims {length} bytes, the file has {total}")));
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header).map_err(|e| bad(path, e))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(&format!("header: {e}")))?;
    let (start, room) = (8 + length, total - 8 - length);
    let mut found = BTreeMap::new();
    let tensors = header.tensors();
    if tensors.len() > MOST_TENSORS {
        return Err(damaged(&format!("it claims {} tensors, expected at most {MOST_TENSORS}", tensors.len())));
    }
    for (name, info) in tensors {
        let (first, last) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bits = info.shape.iter().try_fold(info.dtype.bitsize() as u64, |n, &side| n.checked_mul(side as u64));
        if first > last || last > room || bits != Some((last - first).saturating_mul(8)) {
            return Err(damaged(&format!("tensor `{name}` of shape {:?} claims bytes {first} to {last} of {room}", info.shape)));
        }
        // Types that candle does not know can't be weights of an encoder.
        let Ok(dtype) = DType::try_from(info.dtype) else { continue };
        found.insert(name, Entry { file, offset: start + first, dtype, shape: info.shape.clone(), strides: None });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, header: &str, length: Option<u64>, data: &[u8]) -> anyhow::Result<()> {
        let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        Ok(std::fs::write(path, bytes)?)
    }

    #[test]
    fn lies_about_lengths_and_places_are_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("w.safetensors");
        let one = |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        write(&path, &one("[2]", "[0,8]"), None, &[0; 8])?;
        assert_eq!(Weights::open(&path)?.read("a")?.to_vec1::<f32>()?, [0.0; 2]);
        for (header, length) in [
            (one("[2]", "[0,8]"), Some(u64::MAX)),
            (one("[2]", "[0,8]"), Some(1 << 40)),
            (one("[4]", "[0,16]"), None),
            (one("[2]", "[4,12]"), None),
            (one("[2]", "[8,0]"), None),
            (one("[3]", "[0,8]"), None),
            (one("[4294967296,4294967296]", "[0,8]"), None),
            (one("[2]", "[0,18446744073709551615]"), None),
            ("{".to_string(), None),
        ] {
            write(&path, &header, length, &[0; 8])?;
            let told = Weights::open(&path).and_then(|w| w.read("a")).expect_err(&header).to_string();
            assert!(told.contains("w.safetensors") && !told.contains('\n'), "{told}");
        }
        std::fs::write(&path, [1, 2])?;
        assert!(Weights::open(&path).expect_err("short").to_string().contains("too short"));
        Ok(())
    }

    #[test]
    fn an_index_stays_in_its_folder() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (index, shard) = (dir.path().join("model.safetensors.index.json"), dir.path().join("one.safetensors"));
        write(&shard, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, None, &1.5_f32.to_le_bytes())?;
        std::fs::write(&index, r#"{"metadata":{},"weight_map":{"a":"one.safetensors"}}"#)?;
        assert_eq!(Weights::open(dir.path())?.read("a")?.to_vec1::<f32>()?, [1.5]);
        for (map, word) in [
            (r#"{"a":"../one.safetensors"}"#, "beside it"),
            (r#"{"a":"/one.safetensors"}"#, "beside it"),
            (r#"{"b":"one.safetensors"}"#, "`b`"),
            (r#"{"a":"two.safetensors"}"#, "two.safetensors"),
        ] {
            std::fs::write(&index, format!(r#"{{"weight_map":{map}}}"#))?;
            let told = Weights::open(&index).expect_err(map).to_string();
            assert!(told.contains(word), "{told}");
        }
        Ok(())
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_by_name() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("w.safetensors");
        write(&path, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, None, &f32::NAN.to_le_bytes())?;
        let told = Weights::open(&path)?.read("a").expect_err("NaN").to_string();
        assert!(told.contains("`a` holds NaN"), "{told}");
        Ok(())
    }
}
