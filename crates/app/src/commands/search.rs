//! `search`: the images that are most similar to one.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use image::{DynamicImage, RgbImage, imageops};
use serde_json::json;
use twinsight_datasets::{Dataset, SingleImage};
use twinsight_knn::Metric;

use super::{open_for, trained};
use crate::cli::SearchArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// No such image, nowhere to look, more images wanted than there are, a picture that can't be written.
pub fn run(args: &SearchArgs, output: &Output) -> Result<ExitCode> {
    if !args.image.is_file() {
        bail!("{}: no such image", args.image.display());
    }
    let trained = trained(&args.run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let query = SingleImage::open(&args.image, trained.levels)?;
    let (data, opened) = open_for(&trained, args.data.as_deref(), false, |_| None)?;
    let mut skipped = Output::skipped(&opened.report.bad_files);
    let dataset: Arc<dyn Dataset> = opened.train;
    let wanted = trained.embed(&query, 1)?;
    let bank = trained.embed(&*dataset, 256)?;
    skipped += Output::skipped(bank.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    if args.k == 0 || args.k > bank.index.len() {
        bail!("--k {}: {data} has {} images; expected 1 to {}", args.k, bank.index.len(), bank.index.len());
    }
    let found = twinsight_knn::search(bank.matrix(), wanted.matrix(), args.k, Metric::Cosine, false)?;
    let (index, score) = found.row(0);
    let images: Vec<usize> = index.iter().map(|&i| bank.index[i as usize]).collect();
    let class = |i: usize| Some(dataset.classes()?.get(dataset.label(i)? as usize)?.clone());
    for (&i, s) in images.iter().zip(score) {
        output.say(format!("{s:.4}  {}{}", dataset.id(i), class(i).map_or(String::new(), |c| format!("  ({c})"))));
    }
    if let Some(out) = &args.out {
        let mut sheet = RgbImage::from_pixel(TILE * (args.k as u32 + 1) + GAP, TILE, image::Rgb([255; 3]));
        place(&mut sheet, &query.get(0)?.image, 0);
        for (n, &i) in images.iter().enumerate() {
            place(&mut sheet, &dataset.get(i)?.image, TILE * (n as u32 + 1) + GAP);
        }
        let mut png = std::io::Cursor::new(Vec::new());
        sheet.write_to(&mut png, image::ImageFormat::Png).with_context(|| out.display().to_string())?;
        twinsight_nn::write_atomic(out, |file| std::io::Write::write_all(file, png.get_ref()))?;
        output.say(format!("drawn in {}", out.display()));
    }
    let rows: Vec<_> =
        images.iter().zip(score).map(|(&i, s)| json!({"image": dataset.id(i), "label": class(i), "similarity": s})).collect();
    output.finish(&json!({"found": rows, "skipped": skipped, "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

/// Side of a picture on the sheet.
const TILE: u32 = 96;
/// Between the image and those found.
const GAP: u32 = 16;

fn place(sheet: &mut RgbImage, image: &DynamicImage, x: u32) {
    let side = TILE - 4;
    let filter =
        if image.width().max(image.height()) < side { imageops::FilterType::Nearest } else { imageops::FilterType::Triangle };
    let small = image.resize(side, side, filter).to_rgb8();
    let (dx, dy) = ((TILE - small.width()) / 2, (TILE - small.height()) / 2);
    imageops::overlay(sheet, &small, i64::from(x + dx), i64::from(dy));
}
