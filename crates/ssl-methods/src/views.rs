//! Settings of views that depend on the size of the images: small images want weaker views than the papers' 224 pixels.
//!
//! Where a method's settings for small and for large images differ, the default is [`BY_SIZE`], and the plan takes the
//! one or the other when the size is known. Any other value stands.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use twinsight_augment::{ByolViews, DinoViews, SimclrViews, ViewPlan};

use crate::{Result, ViewContext};

/// The value of a setting that the image size decides.
pub(crate) const BY_SIZE: f64 = -1.0;

/// Sizes that stand for small and for large images.
const SIZES: [usize; 2] = [ViewPlan::SMALL, ViewPlan::SMALL + 1];

/// The default settings of a method: those on which its `decided` settings for small and for large images agree, and [`BY_SIZE`] for the
/// others.
pub(crate) fn by_size<V: Serialize + DeserializeOwned>(decided: fn(usize) -> V) -> V {
    let [small, large] = SIZES.map(decided);
    let (small, mut merged) = (table(&small), table(&large));
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

/// Two views made alike, as SimCLR's.
pub(crate) fn alike(settings: &SimclrViews, decided: fn(usize) -> SimclrViews, context: &ViewContext) -> Result<ViewPlan> {
    let views = resolve(settings, &decided(context.image_size));
    checked(ViewPlan::simclr(context.image_size, context.channels, &views), context)
}

/// Two views made differently, as BYOL's.
pub(crate) fn different(settings: &ByolViews, decided: fn(usize) -> ByolViews, context: &ViewContext) -> Result<ViewPlan> {
    let views = resolve(settings, &decided(context.image_size));
    checked(ViewPlan::byol(context.image_size, context.channels, &views), context)
}

/// Two large views and `count` small ones of `size` pixels (0: 3/7 of the image, in whole patches).
pub(crate) fn multi_crop(
    settings: &DinoViews,
    decided: fn(usize) -> DinoViews,
    [count, size]: [usize; 2],
    context: &ViewContext,
) -> Result<ViewPlan> {
    let local = if size == 0 { DinoViews::local_size(context.image_size, context.patch) } else { size };
    let views = resolve(settings, &decided(context.image_size));
    checked(ViewPlan::dino(context.image_size, local, count, context.channels, &views), context)
}

/// One view.
pub(crate) fn one(settings: &SimclrViews, decided: fn(usize) -> SimclrViews, context: &ViewContext) -> Result<ViewPlan> {
    let views = resolve(settings, &decided(context.image_size));
    checked(ViewPlan::single(context.image_size, context.channels, &views), context)
}

fn checked(plan: ViewPlan, context: &ViewContext) -> Result<ViewPlan> {
    let plan = plan.with_normalize(context.normalize.clone());
    plan.check()?;
    Ok(plan)
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

    #[test]
    fn size_decides_what_was_left_to_it() {
        let (small, large) = (SimclrViews::for_size(32), SimclrViews::for_size(224));
        let mut settings = by_size(SimclrViews::for_size);
        assert_eq!(settings.blur_p, -1.0);
        assert_eq!(settings.gray_p, large.gray_p);
        assert_eq!(resolve(&settings, &small), small);
        assert_eq!(resolve(&settings, &large), large);
        settings.blur_p = 0.25;
        assert_eq!(resolve(&settings, &small).blur_p, 0.25);
    }
}
