//! `info`: what an encoder costs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use twinsight_encoders::{EncoderConfig, encoder, peek_encoder};
use twinsight_train::encoder_file;
use twinsight_train::inspect::inspect;

use crate::cli::InfoArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// An unknown encoder, a file that is none of this program's, a size that the encoder can't take.
pub fn run(args: &InfoArgs, output: &Output) -> Result<ExitCode> {
    let path = Path::new(&args.encoder);
    let (spec, mut config) = if path.exists() {
        let file = encoder_file(path)?.0;
        let found = peek_encoder(&file)?;
        let (spec, config, _) = found.with_context(|| {
            format!("{}: does not say which encoder it holds; `twinsight import` makes such a file of it", file.display())
        })?;
        (spec, config)
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
