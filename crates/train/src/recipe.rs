//! Recipes: named TOML files of settings, embedded in the program.

use toml::Table;

use crate::layers::{Layer, nearest};
use crate::{Error, Result};

/// A recipe of the registry.
#[derive(Debug, Clone, Copy)]
pub struct RecipeSpec {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for, in one line.
    pub summary: &'static str,
    /// Its text.
    pub toml: &'static str,
}

/// Every recipe.
pub static RECIPES: &[RecipeSpec] = &[
    RecipeSpec {
        name: "demo",
        summary: "what `twinsight demo` runs: SimCLR on 10,000 Fashion-MNIST images, minutes on two cores",
        toml: include_str!("../recipes/demo.toml"),
    },
    RecipeSpec {
        name: "simclr-small",
        summary: "SimCLR for a few thousand small images on a CPU; the default of `--method simclr`",
        toml: include_str!("../recipes/simclr-small.toml"),
    },
    RecipeSpec {
        name: "barlow_twins-small",
        summary: "Barlow Twins for a few thousand small images on a CPU; the default of `--method barlow_twins`",
        toml: include_str!("../recipes/barlow_twins-small.toml"),
    },
    RecipeSpec {
        name: "byol-small",
        summary: "BYOL for a few thousand small images on a CPU; the default of `--method byol`",
        toml: include_str!("../recipes/byol-small.toml"),
    },
    RecipeSpec {
        name: "dino-small",
        summary: "DINO with multi-crop for a few thousand small images on a CPU; the default of `--method dino`",
        toml: include_str!("../recipes/dino-small.toml"),
    },
    RecipeSpec {
        name: "dcl-small",
        summary: "DCL for a few thousand small images on a CPU; the default of `--method dcl`",
        toml: include_str!("../recipes/dcl-small.toml"),
    },
    RecipeSpec {
        name: "dclw-small",
        summary: "DCLW for a few thousand small images on a CPU; the default of `--method dclw`",
        toml: include_str!("../recipes/dclw-small.toml"),
    },
    RecipeSpec {
        name: "nnclr-small",
        summary: "NNCLR for a few thousand small images on a CPU; the default of `--method nnclr`",
        toml: include_str!("../recipes/nnclr-small.toml"),
    },
    RecipeSpec {
        name: "moco_v2-small",
        summary: "MoCo v2 for a few thousand small images on a CPU; the default of `--method moco_v2`",
        toml: include_str!("../recipes/moco_v2-small.toml"),
    },
    RecipeSpec {
        name: "moco_v3-small",
        summary: "MoCo v3 for a few thousand small images on a CPU; the default of `--method moco_v3`",
        toml: include_str!("../recipes/moco_v3-small.toml"),
    },
    RecipeSpec {
        name: "simsiam-small",
        summary: "SimSiam for a few thousand small images on a CPU; the default of `--method simsiam`",
        toml: include_str!("../recipes/simsiam-small.toml"),
    },
    RecipeSpec {
        name: "vicreg-small",
        summary: "VICReg for a few thousand small images on a CPU; the default of `--method vicreg`",
        toml: include_str!("../recipes/vicreg-small.toml"),
    },
    RecipeSpec {
        name: "swav-small",
        summary: "SwAV for a few thousand small images on a CPU; the default of `--method swav`",
        toml: include_str!("../recipes/swav-small.toml"),
    },
    RecipeSpec {
        name: "lejepa-small",
        summary: "LeJEPA for a few thousand small images on a CPU; the default of `--method lejepa`",
        toml: include_str!("../recipes/lejepa-small.toml"),
    },
    RecipeSpec {
        name: "mae-small",
        summary: "MAE for a few thousand small images on a CPU; the default of `--method mae`",
        toml: include_str!("../recipes/mae-small.toml"),
    },
    RecipeSpec {
        name: "ibot-small",
        summary: "iBOT for a few thousand small images on a CPU; the default of `--method ibot`",
        toml: include_str!("../recipes/ibot-small.toml"),
    },
    RecipeSpec {
        name: "dinov2-small",
        summary: "DINOv2 for a few thousand small images on a CPU; the default of `--method dinov2`",
        toml: include_str!("../recipes/dinov2-small.toml"),
    },
    RecipeSpec {
        name: "simclr-lightly-cifar10",
        summary: "lightly's published CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/simclr-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "byol-lightly-cifar10",
        summary: "lightly's published CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/byol-lightly-cifar10.toml"),
    },
];

impl RecipeSpec {
    /// The recipe's keys.
    ///
    /// # Errors
    /// Text that is no TOML.
    pub fn table(&self) -> Result<Table> {
        toml::from_str(self.toml).map_err(|e| Error::Config(format!("{}: {}", self.origin(), e.message())))
    }

    /// The recipe as the layer under the others.
    ///
    /// # Errors
    /// Text that is no TOML.
    pub fn layer(&self) -> Result<Layer> {
        Ok(Layer { recipe: true, ..Layer::new(self.origin(), self.table()?) })
    }

    /// How errors name it.
    pub fn origin(&self) -> String {
        format!("recipe {}", self.name)
    }
}

/// The recipe called `name`.
///
/// # Errors
/// An unknown name, with the nearest.
pub fn recipe(name: &str) -> Result<&'static RecipeSpec> {
    RECIPES.iter().find(|r| r.name == name).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().map(|r| r.name).collect();
        let guess = nearest(name, names.iter().copied()).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        Error::Config(format!("no recipe `{name}`{guess} (there are {})", names.join(", ")))
    })
}

/// The recipe that lies under everything else for `method`.
pub(crate) fn small_for(method: &str) -> Option<&'static RecipeSpec> {
    RECIPES.iter().find(|r| r.name.strip_suffix("-small") == Some(method))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn every_recipe_resolves() -> Result<()> {
        for recipe in RECIPES {
            RunConfig::resolve(&[recipe.layer()?])?;
        }
        Ok(())
    }

    #[test]
    fn every_method_has_a_small_recipe() {
        for method in twinsight_ssl_methods::METHODS {
            assert!(small_for(method.name).is_some(), "{}-small is missing", method.name);
        }
    }

    #[test]
    fn an_unknown_recipe_offers_the_nearest() {
        let error = recipe("simclr-smal").expect_err("unknown").to_string();
        assert!(error.contains("simclr-small"), "{error}");
    }
}
