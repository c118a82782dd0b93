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
    RecipeSpec {
        name: "dcl-lightly-cifar10",
        summary: "DCL with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/dcl-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "dclw-lightly-cifar10",
        summary: "DCLW with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/dclw-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "nnclr-lightly-cifar10",
        summary: "NNCLR with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/nnclr-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "moco_v2-lightly-cifar10",
        summary: "MoCo v2 with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/moco_v2-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "simsiam-lightly-cifar10",
        summary: "SimSiam with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/simsiam-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "barlow_twins-lightly-cifar10",
        summary: "Barlow Twins with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/barlow_twins-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "swav-lightly-cifar10",
        summary: "SwAV with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/swav-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "dino-lightly-cifar10",
        summary: "DINO with lightly's CIFAR-10 settings: ResNet-18, 200 epochs, batch 512 (a GPU's work)",
        toml: include_str!("../recipes/dino-lightly-cifar10.toml"),
    },
    RecipeSpec {
        name: "simclr-solo-cifar10",
        summary: "SimCLR with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/simclr-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "byol-solo-cifar10",
        summary: "BYOL with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/byol-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "barlow_twins-solo-cifar10",
        summary: "Barlow Twins with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/barlow_twins-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "vicreg-solo-cifar10",
        summary: "VICReg with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/vicreg-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "simsiam-solo-cifar10",
        summary: "SimSiam with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/simsiam-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "moco_v2-solo-cifar10",
        summary: "MoCo v2 with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/moco_v2-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "moco_v3-solo-cifar10",
        summary: "MoCo v3 with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/moco_v3-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "nnclr-solo-cifar10",
        summary: "NNCLR with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/nnclr-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "swav-solo-cifar10",
        summary: "SwAV with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/swav-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "dino-solo-cifar10",
        summary: "DINO with solo-learn's CIFAR-10 settings: ResNet-18, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/dino-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "mae-solo-cifar10",
        summary: "MAE with solo-learn's CIFAR-10 settings: ViT-S/4, 1000 epochs, batch 256 (a GPU's work)",
        toml: include_str!("../recipes/mae-solo-cifar10.toml"),
    },
    RecipeSpec {
        name: "simclr-paper",
        summary: "SimCLR with its paper's ImageNet settings: ResNet-50, 1000 epochs, batch 4096 (many GPUs' work)",
        toml: include_str!("../recipes/simclr-paper.toml"),
    },
    RecipeSpec {
        name: "dcl-paper",
        summary: "DCL with its paper's ImageNet settings: ResNet-50, 200 epochs, batch 256 (several GPUs' work)",
        toml: include_str!("../recipes/dcl-paper.toml"),
    },
    RecipeSpec {
        name: "dclw-paper",
        summary: "DCLW with its paper's ImageNet settings: ResNet-50, 200 epochs, batch 256 (several GPUs' work)",
        toml: include_str!("../recipes/dclw-paper.toml"),
    },
    RecipeSpec {
        name: "nnclr-paper",
        summary: "NNCLR with its paper's ImageNet settings: ResNet-50, 1000 epochs, batch 4096 (many GPUs' work)",
        toml: include_str!("../recipes/nnclr-paper.toml"),
    },
    RecipeSpec {
        name: "moco_v2-paper",
        summary: "MoCo v2 with its paper's ImageNet settings: ResNet-50, 200 epochs, batch 256 (several GPUs' work)",
        toml: include_str!("../recipes/moco_v2-paper.toml"),
    },
    RecipeSpec {
        name: "moco_v3-paper",
        summary: "MoCo v3 with its paper's ImageNet settings: ViT-S/16, 300 epochs, batch 4096 (many GPUs' work)",
        toml: include_str!("../recipes/moco_v3-paper.toml"),
    },
    RecipeSpec {
        name: "byol-paper",
        summary: "BYOL with its paper's ImageNet settings: ResNet-50, 1000 epochs, batch 4096 (many GPUs' work)",
        toml: include_str!("../recipes/byol-paper.toml"),
    },
    RecipeSpec {
        name: "simsiam-paper",
        summary: "SimSiam with its paper's ImageNet settings: ResNet-50, 100 epochs, batch 512 (several GPUs' work)",
        toml: include_str!("../recipes/simsiam-paper.toml"),
    },
    RecipeSpec {
        name: "barlow_twins-paper",
        summary: "Barlow Twins with its paper's ImageNet settings: ResNet-50, 1000 epochs, batch 2048 (many GPUs' work)",
        toml: include_str!("../recipes/barlow_twins-paper.toml"),
    },
    RecipeSpec {
        name: "vicreg-paper",
        summary: "VICReg with its paper's ImageNet settings: ResNet-50, 1000 epochs, batch 2048 (many GPUs' work)",
        toml: include_str!("../recipes/vicreg-paper.toml"),
    },
    RecipeSpec {
        name: "swav-paper",
        summary: "SwAV with its paper's ImageNet settings: ResNet-50, 800 epochs, batch 4096 (many GPUs' work)",
        toml: include_str!("../recipes/swav-paper.toml"),
    },
    RecipeSpec {
        name: "dino-paper",
        summary: "DINO with its paper's ImageNet settings: ViT-S/16, 800 epochs, batch 1024 (several GPUs' work)",
        toml: include_str!("../recipes/dino-paper.toml"),
    },
    RecipeSpec {
        name: "ibot-paper",
        summary: "iBOT with its paper's ImageNet settings: ViT-S/16, 800 epochs, batch 1024 (several GPUs' work)",
        toml: include_str!("../recipes/ibot-paper.toml"),
    },
    RecipeSpec {
        name: "dinov2-paper",
        summary: "DINOv2 with its repository's ImageNet-22k settings: ViT-S/14, 135 epochs, batch 3072 (many GPUs' work)",
        toml: include_str!("../recipes/dinov2-paper.toml"),
    },
    RecipeSpec {
        name: "lejepa-paper",
        summary: "LeJEPA with its repository's ImageNet settings: ViT-S/14, 100 epochs, batch 512 (several GPUs' work)",
        toml: include_str!("../recipes/lejepa-paper.toml"),
    },
    RecipeSpec {
        name: "mae-paper",
        summary: "MAE with its paper's ImageNet settings: ViT-S/16, 800 epochs, batch 4096 (many GPUs' work)",
        toml: include_str!("../recipes/mae-paper.toml"),
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
