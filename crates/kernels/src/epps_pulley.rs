//! The Epps-Pulley statistic of many samples at once: how far their distributions lie from a standard Gaussian.

use candle_core::{Result, Tensor, bail};

use crate::cpu::epps_pulley::EppsPulley;
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// The mean over views and columns of N Σₖ wₖ |φ̂(tₖ) − φ(tₖ)|², with φ̂ the empirical characteristic function of a view's N values of a
/// column, φ(t) = exp(−t²/2), tₖ = k · `max` / (`knots` − 1), and wₖ twice the trapezoidal rule's weights times φ(tₖ) (Epps & Pulley 1983, as
/// in LeJEPA). No table over the frequencies is stored.
///
/// # Shapes
/// `x` (V, N, M); the result is a scalar.
///
/// # Errors
/// When `x` is not `f32` of three axes, is empty, or there are fewer than two knots.
pub fn epps_pulley(x: &Tensor, knots: usize, max: f64) -> Result<Tensor> {
    const OP: &str = "epps_pulley";
    check::f32(OP, "x", x)?;
    if x.rank() != 3 || x.elem_count() == 0 {
        bail!("{OP}: x has shape {:?}, expected (V, N, M) with a value or more", x.dims());
    }
    if knots < 2 || !(max > 0.0 && max.is_finite()) {
        bail!("{OP}: {knots} knots up to {max}, expected two or more up to a frequency over 0");
    }
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(EppsPulley { knots, max });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::epps_pulley::epps_pulley(x, knots, max);
    }
    composed::epps_pulley(x, knots, max)
}
