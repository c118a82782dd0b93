//! Cross-entropy with soft targets.

use candle_core::{Result, Tensor, bail};

use crate::cpu::memory::on_cpu;
use crate::cpu::rows::CrossEntropy;
use crate::{check, composed};

/// −1/N Σₙ Σₖ targetsₙₖ · log_softmax(logits)ₙₖ: the mean over the rows, as `torch.nn.functional.cross_entropy` with
/// probabilities as targets. No gradient flows to `targets`, whose rows need not sum to one.
///
/// # Shapes
/// `logits` and `targets` (N, K); the result is a scalar.
///
/// # Errors
/// When a tensor is not `f32`, shapes differ, or there are no rows.
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    const OP: &str = "cross_entropy_soft";
    check::f32(OP, "logits", logits)?;
    if logits.rank() != 2 || logits.elem_count() == 0 {
        bail!("{OP}: logits has shape {:?}, expected (N, K) with at least one row and column", logits.dims());
    }
    check::shaped(OP, "targets", targets, logits.dims(), logits)?;
    if on_cpu(logits) {
        return logits.contiguous()?.apply_op2(&targets.detach().contiguous()?, CrossEntropy);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(logits) {
        return crate::cuda::rows::on_device::cross_entropy_soft(logits, targets);
    }
    composed::softmax::cross_entropy_soft(logits, &targets.detach())
}
