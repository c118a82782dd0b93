//! The list of methods: the program's lists, its help and the contract tests come from it.

use toml::{Table, Value};
use twinsight_augment::ViewPlan;
use twinsight_encoders::Kind;

use crate::views::BY_SIZE;
use crate::{
    Error, Method, MethodContext, Result, ViewContext, barlow_twins, byol, dcl, dino, dinov2, ibot, lejepa, mae, moco_v2,
    moco_v3, nnclr, simclr, simsiam, swav, vicreg,
};

/// A method that can be built by name.
pub struct MethodSpec {
    /// What it is called on the command line and in files.
    pub name: &'static str,
    /// Its proper name.
    pub title: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// Which encoders it can train.
    pub encoder: EncoderNeed,
    /// What it needs of batch size and memory.
    pub needs: &'static str,
    /// When to choose it.
    pub choose: &'static str,
    /// Every setting with its default.
    pub defaults: fn() -> Table,
    /// The views that it needs, from settings (missing ones are defaults) and what the views are made for.
    pub views: fn(&Table, &ViewContext) -> Result<ViewPlan>,
    /// Builds it from settings (missing ones are defaults).
    pub build: fn(&Table, &MethodContext) -> Result<Box<dyn Method>>,
    /// What every setting means.
    pub keys: Keys,
}

/// Which encoders a method can train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderNeed {
    /// Any.
    Any,
    /// Vision transformers, whose patches it hides.
    Vit,
}

impl EncoderNeed {
    /// Refuses an encoder of `context` that `method` cannot train.
    ///
    /// # Errors
    /// The encoder's name, and which would do.
    pub(crate) fn check(self, method: &'static str, context: &MethodContext) -> Result<()> {
        match (self, context.encoder.kind) {
            (Self::Vit, Kind::Cnn) => Err(Error::EncoderKind { method, encoder: context.encoder.name }),
            _ => Ok(()),
        }
    }
}

/// A setting and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDoc {
    /// The key; keys within tables are joined by dots.
    pub key: String,
    /// Meaning, unit and range.
    pub meaning: String,
}

/// What every setting of a method means.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// Keys of the method itself with their meanings.
    pub(crate) own: &'static [(&'static str, &'static str)],
    /// Keys of its table `views`.
    pub(crate) views: &'static [(&'static str, &'static str)],
    /// Every setting with its default.
    pub(crate) defaults: fn() -> Table,
}

impl Keys {
    /// The settings one by one, those of views as `views.…`.
    pub fn iter(&self) -> impl Iterator<Item = KeyDoc> {
        let own = self.own.iter().map(|&(key, meaning)| KeyDoc { key: key.into(), meaning: meaning.into() });
        let defaults = (self.defaults)();
        let views = self.views.iter().map(move |&(key, meaning)| {
            let default = defaults.get("views").and_then(|views| views.get(key)).and_then(Value::as_float);
            let note = if default == Some(BY_SIZE) { " −1: the image size decides." } else { "" };
            KeyDoc { key: format!("views.{key}"), meaning: format!("{meaning}{note}") }
        });
        own.chain(views)
    }
}

impl std::fmt::Debug for MethodSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MethodSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every method there is.
pub static METHODS: &[MethodSpec] = &[
    simclr::SPEC,
    dcl::SPEC,
    dcl::WEIGHTED_SPEC,
    nnclr::SPEC,
    moco_v2::SPEC,
    moco_v3::SPEC,
    byol::SPEC,
    simsiam::SPEC,
    barlow_twins::SPEC,
    vicreg::SPEC,
    swav::SPEC,
    dino::SPEC,
    ibot::SPEC,
    dinov2::SPEC,
    lejepa::SPEC,
    mae::SPEC,
];

/// The method called `name`.
///
/// # Errors
/// An unknown name; the message offers the nearest and lists all.
pub fn method(name: &str) -> Result<&'static MethodSpec> {
    METHODS.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let likeness = |spec: &MethodSpec| strsim::jaro_winkler(&name.to_lowercase(), spec.name);
        let nearest = METHODS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).map_or("", |spec| spec.name);
        let known = METHODS.iter().map(|spec| spec.name).collect::<Vec<_>>().join(", ");
        Error::UnknownMethod { name: name.into(), nearest, known }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::dotted_keys;

    #[test]
    fn an_unknown_name_offers_the_nearest() {
        let text = |name| method(name).expect_err("unknown").to_string();
        assert!(text("SimCLR").contains("did you mean `simclr`"));
        assert!(text("dinov3").contains("did you mean `dinov2`"));
        assert!(text("x").contains("simclr, dcl, dclw, nnclr, moco_v2, moco_v3, byol"));
    }

    #[test]
    fn every_setting_is_documented() {
        for spec in METHODS {
            let mut documented: Vec<String> = spec.keys.iter().map(|k| k.key).collect();
            let mut known = dotted_keys(&(spec.defaults)());
            documented.sort();
            known.sort();
            assert_eq!(documented, known, "{}", spec.name);
            let by_size =
                (spec.defaults)()["views"].as_table().is_some_and(|v| v.values().any(|v| v.as_float() == Some(BY_SIZE)));
            let said = spec.keys.iter().any(|k| k.key.starts_with("views.") && k.meaning.contains("image size decides"));
            assert_eq!(by_size, said, "{}", spec.name);
            assert!(!spec.needs.is_empty() && !spec.choose.is_empty());
        }
    }
}
