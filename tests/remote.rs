//! Weights and images that lie elsewhere: a hub and an object store on this machine, through the program.

#![cfg(any(feature = "hub", feature = "object-store"))]

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::twinsight;
#[cfg(feature = "hub")]
use twinsight_test_support::server::Request;
use twinsight_test_support::server::{Answer, Server};

/// Nothing listens there.
#[cfg(feature = "hub")]
const NOWHERE: &str = "http://127.0.0.1:9";

#[cfg(any(feature = "object-store", feature = "parquet"))]
fn fixture(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data").join(name);
    std::fs::read(&path).with_context(|| path.display().to_string())
}

/// Runs the program with an environment of its own; returns its exit code, its last line as JSON and what it told.
fn ask(cache: &Path, settings: &[(&str, &str)], args: &[&str]) -> Result<(i32, serde_json::Value, String)> {
    let mut command = twinsight(cache);
    for key in [
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(key);
    }
    let done = command.args(args).arg("--json").env("HF_HOME", cache.join("hf")).envs(settings.iter().copied()).output()?;
    let (code, told) = (done.status.code().context("killed")?, String::from_utf8(done.stderr)?);
    let last = String::from_utf8(done.stdout)?;
    let line = last.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    Ok((code, line, told))
}

/// The same, which must succeed.
fn done(cache: &Path, settings: &[(&str, &str)], args: &[&str]) -> Result<serde_json::Value> {
    let (code, line, told) = ask(cache, settings, args)?;
    ensure!(code == 0, "exit code {code} of {args:?}: {told}");
    Ok(line)
}

#[cfg(feature = "hub")]
mod hub {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    #[cfg(feature = "parquet")]
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Files by kind, repository, commit (a digit) and path: `datasets/someone/pictures/1/data/train-00000-of-00001.parquet`.
    type Files = BTreeMap<String, Vec<u8>>;

    /// Answers as the hub does. Repositories of `closed` want a token.
    fn serve(files: Files) -> Result<Server> {
        Server::start(move |request| answered(&files, request))
    }

    fn answered(files: &Files, request: &Request) -> Answer {
        answer(files, request).unwrap_or_else(|| Answer::status(404).with("X-Error-Code", "EntryNotFound"))
    }

    fn answer(files: &Files, request: &Request) -> Option<Answer> {
        let target = request.target.split('?').next()?;
        let token = request.headers.get("authorization").map(String::as_str);
        if target.contains("/closed/") && token != Some("Bearer secret") {
            return Some(Answer::status(401));
        }
        if let Some(asked) = target.strip_prefix("/api/") {
            let parts: Vec<&str> = asked.split('/').collect();
            let repository = parts.get(..3)?.join("/");
            files.keys().find(|f| f.starts_with(&format!("{repository}/")))?;
            let json = match parts.get(3..)? {
                [] => serde_json::json!({"id": parts[1..3].join("/"), "sha": "1".repeat(40)}),
                ["revision", name] => serde_json::json!({"id": parts[1..3].join("/"), "sha": commit(name)?.repeat(40)}),
                ["tree", name] => {
                    let begin = format!("{repository}/{}/", commit(name)?);
                    let inside = files.iter().filter_map(|(file, content)| Some((file.strip_prefix(&begin)?, content.len())));
                    let list =
                        inside.map(|(path, size)| serde_json::json!({"type": "file", "oid": "0", "size": size, "path": path}));
                    serde_json::Value::Array(list.collect())
                }
                _ => return None,
            };
            return Some(Answer { body: json.to_string().into_bytes(), ..Answer::status(200) });
        }
        let (repository, file) = target.trim_start_matches('/').split_once("/resolve/")?;
        let repository =
            if repository.starts_with("datasets/") { repository.to_string() } else { format!("models/{repository}") };
        let (name, path) = file.split_once('/')?;
        let commit = commit(name)?;
        let content = files.get(&format!("{repository}/{commit}/{path}"));
        let answer =
            content.map_or_else(|| Answer::status(404).with("X-Error-Code", "EntryNotFound"), |c| Answer::file(request, c));
        let tag = format!("\"{}-{}\"", path.replace('/', "-"), content.map_or(0, Vec::len));
        Some(answer.with("X-Repo-Commit", &commit.repeat(40)).with("ETag", &tag))
    }

    /// The digit that the hash of a revision's commit is made of.
    fn commit(revision: &str) -> Option<&'static str> {
        match revision {
            "main" => Some("1"),
            "refs%2Fconvert%2Fparquet" => Some("2"),
            r if r == "1".repeat(40) => Some("1"),
            r if r == "2".repeat(40) => Some("2"),
            _ => None,
        }
    }

    /// An encoder, as a folder of timm's files.
    fn exported(cache: &Path) -> Result<PathBuf> {
        common::write_images(&cache.join("pictures"), 16, 40, 40)?;
        let train = ["train", "--data", "pictures", "--encoder", "vit_mini", "--out", "own", "--epochs", "1", "--batch", "8"];
        done(cache, &[], &[&train[..], &["--image-size", "32", "--on-collapse", "warn"]].concat())?;
        done(cache, &[], &["export", "own", "--format", "timm", "--out", "timm"])?;
        Ok(cache.join("timm"))
    }

    /// A safetensors file cut into two, and their index.
    fn cut(whole: &[u8]) -> Result<[Vec<u8>; 3]> {
        let file = safetensors::SafeTensors::deserialize(whole)?;
        let tensors: Vec<_> = file.iter().collect();
        let (one, two) = tensors.split_at(tensors.len() / 2);
        let names = |part: &[(&str, _)], file: &str| part.iter().map(|(n, _)| (n.to_string(), file.into())).collect::<Vec<_>>();
        let map: serde_json::Map<String, serde_json::Value> =
            [names(one, "one.safetensors"), names(two, "two.safetensors")].concat().into_iter().collect();
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string().into_bytes();
        Ok([safetensors::serialize(one.to_vec(), None)?, safetensors::serialize(two.to_vec(), None)?, index])
    }

    /// A file of PyTorch's that runs a program where it is believed.
    fn malicious() -> Result<Vec<u8>> {
        use std::io::Write;
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let plain = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("m/data.pkl", plain)?;
        zip.write_all(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.")?;
        Ok(zip.finish()?.into_inner())
    }

    #[test]
    fn weights_are_fetched_once_and_used_wherever_weights_are() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = dir.path();
        let timm = exported(cache)?;
        let (weights, config) = (std::fs::read(timm.join("model.safetensors"))?, std::fs::read(timm.join("config.json"))?);
        let [one, two, index] = cut(&weights)?;
        let outside = br#"{"weight_map":{"a":"../../../secret.safetensors"}}"#.to_vec();
        let gap = br#"{"weight_map":{"a":"three.safetensors"}}"#.to_vec();
        let mut files = Files::new();
        let mut add = |repository: &str, file: &str, content: &[u8]| {
            files.insert(format!("models/{repository}/1/{file}"), content.to_vec())
        };
        add("someone/single", "model.safetensors", &weights);
        for (repository, list) in [
            (
                "someone/sharded",
                &[("one.safetensors", &one), ("two.safetensors", &two), ("model.safetensors.index.json", &index)][..],
            ),
            ("closed/one", &[("model.safetensors", &weights)]),
            ("someone/outside", &[("model.safetensors.index.json", &outside)]),
            ("someone/gap", &[("model.safetensors.index.json", &gap)]),
            ("someone/pickle", &[("pytorch_model.bin", &malicious()?)]),
            ("someone/single", &[]),
            ("someone/empty", &[]),
        ] {
            list.iter().for_each(|(file, content)| drop(add(repository, file, content)));
            add(repository, "config.json", &config);
        }
        let server = serve(files)?;
        let hub = [("HF_ENDPOINT", server.address())];
        let import = |name: &'static str, more: &[&'static str]| -> Vec<&'static str> {
            [&["import", name, "--encoder", "vit_mini"], more].concat()
        };
        // Nothing is asked offline, and nothing is there.
        let (code, _, told) = ask(cache, &hub, &import("hf:someone/single", &["--offline"]))?;
        ensure!(code == 2 && told.contains("nothing is fetched offline") && server.asked().is_empty(), "{code}: {told}");
        done(cache, &hub, &import("hf:someone/single", &["--out", "one.safetensors"]))?;
        let sent = |r: &Request| r.method == "GET" && r.target.contains("/resolve/");
        let gets = server.asked().iter().filter(|r| sent(r)).count();
        ensure!(gets == 2, "config.json and model.safetensors are two files, but {gets} were sent");
        done(cache, &hub, &import("hf:someone/single@main", &["--out", "again.safetensors"]))?;
        ensure!(!server.asked().iter().any(sent), "the cache was not used");
        done(cache, &hub, &import("hf:someone/sharded", &["--out", "sharded.safetensors"]))?;
        // Without any hub, by the option and by the environment.
        let nowhere = [("HF_ENDPOINT", NOWHERE)];
        done(cache, &nowhere, &import("hf:someone/sharded", &["--out", "two.safetensors", "--offline"]))?;
        let by_environment = [("HF_ENDPOINT", NOWHERE), ("HF_HUB_OFFLINE", "1")];
        let info = done(cache, &by_environment, &["info", "hf:someone/single"])?;
        ensure!(info["encoder"] == "vit_mini", "{info}");
        let first = std::fs::read(cache.join("one.safetensors"))?;
        for other in ["again", "sharded", "two"] {
            ensure!(std::fs::read(cache.join(format!("{other}.safetensors")))? == first, "{other}");
        }
        let train =
            ["train", "--init", "hf:someone/single", "--offline", "--out", "further", "--data", "pictures", "--epochs", "1"];
        done(cache, &nowhere, &[&train[..], &["--batch", "8", "--image-size", "32", "--on-collapse", "warn"]].concat())?;
        // The run's configuration goes on to mean the commit that it began from.
        let written = std::fs::read_to_string(cache.join("further/config.toml"))?;
        let pinned = format!("init = \"hf:someone/single@{}\"", "1".repeat(40));
        ensure!(written.contains(&pinned), "{written}");
        done(cache, &nowhere, &["embed", "hf:someone/single", "--offline", "--data", "pictures", "--out", "v.npy"])?;
        // A token opens what is closed.
        let (code, _, told) = ask(cache, &hub, &import("hf:closed/one", &["--out", "no.safetensors"]))?;
        ensure!(code == 2 && told.contains("HF_TOKEN"), "{code}: {told}");
        let opened = [("HF_ENDPOINT", server.address()), ("HF_TOKEN", "secret")];
        done(cache, &opened, &import("hf:closed/one", &["--out", "closed.safetensors"]))?;
        for (name, words) in [
            ("hf:someone", "expected hf:owner/name"),
            ("hf:someone/single:small", "no configurations"),
            ("hf:someone/empty", "holds none of model.safetensors"),
            ("hf:someone/else", "Repository not found"),
            ("hf:someone/single@v9", "v9"),
            ("hf:someone/outside", "`../../../secret.safetensors`; the files of an index must lie beside it"),
            ("hf:someone/gap", "`three.safetensors`, which is not there"),
            ("hf:someone/pickle", "`os.system`"),
            ("https://h/x.safetensors", "hf:owner/name"),
        ] {
            server.asked();
            let (code, _, told) = ask(cache, &hub, &import(name, &["--out", "no.safetensors"]))?;
            let errors: Vec<&str> = told.lines().filter(|l| l.starts_with("twinsight: ")).collect();
            ensure!(code == 2 && errors.len() == 1 && errors[0].contains(words), "{name}: {code}: {told}");
            ensure!(server.asked().iter().all(|r| !r.target.contains("secret")), "{name}: it was asked for");
        }
        ensure!(!cache.join("no.safetensors").exists());
        Ok(())
    }

    #[test]
    fn a_hub_that_is_gone_is_told_in_a_line() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for args in [&["info", "hf:someone/single"][..], &["data", "info", "hf:someone/pictures"]] {
            let (code, _, told) = ask(dir.path(), &[("HF_ENDPOINT", NOWHERE)], args)?;
            let last = told.lines().last().unwrap_or_default();
            ensure!(code == 2 && last.contains("hf:someone/"), "{code}: {told}");
        }
        Ok(())
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn images_are_fetched_with_their_splits_labels_and_classes() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = dir.path();
        let (train, test) =
            (fixture("parquet/data/train-00000-of-00001.parquet")?, fixture("parquet/data/test-00000-of-00001.parquet")?);
        let mut files = Files::new();
        let mut add = |name: &str, content: &[u8]| drop(files.insert(format!("datasets/someone/{name}"), content.to_vec()));
        for (split, content) in [("train", &train), ("test", &test), ("validation", &test), ("extra", &test)] {
            add(&format!("pictures/1/data/{split}-00000-of-00001.parquet"), content);
        }
        add("pictures/1/README.md", b"pictures");
        // One that the hub converted: two configurations, one of them in part.
        add("converted/1/pictures.zip", b"PK");
        for config in ["small", "large"] {
            let partial = if config == "large" { "partial-" } else { "" };
            add(&format!("converted/2/{config}/{partial}train/0000.parquet"), &train);
            add(&format!("converted/2/{config}/{partial}test/0000.parquet"), &test);
        }
        add("none/1/README.md", b"nothing");
        let down = Arc::new(AtomicBool::new(false));
        let of_server = down.clone();
        let server = Server::start(move |request| match of_server.load(Ordering::SeqCst) {
            true => Answer::status(501),
            false => answered(&files, request),
        })?;
        let hub = [("HF_ENDPOINT", server.address())];
        let info = |settings: &[(&str, &str)], name: &str, more: &[&str]| {
            ask(cache, settings, &[&["data", "info", name], more].concat())
        };
        for (is_down, more, gets) in [(false, &[][..], 4), (false, &[], 2), (false, &["--offline"], 0), (true, &[], 1)] {
            down.store(is_down, Ordering::SeqCst);
            let (code, found, told) = info(&hub, "hf:someone/pictures", more)?;
            ensure!(code == 0, "{told}");
            ensure!(found["train"] == 4 && found["test"] == 2, "{found}");
            let classes: Vec<&String> = found["classes"].as_object().context("classes")?.keys().collect();
            ensure!(classes.len() == 2 && classes.iter().any(|c| *c == "cat"), "{found}");
            ensure!(
                found["labels"].as_str().is_some_and(|l| l.contains("left out of the repository's splits: extra, validation")),
                "{found}"
            );
            let asked = server.asked().iter().filter(|r| r.method == "GET").count();
            ensure!(asked == gets, "{asked} instead of {gets} requests");
            ensure!(told.contains("501") == is_down && told.contains("fetched before") == is_down, "{told}");
        }
        down.store(false, Ordering::SeqCst);
        // Another hub's repository of this name is another.
        let (code, _, told) = info(&[("HF_ENDPOINT", NOWHERE)], "hf:someone/pictures", &["--offline"])?;
        ensure!(code == 2 && told.contains("never fetched"), "{code}: {told}");
        for (name, train, test, words) in [
            ("hf:someone/pictures/test", 2, serde_json::Value::Null, ""),
            ("hf:someone/pictures@main:default/validation", 2, serde_json::Value::Null, ""),
            ("hf:someone/converted:small", 4, 2.into(), "refs/convert/parquet"),
            ("hf:someone/converted@refs/convert/parquet:large", 4, 2.into(), "first part only"),
        ] {
            let (code, found, told) = info(&hub, name, &[])?;
            ensure!(code == 0 && found["train"] == train && found["test"] == test, "{name}: {told}{found}");
            ensure!(
                found["labels"].as_str().is_some_and(|l| l.contains(words) && l.contains("labels by the table")),
                "{name}: {found}"
            );
        }
        for (name, more, words) in [
            ("hf:someone/converted", &[][..], "name one of large, small"),
            ("hf:someone/converted:tiny", &[], "no configuration `tiny`"),
            ("hf:someone/pictures/dev", &[], "no split `dev`"),
            ("hf:someone/none", &[], "the Hub's conversion has none"),
            ("hf:someone/none@main", &[], "is at @refs/convert/parquet"),
            ("hf:someone/gone", &[], "Repository not found"),
            ("hf:someone/pictures@v9", &[], "v9"),
            ("hf:someone/pictures/extra", &["--offline"], "nothing is fetched offline"),
            ("hf:someone/gone", &["--offline"], "never fetched"),
        ] {
            let (code, _, told) = info(&hub, name, more)?;
            ensure!(code == 2 && told.lines().last().is_some_and(|l| l.contains(words)), "{name}: {code}: {told}");
        }
        // Training and what comes after it find the splits, without asking the hub.
        server.asked();
        let settings =
            ["--data", "hf:someone/pictures", "--encoder", "vit_mini", "--epochs", "1", "--batch", "2", "--image-size", "32"];
        done(cache, &hub, &[&["train", "--offline", "--on-collapse", "warn"], &settings[..]].concat())?;
        let run = cache.join("runs/pictures-simclr").display().to_string();
        let vectors = done(cache, &hub, &["embed", &run, "--offline", "--test", "--out", "v.npy"])?;
        ensure!(vectors["rows"] == 2, "{vectors}");
        let judged = done(cache, &hub, &["eval", &run, "--offline", "--protocol", "own"])?;
        ensure!(judged.to_string().contains("\"test\""), "{judged}");
        ensure!(server.asked().is_empty(), "the hub was asked");
        Ok(())
    }
}

#[cfg(feature = "object-store")]
mod objects {
    use super::*;

    /// A bucket called `pictures`, as S3 shows it to those who sign their requests.
    fn serve() -> Result<Server> {
        let keys = ["d/train-000000.tar", "d/train-000001.tar", "d/test-000000.tar", "d/.hidden.tar", "d/README.md"];
        let shard = |key: &str| fixture(&format!("webdataset/{}", key.trim_start_matches("d/"))).unwrap_or_default();
        let contents: Vec<Vec<u8>> = keys.iter().map(|key| shard(key)).collect();
        let of = |(key, content): (&&str, &Vec<u8>)| {
            let (time, size) = ("2024-01-01T00:00:00.000Z", content.len());
            format!(
                "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>\"{size}\"</ETag><Size>{size}</Size></Contents>"
            )
        };
        let listed: String = keys.iter().zip(&contents).map(of).collect();
        let list =
            format!("<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>");
        Server::start(move |request| {
            let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
            let signed = request.headers.get("authorization").is_some_and(|a| a.starts_with("AWS4-HMAC-SHA256 Credential=me/"));
            let Some(key) = path.strip_prefix("/pictures").filter(|_| signed) else { return Answer::status(403) };
            if key.trim_matches('/').is_empty() && query.contains("list-type=2") {
                return Answer { body: list.clone().into_bytes(), ..Answer::status(200) };
            }
            match keys.iter().position(|k| *k == key.trim_start_matches('/')) {
                Some(i) => Answer::file(request, &contents[i])
                    .with("ETag", &format!("\"{}\"", contents[i].len()))
                    .with("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
                None => Answer::status(404),
            }
        })
    }

    #[test]
    fn shards_of_a_bucket_are_found_by_prefix_and_by_braces() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let server = serve()?;
        let signed = |endpoint: &str| {
            [
                ("AWS_ENDPOINT".to_string(), endpoint.to_string()),
                ("AWS_ALLOW_HTTP".into(), "true".into()),
                ("AWS_ACCESS_KEY_ID".into(), "me".into()),
                ("AWS_SECRET_ACCESS_KEY".into(), "secret".into()),
                ("AWS_REGION".into(), "here".into()),
            ]
        };
        let info = |endpoint: &str, name: &str, more: &[&str]| {
            let settings = signed(endpoint);
            let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            ask(dir.path(), &settings, &[&["data", "info", name], more].concat())
        };
        let mut asked = Vec::new();
        for (endpoint, name, more, test) in [
            (server.address(), "s3://pictures/d", &[][..], true),
            (server.address(), "s3://pictures/d/", &[], true),
            (server.address(), "s3://pictures/d/train-{000000..000001}.tar", &[], false),
            (server.address(), "s3://pictures/d", &["--offline"], true),
            (server.address(), "s3://pictures/d/train-{000000..000001}.tar", &["--offline"], false),
        ] {
            let (code, found, told) = info(endpoint, name, more)?;
            ensure!(code == 0 && found["train"] == 4, "{name}: {told}{found}");
            ensure!(found["test"].as_u64() == test.then_some(2), "{name}: {found}");
            ensure!(!told.contains("hidden") && !told.contains("secret"), "{told}");
            let now = server.asked();
            ensure!(more.is_empty() || now.is_empty(), "{name}: it was asked offline");
            asked.extend(now);
        }
        // Another store's bucket of this name is another.
        let (code, _, told) = info("http://127.0.0.1:9", "s3://pictures/d", &["--offline"])?;
        ensure!(code == 2 && told.contains("never fetched"), "{code}: {told}");
        let fetched = asked.iter().filter(|r| r.method == "GET" && !r.target.contains('?')).count();
        ensure!(fetched == 3, "{fetched} objects were fetched instead of 3");
        for (name, words) in [
            ("s3://pictures/d/x.tar", "x.tar: is not there"),
            ("s3://pictures/e", "never fetched"),
            ("s3:///x.tar", "names no bucket"),
            ("ftp://h/x.tar", "expected s3://"),
        ] {
            let more: &[&str] = if name.ends_with("/e") { &["--offline"] } else { &[] };
            let (code, _, told) = info(server.address(), name, more)?;
            ensure!(code == 2 && told.lines().last().is_some_and(|l| l.contains(words)), "{name}: {code}: {told}");
        }
        Ok(())
    }

    #[test]
    fn a_run_trains_on_shards_of_a_web_server_and_goes_on_without_it() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let server = Server::start(|request| match fixture(request.target.trim_start_matches('/')) {
            Ok(content) => Answer::file(request, &content),
            Err(_) => Answer::status(404),
        })?;
        let data = format!("{}/webdataset/train-{{000000..000001}}.tar", server.address());
        let args = ["train", "--data", &data, "--encoder", "vit_mini", "--epochs", "1", "--batch", "2", "--image-size", "32"];
        let run = done(dir.path(), &[], &[&args[..], &["--on-collapse", "warn"]].concat())?;
        let out = run["out"].as_str().context("out")?.to_string();
        ensure!(Path::new(&out) == Path::new("runs").join("train-simclr"), "{out}");
        server.asked();
        let vectors = done(dir.path(), &[], &["embed", &out, "--offline", "--out", "v.npy"])?;
        ensure!(vectors["rows"] == 4 && server.asked().is_empty(), "{vectors}");
        Ok(())
    }
}
