//! `attention`: what a vision transformer looks at.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use twinsight_datasets::SingleImage;
use twinsight_nn::write_atomic;
use twinsight_train::attention::attention_maps;

use super::trained;
use crate::cli::AttentionArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// An encoder without attention, an image that can't be read, a folder that can't be written.
pub fn run(args: &AttentionArgs, output: &Output) -> Result<ExitCode> {
    let trained = trained(&args.run, &args.on)?;
    let maps = attention_maps(&trained, &SingleImage::open(&args.image, trained.levels)?, 0, args.size)?;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let mut pictures =
        vec![("image".to_string(), &maps.image), ("attention-mean".into(), &maps.mean), ("pca".into(), &maps.components)];
    pictures.extend(maps.heads.iter().enumerate().map(|(i, map)| (format!("attention-head-{i}"), map)));
    let mut written = Vec::new();
    for (name, picture) in pictures {
        let path = args.out.join(format!("{name}.png"));
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).with_context(|| path.display().to_string())?;
        write_atomic(&path, |out| std::io::Write::write_all(out, png.get_ref()))?;
        written.push(path);
    }
    output.say(format!(
        "{} heads' attention, their mean and the patches' main directions in {}",
        maps.heads.len(),
        args.out.display()
    ));
    output.finish(&json!({"heads": maps.heads.len(), "out": args.out, "files": written}))?;
    Ok(ExitCode::SUCCESS)
}
