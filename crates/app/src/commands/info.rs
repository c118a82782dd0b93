//! `info`: what an encoder costs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use twinsight_datasets::remote::is_remote;
use twinsight_encoders::{EncoderConfig, encoder};
use twinsight_train::Source;
use twinsight_train::inspect::inspect;

use crate::cli::InfoArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// An unknown encoder, weights that can't be had, a file that is none of this program's, a size that the encoder can't take.
pub fn run(args: &InfoArgs, output: &Output) -> Result<ExitCode> {
    let path = Path::new(&args.encoder);
    let (spec, mut config) = if path.exists() || is_remote(&args.encoder) {
        // Read whole, so that a file is believed only as far as its tensors go.
        let source = Source::load(path)?;
        (source.network.spec, source.network.encoder.config().clone())
    } else {
        (encoder(&args.encoder)?, EncoderConfig::default())
    };
    config.image_size = args.size.unwrap_or(config.image_size);
    let found = inspect(spec, &config, args.batch)?;
    let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    output.say(format!("{}: {}", spec.name, spec.summary));
    output.say(format!("parameters      {}", found.parameters));
    output.say(format!("vector          {} numbers", found.dim));
    output.say(format!("multiply-adds   {:.2} G an image of {} px", found.multiply_adds as f64 * 1e-9, config.image_size));
    output.say(format!(
        "training step   {} for {} images seen once, with SGD",
        found.step_bytes.map_or("unknown on this system".to_string(), gib),
        args.batch
    ));
    output.finish(&found)?;
    Ok(ExitCode::SUCCESS)
}
