//! Two-dimensional convolution of channels-last images.

use candle_core::{Result, Tensor, bail};

use crate::cpu::conv::Conv2d;
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// Stride, padding, dilation and groups of a convolution, each for both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conv2dConfig {
    /// Step between output positions, in input pixels; at least 1.
    pub stride: usize,
    /// Zeros added on every side of the image.
    pub padding: usize,
    /// Distance between the kernel's taps, in input pixels; at least 1.
    pub dilation: usize,
    /// Number of independent blocks of channels; must divide the input and the output channels.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

const OP: &str = "conv2d";

/// All the sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub o: usize,
    pub kh: usize,
    pub kw: usize,
    pub oh: usize,
    pub ow: usize,
    pub config: Conv2dConfig,
}

impl Geometry {
    /// Reads and checks the sizes of `x` (N, H, W, C) and `weight` (O, C / groups, kh, kw).
    pub fn new(x: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<Self> {
        check::nhwc(OP, x)?;
        check::f32_on(OP, "weight", weight, x)?;
        Self::of_sizes(x.dims(), weight.dims(), config)
    }

    /// Checks the sizes of an image batch (N, H, W, C) and of a weight (O, C / groups, kh, kw).
    pub fn of_sizes(x: &[usize], weight: &[usize], config: Conv2dConfig) -> Result<Self> {
        let &[n, h, w, c] = x else { bail!("{OP}: x has shape {x:?}, expected four axes (N, H, W, C)") };
        let &[o, cg, kh, kw] = weight else {
            bail!("{OP}: weight has shape {weight:?}, expected four axes (O, C / groups, kh, kw)");
        };
        let Conv2dConfig { stride, padding, dilation, groups } = config;
        if groups == 0 || c % groups != 0 || o % groups != 0 {
            bail!("{OP}: groups is {groups}, which must divide the {c} input and {o} output channels");
        }
        if cg != c / groups {
            bail!("{OP}: weight has shape {weight:?}, expected its second axis to be C / groups = {}", c / groups);
        }
        if dilation == 0 || kh == 0 || kw == 0 {
            bail!("{OP}: dilation is {dilation} and the kernel {kh} x {kw}, all must be at least 1");
        }
        let oh = check::output_size(OP, "the height", h, padding, dilation * (kh - 1) + 1, stride)?;
        let ow = check::output_size(OP, "the width", w, padding, dilation * (kw - 1) + 1, stride)?;
        Ok(Self { n, h, w, c, o, kh, kw, oh, ow, config })
    }
}

/// Convolution (cross-correlation, as in PyTorch) of `x` with `weight`, without bias.
///
/// # Shapes
/// `x` (N, H, W, C), `weight` (O, C / groups, kh, kw), result (N, H', W', O) with
/// H' = (H + 2 padding − dilation (kh − 1) − 1) / stride + 1, rounded down.
///
/// # Errors
/// When a tensor is not `f32` or the shapes do not fit together.
pub fn conv2d(x: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<Tensor> {
    let geometry = Geometry::new(x, weight, config)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op2(&weight.contiguous()?, Conv2d(geometry));
    }
    #[cfg(feature = "cudnn")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::conv::conv2d(x, weight, geometry);
    }
    composed::conv::conv2d(x, weight, config)
}
