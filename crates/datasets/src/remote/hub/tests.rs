//! Names of repositories, and files from a hub on this machine.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use twinsight_test_support::server::{Answer, Request, Server};

use super::super::tables;
use super::*;

const ONLINE: Network = Network { offline: false, note: |_| {} };
const OFFLINE: Network = Network { offline: true, note: |_| {} };

fn commit() -> String {
    "1".repeat(40)
}

/// The repository `hf:a/b` of weights at `server`, with a cache below `dir`.
fn models(server: &Server, dir: &Path, network: Network, patience: Duration) -> Result<Repository<Models>> {
    Repository::of(&setup(server, dir, patience), "hf:a/b", network, |client| client.model("a", "b"))
}

fn setup(server: &Server, dir: &Path, patience: Duration) -> Setup {
    Setup { endpoint: Some(server.address().into()), cache: Some(dir.join("cache")), patience }
}

fn json(value: &serde_json::Value) -> Answer {
    Answer { body: value.to_string().into_bytes(), ..Answer::status(200) }
}

/// A hub with one repository, that says it is at `commit` and holds `paths`, each as long as it is called.
fn that_says(commit: &'static str, paths: &'static [&'static str]) -> anyhow::Result<Server> {
    Server::start(move |request| {
        if request.target.contains("/tree/") {
            let file = |path: &&str| serde_json::json!({"type": "file", "oid": "0", "size": path.len(), "path": path});
            json(&paths.iter().map(file).collect())
        } else if request.target.starts_with("/api/") {
            json(&serde_json::json!({"id": "a/b", "sha": commit}))
        } else {
            sent(request, b"content")
        }
    })
}

/// A file of the commit.
fn sent(request: &Request, content: &[u8]) -> Answer {
    Answer::file(request, content).with("X-Repo-Commit", &commit()).with("ETag", "\"tag\"")
}

/// The files below a folder, without locks.
fn below(dir: &Path) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(dir).map(|all| all.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    let inside: Vec<PathBuf> = inside;
    let folders = inside.iter().filter(|p| p.is_dir() && !p.ends_with(".locks")).flat_map(|p| below(p));
    inside.iter().filter(|p| !p.is_dir()).cloned().chain(folders).collect()
}

#[test]
fn what_a_hub_calls_a_commit_and_a_file_is_not_believed_as_a_path() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for told in ["../../../x", "", "1111", "/x", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"] {
        let server = that_says(told, &[])?;
        let failed = models(&server, dir.path(), ONLINE, PATIENCE)?.files(None).err().context("it was believed")?.to_string();
        ensure!(failed.contains("40 hexadecimal digits") && failed.contains("hf:a/b"), "{told}: {failed}");
    }
    let server = that_says("1111111111111111111111111111111111111111", &["/data/train-00000-of-00001.parquet"])?;
    for path in ["../../x.parquet", "/x.parquet", "a//x.parquet", "./x.parquet", r"a\x.parquet", "c:x.parquet", "x\0.parquet", ""]
    {
        for network in [ONLINE, OFFLINE] {
            let failed = models(&server, dir.path(), network, PATIENCE)?.get(path, Some(&commit()), None);
            let failed = failed.err().context("it was asked for")?.to_string();
            ensure!(failed.contains("does not lie below the repository"), "{path}: {failed}");
        }
    }
    ensure!(server.asked().is_empty(), "it was asked");
    // As a table of a data set.
    let id = HubId::parse("hf:a/b")?;
    let hub = Repository::of(&setup(&server, dir.path(), PATIENCE), "hf:a/b", ONLINE, |client| client.dataset("a", "b"))?;
    let failed = tables::fetch_from(&hub, &id, &dir.path().join("own")).err().context("it was fetched")?.to_string();
    ensure!(failed.contains("`/data/train-00000-of-00001.parquet`, which does not lie below"), "{failed}");
    let other: Vec<PathBuf> = below(dir.path()).into_iter().filter(|p| !p.starts_with(dir.path().join("own/hub"))).collect();
    ensure!(other.is_empty(), "{other:?}");
    Ok(())
}

#[test]
fn an_error_s_page_does_not_stay_in_the_place_of_a_file() -> anyhow::Result<()> {
    // Answers 503 are asked again by the client, five times.
    for (bad, status) in [(6, 503), (1, 403), (usize::MAX, 403)] {
        let dir = tempfile::tempdir()?;
        let gets = AtomicUsize::new(0);
        let server = Server::start(move |request| {
            if request.method == "GET" && gets.fetch_add(1, Ordering::SeqCst) < bad {
                return Answer { body: b"come again later".to_vec(), ..Answer::status(status) };
            }
            sent(request, b"content")
        })?;
        let hub = models(&server, dir.path(), ONLINE, PATIENCE)?;
        let got = hub.get("x/model.bin", Some(&commit()), Some(7));
        if bad == usize::MAX {
            let failed = got.err().context("it was taken")?.to_string();
            ensure!(
                failed.contains("sent as x/model.bin has 16 bytes where the hub told 7") && failed.contains("blobs"),
                "{failed}"
            );
            ensure!(below(dir.path()).is_empty(), "{:?}", below(dir.path()));
        } else {
            let path = got?.context("no file")?;
            ensure!(std::fs::read(&path)? == b"content", "{status}");
            hub.remember(None, &commit(), "x/model.bin", &path)?;
            server.asked();
            let offline = models(&server, dir.path(), OFFLINE, PATIENCE)?;
            ensure!(offline.get("x/model.bin", None, None)?.as_ref() == Some(&path) && server.asked().is_empty());
            // A file that another program left, offline and online.
            std::fs::write(&path, "short")?;
            let failed = offline.get("x/model.bin", None, Some(7)).err().context("another length")?.to_string();
            ensure!(failed.contains("has 5 bytes where the hub told 7"), "{failed}");
            let path = hub.get("x/model.bin", Some(&commit()), Some(7))?.context("no file")?;
            ensure!(std::fs::read(path)? == b"content");
        }
    }
    Ok(())
}

#[test]
fn content_is_what_its_sha_256_says() -> anyhow::Result<()> {
    // Of "content", as large files' copies are called; and of something else.
    let right = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    for (bad, tag) in [(0, right), (1, right), (usize::MAX, right), (0, "tag")] {
        let dir = tempfile::tempdir()?;
        let gets = AtomicUsize::new(0);
        let server = Server::start(move |request| {
            let broken = request.method == "GET" && gets.fetch_add(1, Ordering::SeqCst) < bad;
            let content = if broken { b"c0ntent" } else { b"content" };
            Answer::file(request, content).with("X-Repo-Commit", &commit()).with("ETag", &format!("\"{tag}\""))
        })?;
        let hub = models(&server, dir.path(), ONLINE, PATIENCE)?;
        let got = hub.get("model.bin", Some(&commit()), Some(7));
        if bad == usize::MAX {
            let failed = got.err().context("it was taken")?.to_string();
            ensure!(failed.contains("sent as model.bin has the SHA-256") && failed.contains(right), "{failed}");
            ensure!(below(dir.path()).is_empty(), "{:?}", below(dir.path()));
        } else {
            ensure!(std::fs::read(got?.context("no file")?)? == b"content", "{bad} {tag}");
            let asked = server.asked().into_iter().filter(|request| request.method == "GET").count();
            ensure!(asked == bad + 1, "{asked} requests where {bad} were answered wrongly");
        }
    }
    Ok(())
}

#[test]
fn a_hub_that_is_silent_or_out_of_order_is_left() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(20));
        Answer::status(404)
    })?;
    let start = Instant::now();
    let hub = models(&server, dir.path(), ONLINE, Duration::from_millis(200))?;
    let failed = hub.get("config.json", None, None).err().context("it waits")?.to_string();
    ensure!(failed.contains("config.json: nothing came of the hub for 0.2 seconds") && failed.contains("--offline"), "{failed}");
    ensure!(hub.files(None)?.is_none());
    ensure!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let server = Server::start(|_| Answer::status(501))?;
    let hub = models(&server, dir.path(), ONLINE, PATIENCE)?;
    ensure!(hub.files(None)?.is_none());
    let failed = hub.get("config.json", None, None).err().context("no answer")?.to_string();
    ensure!(failed.contains("501") && failed.contains("--offline"), "{failed}");
    Ok(())
}

#[test]
fn names_are_taken_apart() -> anyhow::Result<()> {
    let id = |text: &str| -> anyhow::Result<[Option<String>; 5]> {
        let HubId { owner, name, revision, config, split } = HubId::parse(text)?;
        Ok([Some(owner), Some(name), revision, config, split])
    };
    let parts = |words: [&str; 5]| words.map(|w| Some(w.to_string()).filter(|w| !w.is_empty()));
    for (text, words) in [
        ("hf:a/b", ["a", "b", "", "", ""]),
        ("hf:a/b.c-d_e@v1.0", ["a", "b.c-d_e", "v1.0", "", ""]),
        ("hf:a/b:small", ["a", "b", "", "small", ""]),
        ("hf:a/b/test", ["a", "b", "", "", "test"]),
        ("hf:a/b@v1:small/test", ["a", "b", "v1", "small", "test"]),
        ("hf:a/b@refs/convert/parquet:small/test", ["a", "b", "refs/convert/parquet", "small", "test"]),
        ("hf:a/b@refs/pr/3/test", ["a", "b", "refs/pr/3", "", "test"]),
        ("hf:a/b@feature%2Fx:y", ["a", "b", "feature/x", "y", ""]),
    ] {
        assert_eq!(id(text)?, parts(words), "{text}");
    }
    for text in [
        "hf:",
        "hf:a",
        "hf:/b",
        "hf:a/",
        "hf:a b/c",
        "hf:../c",
        "hf:a/..",
        "hf:a/b@",
        "hf:a/b@..%2Fx",
        "hf:a/b@x%2F%2Fy",
        "hf:a/b:",
        "hf:a/b/",
        "hf:a/b/c/d",
        "hf://datasets/a/b",
        "a/b",
    ] {
        let told = HubId::parse(text).expect_err(text).to_string();
        assert!(told.contains("expected hf:owner/name") && told.contains(text), "{told}");
    }
    Ok(())
}
