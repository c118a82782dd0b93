//! `report.html`: one self-contained page with the figures, the curves, a map of the images and nearest neighbours.
//!
//! No script and no network: curves and map are SVG, thumbnails are embedded PNGs, light and dark follow the reader's
//! settings. The map shows the two leading principal components of the features of up to 400 images.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use candle_core::Device;
use image::imageops::FilterType;
use twinsight_datasets::{Dataset, Subset};
use twinsight_encoders::Encoder;
use twinsight_knn::Metric;

use crate::config::RunConfig;
use crate::data::{RunData, eval_plan};
use crate::evaluate::{Features, encode};
use crate::folder::{RunFolder, read_metrics};
use crate::trainer::RunResult;
use crate::{Error, Result};

const MAP_IMAGES: usize = 400;
const GALLERY_QUERIES: usize = 8;
const GALLERY_NEIGHBOURS: usize = 8;
/// Tableau's ten colours, readable on light and dark.
const COLOURS: [&str; 10] =
    ["#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"];

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
    device: &Device,
) -> Result<()> {
    let shown = &data.shown;
    let picks: Vec<usize> = spread(shown.len(), MAP_IMAGES);
    let subset = Subset::new(shown.clone(), picks)?;
    let plan = eval_plan(config, data.channels);
    let features = encode(&subset, encoder, &plan, config.eval.batch, device)?;
    let thumbs: Vec<String> = features.index.iter().map(|&i| thumbnail(&subset, i)).collect::<Result<_>>()?;
    let metrics = read_metrics(folder)?;

    let mut page = String::new();
    page.push_str(HEAD);
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = page.write_fmt(text);
    };
    line(format_args!("<h1>{} · {} · {}</h1>\n", escape(&config.method), escape(&config.encoder), escape(shown.name())));
    line(format_args!("<section><h2>Figures</h2>{}</section>\n", figures(result)));
    line(format_args!("<section><h2>Curves</h2><div class=\"row\">{}</div></section>\n", curves(&metrics)));
    if let Ok(png) = std::fs::read(folder.path("views.png")) {
        line(format_args!(
            "<section><h2>Views</h2><p>Each row: an image, then the views that the encoder was trained on.</p>\
             <img class=\"views\" alt=\"views\" src=\"data:image/png;base64,{}\"></section>\n",
            BASE64.encode(png)
        ));
    }
    line(format_args!(
        "<section><h2>Map</h2><p>{} images by the two leading principal components of their features{}.</p>{}</section>\n",
        features.index.len(),
        if features.labels.is_empty() { "" } else { ", coloured by label" },
        map(&features, &thumbs, &subset)
    ));
    line(format_args!(
        "<section><h2>Nearest neighbours</h2><p>Left: an image; right: those whose features are most similar.</p>{}</section>\n",
        gallery(&features, &thumbs)?
    ));
    line(format_args!("<section><h2>Configuration</h2><pre>{}</pre></section>\n", escape(&config.to_toml()?)));
    page.push_str("</main></body></html>\n");
    folder.write("report.html", page.as_bytes())
}

fn figures(r: &RunResult) -> String {
    let percent = |v: Option<f64>| v.map_or("–".to_string(), |v| format!("{:.1} %", v * 100.0));
    let mut out = String::from("<table>");
    if r.knn_trained.is_some() {
        let on = r.measured_on.as_deref().unwrap_or("held-out");
        let _ = write!(
            out,
            "<tr><th>k-NN accuracy on {on} images</th><td></td></tr>\
             <tr><td>trained encoder</td><td><b>{}</b></td></tr><tr><td>untrained encoder</td><td>{}</td></tr>\
             <tr><td>pixels</td><td>{}</td></tr><tr><td>k, temperature (chosen on held-out images)</td><td>{}, {}</td></tr>",
            percent(r.knn_trained),
            percent(r.knn_random),
            percent(r.knn_pixels),
            r.k.map_or("–".into(), |k| k.to_string()),
            r.temperature.map_or("–".into(), |t| format!("{t:.2}")),
        );
    }
    let _ = write!(
        out,
        "<tr><td>images seen</td><td>{}</td></tr><tr><td>steps</td><td>{}</td></tr><tr><td>minutes</td><td>{:.1}</td></tr>\
         <tr><td>last loss</td><td>{:.4}</td></tr><tr><td>made by</td><td>twinsight {}</td></tr></table>",
        r.images,
        r.steps,
        r.seconds / 60.0,
        r.loss,
        env!("CARGO_PKG_VERSION")
    );
    out
}

/// One small chart each for what `metrics.jsonl` holds.
fn curves(metrics: &[serde_json::Value]) -> String {
    let series = |event: &str, key: &str| -> Vec<(f64, f64)> {
        metrics.iter().filter(|m| m["event"] == event).filter_map(|m| Some((m["step"].as_f64()?, m[key].as_f64()?))).collect()
    };
    [
        ("loss", series("step", "loss")),
        ("k-NN accuracy, held-out", series("knn", "accuracy")),
        ("spread of embeddings", series("step", "feature_std")),
        ("effective rank", series("step", "effective_rank")),
        ("learning rate", series("step", "lr")),
        ("images a second", series("step", "images_per_s")),
    ]
    .iter()
    .filter(|(_, points)| !points.is_empty())
    .map(|(title, points)| chart(title, points))
    .collect()
}

fn chart(title: &str, points: &[(f64, f64)]) -> String {
    const W: f64 = 320.0;
    const H: f64 = 160.0;
    const LEFT: f64 = 52.0;
    const TOP: f64 = 8.0;
    let range = |f: fn(&(f64, f64)) -> f64| {
        let low = points.iter().map(f).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(f).fold(f64::NEG_INFINITY, f64::max);
        if high > low { (low, high) } else { (low - 0.5, high + 0.5) }
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let place = |p: &(f64, f64)| {
        let x = LEFT + (p.0 - x0) / (x1 - x0) * (W - LEFT - 6.0);
        let y = TOP + (1.0 - (p.1 - y0) / (y1 - y0)) * (H - TOP - 22.0);
        format!("{x:.1},{y:.1}")
    };
    let line: Vec<String> = points.iter().map(place).collect();
    format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {W} {H}\" width=\"{W}\" height=\"{H}\" role=\"img\">\
         <polyline class=\"curve\" points=\"{}\"/><text x=\"2\" y=\"{:.0}\">{}</text><text x=\"2\" y=\"{:.0}\">{}</text>\
         <text x=\"{LEFT}\" y=\"{:.0}\">step {x0:.0}</text><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{x1:.0}</text>\
         </svg></figure>",
        escape(title),
        line.join(" "),
        TOP + 10.0,
        short(y1),
        H - 22.0,
        short(y0),
        H - 4.0,
        W - 6.0,
        H - 4.0,
    )
}

fn short(v: f64) -> String {
    if v != 0.0 && (v.abs() < 0.01 || v.abs() >= 1e5) { format!("{v:.1e}") } else { format!("{v:.3}") }
}

fn map(features: &Features, thumbs: &[String], dataset: &dyn Dataset) -> String {
    const SIDE: f64 = 720.0;
    const TILE: f64 = 22.0;
    let points = leading_components(features);
    let bound = |axis: usize| points.iter().map(|p| p[axis].abs()).fold(1e-9, f64::max);
    let (bx, by) = (bound(0), bound(1));
    let mut out = format!("<svg class=\"map\" viewBox=\"0 0 {SIDE} {SIDE}\" width=\"{SIDE}\" height=\"{SIDE}\" role=\"img\">");
    for (i, p) in points.iter().enumerate() {
        let x = (p[0] / bx + 1.0) / 2.0 * (SIDE - TILE);
        let y = (p[1] / by + 1.0) / 2.0 * (SIDE - TILE);
        let label = features.labels.get(i).copied();
        let name = label.and_then(|l| dataset.classes()?.get(l as usize).cloned()).unwrap_or_default();
        let colour = COLOURS[label.unwrap_or(0) as usize % COLOURS.len()];
        let _ = write!(
            out,
            "<g><title>{} {}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{TILE}\" height=\"{TILE}\" fill=\"{colour}\"/>\
             <image x=\"{:.1}\" y=\"{:.1}\" width=\"{}\" height=\"{}\" href=\"{}\"/></g>",
            escape(&dataset.id(features.index[i])),
            escape(&name),
            x + 2.0,
            y + 2.0,
            TILE - 4.0,
            TILE - 4.0,
            thumbs[i]
        );
    }
    out.push_str("</svg>");
    out
}

fn gallery(features: &Features, thumbs: &[String]) -> Result<String> {
    let rows = features.index.len();
    if rows < 2 {
        return Ok("<p>Too few images.</p>".into());
    }
    let k = GALLERY_NEIGHBOURS.min(rows - 1);
    let found = twinsight_knn::search(features.matrix(), features.matrix(), k, Metric::Cosine, true)?;
    let mut out = String::from("<table class=\"gallery\">");
    for q in spread(rows, GALLERY_QUERIES) {
        let _ = write!(out, "<tr><td class=\"query\"><img alt=\"query\" src=\"{}\"></td>", thumbs[q]);
        for j in 0..k {
            let n = found.index[q * k + j] as usize;
            let class = match (features.labels.get(q), features.labels.get(n)) {
                (Some(a), Some(b)) if a == b => "same",
                (Some(_), Some(_)) => "other",
                _ => "",
            };
            let _ = write!(
                out,
                "<td class=\"{class}\"><img alt=\"neighbour\" title=\"similarity {:.3}\" src=\"{}\"></td>",
                found.score[q * k + j],
                thumbs[n]
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
    if !features.labels.is_empty() {
        out.push_str("<p>Underlined: of the same label.</p>");
    }
    Ok(out)
}

/// Projections of the rows on their two leading principal components, by power iteration with deflation from a fixed start.
fn leading_components(features: &Features) -> Vec<[f64; 2]> {
    let (n, d) = (features.index.len(), features.dim);
    let mut rows: Vec<f64> = features.rows.iter().map(|&v| f64::from(v)).collect();
    for j in 0..d {
        let mean = (0..n).map(|i| rows[i * d + j]).sum::<f64>() / n.max(1) as f64;
        (0..n).for_each(|i| rows[i * d + j] -= mean);
    }
    let mut points = vec![[0.0; 2]; n];
    for axis in 0..2 {
        let mut direction: Vec<f64> = (0..d).map(|j| 1.0 + (j * 7 % 11) as f64 / 11.0).collect();
        for _ in 0..50 {
            let mut next = vec![0.0; d];
            for row in rows.chunks_exact(d) {
                let dot: f64 = row.iter().zip(&direction).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(row).for_each(|(t, r)| *t += dot * r);
            }
            let norm = next.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-30);
            direction = next.iter().map(|v| v / norm).collect();
        }
        for (row, point) in rows.chunks_exact_mut(d).zip(&mut points) {
            let dot: f64 = row.iter().zip(&direction).map(|(a, b)| a * b).sum();
            point[axis] = dot;
            row.iter_mut().zip(&direction).for_each(|(r, b)| *r -= dot * b);
        }
    }
    points
}

fn thumbnail(dataset: &dyn Dataset, index: usize) -> Result<String> {
    let image = dataset.get(index)?.image;
    let small = if image.width().max(image.height()) > 48 { image.resize(48, 48, FilterType::Triangle) } else { image };
    let small = if small.color().has_color() {
        image::DynamicImage::ImageRgb8(small.to_rgb8())
    } else {
        image::DynamicImage::ImageLuma8(small.to_luma8())
    };
    let mut png = std::io::Cursor::new(Vec::new());
    small
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(|e| Error::Config(format!("{}: thumbnail: {e}", dataset.id(index))))?;
    Ok(format!("data:image/png;base64,{}", BASE64.encode(png.get_ref())))
}

/// `count` indices spread evenly over `0..total`.
fn spread(total: usize, count: usize) -> Vec<usize> {
    let count = count.min(total);
    (0..count).map(|i| i * total / count.max(1)).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Twinsight report</title><style>\n\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#6a737d;--line:#4e79a7}\n\
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#15181c;--soft:#9aa4af;--line:#7fb0e0}}\n\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0}\n\
main{max-width:1080px;margin:0 auto;padding:24px}h1{font-size:24px}h2{font-size:18px;margin-top:32px}\n\
table{border-collapse:collapse}td,th{padding:2px 14px 2px 0;text-align:left}.row{display:flex;flex-wrap:wrap;gap:16px}\n\
figure{margin:0}figcaption,svg text{color:var(--soft);fill:var(--soft);font-size:11px}\n\
.curve{fill:none;stroke:var(--line);stroke-width:1.6}.map,.views{max-width:100%;height:auto}.views{image-rendering:pixelated}\n\
.gallery img{width:48px;height:48px;image-rendering:pixelated;display:block}.gallery td{padding:3px}\n\
.query{padding-right:18px!important}.same{border-bottom:3px solid #59a14f}.other{border-bottom:3px solid transparent}\n\
pre{overflow:auto;background:color-mix(in srgb,var(--ink) 6%,transparent);padding:12px}\n\
</style></head><body><main>\n";
