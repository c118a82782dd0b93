//! Pooling.

use candle_core::{Result, Tensor};

use super::window::{Windows, gather};

/// See [`crate::max_pool2d`]; `output` is the (height, width) of the result.
///
/// # Errors
/// When a candle operation fails.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize, output: (usize, usize)) -> Result<Tensor> {
    let (n, _, _, c) = x.dims4()?;
    if n * c == 0 {
        return Tensor::zeros((n, output.0, output.1, c), x.dtype(), x.device());
    }
    // A tap in the padding reads the nearest pixel, which lies in the same window: the maximum is the same.
    let windows = gather(x, Windows { kernel: (kernel, kernel), stride, dilation: 1, padding, output })?;
    let best = windows.detach().argmax_keepdim(2)?;
    windows.gather(&best.contiguous()?, 2)?.reshape((n, output.0, output.1, c))
}

/// See [`crate::global_avg_pool`].
///
/// # Errors
/// When a candle operation fails.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.contiguous()?.reshape((n, h * w, c))?.mean(1)
}
