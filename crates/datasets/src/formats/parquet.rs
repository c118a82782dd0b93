//! Parquet files with a column of encoded images, as the Hugging Face Hub has them: a struct of `bytes` and `path`, or plain binary.
//!
//! A row can't be read without its whole row group, so the encoded images are copied once (`copies.rs`), a row group at a time, and read
//! from there in any order; names and labels lie behind them. Names of classes come from the `huggingface` entry of the schema's metadata.
//!
//! Where only some images are wanted, the row groups that hold enough of each class are chosen by the column of labels (`groups.rs`), and no
//! image of another group is touched. A copy of these groups is kept under a limit; that of a sample, which is for a look, serves one reader.

mod groups;

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::copies::copied;
use crate::encoded::Item;
use crate::open::{BadFile, OpenOptions};
use crate::place::{OpenFile, Place};
use crate::sources::{Entries, Entry, Split};
use crate::{Error, Result};

/// Columns that hold a label, in order of preference.
const LABELS: [&str; 5] = ["label", "fine_label", "labels", "class", "target"];
/// Rows that are in memory at a time.
const ROWS: usize = 64;

/// What is known of a row: its name, its label, and where its image lies in the copy.
struct Row {
    id: String,
    label: Option<String>,
    place: Option<(u64, u64)>,
}

/// A file's rows and the names of its classes.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    classes: Option<Vec<String>>,
    /// Whether they are the rows of some groups only.
    is_part: bool,
}

/// Reads `files`, which lie below `root`. One that can't be read is named as bad; what came before its damage is whole.
///
/// # Errors
/// A copy that can't be written.
pub(crate) fn read(root: &Path, files: &[PathBuf], options: &OpenOptions) -> Result<Entries> {
    let mut entries = Entries { labelled_by: "the table", ..Entries::default() };
    let mut takes: Vec<Take> = files.iter().map(|_| Take::All).collect();
    if let Some(count) = options.limit.or(options.sample) {
        let choice = groups::choose(root, files, count);
        (takes, entries.classes, entries.whole) = (choice.takes, choice.classes, choice.whole);
    }
    // In the files' order, however many threads read them.
    let read = files.par_iter().zip(&takes).filter(|(_, take)| !matches!(take, Take::Groups(groups) if groups.is_empty()));
    let read =
        read.map(|(path, take)| (path, read_file(path, &options.cache, take, options.limit.is_some()))).collect::<Vec<_>>();
    for (path, read) in read {
        let below = path.strip_prefix(root).ok().filter(|p| !p.as_os_str().is_empty());
        let below = below.unwrap_or_else(|| Path::new(path.file_name().unwrap_or_default()));
        // Names are told apart by their file, which must not look like a folder, and so like a label.
        let below = below.strip_prefix("data").unwrap_or(below).to_string_lossy().replace(['/', '\\'], "-");
        let stem = below.strip_suffix(".parquet").unwrap_or(&below);
        let (file, table, damage) = match read {
            Ok(read) => read,
            Err(e) if !path.is_file() => {
                entries.bad.push(BadFile::new(below.clone(), &e));
                continue;
            }
            Err(e) => return Err(e),
        };
        entries.bad.extend(damage.map(|e| BadFile::new(below.clone(), &e)));
        entries.classes = entries.classes.or(table.classes);
        let split = Split::of_path(root, path);
        for Row { id, label, place } in table.rows {
            let id = format!("{stem}:{id}");
            match place {
                Some((start, length)) => {
                    let item = Item { id, place: Place::Part { file: file.clone(), start, length } };
                    entries.found.push(Entry { item, label, split });
                }
                None => entries.bad.push(BadFile { id, reason: "the row has no image".into() }),
            }
        }
    }
    Ok(entries)
}

/// The copy of a file's images, its rows, and what is damaged in it.
type FileRows = (Arc<OpenFile>, Table, Option<Error>);

/// What is wanted of a file.
enum Take {
    All,
    /// Row groups by number, each with the numbers of its rows.
    Groups(Vec<(usize, Range<usize>)>),
}

/// What is wanted of a file, by its copy; one of some groups is made to be kept where `keeps_parts`.
fn read_file(path: &Path, cache: &Path, take: &Take, keeps_parts: bool) -> Result<FileRows> {
    let (mut fresh, mut damage) = (None, None);
    let parts = match take {
        Take::All => None,
        Take::Groups(groups) => {
            let mut hash = DefaultHasher::new();
            groups.iter().for_each(|(number, _)| number.hash(&mut hash));
            Some(format!("{:016x}", hash.finish()))
        }
    };
    let file = copied(path, cache, "images", parts.as_deref(), &mut |out| {
        let mut table = Table { is_part: parts.is_some(), ..Table::default() };
        damage = copy(path, take, out, &mut table)?.err();
        write_rows(&table, out).map_err(Error::io(path))?;
        let is_part = table.is_part;
        fresh = Some(table);
        Ok(damage.is_none() && (keeps_parts || !is_part))
    })?;
    let mut table = match fresh {
        Some(table) => table,
        None => read_rows(&file)?,
    };
    if let (false, Take::Groups(groups)) = (table.is_part, take) {
        let mut number = 0..;
        table.rows.retain(|_| number.next().is_some_and(|n| groups.iter().any(|(_, rows)| rows.contains(&n))));
    }
    Ok((file, table, damage))
}

/// Copies the images of a file to `out`, and the rest of its rows to `table`. The inner result is that of the file, the outer one that
/// of the copy.
fn copy(path: &Path, take: &Take, out: &mut impl Write, table: &mut Table) -> Result<Result<()>> {
    let mut inner = || -> std::result::Result<(), Trouble> {
        let failed = |e: ParquetError| Trouble::File(Error::bad(path, e.to_string()));
        let file = File::open(path).map_err(|e| Trouble::File(Error::io(path)(e)))?;
        let reader = SerializedFileReader::new(file).map_err(failed)?;
        let columns = Columns::of(&reader, path).map_err(Trouble::File)?;
        table.classes.clone_from(&columns.classes);
        let (mut end, mut first) = (0, 0);
        for number in 0..reader.num_row_groups() {
            let rows = reader.metadata().row_group(number).num_rows().max(0) as usize;
            let mut row = first;
            first += rows;
            if matches!(take, Take::Groups(wanted) if wanted.iter().all(|(n, _)| *n != number)) {
                continue;
            }
            let group = reader.get_row_group(number).map_err(failed)?;
            let labels = columns.labels(&*group).map_err(failed)?;
            let mut names =
                columns.path.map(|c| strings(&*group, c)).transpose().map_err(failed)?.unwrap_or_default().into_iter();
            let mut labels = labels.into_iter();
            binary(&*group, columns.image, &mut |raw| {
                let name = names.next().flatten().map(|n| String::from_utf8_lossy(&n).into_owned()).filter(|n| !n.is_empty());
                let id = name.unwrap_or_else(|| format!("#{row}"));
                row += 1;
                let length = raw.map_or(0, <[u8]>::len) as u64;
                out.write_all(raw.unwrap_or_default()).map_err(Error::io(path))?;
                table.rows.push(Row { id, label: labels.next().flatten(), place: raw.map(|_| (end, length)) });
                end += length;
                Ok(())
            })
            .map_err(|e| match e {
                Trouble::Parquet(e) => failed(e),
                other => other,
            })?;
        }
        Ok(())
    };
    match inner() {
        Ok(()) => Ok(Ok(())),
        Err(Trouble::File(e)) => Ok(Err(e)),
        Err(Trouble::Parquet(e)) => Ok(Err(Error::bad(path, e.to_string()))),
        Err(Trouble::Own(e)) => Err(e),
    }
}

/// Writes rows behind the images of a copy: JSON, and its length in bytes.
fn write_rows(table: &Table, out: &mut impl Write) -> std::io::Result<()> {
    let rows: Vec<Value> = table.rows.iter().map(|r| json!([r.id, r.label, r.place])).collect();
    let text = json!({"classes": table.classes, "part": table.is_part, "rows": rows}).to_string();
    out.write_all(text.as_bytes())?;
    out.write_all(&(text.len() as u64).to_le_bytes())
}

/// Reads what [`write_rows`] wrote.
fn read_rows(file: &OpenFile) -> Result<Table> {
    let damaged = || Error::bad(file.path(), "its copy in the cache's folder `copies` is damaged; delete that folder");
    let end = file.length()?.checked_sub(8).ok_or_else(damaged)?;
    let mut length = [0; 8];
    file.read_at(&mut length, end)?;
    let length = u64::from_le_bytes(length);
    let start = end.checked_sub(length).ok_or_else(damaged)?;
    let mut raw = vec![0; length as usize];
    file.read_at(&mut raw, start)?;
    let mut found: Value = serde_json::from_slice(&raw).map_err(|_| damaged())?;
    let text = |v: &Value| v.as_str().map(String::from);
    let row = |v: &Value| {
        let place = match v.get(2)? {
            Value::Null => None,
            pair => Some((pair.get(0)?.as_u64()?, pair.get(1)?.as_u64()?)),
        };
        Some(Row { id: text(v.get(0)?)?, label: text(v.get(1)?), place })
    };
    let rows = found["rows"].take();
    let rows = rows.as_array().and_then(|rows| rows.iter().map(row).collect()).ok_or_else(damaged)?;
    let classes = found["classes"].as_array().and_then(|c| c.iter().map(text).collect());
    Ok(Table { rows, classes, is_part: found["part"].as_bool().unwrap_or(false) })
}

/// Which columns of a file hold what.
struct Columns {
    image: usize,
    path: Option<usize>,
    label: Option<usize>,
    classes: Option<Vec<String>>,
}

impl Columns {
    fn of(reader: &SerializedFileReader<File>, path: &Path) -> Result<Self> {
        let about = reader.metadata().file_metadata();
        let columns = about.schema_descr().columns();
        let names: Vec<String> = columns.iter().map(|c| c.path().string()).collect();
        let flat = |i: usize| columns[i].max_rep_level() == 0;
        let is_binary = |i: usize| columns[i].physical_type() == Type::BYTE_ARRAY && flat(i);
        let is_text = |i: usize| {
            columns[i].logical_type_ref().is_some() || columns[i].converted_type() != parquet::basic::ConvertedType::NONE
        };
        // A struct's bytes, or else the first binary column that is no text.
        let image = (0..names.len())
            .find(|&i| names[i].ends_with(".bytes") && is_binary(i))
            .or_else(|| (0..names.len()).find(|&i| is_binary(i) && !is_text(i)));
        let Some(image) = image else {
            let reason = "has no column of images (binary, or a struct of bytes and path), but";
            return Err(Error::bad(path, format!("{reason}: {}", names.join(", "))));
        };
        let beside = names[image].strip_suffix("bytes").map(|stem| format!("{stem}path"));
        let label = LABELS.iter().find_map(|l| names.iter().position(|n| n == l)).filter(|&i| flat(i));
        let classes = label.and_then(|l| {
            let values = about.key_value_metadata()?;
            let text = values.iter().find(|v| v.key == "huggingface")?.value.as_deref()?;
            let parsed: Value = serde_json::from_str(text).ok()?;
            let listed = parsed.pointer(&format!("/info/features/{}/names", names[l]))?.as_array()?;
            listed.iter().map(|n| n.as_str().map(String::from)).collect()
        });
        Ok(Self { image, path: beside.and_then(|b| names.iter().position(|n| *n == b)), label, classes })
    }

    /// The labels of a row group's rows: names, or numbers as text.
    fn labels(&self, group: &dyn RowGroupReader) -> Result<Vec<Option<String>>, ParquetError> {
        let Some(column) = self.label else { return Ok(Vec::new()) };
        let name = |n: i64| {
            let known = self.classes.as_ref().and_then(|c| c.get(usize::try_from(n).ok()?).cloned());
            // -1 is the Hub's way to say that there is none.
            known.or_else(|| (n >= 0).then(|| n.to_string()))
        };
        let count = group.metadata().num_rows() as usize;
        let mut levels = Vec::new();
        match group.get_column_reader(column)? {
            ColumnReader::Int64ColumnReader(mut reader) => {
                let mut values = Vec::new();
                reader.read_records(count, Some(&mut levels), None, &mut values)?;
                Ok(spread(&levels, most(group, column), values).into_iter().map(|v| v.and_then(name)).collect())
            }
            ColumnReader::Int32ColumnReader(mut reader) => {
                let mut values = Vec::new();
                reader.read_records(count, Some(&mut levels), None, &mut values)?;
                let values = values.into_iter().map(i64::from).collect();
                Ok(spread(&levels, most(group, column), values).into_iter().map(|v| v.and_then(name)).collect())
            }
            ColumnReader::ByteArrayColumnReader(_) => {
                let text = |raw: Vec<u8>| String::from_utf8_lossy(&raw).into_owned();
                Ok(strings(group, column)?.into_iter().map(|v| v.map(text)).collect())
            }
            _ => Ok(Vec::new()),
        }
    }
}

enum Trouble {
    /// Within a column of the file.
    Parquet(ParquetError),
    /// With the file as such.
    File(Error),
    /// With the copy.
    Own(Error),
}

/// The definition level at which a column has a value.
fn most(group: &dyn RowGroupReader, column: usize) -> i16 {
    group.metadata().column(column).column_descr().max_def_level()
}

/// Values in the places that levels give them.
fn spread<T>(levels: &[i16], most: i16, values: Vec<T>) -> Vec<Option<T>> {
    if most == 0 {
        return values.into_iter().map(Some).collect();
    }
    let mut values = values.into_iter();
    levels.iter().map(|&l| if l == most { values.next() } else { None }).collect()
}

/// Gives the values of a binary column to `take`, a few rows at a time.
fn binary(
    group: &dyn RowGroupReader,
    column: usize,
    take: &mut dyn FnMut(Option<&[u8]>) -> Result<()>,
) -> std::result::Result<(), Trouble> {
    let ColumnReader::ByteArrayColumnReader(mut reader) = group.get_column_reader(column).map_err(Trouble::Parquet)? else {
        return Ok(());
    };
    loop {
        let (mut levels, mut values) = (Vec::new(), Vec::<ByteArray>::new());
        let (records, _, _) = reader.read_records(ROWS, Some(&mut levels), None, &mut values).map_err(Trouble::Parquet)?;
        if records == 0 {
            return Ok(());
        }
        for value in spread(&levels, most(group, column), values) {
            take(value.as_ref().map(ByteArray::data)).map_err(Trouble::Own)?;
        }
    }
}

/// A row group's values of a column of texts.
fn strings(group: &dyn RowGroupReader, column: usize) -> Result<Vec<Option<Vec<u8>>>, ParquetError> {
    let mut found = Vec::new();
    match binary(group, column, &mut |raw| {
        found.push(raw.map(<[u8]>::to_vec));
        Ok(())
    }) {
        Err(Trouble::Parquet(e)) => Err(e),
        _ => Ok(found),
    }
}
