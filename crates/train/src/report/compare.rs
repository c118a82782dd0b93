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
    let mut loaded = Vec::new();
    for (run, name) in runs.iter().zip(names(runs)) {
        let (folder, config) = RunFolder::open(run)?;
        let result = read_result(&folder)?;
        let metrics = read_metrics(&folder)?;
        let table: toml::Table =
            toml::from_str(&config.to_toml()?).map_err(|e| Error::run(run, e.message().replace('\n', " ")))?;
        loaded.push((name, result, metrics, table));
    }
    let mut page = Page::new("Runs compared", loaded.iter().map(|l| l.0.as_str()).collect::<Vec<_>>().join(", "));
    let mut html = String::from(
        "<table><tr><th>run</th><th>k-NN, trained</th><th>95 % interval</th><th>top-5</th><th>probe</th><th>before training</th>\
         <th>pixels</th><th>measured on</th><th>rank</th><th>uniformity</th><th>alignment</th><th>images seen</th><th>hours</th></tr>",
    );
    let number = |v: Option<f64>, digits: usize| v.map_or_else(|| "–".to_string(), |v| format!("{v:.digits$}"));
    for (name, r, ..) in &loaded {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\"><b>{}</b></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{:.2}</td></tr>",
            escape(name),
            percent(r.knn_trained),
            r.knn_low.map_or_else(|| "–".into(), |low| format!("{} to {}", percent(Some(low)), percent(r.knn_high))),
            percent(r.knn_top5),
            percent(r.probe),
            percent(r.knn_random),
            percent(r.knn_pixels),
            r.measured_on.as_deref().unwrap_or("–"),
            number(r.rank_trained, 1),
            number(r.spread_trained.and_then(|s| s.uniformity), 2),
            number(r.spread_trained.and_then(|s| s.alignment), 3),
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

/// What the runs are called: the last parts of their paths, as many as tell them apart; the same path twice is numbered.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> =
        runs.iter().map(|p| p.components().rev().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()).collect();
    let short = |of: &[String], count: usize| of.iter().take(count).rev().map(String::as_str).collect::<Vec<_>>().join("/");
    let most = parts.iter().map(Vec::len).max().unwrap_or(1);
    let apart = |count: usize| {
        let mut names: Vec<String> = parts.iter().map(|p| short(p, count)).collect();
        names.sort_unstable();
        names.windows(2).all(|w| w[0] != w[1])
    };
    let count = (1..=most).find(|&c| apart(c)).unwrap_or(most);
    let names: Vec<String> = parts.iter().map(|p| short(p, count)).collect();
    (0..names.len())
        .map(|i| match names[..i].iter().filter(|n| **n == names[i]).count() {
            0 => names[i].clone(),
            again => format!("{} ({})", names[i], again + 1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_name_are_told_apart_by_their_folders() {
        let of = |runs: &[&str]| names(&runs.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["runs/a", "runs/b"]), ["a", "b"]);
        assert_eq!(of(&["x/run", "y/run", "z"]), ["x/run", "y/run", "z"]);
        assert_eq!(of(&["run", "run"]), ["run", "run (2)"]);
    }
}
