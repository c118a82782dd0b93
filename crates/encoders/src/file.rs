//! Encoders in files that describe themselves: safetensors with the encoder's name and settings in the metadata.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use twinsight_nn::{Builder, ParamStore, load_metadata, save_tensors};

use crate::weights::Weights;
use crate::{Encoder, EncoderConfig, EncoderSpec, Error, Result, encoder};

/// Metadata keys of a file of weights.
const NAME: &str = "encoder";
const CONFIG: &str = "encoder_config";

/// An encoder read from a file.
pub struct LoadedEncoder {
    /// Which it is.
    pub spec: &'static EncoderSpec,
    /// The network with the file's weights.
    pub encoder: Box<dyn Encoder>,
    /// Its parameters.
    pub params: ParamStore,
    /// All of the file's metadata, the `notes` of [`save_encoder`] included.
    pub metadata: BTreeMap<String, String>,
}

/// Writes the weights and buffers `params` of an encoder of kind `spec`, built with `config`, to `path` as safetensors under
/// their PyTorch names. `notes` (the images' normalisation, say) go into the metadata beside name and settings.
/// The file appears whole or not at all; the same weights give the same bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn save_encoder(
    path: &Path,
    spec: &EncoderSpec,
    config: &EncoderConfig,
    params: &ParamStore,
    notes: &BTreeMap<String, String>,
) -> Result<()> {
    let mut metadata = notes.clone();
    metadata.extend(describe(spec.name, config)?);
    Ok(save_tensors(path, &params.snapshot()?, &metadata)?)
}

/// The metadata by which a file says that it holds the encoder called `name`, built with `config`. A file of that encoder's
/// tensors with these words (and any others) is one that [`load_encoder`] reads.
///
/// # Errors
/// An unknown name.
pub fn describe(name: &str, config: &EncoderConfig) -> Result<BTreeMap<String, String>> {
    let spec = encoder(name)?;
    // How it was trained is not what it is.
    let config = &EncoderConfig { checkpoint_activations: false, freeze: Vec::new(), ..config.clone() };
    let json = serde_json::to_string(config).map_err(|e| Error::BadSetting {
        key: "encoder",
        value: name.into(),
        expected: format!("settings that JSON can hold ({e})"),
    })?;
    Ok(BTreeMap::from([(NAME.into(), spec.name.into()), (CONFIG.into(), json)]))
}

/// Reads an encoder that [`save_encoder`] wrote, onto `device`. Every tensor is checked by name, shape and values; nothing is built
/// that the file's own tensors do not fill, whatever its settings say.
///
/// # Errors
/// A missing or damaged file, one that does not say which encoder it holds, one whose tensors are not that encoder's, or a
/// tensor that holds what is no finite number.
pub fn load_encoder(path: &Path, device: &Device) -> Result<LoadedEncoder> {
    let metadata = load_metadata(path)?;
    let (spec, config) = described(path, &metadata)?;
    let weights = Weights::open(path)?;
    let place = path.display().to_string();
    let builder = Builder::expecting(place.clone(), weights.shapes(), device);
    let encoder = (spec.build)(&config, &builder)?;
    let params = builder.finish();
    if let Some(name) = weights.names().find(|name| params.get(name).is_none()) {
        return Err(twinsight_nn::Error::ExtraTensor { place, name: name.into() }.into());
    }
    for p in params.iter() {
        p.set(&weights.read(p.name())?.to_device(device)?)?;
    }
    Ok(LoadedEncoder { spec, encoder, params, metadata })
}

/// What a file says of its encoder: its kind, its settings, all of its metadata.
pub type Description = (&'static EncoderSpec, EncoderConfig, BTreeMap<String, String>);

/// What a file written by [`save_encoder`] says that it holds: kind, settings, and all of its metadata. `None` for other files.
///
/// # Errors
/// A file that says it holds an encoder, and then one that is not known or has settings out of range.
pub fn peek_encoder(path: &Path) -> Result<Option<Description>> {
    let Ok(words) = load_metadata(path) else { return Ok(None) };
    if !(words.contains_key(NAME) && words.contains_key(CONFIG)) {
        return Ok(None);
    }
    let (spec, config) = described(path, &words)?;
    Ok(Some((spec, config, words)))
}

/// Kind and settings by the words of a file.
fn described(path: &Path, words: &BTreeMap<String, String>) -> Result<(&'static EncoderSpec, EncoderConfig)> {
    let word = |key: &str| {
        words.get(key).ok_or_else(|| {
            let import = "`twinsight import` makes an encoder file of weights from elsewhere";
            bad(path, format!("its metadata has no `{key}`: this is no encoder file written by twinsight; {import}"))
        })
    };
    let (name, json) = (word(NAME)?, word(CONFIG)?);
    let spec = encoder(name).map_err(|e| bad(path, e.to_string()))?;
    let config: EncoderConfig =
        serde_json::from_str(json).map_err(|e| bad(path, format!("the settings under `{CONFIG}` are damaged: {e}")))?;
    config.check().map_err(|e| bad(path, format!("the settings under `{CONFIG}`: {e}")))?;
    Ok((spec, config))
}

fn bad(path: &Path, reason: String) -> Error {
    Error::BadMetadata { path: path.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Tensor};
    use twinsight_nn::Mode;

    #[test]
    fn a_file_gives_the_same_encoder_back() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("encoder.safetensors");
        let config = EncoderConfig { channels: 1, image_size: 28, ..EncoderConfig::default() };
        let spec = encoder("resnet_mini")?;
        let builder = Builder::new(5, &Device::Cpu);
        let network = (spec.build)(&config, &builder)?;
        let notes = BTreeMap::from([("mean".to_string(), "[0.5]".to_string())]);
        save_encoder(&path, spec, &config, &builder.finish(), &notes)?;
        let bytes = std::fs::read(&path)?;

        let loaded = load_encoder(&path, &Device::Cpu)?;
        assert_eq!((loaded.spec.name, loaded.encoder.config()), ("resnet_mini", &config));
        assert_eq!(loaded.metadata["mean"], "[0.5]");
        let x = Tensor::ones((2, 1, 28, 28), DType::F32, &Device::Cpu)?;
        let vectors = |e: &dyn Encoder| -> anyhow::Result<_> { Ok(e.forward(&x, &Mode::EVAL)?.pooled.to_vec2::<f32>()?) };
        assert_eq!(vectors(&*network)?, vectors(&*loaded.encoder)?);

        save_encoder(&path, loaded.spec, &config, &loaded.params, &loaded.metadata)?;
        assert_eq!(bytes, std::fs::read(&path)?, "the same weights must give the same bytes");
        Ok(())
    }

    #[test]
    fn a_file_that_is_no_encoder_is_refused() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.safetensors");
        let refusal = |metadata: &[(&str, &str)]| -> anyhow::Result<String> {
            let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            save_tensors(&path, &BTreeMap::new(), &metadata)?;
            match load_encoder(&path, &Device::Cpu) {
                Ok(_) => anyhow::bail!("{metadata:?} was accepted"),
                Err(e) => Ok(e.to_string()),
            }
        };
        assert!(refusal(&[])?.contains("no `encoder`"));
        assert!(refusal(&[(NAME, "resnet_mimi"), (CONFIG, "{}")])?.contains("resnet_mini"));
        assert!(refusal(&[(NAME, "resnet_mini"), (CONFIG, "{")])?.contains("damaged"));
        assert!(refusal(&[(NAME, "resnet_mini"), (CONFIG, "{}")])?.contains("conv1.weight"));
        assert!(refusal(&[(NAME, "vit_mini"), (CONFIG, r#"{"image_size":65536}"#)])?.contains("1 to 4096"));
        // Gigabytes, if they were built.
        let large = r#"{"channels":16,"image_size":4096,"patch":128}"#;
        assert!(refusal(&[(NAME, "vit_large"), (CONFIG, large)])?.contains("cls_token"));
        Ok(())
    }

    #[test]
    fn tensors_that_hold_nothing_or_no_numbers_are_refused_by_name() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.safetensors");
        let config = EncoderConfig { image_size: 32, ..EncoderConfig::default() };
        let builder = Builder::new(5, &Device::Cpu);
        (encoder("vit_mini")?.build)(&config, &builder)?;
        let good = builder.finish().snapshot()?;
        for (name, value, words) in [
            ("pos_embed", Tensor::zeros((1, 65, 0), DType::F32, &Device::Cpu)?, "[1, 65, 0]"),
            ("norm.bias", Tensor::full(f32::NAN, 192, &Device::Cpu)?, "holds NaN"),
            ("blocks.1.norm2.weight", Tensor::full(f32::INFINITY, 192, &Device::Cpu)?, "holds inf"),
        ] {
            let mut tensors = good.clone();
            tensors.insert(name.into(), value);
            save_tensors(&path, &tensors, &describe("vit_mini", &config)?)?;
            let told = load_encoder(&path, &Device::Cpu).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(told.contains(name) && told.contains(words) && told.contains("x.safetensors"), "{name}: {told}");
        }
        Ok(())
    }
}
