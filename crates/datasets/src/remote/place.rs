//! Addresses of objects, and where their copies lie.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use object_store::ObjectStoreScheme;
use object_store::path::Path as ObjectPath;
use url::Url;

use super::braces::expand;
use super::safe;
use crate::formats::webdataset::is_archive;

/// What an address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// An address in the bucket, container or server.
    pub(super) url: Url,
    /// The kind of store.
    pub(super) kind: ObjectStoreScheme,
    /// What is wanted of it.
    pub(super) wanted: Wanted,
}

/// Most objects of a data set.
pub(super) const MOST_OBJECTS: usize = 100_000;

/// Objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// These.
    These(Vec<ObjectPath>),
    /// All shards or tables below.
    Below(ObjectPath),
}

impl Address {
    /// Reads an address; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let behind = text.split_once("://").map_or("", |(_, behind)| behind);
        let host = behind.split('/').next().unwrap_or_default();
        if host.contains(['{', '}']) {
            return Err("has braces in the bucket's or server's name; expected them behind it".into());
        }
        if host.is_empty() {
            return Err("names no bucket or server; expected s3://BUCKET/PATH".into());
        }
        let mut found: Option<(Url, ObjectStoreScheme)> = None;
        let mut paths = Vec::new();
        for one in expand(text)? {
            let url = Url::parse(&one).map_err(|e| format!("is no address ({e})"))?;
            if url.query().is_some() || url.fragment().is_some() {
                return Err(
                    "has a `?` or `#`; objects are read by plain addresses, and credentials come from the environment".into()
                );
            }
            let container = matches!(url.scheme(), "az" | "azure" | "adl" | "abfs" | "abfss");
            if url.password().is_some() || !url.username().is_empty() && !container {
                return Err("holds credentials, which come from the environment instead".into());
            }
            let (kind, path) = ObjectStoreScheme::parse(&url).map_err(|e| format!("is no address of an object ({e})"))?;
            paths.push(path);
            found.get_or_insert((url, kind));
        }
        let (url, kind) = found.ok_or("stands for no address")?;
        if let Some((one, other)) = of_one_copy(&paths) {
            return Err(match one == other {
                true => format!("names {one} twice; expected each object once"),
                false => format!("names {one} and {other}, which some systems take for one file; expected one of them"),
            });
        }
        let known: Vec<bool> = paths.iter().map(|p| is_data(p.as_ref())).collect();
        let wanted = match &paths[..] {
            [one] if !known[0] => match kind {
                ObjectStoreScheme::Http => {
                    return Err("a web server can't be asked what it holds: name files that end in .tar, .tar.gz, .tgz or \
                                .parquet ({000..009} stands for several)"
                        .into());
                }
                _ => Wanted::Below(one.clone()),
            },
            _ if known.contains(&false) => {
                return Err("expected files that end in .tar, .tar.gz, .tgz or .parquet".into());
            }
            _ if paths.iter().any(|p| is_table(p.as_ref())) && !paths.iter().all(|p| is_table(p.as_ref())) => {
                return Err("stands for both archives and tables; expected one kind".into());
            }
            _ => Wanted::These(paths),
        };
        Ok(Self { url, kind, wanted })
    }

    /// The folder for copies of this store's objects, below `cache`; `elsewhere` says where the store is, or whose, if the address does not.
    pub(super) fn folder(&self, cache: &Path, elsewhere: Option<&str>) -> PathBuf {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port().map_or(String::new(), |p| format!("_{p}"));
        // az://container@account: two accounts may have containers of one name.
        let user = match self.url.username() {
            "" => String::new(),
            user => format!("{user}@"),
        };
        // In some addresses the bucket is the first part of the path, which the store takes away.
        let of_path =
            self.url.path().split('/').nth(1).filter(|_| self.url.scheme() == "https" && self.kind != ObjectStoreScheme::Http);
        let bucket = of_path.map_or(String::new(), |b| format!("_{b}"));
        let elsewhere = elsewhere.map_or(String::new(), |e| format!("@{e}"));
        cache.join("objects").join(self.url.scheme()).join(safe(&format!("{user}{host}{port}{bucket}{elsewhere}")))
    }

    /// The folder that all of the objects lie below.
    pub(super) fn root(&self, folder: &Path) -> PathBuf {
        let parts = match &self.wanted {
            Wanted::Below(prefix) => parts_of(prefix),
            Wanted::These(paths) => {
                let mut common = paths.first().map(parts_of).unwrap_or_default();
                common.pop();
                for path in paths {
                    let same = common.iter().zip(parts_of(path)).take_while(|(a, b)| *a == b).count();
                    common.truncate(same);
                }
                common
            }
        };
        parts.iter().fold(folder.to_path_buf(), |folder, part| folder.join(part))
    }
}

/// The copy of an object, below the store's folder.
pub(super) fn copy_of(folder: &Path, object: &ObjectPath) -> PathBuf {
    parts_of(object).iter().fold(folder.to_path_buf(), |folder, part| folder.join(part))
}

/// Two objects that would have one copy, if there are; also where a file system does not tell capitals from small letters.
pub(super) fn of_one_copy<'a>(paths: impl IntoIterator<Item = &'a ObjectPath>) -> Option<(&'a ObjectPath, &'a ObjectPath)> {
    let mut known = HashMap::new();
    paths.into_iter().find_map(|path| {
        let before = known.insert(parts_of(path).join("/").to_ascii_lowercase(), path)?;
        Some((before, path))
    })
}

/// Whether a name is that of an archive or a table.
pub(super) fn is_data(name: &str) -> bool {
    is_table(name) || is_archive(Path::new(name))
}

/// Whether a name is that of a table.
pub(super) fn is_table(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".parquet")
}

fn parts_of(path: &ObjectPath) -> Vec<String> {
    path.parts().map(|part| safe(part.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_objects_or_a_folder_of_them() {
        let of = |text: &str| Address::parse(text).map(|a| (a.wanted, a.kind));
        let path = |text: &str| ObjectPath::from(text);
        assert_eq!(of("s3://b/d/x.tar"), Ok((Wanted::These(vec![path("d/x.tar")]), ObjectStoreScheme::AmazonS3)));
        assert_eq!(of("gs://b/d"), Ok((Wanted::Below(path("d")), ObjectStoreScheme::GoogleCloudStorage)));
        assert_eq!(of("az://c/"), Ok((Wanted::Below(path("")), ObjectStoreScheme::MicrosoftAzure)));
        let both = Wanted::These(vec![path("d/x-0.parquet"), path("d/x-1.parquet")]);
        assert_eq!(of("https://h:1/d/x-{0..1}.parquet"), Ok((both, ObjectStoreScheme::Http)));
        for (text, word) in [
            ("s3:///x.tar", "names no bucket"),
            ("s3://", "names no bucket"),
            ("s3://b{0..1}/x.tar", "braces"),
            ("s3://b/x-{0..1.tar", "brace"),
            ("https://h/folder/", "{000..009}"),
            ("https://h/x.zip", "end in .tar"),
            ("https://h/x.tar?token=1", "`?`"),
            ("https://me:secret@h/x.tar", "credentials"),
            ("s3://b/{x.tar,y.zip}", "end in .tar"),
            ("s3://b/{x.tar,y.parquet}", "one kind"),
            ("https://h:port/x.tar", "no address"),
            ("s3://b/x-{a,a}.tar", "names x-a.tar twice"),
            ("s3://b/x-{a,A}.tar", "names x-a.tar and x-A.tar"),
        ] {
            let told = of(text).expect_err(text);
            assert!(told.contains(word) && !told.contains("secret"), "{text}: {told}");
        }
    }

    #[test]
    fn copies_lie_below_their_store_and_nowhere_else() -> anyhow::Result<()> {
        let cache = Path::new("c");
        let place = |text: &str| -> anyhow::Result<(String, String)> {
            let address = Address::parse(text).map_err(anyhow::Error::msg)?;
            let folder = address.folder(cache, None);
            let Wanted::These(paths) = &address.wanted else { anyhow::bail!("a folder") };
            let copy = copy_of(&folder, &paths[0]).display().to_string();
            Ok((copy.replace('\\', "/"), address.root(&folder).display().to_string().replace('\\', "/")))
        };
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(place("s3://b/d/x.tar")?, pair("c/objects/s3/b/d/x.tar", "c/objects/s3/b/d"));
        assert_eq!(place("http://h:81/d/{a,b}/x.tar")?, pair("c/objects/http/h_81/d/a/x.tar", "c/objects/http/h_81/d"));
        assert_eq!(place("https://h/../a%20b%2F..:/x.tar")?.1, "c/objects/https/h/a%20b/..%3A");
        let folder = |elsewhere| -> anyhow::Result<PathBuf> {
            Ok(Address::parse("s3://b/x.tar").map_err(anyhow::Error::msg)?.folder(cache, elsewhere))
        };
        assert_eq!(folder(Some("http://h:9"))?, cache.join("objects/s3/b@http%3A%2F%2Fh%3A9"));
        assert_eq!((safe(".."), safe("a/b"), safe("ä")), ("%2E%2E".into(), "a%2Fb".into(), "%C3%A4".into()));
        Ok(())
    }
}
