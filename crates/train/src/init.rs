//! A run's start from weights that exist: a run's encoder, or a file of another home.

use std::path::Path;

use twinsight_encoders::weights::{ImportOptions, ImportReport, Weights, beside, initialise};
use twinsight_encoders::{Arch, ConvNext, EncoderConfig, EncoderSpec, peek_encoder};
use twinsight_ssl_methods::Method;

use crate::source::{Origin, encoder_file, normalisation};
use crate::{Error, Layer, Result, RunConfig};

/// Gives student and teacher the weights that `network.init` names, if it names any, and tells what went where. Heads stay as they
/// were drawn. A name of the Hugging Face Hub gets the commit that its weights are of.
///
/// # Errors
/// A file that is missing, damaged, or another encoder's.
pub fn start(method: &dyn Method, config: &mut RunConfig) -> Result<Option<ImportReport>> {
    if config.network.init.is_empty() {
        return Ok(None);
    }
    let file = encoder_file(Path::new(&config.network.init))?.0;
    let weights = Weights::open(&file)?;
    if let Some(pinned) = crate::hub::pinned(&config.network.init, &file) {
        config.network.init = pinned;
    }
    let spec = twinsight_encoders::encoder(&config.encoder)?;
    let networks = method.networks();
    let student = networks.student.sub_store("backbone");
    let report = initialise(&weights, spec, networks.encoder.config(), &student, &ImportOptions::default())?;
    if let Some(teacher) = networks.teacher {
        teacher.sub_store("backbone").copy_from(&student)?;
    }
    Ok(Some(report))
}

/// What a file says about its encoder, as settings of a run that starts from it: kind, shape, normalisation. A file of this program
/// says so itself. Of others the shapes tell, for the encoder that was asked for (`named`), or that the `config.json` beside the file
/// names.
///
/// # Errors
/// A run without an encoder, a damaged file, one that holds another encoder.
pub fn settings(path: &Path, named: Option<&str>) -> Result<(&'static EncoderSpec, Layer)> {
    let file = encoder_file(path)?.0;
    let (spec, config) = match peek_encoder(&file)? {
        Some((spec, config, _)) => (spec, config),
        None => {
            let said = beside(&file);
            let asked = named.map(twinsight_encoders::encoder).transpose()?;
            let Some(spec) = asked.or(said.encoder) else {
                return Err(Error::run(&file, "does not say which encoder it holds: name it by --encoder"));
            };
            (spec, twinsight_encoders::weights::settings(&Weights::open(&file)?, spec, &said.options(spec))?)
        }
    };
    let wrong = |e: toml::ser::Error| Error::Config(format!("{}: {e}", path.display()));
    let mut table = toml::Table::from_iter([
        ("encoder".to_string(), toml::Value::from(spec.name)),
        ("network".to_string(), toml::Value::Table(network(spec, &config).map_err(wrong)?)),
    ]);
    let (numbers, origin) = normalisation(&file, config.channels)?;
    if origin != Origin::Assumed {
        let list = |values: &[f32]| toml::Value::Array(values.iter().map(|&v| toml::Value::Float(shortest(v))).collect());
        let data = [("mean".to_string(), list(&numbers.mean)), ("std".to_string(), list(&numbers.std))];
        table.insert("data".into(), toml::Value::Table(toml::Table::from_iter(data)));
    }
    Ok((spec, Layer::new(format!("--init {}", path.display()), table)))
}

/// The shape of an encoder as settings, with what follows from the size of its images decided.
fn network(spec: &EncoderSpec, config: &EncoderConfig) -> std::result::Result<toml::Table, toml::ser::Error> {
    let patch = match spec.arch {
        Arch::ViT(_) => config.resolved_patch(),
        Arch::ConvNext(_) => ConvNext::stem_patch(config),
        Arch::ResNet(_) => 0,
    };
    let whole = |n: usize| toml::Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    Ok(toml::Table::from_iter([
        ("stem".to_string(), toml::Value::try_from(config.resolved_stem())?),
        ("patch".to_string(), whole(patch)),
        ("registers".to_string(), whole(config.registers)),
        ("heads".to_string(), whole(config.heads)),
        ("layer_scale".to_string(), toml::Value::Float(config.layer_scale)),
        ("ffn".to_string(), toml::Value::try_from(config.ffn)?),
        ("norm".to_string(), toml::Value::try_from(config.norm)?),
    ]))
}

/// A number as it would be written, so that settings stay readable: 0.485, not 0.48500001430511475.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}
