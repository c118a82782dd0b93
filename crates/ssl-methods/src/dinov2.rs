//! DINOv2's recipe (Oquab et al. 2024): iBOT with heads of their own for views and patches, assignments balanced over the batch instead
//! of centred, and class tokens kept apart by [`crate::koleo_loss`].

use serde::{Deserialize, Serialize};
use toml::Table;
use twinsight_augment::{DinoViews, ViewPlan};

use crate::config::{defaults, read};
use crate::ibot::{Centering, Ibot, IbotConfig, KEYS};
use crate::{EncoderNeed, Keys, MethodContext, MethodSpec, Result, views};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "DINOv2",
    paper: "Oquab et al. 2024, DINOv2: Learning Robust Visual Features without Supervision",
    summary: "DINO and iBOT together, balanced over the batch, class tokens kept apart; for transformers",
    encoder: EncoderNeed::Vit,
    needs: "a vision transformer; 128 images a batch or more, over which assignments are balanced; a second network, small crops",
    choose: "long runs of large transformers on much data; iBOT or DINO for less",
    defaults: defaults::<DinoV2Config>,
    views: |table, context| read::<DinoV2Config>(NAME, table)?.0.plan(dinov2_views, context),
    build: |table: &Table, context: &MethodContext| Ok(Box::new(DinoV2::build(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: DinoViews::KEYS, defaults: defaults::<DinoV2Config> },
};

const NAME: &str = "dinov2";

/// DINOv2's settings: those of iBOT with the values of the reference implementation's `ssl_default_config.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DinoV2Config(#[serde(deserialize_with = "over_defaults")] pub IbotConfig);

impl Default for DinoV2Config {
    fn default() -> Self {
        Self(IbotConfig {
            out_dim: 65536,
            shared_head: false,
            centering: Centering::Sinkhorn,
            momentum: 0.992,
            koleo_weight: 0.1,
            norm_last_layer: false,
            stratified_masks: true,
            mask_block_min: 4,
            local_views: 8,
            views: views::by_size(dinov2_views),
            ..IbotConfig::default()
        })
    }
}

/// DINOv2's recipe: builds an [`Ibot`] with its settings.
pub struct DinoV2;

impl DinoV2 {
    /// Builds student and teacher, which start alike.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder; an encoder without patches.
    pub fn build(config: &DinoV2Config, context: &MethodContext) -> Result<Ibot> {
        Ibot::named(NAME, &config.0, dinov2_views, context)
    }
}

/// DINO's views with crops cut at 32 % of the area in 224 pixels, as the program has them.
fn dinov2_views(size: usize) -> DinoViews {
    let views = DinoViews::for_size(size);
    match size <= ViewPlan::SMALL {
        true => views,
        false => DinoViews { crop_scale_min: 0.32, local_scale_max: 0.32, ..views },
    }
}

/// Reads settings over DINOv2's defaults, not iBOT's.
fn over_defaults<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<IbotConfig, D::Error> {
    use serde::de::Error;
    let given = Table::deserialize(deserializer)?;
    let mut table = Table::try_from(DinoV2Config::default().0).map_err(D::Error::custom)?;
    for (key, value) in given {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(own)), toml::Value::Table(given)) => own.extend(given),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
    table.try_into().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_dinov2s() -> anyhow::Result<()> {
        let config: DinoV2Config = read(NAME, &"momentum = 0.5\nviews = { flip_p = 0.25 }".parse()?)?;
        let want = DinoV2Config::default().0;
        assert_eq!((config.0.momentum, config.0.views.flip_p), (0.5, 0.25));
        assert_eq!((config.0.centering, config.0.koleo_weight, config.0.out_dim), (Centering::Sinkhorn, 0.1, want.out_dim));
        assert!(read::<DinoV2Config>(NAME, &"momentun = 0.5".parse()?).is_err());
        Ok(())
    }
}
