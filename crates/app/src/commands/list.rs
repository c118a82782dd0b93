//! `list`: the registries.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use twinsight_datasets::DATASETS;
use twinsight_encoders::ENCODERS;
use twinsight_ssl_methods::{METHODS, method};
use twinsight_train::{Layer, RECIPES, RunConfig};

use super::methods_page;
use crate::cli::{ListArgs, Listed};
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// An unknown method, for its keys; Markdown of anything but methods.
pub fn run(args: &ListArgs, output: &Output) -> Result<ExitCode> {
    if args.markdown {
        if !matches!(args.what, Listed::Methods) {
            bail!("--markdown is for `list methods` alone");
        }
        let page = methods_page::page();
        output.say(page.trim_end());
        output.finish(&json!({ "markdown": page }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Value> = match args.what {
        Listed::Methods => METHODS.iter().map(|m| row(m.name, m.summary, json!({"title": m.title, "paper": m.paper}))).collect(),
        Listed::Encoders => ENCODERS.iter().map(|e| row(e.name, e.summary, json!({"paper": e.paper}))).collect(),
        Listed::Datasets => {
            DATASETS.iter().map(|d| row(d.name, d.summary, json!({"licence": d.licence, "homepage": d.homepage}))).collect()
        }
        Listed::Recipes => RECIPES.iter().map(|r| row(r.name, r.summary, json!({}))).collect(),
        Listed::Keys => keys(&args.method)?,
    };
    let width = rows.iter().filter_map(|r| r["name"].as_str()).map(str::len).max().unwrap_or(0);
    for r in &rows {
        output.say(format!("{:width$}  {}", r["name"].as_str().unwrap_or_default(), r["summary"].as_str().unwrap_or_default()));
    }
    output.finish(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, summary: &str, mut more: Value) -> Value {
    more["name"] = json!(name);
    more["summary"] = json!(summary);
    more
}

/// Meanings of keys whose text has a form of its own.
const FORMS: [(&str, &str); 1] = [(
    "data.levels",
    "levels of 16 bits: `full`, `range:LOW:HIGH` (stretched), `percentile:LOW:HIGH` (measured when the run begins)",
)];

/// Every key with its default for the method, and the meaning of the method's own and of some others.
fn keys(name: &str) -> Result<Vec<Value>> {
    let spec = method(name)?;
    let table = toml::Table::from_iter([("method".to_string(), toml::Value::from(name))]);
    let config = RunConfig::resolve(&[Layer::new("command line", table)])?;
    let resolved = toml::Table::try_from(&config)?;
    let mut rows = Vec::new();
    for key in twinsight_train::config::all_keys(name)? {
        let value =
            key.split('.').try_fold(&toml::Value::Table(resolved.clone()), |v, part| v.get(part)).map(ToString::to_string);
        let meaning = key
            .strip_prefix("options.")
            .and_then(|own| spec.keys.iter().find(|k| k.key == own).map(|k| k.meaning))
            .or_else(|| FORMS.iter().find(|(form, _)| *form == key).map(|(_, meaning)| meaning.to_string()))
            .map_or(String::new(), |meaning| format!("  {meaning}"));
        rows.push(row(&key, &format!("{}{meaning}", value.unwrap_or_default()), json!({})));
    }
    Ok(rows)
}
