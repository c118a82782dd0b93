//! A run's start from weights that exist: a run's encoder, or a file of another home.

use std::path::{Path, PathBuf};

use twinsight_encoders::weights::{ImportOptions, Weights, initialise};
use twinsight_encoders::{EncoderSpec, peek_encoder};
use twinsight_ssl_methods::Method;

use crate::{Layer, Result, RunConfig, encoder_file};

/// Gives student and teacher the weights that `network.init` names, if it names any. Heads stay as they were drawn.
///
/// # Errors
/// A file that is missing, damaged, or another encoder's.
pub fn start(method: &dyn Method, config: &RunConfig) -> Result<()> {
    if config.network.init.is_empty() {
        return Ok(());
    }
    let path = Path::new(&config.network.init);
    let weights = Weights::open(&file(path)?)?;
    let spec = twinsight_encoders::encoder(&config.encoder)?;
    let networks = method.networks();
    let student = networks.student.sub_store("backbone");
    initialise(&weights, spec, networks.encoder.config(), &student, &ImportOptions::default())?;
    if let Some(teacher) = networks.teacher {
        teacher.sub_store("backbone").copy_from(&student)?;
    }
    Ok(())
}

/// What a file of this program says about its encoder, as settings of a run that starts from it: kind, shape, normalisation. `None`
/// for files of others.
///
/// # Errors
/// A run without an encoder, a damaged file.
pub fn settings(path: &Path) -> Result<Option<(&'static EncoderSpec, Layer)>> {
    let Some((spec, config, words)) = peek_encoder(&file(path)?)? else { return Ok(None) };
    let mut network = toml::Table::new();
    let wrong = |e: toml::ser::Error| crate::Error::Config(format!("{}: {e}", path.display()));
    network.insert("stem".into(), toml::Value::try_from(config.resolved_stem()).map_err(wrong)?);
    network.insert("patch".into(), toml::Value::Integer(config.patch.unwrap_or(0) as i64));
    network.insert("registers".into(), toml::Value::Integer(config.registers as i64));
    network.insert("layer_scale".into(), toml::Value::Float(config.layer_scale));
    network.insert("ffn".into(), toml::Value::try_from(config.ffn).map_err(wrong)?);
    network.insert("norm".into(), toml::Value::try_from(config.norm).map_err(wrong)?);
    let mut table = toml::Table::from_iter([
        ("encoder".to_string(), toml::Value::from(spec.name)),
        ("network".to_string(), toml::Value::Table(network)),
    ]);
    let numbers = words.get("normalize").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    if let Some(numbers) = numbers {
        let list = |key: &str| -> Vec<toml::Value> {
            numbers[key].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).map(toml::Value::Float).collect()
        };
        let data = toml::Table::from_iter([
            ("mean".to_string(), toml::Value::Array(list("mean"))),
            ("std".to_string(), toml::Value::Array(list("std"))),
        ]);
        table.insert("data".into(), toml::Value::Table(data));
    }
    Ok(Some((spec, Layer::new(format!("--init {}", path.display()), table))))
}

/// A run's encoder, an exported folder's, or the file itself.
fn file(path: &Path) -> Result<PathBuf> {
    if path.join("config.toml").is_file() {
        return Ok(encoder_file(path)?.0);
    }
    let exported = path.join("model.safetensors");
    Ok(if exported.is_file() { exported } else { path.to_path_buf() })
}
