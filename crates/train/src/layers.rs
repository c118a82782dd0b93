//! Layers of settings as TOML tables: how they are named, read from `key=value`, and put one over the other, with the
//! nearest right key for a wrong one.

use toml::{Table, Value};

use crate::{Error, Result};

/// One layer of settings with the words that name it in errors.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where it came from: `recipe demo`, `--set`, a file.
    pub origin: String,
    /// Its keys.
    pub table: Table,
    /// Whether it is a recipe: complete by itself, and put over the defaults alone.
    pub recipe: bool,
}

impl Layer {
    /// Keys from `origin`.
    pub fn new(origin: impl Into<String>, table: Table) -> Self {
        Self { origin: origin.into(), table, recipe: false }
    }
}

/// Reads `key=value` (dotted keys; the value in TOML's form, or a bare word as a string).
///
/// # Errors
/// Text without an equals sign or with an empty key.
pub fn parse_assignment(text: &str) -> Result<Table> {
    let Some((key, value)) = text.split_once('=').filter(|(k, _)| !k.trim().is_empty()) else {
        return Err(Error::Config(format!("--set {text}: expected key=value, such as --set options.temperature=0.2")));
    };
    let (key, value) = (key.trim(), value.trim());
    let value = toml::from_str::<Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(value.trim_matches('"').to_string()));
    let mut parts: Vec<&str> = key.split('.').collect();
    let mut table = Table::from_iter([(parts.pop().unwrap_or(key).to_string(), value)]);
    while let Some(part) = parts.pop() {
        table = Table::from_iter([(part.to_string(), Value::Table(table))]);
    }
    Ok(table)
}

/// The candidate nearest to `word`, when one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// The keys of all values that are no tables, with dots.
pub(crate) fn dotted_keys(table: &Table) -> Vec<String> {
    fn walk(table: &Table, prefix: &str, out: &mut Vec<String>) {
        for (key, value) in table {
            let full = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => walk(inner, &full, out),
                _ => out.push(full),
            }
        }
    }
    let mut out = Vec::new();
    walk(table, "", &mut out);
    out
}

/// The value of a dotted key.
pub(crate) fn value_at<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (table, last) = match key.rsplit_once('.') {
        Some((sections, last)) => (sections.split('.').try_fold(table, |t, part| t.get(part)?.as_table())?, last),
        None => (table, key),
    };
    table.get(last)
}

/// Puts `over` onto `base`. A key that `base` lacks is refused; a whole number is taken where a fraction is meant.
pub(crate) fn merge(base: &mut Table, over: &Table, prefix: &str, origin: &str, keys: &[String]) -> Result<()> {
    for (key, value) in over {
        let full = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let Some(slot) = base.get_mut(key) else {
            let whole = nearest(&full, keys.iter().map(String::as_str));
            let last = nearest(key, keys.iter().map(|k| k.rsplit('.').next().unwrap_or(k)));
            // A misspelt last part counts most, and among the sections that know it the one that was written.
            let knows_it = |l: &str| {
                let named: Vec<&str> = keys.iter().map(String::as_str).filter(|k| k.rsplit('.').next() == Some(l)).collect();
                named.iter().copied().find(|k| k.strip_suffix(l) == Some(&format!("{prefix}.")[..])).or(named.first().copied())
            };
            let by_last = last.and_then(knows_it);
            let guess = by_last.or(whole).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            return Err(Error::Config(format!("{origin}: unknown key `{full}`{guess}")));
        };
        match (slot, value) {
            (Value::Table(inner), Value::Table(over)) => merge(inner, over, &full, origin, keys)?,
            (slot @ Value::Float(_), Value::Integer(i)) => *slot = Value::Float(*i as f64),
            (slot, value) if slot.same_type(value) => *slot = value.clone(),
            (slot, value) => {
                return Err(Error::Config(format!(
                    "{origin}: `{full}` is of type {}, expected {} such as {slot}",
                    value.type_str(),
                    slot.type_str()
                )));
            }
        }
    }
    Ok(())
}
