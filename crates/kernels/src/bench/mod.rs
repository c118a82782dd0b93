//! Measuring the operations: seconds, rates, and the share of what the machine can do at most.
//!
//! [`cases`] lists operations at the shapes of small-image and ImageNet training, each pass by itself; [`measure`] times one.
//! The criterion benches of this crate and `twinsight bench kernels` go through the same list.

mod cases;
mod peak;

use std::time::{Duration, Instant};

use candle_core::Result;

pub use cases::cases;
pub use peak::{Peaks, peaks};

/// What a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Floating-point operations, two for a multiply-add, by the operation's definition.
    Flops,
    /// Bytes of inputs that must be read and of outputs that must be written, each once.
    Bytes,
}

/// One pass of one operation at one shape.
pub struct Case {
    /// The operation.
    pub operation: &'static str,
    /// `forward`, `to input`, `to weight`, `backward` or `update`.
    pub pass: &'static str,
    /// The shape in words.
    pub shape: String,
    /// Operations or bytes of one run.
    pub work: f64,
    /// Which of both.
    pub unit: Unit,
    prepare: Box<dyn Fn() -> Result<Run>>,
}

/// One run of a case, ready to be repeated.
pub type Run = Box<dyn FnMut() -> Result<()>>;

/// What was measured of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Median seconds of a run.
    pub seconds: f64,
    /// 10⁹ operations or bytes a second at the median.
    pub rate: f64,
}

impl Case {
    /// Makes the inputs.
    ///
    /// # Errors
    /// When candle fails.
    pub fn prepare(&self) -> Result<Run> {
        (self.prepare)()
    }

    /// Operation, pass and shape.
    pub fn name(&self) -> String {
        format!("{} {}, {}", self.operation, self.pass, self.shape)
    }

    /// The unit of [`Figure::rate`].
    pub fn rate_unit(&self) -> &'static str {
        match self.unit {
            Unit::Flops => "GFLOP/s",
            Unit::Bytes => "GB/s",
        }
    }

    /// The rate over the machine's highest. Above 1 where an algorithm needs fewer operations than the definition.
    pub fn share(&self, figure: &Figure, peaks: &Peaks) -> f64 {
        figure.rate
            / match self.unit {
                Unit::Flops => peaks.gflops,
                Unit::Bytes => peaks.gbytes,
            }
    }
}

/// Times a case: one run that warms up, then runs for `time`, three at least; the median.
///
/// # Errors
/// When candle fails.
pub fn measure(case: &Case, time: Duration) -> Result<Figure> {
    let mut run = case.prepare()?;
    run()?;
    let mut seconds = Vec::new();
    let start = Instant::now();
    while seconds.len() < 3 || start.elapsed() < time {
        let one = Instant::now();
        run()?;
        seconds.push(one.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let seconds = seconds[seconds.len() / 2];
    Ok(Figure { seconds, rate: case.work / seconds * 1e-9 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_kind_of_operation_is_there() {
        let cases = cases();
        let mut names: Vec<String> = cases.iter().map(Case::name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two cases have one name");
        for operation in ["conv2d", "linear", "batch_norm", "layer_norm", "gelu", "softmax", "attention", "max_pool2d", "sgd"] {
            assert!(cases.iter().any(|c| c.operation == operation), "{operation} is missing");
        }
        assert!(cases.iter().all(|c| c.work > 0.0));
    }

    #[test]
    fn a_small_case_is_measured() -> Result<()> {
        let cases = cases();
        let case = cases.iter().find(|c| c.operation == "softmax").expect("softmax");
        let figure = measure(case, Duration::ZERO)?;
        assert!(figure.seconds > 0.0 && figure.rate > 0.0);
        let peaks = Peaks { gflops: 2.0, gbytes: figure.rate * 4.0 };
        assert!((case.share(&figure, &peaks) - 0.25).abs() < 1e-9);
        Ok(())
    }
}
