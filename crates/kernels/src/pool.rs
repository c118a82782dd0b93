//! Pooling of channels-last images.

use std::sync::OnceLock;

use candle_core::{Result, Tensor, bail};

use crate::cpu::memory::on_cpu;
use crate::cpu::pool::{GlobalAvgPool, MaxPool, MaxPoolSizes};
use crate::{check, composed};

/// Maximum over every `kernel` × `kernel` window, with `padding` pixels that never win on every side, as
/// `torch.nn.functional.max_pool2d`. Of equal values the first in row-major order gets the gradient.
///
/// # Shapes
/// `x` (N, H, W, C), result (N, H', W', C) with H' = (H + 2 padding − kernel) / stride + 1, rounded down.
///
/// # Errors
/// When `x` is not `f32`, the window does not fit, or `padding` is more than half of `kernel`.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    const OP: &str = "max_pool2d";
    let (n, h, w, c) = check::nhwc(OP, x)?;
    if 2 * padding > kernel {
        bail!("{OP}: padding is {padding}, must be at most half of the kernel of {kernel}");
    }
    if h == 0 || w == 0 {
        bail!("{OP}: x has shape {:?}; the image is empty", x.dims());
    }
    let oh = check::output_size(OP, "the height", h, padding, kernel, stride)?;
    let ow = check::output_size(OP, "the width", w, padding, kernel, stride)?;
    let sizes = MaxPoolSizes { n, h, w, c, kernel, stride, padding, oh, ow };
    if on_cpu(x) {
        let x = x.contiguous()?;
        return x.apply_op1(MaxPool { sizes, track: x.track_op(), winners: OnceLock::new() });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::pool::max_pool2d(x, sizes);
    }
    composed::pool::max_pool2d(x, kernel, stride, padding, (oh, ow))
}

/// Mean over the image: (N, H, W, C) to (N, C).
///
/// # Errors
/// When `x` is not `f32`, has not four axes, or its image is empty.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "global_avg_pool";
    let (_, h, w, c) = check::nhwc(OP, x)?;
    if h == 0 || w == 0 {
        bail!("{OP}: x has shape {:?}; the image is empty", x.dims());
    }
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(GlobalAvgPool { pixels: h * w, c });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::pool::global_avg_pool(x);
    }
    composed::pool::global_avg_pool(x)
}
