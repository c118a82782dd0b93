//! Layers: what registers parameters and computes with them.

mod attention;
mod block;
mod conv;
mod drop_path;
mod group_norm;
mod linear;
mod norm;

pub use attention::{Attention, Mlp, SwiGlu, TransformerLayers, transformer_blocks};
pub use block::{BlockShortcut, ConvNorm, ResidualBlock, residual_blocks};
pub use conv::Conv2d;
pub use drop_path::DropPath;
pub use group_norm::{GroupNorm, Norm, NormKind};
pub use linear::{Linear, WeightNormLinear};
pub use norm::{BatchNorm, LayerNorm, LayerScale};
