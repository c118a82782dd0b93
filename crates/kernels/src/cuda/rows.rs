//! Functions of rows: softmax, its logarithm, L2 normalisation, cross-entropy, log-sum-exp with columns left out.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, THREADS, Upload, View, kernel_of, launch};
use super::source::ROWS;

/// The longest row that a warp takes; a block takes longer ones.
const WARP: usize = 1024;

/// `rows` rows of `k` numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub rows: usize,
    pub k: usize,
}

impl Size {
    /// Starts a kernel that takes a row with a warp or a block; `args` are those before the sizes, `after` those after them.
    ///
    /// # Safety
    /// The buffers must hold what the kernel reads and writes of `rows` rows of `k` numbers.
    unsafe fn start<E: Engine>(
        self,
        e: &E,
        base: &str,
        kind: DType,
        mut args: Vec<Arg<'_, E::Buffer>>,
        after: Option<f32>,
    ) -> Result<()> {
        let (suffix, blocks) = match self.k <= WARP {
            true => ("warp", self.rows.div_ceil(THREADS as usize / 32)),
            false => ("block", self.rows),
        };
        args.extend([Arg::Long(self.rows as i64), Arg::Long(self.k as i64)]);
        args.extend(after.map(Arg::Float));
        let kernel = format!("{}_{suffix}", kernel_of(base, kind)?);
        // SAFETY: the kernels take rows below `rows` and columns below `k`.
        unsafe { launch(e, &ROWS, &kernel, [blocks as u32, 1, 1], THREADS, args) }
    }

    fn len(self) -> usize {
        self.rows * self.k
    }
}

/// softmax(scale · x) of every row.
pub(crate) fn softmax<E: Engine>(e: &E, kind: DType, x: View<'_, E::Buffer>, size: Size, scale: f64) -> Result<E::Buffer> {
    let mut y = e.alloc(kind, size.len())?;
    // SAFETY: `x` and `y` have `rows` rows of `k` numbers.
    unsafe { size.start(e, "softmax", kind, vec![x.arg(), Arg::Out(&mut y)], Some(scale as f32))? };
    Ok(y)
}

/// The gradient to `x`, given the result.
pub(crate) fn softmax_backward<E: Engine>(
    e: &E,
    kind: DType,
    [y, g]: [View<'_, E::Buffer>; 2],
    size: Size,
    scale: f64,
) -> Result<E::Buffer> {
    let mut dx = e.alloc(kind, size.len())?;
    // SAFETY: all have `rows` rows of `k` numbers.
    unsafe { size.start(e, "softmax_backward", kind, vec![y.arg(), g.arg(), Arg::Out(&mut dx)], Some(scale as f32))? };
    Ok(dx)
}

/// x − log Σ eˣ of every row.
pub(crate) fn log_softmax<E: Engine>(e: &E, x: View<'_, E::Buffer>, size: Size) -> Result<E::Buffer> {
    let mut y = e.alloc(DType::F32, size.len())?;
    // SAFETY: `x` and `y` have `rows` rows of `k` numbers.
    unsafe { size.start(e, "log_softmax", DType::F32, vec![x.arg(), Arg::Out(&mut y)], None)? };
    Ok(y)
}

/// The gradient to `x`, given the result.
pub(crate) fn log_softmax_backward<E: Engine>(e: &E, [y, g]: [View<'_, E::Buffer>; 2], size: Size) -> Result<E::Buffer> {
    let mut dx = e.alloc(DType::F32, size.len())?;
    // SAFETY: all have `rows` rows of `k` numbers.
    unsafe { size.start(e, "log_softmax_backward", DType::F32, vec![y.arg(), g.arg(), Arg::Out(&mut dx)], None)? };
    Ok(dx)
}

/// x / max(‖x‖, eps) of every row.
pub(crate) fn l2_normalize<E: Engine>(e: &E, x: View<'_, E::Buffer>, size: Size, eps: f64) -> Result<E::Buffer> {
    let mut y = e.alloc(DType::F32, size.len())?;
    // SAFETY: `x` and `y` have `rows` rows of `k` numbers.
    unsafe { size.start(e, "l2_normalize", DType::F32, vec![x.arg(), Arg::Out(&mut y)], Some(eps as f32))? };
    Ok(y)
}

/// The gradient to `x`, given input and result.
pub(crate) fn l2_normalize_backward<E: Engine>(
    e: &E,
    [x, y, g]: [View<'_, E::Buffer>; 3],
    size: Size,
    eps: f64,
) -> Result<E::Buffer> {
    let mut dx = e.alloc(DType::F32, size.len())?;
    let args = vec![x.arg(), y.arg(), g.arg(), Arg::Out(&mut dx)];
    // SAFETY: all have `rows` rows of `k` numbers.
    unsafe { size.start(e, "l2_normalize_backward", DType::F32, args, Some(eps as f32))? };
    Ok(dx)
}

/// The mean over the rows of Σ t · (log Σ eˣ − x): one number.
pub(crate) fn cross_entropy<E: Engine>(e: &E, [x, t]: [View<'_, E::Buffer>; 2], size: Size) -> Result<E::Buffer> {
    let mut each = e.alloc(DType::F32, size.rows)?;
    // SAFETY: `x` and `t` have `rows` rows of `k` numbers, and `each` a place for each row.
    unsafe { size.start(e, "cross_entropy", DType::F32, vec![x.arg(), t.arg(), Arg::Out(&mut each)], None)? };
    total(e, &each, size.rows, 1.0 / size.rows.max(1) as f64)
}

/// The sum of the first `n` numbers times a factor: one number.
pub(crate) fn total<E: Engine>(e: &E, x: &E::Buffer, n: usize, factor: f64) -> Result<E::Buffer> {
    let mut sum = e.alloc(DType::F32, 1)?;
    let args = vec![Arg::In(x, 0), Arg::Out(&mut sum), Arg::Long(n as i64), Arg::Float(factor as f32)];
    // SAFETY: the block stops at `n`.
    unsafe { launch(e, &ROWS, "total", [1, 1, 1], THREADS, args)? };
    Ok(sum)
}

/// The gradient to `x`, where `g` is one number on the device.
pub(crate) fn cross_entropy_backward<E: Engine>(e: &E, [x, t, g]: [View<'_, E::Buffer>; 3], size: Size) -> Result<E::Buffer> {
    let mut dx = e.alloc(DType::F32, size.len())?;
    let args = vec![x.arg(), t.arg(), g.arg(), Arg::Out(&mut dx)];
    // SAFETY: `x`, `t` and `dx` have `rows` rows of `k` numbers.
    unsafe { size.start(e, "cross_entropy_backward", DType::F32, args, None)? };
    Ok(dx)
}

/// The columns to leave out, two a row, on the device; none where nothing is left out.
pub(crate) fn left_out<E: Engine>(e: &E, except: &[[u32; 2]]) -> Result<Option<E::Buffer>> {
    (!except.is_empty()).then(|| e.upload(Upload::U32(except.as_flattened()))).transpose()
}

/// log Σ eˣ of every row over the columns that are not left out.
pub(crate) fn log_sum_exp<E: Engine>(e: &E, x: View<'_, E::Buffer>, except: Option<&E::Buffer>, size: Size) -> Result<E::Buffer> {
    let mut y = e.alloc(DType::F32, size.rows)?;
    let args = vec![x.arg(), Arg::maybe(except.map(View::all)), Arg::Out(&mut y)];
    // SAFETY: `x` has `rows` rows of `k` numbers, `except` two and `y` one place a row.
    unsafe { size.start(e, "log_sum_exp", DType::F32, args, None)? };
    Ok(y)
}

/// The gradient to `x`, given input and result.
pub(crate) fn log_sum_exp_backward<E: Engine>(
    e: &E,
    [x, y, g]: [View<'_, E::Buffer>; 3],
    except: Option<&E::Buffer>,
    size: Size,
) -> Result<E::Buffer> {
    let mut dx = e.alloc(DType::F32, size.len())?;
    let args = vec![x.arg(), Arg::maybe(except.map(View::all)), y.arg(), g.arg(), Arg::Out(&mut dx)];
    // SAFETY: as above, and `g` has one number a row.
    unsafe { size.start(e, "log_sum_exp_backward", DType::F32, args, None)? };
    Ok(dx)
}

/// The largest number of every row over the columns that are not left out.
pub(crate) fn row_max<E: Engine>(e: &E, x: View<'_, E::Buffer>, except: Option<&E::Buffer>, size: Size) -> Result<E::Buffer> {
    let mut y = e.alloc(DType::F32, size.rows)?;
    let args = vec![x.arg(), Arg::maybe(except.map(View::all)), Arg::Out(&mut y)];
    // SAFETY: `x` has `rows` rows of `k` numbers, `except` two and `y` one place a row.
    unsafe { size.start(e, "row_max", DType::F32, args, None)? };
    Ok(y)
}

/// The functions of tensors on a CUDA device: as those of the crate's root with the same names, of checked tensors.
#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::{D, Result, Tensor};

    use super::super::tensor::{Reading, gpu, recorded1, recorded2, tensor};
    use super::{Size, left_out};

    fn size(x: &Tensor) -> Result<Size> {
        let k = x.dim(D::Minus1)?;
        Ok(Size { rows: x.elem_count().checked_div(k).unwrap_or(0), k })
    }

    pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
        let (x, size) = (x.contiguous()?, size(x)?);
        let y = super::softmax(&gpu(&x)?, x.dtype(), Reading::of(&x)?.view()?, size, 1.0)?;
        recorded1("softmax", &x, y, x.shape().clone(), move |x, y, grad| {
            let (y, g) = (Reading::of(y)?, Reading::of(grad)?);
            let dx = super::softmax_backward(&gpu(x)?, x.dtype(), [y.view()?, g.view()?], size, 1.0)?;
            Ok(Some(tensor(dx, x.shape().clone())))
        })
    }

    pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
        let (x, size) = (x.contiguous()?, size(x)?);
        let y = super::log_softmax(&gpu(&x)?, Reading::of(&x)?.view()?, size)?;
        recorded1("log-softmax", &x, y, x.shape().clone(), move |x, y, grad| {
            let (y, g) = (Reading::of(y)?, Reading::of(grad)?);
            let dx = super::log_softmax_backward(&gpu(x)?, [y.view()?, g.view()?], size)?;
            Ok(Some(tensor(dx, x.shape().clone())))
        })
    }

    pub(crate) fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
        let (x, size) = (x.contiguous()?, size(x)?);
        let y = super::l2_normalize(&gpu(&x)?, Reading::of(&x)?.view()?, size, eps)?;
        recorded1("l2-normalize", &x, y, x.shape().clone(), move |x, y, grad| {
            let (rx, ry, rg) = (Reading::of(x)?, Reading::of(y)?, Reading::of(grad)?);
            let dx = super::l2_normalize_backward(&gpu(x)?, [rx.view()?, ry.view()?, rg.view()?], size, eps)?;
            Ok(Some(tensor(dx, x.shape().clone())))
        })
    }

    pub(crate) fn cross_entropy_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (x, t, size) = (logits.contiguous()?, targets.detach().contiguous()?, size(logits)?);
        let y = {
            let (x, t) = (Reading::of(&x)?, Reading::of(&t)?);
            super::cross_entropy(&gpu(logits)?, [x.view()?, t.view()?], size)?
        };
        recorded2("cross-entropy", [&x, &t], y, (), move |[x, t], _, grad| {
            let x = x.detach();
            let (rx, rt, rg) = (Reading::of(&x)?, Reading::of(t)?, Reading::of(grad)?);
            let dx = super::cross_entropy_backward(&gpu(t)?, [rx.view()?, rt.view()?, rg.view()?], size)?;
            Ok([Some(tensor(dx, x.shape().clone())), None])
        })
    }

    pub(crate) fn log_sum_exp(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
        let (x, size) = (x.contiguous()?, size(x)?);
        let except = left_out(&gpu(&x)?, except)?;
        let y = super::log_sum_exp(&gpu(&x)?, Reading::of(&x)?.view()?, except.as_ref(), size)?;
        recorded1("log-sum-exp", &x, y, size.rows, move |x, y, grad| {
            let (rx, ry, rg) = (Reading::of(x)?, Reading::of(y)?, Reading::of(grad)?);
            let views = [rx.view()?, ry.view()?, rg.view()?];
            let dx = super::log_sum_exp_backward(&gpu(x)?, views, except.as_ref(), size)?;
            Ok(Some(tensor(dx, x.shape().clone())))
        })
    }

    pub(crate) fn row_max(x: &Tensor, except: &[[u32; 2]]) -> Result<Tensor> {
        let (x, size) = (x.detach().contiguous()?, size(x)?);
        let except = left_out(&gpu(&x)?, except)?;
        let y = super::row_max(&gpu(&x)?, Reading::of(&x)?.view()?, except.as_ref(), size)?;
        Ok(tensor(y, size.rows))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::super::emulated::{Host, HostBuffer, close, values};
    use super::*;

    /// Checks a function of a table of numbers and its gradient.
    fn check(
        what: &str,
        host: &Host,
        x: &[f32],
        size: Size,
        reference: impl Fn(&Tensor) -> Result<Tensor>,
        forward: impl Fn(View<'_, HostBuffer>) -> Result<HostBuffer>,
        backward: impl Fn([View<'_, HostBuffer>; 3]) -> Result<HostBuffer>,
    ) -> Result<()> {
        let v = Var::from_tensor(&Tensor::from_vec(x.to_vec(), (size.rows, size.k), &Device::Cpu)?)?;
        let want = reference(&v)?;
        let bx = host.floats(DType::F32, x, 3);
        let vx = View { buffer: &bx, offset: 3 };
        let y = forward(vx)?;
        let what = format!("{what} of {size:?}");
        close(&what, &y.read(), &want.flatten_all()?.to_vec1()?, 2e-6);
        let g = values(want.elem_count(), 9);
        let grads = (&want * Tensor::from_vec(g.clone(), want.dims(), &Device::Cpu)?)?.sum_all()?.backward()?;
        let want = grads.get(&v).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        let dx = backward([vx, View::all(&y), View::all(&host.floats(DType::F32, &g, 0))])?;
        close(&format!("{what}: dx"), &dx.read(), &want, 1e-5);
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn row_functions_are_those_of_the_cpu() -> Result<()> {
        let host = Host::new();
        let h = &host;
        for (rows, k) in [(1, 3), (9, 37), (3, 1024), (2, 1025), (5, 2500)] {
            let size = Size { rows, k };
            let x: Vec<f32> = values(rows * k, 1).iter().map(|v| v * 5.0).collect();
            let t: Vec<f32> = values(rows * k, 2).iter().map(|v| if *v < -0.5 { 0.0 } else { v.abs() }).collect();
            check(
                "softmax",
                h,
                &x,
                size,
                crate::softmax,
                |x| softmax(h, DType::F32, x, size, 1.0),
                |[_, y, g]| softmax_backward(h, DType::F32, [y, g], size, 1.0),
            )?;
            let scaled = |x: &Tensor| crate::softmax(&(x * 0.3)?);
            check(
                "scaled softmax",
                h,
                &x,
                size,
                scaled,
                |x| softmax(h, DType::F32, x, size, 0.3),
                |[_, y, g]| softmax_backward(h, DType::F32, [y, g], size, 0.3),
            )?;
            check(
                "log-softmax",
                h,
                &x,
                size,
                crate::log_softmax,
                |x| log_softmax(h, x, size),
                |[_, y, g]| log_softmax_backward(h, [y, g], size),
            )?;
            for (eps, factor) in [(1e-12, 1.0), (1e3, 1.0), (1e-12, 1e-20), (1e-12, 1e18)] {
                let x: Vec<f32> = x.iter().map(|v| v * factor).collect();
                let reference = |x: &Tensor| crate::l2_normalize(x, eps);
                check(
                    "l2",
                    h,
                    &x,
                    size,
                    reference,
                    |x| l2_normalize(h, x, size, eps),
                    |views| l2_normalize_backward(h, views, size, eps),
                )?;
            }
            let targets = h.floats(DType::F32, &t, 0);
            let table = Tensor::from_vec(t.clone(), (rows, k), &Device::Cpu)?;
            let reference = |x: &Tensor| crate::cross_entropy_soft(x, &table);
            check(
                "cross-entropy",
                h,
                &x,
                size,
                reference,
                |x| cross_entropy(h, [x, View::all(&targets)], size),
                |[x, _, g]| cross_entropy_backward(h, [x, View::all(&targets), g], size),
            )?;
            for except in [Vec::new(), (0..rows).map(|i| [i as u32 % 3, (i as u32 + i as u32 % 2) % 3]).collect()] {
                let buffer = left_out(h, &except)?;
                let reference = |x: &Tensor| crate::log_sum_exp(x, &except);
                check(
                    "log-sum-exp",
                    h,
                    &x,
                    size,
                    reference,
                    |x| log_sum_exp(h, x, buffer.as_ref(), size),
                    |views| log_sum_exp_backward(h, views, buffer.as_ref(), size),
                )?;
                let bx = h.floats(DType::F32, &x, 0);
                let top = row_max(h, View::all(&bx), buffer.as_ref(), size)?;
                let want = crate::row_max(&Tensor::from_vec(x.clone(), (rows, k), &Device::Cpu)?, &except)?;
                assert_eq!(top.read(), want.to_vec1::<f32>()?);
            }
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn softmax_takes_bfloat16_and_no_rows_and_shows_nan() -> Result<()> {
        let host = Host::new();
        // Rows of a warp, of a block, and at the border between them; the gradient's rounding to bfloat16 is of sums of products.
        for (rows, k) in [(4, 50), (1, 3), (3, 1024), (2, 1025), (5, 2500)] {
            let size = Size { rows, k };
            let x = host.floats(DType::BF16, &values(rows * k, 1), 3);
            let g = host.floats(DType::BF16, &values(rows * k, 2), 0);
            let read = |b: &HostBuffer, from: usize| Tensor::from_vec(b.read()[from..].to_vec(), (rows, k), &Device::Cpu);
            let v = Var::from_tensor(&read(&x, 3)?)?;
            let want = crate::softmax(&(v.as_tensor() * 2.0)?)?;
            let y = softmax(&host, DType::BF16, View { buffer: &x, offset: 3 }, size, 2.0)?;
            close(&format!("bfloat16 of {size:?}"), &y.read(), &want.flatten_all()?.to_vec1()?, 5e-3);
            let grads = (&want * read(&g, 0)?)?.sum_all()?.backward()?;
            let want = grads.get(&v).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            let dx = softmax_backward(&host, DType::BF16, [View::all(&y), View::all(&g)], size, 2.0)?;
            close(&format!("bfloat16 of {size:?}: dx"), &dx.read(), &want, 1e-2);
        }
        let none = Size { rows: 0, k: 50 };
        assert!(softmax(&host, DType::F32, View::all(&host.floats(DType::F32, &[], 0)), none, 1.0)?.read().is_empty());
        let with_nan = host.floats(DType::F32, &[1.0, f32::NAN, 2.0], 0);
        let y = softmax(&host, DType::F32, View::all(&with_nan), Size { rows: 1, k: 3 }, 1.0)?;
        assert!(y.read().iter().all(|v| v.is_nan()));
        Ok(())
    }
}
