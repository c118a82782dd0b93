//! `report.html`: one self-contained page about a run, to be looked at without a network.
//!
//! Figures against the baselines, curves, a map of images (t-SNE and principal components) with their pictures, nearest neighbours
//! at their best and worst, clusters, what is confused with what, the views, the configuration, the machine and what it took. The same
//! map goes into `projector/` for TensorBoard. [`compare()`] puts several runs side by side.

mod compare;
mod map;
mod page;
mod pictures;
mod projector;
mod sections;

use candle_core::Device;
use twinsight_datasets::Subset;
use twinsight_encoders::Encoder;
use twinsight_knn::{Confusion, confusion};

use crate::config::RunConfig;
use crate::data::{RunData, eval_plan};
use crate::evaluate::encode;
use crate::folder::{RunFolder, read_metrics};
use crate::protocols::Encoded;
use crate::trainer::RunResult;
use crate::{Error, Result, Trained};

pub use compare::compare;

use page::{Page, escape};

/// Images on the map at most.
const MAP_IMAGES: usize = 1000;

/// What the page says beside the run's figures.
#[derive(Debug, Default)]
pub struct Findings {
    /// What the test images were taken for, where they have labels.
    pub judged: Option<Confusion>,
    /// Images that were left out, with the reason.
    pub unreadable: Vec<String>,
}

/// Writes the report into the run folder.
///
/// # Errors
/// A failing forward pass, a full disk.
pub fn write(
    folder: &RunFolder,
    config: &RunConfig,
    data: &RunData,
    encoder: &dyn Encoder,
    result: &RunResult,
    findings: &Findings,
    device: &Device,
) -> Result<()> {
    let shown = &data.shown;
    let subset = Subset::new(shown.clone(), spread(shown.len(), MAP_IMAGES))?;
    let features = encode(&subset, encoder, &eval_plan(config, data.channels), config.eval.batch, device)?;
    let sheet = pictures::sheet(&subset, &features.index)?;
    let metrics = read_metrics(folder)?;
    let title = format!("{} · {} · {}", config.method, config.encoder, shown.name());
    let mut page = Page::new(title, "What an encoder learned from images without their labels.");
    page.section("Figures", sections::figures(result));
    sections::curves(&mut page, &metrics);
    let seen = sections::Seen { dataset: &subset, features: &features, sheet: &sheet };
    let (rows, dim, kept) = map::reduced(&features)?;
    let clusters = sections::clusters(&seen, &rows, dim, kept)?;
    let planes = map::planes(&rows, dim)?;
    sections::map(&mut page, &seen, &planes, clusters.as_ref());
    sections::neighbours(&mut page, &seen)?;
    if let Some(html) = clusters.as_ref().map(|c| c.html.clone()) {
        page.section("Clusters", html);
    }
    if let Some(table) = &findings.judged {
        page.section("Confusion", sections::confusion(table, shown.classes().unwrap_or_default()));
    }
    for (name, heading, words) in PICTURES {
        if let Ok(png) = std::fs::read(folder.path(name)) {
            let class = heading.to_lowercase();
            let url = pictures::data_url(&png);
            page.section(heading, format!("<p>{words}</p><img class=\"{class}\" alt=\"{class}\" src=\"{url}\">"));
        }
    }
    if !findings.unreadable.is_empty() {
        let items: String = findings.unreadable.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
        page.section("Left out", format!("<p>Files that can't be read:</p><ul>{items}</ul>"));
    }
    page.section("Machine and cost", sections::machine(result));
    page.section("Configuration", format!("<pre>{}</pre>", escape(&config.to_toml()?)));
    folder.write("report.html", page.html()?.as_bytes())?;
    projector::write(folder, &seen)
}

/// Pictures in the run folder that the page shows: file, heading, words.
const PICTURES: [(&str, &str, &str); 2] = [
    ("views.png", "Views", "Each row: an image, then the views that the encoder was trained on."),
    ("attention.png", "Attention", "Each row: an image, then where the heads of the last block look."),
];

/// Writes the report of a finished run again, from its folder. `data`: where its images lie now, where they were moved.
///
/// # Errors
/// No finished run there, images that can't be read, a full disk.
pub fn rewrite(run: &std::path::Path, data: Option<&str>) -> Result<std::path::PathBuf> {
    let (folder, mut config) = RunFolder::open(run)?;
    let result = read_result(&folder)?;
    if let Some(path) = data {
        config.data.path = path.to_string();
    }
    let trained = Trained::load(run)?;
    let data = RunData::open(&mut config)?;
    let device = Device::Cpu;
    let judged = match &data.evaluation {
        Some(evaluation) => judge(&Encoded::new(evaluation, &*trained.encoder, &device)?, &result)?,
        None => None,
    };
    let unreadable = data.report.bad_files.iter().map(ToString::to_string).collect();
    write(&folder, &config, &data, &*trained.encoder, &result, &Findings { judged, unreadable }, &device)?;
    Ok(folder.path("report.html"))
}

/// What the judged images are taken for, with the settings that the run chose.
///
/// # Errors
/// A failing search.
pub fn judge(encoded: &Encoded, result: &RunResult) -> Result<Option<Confusion>> {
    let (Some(k), Some(temperature)) = (result.k, result.temperature) else { return Ok(None) };
    let (predicted, labels) = encoded.predict_knn(k, temperature)?;
    Ok(Some(confusion(&predicted, labels)?))
}

/// The figures of a finished run.
///
/// # Errors
/// A run that is not finished, a damaged file.
pub(crate) fn read_result(folder: &RunFolder) -> Result<RunResult> {
    let path = folder.path("result.json");
    if !path.exists() {
        let how = format!("the run is not finished: go on with: twinsight resume {}", folder.root().display());
        return Err(Error::run(folder.root(), how));
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    serde_json::from_str(&text).map_err(|e| Error::run(&path, e.to_string()))
}

/// `count` indices spread evenly over `0..total`.
fn spread(total: usize, count: usize) -> Vec<usize> {
    let count = count.min(total);
    (0..count).map(|i| i * total / count.max(1)).collect()
}
