//! Rules for Rust files: each opens by saying what is in it, none has work left over or switches tests off, and `unsafe` is
//! written only where it belongs. A warning for files that are long.

use std::path::Path;

use anyhow::{Context, Result};
use walkdir::WalkDir;

/// Folders that hold the repository's Rust files.
const FOLDERS: &[&str] = &["crates", "xtask", "tests"];
/// Lines above which a file probably holds more than one concept.
const LONG: usize = 400;
/// Files, and folders ending in a slash, that may hold `unsafe` blocks.
const UNSAFE: &[&str] = &["crates/kernels/", "crates/knn/src/product.rs"];
/// Work left over, and tests switched off; in two parts each, so that this file does not find itself.
const LEFT_OVER: &[(&str, &str)] =
    &[("todo", "!("), ("unimplemented", "!("), ("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("#[ig", "nore")];
/// The checks that run tests which `cargo test` passes over, as their reasons name them.
const RUN_BY: &[&str] = &["`cargo xtask check-cuda` runs it\"]"];

/// Path (from the root, with slashes) and text of every Rust file.
///
/// # Errors
/// When a file cannot be read, or is not UTF-8.
pub fn read(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let hidden = |e: &walkdir::DirEntry| e.file_name().to_string_lossy().starts_with('.') || e.file_name() == "target";
        for entry in WalkDir::new(root.join(folder)).sort_by_file_name().into_iter().filter_entry(|e| !hidden(e)) {
            let entry = entry?;
            if entry.file_type().is_file() && entry.path().extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string())?;
                files.push((super::relative(root, entry.path()), text));
            }
        }
    }
    Ok(files)
}

/// Findings in one file.
pub fn check(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(format!("{path}: the first line must be `//!` and say what is inside and why"));
    }
    let may_be_unsafe = UNSAFE.iter().any(|p| path == *p || (p.ends_with('/') && path.starts_with(p)));
    for (i, line) in text.lines().enumerate() {
        for (a, b) in LEFT_OVER {
            let word = format!("{a}{b}");
            // A test may be left to a check that runs it, if it says to which.
            if has_word(line, &word) && !RUN_BY.iter().any(|check| line.contains(check)) {
                findings.push(format!("{path}:{}: `{word}`: finish it, or leave it out", i + 1));
            }
        }
        let code = line.split("//").next().unwrap_or_default();
        let is_unsafe = ["{", "fn", "impl", "extern"].iter().any(|after| has_word(code, &["unsafe", after].join(" ")));
        if is_unsafe && !may_be_unsafe {
            findings.push(format!("{path}:{}: unsafe code belongs in crates/kernels; use a safe crate, or a kernel", i + 1));
        }
    }
    findings
}

/// A warning for a long file.
pub fn check_length(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > LONG).then(|| format!("{path} has {lines} lines (80 to {LONG} as a rule): does it hold one concept?"))
}

/// Whether `word` is in `line` and is no part of a longer word.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (first, last) = (word.starts_with(part), word.ends_with(part));
        !(first && line[..at].ends_with(part) || last && line[at + word.len()..].starts_with(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_says_what_it_is_passes() {
        assert!(check("crates/x/src/lib.rs", "//! What.\nfn a() {} // unsafe { is a word here\n").is_empty());
        assert!(check("crates/kernels/src/conv.rs", "//! What.\nunsafe { f() }\n").is_empty());
        assert!(check("crates/x/src/lib.rs", "//! What.\nlet methodology = \"METHODOLOGY\";\n").is_empty());
    }

    #[test]
    fn a_file_without_an_opening_is_found() {
        for text in ["", "use std::io;\n", "// plain\n", "\n//! Too late.\n", "#![allow(x)]\n//! Too late.\n"] {
            let found = check("a.rs", text);
            assert!(found.len() == 1 && found[0].contains("first line"), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn work_left_over_is_found_with_its_line() {
        for (a, b) in LEFT_OVER {
            let found = check("a.rs", &format!("//! What.\nfn f() {{}}\n    {a}{b} x\n"));
            assert!(found.len() == 1 && found[0].starts_with("a.rs:3:"), "{a}{b}: {found:?}");
        }
    }

    #[test]
    fn a_test_may_be_left_to_a_check_that_runs_it() {
        let ignored = |reason: &str| check("a.rs", &format!("//! What.\n#[{}{} = \"{reason}\"]\nfn f() {{}}\n", "ig", "nore"));
        assert!(ignored("needs a compiler; `cargo xtask check-cuda` runs it").is_empty());
        assert_eq!(ignored("slow").len(), 1);
    }

    #[test]
    fn unsafe_outside_its_place_is_found() {
        for code in ["{ f() }", "fn f() {}", "impl Send for X {}", "extern \"C\" {}"] {
            assert_eq!(check("crates/nn/src/a.rs", &format!("//! What.\nunsafe {code}\n")).len(), 1, "{code}");
        }
    }

    #[test]
    fn a_long_file_is_a_warning() {
        assert_eq!(check_length("a.rs", &"x\n".repeat(400)), None);
        assert!(check_length("a.rs", &"x\n".repeat(401)).expect("long").contains("401 lines"));
    }
}
