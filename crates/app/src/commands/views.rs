//! `views`: a picture of what a method's encoder sees.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::json;
use toml::Table;
use twinsight_augment::{Interpolation, Normalize, Transform, ViewGroup, ViewPlan, ViewSpec};
use twinsight_datasets::{Dataset, OpenOptions, SingleImage, is_data_file, open};
use twinsight_nn::write_atomic;
use twinsight_ssl_methods::{ViewContext, method};
use twinsight_train::RunConfig;
use twinsight_train::data::{natural_size, resolve_levels, without_colour};
use twinsight_train::picture::Picture;
use twinsight_train::sheet::{SheetLayout, view_sheet};

use super::layers;
use crate::cli::ViewsArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// No such image, settings out of range, a target that can't be written.
pub fn run(args: &ViewsArgs, output: &Output) -> Result<ExitCode> {
    if args.count == 0 || args.draws == 0 {
        bail!("--count and --draws take numbers of at least 1");
    }
    let mut config = RunConfig::resolve(&layers(&args.settings, Table::new())?)?;
    let path = Path::new(&args.data);
    let dataset: Arc<dyn Dataset> = if path.is_file() && !is_data_file(path) {
        let levels = resolve_levels(&mut config, &SingleImage::open(path, None)?)?;
        Arc::new(SingleImage::open(path, levels)?)
    } else {
        // A few are looked at: nothing is decoded beforehand.
        let options = OpenOptions { keep_bytes: 0, ..OpenOptions::default() };
        let mut opened = open(&args.data, &options)?;
        if let Some(range) = resolve_levels(&mut config, &*opened.train)? {
            opened = open(&args.data, &OpenOptions { levels: Some(range), ..options })?;
        }
        Output::skipped(&opened.report.bad_files);
        opened.train
    };
    let channels = dataset.channels();
    without_colour(&mut config, channels)?;
    let image_size = match config.data.image_size {
        0 => natural_size(&*dataset),
        size => size,
    };
    let normalize = Normalize { mean: vec![0.5; channels], std: vec![0.25; channels] };
    config.data.image_size = image_size;
    let patch = config.encoder_config(channels).resolved_patch();
    let plan = (method(&config.method)?.views)(&config.options, &ViewContext { image_size, channels, patch, normalize })?;
    let plan = if args.steps { each_step(&plan) } else { plan };
    let samples = readable(&*dataset, args.count)?;
    let count = samples.len();
    let layout = SheetLayout { draws: args.draws, ..SheetLayout::default() };
    let sheet = view_sheet(&*dataset, &samples, &plan, config.seed, layout)?;
    let mut png = std::io::Cursor::new(Vec::new());
    sheet.write_to(&mut png, image::ImageFormat::Png).with_context(|| format!("{}", args.out.display()))?;
    write_atomic(&args.out, |out| std::io::Write::write_all(out, png.get_ref()))?;
    let names: Vec<&str> = plan.groups.iter().map(|g| g.name.as_str()).collect();
    output.say(format!("{} views of {count} images in {}: {}", plan.view_count(), args.out.display(), names.join(", ")));
    output.finish(&json!({"images": count, "views": plan.view_count(), "groups": names, "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

/// Up to `count` images spread over the data set; the next that can be read stands for one that can't, which is named.
fn readable(dataset: &dyn Dataset, count: usize) -> Result<Vec<usize>> {
    let count = count.min(dataset.len());
    let mut chosen = Vec::with_capacity(count);
    let mut next = 0;
    for start in (0..count).map(|i| i * dataset.len() / count) {
        next = next.max(start);
        while next < dataset.len() {
            let found = Picture::load(dataset, next);
            next += 1;
            match found {
                Ok(_) => {
                    chosen.push(next - 1);
                    break;
                }
                Err(e) => {
                    Output::skipped([format!("{}: {e}", dataset.id(next - 1))]);
                }
            }
        }
    }
    if chosen.is_empty() {
        bail!("{}: none of its images can be read", dataset.name());
    }
    Ok(chosen)
}

/// A view for every step of a plan's views, whichever of them has it, each done for certain after the whole image was resized (crops: by
/// themselves). Steps that differ in how often they happen alone are one.
fn each_step(plan: &ViewPlan) -> ViewPlan {
    let resize = Transform::Resize { shorter: None, interpolation: Interpolation::Bilinear };
    let mut groups: Vec<ViewGroup> = Vec::new();
    for is_crop in [true, false] {
        for group in &plan.groups {
            let is_wanted = |t: &&Transform| match is_crop {
                true => matches!(t, Transform::RandomResizedCrop { .. }),
                false => !t.is_geometry(),
            };
            for step in group.spec.transforms.iter().filter(is_wanted) {
                let transforms = match is_crop {
                    true => vec![step.clone()],
                    false => vec![resize.clone(), step.clone().with_probability(1.0)],
                };
                if groups.iter().all(|g| g.spec.transforms != transforms) {
                    let name = format!("{step:?}").split([' ', '(']).next().unwrap_or_default().to_string();
                    groups.push(ViewGroup { name, count: 1, spec: ViewSpec { size: group.spec.size, transforms } });
                }
            }
        }
    }
    ViewPlan { groups, ..plan.clone() }
}
