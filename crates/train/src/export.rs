//! Vectors of images in files: npy (float32), CSV, and Parquet where the feature of that name is on.

use std::io;
use std::path::Path;

use candle_core::{Device, Tensor};
use twinsight_datasets::Dataset;
use twinsight_nn::{replace_file, write_atomic};

use crate::evaluate::Features;
use crate::{Error, Result};

/// Writes the rows as a float32 array (rows, dim) that `numpy.load` reads.
///
/// # Errors
/// A place that can't be written; an earlier file stays as it was.
pub fn write_npy(path: &Path, features: &Features) -> Result<()> {
    let rows = Tensor::from_slice(&features.rows, (features.index.len(), features.dim), &Device::Cpu)?;
    Ok(replace_file(path, |target| rows.write_npy(target).map_err(io_error))?)
}

fn io_error(error: candle_core::Error) -> io::Error {
    match error {
        candle_core::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

/// Writes one line an image: its name, its label where there are labels, and its vector where `vectors` says so.
///
/// # Errors
/// A place that can't be written; an earlier file stays as it was.
pub fn write_csv(path: &Path, dataset: &dyn Dataset, features: &Features, vectors: bool) -> Result<()> {
    let wrong = |e: csv::Error| Error::run(path, e.to_string());
    let classes = dataset.classes();
    let mut text = csv::Writer::from_writer(Vec::new());
    let mut head = vec!["image".to_string()];
    let labelled = features.labels.len() == features.index.len();
    if labelled {
        head.push("label".into());
    }
    if vectors {
        head.extend((0..features.dim).map(|j| format!("v{j}")));
    }
    text.write_record(&head).map_err(wrong)?;
    for (row, &i) in features.index.iter().enumerate() {
        let mut line = vec![dataset.id(i)];
        if labelled {
            let label = features.labels[row] as usize;
            line.push(classes.and_then(|c| c.get(label).cloned()).unwrap_or_else(|| label.to_string()));
        }
        if vectors {
            line.extend(features.rows[row * features.dim..(row + 1) * features.dim].iter().map(f32::to_string));
        }
        text.write_record(&line).map_err(wrong)?;
    }
    let bytes = text.into_inner().map_err(|e| Error::run(path, e.to_string()))?;
    Ok(write_atomic(path, |out| out.write_all(&bytes))?)
}

/// Writes one row an image as Parquet: `path`, `label` (where there are labels) and `vector`, a fixed-size list of float32, which Arrow,
/// DuckDB, Polars and Lance read as such. Compressed by zstd, in groups of some thousand rows.
///
/// # Errors
/// A place that can't be written; an earlier file stays as it was.
#[cfg(feature = "parquet")]
pub fn write_parquet(path: &Path, dataset: &dyn Dataset, features: &Features) -> Result<()> {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
    use arrow_schema::{DataType, Field, Schema};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;

    /// Rows of a group.
    const ROWS: usize = 8192;
    let dim = i32::try_from(features.dim).map_err(|_| Error::run(path, "vectors of more numbers than Arrow can count"))?;
    let element = Arc::new(Field::new("element", DataType::Float32, false));
    let labelled = features.labels.len() == features.index.len();
    let mut fields = vec![Field::new("path", DataType::Utf8, false)];
    if labelled {
        fields.push(Field::new("label", DataType::Utf8, false));
    }
    fields.push(Field::new("vector", DataType::FixedSizeList(element.clone(), dim), false));
    let schema = Arc::new(Schema::new(fields));
    let classes = dataset.classes();
    let write = |target: &Path| -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("twinsight ", env!("CARGO_PKG_VERSION")).to_string())
            .set_max_row_group_row_count(Some(ROWS))
            .build();
        let mut writer = ArrowWriter::try_new(std::fs::File::create(target)?, schema.clone(), Some(properties))?;
        for start in (0..features.index.len()).step_by(ROWS) {
            let range = start..(start + ROWS).min(features.index.len());
            let names: StringArray = features.index[range.clone()].iter().map(|&i| Some(dataset.id(i))).collect();
            let mut columns: Vec<ArrayRef> = vec![Arc::new(names)];
            if labelled {
                let name = |&l: &u32| Some(classes.and_then(|c| c.get(l as usize).cloned()).unwrap_or_else(|| l.to_string()));
                columns.push(Arc::new(features.labels[range.clone()].iter().map(name).collect::<StringArray>()));
            }
            let values = features.rows[range.start * features.dim..range.end * features.dim].to_vec();
            let values = Arc::new(Float32Array::from(values));
            columns.push(Arc::new(FixedSizeListArray::try_new(element.clone(), dim, values, None)?));
            writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
        }
        writer.close()?;
        Ok(())
    };
    Ok(replace_file(path, |target| write(target).map_err(io::Error::other))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_a_failure_names_the_file() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("v.npy");
        let features = Features { rows: vec![0.5, -3.0, 1.0, 2.0, 0.0, 7.5], dim: 3, index: vec![0, 1], ..Features::default() };
        write_npy(&path, &features)?;
        assert_eq!(Tensor::read_npy(&path)?.to_vec2::<f32>()?, [[0.5, -3.0, 1.0], [2.0, 0.0, 7.5]]);
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1, "the temporary file is gone");
        let told = write_npy(&dir.path().join("missing/v.npy"), &features).expect_err("no such folder").to_string();
        assert!(told.contains("v.npy"), "{told}");
        Ok(())
    }
}
