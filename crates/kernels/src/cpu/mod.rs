//! The implementations for the CPU: candle custom operations with hand-written forward and backward passes.
//!
//! Invariant: a result depends on its inputs alone, not on the number of threads. Work is cut into blocks by size, every
//! output element is computed by one block, and where blocks give partial sums, these are added in the blocks' order.

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod block;
pub(crate) mod contrast;
pub(crate) mod conv;
mod dense;
pub(crate) mod elementwise;
pub(crate) mod epps_pulley;
mod gather;
pub(crate) mod half;
mod heads;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod memory;
mod outer;
mod panels;
pub(crate) mod pool;
pub(crate) mod rows;
pub(crate) mod simd;
mod smooth;
pub(crate) mod transformer;
pub(crate) mod update;
pub(crate) mod vector;
mod winograd;
