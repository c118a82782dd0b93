//! Parquet files with a column of encoded images, as the Hugging Face Hub has them: a struct of `bytes` and `path`, or plain binary.
//!
//! A row can't be read without its whole row group, so the encoded images are copied once into a temporary file, a row group at a time, and
//! read from there in any order. Names of classes come from the `huggingface` entry of the schema's metadata.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::Type;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use serde_json::Value;

use crate::encoded::Item;
use crate::open::BadFile;
use crate::place::{Place, Spool};
use crate::sources::{Entries, Entry, Split};
use crate::{Error, Result};

/// Columns that hold a label, in order of preference.
const LABELS: [&str; 5] = ["label", "fine_label", "labels", "class", "target"];
/// Rows that are in memory at a time.
const ROWS: usize = 64;

/// What is known of a row before its image is found in the temporary file.
struct Row {
    id: String,
    label: Option<String>,
    split: Split,
    filled: bool,
}

/// Reads `files`, which have the same columns.
///
/// # Errors
/// A file that is no Parquet or has no column of images; a temporary file that can't be written.
pub(crate) fn read(files: &[PathBuf], temporary: &Path) -> Result<Entries> {
    let mut entries = Entries { labelled_by: "the table", ..Entries::default() };
    let mut spool = Spool::new(temporary)?;
    let mut rows = Vec::new();
    for path in files {
        let failed = |e: ParquetError| Error::bad(path, e.to_string());
        let file = File::open(path).map_err(Error::io(path))?;
        let reader = SerializedFileReader::new(file).map_err(failed)?;
        let columns = Columns::of(&reader, path)?;
        entries.classes = entries.classes.or(columns.classes.clone());
        let stem = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let first = rows.len();
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group).map_err(failed)?;
            let labels = columns.labels(&*group).map_err(failed)?;
            let mut names =
                columns.path.map(|c| strings(&*group, c)).transpose().map_err(failed)?.unwrap_or_default().into_iter();
            let mut labels = labels.into_iter();
            binary(&*group, columns.image, &mut |raw| {
                let number = rows.len() - first;
                let name = names.next().flatten().map(|n| String::from_utf8_lossy(&n).into_owned()).filter(|n| !n.is_empty());
                let id = name.map_or_else(|| format!("{stem}:#{number}"), |n| format!("{stem}:{n}"));
                spool.add(raw.unwrap_or_default())?;
                rows.push(Row { id, label: labels.next().flatten(), split: Split::of_file(path), filled: raw.is_some() });
                Ok(())
            })
            .map_err(|e| match e {
                Trouble::Parquet(e) => failed(e),
                Trouble::Own(e) => e,
            })?;
        }
    }
    let folder = files.first().and_then(|f| f.parent()).unwrap_or(Path::new(""));
    for (row, place) in rows.into_iter().zip(spool.places(folder)) {
        match row.filled {
            true => {
                entries.found.push(Entry { item: Item { id: row.id, place }, label: row.label, split: row.split });
            }
            false => entries.bad.push(BadFile { id: row.id, reason: "the row has no image".into() }),
        }
    }
    debug_assert!(entries.found.iter().all(|e| matches!(e.item.place, Place::Part { .. })));
    Ok(entries)
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
    Parquet(ParquetError),
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
