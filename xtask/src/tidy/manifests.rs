//! Rule: every manifest takes lints, edition, Rust version, licence and the versions of its dependencies from the workspace's.

use toml::{Table, Value};

/// Keys of `[package]` that the workspace decides.
const SHARED: &[&str] = &["version", "edition", "rust-version", "license", "authors"];

/// Findings in the manifest `text` of one package at `path`.
pub fn check(path: &str, text: &str) -> Vec<String> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(e) => return vec![format!("{path}: {e}")],
    };
    let mut findings = Vec::new();
    if !inherits(manifest.get("lints")) {
        findings.push(format!("{path}: lints are not the workspace's; add `[lints] workspace = true`"));
    }
    for key in SHARED {
        if !inherits(manifest.get("package").and_then(|p| p.get(key))) {
            findings.push(format!("{path}: `{key}` is not the workspace's; write `{key}.workspace = true`"));
        }
    }
    let targets =
        manifest.get("target").and_then(Value::as_table).into_iter().flat_map(|t| t.values().filter_map(Value::as_table));
    for table in std::iter::once(&manifest).chain(targets) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, dependency) in table.get(kind).and_then(Value::as_table).into_iter().flatten() {
                if !inherits(Some(dependency)) {
                    let place = "[workspace.dependencies] of the root";
                    findings.push(format!(
                        "{path}: {kind}.{name} has its version here; put it in {place} and write `workspace = true`"
                    ));
                }
            }
        }
    }
    findings
}

/// Whether a value is `{ workspace = true, … }`.
fn inherits(value: Option<&Value>) -> bool {
    value.and_then(|v| v.get("workspace")).and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [package]
        name = "x"
        version.workspace = true
        edition.workspace = true
        rust-version.workspace = true
        license.workspace = true
        authors.workspace = true
        [lints]
        workspace = true
        [dependencies]
        a.workspace = true
        b = { workspace = true, optional = true }
    "#;

    #[test]
    fn a_manifest_that_inherits_passes() {
        assert_eq!(check("x", GOOD), Vec::<String>::new());
    }

    #[test]
    fn everything_that_is_not_inherited_is_found() {
        let one = |from: &str, to: &str, word: &str| {
            let found = check("crates/x/Cargo.toml", &GOOD.replace(from, to));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("crates/x/Cargo.toml") && found[0].contains(word), "{found:?}");
        };
        one("[lints]\n        workspace = true", "[lints.rust]\n        missing_docs = \"allow\"", "lints");
        one("[lints]\n        workspace = true", "", "[lints] workspace = true");
        one("edition.workspace = true", "edition = \"2021\"", "`edition`");
        one("a.workspace = true", "a = \"1\"", "dependencies.a");
        one("a.workspace = true", "a = { version = \"1\", features = [] }", "dependencies.a");
        let more = "b = { workspace = true, optional = true }";
        one(more, "[target.'cfg(unix)'.dev-dependencies]\n c = \"1\"", "dev-dependencies.c");
        one("[package]", "[package", "TOML");
    }
}
