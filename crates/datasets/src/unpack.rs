//! Unpacking archives that were downloaded (`.tar.gz`, `.zip`), without trusting them.
//!
//! Only regular files and folders are taken. Absolute paths, `..`, links of any kind, devices and names that are no text are refused, and so
//! is an archive that grows past what it says (zip) or past what archives of images can (tar). Everything goes to a folder under a
//! temporary name first, which is renamed when all of it is there.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// How many times larger than the archive its content may be, and how much larger in any case.
const GROWTH: u64 = 100;
const GROWTH_FREE: u64 = 64 << 20;
/// Most members of an archive.
const MEMBERS: usize = 5_000_000;

/// Unpacks `archive` into the folder `unpacked` beside it in `folder`, unless that is there already; returns that folder.
///
/// # Errors
/// An archive that is damaged or hostile (nothing is left behind), a full disk.
pub fn unpack(archive: &Path, folder: &Path) -> Result<PathBuf> {
    let target = folder.join("unpacked");
    if target.is_dir() {
        return Ok(target);
    }
    let temporary = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(folder).map_err(Error::io(folder))?;
    let size = std::fs::metadata(archive).map_err(Error::io(archive))?.len();
    let mut budget = Budget { left: size.saturating_mul(GROWTH).saturating_add(GROWTH_FREE), members: MEMBERS };
    let is_zip = archive.extension().is_some_and(|e| e.eq_ignore_ascii_case("zip"));
    if is_zip {
        zip(archive, temporary.path(), &mut budget)?
    } else {
        tar_gz(archive, temporary.path(), &mut budget)?
    }
    let temporary = temporary.keep();
    match std::fs::rename(&temporary, &target) {
        Ok(()) => Ok(target),
        // Another process was faster; its folder is as good.
        Err(_) if target.is_dir() => std::fs::remove_dir_all(&temporary).map(|()| target).map_err(Error::io(&temporary)),
        Err(e) => {
            let _ = std::fs::remove_dir_all(&temporary);
            Err(Error::io(&target)(e))
        }
    }
}

/// What an archive may still take.
struct Budget {
    left: u64,
    members: usize,
}

fn tar_gz(path: &Path, into: &Path, budget: &mut Budget) -> Result<()> {
    let damaged = |e: std::io::Error| Error::bad(path, format!("damaged archive: {e}"));
    let file = File::open(path).map_err(Error::io(path))?;
    // Headers count as well, so that an archive of nothing but names ends too.
    let most = budget.left.saturating_mul(2);
    let mut archive = tar::Archive::new(MultiGzDecoder::new(BufReader::new(file)).take(most));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path().map_err(damaged)?.into_owned();
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let inside = inside(path, &name)?;
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => make(&into.join(&inside))?,
            (_, true) => write(path, &into.join(&inside), &mut entry, None, budget)?,
            _ => return Err(hostile(path, &name, "is a link or device")),
        }
    }
    Ok(())
}

fn zip(path: &Path, into: &Path, budget: &mut Budget) -> Result<()> {
    let damaged = |e: zip::result::ZipError| Error::bad(path, format!("damaged archive: {e}"));
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut archive = zip::ZipArchive::new(file).map_err(damaged)?;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(damaged)?;
        let name = PathBuf::from(entry.name().map_err(damaged)?.into_owned());
        let inside = inside(path, &name)?;
        if entry.is_dir() {
            make(&into.join(&inside))?;
        } else if entry.unix_mode().is_some_and(|mode| !matches!(mode & 0o170_000, 0 | 0o100_000)) {
            return Err(hostile(path, &name, "is a link or device"));
        } else {
            let size = entry.size();
            write(path, &into.join(&inside), &mut entry, Some(size), budget)?;
        }
    }
    Ok(())
}

/// A member's path below the folder, if it lies there.
fn inside(archive: &Path, name: &Path) -> Result<PathBuf> {
    let mut found = PathBuf::new();
    // Backslashes part folders on one system and not on others: no name of ours has any.
    if name.to_str().is_none_or(|n| n.contains(['\\', '\0', ':'])) {
        return Err(hostile(archive, name, "has a name that is no plain path"));
    }
    for component in name.components() {
        match component {
            Component::Normal(part) => found.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(hostile(archive, name, "leads out of the folder")),
            Component::RootDir | Component::Prefix(_) => return Err(hostile(archive, name, "is an absolute path")),
        }
    }
    Ok(found)
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))
}

fn write(archive: &Path, to: &Path, from: &mut impl Read, says: Option<u64>, budget: &mut Budget) -> Result<()> {
    let name = to.file_name().map(PathBuf::from).unwrap_or_default();
    budget.members = budget.members.checked_sub(1).ok_or_else(|| hostile(archive, &name, "is one member too many"))?;
    if let Some(parent) = to.parent() {
        make(parent)?;
    }
    let most = says.unwrap_or(budget.left).min(budget.left);
    let mut out = File::options().write(true).create_new(true).open(to).map_err(Error::io(to))?;
    let mut limited = from.take(most + 1);
    let mut buffer = vec![0; 1 << 16];
    let mut written = 0;
    loop {
        let count = limited.read(&mut buffer).map_err(|e| Error::bad(archive, format!("damaged archive: {e}")))?;
        if count == 0 {
            break;
        }
        written += count as u64;
        if written > most {
            return Err(hostile(archive, &name, "grows past the size that it may have"));
        }
        std::io::Write::write_all(&mut out, &buffer[..count]).map_err(Error::io(to))?;
    }
    budget.left -= written;
    Ok(())
}

fn hostile(archive: &Path, name: &Path, what: &str) -> Error {
    Error::bad(archive, format!("is not unpacked: {} in it {what}", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn tar_of(dir: &Path, members: &[(&str, tar::EntryType, &[u8])]) -> anyhow::Result<PathBuf> {
        let path = dir.join("x.tar.gz");
        let mut builder = tar::Builder::new(GzEncoder::new(File::create(&path)?, Compression::fast()));
        for (name, kind, raw) in members {
            let mut header = tar::Header::new_ustar();
            // Names that the library itself would refuse to write.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(raw.len() as u64);
            header.set_mode(0o644);
            if !kind.is_file() {
                header.set_link_name("/etc/passwd")?;
            }
            header.set_cksum();
            builder.append(&header, *raw)?;
        }
        builder.into_inner()?.finish()?;
        Ok(path)
    }

    #[test]
    fn a_good_archive_is_unpacked_once() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = tar::EntryType::Regular;
        let path = tar_of(dir.path(), &[("./a/b.txt", file, b"hello"), ("c.txt", file, b"")])?;
        let target = unpack(&path, dir.path())?;
        assert_eq!(std::fs::read(target.join("a/b.txt"))?, b"hello");
        std::fs::remove_file(&path)?;
        assert_eq!(unpack(&path, dir.path())?, target, "what is there is not unpacked again");
        Ok(())
    }

    #[test]
    fn hostile_archives_are_refused_and_leave_nothing() -> anyhow::Result<()> {
        use tar::EntryType::{Fifo, Link, Regular, Symlink};
        let nothing: &[u8] = b"";
        for (members, word) in [
            (vec![("../x", Regular, &b"1"[..])], "leads out"),
            (vec![("a/../../x", Regular, &b"1"[..])], "leads out"),
            (vec![("/tmp/x", Regular, &b"1"[..])], "absolute"),
            (vec![("good", Regular, &b"1"[..]), ("x", Symlink, nothing)], "link"),
            (vec![("x", Link, nothing)], "link"),
            (vec![("x", Fifo, nothing)], "link or device"),
            (vec![("a\\..\\x", Regular, &b"1"[..])], "no plain path"),
        ] {
            let dir = tempfile::tempdir()?;
            let path = tar_of(dir.path(), &members)?;
            let text = unpack(&path, dir.path()).expect_err(word).to_string();
            assert!(text.contains(word) && text.contains("x.tar.gz"), "{word}: {text}");
            assert_eq!(std::fs::read_dir(dir.path())?.count(), 1, "{word}: something was left");
        }
        Ok(())
    }

    #[test]
    fn archives_that_grow_without_end_are_cut() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let zeros = vec![0; 200 << 20];
        let path = tar_of(dir.path(), &[("zeros", tar::EntryType::Regular, &zeros)])?;
        assert!(std::fs::metadata(&path)?.len() < 1 << 20);
        let text = unpack(&path, dir.path()).expect_err("a bomb").to_string();
        assert!(text.contains("grows"), "{text}");
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn zip_members_are_held_to_the_size_they_state() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path)?);
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.start_file("a/b.txt", options)?;
        writer.write_all(&[b'x'; 5000])?;
        writer.finish()?;
        let target = unpack(&path, dir.path())?;
        assert_eq!(std::fs::metadata(target.join("a/b.txt"))?.len(), 5000);
        std::fs::remove_dir_all(&target)?;
        // The same with a smaller size in both of its headers.
        let mut raw = std::fs::read(&path)?;
        let (from, to) = (5000_u32.to_le_bytes(), 100_u32.to_le_bytes());
        let places: Vec<usize> = (0..raw.len() - 3).filter(|&i| raw[i..i + 4] == from).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|i| raw[i..i + 4].copy_from_slice(&to));
        std::fs::write(&path, raw)?;
        assert!(unpack(&path, dir.path()).is_err());
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn hostile_zip_archives_are_refused_and_leave_nothing() -> anyhow::Result<()> {
        let options = zip::write::SimpleFileOptions::default();
        for (name, word) in [
            ("../x.png", "leads out"),
            ("a/../../x.png", "leads out"),
            ("/tmp/x.png", "absolute"),
            ("a\\..\\x.png", "no plain path"),
            ("c:x.png", "no plain path"),
            ("link.png", "link"),
        ] {
            let dir = tempfile::tempdir()?;
            let path = dir.path().join("x.zip");
            let mut writer = zip::ZipWriter::new(File::create(&path)?);
            // Names of one length, put in place of a harmless one: the library refuses to write some of them.
            let harmless = "y".repeat(name.len());
            if word == "link" {
                writer.add_symlink(&harmless, "/etc/passwd", options)?;
            } else {
                writer.start_file(&harmless, options)?;
                writer.write_all(b"1")?;
            }
            writer.finish()?;
            let mut raw = std::fs::read(&path)?;
            let places: Vec<usize> = (0..raw.len() - name.len()).filter(|&i| raw[i..].starts_with(harmless.as_bytes())).collect();
            assert_eq!(places.len(), 2, "{name}");
            places.into_iter().for_each(|i| raw[i..i + name.len()].copy_from_slice(name.as_bytes()));
            std::fs::write(&path, raw)?;
            let text = unpack(&path, dir.path()).expect_err(name).to_string();
            assert!(text.contains(word) && text.contains("x.zip"), "{name}: {text}");
            assert_eq!(std::fs::read_dir(dir.path())?.count(), 1, "{name}: something was left");
        }
        Ok(())
    }
}
