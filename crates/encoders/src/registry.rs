//! The list of encoders: the program's lists, its help and the contract tests come from it.

use twinsight_nn::Builder;

use crate::convnext::{ConvNext, ConvNextShape};
use crate::resnet::{ResNet, ResNetShape};
use crate::vit::{ViT, ViTShape};
use crate::{Encoder, EncoderConfig, Error, Result};

/// The family of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Convolutional network: one vector an image.
    Cnn,
    /// Vision transformer: a token for each patch too.
    Vit,
}

/// The architecture of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// A residual network.
    ResNet(ResNetShape),
    /// A ConvNeXt.
    ConvNext(ConvNextShape),
    /// A vision transformer.
    ViT(ViTShape),
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
    /// Its architecture.
    pub arch: Arch,
    /// Registers its parameters under the builder's prefix and gives the network.
    pub build: fn(&EncoderConfig, &Builder) -> Result<Box<dyn Encoder>>,
}

impl std::fmt::Debug for EncoderSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderSpec").field("name", &self.name).field("arch", &self.arch).finish_non_exhaustive()
    }
}

const RESNET_PAPER: &str = "He et al. 2016, Deep Residual Learning for Image Recognition";
const WIDE_PAPER: &str = "Zagoruyko and Komodakis 2016, Wide Residual Networks";
const CONVNEXT_PAPER: &str = "Liu et al. 2022, A ConvNet for the 2020s; smaller than tiny: timm";
const VIT_PAPER: &str = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words; Touvron et al. 2021 (tiny and small)";

/// A row of the list: name, family, shape, paper, words.
macro_rules! entry {
    ($name:literal, $family:ident, $shape:expr, $paper:expr, $summary:literal) => {
        EncoderSpec {
            name: $name,
            summary: $summary,
            paper: $paper,
            kind: if matches!(Arch::$family($shape), Arch::ViT(_)) { Kind::Vit } else { Kind::Cnn },
            arch: Arch::$family($shape),
            build: |config, b| Ok(Box::new($family::new(&$shape, config, b)?)),
        }
    };
}

/// Every encoder there is.
#[rustfmt::skip]
pub static ENCODERS: &[EncoderSpec] = &[
    entry!("resnet_mini", ResNet, ResNetShape::MINI, RESNET_PAPER, "small residual network (256 features, 1.2 M parameters) for CPUs and images of 16 to 64 pixels"),
    entry!("resnet18", ResNet, ResNetShape::RESNET18, RESNET_PAPER, "residual network of 18 layers (512 features, 11 M parameters)"),
    entry!("resnet34", ResNet, ResNetShape::RESNET34, RESNET_PAPER, "residual network of 34 layers (512 features, 21 M parameters)"),
    entry!("resnet50", ResNet, ResNetShape::RESNET50, RESNET_PAPER, "residual network of 50 layers with bottlenecks (2048 features, 24 M parameters)"),
    entry!("resnet101", ResNet, ResNetShape::RESNET101, RESNET_PAPER, "residual network of 101 layers with bottlenecks (2048 features, 43 M parameters)"),
    entry!("resnet152", ResNet, ResNetShape::RESNET152, RESNET_PAPER, "residual network of 152 layers with bottlenecks (2048 features, 58 M parameters)"),
    entry!("wide_resnet50_2", ResNet, ResNetShape::WIDE_RESNET50_2, WIDE_PAPER, "residual network of 50 layers, twice as wide inside its bottlenecks (2048 features, 67 M parameters)"),
    entry!("convnext_atto", ConvNext, ConvNextShape::ATTO, CONVNEXT_PAPER, "ConvNeXt of 12 blocks (320 features, 3.4 M parameters)"),
    entry!("convnext_femto", ConvNext, ConvNextShape::FEMTO, CONVNEXT_PAPER, "ConvNeXt of 12 blocks (384 features, 4.8 M parameters)"),
    entry!("convnext_pico", ConvNext, ConvNextShape::PICO, CONVNEXT_PAPER, "ConvNeXt of 12 blocks (512 features, 8.5 M parameters)"),
    entry!("convnext_nano", ConvNext, ConvNextShape::NANO, CONVNEXT_PAPER, "ConvNeXt of 14 blocks (640 features, 15 M parameters)"),
    entry!("convnext_tiny", ConvNext, ConvNextShape::TINY, CONVNEXT_PAPER, "ConvNeXt of 18 blocks (768 features, 28 M parameters)"),
    entry!("convnext_small", ConvNext, ConvNextShape::SMALL, CONVNEXT_PAPER, "ConvNeXt of 36 blocks (768 features, 49 M parameters)"),
    entry!("convnext_base", ConvNext, ConvNextShape::BASE, CONVNEXT_PAPER, "ConvNeXt of 36 blocks (1024 features, 88 M parameters)"),
    entry!("convnext_large", ConvNext, ConvNextShape::LARGE, CONVNEXT_PAPER, "ConvNeXt of 36 blocks (1536 features, 196 M parameters)"),
    entry!("vit_mini", ViT, ViTShape::MINI, VIT_PAPER, "small vision transformer of 4 blocks and 3 heads (192 features, 1.8 M parameters) for CPUs"),
    entry!("vit_hybrid_mini", ViT, ViTShape::HYBRID_MINI, VIT_PAPER, "two transformer blocks on a small residual network's maps (192 features, 1.3 M parameters), for CPUs and few images"),
    entry!("vit_tiny", ViT, ViTShape::TINY, VIT_PAPER, "vision transformer of 12 blocks and 3 heads (192 features, 5 M parameters)"),
    entry!("vit_small", ViT, ViTShape::SMALL, VIT_PAPER, "vision transformer of 12 blocks and 6 heads (384 features, 21 M parameters)"),
    entry!("vit_base", ViT, ViTShape::BASE, VIT_PAPER, "vision transformer of 12 blocks and 12 heads (768 features, 85 M parameters)"),
    entry!("vit_large", ViT, ViTShape::LARGE, VIT_PAPER, "vision transformer of 24 blocks and 16 heads (1024 features, 303 M parameters)"),
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
        assert!(text("x").contains("resnet_mini, resnet18, resnet34, resnet50"));
    }

    #[test]
    fn names_are_distinct() {
        for (i, spec) in ENCODERS.iter().enumerate() {
            assert!(std::ptr::eq(encoder(spec.name).expect("listed"), spec), "{} is taken twice ({i})", spec.name);
        }
    }
}
