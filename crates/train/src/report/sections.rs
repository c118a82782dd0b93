//! What the page says, section by section.

use std::fmt::Write as _;

use serde_json::{Value, json};
use twinsight_datasets::Dataset;
use twinsight_knn::agreement::Contingency;
use twinsight_knn::cluster::{Clusters, KMeansConfig, sweep_clusters};
use twinsight_knn::{Confusion, Matrix, Metric, search};

use super::map::Plane;
use super::page::{Page, Series, escape, percent};
use super::pictures::{Sheet, data_url};
use crate::Result;
use crate::evaluate::Features;
use crate::trainer::RunResult;

/// The images of the page with their features and pictures.
pub(super) struct Seen<'a> {
    pub dataset: &'a dyn Dataset,
    pub features: &'a Features,
    pub sheet: &'a Sheet,
}

impl Seen<'_> {
    fn class(&self, row: usize) -> Option<&str> {
        let label = *self.features.labels.get(row)? as usize;
        self.dataset.classes()?.get(label).map(String::as_str)
    }

    fn labelled(&self) -> bool {
        self.features.labels.len() == self.features.index.len()
    }

    fn name(&self, row: usize) -> String {
        let id = self.dataset.id(self.features.index[row]);
        self.class(row).map_or(id.clone(), |c| format!("{id} ({c})"))
    }
}

/// Clusters of the page's images.
pub(super) struct Found {
    /// The partition.
    pub clusters: Clusters,
    /// Their silhouette.
    pub silhouette: f64,
    /// What each is called.
    pub names: Vec<String>,
    /// The section.
    pub html: String,
}

/// Neighbours a query, and queries of either kind.
const NEIGHBOURS: usize = 8;
const QUERIES: usize = 8;
/// Numbers of clusters that are tried.
const COUNTS: std::ops::RangeInclusive<usize> = 2..=14;
/// Pictures a cluster.
const TYPICAL: usize = 16;

/// Headline figures against the baselines.
pub(super) fn figures(r: &RunResult) -> String {
    let mut out = String::from("<table>");
    if r.knn_trained.is_some() {
        let on = r.measured_on.as_deref().unwrap_or("held-out");
        let _ = write!(
            out,
            "<tr><th>k-NN accuracy on {on} images</th><th></th></tr>\
             <tr><td>trained encoder</td><td class=\"n\"><b>{}</b></td></tr>\
             <tr><td>the same encoder, before training</td><td class=\"n\">{}</td></tr>\
             <tr><td>pixels, no encoder</td><td class=\"n\">{}</td></tr>\
             <tr><td>k and temperature, {}</td><td class=\"n\">{}, {}</td></tr>",
            percent(r.knn_trained),
            percent(r.knn_random),
            percent(r.knn_pixels),
            match r.chosen_on.as_deref() {
                Some("nothing") => "fixed by the configuration".to_string(),
                on => format!("chosen on {}", on.unwrap_or("held-out images")),
            },
            r.k.map_or("–".into(), |k| k.to_string()),
            r.temperature.map_or("–".into(), |t| format!("{t}")),
        );
        if let (Some(low), Some(high)) = (r.knn_low, r.knn_high) {
            let (low, high) = (percent(Some(low)), percent(Some(high)));
            let words = "trained encoder, 95 % interval over the images judged";
            let _ = write!(out, "<tr><td>{words}</td><td class=\"n\">{low} to {high}</td></tr>");
        }
        for (words, value) in
            [("trained encoder, top-5", r.knn_top5), ("linear probe beside training, on held-out images", r.probe)]
        {
            if value.is_some() {
                let _ = write!(out, "<tr><td>{words}</td><td class=\"n\">{}</td></tr>", percent(value));
            }
        }
    }
    out.push_str(&spread(r));
    let _ = write!(
        out,
        "<tr><th>the run</th><th></th></tr><tr><td>last loss</td><td class=\"n\">{:.4}</td></tr><tr><td>images seen</td><td class=\"n\">{}</td></tr>\
         <tr><td>hours</td><td class=\"n\">{:.2}</td></tr></table>",
        r.loss,
        r.images,
        r.seconds / 3600.0
    );
    out
}

/// What can be told of features without labels, before and after training.
fn spread(r: &RunResult) -> String {
    let Some(after) = &r.spread_trained else { return String::new() };
    let mut out = format!("<tr><th>features of {} images, without labels</th><th>untrained → trained</th></tr>", after.images);
    let number = |v: Option<f64>, digits: usize| v.map_or_else(|| "–".to_string(), |v| format!("{v:.digits$}"));
    let before = r.spread_random.as_ref();
    let rows = [
        ("effective rank (more directions are used)", before.map(|s| s.effective_rank), Some(after.effective_rank), 1),
        ("uniformity (0: one point, −4: evenly spread)", before.and_then(|s| s.uniformity), after.uniformity, 2),
        ("alignment (0: views of an image fall together)", before.and_then(|s| s.alignment), after.alignment, 3),
    ];
    for (words, before, after, digits) in rows {
        let (before, after) = (number(before, digits), number(after, digits));
        let _ = write!(out, "<tr><td>{words}</td><td class=\"n\">{before} → {after}</td></tr>");
    }
    if let (Some(count), Some(silhouette)) = (r.clusters, r.silhouette) {
        let _ = write!(
            out,
            "<tr><td>clusters by silhouette, and it (1: apart, 0: touching)</td><td class=\"n\">{count}, {silhouette:.3}</td></tr>"
        );
    }
    out
}

/// The charts of what `metrics.jsonl` holds.
pub(super) fn curves(page: &mut Page, metrics: &[Value]) {
    let line = |event: &str, key: &str, name: &str| Series { name: name.into(), points: points(metrics, event, key) };
    page.chart("loss", "step", vec![line("step", "loss", "loss")]);
    page.chart("learning rate", "step", vec![line("step", "lr", "learning rate")]);
    let probe = line("probe", "accuracy", "linear probe");
    page.chart("accuracy on held-out images", "step", vec![line("knn", "accuracy", "k-NN"), probe]);
    page.chart("spread of embeddings (1: fills the sphere)", "step", vec![line("step", "feature_std", "spread")]);
    page.chart("effective rank", "step", vec![line("step", "effective_rank", "rank")]);
    let health = vec![line("step", "alignment", "alignment"), line("step", "uniformity", "uniformity")];
    page.chart("alignment and uniformity", "step", health);
    page.chart("effective rank of the features", "step", vec![line("spread", "effective_rank", "rank")]);
    let spread = vec![line("spread", "alignment", "alignment"), line("spread", "uniformity", "uniformity")];
    page.chart("alignment and uniformity of the features", "step", spread);
    page.chart("images a second", "step", vec![line("step", "images_per_s", "images/s")]);
    page.section("Curves", "<div id=\"charts\" class=\"charts\"></div>");
}

/// The values of `key` in `metrics`' lines of kind `event`, by step.
pub(super) fn points(metrics: &[Value], event: &str, key: &str) -> Vec<(f64, f64)> {
    let lines = metrics.iter().filter(|m| m["event"] == event);
    lines.filter_map(|m| Some((m["step"].as_f64()?, m[key].as_f64()?))).collect()
}

/// The map, with its data for the scripts.
pub(super) fn map(page: &mut Page, seen: &Seen, planes: &[Plane], clusters: Option<&Found>) {
    let features = seen.features;
    let images: Vec<Value> = (0..features.index.len())
        .map(|i| {
            json!({
                "id": seen.dataset.id(features.index[i]),
                "label": features.labels.get(i).map_or(-1, |&l| i64::from(l)),
                "cluster": clusters.map_or(-1, |c| i64::from(c.clusters.assignment[i])),
            })
        })
        .collect();
    let rounded = |v: f32| (f64::from(v) * 1e4).round() / 1e4;
    let planes: Vec<Value> = planes
        .iter()
        .map(|p| json!({"name": p.name, "points": p.points.iter().map(|&(x, y)| [rounded(x), rounded(y)]).collect::<Vec<_>>()}))
        .collect();
    let labels = if seen.labelled() { seen.dataset.classes().unwrap_or_default() } else { &[] };
    let names = clusters.map_or(&[][..], |c| c.names.as_slice());
    page.data("map", json!({"images": images, "planes": planes, "labels": labels, "clusters": names}));
    page.data("thumbs", json!({"sheet": data_url(&seen.sheet.png), "side": seen.sheet.side, "columns": seen.sheet.columns}));
    page.section(
        "Map",
        format!(
            "<p>{} images; near each other are those that the encoder finds alike. Point at one to see it; the wheel zooms, dragging \
             pans, a name in the legend hides its images.</p><div id=\"mapbar\" class=\"bar\"></div><canvas id=\"plane\"></canvas>\
             <div id=\"legend\" class=\"legend\"></div>",
            features.index.len()
        ),
    );
}

fn thumb(out: &mut String, row: usize, class: &str, title: &str, size: u32) {
    let _ = write!(out, "<span class=\"{class}\" data-thumb=\"{row}\" data-size=\"{size}\" title=\"{}\"></span>", escape(title));
}

/// Images whose neighbours are of their own label most, and least; without labels those with the nearest and the farthest.
///
/// # Errors
/// A failing search.
pub(super) fn neighbours(page: &mut Page, seen: &Seen) -> Result<()> {
    let rows = seen.features.index.len();
    if rows < 3 {
        page.section("Nearest neighbours", "<p>Too few images.</p>");
        return Ok(());
    }
    let k = NEIGHBOURS.min(rows - 1);
    let found = search(seen.features.matrix(), seen.features.matrix(), k, Metric::Cosine, true)?;
    let same = |q: usize, n: u32| seen.features.labels[q] == seen.features.labels[n as usize];
    let merit = |q: usize| {
        let (index, score) = found.row(q);
        let near = f64::from(score.iter().sum::<f32>()) / k as f64;
        if seen.labelled() { index.iter().filter(|&&n| same(q, n)).count() as f64 + 0.1 * near } else { near }
    };
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by(|&a, &b| merit(b).total_cmp(&merit(a)).then(a.cmp(&b)));
    let count = QUERIES.min(rows / 2);
    let best = apart(order.iter().copied(), seen, count);
    let worst = apart(order.iter().rev().copied(), seen, count);
    let mut html = String::from("<p>Left: an image; right: those whose features are most similar.");
    html.push_str(if seen.labelled() { " Underlined: of the same label.</p>" } else { "</p>" });
    for (words, queries) in [("best", best), ("worst", worst)] {
        let _ = write!(html, "<h3>The {words}</h3><div class=\"pairs\">");
        for q in queries {
            html.push_str("<div class=\"strip\">");
            thumb(&mut html, q, "q", &seen.name(q), 56);
            let (index, score) = found.row(q);
            for (&n, s) in index.iter().zip(score) {
                let class = if seen.labelled() && same(q, n) { "same" } else { "other" };
                thumb(&mut html, n as usize, class, &format!("{}, similarity {s:.3}", seen.name(n as usize)), 40);
            }
            html.push_str("</div>");
        }
        html.push_str("</div>");
    }
    page.section("Nearest neighbours", html);
    Ok(())
}

/// The first `count` rows of `order`, with at most two of a label while others are left.
fn apart(order: impl Iterator<Item = usize>, seen: &Seen, count: usize) -> Vec<usize> {
    let (mut taken, mut rest): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for q in order {
        let label = seen.features.labels.get(q);
        let alike = taken.iter().filter(|&&t| seen.features.labels.get(t) == label).count();
        if label.is_none() || alike < 2 {
            taken.push(q)
        } else {
            rest.push(q)
        }
        if taken.len() == count {
            break;
        }
    }
    taken.extend(rest.into_iter().take(count - taken.len().min(count)));
    taken
}

/// k-means on the leading components, with the number of clusters by silhouette.
///
/// # Errors
/// Rows that are not finite.
pub(super) fn clusters(seen: &Seen, rows: &[f32], dim: usize, kept: f64) -> Result<Option<Found>> {
    let count = seen.features.index.len();
    let counts: Vec<usize> = COUNTS.filter(|&c| c < count).collect();
    let table = Matrix { data: rows, rows: count, dim };
    // Images that are all alike fall into one cluster, which has no silhouette.
    let distinct = rows.chunks_exact(dim).any(|r| r != &rows[..dim]);
    if counts.is_empty() || !distinct {
        return Ok(None);
    }
    let config = KMeansConfig { n_init: 5, ..KMeansConfig::default() };
    let Ok(tried) = sweep_clusters(table, &counts, config) else { return Ok(None) };
    let silhouettes: Vec<f64> = tried.iter().map(|t| t.1).collect();
    let Some((clusters, silhouette)) = tried.into_iter().reduce(|a, b| if b.1 > a.1 { b } else { a }) else { return Ok(None) };
    let mut html = format!(
        "<p>k-means on {dim} principal components ({:.0} % of the variance). {} clusters have the largest silhouette, {silhouette:.3} \
         (1: apart, 0: touching)",
        kept * 100.0,
        clusters.count()
    );
    if seen.labelled() {
        let agreement = Contingency::new(&seen.features.labels, &clusters.assignment)?;
        let _ = write!(
            html,
            "; with the labels, which it has not seen: normalised mutual information {:.3}, adjusted Rand index {:.3}, accuracy of the \
             best matching {:.1} %",
            agreement.normalized_mutual_info(),
            agreement.adjusted_rand(),
            agreement.matched_accuracy() * 100.0
        );
    }
    html.push_str(".</p><p>Silhouette by number of clusters: ");
    let each: Vec<String> = counts.iter().zip(&silhouettes).map(|(c, s)| format!("{c}: {s:.3}")).collect();
    let _ = write!(html, "{}.</p>", each.join(", "));
    let mut names = Vec::new();
    for c in 0..clusters.count() as u32 {
        let members = clusters.members(c);
        let most = seen.labelled().then(|| commonest(seen, &members)).flatten();
        let name = most
            .map_or(format!("cluster {}", c + 1), |(class, share)| format!("cluster {}: {:.0} % {class}", c + 1, share * 100.0));
        let _ = write!(html, "<div><b>{}</b>, {} images</div><div class=\"strip\">", escape(&name), members.len());
        members.iter().take(TYPICAL).for_each(|&row| thumb(&mut html, row, "other", &seen.name(row), 44));
        html.push_str("</div>");
        names.push(name);
    }
    Ok(Some(Found { clusters, silhouette, names, html }))
}

fn commonest(seen: &Seen, members: &[usize]) -> Option<(String, f64)> {
    let mut counts = std::collections::BTreeMap::new();
    members.iter().filter_map(|&m| seen.class(m)).for_each(|c| *counts.entry(c).or_insert(0usize) += 1);
    let (class, count) = counts.into_iter().max_by_key(|c| c.1)?;
    Some((class.to_string(), count as f64 / members.len() as f64))
}

/// Most classes whose whole table is shown.
const CLASSES: usize = 30;

/// What is taken for what.
pub(super) fn confusion(table: &Confusion, names: &[String]) -> String {
    let name = |c: usize| names.get(c).map_or_else(|| c.to_string(), |n| escape(n));
    if table.classes > CLASSES {
        let mut pairs: Vec<(u64, usize, usize)> = (0..table.classes)
            .flat_map(|a| (0..table.classes).filter(move |&b| b != a).map(move |b| (table.at(a, b), a, b)))
            .filter(|p| p.0 > 0)
            .collect();
        pairs.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let rows =
            pairs.iter().take(CLASSES).map(|&(n, a, b)| format!("<tr><td>{}</td><td>{}</td><td>{n}</td></tr>", name(a), name(b)));
        let rows: String = rows.collect();
        return format!(
            "<p>The commonest mistakes.</p><table><tr><th>label</th><th>taken for</th><th>images</th></tr>{rows}</table>"
        );
    }
    let mut html = String::from("<p>Labels by row, what they are taken for by column; last the share that is recognised.</p>");
    html.push_str("<table class=\"confusion\"><tr><th></th>");
    (0..table.classes).for_each(|c| {
        let _ = write!(html, "<th class=\"c\">{}</th>", name(c));
    });
    html.push_str("<th class=\"c\">recognised</th></tr>");
    for label in 0..table.classes {
        let all: u64 = (0..table.classes).map(|c| table.at(label, c)).sum();
        let _ = write!(html, "<tr><th>{}</th>", name(label));
        for c in 0..table.classes {
            let (n, hue) = (table.at(label, c), if c == label { "#4ba04b" } else { "#d9534f" });
            let share = (n as f64 / all.max(1) as f64).sqrt() * 100.0;
            let _ = write!(html, "<td style=\"background:color-mix(in srgb,{hue} {share:.0}%,transparent)\">{n}</td>");
        }
        let _ = write!(html, "<td>{}</td></tr>", percent(table.recall(label)));
    }
    html.push_str("</table>");
    html
}

/// Versions, machine and what the run took.
pub(super) fn machine(r: &RunResult) -> String {
    let rate = r.images as f64 / r.seconds.max(1e-9);
    let mut rows: Vec<(&str, String)> = match &r.machine {
        Some(m) => vec![
            ("twinsight", m.commit.as_ref().map_or(m.version.clone(), |c| format!("{} ({c})", m.version))),
            ("processor", format!("{} ({} threads, {})", m.processor, m.threads, m.instruction_set)),
            ("system", m.system.clone()),
        ],
        None => vec![("machine", "not recorded: the run is of an earlier version".into())],
    };
    rows.extend([
        ("images seen", r.images.to_string()),
        ("steps", r.steps.to_string()),
        ("hours, evaluation included", format!("{:.3}", r.seconds / 3600.0)),
        ("images a second, evaluation included", format!("{rate:.1}")),
        ("images left out as unreadable", r.skipped.to_string()),
    ]);
    let rows: String = rows.iter().map(|(k, v)| format!("<tr><td>{k}</td><td>{}</td></tr>", escape(v))).collect();
    format!("<table>{rows}</table>")
}
