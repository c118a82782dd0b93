//! Values over the steps of a run: learning rate, weight decay, EMA momentum, temperatures.

/// The curve after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Half a cosine from start to end (Loshchilov & Hutter 2017, without restarts).
    Cosine,
    /// A straight line from start to end.
    Linear,
    /// The start value throughout.
    Constant,
}

/// A linear warm-up followed by a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The value after warm-up.
    pub start: f64,
    /// The value at the last step.
    pub end: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// The value that warm-up begins at; step `i` of it has `warmup_start + (start − warmup_start) · (i + 1) / warmup_steps`.
    pub warmup_start: f64,
    /// Steps of the run, warm-up included.
    pub total_steps: u64,
    /// The curve after warm-up.
    pub shape: Shape,
}

impl Schedule {
    /// A cosine from `start` at step 0 to `end` at the last of `total_steps` steps.
    pub const fn cosine(start: f64, end: f64, total_steps: u64) -> Self {
        Self { start, end, warmup_steps: 0, warmup_start: 0.0, total_steps, shape: Shape::Cosine }
    }

    /// The value at `step`, counted from 0. Past the last step it stays at the end.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            let share = (step + 1) as f64 / self.warmup_steps as f64;
            return self.warmup_start + (self.start - self.warmup_start) * share;
        }
        let position = step - self.warmup_steps;
        let last = self.total_steps.saturating_sub(self.warmup_steps).saturating_sub(1);
        let share = if last == 0 || position >= last { 1.0 } else { position as f64 / last as f64 };
        match self.shape {
            Shape::Cosine => self.end - (self.end - self.start) * ((std::f64::consts::PI * share).cos() + 1.0) / 2.0,
            Shape::Linear => self.start + (self.end - self.start) * share,
            Shape::Constant => self.start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Result;
    use twinsight_test_support::{Golden, assert_close};

    #[test]
    fn golden_cosine() -> Result<()> {
        let golden = Golden::load("schedule_cosine")?;
        let steps = golden.number("steps")? as u64;
        let schedule = Schedule::cosine(golden.number("start")?, golden.number("end")?, steps);
        let got: Vec<f32> = (0..steps).map(|i| schedule.at(i) as f32).collect();
        assert_close("cosine", &got, &golden.get("values")?.data, 1e-6)
    }

    #[test]
    fn warm_up_rises_to_the_start_and_the_curve_ends_at_the_end() {
        for shape in [Shape::Cosine, Shape::Linear] {
            let s = Schedule { start: 2.0, end: 0.5, warmup_steps: 4, warmup_start: 0.0, total_steps: 20, shape };
            assert_eq!((s.at(0), s.at(3), s.at(4)), (0.5, 2.0, 2.0));
            assert!((s.at(19) - 0.5).abs() < 1e-12 && (s.at(99) - 0.5).abs() < 1e-12);
            assert!((4..19).all(|i| s.at(i + 1) <= s.at(i)));
        }
    }
}
