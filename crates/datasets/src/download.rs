//! Downloads: HTTPS, resumed where they broke off, checked, and renamed only when right.
//!
//! A file grows under `NAME.partial` in the data set's folder of the cache. When a connection is cut the next try asks for the
//! rest by a `Range` header; a server that sends the whole file instead is understood. The checksum is computed over the
//! finished file; a wrong one removes it, and the next mirror is tried. Plain HTTP is refused except to this machine. One process at
//! a time downloads into a folder: others wait for it, and find its files. Proxies are those of the environment (`HTTPS_PROXY`, `ALL_PROXY`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::Md5;
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::{Checksum, DatasetSpec, Error, Layout, RemoteFile, Result, unpack};

/// Is told how a download goes.
pub trait Progress {
    /// A file begins, of `total` bytes where the server says, of which `already` are there.
    fn start(&mut self, file: &str, total: Option<u64>, already: u64);
    /// So many more bytes are there.
    fn advance(&mut self, bytes: u64);
    /// Something worth saying: a mirror that failed, say.
    fn note(&mut self, text: &str);
}

/// Takes no notice.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _: &str, _: Option<u64>, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn note(&mut self, _: &str) {}
}

/// Tries of a mirror in a row that bring nothing, and the wait after the first, which doubles.
const TRIES: u32 = 4;
#[cfg(not(test))]
const FIRST_WAIT: Duration = Duration::from_millis(500);
#[cfg(test)]
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// How long a server may take to answer, and to send anything more. What came is kept, and the next try goes on from it.
#[cfg(not(test))]
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(30));
#[cfg(test)]
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(1));

/// Downloads all files of `spec` into `dir/NAME/`; those that are there already are checked and kept. An archive of a folder of images
/// is unpacked.
///
/// # Errors
/// A data set that is built in, addresses that can't be reached, contents with another checksum, a full disk.
pub fn fetch(spec: &DatasetSpec, dir: &Path, progress: &mut dyn Progress) -> Result<Vec<PathBuf>> {
    if spec.files.is_empty() {
        return Err(Error::NotFound(format!("{}: is built into the program; there is nothing to download", spec.name)));
    }
    let folder = dir.join(spec.folder());
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let files = spec.files.iter().map(|file| fetch_file(file, &folder, progress)).collect::<Result<Vec<_>>>()?;
    if let (Layout::Folder(_), [archive]) = (spec.layout, &files[..]) {
        progress.note(&format!("{}: unpacking", archive.display()));
        unpack(archive, &folder)?;
    }
    Ok(files)
}

/// The files of `spec` in `dir/NAME/` where all of them are there and right, without reaching for the network.
///
/// # Errors
/// A data set that is built in, a file that is missing or has another checksum.
pub fn present(spec: &DatasetSpec, dir: &Path) -> Result<Vec<PathBuf>> {
    if spec.files.is_empty() {
        return Err(Error::NotFound(format!("{}: is built into the program; there is nothing to download", spec.name)));
    }
    let folder = dir.join(spec.folder());
    let check = |file: &RemoteFile| {
        let path = folder.join(file.name);
        match path.exists() && matches(&path, file.checksum)? {
            true => Ok(path),
            false => {
                Err(Error::NotFound(format!("{}: is missing or damaged, and --offline forbids to download it", path.display())))
            }
        }
    };
    spec.files.iter().map(check).collect()
}

/// Downloads one file into `folder`.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_file(file: &RemoteFile, folder: &Path, progress: &mut dyn Progress) -> Result<PathBuf> {
    let path = folder.join(file.name);
    // Held until this returns.
    let _lock = lock(folder, file.name, progress)?;
    if path.exists() {
        if matches(&path, file.checksum)? {
            return Ok(path);
        }
        progress.note(&format!("{}: has another checksum than expected and is downloaded again", path.display()));
    }
    let mut last = None;
    for url in file.urls {
        match from_mirror(url, file, &path, progress) {
            Ok(()) => return Ok(path),
            Err(e @ Error::Io { .. }) => return Err(e),
            Err(e) => {
                progress.note(&e.to_string());
                last = Some(e);
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::BadSetting(format!("{}: no address to download it from", file.name))))
}

/// Takes a folder of the cache for this process; waits for one that downloads into it.
fn lock(folder: &Path, name: &str, progress: &mut dyn Progress) -> Result<File> {
    let text = || format!("{name}: another process downloads into {}; waiting for it", folder.display());
    crate::lock::lock(folder, || progress.note(&text()))
}

/// A client for `url`: no redirect leads it from https to plain http, and no proxy stands between this machine and itself.
fn client(url: &str) -> Agent {
    let secure = url.starts_with("https://");
    let config = Agent::config_builder()
        .https_only(secure)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(PATIENCE.0))
        .timeout_per_read(Some(PATIENCE.1))
        .http_status_as_error(false);
    if secure { config.build().into() } else { config.proxy(None).build().into() }
}

fn from_mirror(url: &str, file: &RemoteFile, path: &Path, progress: &mut dyn Progress) -> Result<()> {
    let fail = |reason: String| Error::Download { url: url.to_string(), reason };
    if !is_allowed(url) {
        return Err(fail("only https addresses are used".into()));
    }
    let partial = path.with_file_name(format!("{}.partial", file.name));
    let agent = client(url);
    let (mut wait, mut failures, mut restarted) = (FIRST_WAIT, 0, false);
    // A server that begins anew each time gets nowhere, however much it sends.
    let mut longest = size(&partial);
    loop {
        let before = size(&partial);
        match transfer(&agent, url, &partial, file, progress) {
            Ok(()) => {
                if matches(&partial, file.checksum)? {
                    return std::fs::rename(&partial, path).map_err(Error::io(path));
                }
                std::fs::remove_file(&partial).map_err(Error::io(&partial))?;
                if before > 0 && !restarted {
                    restarted = true;
                    // What an earlier try had left may have been the wrong part; once more from the beginning.
                    progress
                        .note(&format!("{}: what an earlier try had left does not fit; once more from the beginning", file.name));
                    continue;
                }
                return Err(fail(format!("{} has another checksum than expected; what came was removed", file.name)));
            }
            Err(Trouble::Disk(e)) => return Err(e),
            Err(Trouble::Final(reason)) => return Err(fail(reason)),
            Err(Trouble::Cut(reason)) => {
                if size(&partial) > longest {
                    (wait, failures, longest) = (FIRST_WAIT, 0, size(&partial));
                }
                failures += 1;
                if failures == TRIES {
                    return Err(fail(format!("{reason}, {TRIES} times in a row; what came so far is kept, try again later")));
                }
                progress.note(&format!("{url}: {reason}; trying again"));
                std::thread::sleep(wait);
                wait *= 2;
            }
        }
    }
}

/// The size of a file, 0 where there is none.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

enum Trouble {
    /// Another try may help.
    Cut(String),
    /// Another try will not.
    Final(String),
    Disk(Error),
}

fn transfer(
    agent: &Agent,
    url: &str,
    partial: &Path,
    file: &RemoteFile,
    progress: &mut dyn Progress,
) -> std::result::Result<(), Trouble> {
    let disk = |e: std::io::Error| Trouble::Disk(Error::io(partial)(e));
    let already = size(partial);
    let mut request = agent.get(url);
    if already > 0 {
        request = request.header("Range", format!("bytes={already}-"));
    }
    let mut response = request.call().map_err(|e| Trouble::Cut(e.to_string()))?;
    let status = response.status().as_u16();
    let length = response.headers().get("content-length").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let begins_at = response
        .headers()
        .get("content-range")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    let (append, already) = match status {
        200 => (false, 0),
        206 if begins_at == Some(already) => (true, already),
        206 => return Err(Trouble::Final(format!("the server sent another part than bytes {already} and on"))),
        // Nothing is left to send: the file is whole, or longer than it should be, which the checksum tells.
        416 => return Ok(()),
        429 | 500..=599 => return Err(Trouble::Cut(format!("the server answered {status}"))),
        _ => return Err(Trouble::Final(format!("the server answered {status}"))),
    };
    progress.start(file.name, length.map(|l| l + already), already);
    let mut out: File =
        OpenOptions::new().create(true).write(true).append(append).truncate(!append).open(partial).map_err(disk)?;
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0;
    loop {
        let count = body.read(&mut buffer).map_err(|e| Trouble::Cut(format!("the connection was cut ({e})")))?;
        if count == 0 {
            break;
        }
        received += count as u64;
        if already + received > file.size.most() {
            let may = if file.size.exact().is_some() { "has" } else { "can have" };
            return Err(Trouble::Final(format!("the server sends more than the {} bytes that the file {may}", file.size.most())));
        }
        out.write_all(&buffer[..count]).map_err(disk)?;
        progress.advance(count as u64);
    }
    out.sync_all().map_err(disk)?;
    // What the server announced, or else what is known of the file.
    match length.or(file.size.exact().map(|size| size.saturating_sub(already))) {
        Some(length) if received < length => {
            Err(Trouble::Cut(format!("the connection was cut after {received} of {length} bytes")))
        }
        _ => Ok(()),
    }
}

fn matches(path: &Path, checksum: Checksum) -> Result<bool> {
    fn of<D: Digest + Write>(path: &Path) -> Result<String> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut hash = D::new();
        std::io::copy(&mut file, &mut hash).map_err(Error::io(path))?;
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
    Ok(match checksum {
        Checksum::Sha256(expected) => of::<Sha256>(path)? == expected,
        Checksum::Md5(expected) => of::<Md5>(path)? == expected,
    })
}

/// HTTPS, or HTTP to this machine (tests).
fn is_allowed(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://127.0.0.1:") || url.starts_with("http://[::1]:")
}

#[cfg(test)]
mod tests;
