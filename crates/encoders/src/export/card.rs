//! The model card, in the form of the Hugging Face hub.

use super::homes::{Home, dim};
use super::{Export, Format};
use crate::Arch;

/// The text of `README.md`.
pub(super) fn card(export: &Export<'_>, format: Format, home: &Home) -> String {
    let (spec, config, p) = (export.spec, export.config, export.provenance);
    let library = match format {
        Format::Timm => "timm",
        Format::Transformers => "transformers",
        Format::Torchvision => "torchvision",
        Format::Onnx => "onnx",
        Format::Safetensors => "twinsight",
    };
    let patches = match spec.arch {
        Arch::ViT(_) => format!("\n- Patches: {0} × {0} pixels", config.resolved_patch()),
        _ => String::new(),
    };
    let shorter = super::shorter_side(config.image_size);
    let resize = format!("the image's shorter side resized to {shorter}, bilinear, and the middle taken");
    let origin = match &p.imported {
        None => ", trained without labels".to_string(),
        Some(words) => format!("; its weights were imported from elsewhere ({})", plain(words)),
    };
    let tag = if p.imported.is_none() { "- self-supervised-learning\n" } else { "" };
    let facts: String = p.facts.iter().map(|(key, value)| format!("- {}: {}\n", plain(key), plain(value))).collect();
    format!(
        "---\nlibrary_name: {library}\npipeline_tag: image-feature-extraction\ntags:\n- image-feature-extraction\n{tag}\
         - twinsight\n---\n\n# {name}\n\n{summary}: a vector of {dim} numbers for an image{origin}.\n\n## Facts\n\n\
         - Architecture: {paper}\n- Parameters: {count}\n- Input: {channels} channels, {side} × {side} pixels ({resize}), \
         values in 0 to 1, then (value − mean) / std\n- Mean: {mean:?}\n- Standard deviation: {std:?}{patches}\n{facts}\n## Use\n\n```python\n{python}\n```\n\n\
         ## Limits\n\nThe vectors say which images look alike to the network. What they are good for depends on the images that it \
         learned from; measure it on images of your own before you rely on it.\n",
        name = spec.name,
        summary = capital(spec.summary),
        dim = dim(&spec.arch),
        paper = spec.paper,
        count = export.params.trainable_count(),
        channels = config.channels,
        side = config.image_size,
        mean = p.mean,
        std = p.std,
        python = home.python,
    )
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// A fact on one line.
fn plain(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
