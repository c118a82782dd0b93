//! Convolution as gathered patches times a matrix.

use candle_core::{Result, Tensor};

use super::window::{Windows, gather};
use crate::conv::{Conv2dConfig, Geometry};

/// See [`crate::conv2d`].
///
/// # Errors
/// When the shapes do not fit together or a candle operation fails.
pub fn conv2d(x: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<Tensor> {
    let Geometry { n, c, o, kh, kw, oh, ow, .. } = Geometry::new(x, weight, config)?;
    let (groups, taps) = (config.groups, kh * kw);
    if n * c * o == 0 {
        return Tensor::zeros((n, oh, ow, o), x.dtype(), x.device());
    }
    let padded = x.pad_with_zeros(1, config.padding, config.padding)?.pad_with_zeros(2, config.padding, config.padding)?;
    let windows = Windows { kernel: (kh, kw), stride: config.stride, dilation: config.dilation, padding: 0, output: (oh, ow) };
    let patches = gather(&padded, windows)?
        .reshape((n * oh * ow, taps, groups, c / groups))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((groups, n * oh * ow, taps * c / groups))?;
    let weight = weight
        .to_dtype(x.dtype())?
        .reshape((groups, o / groups, c / groups, taps))?
        .permute((0, 3, 2, 1))?
        .contiguous()?
        .reshape((groups, taps * c / groups, o / groups))?;
    patches.matmul(&weight)?.permute((1, 0, 2))?.contiguous()?.reshape((n, oh, ow, o))
}
