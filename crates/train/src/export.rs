//! Vectors of images in files: npy (version 1.0 of NumPy's format, float32) and CSV.

use std::path::Path;

use twinsight_datasets::Dataset;
use twinsight_nn::write_atomic;

use crate::evaluate::Features;
use crate::{Error, Result};

/// Writes the rows as a float32 array (rows, dim) that `numpy.load` reads.
///
/// # Errors
/// A place that can't be written; an earlier file stays as it was.
pub fn write_npy(path: &Path, features: &Features) -> Result<()> {
    let shape = format!("({}, {})", features.index.len(), features.dim);
    let mut head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version and length take 10 bytes; the whole is a multiple of 64 and ends in a line break.
    head.push_str(&" ".repeat((64 - (10 + head.len() + 1) % 64) % 64));
    head.push('\n');
    let length = u16::try_from(head.len()).map_err(|_| Error::Config(format!("{shape}: too many digits")))?;
    Ok(write_atomic(path, |out| {
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(head.as_bytes())?;
        features.rows.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
    })?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_npy_file_has_the_form_that_numpy_documents() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("v.npy");
        for (rows, dim) in [(1, 1), (3, 5), (120, 64)] {
            let values: Vec<f32> = (0..rows * dim).map(|i| i as f32 * 0.5 - 3.0).collect();
            write_npy(&path, &Features { rows: values.clone(), dim, index: (0..rows).collect(), ..Features::default() })?;
            let bytes = std::fs::read(&path)?;
            let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            assert_eq!((start % 64, bytes[start - 1], &bytes[..8]), (0, b'\n', &b"\x93NUMPY\x01\x00"[..]));
            let tensor = candle_core::Tensor::read_npy(&path)?;
            assert_eq!((tensor.dims(), tensor.flatten_all()?.to_vec1::<f32>()?), (&[rows, dim][..], values));
        }
        Ok(())
    }
}
