//! Downloads: HTTPS, resumed where they broke off, checked, and renamed only when right.
//!
//! A file grows under `NAME.partial` in the data set's folder of the cache. When a connection is cut the next try asks for the
//! rest by a `Range` header; a server that sends the whole file instead is understood. The checksum is computed over the
//! finished file; a wrong one removes it, and the next mirror is tried. Plain HTTP is refused except to this machine. One process at
//! a time downloads into a folder: others wait for it, and find its files. Proxies are those of the environment (`HTTPS_PROXY`, `ALL_PROXY`).

use std::fs::{File, OpenOptions, TryLockError};
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
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.note(&format!("{name}: another process downloads into {}; waiting for it", folder.display()));
            file.lock().map_err(Error::io(&path))?;
        }
        // A file system without locks: go on without.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(file)
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
mod tests {
    use super::*;
    use crate::{Size, SplitSizes};
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// What the server does with one request after the other; the last is repeated.
    #[derive(Clone, Copy)]
    enum Act {
        Whole,
        /// Announces everything, sends so many bytes, hangs up.
        Cut(usize),
        /// Sends everything whatever range was asked for.
        IgnoreRange,
        NotFound,
        Busy,
        /// Announces everything, sends so many bytes, and then nothing more for a minute.
        Stall(usize),
        /// Sends so many bytes whatever range was asked for, and hangs up: announces everything, or nothing.
        Anew(usize, bool),
    }

    /// A server on this machine that serves `content`; returns its address and the ranges it was asked for.
    fn serve(content: Vec<u8>, acts: Vec<Act>) -> (&'static str, Arc<Mutex<Vec<Option<usize>>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let Ok(mut stream) = stream else { return };
                let mut range = None;
                let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
                while let Some(Ok(line)) = lines.next() {
                    if let Some(rest) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                        range = rest.trim_end_matches('-').parse::<usize>().ok();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                log.lock().expect("unpoisoned").push(range);
                let act = acts[i.min(acts.len() - 1)];
                let from = match act {
                    Act::IgnoreRange | Act::Anew(..) => 0,
                    _ => range.unwrap_or(0),
                };
                let (status, body) = match act {
                    Act::NotFound => ("404 Not Found", Vec::new()),
                    _ if from > content.len() => ("416 Range Not Satisfiable", Vec::new()),
                    Act::Busy => ("503 Service Unavailable", Vec::new()),
                    _ if from > 0 => ("206 Partial Content", content[from..].to_vec()),
                    _ => ("200 OK", content.clone()),
                };
                let place = format!("Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
                let place = if from > 0 { place.as_str() } else { "" };
                let length = format!("Content-Length: {}\r\n", body.len());
                let length = if matches!(act, Act::Anew(_, false)) { "" } else { length.as_str() };
                let head = format!("HTTP/1.1 {status}\r\n{length}{place}Connection: close\r\n\r\n");
                let sent = match act {
                    Act::Cut(n) | Act::Stall(n) | Act::Anew(n, _) => &body[..n.min(body.len())],
                    _ => &body[..],
                };
                // A client that hung up first is part of some tests.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
                if matches!(act, Act::Stall(_)) {
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_secs(60));
                        drop(stream);
                    });
                }
            }
        });
        (Box::leak(format!("http://{address}/file.bin").into_boxed_str()), asked)
    }

    /// Names of the files in a folder, the lock aside.
    fn files(folder: &Path) -> anyhow::Result<Vec<String>> {
        let names = std::fs::read_dir(folder)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<std::io::Result<_>>()?;
        Ok(names.into_iter().filter(|n| n != ".lock").collect())
    }

    fn content() -> Vec<u8> {
        (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn remote(urls: Vec<&'static str>, of: &[u8]) -> RemoteFile {
        let hash: String = Sha256::digest(of).iter().map(|b| format!("{b:02x}")).collect();
        RemoteFile {
            name: "file.bin",
            urls: Box::leak(urls.into_boxed_slice()),
            size: Size::AtMost(1 << 20),
            checksum: Checksum::Sha256(Box::leak(hash.into_boxed_str())),
        }
    }

    #[test]
    fn the_right_file_arrives_and_is_not_fetched_twice() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (url, asked) = serve(content(), vec![Act::Whole]);
        let file = remote(vec![url], &content());
        let path = fetch_file(&file, dir.path(), &mut Silent)?;
        assert_eq!(std::fs::read(&path)?, content());
        fetch_file(&file, dir.path(), &mut Silent)?;
        assert_eq!(asked.lock().expect("unpoisoned").len(), 1);
        Ok(())
    }

    #[test]
    fn a_wrong_checksum_leaves_nothing() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (url, _) = serve(b"something else".to_vec(), vec![Act::Whole]);
        let text = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent).expect_err("wrong content").to_string();
        assert!(text.contains("checksum") && text.contains(url), "{text}");
        assert_eq!(files(dir.path())?, [""; 0], "files were left");
        Ok(())
    }

    #[test]
    fn a_cut_connection_is_resumed_where_it_broke() -> anyhow::Result<()> {
        for (second, ranges) in [(Act::Whole, true), (Act::IgnoreRange, true)] {
            let dir = tempfile::tempdir()?;
            let (url, asked) = serve(content(), vec![Act::Cut(40_000), second]);
            let path = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent)?;
            assert_eq!(std::fs::read(&path)?, content());
            let asked = asked.lock().expect("unpoisoned").clone();
            assert_eq!(asked.len(), 2);
            assert!(ranges && asked[1].is_some_and(|from| from > 0 && from <= 40_000), "{asked:?}");
            assert_eq!(files(dir.path())?, ["file.bin"], "a partial file was left");
        }
        Ok(())
    }

    #[test]
    fn a_later_run_resumes_what_an_earlier_one_left() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("file.bin.partial"), &content()[..70_000])?;
        let (url, asked) = serve(content(), vec![Act::Whole]);
        let path = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent)?;
        assert_eq!(std::fs::read(&path)?, content());
        assert_eq!(*asked.lock().expect("unpoisoned"), [Some(70_000)]);
        Ok(())
    }

    #[test]
    fn a_missing_file_is_taken_from_the_next_mirror_and_a_busy_server_asked_again() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (gone, gone_asked) = serve(content(), vec![Act::NotFound]);
        let (busy, busy_asked) = serve(content(), vec![Act::Busy, Act::Busy, Act::Whole]);
        let path = fetch_file(&remote(vec![gone, busy], &content()), dir.path(), &mut Silent)?;
        assert_eq!(std::fs::read(&path)?, content());
        assert_eq!((gone_asked.lock().expect("unpoisoned").len(), busy_asked.lock().expect("unpoisoned").len()), (1, 3));
        Ok(())
    }

    #[test]
    fn a_wrong_part_of_an_earlier_run_is_thrown_away() -> anyhow::Result<()> {
        for left in [b"of another file".to_vec(), vec![1; 200_000]] {
            let dir = tempfile::tempdir()?;
            std::fs::write(dir.path().join("file.bin.partial"), &left)?;
            let (url, asked) = serve(content(), vec![Act::Whole]);
            let path = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent)?;
            assert_eq!(std::fs::read(&path)?, content());
            assert_eq!(*asked.lock().expect("unpoisoned"), [Some(left.len()), None]);
        }
        Ok(())
    }

    #[test]
    fn many_cuts_do_no_harm_while_something_comes() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut acts = vec![Act::Cut(12_000); 8];
        acts.push(Act::Whole);
        let (url, asked) = serve(content(), acts);
        let path = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent)?;
        assert_eq!((std::fs::read(&path)?, asked.lock().expect("unpoisoned").len()), (content(), 9));
        let dir = tempfile::tempdir()?;
        let (url, asked) = serve(content(), vec![Act::Busy]);
        let text = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent).expect_err("busy for ever").to_string();
        assert!(text.contains("503") && asked.lock().expect("unpoisoned").len() == TRIES as usize, "{text}");
        Ok(())
    }

    #[test]
    fn a_server_that_stalls_is_left_after_a_while_and_what_it_sent_is_kept() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (url, asked) = serve(content(), vec![Act::Stall(30_000), Act::Whole]);
        let start = std::time::Instant::now();
        let path = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent)?;
        assert_eq!(std::fs::read(&path)?, content());
        assert!(start.elapsed() < Duration::from_secs(30), "it was waited for");
        let asked = asked.lock().expect("unpoisoned").clone();
        assert!(asked.len() == 2 && asked[1].is_some_and(|from| from > 0 && from <= 30_000), "{asked:?}");
        Ok(())
    }

    #[test]
    fn a_server_that_sends_more_than_the_file_has_is_stopped() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (url, _) = serve(content(), vec![Act::Whole]);
        let file = RemoteFile { size: Size::Exact(50_000), ..remote(vec![url], &content()) };
        let text = fetch_file(&file, dir.path(), &mut Silent).expect_err("too much").to_string();
        assert!(text.contains("more than the 50000 bytes") && !dir.path().join("file.bin").exists(), "{text}");
        assert!(size(&dir.path().join("file.bin.partial")) <= 50_000);
        Ok(())
    }

    #[test]
    fn md5_is_a_checksum_too_and_present_tells_without_the_network() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x");
        std::fs::write(&path, b"hello")?;
        assert!(matches(&path, Checksum::Md5("5d41402abc4b2a76b9719d911017c592"))?);
        assert!(!matches(&path, Checksum::Md5("00000000000000000000000000000000"))?);
        let text = present(crate::dataset("cifar10")?, dir.path()).expect_err("nothing there").to_string();
        assert!(text.contains("cifar-10-binary.tar.gz"), "{text}");
        Ok(())
    }

    #[test]
    fn plain_http_elsewhere_is_refused() {
        let file = remote(vec!["http://example.org/file.bin"], b"x");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let text = fetch_file(&file, dir.path(), &mut Silent).expect_err("plain http").to_string();
        assert!(text.contains("https"), "{text}");
    }

    #[test]
    fn a_wrong_file_at_one_mirror_is_made_good_by_the_next() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (wrong, _) = serve(b"something else".to_vec(), vec![Act::Whole]);
        let (right, asked) = serve(content(), vec![Act::Whole]);
        let path = fetch_file(&remote(vec![wrong, right], &content()), dir.path(), &mut Silent)?;
        assert_eq!((std::fs::read(&path)?, files(dir.path())?), (content(), vec!["file.bin".to_string()]));
        assert_eq!(*asked.lock().expect("unpoisoned"), [None], "nothing of the wrong file is gone on from");
        Ok(())
    }

    #[test]
    fn a_server_that_begins_anew_and_breaks_off_each_time_is_left() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (url, asked) = serve(content(), vec![Act::Anew(40_000, true), Act::Anew(10_000, true), Act::Anew(39_000, true)]);
        let text = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent).expect_err("it never ends").to_string();
        assert!(text.contains("4 times in a row"), "{text}");
        // The first try got further than none; the next ones never further than it.
        assert_eq!(asked.lock().expect("unpoisoned").len(), 1 + TRIES as usize - 1);
        Ok(())
    }

    #[test]
    fn a_body_of_unknown_length_is_taken_to_its_end() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (url, _) = serve(content(), vec![Act::Anew(usize::MAX, false)]);
        let path = fetch_file(&remote(vec![url], &content()), dir.path(), &mut Silent)?;
        assert_eq!(std::fs::read(&path)?, content());
        // Where the file's size is known, an end before it is a cut.
        let dir = tempfile::tempdir()?;
        let (url, asked) = serve(content(), vec![Act::Anew(30_000, false), Act::Whole]);
        let file = RemoteFile { size: Size::Exact(100_000), ..remote(vec![url], &content()) };
        fetch_file(&file, dir.path(), &mut Silent)?;
        assert_eq!(*asked.lock().expect("unpoisoned"), [None, Some(30_000)]);
        Ok(())
    }

    #[test]
    fn a_second_process_waits_and_finds_the_file() -> anyhow::Result<()> {
        struct Notes(Vec<String>);
        impl Progress for Notes {
            fn start(&mut self, _: &str, _: Option<u64>, _: u64) {}
            fn advance(&mut self, _: u64) {}
            fn note(&mut self, text: &str) {
                self.0.push(text.to_string());
            }
        }
        let dir = tempfile::tempdir()?;
        let held = lock(dir.path(), "x", &mut Silent)?;
        let (url, asked) = serve(content(), vec![Act::Whole]);
        let file = remote(vec![url], &content());
        let notes = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut notes = Notes(Vec::new());
                fetch_file(&file, dir.path(), &mut notes).map(|_| notes.0)
            });
            std::thread::sleep(Duration::from_millis(200));
            std::fs::write(dir.path().join("file.bin"), content()).map_err(Error::io("x"))?;
            drop(held);
            waiting.join().expect("it does not panic")
        })?;
        assert!(notes.len() == 1 && notes[0].contains("waiting"), "{notes:?}");
        assert!(asked.lock().expect("unpoisoned").is_empty(), "the file was there");
        Ok(())
    }

    #[test]
    fn a_hostile_archive_is_fetched_and_not_unpacked() -> anyhow::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..8].copy_from_slice(b"../x.png");
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        tar.append(&header, &b"x"[..])?;
        let raw = tar.into_inner()?.finish()?;
        let (url, _) = serve(raw.clone(), vec![Act::Whole]);
        let files_of = Box::leak(Box::new([RemoteFile { name: "x.tar.gz", ..remote(vec![url], &raw) }]));
        let spec = DatasetSpec {
            name: "hostile",
            summary: "",
            licence: "",
            homepage: "",
            citation: "",
            classes: &[],
            splits: SplitSizes { train: 0, test: 0 },
            files: files_of,
            layout: Layout::Folder(""),
        };
        let dir = tempfile::tempdir()?;
        let text = fetch(&spec, dir.path(), &mut Silent).expect_err("it leads out").to_string();
        assert!(text.contains("leads out"), "{text}");
        assert_eq!(
            (files(dir.path())?, files(&dir.path().join("hostile"))?),
            (vec!["hostile".to_string()], vec!["x.tar.gz".to_string()])
        );
        Ok(())
    }
}
