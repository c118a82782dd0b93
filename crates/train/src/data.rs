//! From a data path to what training and evaluation take: splits, channels, image size, normalisation.

use std::sync::Arc;

use rayon::prelude::*;
use toml::Value;
use twinsight_augment::{DrawKey, Normalize, ViewPlan};
use twinsight_datasets::{Dataset, LabelMode, LevelRange, Levels, OpenOptions, ScanReport, hold_out, levels, open};
use twinsight_ssl_methods::method;

use crate::config::RunConfig;
use crate::evaluate::Evaluation;
use crate::fit::fit;
use crate::picture::Picture;
use crate::{Error, Result};

/// The images of a run.
pub struct RunData {
    /// What is trained on: all training images, or those that are not held out.
    pub train: Arc<dyn Dataset>,
    /// How k-NN accuracy is measured; `None` where there are no labels.
    pub evaluation: Option<Evaluation>,
    /// The images that embeddings, pictures and maps are made of: test images, or held-out ones, or training ones.
    pub shown: Arc<dyn Dataset>,
    /// What opening found.
    pub report: ScanReport,
    /// Channels of an image.
    pub channels: usize,
}

impl RunData {
    /// Opens the images and fills in what the configuration left open: image size and normalisation, and for few images the batch and the
    /// length of the run.
    ///
    /// # Errors
    /// No such data, no readable image, settings that do not fit them.
    pub fn open(config: &mut RunConfig) -> Result<Self> {
        if let Levels::Percentile(..) = config.data.levels()? {
            // As the files have them: nothing that was reduced is kept from this.
            let options = OpenOptions { keep_bytes: 0, ..open_options(config)? };
            resolve_levels(config, &*open(&config.data.path, &options)?.train)?;
        }
        let opened = open(&config.data.path, &open_options(config)?)?;
        let train = opened.train;
        let channels = train.channels();
        if config.data.image_size == 0 {
            config.data.image_size = natural_size(&*train);
        }
        if config.data.mean.is_empty() {
            let (mean, std) = measure(&*train, channels, config.data.image_size)?;
            (config.data.mean, config.data.std) = (mean, std);
        }
        if config.data.mean.len() != channels {
            return Err(Error::Config(format!(
                "data.mean has {} numbers and the images of {} have {channels} channels",
                config.data.mean.len(),
                config.data.path
            )));
        }
        let classes = train.classes().map_or(0, <[String]>::len);
        let labelled = classes > 1 && config.data.held_out > 0.0;
        let mut report = opened.report;
        if config.data.level_range()?.is_some() {
            report.understood.push_str(&format!("; levels of 16 bits by {}", config.data.levels));
        }
        if without_colour(config, channels)? {
            report.understood.push_str(&format!("; views without changes of colour, since the images have {channels} channels"));
        }
        if classes > 1 && !labelled {
            report.understood.push_str("; no k-NN accuracy, since data.held_out = 0 leaves no images to choose its settings on");
        }
        let (rest, held) = if labelled {
            let (rest, held) = hold_out(train.clone(), config.data.held_out, 0)?;
            (rest, Some(held))
        } else {
            (train, None)
        };
        if let Some(words) = fit(config, rest.len()) {
            report.understood.push_str(&format!("; {words}"));
        }
        let test = opened.test.filter(|t| !t.is_empty());
        let shown = test.clone().or_else(|| held.clone()).unwrap_or_else(|| rest.clone());
        let evaluation = match held {
            Some(held_out) if !held_out.is_empty() => Some(Evaluation {
                bank: rest.clone(),
                held_out,
                test: test.filter(|t| t.label(0).is_some()),
                classes,
                plan: eval_plan(config, channels),
                config: config.eval.clone(),
            }),
            _ => None,
        };
        Ok(Self { train: rest, evaluation, shown, report, channels })
    }
}

/// A checksum of names and labels of all images, in their order.
pub fn fingerprint(dataset: &dyn Dataset) -> String {
    let crc = (0..dataset.len()).fold(0, |crc, i| {
        let crc = crc32c::crc32c_append(crc, dataset.id(i).as_bytes());
        crc32c::crc32c_append(crc, &dataset.label(i).map_or([255; 4], u32::to_le_bytes))
    });
    format!("{crc:08x}")
}

/// Measures `data.levels` on training images where it is given in percentiles, and sets it to the range that they have; returns the range
/// of a configuration, if it has one.
///
/// # Errors
/// No levels of 16 bits to measure, or levels that are all alike; a setting that is none.
pub fn resolve_levels(config: &mut RunConfig, train: &dyn Dataset) -> Result<Option<LevelRange>> {
    if let Levels::Percentile(low, high) = config.data.levels()? {
        let measured = levels::measure(train, low, high);
        let range = measured.map_err(|e| Error::Config(format!("data.levels = \"{}\": {e}", config.data.levels)))?;
        config.data.levels = Levels::Range(range).to_string();
    }
    config.data.level_range()
}

/// The options that open the images of a configuration; its levels as they are where they are still percentiles.
///
/// # Errors
/// Never in a checked configuration.
pub fn open_options(config: &RunConfig) -> Result<OpenOptions> {
    Ok(OpenOptions {
        strict: config.data.strict,
        limit: (config.data.limit > 0).then_some(config.data.limit),
        labels: match config.data.labels.as_str() {
            "folder" => LabelMode::Folder,
            "none" => LabelMode::None,
            _ => LabelMode::Auto,
        },
        keep_bytes: config.data.keep_bytes,
        levels: config.data.level_range()?,
        ..OpenOptions::default()
    })
}

/// Steps of a view that need colour.
const COLOUR: [&str; 3] = ["jitter_saturation", "jitter_hue", "gray_p"];

/// Sets the steps of views that need colour to 0 where images have other than 1 or 3 channels and the steps are those that the method takes
/// of itself; returns whether any was set. What was asked for otherwise stays, and is refused when the plan is made.
///
/// # Errors
/// An unknown method.
pub fn without_colour(config: &mut RunConfig, channels: usize) -> Result<bool> {
    if matches!(channels, 1 | 3) {
        return Ok(false);
    }
    let own = (method(&config.method)?.defaults)();
    let (Some(Value::Table(own)), Some(Value::Table(views))) = (own.get("views"), config.options.get_mut("views")) else {
        return Ok(false);
    };
    let mut changed = false;
    for (key, value) in views.iter_mut().filter(|(key, _)| COLOUR.contains(&key.as_str())) {
        if own.get(key) == Some(&*value) && value.as_float() != Some(0.0) {
            *value = Value::Float(0.0);
            changed = true;
        }
    }
    Ok(changed)
}

/// How an image becomes a tensor when nothing is random.
pub fn eval_plan(config: &RunConfig, channels: usize) -> ViewPlan {
    ViewPlan { normalize: normalize(config), ..ViewPlan::eval(config.data.image_size, channels) }
}

/// The normalisation of a resolved configuration.
pub fn normalize(config: &RunConfig) -> Normalize {
    Normalize { mean: config.data.mean.clone(), std: config.data.std.clone() }
}

/// The images' own side where they are alike and small, 224 otherwise.
pub fn natural_size(dataset: &dyn Dataset) -> usize {
    match dataset.side() {
        Some((w, h)) if w.max(h) <= 64 => w.max(h) as usize,
        _ => 224,
    }
}

/// Mean and standard deviation of each channel of values in 0..1, over up to 2,000 images spread over the data set.
fn measure(dataset: &dyn Dataset, channels: usize, size: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let identity = Normalize { mean: vec![0.0; channels], std: vec![1.0; channels] };
    let plan = ViewPlan { normalize: identity, ..ViewPlan::eval(size, channels) };
    let area = size * size;
    let of_image = |i: usize| -> Result<Option<Vec<(f64, f64)>>> {
        let Ok(sample) = Picture::load(dataset, i) else { return Ok(None) };
        let mut row = vec![0.0_f32; channels * area];
        sample.render(&plan, 0, DrawKey { seed: 0, epoch: 0, sample: i as u64, view: 0 }, &mut row)?;
        let sums = |plane: &[f32]| plane.iter().map(|&v| f64::from(v)).fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
        Ok(Some(row.chunks_exact(area).map(sums).collect()))
    };
    let chosen: Vec<usize> = (0..dataset.len()).step_by(dataset.len().div_ceil(2000).max(1)).collect();
    let found = chosen.into_par_iter().map(of_image).collect::<Result<Vec<_>>>()?;
    // Added in the images' order, so that the number of threads changes nothing.
    let (mut sum, mut square, mut count) = (vec![0.0_f64; channels], vec![0.0_f64; channels], 0_usize);
    for sums in found.into_iter().flatten() {
        for (c, (s, q)) in sums.into_iter().enumerate() {
            sum[c] += s;
            square[c] += q;
        }
        count += area;
    }
    if count == 0 {
        return Err(Error::Config(format!("{}: none of its images can be read", dataset.name())));
    }
    let n = count as f64;
    // Four decimals are plenty and keep config.toml readable.
    let rounded = |v: f64| ((v * 1e4).round() / 1e4) as f32;
    let mean: Vec<f32> = sum.iter().map(|s| rounded(s / n)).collect();
    let std = sum.iter().zip(&square).map(|(s, q)| rounded((q / n - (s / n).powi(2)).max(1e-4).sqrt())).collect();
    Ok((mean, std))
}
