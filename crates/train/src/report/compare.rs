//! Several runs on one page: their figures, their curves over each other, and the settings in which they differ.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::page::{Page, Series, escape, percent};
use super::{read_result, sections};
use crate::folder::{RunFolder, read_metrics};
use crate::layers::{dotted_keys, value_at};
use crate::{Error, Result};

/// Writes a page that compares the finished `runs` to `out`.
///
/// # Errors
/// Fewer than two runs, one that is not finished or damaged, a place that can't be written.
pub fn compare(runs: &[PathBuf], out: &Path) -> Result<()> {
    if runs.len() < 2 {
        return Err(Error::Config("a comparison needs at least two runs".into()));
    }
    let name = |p: &Path| p.file_name().map_or_else(|| p.display().to_string(), |n| n.to_string_lossy().into_owned());
    let mut loaded = Vec::new();
    for run in runs {
        let (folder, config) = RunFolder::open(run)?;
        let result = read_result(&folder)?;
        let metrics = read_metrics(&folder)?;
        let table: toml::Table =
            toml::from_str(&config.to_toml()?).map_err(|e| Error::run(run, e.message().replace('\n', " ")))?;
        loaded.push((name(run), result, metrics, table));
    }
    let mut page = Page::new("Runs compared", loaded.iter().map(|l| l.0.as_str()).collect::<Vec<_>>().join(", "));
    let mut html = String::from(
        "<table><tr><th>run</th><th>k-NN, trained</th><th>before training</th><th>pixels</th><th>measured on</th><th>images seen</th>\
         <th>hours</th></tr>",
    );
    for (name, r, ..) in &loaded {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\"><b>{}</b></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{:.2}</td></tr>",
            escape(name),
            percent(r.knn_trained),
            percent(r.knn_random),
            percent(r.knn_pixels),
            r.measured_on.as_deref().unwrap_or("–"),
            r.images,
            r.seconds / 3600.0
        );
    }
    page.section("Figures", html + "</table>");
    for (title, event, key) in [
        ("k-NN accuracy on held-out images", "knn", "accuracy"),
        ("loss (of one method only comparable)", "step", "loss"),
        ("learning rate", "step", "lr"),
        ("effective rank", "step", "effective_rank"),
        ("spread of embeddings", "step", "feature_std"),
        ("images a second", "step", "images_per_s"),
    ] {
        let series = loaded
            .iter()
            .map(|(name, _, metrics, _)| Series { name: name.clone(), points: sections::points(metrics, event, key) });
        page.chart(title, "step", series.collect());
    }
    page.section("Curves", "<div id=\"charts\" class=\"charts\"></div>");
    let mut keys: Vec<String> = loaded.iter().flat_map(|l| dotted_keys(&l.3)).collect();
    keys.sort_unstable();
    keys.dedup();
    let text = |table: &toml::Table, key: &str| value_at(table, key).map_or("–".to_string(), ToString::to_string);
    keys.retain(|k| loaded.iter().any(|l| text(&l.3, k) != text(&loaded[0].3, k)));
    let mut html = String::from("<table><tr><th>key</th>");
    loaded.iter().for_each(|l| {
        let _ = write!(html, "<th>{}</th>", escape(&l.0));
    });
    html.push_str("</tr>");
    for key in &keys {
        let _ = write!(html, "<tr><td>{}</td>", escape(key));
        loaded.iter().for_each(|l| {
            let _ = write!(html, "<td>{}</td>", escape(&text(&l.3, key)));
        });
        html.push_str("</tr>");
    }
    page.section("Settings that differ", if keys.is_empty() { "<p>None.</p>".into() } else { html + "</table>" });
    let bytes = page.html()?;
    Ok(twinsight_nn::write_atomic(out, |file| file.write_all(bytes.as_bytes()))?)
}
