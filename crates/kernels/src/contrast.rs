//! What contrastive losses need of a table of similarities: the logarithm of a sum of exponentials over each row, and the
//! largest value of each row, with columns left out (a view's similarity to itself, or to its partner).

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::contrast::LogSumExp;
use crate::cpu::memory::on_cpu;
use crate::{check, composed};

/// log Σₖ exp(xₖ) of each row, over the columns that `except` does not name, computed without overflow.
///
/// `except` has one entry a row, of two columns to leave out (the same one twice where it is one alone), or no entries at all.
/// Neither the table of exponentials nor a mask is ever stored: the backward pass computes the exponentials again.
///
/// # Shapes
/// `x` (M, K); the result (M).
///
/// # Errors
/// When `x` is not `f32` or not of two axes, when a row would keep no column, or `except` names a column that is not there.
pub fn log_sum_exp(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
    const OP: &str = "log_sum_exp";
    check_rows(OP, x, except)?;
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(LogSumExp { except: except.into() });
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::rows::on_device::log_sum_exp(x, except);
    }
    composed::softmax::log_sum_exp(x, except)
}

/// The largest value of each row over the columns that `except` does not name, outside of any graph: (M, K) to (M).
///
/// # Errors
/// As [`log_sum_exp`].
pub fn row_max(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
    check_rows("row_max", x, except)?;
    if on_cpu(x) {
        return crate::cpu::contrast::row_max(&x.detach().contiguous()?, except);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) {
        return crate::cuda::rows::on_device::row_max(x, except);
    }
    composed::softmax::without(&x.detach(), except)?.max(D::Minus1)
}

fn check_rows(op: &str, x: &Tensor, except: &[[u32; 2]]) -> Result<()> {
    check::f32(op, "x", x)?;
    let [rows, columns] = *x.dims() else { bail!("{op}: x has shape {:?}, expected (M, K)", x.dims()) };
    if !except.is_empty() && except.len() != rows {
        bail!("{op}: {} entries of columns to leave out for {rows} rows", except.len());
    }
    if let Some([a, b]) = except.iter().find(|e| e.iter().any(|&c| c as usize >= columns)) {
        bail!("{op}: columns {a} and {b} to leave out, of {columns}");
    }
    let most_left_out = except.iter().map(|[a, b]| 1 + usize::from(a != b)).max().unwrap_or(0);
    if rows > 0 && columns <= most_left_out {
        bail!("{op}: rows of {columns} columns with {most_left_out} left out keep none");
    }
    Ok(())
}
