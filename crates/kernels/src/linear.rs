//! The fully connected layer.

use candle_core::{Result, Tensor, bail};

use crate::cpu::linear::Linear;
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// x · weightᵀ \[+ bias\] along the last axis, as `torch.nn.functional.linear`.
///
/// # Shapes
/// `x` (…, I), `weight` (O, I), `bias` (O); the result is (…, O).
///
/// # Errors
/// When a tensor is not `f32` or shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear";
    let inputs = check::last(OP, "x", x)?;
    check::f32_on(OP, "weight", weight, x)?;
    let outputs = match *weight.dims() {
        [o, i] if i == inputs => o,
        ref other => bail!("{OP}: weight has shape {other:?}, expected (outputs, {inputs}) for x of shape {:?}", x.dims()),
    };
    if let Some(bias) = bias {
        check::shaped(OP, "bias", bias, &[outputs], x)?;
    }
    if on_cpu(x) {
        let op = Linear { rows: x.dims()[..x.rank() - 1].iter().product(), inputs, outputs };
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return match bias {
            Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
            None => x.apply_op2(&weight, op),
        };
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::columns::linear(x, weight, bias);
    }
    composed::linear::linear(x, weight, bias)
}
