//! The parts that encoders and methods are built from: parameters by name and role, layers, optimizers, schedules, EMA
//! and checkpoints, on candle.
//!
//! candle's own `VarMap`, optimizers and some layers are not used: a shallow `VarMap::clone`, hash-ordered variables,
//! optimizers that pass over variables without a gradient, and layer norms that cut the gradient all fail silently.

mod checkpoint;
mod ema;
mod error;
mod gradients;
mod init;
mod layers;
mod mode;
mod optim;
mod params;
mod recompute;
mod schedule;
mod state;

pub use checkpoint::{load_metadata, load_tensors, replace_file, save_tensors, sync_folder, write_atomic};
pub use ema::{BufferRule, ema_update};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use init::Init;
pub use layers::{
    Attention, BatchNorm, BlockShortcut, Conv2d, ConvNorm, DropPath, GroupNorm, LayerNorm, LayerScale, Linear, Mlp, Norm,
    NormKind, ResidualBlock, SwiGlu, TransformerLayers, WeightNormLinear, residual_blocks, transformer_blocks,
};
pub use mode::{BatchSlice, DrawKey, Mode, Precision};
pub use optim::{Optimizer, OptimizerConfig};
pub use params::{Builder, ParamStore, Parameter, Role, matches_pattern};
pub use recompute::recomputed;
pub use schedule::{Schedule, Shape};
pub use state::{StateLoader, StateSaver, StateVisitor};
pub use twinsight_kernels::Conv2dConfig;
