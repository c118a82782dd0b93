//! `views`: a picture of what a method's encoder sees.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::json;
use toml::Table;
use twinsight_augment::{Interpolation, Normalize, Transform, ViewGroup, ViewPlan, ViewSpec};
use twinsight_datasets::{Dataset, OpenOptions, SingleImage, open};
use twinsight_nn::write_atomic;
use twinsight_ssl_methods::{ViewContext, method};
use twinsight_train::RunConfig;
use twinsight_train::data::natural_size;
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
    let dataset: Arc<dyn Dataset> = if Path::new(&args.data).is_file() {
        Arc::new(SingleImage::open(Path::new(&args.data))?)
    } else {
        let opened = open(&args.data, &OpenOptions::default())?;
        Output::skipped(&opened.report.bad_files);
        opened.train
    };
    let channels = dataset.channels();
    let image_size = match config.data.image_size {
        0 => natural_size(&*dataset),
        size => size,
    };
    let normalize = Normalize { mean: vec![0.5; channels], std: vec![0.25; channels] };
    config.data.image_size = image_size;
    let patch = config.encoder_config(channels).resolved_patch();
    let plan = (method(&config.method)?.views)(&config.options, &ViewContext { image_size, channels, patch, normalize })?;
    let plan = if args.steps { each_step(&plan) } else { plan };
    let count = args.count.min(dataset.len());
    let samples: Vec<usize> = (0..count).map(|i| i * dataset.len() / count).collect();
    let layout = SheetLayout { draws: args.draws, ..SheetLayout::default() };
    let sheet = view_sheet(&*dataset, &samples, &plan, config.seed, layout)?;
    let mut png = std::io::Cursor::new(Vec::new());
    sheet.write_to(&mut png, image::ImageFormat::Png).with_context(|| format!("{}", args.out.display()))?;
    write_atomic(&args.out, |out| std::io::Write::write_all(out, png.get_ref()))?;
    output.say(format!("{} views of {count} images in {}", plan.view_count(), args.out.display()));
    output.finish(&json!({"images": count, "views": plan.view_count(), "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

/// A view for every step of a plan's first view, each done for certain after the whole image was resized (the crop: by itself).
fn each_step(plan: &ViewPlan) -> ViewPlan {
    let spec = plan.view(0);
    let resize = Transform::Resize { shorter: None, interpolation: Interpolation::Bilinear };
    let alone = |step: &Transform| match step.is_geometry() {
        true => vec![step.clone()],
        false => vec![resize.clone(), step.clone().with_probability(1.0)],
    };
    let crops = spec.transforms.iter().filter(|t| matches!(t, Transform::RandomResizedCrop { .. }));
    let others = spec.transforms.iter().filter(|t| !t.is_geometry());
    let groups = crops.chain(others).map(|step| {
        let name = format!("{step:?}").split([' ', '(']).next().unwrap_or_default().to_string();
        ViewGroup { name, count: 1, spec: ViewSpec { size: spec.size, transforms: alone(step) } }
    });
    ViewPlan { groups: groups.collect(), ..plan.clone() }
}
