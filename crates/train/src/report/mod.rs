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

use std::collections::BTreeMap;

use candle_core::Device;
use twinsight_datasets::{Dataset, Subset};
use twinsight_knn::{Confusion, confusion};

use crate::config::RunConfig;
use crate::data::{RunData, eval_plan};
use crate::evaluate::{Features, encode};
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
pub(crate) struct Findings {
    /// What the test images were taken for, where they have labels.
    pub judged: Option<Confusion>,
    /// Images that were left out, with the reason.
    pub unreadable: Vec<String>,
}

/// The images that a page and a map are made of: up to 1000 of the run's shown ones, spread evenly.
///
/// # Errors
/// None in a run's own images.
pub(crate) fn shown(data: &RunData) -> Result<Subset> {
    Ok(Subset::new(data.shown.clone(), spread(data.shown.len(), MAP_IMAGES))?)
}

/// The shown images with all that is made of their features.
pub(crate) struct Look {
    dataset: Subset,
    features: Features,
    sheet: pictures::Sheet,
    /// Rows of `dim` leading components, which keep this share of the variance.
    reduced: (Vec<f32>, usize, f64),
    clusters: Option<sections::Found>,
}

impl Look {
    /// Looks at `dataset` with the `features` that an encoder makes of it.
    ///
    /// # Errors
    /// Features that are not finite, pictures that can't be encoded.
    pub(crate) fn at(dataset: Subset, features: Features) -> Result<Self> {
        let sheet = pictures::sheet(&dataset, &features.index)?;
        let reduced = map::reduced(&features)?;
        let mut look = Self { dataset, features, sheet, reduced, clusters: None };
        let (rows, dim, kept) = &look.reduced;
        let found = sections::clusters(&look.seen(), rows, *dim, *kept)?;
        look.clusters = found;
        Ok(look)
    }

    /// How many clusters have the largest silhouette, and that.
    pub(crate) fn clusters(&self) -> Option<(usize, f64)> {
        self.clusters.as_ref().map(|c| (c.clusters.count(), c.silhouette))
    }

    fn seen(&self) -> sections::Seen<'_> {
        sections::Seen { dataset: &self.dataset, features: &self.features, sheet: &self.sheet }
    }
}

/// Writes the report into the run folder.
///
/// # Errors
/// Features that are not finite, a full disk.
pub(crate) fn write(folder: &RunFolder, config: &RunConfig, result: &RunResult, findings: &Findings, look: &Look) -> Result<()> {
    let metrics = read_metrics(folder)?;
    let seen = look.seen();
    let title = format!("{} · {} · {}", config.method, config.encoder, seen.dataset.name());
    let mut page = Page::new(title, "What an encoder learned from images without their labels.");
    page.section("Figures", sections::figures(result));
    sections::curves(&mut page, &metrics);
    let (rows, dim, _) = &look.reduced;
    let planes = map::planes(rows, *dim)?;
    sections::map(&mut page, &seen, &planes, look.clusters.as_ref());
    sections::neighbours(&mut page, &seen)?;
    if let Some(html) = look.clusters.as_ref().map(|c| c.html.clone()) {
        page.section("Clusters", html);
    }
    if let Some(table) = &findings.judged {
        page.section("Confusion", sections::confusion(table, seen.dataset.classes().unwrap_or_default()));
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

/// Writes the map for TensorBoard's projector while a run goes on, of up to 1000 of `features`.
///
/// # Errors
/// A full disk.
pub(crate) fn project(folder: &RunFolder, dataset: &dyn Dataset, features: &Features) -> Result<()> {
    let part = features.part(&spread(features.index.len(), MAP_IMAGES));
    let sheet = pictures::sheet(dataset, &part.index)?;
    projector::write(folder, &sections::Seen { dataset, features: &part, sheet: &sheet })
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
    let mut left_out: BTreeMap<String, String> = data.report.bad_files.iter().map(|b| (b.id.clone(), b.reason.clone())).collect();
    let judged = match &data.evaluation {
        Some(evaluation) => {
            let encoded = Encoded::new(evaluation, &*trained.encoder, &device)?;
            left_out.extend(encoded.bad.iter().cloned());
            judge(&encoded, &result)?
        }
        None => None,
    };
    let shown = shown(&data)?;
    let plan = eval_plan(&config, data.channels);
    let features = encode(&shown, &*trained.encoder, &plan, config.eval.batch, &device)?;
    if data.evaluation.is_none() {
        left_out.extend(features.bad.iter().cloned());
    }
    let unreadable = left_out.iter().map(|(id, reason)| format!("{id}: {reason}")).collect();
    write(&folder, &config, &result, &Findings { judged, unreadable }, &Look::at(shown, features)?)?;
    Ok(folder.path("report.html"))
}

/// What the judged images are taken for, with the settings that the run chose.
///
/// # Errors
/// A failing search.
pub(crate) fn judge(encoded: &Encoded, result: &RunResult) -> Result<Option<Confusion>> {
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
