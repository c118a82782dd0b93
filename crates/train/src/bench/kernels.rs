//! The rates of all operations in one table, beside the machine's highest.

use std::time::Duration;

use serde::Serialize;
use twinsight_kernels::bench::{Peaks, cases, measure, peaks};

use crate::Result;

/// One operation's line.
#[derive(Debug, Clone, Serialize)]
pub struct KernelRow {
    /// The operation.
    pub operation: &'static str,
    /// Its pass.
    pub pass: &'static str,
    /// The shape in words.
    pub shape: String,
    /// Median seconds.
    pub seconds: f64,
    /// Rate in `unit`.
    pub rate: f64,
    /// `GFLOP/s` or `GB/s`.
    pub unit: &'static str,
    /// The rate over the machine's highest of this unit.
    pub share_of_peak: f64,
}

/// All lines, and what they are held against.
#[derive(Debug, Clone, Serialize)]
pub struct KernelsReport {
    /// 10⁹ floating-point operations a second, at most.
    pub peak_gflops: f64,
    /// 10⁹ bytes a second from and to memory, at most.
    pub peak_gbytes: f64,
    /// The operations, in the kernels' order.
    pub operations: Vec<KernelRow>,
}

/// Times every operation whose name holds `filter` for `seconds` each, and calls `each` with every line as it comes.
///
/// # Errors
/// When candle fails.
pub fn bench_kernels(filter: &str, seconds: f64, each: &mut dyn FnMut(&Peaks, &KernelRow)) -> Result<KernelsReport> {
    let chosen: Vec<_> = cases().into_iter().filter(|case| case.name().contains(filter)).collect();
    let peaks = if chosen.is_empty() { Peaks { gflops: 0.0, gbytes: 0.0 } } else { peaks() };
    let mut operations = Vec::with_capacity(chosen.len());
    for case in chosen {
        let figure = measure(&case, Duration::from_secs_f64(seconds))?;
        let row = KernelRow {
            operation: case.operation,
            pass: case.pass,
            shape: case.shape.clone(),
            seconds: figure.seconds,
            rate: figure.rate,
            unit: case.rate_unit(),
            share_of_peak: case.share(&figure, &peaks),
        };
        each(&peaks, &row);
        operations.push(row);
    }
    Ok(KernelsReport { peak_gflops: peaks.gflops, peak_gbytes: peaks.gbytes, operations })
}
