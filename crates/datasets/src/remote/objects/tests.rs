//! Shards and tables from a web server on this machine.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use twinsight_test_support::server::{Answer, Request, Server};

use super::*;
use crate::{Dataset, OpenOptions, Opened, open};

const OFFLINE: Network = Network { offline: true, note: |_| {} };
const ONLINE: Network = Network { offline: false, note: |_| {} };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data").join(name)
}

fn opened(address: &str, cache: &Path, network: Network) -> Result<Opened> {
    open(address, &OpenOptions { cache: cache.into(), network, ..OpenOptions::default() })
}

/// A server of the fixtures' files; each has an entity tag made of its length.
fn of_fixtures() -> anyhow::Result<Server> {
    Server::start(|request| match std::fs::read(fixture(request.target.trim_start_matches('/'))) {
        Ok(content) => Answer::file(request, &content).with("ETag", &format!("\"{}\"", content.len())),
        Err(_) => Answer::status(404),
    })
}

fn of_method(asked: &[Request], method: &str) -> usize {
    asked.iter().filter(|r| r.method == method).count()
}

/// The pixels and labels of a data set.
fn contents(dataset: &dyn Dataset) -> anyhow::Result<Vec<(Vec<u8>, Option<u32>)>> {
    (0..dataset.len()).map(|i| Ok((dataset.get(i)?.image.into_bytes(), dataset.label(i)))).collect()
}

#[test]
fn shards_are_fetched_once_and_read_as_local_ones_are() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = of_fixtures()?;
    let address = format!("{}/webdataset/{{train-000000,train-000001,test-000000}}.tar", server.address());
    let local = open(fixture("webdataset").to_str().context("utf-8")?, &OpenOptions::default())?;
    for (network, gets, heads) in [(ONLINE, 3, 3), (ONLINE, 0, 3), (OFFLINE, 0, 0)] {
        let found = opened(&address, dir.path(), network)?;
        ensure!(contents(&*found.train)? == contents(&*local.train)?, "other training images");
        let (test, of_local) = (found.test.context("no test images")?, local.test.clone().context("none")?);
        ensure!(contents(&*test)? == contents(&*of_local)?, "other test images");
        ensure!((0..4).all(|i| found.train.id(i) == local.train.id(i)), "{} instead of {}", found.train.id(0), local.train.id(0));
        let asked = server.asked();
        ensure!((of_method(&asked, "GET"), of_method(&asked, "HEAD")) == (gets, heads), "{asked:?}");
    }
    // One by itself, and one that was never fetched.
    let one = opened(&format!("{}/webdataset/train-000000.tar", server.address()), dir.path(), OFFLINE)?;
    ensure!(one.train.len() == 2 && one.train.id(0) == "sample0000.png", "{}", one.train.id(0));
    let told = opened(&format!("{}/webdataset/train-{{000000..000002}}.tar", server.address()), dir.path(), OFFLINE);
    let told = told.err().context("offline")?.to_string();
    ensure!(told.contains("1 of its objects") && told.contains("train-000002.tar") && told.contains("offline"), "{told}");
    Ok(())
}

#[cfg(feature = "parquet")]
#[test]
fn tables_are_fetched_and_read() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = of_fixtures()?;
    let address = format!("{}/parquet/data/{{train,test}}-00000-of-00001.parquet", server.address());
    for network in [ONLINE, OFFLINE] {
        let found = opened(&address, dir.path(), network)?;
        let classes = found.train.classes().context("classes")?;
        ensure!(found.train.len() == 4 && classes[0] == "cat" && found.test.context("no test images")?.len() == 2);
    }
    Ok(())
}

#[test]
fn what_is_missing_closed_or_no_archive_is_told() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(|request| match request.target.as_str() {
        "/closed.tar" => Answer::status(403),
        "/text.tar" => Answer::file(request, b"no archive"),
        _ => Answer::status(404),
    })?;
    for (file, words) in [
        ("gone.tar", "gone.tar: is not there (404)"),
        ("closed.tar", "web servers are read without credentials"),
        ("text.tar", "no readable image"),
        ("folder/", "a web server can't be asked what it holds"),
    ] {
        let told = opened(&format!("{}/{file}", server.address()), dir.path(), ONLINE).err().context(file)?.to_string();
        ensure!(told.contains(words) && !told.contains('\n'), "{file}: {told}");
    }
    Ok(())
}

/// A server whose transfers of `/x.tar` break off after 1000 bytes, so many times; with an entity tag and parts or without.
fn that_cuts(times: usize, tag: bool, parts: bool) -> anyhow::Result<Server> {
    let content = std::fs::read(fixture("webdataset/train-000000.tar"))?;
    let left = AtomicUsize::new(times);
    Server::start(move |request| {
        let whole = Request { headers: [].into(), ..request.clone() };
        let mut answer = Answer::file(if parts { request } else { &whole }, &content);
        if request.method == "GET" && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            answer.cut = Some(1000);
        }
        if tag { answer.with("ETag", "\"one\"") } else { answer }
    })
}

#[test]
fn a_transfer_that_is_cut_goes_on_where_it_broke() -> anyhow::Result<()> {
    for (tag, parts, times) in [(true, true, 2), (false, true, 2), (false, false, 2), (false, false, 3)] {
        let dir = tempfile::tempdir()?;
        let server = that_cuts(times, tag, parts)?;
        let found = opened(&format!("{}/x.tar", server.address()), dir.path(), ONLINE)?;
        ensure!(found.train.len() == 2, "tag {tag}, parts {parts}: {} images", found.train.len());
        let ranges: Vec<Option<usize>> = server.asked().iter().filter(|r| r.method == "GET").map(Request::first_byte).collect();
        ensure!(ranges[0].is_none() && ranges[1].is_some_and(|from| from > 0 && from <= 1000), "tag {tag}: {ranges:?}");
        let files = std::fs::read_dir(dir.path().join("objects/http"))?.next().context("a store")??.path();
        let mut names: Vec<String> = std::fs::read_dir(files)?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?;
        names.sort_unstable();
        ensure!(names == [".lock", "x.tar", "x.tar.about"], "{names:?}");
    }
    Ok(())
}

#[test]
fn a_server_without_parts_that_always_breaks_off_is_told_as_such() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = that_cuts(usize::MAX, false, false)?;
    let told = opened(&format!("{}/x.tar", server.address()), dir.path(), ONLINE).err().context("it never ends")?.to_string();
    ensure!(told.contains("4 times in a row; the server gives no parts") && !told.contains("is kept"), "{told}");
    Ok(())
}

#[test]
fn a_server_that_is_silent_is_left() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(20));
        Answer::status(404)
    })?;
    let patience = Patience {
        silence: Duration::from_millis(200),
        retries: RetryConfig { max_retries: 1, ..RetryConfig::default() },
        ..Patience::default()
    };
    let start = std::time::Instant::now();
    let told = fetch_with(&patience, &format!("{}/x.tar", server.address()), dir.path(), ONLINE).err().context("it waits")?;
    ensure!(told.to_string().contains("x.tar: ") && told.to_string().contains("--offline takes what was fetched"), "{told}");
    ensure!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn time_outs_of_the_environment_come_first() {
    let names = ["AWS_TIMEOUT", "AWS_REGION", "AWS_CONNECT_TIMEOUT"].map(String::from);
    let settings = Patience::default().settings(&names, AmazonS3ConfigKey::Client);
    assert_eq!(settings, [(AmazonS3ConfigKey::Client(ClientConfigKey::ReadTimeout), "30000ms".into())]);
    assert_eq!(Patience::default().settings(&[], GoogleConfigKey::Client).len(), 3);
    assert_eq!(Patience::default().settings(&["AZURE_READ_TIMEOUT".into()], AzureConfigKey::Client).len(), 2);
}

#[test]
fn an_object_that_is_named_twice_is_not_fetched() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = of_fixtures()?;
    let told = opened(&format!("{}/webdataset/train-{{000000,000000}}.tar", server.address()), dir.path(), ONLINE);
    let told = told.err().context("twice")?.to_string();
    ensure!(told.contains("twice") && server.asked().is_empty(), "{told}");
    Ok(())
}

#[test]
fn an_object_that_changes_between_two_requests_is_told() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let content = std::fs::read(fixture("webdataset/train-000000.tar"))?;
    // Of the same size, without an entity tag.
    let server = Server::start(move |request| {
        let day = if request.method == "HEAD" { "Mon, 01 Jan 2024" } else { "Tue, 02 Jan 2024" };
        Answer::file(request, &content).with("Last-Modified", &format!("{day} 00:00:00 GMT"))
    })?;
    let told = opened(&format!("{}/x.tar", server.address()), dir.path(), ONLINE).err().context("it was taken")?.to_string();
    ensure!(told.contains("changed while it was fetched"), "{told}");
    Ok(())
}

#[test]
fn a_server_that_always_breaks_off_is_left_and_a_later_run_goes_on() -> anyhow::Result<()> {
    static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let noted = Network {
        offline: false,
        note: |text| {
            if let Ok(mut notes) = NOTES.lock() {
                notes.push(text.to_string());
            }
        },
    };
    let dir = tempfile::tempdir()?;
    let content = std::fs::read(fixture("webdataset/train-000000.tar"))?;
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let of_server = broken.clone();
    let server = Server::start(move |request| {
        let mut answer = Answer::file(request, &content);
        // The first transfer gets somewhere, the next ones nowhere.
        if request.method == "GET" && of_server.load(Ordering::SeqCst) {
            answer.cut = Some(if request.first_byte().is_some() { 0 } else { 1500 });
        }
        answer
    })?;
    let address = format!("{}/x.tar", server.address());
    let told = opened(&address, dir.path(), noted).err().context("it never ends")?.to_string();
    ensure!(told.contains("4 times in a row") && told.contains("try again later"), "{told}");
    let notes = NOTES.lock().map(|n| n.clone()).unwrap_or_default();
    ensure!(
        notes.iter().any(|n| n.contains("fetching 1 objects")) && notes.iter().any(|n| n.contains("going on from there")),
        "{notes:?}"
    );
    server.asked();
    broken.store(false, Ordering::SeqCst);
    ensure!(opened(&address, dir.path(), ONLINE)?.train.len() == 2);
    let ranges: Vec<Option<usize>> = server.asked().iter().filter(|r| r.method == "GET").map(Request::first_byte).collect();
    ensure!(ranges.len() == 1 && ranges[0].is_some_and(|from| from > 0 && from <= 1500), "{ranges:?}");
    Ok(())
}

#[test]
fn an_object_that_changed_is_fetched_again() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let files = ["train-000000.tar", "train-000001.tar"].map(|name| std::fs::read(fixture("webdataset").join(name)));
    let [first, second] = files;
    let (first, second) = (first?, second?);
    let now = std::sync::Arc::new(Mutex::new((first, "\"a\"")));
    let of_server = now.clone();
    let server = Server::start(move |request| match of_server.lock() {
        Ok(now) => Answer::file(request, &now.0).with("ETag", now.1),
        Err(_) => Answer::status(500),
    })?;
    let address = format!("{}/x.tar", server.address());
    let before = contents(&*opened(&address, dir.path(), ONLINE)?.train)?;
    *now.lock().map_err(|e| anyhow::anyhow!("{e}"))? = (second, "\"b\"");
    ensure!(contents(&*opened(&address, dir.path(), OFFLINE)?.train)? == before, "offline the old one serves");
    ensure!(contents(&*opened(&address, dir.path(), ONLINE)?.train)? != before, "the new one was not fetched");
    Ok(())
}
