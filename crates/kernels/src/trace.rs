//! Where the time of a training step goes: seconds, calls and multiply-adds of every kind of operation.
//!
//! Off unless [`start`] was called; then each operation of this crate on the CPU notes its time. Counts are those of the
//! operation as it is defined: a convolution has N · H' · W' · O · C/groups · kh · kw multiply-adds however it is computed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What one kind of operation took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpTotal {
    /// The operation and its pass.
    pub name: &'static str,
    /// How often it ran.
    pub calls: u64,
    /// Seconds in all, by the clock.
    pub seconds: f64,
    /// Multiply-adds in all; 0 for operations that are not products.
    pub multiply_adds: u64,
}

static ON: AtomicBool = AtomicBool::new(false);
static TOTALS: Mutex<BTreeMap<&'static str, OpTotal>> = Mutex::new(BTreeMap::new());

/// Starts to note operations of the whole process, from nothing.
pub fn start() {
    TOTALS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops, and gives what was noted, the longest first.
pub fn stop() -> Vec<OpTotal> {
    ON.store(false, Ordering::Relaxed);
    let totals = std::mem::take(&mut *TOTALS.lock().unwrap_or_else(PoisonError::into_inner));
    let mut totals: Vec<OpTotal> = totals.into_values().collect();
    totals.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    totals
}

/// Notes an operation that runs until the result is dropped.
pub(crate) fn span(name: &'static str, multiply_adds: usize) -> Option<Span> {
    ON.load(Ordering::Relaxed).then(|| Span { name, multiply_adds: multiply_adds as u64, start: Instant::now() })
}

/// An operation that is running.
pub(crate) struct Span {
    name: &'static str,
    multiply_adds: u64,
    start: Instant,
}

impl Drop for Span {
    fn drop(&mut self) {
        let mut totals = TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
        let total = totals.entry(self.name).or_insert(OpTotal { name: self.name, calls: 0, seconds: 0.0, multiply_adds: 0 });
        total.calls += 1;
        total.seconds += self.start.elapsed().as_secs_f64();
        total.multiply_adds += self.multiply_adds;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;
    use crate::{Conv2dConfig, conv2d, linear};

    #[test]
    fn products_are_counted_by_pass() -> candle_core::Result<()> {
        let x = Var::ones((2, 5, 5, 3), candle_core::DType::F32, &Device::Cpu)?;
        let w = Var::ones((4, 3, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
        start();
        let y = conv2d(&x, &w, Conv2dConfig { padding: 1, ..Conv2dConfig::default() })?;
        y.sum_all()?.backward()?;
        let z = Tensor::ones((7, 3), candle_core::DType::F32, &Device::Cpu)?;
        linear(&z, &Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?, None)?;
        let totals = stop();
        // Other tests of this process may run at the same time, so these are lower bounds.
        let count = |name: &str| totals.iter().filter(|t| t.name.starts_with(name)).map(|t| t.multiply_adds).sum::<u64>();
        let conv = 2 * 25 * 4 * 27;
        assert!(count("conv 3x3") >= 3 * conv && count("linear") >= 7 * 2 * 3, "{totals:?}");
        Ok(())
    }
}
