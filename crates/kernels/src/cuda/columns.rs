//! Sums over the rows of a matrix, and a row added to all of them: biases and their gradients.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, THREADS, View, int, launch};
use super::source::COLUMNS;
use super::tiles::Sizes;

/// The sums of the columns of `x` (rows, c): (c) of `f32`.
pub(crate) fn sums<E: Engine>(e: &E, kind: DType, x: View<'_, E::Buffer>, rows: usize, c: usize) -> Result<E::Buffer> {
    let sizes = Sizes { c, rows, groups: 1 };
    let t = sizes.tiling(x.aligned(4));
    let mut parts = e.alloc(DType::F32, t.chunks * c)?;
    let mut args = vec![x.arg(), Arg::Out(&mut parts)];
    args.extend(t.args(sizes)?);
    // SAFETY: threads take columns below `c` and rows below `rows`; the parts have a place for each chunk and column.
    unsafe { launch(e, &COLUMNS, &t.kernel("column_sums", kind)?, t.grid(sizes), THREADS, args)? };
    finish(e, &parts, t.chunks, c)
}

/// Adds the chunks of `parts`, (chunks, c) of `f32`.
pub(crate) fn finish<E: Engine>(e: &E, parts: &E::Buffer, chunks: usize, c: usize) -> Result<E::Buffer> {
    let mut out = e.alloc(DType::F32, c)?;
    let args = vec![Arg::In(parts, 0), Arg::Out(&mut out), Arg::Int(int("the number of columns", c)?), Arg::Int(chunks as i32)];
    // SAFETY: threads take columns below `c` and chunks below `chunks`.
    unsafe { launch(e, &COLUMNS, "column_finish", [c.div_ceil(32) as u32, 1, 1], THREADS, args)? };
    Ok(out)
}

/// Adds `row` (c) of `f32` to every row of `x` (rows, c), in place.
pub(crate) fn add_row<E: Engine>(
    e: &E,
    kind: DType,
    x: View<'_, E::Buffer>,
    row: View<'_, E::Buffer>,
    rows: usize,
    c: usize,
) -> Result<()> {
    let sizes = Sizes { c, rows, groups: 1 };
    let t = sizes.tiling(x.aligned(4));
    let mut args = vec![Arg::Changed(x.buffer, x.offset), row.arg()];
    args.extend(t.args(sizes)?);
    // SAFETY: threads take columns below `c` and rows below `rows`.
    unsafe { launch(e, &COLUMNS, &t.kernel("add_row", kind)?, t.grid(sizes), THREADS, args) }
}

/// `to` + (`x` + `row`), (rows, c) of `f32`: `to` of `f32` and `x` of type `kind` are (rows, c), `row` (c) of `f32`.
pub(crate) fn add_branch<E: Engine>(
    e: &E,
    kind: DType,
    [to, x, row]: [View<'_, E::Buffer>; 3],
    rows: usize,
    c: usize,
) -> Result<E::Buffer> {
    let sizes = Sizes { c, rows, groups: 1 };
    let t = sizes.tiling(x.aligned(4) && to.aligned(4));
    let mut y = e.alloc(DType::F32, rows * c)?;
    let mut args = vec![to.arg(), x.arg(), row.arg(), Arg::Out(&mut y)];
    args.extend(t.args(sizes)?);
    // SAFETY: threads take columns below `c` and rows below `rows`.
    unsafe { launch(e, &COLUMNS, &t.kernel("add_branch", kind)?, t.grid(sizes), THREADS, args)? };
    Ok(y)
}

#[cfg(feature = "cuda")]
pub(crate) use on_device::linear;

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
    use candle_core::cuda_backend::cudarc::cublas::sys::{
        cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
    };
    use candle_core::cuda_backend::cudarc::driver::DevicePtrMut;
    use candle_core::{CudaStorage, DType, Error, Result, Tensor};

    use super::super::device::pointer;
    use super::super::launch::{View, int};
    use super::super::tensor::{Reading, gpu, product, recorded3, tensor};
    use super::{add_row, sums};

    /// As [`crate::linear`], of checked tensors on a CUDA device: products by cuBLAS in the type of `x`, to which the weight is rounded, and
    /// the bias added in place.
    pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (outputs, inputs) = weight.dims2()?;
        let rows: usize = x.dims()[..x.rank() - 1].iter().product();
        let mut shape = x.dims().to_vec();
        shape[x.rank() - 1] = outputs;
        let cast = weight.detach().to_dtype(x.dtype())?.contiguous()?;
        let y = forward(&x.detach().reshape((rows, inputs))?, &cast, bias)?;
        let with_bias = bias.is_some();
        // Without a bias the weight stands in its place, and gets no gradient from there.
        recorded3("linear", [&x, weight, bias.unwrap_or(weight)], y, shape, move |[x, weight, bias], _, grad| {
            let grad = grad.reshape((rows, outputs))?;
            let dx = x.track_op().then(|| to_input(&grad, &cast)?.reshape(x.shape())).transpose()?;
            let dw = weight.track_op().then(|| to_weight(&x.detach().reshape((rows, inputs))?, &grad)).transpose()?;
            let db = (with_bias && bias.track_op()).then(|| to_bias(&grad)).transpose()?;
            Ok([dx, dw, db])
        })
    }

    /// x (rows, inputs) · weightᵀ + bias, of one type, but for the bias, which is `f32`.
    pub(crate) fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<CudaStorage> {
        let (rows, outputs) = (x.dim(0)?, weight.dim(0)?);
        let y = product(x, &weight.t()?)?;
        if let Some(bias) = bias {
            let bias = bias.detach().contiguous()?;
            add_row(&gpu(x)?, x.dtype(), View::all(&y), Reading::of(&bias)?.view()?, rows, outputs)?;
        }
        Ok(y)
    }

    /// The gradient to the input, (rows, inputs), of `grad` (rows, outputs).
    pub(crate) fn to_input(grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(tensor(product(grad, weight)?, (grad.dim(0)?, weight.dim(1)?)))
    }

    /// The gradient to the weight, (outputs, inputs) of `f32`: of bfloat16 numbers too, as they were added up.
    pub(crate) fn to_weight(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        if grad.dtype() == DType::BF16 && x.dtype() == DType::BF16 && x.elem_count() * grad.elem_count() > 0 {
            return widened_product(&grad.contiguous()?, &x.contiguous()?);
        }
        tensor(product(&grad.t()?, x)?, (grad.dim(1)?, x.dim(1)?)).to_dtype(DType::F32)
    }

    /// aᵀ · b, (m, n) of `f32`, of contiguous `a` (k, m) and `b` (k, n) of bfloat16, none of them empty.
    fn widened_product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let ((k, m), n) = (a.dims2()?, b.dim(1)?);
        let device = gpu(a)?.0;
        // SAFETY: the product writes every element.
        let mut out = unsafe { device.alloc::<f32>(m * n)? };
        let (blas, stream) = (device.cublas_handle(), device.cuda_stream());
        let (ra, rb) = (Reading::of(a)?, Reading::of(b)?);
        {
            let (va, vb) = (ra.view()?, rb.view()?);
            let (left, _held_left) = pointer(va.buffer, va.offset, &stream)?;
            let (right, _held_right) = pointer(vb.buffer, vb.offset, &stream)?;
            let (to, _held) = out.device_ptr_mut(&stream);
            let [one, zero] = [1f32, 0f32];
            // What is row by row here is column by column, transposed, to cuBLAS: outᵀ (n, m) = bᵀ (n, k) · a (k, m).
            // SAFETY: the handle is of the device's stream, on which all three live; they have k · m, k · n and m · n elements, rows one behind the
            // other; the scalars are read before the call returns.
            unsafe {
                gemm_ex(
                    *blas.handle(),
                    cublasOperation_t::CUBLAS_OP_N,
                    cublasOperation_t::CUBLAS_OP_T,
                    int("a product", n)?,
                    int("a product", m)?,
                    int("a product", k)?,
                    (&raw const one).cast(),
                    right as *const _,
                    cudaDataType_t::CUDA_R_16BF,
                    int("a product", n)?,
                    left as *const _,
                    cudaDataType_t::CUDA_R_16BF,
                    int("a product", m)?,
                    (&raw const zero).cast(),
                    to as *mut _,
                    cudaDataType_t::CUDA_R_32F,
                    int("a product", n)?,
                    cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
                )
            }
            .map_err(|e| Error::Cuda(Box::new(e)))?;
        }
        Ok(tensor(CudaStorage::wrap_cuda_slice(out, device.clone()), (m, n)))
    }

    /// The gradient to the bias, (outputs) of `f32`.
    pub(crate) fn to_bias(grad: &Tensor) -> Result<Tensor> {
        let (rows, outputs) = grad.dims2()?;
        let sums = sums(&gpu(grad)?, grad.dtype(), Reading::of(grad)?.view()?, rows, outputs)?;
        Ok(tensor(sums, outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::super::emulated::{Host, close, values};
    use super::*;

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn rows_are_summed_and_added_to() -> Result<()> {
        let host = Host::new();
        for (rows, c) in [(0, 5), (1, 1), (7, 33), (300, 4), (129, 132)] {
            for (kind, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let x = host.floats(kind, &values(rows * c, 1), 2);
                let view = View { buffer: &x, offset: 2 };
                let given = x.read()[2..].to_vec();
                let mut want = vec![0.0f32; c];
                given.chunks(c).for_each(|row| want.iter_mut().zip(row).for_each(|(w, x)| *w += x));
                close(&format!("sums of {rows} x {c} {kind:?}"), &sums(&host, kind, view, rows, c)?.read(), &want, tolerance);
                let row = values(c, 2);
                add_row(&host, kind, view, View::all(&host.floats(DType::F32, &row, 0)), rows, c)?;
                let want: Vec<f32> = given.iter().enumerate().map(|(i, x)| x + row[i % c]).collect();
                close(&format!("row added to {rows} x {c} {kind:?}"), &x.read()[2..], &want, tolerance);
                let stem = host.floats(DType::F32, &values(rows * c, 3), 4);
                // What the row was added to is the branch here.
                let branch = x.read()[2..].to_vec();
                let want: Vec<f32> =
                    stem.read()[4..].iter().zip(&branch).enumerate().map(|(i, (s, b))| s + b + row[i % c]).collect();
                let row = host.floats(DType::F32, &row, 0);
                let y = add_branch(&host, kind, [View { buffer: &stem, offset: 4 }, view, View::all(&row)], rows, c)?;
                close(&format!("branch added to {rows} x {c} {kind:?}"), &y.read(), &want, 1e-6);
            }
        }
        Ok(())
    }
}
