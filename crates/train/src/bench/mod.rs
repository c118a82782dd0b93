//! Measuring: a whole training step on random views, every operation of the kernels by itself, and decoding with views.

pub use twinsight_nn::Precision;

mod data;
mod kernels;
mod step;

pub use data::{BenchData, DataReport, bench_data};
pub use kernels::{KernelRow, KernelsReport, bench_kernels};
pub use step::{BenchReport, BenchStep, OpShare, bench_step};
