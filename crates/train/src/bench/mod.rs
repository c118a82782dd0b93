//! Measuring: a whole training step on random views, and every operation of the kernels by itself.

pub use twinsight_nn::Precision;

mod kernels;
mod step;

pub use kernels::{KernelRow, KernelsReport, bench_kernels};
pub use step::{BenchReport, BenchStep, OpShare, bench_step};
