//! Tensor operations with a right and fast backward pass, on [`candle_core`]: convolution, normalisation, activations,
//! pooling, attention, losses and in-place optimizer updates.
//!
//! Activations are channels-last: (N, H, W, C) for images, (…, C) for everything that works along the last axis.
//! Convolution weights keep PyTorch's order (O, C / groups, kh, kw). Every function takes `f32` tensors, contiguous or not,
//! is differentiable through [`candle_core::Tensor::backward`], and refuses other element types and wrong shapes with an
//! error that names the tensor, what was found and what was expected.
//!
//! On the CPU the operations are hand-written with hand-written backward passes, run on rayon's current pool, and give
//! the same bits whatever its number of threads: sums are cut into blocks by size alone, and these are added in a fixed
//! order. On CUDA (feature `cuda`) they are kernels compiled at run time, and convolutions cuDNN's (feature `cudnn`); many of them take
//! bfloat16 activations there ([`takes_bf16`]). On any other device they fall back to [`composed`], the same mathematics as a chain of
//! candle operations.

mod activation;
mod allocator;
mod attention;
mod batch_norm;
pub mod bench;
mod block;
mod check;
pub mod composed;
mod contrast;
mod conv;
mod cpu;
#[cfg(any(feature = "cuda", feature = "emulation", test))]
mod cuda;
mod device_memory;
mod epps_pulley;
mod graph;
mod layer_norm;
mod linear;
mod loss;
mod open;
mod pick;
mod pool;
mod precision;
mod similarity;
mod softmax;
pub mod trace;
pub mod transfer;
mod transformer;
pub mod update;
pub mod views;

pub use activation::{gelu, relu};
pub use allocator::CachingAllocator;
pub use attention::attention;
pub use batch_norm::{BatchNormConfig, BatchNormOutput, batch_norm_eval, batch_norm_train};
pub use block::{BlockParts, ConvBlockOutput, ConvNorm, Keep, NormStatistics, Shortcut, conv_block, conv_blocks};
pub use contrast::{log_sum_exp, row_max};
pub use conv::{Conv2dConfig, conv2d};
pub use cpu::simd::instruction_set;
pub use device_memory::{DeviceMemory, device_memory, peak_memory};
pub use epps_pulley::epps_pulley;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use loss::cross_entropy_soft;
pub use open::{open_cuda, open_metal};
pub use pick::pick_rows;
pub use pool::{global_avg_pool, max_pool2d};
pub use precision::{allow_tf32, takes_bf16, tf32_allowed};
pub use similarity::Similarities;
pub use softmax::{l2_normalize, log_softmax, softmax};
pub use transformer::{Affine, TransformerParameters, transformer_block, transformer_blocks};
pub use update::ema;
