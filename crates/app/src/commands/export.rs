//! `export`: an encoder in another form.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use twinsight_encoders::export::{Export, Format, Provenance};
use twinsight_train::Source;

use crate::cli::ExportArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// No encoder there, a form that can't hold it, files that are there already, a folder that can't be written.
pub fn run(args: &ExportArgs, output: &Output) -> Result<ExitCode> {
    let format: Format = args.format.parse()?;
    let source = Source::load(&args.run)?;
    let numbers = source.numbers()?;
    let (loaded, file) = (&source.network, &source.file);
    let folder = file.parent().unwrap_or(std::path::Path::new("."));
    let out = args.out.clone().unwrap_or_else(|| folder.join(format!("export-{}", format.name())));
    let target = out.join(format.weights_file());
    if target.exists() && target.canonicalize()? == file.canonicalize()? {
        bail!("--out {}: its {} is the file that is read; name another folder", out.display(), format.weights_file());
    }
    let mut facts = Vec::new();
    if let Some(method) = loaded.metadata.get("method") {
        facts.push(("Method".to_string(), method.clone()));
    }
    if let Some(config) = &source.run {
        facts.push(("Epochs".into(), config.epochs.to_string()));
        let init = &config.network.init;
        // A name of the Hub is nobody's secret; of a path the folders are.
        let name = twinsight_datasets::remote::hub_id(init).map(|_| init.as_str());
        let name = name.or_else(|| std::path::Path::new(init).file_name().and_then(|name| name.to_str()));
        if let Some(name) = name {
            facts.push(("Began with the weights of".into(), name.into()));
        }
        let result = std::fs::read_to_string(args.run.join("result.json")).ok();
        let result: Option<Value> = result.and_then(|text| serde_json::from_str(&text).ok());
        if let Some((result, knn)) = result.as_ref().and_then(|r| Some((r, r["knn_trained"].as_f64()?))) {
            let on = result["measured_on"].as_str().unwrap_or("held-out");
            facts.push((format!("k-NN accuracy on {on} images"), format!("{:.1} %", knn * 100.0)));
        }
    }
    let notes = loaded.metadata.iter().filter(|(k, _)| !k.starts_with("encoder")).map(|(k, v)| (k.clone(), v.clone())).collect();
    let imported = loaded.metadata.get("imported").cloned();
    let provenance = Provenance { mean: numbers.mean, std: numbers.std, facts, imported, notes };
    let config = loaded.encoder.config();
    let export = Export { spec: loaded.spec, config, params: &loaded.params, provenance: &provenance };
    let written = export.write(&out, format, args.force)?;
    output.say(format!("{} as {} in {}:", loaded.spec.name, format.name(), out.display()));
    for path in &written {
        output.say(format!("  {}", path.file_name().unwrap_or_default().to_string_lossy()));
    }
    output.finish(&json!({"encoder": loaded.spec.name, "format": format.name(), "out": out, "files": written}))?;
    Ok(ExitCode::SUCCESS)
}
