//! The list of encoders: the program's lists, its help and the contract tests come from it.

use twinsight_nn::Builder;

use crate::resnet::{ResNet, ResNetShape};
use crate::vit::{ViT, ViTShape};
use crate::{Encoder, EncoderConfig, Error, Result};

/// The family of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Convolutional network with batch norm.
    Cnn,
    /// Vision transformer with layer norm.
    Vit,
}

/// An encoder that can be built by name.
pub struct EncoderSpec {
    /// What it is called on the command line and in files.
    pub name: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// Its family.
    pub kind: Kind,
    /// Registers its parameters under the builder's prefix and gives the network.
    pub build: fn(&EncoderConfig, &Builder) -> Result<Box<dyn Encoder>>,
}

impl std::fmt::Debug for EncoderSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderSpec").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

const RESNET_PAPER: &str = "He et al. 2016, Deep Residual Learning for Image Recognition";
const VIT_PAPER: &str = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words; Touvron et al. 2021 (tiny and small)";

/// Every encoder there is.
pub static ENCODERS: &[EncoderSpec] = &[
    EncoderSpec {
        name: "resnet_mini",
        summary: "small residual network (256 features, 1.2 M parameters) for CPUs and images of 16 to 64 pixels",
        paper: RESNET_PAPER,
        kind: Kind::Cnn,
        build: |config, b| Ok(Box::new(ResNet::new(&ResNetShape::MINI, config, b)?)),
    },
    EncoderSpec {
        name: "resnet18",
        summary: "residual network of 18 layers (512 features, 11 M parameters)",
        paper: RESNET_PAPER,
        kind: Kind::Cnn,
        build: |config, b| Ok(Box::new(ResNet::new(&ResNetShape::RESNET18, config, b)?)),
    },
    EncoderSpec {
        name: "resnet50",
        summary: "residual network of 50 layers with bottlenecks (2048 features, 24 M parameters)",
        paper: RESNET_PAPER,
        kind: Kind::Cnn,
        build: |config, b| Ok(Box::new(ResNet::new(&ResNetShape::RESNET50, config, b)?)),
    },
    EncoderSpec {
        name: "vit_mini",
        summary: "small vision transformer of 4 blocks and 3 heads (192 features, 1.8 M parameters) for CPUs",
        paper: VIT_PAPER,
        kind: Kind::Vit,
        build: |config, b| Ok(Box::new(ViT::new(&ViTShape::MINI, config, b)?)),
    },
    EncoderSpec {
        name: "vit_hybrid_mini",
        summary: "two transformer blocks on a small residual network's maps (192 features, 1.3 M parameters), for CPUs and few images",
        paper: VIT_PAPER,
        kind: Kind::Vit,
        build: |config, b| Ok(Box::new(ViT::new(&ViTShape::HYBRID_MINI, config, b)?)),
    },
    EncoderSpec {
        name: "vit_tiny",
        summary: "vision transformer of 12 blocks and 3 heads (192 features, 5 M parameters)",
        paper: VIT_PAPER,
        kind: Kind::Vit,
        build: |config, b| Ok(Box::new(ViT::new(&ViTShape::TINY, config, b)?)),
    },
    EncoderSpec {
        name: "vit_small",
        summary: "vision transformer of 12 blocks and 6 heads (384 features, 21 M parameters)",
        paper: VIT_PAPER,
        kind: Kind::Vit,
        build: |config, b| Ok(Box::new(ViT::new(&ViTShape::SMALL, config, b)?)),
    },
];

/// The encoder called `name`.
///
/// # Errors
/// An unknown name; the message offers the nearest and lists all.
pub fn encoder(name: &str) -> Result<&'static EncoderSpec> {
    ENCODERS.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let likeness = |spec: &EncoderSpec| strsim::jaro_winkler(name, spec.name);
        let nearest = ENCODERS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).map_or("", |spec| spec.name);
        let known = ENCODERS.iter().map(|spec| spec.name).collect::<Vec<_>>().join(", ");
        Error::UnknownEncoder { name: name.into(), nearest, known }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_offers_the_nearest() {
        let text = |name| encoder(name).expect_err("unknown").to_string();
        assert!(text("resnet81").contains("did you mean `resnet18`"), "{}", text("resnet81"));
        assert!(text("vit-tiny").contains("did you mean `vit_tiny`"));
        assert!(text("x").contains("resnet_mini, resnet18, resnet50, vit_mini, vit_hybrid_mini, vit_tiny, vit_small"));
    }

    #[test]
    fn names_are_distinct() {
        for (i, spec) in ENCODERS.iter().enumerate() {
            assert!(std::ptr::eq(encoder(spec.name).expect("listed"), spec), "{} is taken twice ({i})", spec.name);
        }
    }
}
