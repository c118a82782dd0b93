//! Writing WebDataset shards from any data set.

use std::path::{Path, PathBuf};

use image::ImageFormat;
use rayon::prelude::*;
use serde_json::json;

use crate::open::BadFile;
use crate::{Dataset, Error, Result};

/// Images that are read at a time.
const AT_ONCE: usize = 128;

/// What [`write()`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shards {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Images that were written.
    pub images: usize,
    /// Images that can't be read and were left out.
    pub bad: Vec<BadFile>,
}

/// Writes `dataset` as tar archives `SPLIT-000000.tar`, … of at most `per_shard` images into the folder `out`.
///
/// Images that lie encoded are copied as they are, once they are known to decode; others become PNG, and bands can't be written unless they
/// lie encoded. Images are read in parallel and written in their order: the number of threads changes no byte. Beside each lie its label
/// (`.cls`, a number) and its name and class (`.json`). Each file appears whole or not at all; nothing is overwritten.
///
/// # Errors
/// A shard that is there already, a file that can't be written; under `strict` the first image that can't be read.
pub fn write(dataset: &dyn Dataset, split: &str, per_shard: usize, out: &Path, strict: bool) -> Result<Shards> {
    if per_shard == 0 {
        return Err(Error::BadSetting("a shard of 0 images holds nothing: expected 1 or more".into()));
    }
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let mut shards = Shards::default();
    let mut next = 0;
    while next < dataset.len() {
        let path = out.join(format!("{split}-{:06}.tar", shards.files.len()));
        if path.exists() {
            return Err(Error::BadSetting(format!("{}: is there already; choose another folder", path.display())));
        }
        let file = tempfile::NamedTempFile::new_in(out).map_err(Error::io(out))?;
        let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
        let mut count = 0;
        while next < dataset.len() && count < per_shard {
            // As many as still fit: those that can't be read leave room for others.
            let first = next;
            next = (first + AT_ONCE.min(per_shard - count)).min(dataset.len());
            let read: Vec<Result<Member>> = (first..next).into_par_iter().map(|i| member(dataset, i)).collect();
            for (number, member) in (first..next).zip(read) {
                match member {
                    Ok((raw, ending)) => {
                        let key = format!("{number:08}");
                        append(&mut tar, &format!("{key}.{ending}"), &raw, &path)?;
                        let mut about = json!({"id": dataset.id(number)});
                        if let (Some(label), Some(classes)) = (dataset.label(number), dataset.classes()) {
                            append(&mut tar, &format!("{key}.cls"), label.to_string().as_bytes(), &path)?;
                            about["class"] = json!(classes.get(label as usize));
                        }
                        append(&mut tar, &format!("{key}.json"), about.to_string().as_bytes(), &path)?;
                        count += 1;
                    }
                    Err(e) if strict => return Err(e),
                    Err(e) => shards.bad.push(BadFile::new(dataset.id(number), &e)),
                }
            }
        }
        if count == 0 {
            break;
        }
        let buffer = tar.into_inner().map_err(Error::io(&path))?;
        let file = buffer.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?;
        file.as_file().sync_all().map_err(Error::io(&path))?;
        #[cfg(unix)]
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(Error::io(&path))?;
        file.persist_noclobber(&path).map_err(|e| Error::io(&path)(e.error))?;
        shards.files.push(path);
        shards.images += count;
    }
    Ok(shards)
}

/// An image's bytes and the ending that their form has.
type Member = (Vec<u8>, &'static str);

/// The bytes of image number `index`, which decode.
fn member(dataset: &dyn Dataset, index: usize) -> Result<Member> {
    let image = dataset.get(index)?.image;
    if let Some(raw) = dataset.encoded(index) {
        let raw = raw?;
        let ending = image::guess_format(&raw).ok().and_then(|f| f.extensions_str().first().copied());
        if let Some(ending) = ending {
            return Ok((raw, ending));
        }
    }
    if dataset.bands(index).is_some() {
        let reason = "has other channels or bits than a picture; write a packed file (ending in .safetensors) instead of shards";
        return Err(Error::BadSetting(reason.into()));
    }
    let mut out = std::io::Cursor::new(Vec::new());
    image.write_to(&mut out, ImageFormat::Png).map_err(|e| Error::BadSetting(format!("{}: {e}", dataset.id(index))))?;
    Ok((out.into_inner(), "png"))
}

fn append(tar: &mut tar::Builder<impl std::io::Write>, name: &str, raw: &[u8], path: &Path) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(raw.len() as u64);
    header.set_mode(0o644);
    // No time: the same images make the same file.
    header.set_mtime(0);
    tar.append_data(&mut header, name, raw).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, PackedImages, open};

    #[test]
    fn what_is_written_is_read_again() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let pixels: Vec<u8> = (0..5 * 4 * 3 * 3).map(|i| (i * 7) as u8).collect();
        let classes = vec!["sea".to_string(), "land".into()];
        let set = PackedImages::new("x", pixels, (4, 3, 3), Some(vec![0, 1, 1, 0, 1]), classes)?;
        let shards = write(&set, "train", 2, dir.path(), false)?;
        assert_eq!((shards.files.len(), shards.images), (3, 5));
        let again = open(dir.path().to_str().unwrap_or_default(), &OpenOptions::default())?.train;
        assert_eq!(again.classes().map(<[String]>::to_vec), Some(vec!["land".to_string(), "sea".into()]));
        for i in 0..5 {
            let (a, b) = (set.get(i)?, again.get(i)?);
            assert_eq!((a.image.as_bytes(), a.label), (b.image.as_bytes(), b.label.map(|l| 1 - l)), "image {i}");
        }
        assert!(write(&set, "train", 2, dir.path(), false).is_err(), "nothing is overwritten");
        assert!(write(&set, "more", 0, dir.path(), false).is_err());
        Ok(())
    }
}
