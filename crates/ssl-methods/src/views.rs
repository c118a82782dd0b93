//! Settings of views that depend on the size of the images: small images want weaker views than the papers' 224 pixels.
//!
//! Where a method's settings for small and for large images differ, the default is [`BY_SIZE`], and the plan takes the
//! one or the other when the size is known. Any other value stands.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// The value of a setting that the image size decides.
pub(crate) const BY_SIZE: f64 = -1.0;

/// The settings on which `small` and `large` agree, and [`BY_SIZE`] for the others.
pub(crate) fn by_size<V: Serialize + DeserializeOwned>(small: &V, large: &V) -> V {
    let (small, mut merged) = (table(small), table(large));
    for (key, value) in &mut merged {
        if value.is_float() && small.get(key) != Some(value) {
            *value = Value::Float(BY_SIZE);
        }
    }
    typed(merged)
}

/// `settings` with every [`BY_SIZE`] replaced by the value of `decided`.
pub(crate) fn resolve<V: Serialize + DeserializeOwned>(settings: &V, decided: &V) -> V {
    let (mut settings, decided) = (table(settings), table(decided));
    for (key, value) in &mut settings {
        if let (Some(v), Some(by_size)) = (value.as_float(), decided.get(key))
            && v == BY_SIZE
        {
            *value = by_size.clone();
        }
    }
    typed(settings)
}

/// # Panics
/// Never: view settings are flat structs of numbers and names, which TOML holds.
fn table<V: Serialize>(settings: &V) -> Table {
    Table::try_from(settings).expect("view settings are a flat table")
}

/// # Panics
/// Never: the table has the keys and types of a `V`.
fn typed<V: DeserializeOwned>(table: Table) -> V {
    table.try_into().expect("the table was made from view settings")
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_augment::SimclrViews;

    #[test]
    fn size_decides_what_was_left_to_it() {
        let (small, large) = (SimclrViews::for_size(32), SimclrViews::for_size(224));
        let mut settings = by_size(&small, &large);
        assert_eq!(settings.blur_p, -1.0);
        assert_eq!(settings.gray_p, large.gray_p);
        assert_eq!(resolve(&settings, &small), small);
        assert_eq!(resolve(&settings, &large), large);
        settings.blur_p = 0.25;
        assert_eq!(resolve(&settings, &small).blur_p, 0.25);
    }
}
