//! Golden files and the comparisons that tests of several crates share.
//!
//! A golden file is a safetensors file of inputs and outputs computed by a reference implementation (PyTorch, torchvision,
//! timm, lightly); its metadata holds the case's settings as JSON under the key `case`. The files lie in
//! `tests/fixtures/golden`, or in the folder named by `TWINSIGHT_GOLDEN`. Weights are not stored: both sides make them
//! with [`procedural`], from a parameter's PyTorch name and shape.
//!
//! [`broken`] makes files that should be images and are none, [`jpeg`] JPEGs in any sampling, [`tiff`] images of several bands.
//! [`server`] is a web server on this machine.
//!
//! The crate knows no tensor library: values are `Vec<f32>` beside their shape, so that candle-free crates can use it.

pub mod broken;
pub mod jpeg;
pub mod server;
pub mod tiff;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use safetensors::{Dtype, SafeTensors};

/// A tensor of a golden file, widened to `f32` (integers and `f64` included) in row-major order.
#[derive(Debug, Clone)]
pub struct GoldenTensor {
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Vec<f32>,
}

/// One golden file, read whole.
#[derive(Debug, Clone)]
pub struct Golden {
    /// The case's name: the file's name without its ending.
    pub name: String,
    /// Every tensor of the file by name.
    pub tensors: BTreeMap<String, GoldenTensor>,
    /// The settings of the case, as the reference program wrote them.
    pub case: serde_json::Value,
}

impl Golden {
    /// Reads the case `name` (without `.safetensors`) from [`golden_dir`].
    ///
    /// # Errors
    /// When the file is missing or damaged, or holds an element type that no golden file uses.
    pub fn load(name: &str) -> Result<Self> {
        Self::read(&golden_dir().join(format!("{name}.safetensors")))
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    /// As [`Golden::load`].
    pub fn read(path: &std::path::Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("golden file {}", path.display()))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let case = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get("case"))
            .with_context(|| format!("{} has no `case` in its metadata", path.display()))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let mut tensors = BTreeMap::new();
        for (key, view) in file.tensors() {
            let raw = view.data();
            let data: Vec<f32> = match view.dtype() {
                Dtype::F32 => chunks::<4>(raw).map(f32::from_le_bytes).collect(),
                Dtype::F64 => chunks::<8>(raw).map(|b| f64::from_le_bytes(b) as f32).collect(),
                Dtype::I64 => chunks::<8>(raw).map(|b| i64::from_le_bytes(b) as f32).collect(),
                Dtype::U8 => raw.iter().map(|&b| f32::from(b)).collect(),
                other => bail!("{}: tensor {key} has element type {other:?}", path.display()),
            };
            tensors.insert(key, GoldenTensor { shape: view.shape().to_vec(), data });
        }
        let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, tensors, case: serde_json::from_str(case)? })
    }

    /// The tensor `key`.
    ///
    /// # Errors
    /// When the file holds no such tensor; the message lists those that it holds.
    pub fn get(&self, key: &str) -> Result<&GoldenTensor> {
        self.tensors
            .get(key)
            .with_context(|| format!("{} has no tensor {key}; it has {:?}", self.name, self.tensors.keys().collect::<Vec<_>>()))
    }

    /// The number `key` of the case's settings.
    ///
    /// # Errors
    /// When the setting is missing or is no number.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.case[key].as_f64().with_context(|| format!("{}: setting {key} is {:?}", self.name, self.case[key]))
    }

    /// The seed that the file was written with: the one that [`procedural`] takes.
    ///
    /// # Errors
    /// When the file does not say.
    pub fn seed(&self) -> Result<u32> {
        Ok(self.number("seed")? as u32)
    }
}

/// The CUDA device that tests are to use, by `TWINSIGHT_TEST_DEVICE`: `cuda` or `cuda:N`; none where that is `cpu` or not set.
///
/// # Errors
/// Another name.
pub fn test_device() -> Result<Option<usize>> {
    let name = std::env::var("TWINSIGHT_TEST_DEVICE").unwrap_or_default();
    parse_device(&name).with_context(|| format!("TWINSIGHT_TEST_DEVICE is `{name}`; expected cpu, cuda or cuda:N"))
}

fn parse_device(name: &str) -> Option<Option<usize>> {
    match name.strip_prefix("cuda") {
        Some("") => Some(Some(0)),
        Some(number) => Some(Some(number.strip_prefix(':')?.parse().ok()?)),
        None => matches!(name, "" | "cpu").then_some(None),
    }
}

/// The folder of golden files: `TWINSIGHT_GOLDEN` when set, otherwise `tests/fixtures/golden` of this workspace.
pub fn golden_dir() -> PathBuf {
    match std::env::var_os("TWINSIGHT_GOLDEN") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden"),
    }
}

/// The weights that the reference programs gave to the parameter `name` of `shape` (PyTorch's layout) under `seed`.
///
/// A 32-bit hash of the element's index, the CRC-32 of the name and the seed, mapped to [-1, 1) and then scaled by the
/// role that the end of the name and the number of dimensions tell.
pub fn procedural(name: &str, shape: &[usize], seed: u32) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let base = crc32fast::hash(name.as_bytes()).wrapping_add(seed.wrapping_mul(40503));
    let token = ["pos_embed", "position_embeddings", "cls_token", "mask_token", "register_tokens"];
    let fan_in: usize = shape.iter().skip(1).product();
    (0..count)
        .map(|i| {
            let mut h = (i as u32).wrapping_add(1).wrapping_mul(2_654_435_761).wrapping_add(base);
            h ^= h >> 16;
            h = h.wrapping_mul(0x85eb_ca6b);
            h ^= h >> 13;
            h = h.wrapping_mul(0xc2b2_ae35);
            h ^= h >> 16;
            let u = f64::from(h) / 4_294_967_296.0 * 2.0 - 1.0;
            let value = if name.ends_with("running_var") {
                1.0 + 0.5 * u.abs()
            } else if name.ends_with("running_mean") {
                0.1 * u
            } else if name.ends_with("gamma") || name.ends_with("lambda1") {
                1.0 + 0.1 * u
            } else if token.iter().any(|t| name.contains(t)) {
                0.1 * u
            } else if shape.len() <= 1 {
                if name.ends_with("weight") { 1.0 + 0.1 * u } else { 0.1 * u }
            } else {
                u * (3.0 / fan_in as f64).sqrt()
            };
            value as f32
        })
        .collect()
}

/// The relative error `‖got − want‖ / ‖want‖` (L2 norms over all elements, in `f64`).
///
/// A `want` of zeros gives the plain norm of `got`; differing lengths or a value that is not finite give infinity.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() || got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let square = |v: f64| v * v;
    let difference: f64 = got.iter().zip(want).map(|(&g, &w)| square(f64::from(g) - f64::from(w))).sum();
    let norm: f64 = want.iter().map(|&w| square(f64::from(w))).sum();
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// Fails with a line that names `what` unless [`relative_error`] is at most `tolerance`.
///
/// # Errors
/// When the values are further apart than `tolerance`.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f64) -> Result<()> {
    let error = relative_error(got, want);
    if error <= tolerance {
        return Ok(());
    }
    let head = |v: &[f32]| format!("{:?}", &v[..v.len().min(6)]);
    bail!(
        "{what}: relative error {error:.3e} over {tolerance:.1e} ({} and {} values; got {} …, want {} …)",
        got.len(),
        want.len(),
        head(got),
        head(want)
    )
}

fn chunks<const N: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    raw.chunks_exact(N).map(|c| c.try_into().expect("chunks_exact gives N bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procedural_weights_equal_the_reference() -> Result<()> {
        // The optimizer cases store their procedural start.
        let golden = Golden::load("optimizer_sgd")?;
        let start = golden.get("start")?;
        assert_close("w", &procedural("w", &start.shape, golden.seed()?), &start.data, 1e-7)
    }

    #[test]
    fn devices_are_named_and_nothing_else() {
        assert_eq!([parse_device(""), parse_device("cpu")], [Some(None); 2]);
        assert_eq!([parse_device("cuda"), parse_device("cuda:2")], [Some(Some(0)), Some(Some(2))]);
        assert_eq!([parse_device("cuda:x"), parse_device("cuda2"), parse_device("metal")], [None; 3]);
    }

    #[test]
    fn a_wrong_value_is_an_error() {
        assert!(assert_close("x", &[1.0, 2.0], &[1.0, 2.1], 1e-3).is_err());
        assert!(assert_close("x", &[1.0], &[1.0, 2.1], 1e-3).is_err());
        assert!(assert_close("x", &[f32::NAN], &[1.0], 1e-3).is_err());
    }
}
