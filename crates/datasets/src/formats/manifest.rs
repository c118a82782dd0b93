//! Manifests: a CSV, TSV or JSON-lines file with a row an image: where it lies, and perhaps its label and split.
//!
//! The columns (or keys) are `path` (or `file`, `file_name`, `filename`, `image`), `label` (or `class`, `target`, `category`) and
//! `split` (or `subset`, `set`), in any order, beside any others. Paths count from the manifest's folder. Splits are `train`, `test` and
//! `val` (or their longer names); an empty one is `train`, and any other word is an error: a test image must not be trained on for a
//! slip of the pen. A line that can't be read is named as bad.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use crate::encoded::Item;
use crate::open::BadFile;
use crate::place::Place;
use crate::sources::{Entries, Entry, Split};
use crate::{Error, Result};

const PATH: [&str; 5] = ["path", "file", "file_name", "filename", "image"];
const LABEL: [&str; 4] = ["label", "class", "target", "category"];
const SPLIT: [&str; 3] = ["split", "subset", "set"];
/// Endings of manifests.
pub(crate) const ENDINGS: [&str; 4] = ["csv", "tsv", "jsonl", "ndjson"];

/// Reads a manifest.
///
/// # Errors
/// A file that can't be read, has no column of paths, or names an unknown split.
pub(crate) fn read(path: &Path) -> Result<Entries> {
    let mut entries = Entries { labelled_by: "the manifest", ..Entries::default() };
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "ndjson") => read_json(path, &mut entries)?,
        Some("tsv") => read_table(path, b'\t', &mut entries)?,
        _ => read_table(path, b',', &mut entries)?,
    }
    Ok(entries)
}

fn read_table(path: &Path, delimiter: u8, entries: &mut Entries) -> Result<()> {
    let failed = |e: csv::Error| Error::bad(path, e.to_string());
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).trim(csv::Trim::All).from_path(path).map_err(failed)?;
    let head = reader.headers().map_err(failed)?.clone();
    let column = |names: &[&str]| {
        names.iter().find_map(|n| head.iter().position(|h| h.trim_start_matches('\u{feff}').eq_ignore_ascii_case(n)))
    };
    let Some(place) = column(&PATH) else {
        let found = head.iter().collect::<Vec<_>>().join(", ");
        return Err(Error::bad(path, format!("its first line names no column of paths ({}), but: {found}", PATH.join(", "))));
    };
    let (label, split) = (column(&LABEL), column(&SPLIT));
    for (number, row) in reader.records().enumerate() {
        let row = match row {
            Ok(row) => row,
            Err(e) if matches!(e.kind(), csv::ErrorKind::Io(_)) => return Err(failed(e)),
            Err(e) => {
                entries.bad.push(BadFile { id: format!("line {}", number + 2), reason: e.to_string() });
                continue;
            }
        };
        let at = |column: Option<usize>| column.and_then(|c| row.get(c)).filter(|v| !v.is_empty());
        add(path, number + 2, at(Some(place)), at(label).map(String::from), at(split), entries)?;
    }
    Ok(())
}

fn read_json(path: &Path, entries: &mut Entries) -> Result<()> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    for (number, line) in file.split(b'\n').enumerate() {
        let line = line.map_err(Error::io(path))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Value = match serde_json::from_slice(&line) {
            Ok(row) => row,
            Err(e) => {
                entries.bad.push(BadFile { id: format!("line {}", number + 1), reason: format!("it is no JSON: {e}") });
                continue;
            }
        };
        let at = |names: &[&str]| names.iter().find_map(|n| row.get(n)).filter(|v| !v.is_null());
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
        let split = at(&SPLIT).map(text);
        add(path, number + 1, at(&PATH).and_then(Value::as_str), at(&LABEL).map(text), split.as_deref(), entries)?;
    }
    Ok(())
}

fn add(
    manifest: &Path,
    line: usize,
    path: Option<&str>,
    label: Option<String>,
    split: Option<&str>,
    entries: &mut Entries,
) -> Result<()> {
    let split = match split.filter(|word| !word.trim().is_empty()) {
        None => Split::Train,
        Some(word) => Split::named(word).ok_or_else(|| {
            Error::bad(manifest, format!("line {line}: `{word}` is no split; expected one of {}", Split::words()))
        })?,
    };
    let Some(path) = path else {
        let reason = format!("has no path ({})", PATH.join(", "));
        entries.bad.push(BadFile { id: format!("line {line}"), reason });
        return Ok(());
    };
    let place = Place::File(manifest.parent().unwrap_or(Path::new("")).join(path));
    entries.found.push(Entry { item: Item { id: path.to_string(), place }, label, split });
    Ok(())
}
