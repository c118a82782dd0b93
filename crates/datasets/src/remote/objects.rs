//! Tar shards and tables of object stores and web servers: their way into the cache.
//!
//! An object is streamed to disk as it comes; four at a time. What breaks off is gone on with by a range request, now or in a later run,
//! as long as the object stays the same (its size, time and entity tag, which lie beside the copy). A copy is current while the store
//! says the same of the object; that is one small request an object each time a data set is opened, and none offline. Requests are tried
//! again, and given up, as `object_store` does (ten times within three minutes), and a server that is silent for half a minute is left,
//! unless the environment has other times (`AWS_TIMEOUT`, …).
//!
//! Credentials, regions and endpoints are those of the environment, under `object_store`'s names: `AWS_*`, `GOOGLE_*`, `AZURE_*`.

use std::fs::OpenOptions as FileOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path as ObjectPath;
use object_store::{
    ClientConfigKey, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, ObjectStoreScheme, RetryConfig,
};
use serde_json::{Value, json};

use super::place::{Address, MOST_OBJECTS, Wanted, copy_of, is_data, is_table, of_one_copy};
use super::{Fetched, Network, Runtime, one_line, size_in_words};
use crate::lock::lock;
use crate::{Error, Result};

/// Objects that are fetched at a time.
const AT_ONCE: usize = 4;
/// Tries of an object in a row that bring nothing.
const TRIES: u32 = 4;
/// What was found below a prefix, in the folder of its copies.
const LIST: &str = ".list.json";

/// Finds the objects of `address` and fetches those of which there is no current copy.
///
/// # Errors
/// An address of another form, an object that is not there or not to be had, a network that fails, a full disk; offline an object that
/// was never fetched.
pub(super) fn fetch(address: &str, cache: &Path, network: Network) -> Result<Fetched> {
    fetch_with(&Patience::default(), address, cache, network)
}

fn fetch_with(patience: &Patience, address: &str, cache: &Path, network: Network) -> Result<Fetched> {
    let wrong = |reason: String| Error::Download { url: address.into(), reason };
    let place = Address::parse(address).map_err(wrong)?;
    let folder = place.folder(cache, elsewhere(&place.kind).as_deref());
    let root = place.root(&folder);
    let objects = if network.offline {
        let objects = match &place.wanted {
            Wanted::These(objects) => objects.clone(),
            Wanted::Below(_) => listed(&root)
                .ok_or_else(|| wrong("was never fetched: what it holds is not known, and nothing is asked offline".into()))?,
        };
        let missing: Vec<&ObjectPath> = objects.iter().filter(|o| current(&copy_of(&folder, o)).is_none()).collect();
        if let [first, ..] = &missing[..] {
            let count = missing.len();
            return Err(wrong(format!(
                "{count} of its objects are not in the cache ({first}, …), and nothing is fetched offline; without --offline they are"
            )));
        }
        objects
    } else {
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        // Held until this returns.
        let _lock = lock(&folder, || {
            (network.note)(&format!("{address}: another process fetches into {}; waiting for it", folder.display()))
        })?;
        let store = store(&place, patience).map_err(|e| wrong(one_line(&e)))?;
        let fetch = Fetch { address, folder: &folder, root: &root, kind: &place.kind, store, network };
        Runtime::new().map_err(Error::io(&folder))?.block_on(|| fetch.all(&place.wanted))?
    };
    let files = objects.iter().map(|object| copy_of(&folder, object)).collect();
    Ok(Fetched { root, files, told: String::new() })
}

/// How long the client waits: for a connection, for anything more, for a whole object.
struct Patience {
    connection: Duration,
    silence: Duration,
    whole: Duration,
    retries: RetryConfig,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connection: Duration::from_secs(20),
            silence: Duration::from_secs(30),
            // Objects may be large, and lines slow.
            whole: Duration::from_secs(7 * 24 * 3600),
            retries: RetryConfig::default(),
        }
    }
}

impl Patience {
    /// The client's settings, without those that a variable of the environment is for.
    fn settings<K: FromStr + PartialEq>(&self, variables: &[String], of: impl Fn(ClientConfigKey) -> K) -> Vec<(K, String)> {
        let set: Vec<K> = variables.iter().filter_map(|name| name.to_ascii_lowercase().parse().ok()).collect();
        [
            (ClientConfigKey::ConnectTimeout, self.connection),
            (ClientConfigKey::ReadTimeout, self.silence),
            (ClientConfigKey::Timeout, self.whole),
        ]
        .into_iter()
        .map(|(key, time)| (of(key), format!("{}ms", time.as_millis())))
        .filter(|(key, _)| !set.contains(key))
        .collect()
    }
}

/// Names of the environment's variables that begin with `prefix`.
fn variables(prefix: &str) -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// One fetch.
struct Fetch<'a> {
    address: &'a str,
    folder: &'a Path,
    root: &'a Path,
    kind: &'a ObjectStoreScheme,
    store: Arc<dyn ObjectStore>,
    network: Network,
}

enum Trouble {
    /// Going on where it broke off may help.
    Cut(String),
    /// The server gives no parts of an object.
    NoParts,
    Final(Error),
}

impl Fetch<'_> {
    async fn all(&self, wanted: &Wanted) -> Result<Vec<ObjectPath>> {
        let metas: Vec<ObjectMeta> = match wanted {
            Wanted::These(objects) => {
                let asked = futures_util::stream::iter(objects)
                    .map(|object| async move { self.store.head(object).await.map_err(|e| self.failed(object, &e)) });
                asked.buffered(2 * AT_ONCE).try_collect().await?
            }
            Wanted::Below(prefix) => self.below(prefix).await?,
        };
        let mut missing = Vec::new();
        for meta in &metas {
            if current(&copy_of(self.folder, &meta.location)).as_ref() != Some(&identity(meta)) {
                missing.push(meta);
            }
        }
        if !missing.is_empty() {
            let bytes = missing.iter().fold(0_u64, |sum, m| sum.saturating_add(m.size));
            let (count, of) = (missing.len(), metas.len());
            (self.network.note)(&format!("{}: fetching {count} objects of {of}, {}", self.address, size_in_words(bytes)));
        }
        futures_util::stream::iter(missing)
            .map(|meta| self.copy(meta))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        let objects: Vec<ObjectPath> = metas.into_iter().map(|m| m.location).collect();
        if matches!(wanted, Wanted::Below(_)) {
            let names: Vec<&str> = objects.iter().map(|o| o.as_ref()).collect();
            write(&self.root.join(LIST), &json!(names).to_string())?;
        }
        Ok(objects)
    }

    /// The tables below a prefix, or else the archives, in the order of their names.
    async fn below(&self, prefix: &ObjectPath) -> Result<Vec<ObjectMeta>> {
        let hidden = |m: &ObjectMeta| m.location.parts().any(|part| part.as_ref().starts_with('.'));
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut all = self.store.list(Some(prefix));
        while let Some(meta) = all.next().await {
            let meta = meta.map_err(|e| self.failed(prefix, &e))?;
            if is_data(meta.location.as_ref()) && !hidden(&meta) {
                found.push(meta);
            }
            if found.len() > MOST_OBJECTS {
                return Err(self.wrong(format!("holds more than {MOST_OBJECTS} archives and tables; name a folder below it")));
            }
        }
        if found.iter().any(|m| is_table(m.location.as_ref())) {
            found.retain(|m| is_table(m.location.as_ref()));
        }
        if found.is_empty() {
            return Err(self.wrong("holds no object that ends in .tar, .tar.gz, .tgz or .parquet".into()));
        }
        found.sort_by(|a, b| a.location.cmp(&b.location));
        if let Some((one, other)) = of_one_copy(found.iter().map(|m| &m.location)) {
            return Err(self.wrong(format!("holds {one} and {other}, which some systems take for one file; name one of them")));
        }
        Ok(found)
    }

    /// Makes a current copy of an object.
    async fn copy(&self, meta: &ObjectMeta) -> Result<()> {
        let target = copy_of(self.folder, &meta.location);
        let parent = target.parent().unwrap_or(self.folder);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let (partial, of_partial) = (beside(&target, "partial"), beside(&target, "partial.about"));
        let about = identity(meta).to_string();
        if std::fs::read_to_string(&of_partial).ok().as_ref() != Some(&about) || size(&partial) > meta.size {
            remove(&partial)?;
            write(&of_partial, &about)?;
        }
        let (mut failures, mut longest, mut parts) = (0, size(&partial), true);
        while size(&partial) < meta.size || !partial.exists() {
            match self.transfer(meta, &partial, parts).await {
                Ok(()) => {}
                Err(Trouble::Final(e)) => return Err(e),
                // That is no failure: it is begun anew at once.
                Err(Trouble::NoParts) => parts = false,
                Err(Trouble::Cut(reason)) => {
                    failures = if size(&partial) > longest { 1 } else { failures + 1 };
                    longest = longest.max(size(&partial));
                    let object = &meta.location;
                    let (kept, next) = match parts {
                        true => ("what came so far is kept, try again later", "going on from there"),
                        false => {
                            ("the server gives no parts, so that nothing of it can be kept; try again later", "beginning anew")
                        }
                    };
                    if failures == TRIES {
                        return Err(self.wrong(format!("{object}: {reason}, {TRIES} times in a row; {kept}")));
                    }
                    (self.network.note)(&format!("{}: {object}: {reason}; {next}", self.address));
                    tokio::time::sleep(Duration::from_millis(200 << failures)).await;
                }
            }
        }
        if size(&partial) != meta.size {
            let (is, object) = (size(&partial), &meta.location);
            remove(&partial)?;
            return Err(
                self.wrong(format!("{object}: its copy has {is} bytes instead of {} and was removed; try again", meta.size))
            );
        }
        remove(&beside(&target, "about"))?;
        std::fs::rename(&partial, &target).map_err(Error::io(&target))?;
        write(&beside(&target, "about"), &about)?;
        remove(&of_partial)
    }

    /// Adds to `partial` what is missing of an object, or begins anew where the server gives no `parts`.
    async fn transfer(&self, meta: &ObjectMeta, partial: &Path, parts: bool) -> std::result::Result<(), Trouble> {
        let disk = |e: std::io::Error| Trouble::Final(Error::io(partial)(e));
        if !parts {
            remove(partial).map_err(Trouble::Final)?;
        }
        let start = size(partial);
        let options = GetOptions {
            range: (start > 0).then_some(GetRange::Offset(start)),
            // A weak tag is equal to none in this comparison.
            if_match: meta.e_tag.clone().filter(|tag| !tag.starts_with("W/")),
            ..GetOptions::default()
        };
        let changed = || Trouble::Final(self.wrong(format!("{} changed while it was fetched; try again", meta.location)));
        let answer = match self.store.get_opts(&meta.location, options).await {
            Ok(answer) => answer,
            Err(object_store::Error::NotSupported { .. }) if start > 0 => return Err(Trouble::NoParts),
            Err(object_store::Error::Precondition { .. }) => return Err(changed()),
            Err(e) => return Err(Trouble::Final(self.failed(&meta.location, &e))),
        };
        // Some servers tell no time, lists tell parts of a second.
        let (was, is) = (meta.last_modified.timestamp(), answer.meta.last_modified.timestamp());
        let later = was != 0 && is != 0 && was.abs_diff(is) > 1;
        if answer.meta.size != meta.size || answer.meta.e_tag != meta.e_tag || later {
            return Err(changed());
        }
        let mut out = FileOptions::new().create(true).append(true).open(partial).map_err(disk)?;
        let mut body = answer.into_stream();
        let mut count = start;
        while let Some(piece) = body.next().await {
            let piece =
                piece.map_err(|e| Trouble::Cut(format!("the connection was cut after {count} bytes ({})", one_line(&e))))?;
            count += piece.len() as u64;
            if count > meta.size {
                return Err(changed());
            }
            out.write_all(&piece).map_err(disk)?;
        }
        out.sync_all().map_err(disk)?;
        if count < meta.size {
            return Err(Trouble::Cut(format!("the connection was cut after {count} of {} bytes", meta.size)));
        }
        Ok(())
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Download { url: self.address.into(), reason }
    }

    fn failed(&self, object: &ObjectPath, error: &object_store::Error) -> Error {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
        let reason = match error {
            NotFound { .. } => format!("{object}: is not there (404)"),
            PermissionDenied { .. } | Unauthenticated { .. } => {
                let advice = match self.kind {
                    ObjectStoreScheme::AmazonS3 => {
                        "credentials come from the environment (AWS_*; AWS_SKIP_SIGNATURE=true for public buckets)"
                    }
                    ObjectStoreScheme::GoogleCloudStorage => "credentials come from the environment (GOOGLE_*)",
                    ObjectStoreScheme::MicrosoftAzure => "credentials come from the environment (AZURE_*)",
                    _ => "web servers are read without credentials",
                };
                format!("{object}: is closed ({}); {advice}", one_line(error))
            }
            other => format!("{object}: {}; --offline takes what was fetched before", one_line(other)),
        };
        self.wrong(reason)
    }
}

/// What the environment says that stores of a kind are other than their provider's own, or whose they are, where an address does not say
/// it: the copies of one must not be taken for those of another.
fn elsewhere(kind: &ObjectStoreScheme) -> Option<String> {
    let said: Vec<String> = match kind {
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env();
            let keys = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
            keys.iter().find_map(|key| builder.get_config_value(key)).into_iter().collect()
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            GoogleCloudStorageBuilder::from_env().get_config_value(&GoogleConfigKey::BaseUrl).into_iter().collect()
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env();
            let keys = [AzureConfigKey::AccountName, AzureConfigKey::Endpoint];
            keys.iter().filter_map(|key| builder.get_config_value(key)).collect()
        }
        _ => Vec::new(),
    };
    Some(said.join("@")).filter(|said| !said.is_empty())
}

/// The store of an address, with what the environment says of it.
fn store(address: &Address, patience: &Patience) -> object_store::Result<Arc<dyn ObjectStore>> {
    let url = address.url.as_str();
    let retries = patience.retries.clone();
    Ok(match address.kind {
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env().with_url(url).with_retry(retries);
            let settings = patience.settings(&variables("AWS_"), AmazonS3ConfigKey::Client);
            Arc::new(settings.into_iter().fold(builder, |b, (k, v)| b.with_config(k, v)).build()?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retries);
            let settings = patience.settings(&variables("GOOGLE_"), GoogleConfigKey::Client);
            Arc::new(settings.into_iter().fold(builder, |b, (k, v)| b.with_config(k, v)).build()?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retries);
            let settings = patience.settings(&variables("AZURE_"), AzureConfigKey::Client);
            Arc::new(settings.into_iter().fold(builder, |b, (k, v)| b.with_config(k, v)).build()?)
        }
        _ => {
            let builder = HttpBuilder::new().with_url(&address.url[..url::Position::BeforePath]).with_retry(retries);
            let builder = builder.with_config(ClientConfigKey::AllowHttp, (address.url.scheme() == "http").to_string());
            // No variables are read for these.
            let settings = patience.settings(&[], |key| key);
            Arc::new(settings.into_iter().fold(builder, |b, (k, v)| b.with_config(k, v)).build()?)
        }
    })
}

/// What tells one state of an object from another.
fn identity(meta: &ObjectMeta) -> Value {
    json!({"size": meta.size, "tag": meta.e_tag, "modified": meta.last_modified.timestamp()})
}

/// The state of the object that `copy` is whole of; `None` where there is no copy.
fn current(copy: &Path) -> Option<Value> {
    let about: Value = serde_json::from_slice(&std::fs::read(beside(copy, "about")).ok()?).ok()?;
    (copy.is_file() && about["size"].as_u64() == Some(size(copy))).then_some(about)
}

/// The objects that were found when the prefix of `root` was last asked.
fn listed(root: &Path) -> Option<Vec<ObjectPath>> {
    let names: Value = serde_json::from_slice(&std::fs::read(root.join(LIST)).ok()?).ok()?;
    names.as_array()?.iter().map(|name| ObjectPath::parse(name.as_str()?).ok()).collect()
}

/// The file beside `path` that is called like it and `ending`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{ending}"));
    path.with_file_name(name)
}

/// The size of a file, 0 where there is none.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io(path))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
