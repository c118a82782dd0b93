//! Downloads from a server on this machine that does to its clients what servers do.

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
