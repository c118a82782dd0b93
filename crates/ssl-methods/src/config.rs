//! Reading a method's settings from TOML: unknown keys are refused with the nearest right one, values out of range in words.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, Result};

/// The settings `T` of `method` from `table`, over `T`'s defaults.
///
/// # Errors
/// A key that `T` does not have, with the nearest that it has; a value of the wrong type.
pub(crate) fn read<T: Default + Serialize + DeserializeOwned>(method: &'static str, table: &Table) -> Result<T> {
    let known = dotted_keys(&defaults::<T>());
    for key in dotted_keys(table) {
        let is_prefix = |k: &String| k.starts_with(&format!("{key}."));
        if !known.contains(&key) && !known.iter().any(is_prefix) {
            let likeness = |k: &String| strsim::jaro_winkler(&key, k);
            let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).cloned().unwrap_or_default();
            return Err(Error::UnknownKey { method, key, nearest, known: known.join(", ") });
        }
    }
    let bad = |e: toml::de::Error| Error::BadConfig { method, reason: e.to_string().trim().replace('\n', " ") };
    table.clone().try_into().map_err(bad)
}

/// The default settings as a table.
///
/// # Panics
/// When a default cannot be written as TOML, which is a mistake in `T` that the registry's tests find.
pub(crate) fn defaults<T: Default + Serialize>() -> Table {
    let mut table = Table::try_from(T::default()).expect("default settings can be written as TOML");
    shorten(&mut table);
    table
}

/// Writes what was an f32 by its shortest digits: 0.1 instead of 0.10000000149011612.
fn shorten(table: &mut Table) {
    for (_, value) in table.iter_mut() {
        match value {
            Value::Float(v) if f64::from(*v as f32) == *v => {
                *v = (*v as f32).to_string().parse().unwrap_or(*v);
            }
            Value::Table(inner) => shorten(inner),
            _ => {}
        }
    }
}

/// Every key that holds no table, those within tables joined by dots.
pub(crate) fn dotted_keys(table: &Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => keys.extend(dotted_keys(inner).into_iter().map(|k| format!("{key}.{k}"))),
            _ => keys.push(key.clone()),
        }
    }
    keys
}

/// Refuses one setting of `method` unless `right`.
pub(crate) fn ensure(
    method: &'static str,
    right: bool,
    key: &'static str,
    value: impl std::fmt::Display,
    expected: &'static str,
) -> Result<()> {
    if right { Ok(()) } else { Err(Error::BadValue { method, key, value: value.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        temperature: f64,
        views: Inner,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        blur: f64,
    }

    fn parse(text: &str) -> Result<Outer> {
        read("simclr", &text.parse().expect("TOML"))
    }

    #[test]
    fn keys_over_defaults() -> Result<()> {
        assert_eq!(parse("")?, Outer::default());
        assert_eq!(parse("views.blur = 0.5")?, Outer { temperature: 0.0, views: Inner { blur: 0.5 } });
        Ok(())
    }

    #[test]
    fn defaults_are_short() {
        let mut table: Table = Table::from_iter([("a".to_string(), Value::Float(f64::from(0.1f32)))]);
        shorten(&mut table);
        assert_eq!(table["a"], Value::Float(0.1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |t| parse(t).expect_err("must be refused").to_string();
        assert!(text("temprature = 1.0").contains("`temprature`; did you mean `temperature`"));
        assert!(text("views.blurr = 1.0").contains("`views.blurr`; did you mean `views.blur`"));
        assert!(text("temperature = 'x'").contains("simclr: settings:"), "{}", text("temperature = 'x'"));
        assert!(text("views = 3").contains("simclr: settings:"));
    }
}
