//! What self-distillation shares: the teacher's temperature over time, the centre of its outputs, and the cross-entropy
//! between different views.

use candle_core::{DType, Device, Tensor, Var};
use twinsight_kernels::cross_entropy_soft;
use twinsight_nn::StateVisitor;

use crate::{Error, Result};

/// A teacher's temperature: from `start` to `end`, linear from epoch to epoch during `epochs`, constant after them (the reference
/// implementation of Caron et al. 2021, DINO).
#[derive(Debug, Clone, Copy)]
pub(crate) struct WarmUp {
    pub start: f64,
    pub end: f64,
    pub epochs: u64,
}

impl WarmUp {
    pub fn at(&self, epoch: u64) -> f64 {
        if epoch >= self.epochs || self.epochs == 0 {
            return self.end;
        }
        let share = epoch as f64 / (self.epochs - 1).max(1) as f64;
        self.start + share * (self.end - self.start)
    }
}

/// The moving average of the teacher's outputs, which is taken off them so that no prototype wins everywhere.
pub(crate) struct Center {
    /// (K).
    value: Var,
    momentum: f64,
    /// Sum of the mean outputs since the last step, and how many; empty between steps.
    seen: Option<(Tensor, usize)>,
}

impl Center {
    /// A centre of zeros.
    pub fn new(outputs: usize, momentum: f64, device: &Device) -> Result<Self> {
        Ok(Self { value: Var::zeros(outputs, DType::F32, device)?, momentum, seen: None })
    }

    /// (K).
    pub fn value(&self) -> &Tensor {
        self.value.as_tensor()
    }

    /// Takes note of outputs (N, K) for the next [`Center::follow`].
    pub fn see(&mut self, outputs: &Tensor) -> Result<()> {
        let mean = outputs.detach().mean(0)?;
        self.seen = Some(match self.seen.take() {
            Some((sum, count)) => ((sum + mean)?, count + 1),
            None => (mean, 1),
        });
        Ok(())
    }

    /// Moves the centre towards what was seen since the last time.
    pub fn follow(&mut self) -> Result<()> {
        if let Some((sum, count)) = self.seen.take() {
            let m = self.momentum;
            let moved = (self.value.affine(m, 0.0)? + sum.affine((1.0 - m) / count as f64, 0.0)?)?;
            self.value.set(&moved.detach())?;
        }
        Ok(())
    }

    /// Shows its state as `name`; what was seen since the last step belongs to the state that is replaced.
    pub fn visit(&mut self, name: &str, visitor: &mut dyn StateVisitor) -> Result<()> {
        self.seen = None;
        Ok(visitor.tensor(name, &self.value)?)
    }
}

/// The cross-entropy between distributions of T views and outputs over a temperature of S views, the first T of which are the same:
/// the mean over all pairs of different views and all images.
///
/// # Shapes
/// `student` (S, N, K): outputs; `targets` (T, N, K): distributions, T ≤ S. The result is a scalar.
///
/// # Errors
/// When shapes do not fit, or S is 1, which leaves no pair.
pub(crate) fn between_views(student: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    let (s, n, k) = student.dims3()?;
    let (t, ..) = targets.dims3()?;
    if t == 0 || t > s || s < 2 || targets.dims() != [t, n, k] {
        return Err(Error::BadViews(format!(
            "the student's outputs have shape {:?} and the teacher's {:?}, expected (S, N, K) and (T, N, K) with T ≤ S and S ≥ 2",
            student.dims(),
            targets.dims()
        )));
    }
    // The loss is linear in the targets, so each student view takes the sum of those it is compared with in one go.
    let all = targets.sum_keepdim(0)?;
    let mut wanted = vec![all.broadcast_sub(targets)?];
    if s > t {
        wanted.push(all.broadcast_as((s - t, n, k))?);
    }
    let wanted = Tensor::cat(&wanted, 0)?.reshape((s * n, k))?;
    let logits = (student.reshape((s * n, k))? * (1.0 / temperature))?;
    let pairs = t * (s - 1);
    Ok((cross_entropy_soft(&logits, &wanted)? * (s as f64 / pairs as f64))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_teacher_warms_up_by_epochs() {
        let warm_up = WarmUp { start: 0.04, end: 0.07, epochs: 4 };
        for (epoch, want) in [(0, 0.04), (1, 0.05), (3, 0.07), (4, 0.07), (9, 0.07)] {
            assert!((warm_up.at(epoch) - want).abs() < 1e-12, "epoch {epoch}");
        }
        assert_eq!(WarmUp { epochs: 0, ..warm_up }.at(0), 0.07);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> anyhow::Result<()> {
        let zeros = |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        for (student, targets) in [((1, 3, 4), (1, 3, 4)), ((2, 3, 4), (3, 3, 4)), ((2, 3, 4), (2, 3, 5))] {
            assert!(between_views(&zeros(student)?, &zeros(targets)?, 0.1).is_err());
        }
        Ok(())
    }
}
