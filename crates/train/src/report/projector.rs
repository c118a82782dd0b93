//! The map for TensorBoard's projector: vectors, names and pictures in `projector/`, and the file that points at them.

use std::fmt::Write as _;

use super::sections::Seen;
use crate::folder::RunFolder;
use crate::{Error, Result};

/// Writes `projector/` and `projector_config.pbtxt`, which TensorBoard finds beside the event files.
///
/// # Errors
/// A full disk.
pub(super) fn write(folder: &RunFolder, seen: &Seen) -> Result<()> {
    let features = seen.features;
    let place = folder.path("projector");
    std::fs::create_dir_all(&place).map_err(Error::io(&place))?;
    let mut vectors = String::new();
    for row in features.rows.chunks_exact(features.dim.max(1)) {
        let words: Vec<String> = row.iter().map(f32::to_string).collect();
        let _ = writeln!(vectors, "{}", words.join("\t"));
    }
    let clean = |text: &str| text.replace(['\t', '\n', '\r'], " ");
    let labelled = features.labels.len() == features.index.len();
    // A heading only where there are two columns: TensorBoard takes the first line of a single one for data.
    let mut names = String::from(if labelled { "image\tlabel\n" } else { "" });
    for (row, &i) in features.index.iter().enumerate() {
        let id = clean(&seen.dataset.id(i));
        if labelled {
            let label = features.labels[row] as usize;
            let class = seen.dataset.classes().and_then(|c| c.get(label)).map_or_else(|| label.to_string(), |c| clean(c));
            let _ = writeln!(names, "{id}\t{class}");
        } else {
            let _ = writeln!(names, "{id}");
        }
    }
    folder.write("projector/vectors.tsv", vectors.as_bytes())?;
    folder.write("projector/images.tsv", names.as_bytes())?;
    folder.write("projector/sprite.png", &seen.sheet.png)?;
    let side = seen.sheet.side;
    let config = format!(
        "embeddings {{\n  tensor_name: \"features\"\n  tensor_path: \"projector/vectors.tsv\"\n  metadata_path: \"projector/images.tsv\"\n  \
         sprite {{\n    image_path: \"projector/sprite.png\"\n    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n}}\n"
    );
    folder.write("projector_config.pbtxt", config.as_bytes())
}
