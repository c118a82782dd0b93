//! The operations as CUDA kernels, compiled at run time by NVRTC, and the convolutions of cuDNN.
//!
//! What is launched, with which grid and arguments, is written against [`launch::Engine`]: a CUDA device of candle, or, in the tests, the
//! same sources behind a C++ compiler on the processor, with a fibre for every CUDA thread. So sources, launches and bounds are tested
//! where there is no GPU.

// Without the features only the tests use all of this module.
#![cfg_attr(not(feature = "cudnn"), allow(dead_code))]

pub(crate) mod attention;
pub(crate) mod batch_norm;
#[cfg(any(feature = "cudnn", test))]
pub(crate) mod block;
pub(crate) mod clip;
pub(crate) mod columns;
#[cfg(feature = "cudnn")]
pub(crate) mod conv;
#[cfg(feature = "cuda")]
pub(crate) mod copies;
#[cfg(any(feature = "cudnn", test))]
mod cudnn;
#[cfg(feature = "cuda")]
pub(crate) mod device;
pub(crate) mod elementwise;
#[cfg(any(test, feature = "emulation"))]
pub(crate) mod emulated;
pub(crate) mod epps_pulley;
#[cfg(any(feature = "cudnn", feature = "emulation", test))]
pub(crate) mod filter;
pub(crate) mod flash;
mod graph;
pub(crate) mod launch;
pub(crate) mod layer_norm;
#[cfg(test)]
mod nvrtc;
pub(crate) mod pool;
pub(crate) mod rows;
mod source;
#[cfg(feature = "cuda")]
pub(crate) mod tensor;
mod tiles;
pub(crate) mod transformer;
pub(crate) mod update;
pub(crate) mod views;
