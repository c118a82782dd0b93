//! The page itself: head, sections, embedded data and scripts. One file that needs no other and no network.

use std::fmt::Write as _;

use crate::{Error, Result};

/// Colours of groups, readable on light and dark (Tableau's ten and their lighter partners).
const COLOURS: [&str; 20] = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#8a8580", "#86bcb6",
    "#d37295", "#a0cbe8", "#ffbe7d", "#8cd17d", "#b6992d", "#499894", "#fabfd2", "#d4a6c8", "#d7b5a6",
];

/// A page that grows section by section.
pub(super) struct Page {
    title: String,
    subtitle: String,
    sections: Vec<(String, String)>,
    data: serde_json::Value,
}

/// One line of a chart.
pub(super) struct Series {
    /// What it is called in the legend.
    pub name: String,
    /// (x, y), x rising.
    pub points: Vec<(f64, f64)>,
}

impl Page {
    pub fn new(title: impl Into<String>, subtitle: impl Into<String>) -> Self {
        let data = serde_json::json!({"colours": COLOURS, "charts": []});
        Self { title: title.into(), subtitle: subtitle.into(), sections: Vec::new(), data }
    }

    /// Adds a section of HTML.
    pub fn section(&mut self, heading: &str, html: impl Into<String>) {
        self.sections.push((heading.to_string(), html.into()));
    }

    /// Gives the scripts `value` under `key`.
    pub fn data(&mut self, key: &str, value: serde_json::Value) {
        self.data[key] = value;
    }

    /// Adds a chart to those that the scripts draw into the element `charts`; nothing without points.
    pub fn chart(&mut self, title: &str, over: &str, series: Vec<Series>) {
        let series: Vec<_> = series
            .into_iter()
            .filter(|s| !s.points.is_empty())
            .map(|s| {
                let (x, y): (Vec<f64>, Vec<f64>) = s.points.into_iter().filter(|p| p.1.is_finite()).unzip();
                serde_json::json!({"name": s.name, "x": x, "y": y})
            })
            .collect();
        if let (false, Some(charts)) = (series.is_empty(), self.data["charts"].as_array_mut()) {
            charts.push(serde_json::json!({"title": title, "over": over, "series": series}));
        }
    }

    /// The whole page.
    ///
    /// # Errors
    /// Data that JSON can't hold.
    pub fn html(&self) -> Result<String> {
        let slug = |heading: &str| heading.to_lowercase().replace(' ', "-");
        // `</script>` within the data would end it, and `<!--` would begin a comment; in JSON `<` stands in strings alone.
        let data = serde_json::to_string(&self.data).map_err(|e| Error::Config(format!("report: {e}")))?.replace('<', "\\u003c");
        let mut page = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
        let _ = write!(
            page,
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><link rel=\"icon\" href=\"data:,\">\
             <title>{}</title>\n<style>{}</style>\n<style>{}</style></head>\n<body><main>\n<h1>{}</h1><p>{}</p><nav>",
            escape(&self.title),
            include_str!("assets/uPlot.min.css"),
            include_str!("assets/report.css"),
            escape(&self.title),
            escape(&self.subtitle)
        );
        for (heading, _) in &self.sections {
            let _ = write!(page, "<a href=\"#{}\">{}</a>", slug(heading), escape(heading));
        }
        page.push_str("</nav>\n");
        for (heading, html) in &self.sections {
            let _ = writeln!(page, "<section id=\"{}\"><h2>{}</h2>{html}</section>", slug(heading), escape(heading));
        }
        let _ = write!(
            page,
            "<div id=\"tip\"></div></main>\n<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{}</script>\n\
             <script>{}</script>\n</body></html>\n",
            include_str!("assets/uPlot.iife.min.js"),
            include_str!("assets/report.js")
        );
        Ok(page)
    }
}

/// Text as HTML shows it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A fraction as a percentage.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_string(), |v| format!("{:.1} %", v * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_can_not_end_its_script_and_nothing_reaches_for_the_network() -> Result<()> {
        let mut page = Page::new("a <b>", "c");
        page.data("name", serde_json::json!("</script><!--<script><b>"));
        page.section("Two words", "<p>x</p>");
        page.chart("empty", "step", Vec::new());
        let html = page.html()?;
        assert!(html.contains("<h2>Two words</h2>") && html.contains("id=\"two-words\"") && html.contains("a &lt;b&gt;"));
        assert!(html.contains("\\u003c/script>\\u003c!--\\u003cscript>\\u003cb>"));
        assert!(!html.contains("http://") && !html.contains("https://"));
        Ok(())
    }
}
