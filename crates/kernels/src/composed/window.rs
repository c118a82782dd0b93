//! Windows of an image by gathering pixels: works for any kernel, stride and dilation on any device, and differentiates.

use candle_core::{Result, Tensor};

/// Index of the pixel under every tap of every window: `positions` output steps of `stride` and `taps` of `dilation`,
/// clamped to the axis of `size` after `padding` is taken off.
fn axis(positions: usize, stride: usize, taps: usize, dilation: usize, padding: usize, size: usize) -> Vec<Vec<usize>> {
    (0..positions)
        .map(|p| (0..taps).map(|t| (p * stride + t * dilation).saturating_sub(padding).min(size - 1)).collect())
        .collect()
}

/// How windows lie over an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub kernel: (usize, usize),
    pub stride: usize,
    pub dilation: usize,
    pub padding: usize,
    pub output: (usize, usize),
}

/// (N, H, W, C) to (N, H' · W', kh · kw, C). A tap outside of the image reads the nearest pixel.
pub(super) fn gather(x: &Tensor, windows: Windows) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let Windows { kernel: (kh, kw), stride, dilation, padding, output: (oh, ow) } = windows;
    let rows = axis(oh, stride, kh, dilation, padding, h);
    let columns = axis(ow, stride, kw, dilation, padding, w);
    let mut index = Vec::with_capacity(oh * ow * kh * kw);
    for row in &rows {
        for column in &columns {
            for y in row {
                index.extend(column.iter().map(|x| (y * w + x) as u32));
            }
        }
    }
    let index = Tensor::new(index, x.device())?;
    x.contiguous()?.reshape((n, h * w, c))?.index_select(&index, 1)?.reshape((n, oh * ow, kh * kw, c))
}
