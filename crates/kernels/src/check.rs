//! What every operation asks of its inputs, with errors that name the operation and the tensor.

use candle_core::{DType, Result, Tensor, bail};

/// Refuses a tensor that is not `f32`.
pub(crate) fn f32(op: &str, name: &str, t: &Tensor) -> Result<()> {
    if t.dtype() != DType::F32 {
        bail!("{op}: {name} has element type {:?}, expected F32; convert it with `to_dtype`", t.dtype());
    }
    Ok(())
}

/// Refuses a tensor that is neither `f32` nor, where [`crate::takes_bf16`] says so, bfloat16.
pub(crate) fn float(op: &str, name: &str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::BF16 if crate::takes_bf16(t.device()) => Ok(()),
        _ => f32(op, name, t),
    }
}

/// Refuses a tensor that is not `f32` or lies on another device than `on`.
pub(crate) fn f32_on(op: &str, name: &str, t: &Tensor, on: &Tensor) -> Result<()> {
    f32(op, name, t)?;
    if !t.device().same_device(on.device()) {
        bail!("{op}: {name} is on {:?} but the input is on {:?}; move one with `to_device`", t.device(), on.device());
    }
    Ok(())
}

/// Refuses a tensor that is not `f32` of exactly `shape` on the device of `on`.
pub(crate) fn shaped(op: &str, name: &str, t: &Tensor, shape: &[usize], on: &Tensor) -> Result<()> {
    f32_on(op, name, t, on)?;
    if t.dims() != shape {
        bail!("{op}: {name} has shape {:?}, expected {shape:?}", t.dims());
    }
    Ok(())
}

/// Refuses a tensor of another shape, element type or device than `like`.
pub(crate) fn alike(op: &str, name: &str, t: &Tensor, like: &Tensor) -> Result<()> {
    if t.dims() != like.dims() || t.dtype() != like.dtype() || !t.device().same_device(like.device()) {
        let of = |t: &Tensor| format!("shape {:?} of {:?} on {:?}", t.dims(), t.dtype(), t.device());
        bail!("{op}: {name} has {}, expected {}", of(t), of(like));
    }
    Ok(())
}

/// The sizes of an image batch (N, H, W, C) of numbers that [`float`] takes.
pub(crate) fn nhwc(op: &str, x: &Tensor) -> Result<(usize, usize, usize, usize)> {
    float(op, "x", x)?;
    match *x.dims() {
        [n, h, w, c] => Ok((n, h, w, c)),
        ref other => bail!("{op}: x has shape {other:?}, expected four axes (N, H, W, C)"),
    }
}

/// The size of the last axis of a tensor of one or more axes, of numbers that [`float`] takes.
pub(crate) fn last(op: &str, name: &str, x: &Tensor) -> Result<usize> {
    float(op, name, x)?;
    match x.dims().last() {
        Some(&c) => Ok(c),
        None => bail!("{op}: {name} is a scalar, expected one axis or more"),
    }
}

/// The number of positions that a window of `kernel` (already dilated) takes along an axis of `size`.
pub(crate) fn output_size(op: &str, axis: &str, size: usize, padding: usize, kernel: usize, stride: usize) -> Result<usize> {
    if kernel == 0 || stride == 0 {
        bail!("{op}: kernel is {kernel} and stride {stride}, both must be at least 1");
    }
    match (size + 2 * padding).checked_sub(kernel) {
        Some(free) => Ok(free / stride + 1),
        None => bail!("{op}: {axis} is {size} with padding {padding}, smaller than the window of {kernel}"),
    }
}
