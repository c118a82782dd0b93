//! Activation functions, sums of two tensors, rows put in their places.

use candle_core::{DType, Result};
#[cfg(feature = "cuda")]
use candle_core::{Tensor, backend::BackendDevice};

use super::launch::{Arg, Engine, THREADS, View, blocks_for, kernel_of, launch};
use super::source::ELEMENTWISE;

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// max(x, 0), with a derivative by the result.
    Relu,
    /// x · Φ(x), with a derivative by the input.
    Gelu,
}

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Gelu => "gelu",
        }
    }
}

/// The function of `n` elements.
pub(crate) fn forward<E: Engine>(e: &E, f: Activation, kind: DType, x: View<'_, E::Buffer>, n: usize) -> Result<E::Buffer> {
    let mut y = e.alloc(kind, n)?;
    let args = vec![x.arg(), Arg::Out(&mut y), Arg::Long(n as i64)];
    // SAFETY: the kernel's threads stop at element `n`, which `x` and `y` have.
    unsafe { launch(e, &ELEMENTWISE, &kernel_of(f.name(), kind)?, [blocks_for(n), 1, 1], THREADS, args)? };
    Ok(y)
}

/// The gradient to the input of `n` elements, given `at`: the result of a ReLU, the input of others.
pub(crate) fn backward<E: Engine>(
    e: &E,
    f: Activation,
    kind: DType,
    at: View<'_, E::Buffer>,
    g: View<'_, E::Buffer>,
    n: usize,
) -> Result<E::Buffer> {
    let mut dx = e.alloc(kind, n)?;
    let args = vec![at.arg(), g.arg(), Arg::Out(&mut dx), Arg::Long(n as i64)];
    let kernel = kernel_of(&format!("{}_backward", f.name()), kind)?;
    // SAFETY: the kernel's threads stop at element `n`, which all three have.
    unsafe { launch(e, &ELEMENTWISE, &kernel, [blocks_for(n), 1, 1], THREADS, args)? };
    Ok(dx)
}

/// a += b, of `n` elements, in place.
pub(crate) fn add<E: Engine>(e: &E, kind: DType, a: View<'_, E::Buffer>, b: View<'_, E::Buffer>, n: usize) -> Result<()> {
    let args = vec![Arg::Changed(a.buffer, a.offset), b.arg(), Arg::Long(n as i64)];
    // SAFETY: the kernel's threads stop at element `n`, which both have.
    unsafe { launch(e, &ELEMENTWISE, &kernel_of("add", kind)?, [blocks_for(n), 1, 1], THREADS, args) }
}

/// Row i of `g`, (rows, d) of `f32`, becomes row `places`[i] of `out`.
///
/// # Safety
/// Places must be distinct and below the number of rows of `d` elements that `out` has; there are `rows` of them, and as many rows of `d`
/// elements in `g`.
pub(crate) unsafe fn put_rows<E: Engine>(
    e: &E,
    g: View<'_, E::Buffer>,
    places: View<'_, E::Buffer>,
    out: View<'_, E::Buffer>,
    [rows, d]: [usize; 2],
) -> Result<()> {
    let n = rows * d;
    let args = vec![g.arg(), places.arg(), Arg::Changed(out.buffer, out.offset), Arg::Long(n as i64), Arg::Long(d.max(1) as i64)];
    // SAFETY: the kernel's threads stop at element `n` of `g`; the rest is the caller's word.
    unsafe { launch(e, &ELEMENTWISE, "put_rows", [blocks_for(n), 1, 1], THREADS, args) }
}

/// As [`crate::pick_rows`], of a checked tensor on a CUDA device and places that were checked.
#[cfg(feature = "cuda")]
pub(crate) fn pick_rows(x: &Tensor, places: &Tensor) -> Result<Tensor> {
    use super::tensor::{Reading, gpu, tensor};
    let (rows, d) = (places.dim(0)?, x.dim(1)?);
    let (picked, all) = (x.detach().index_select(places, 0)?, x.shape().clone());
    crate::graph::handed2("pick-rows", [x, places], &picked, move |[x, places], grad| {
        let out = gpu(x)?.0.zeros_impl(&all, DType::F32)?;
        // SAFETY: `crate::pick_rows` let distinct places within `x` pass alone.
        unsafe { put_rows(&gpu(x)?, Reading::of(grad)?.view()?, Reading::of(places)?.view()?, View::all(&out), [rows, d])? };
        Ok([Some(tensor(out, all.clone())), None])
    })
}

/// The function of a tensor on a CUDA device.
#[cfg(feature = "cuda")]
pub(crate) fn activation(x: &Tensor, f: Activation) -> Result<Tensor> {
    use super::tensor::{Reading, gpu, recorded1, tensor};
    let x = x.contiguous()?;
    let y = forward(&gpu(&x)?, f, x.dtype(), Reading::of(&x)?.view()?, x.elem_count())?;
    let (shape, name) = (x.shape().clone(), f.name());
    recorded1(name, &x, y, shape, move |x, y, grad| {
        let at = if f == Activation::Relu { y } else { x };
        let (at, g) = (Reading::of(at)?, Reading::of(grad)?);
        let dx = backward(&gpu(x)?, f, x.dtype(), at.view()?, g.view()?, x.elem_count())?;
        Ok(Some(tensor(dx, x.shape().clone())))
    })
}

#[cfg(test)]
mod tests {
    use super::super::emulated::{Host, close, values};
    use super::*;
    use crate::{gelu, relu};
    #[cfg(not(feature = "cuda"))]
    use candle_core::Tensor;
    use candle_core::{Device, Var};

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn activations_are_those_of_the_cpu() -> Result<()> {
        let host = Host::new();
        for n in [0, 1, 255, 1000] {
            let (x, g) = (values(n, 1).iter().map(|v| v * 4.0).collect::<Vec<_>>(), values(n, 2));
            let var = Var::from_tensor(&Tensor::new(x.as_slice(), &Device::Cpu)?)?;
            let weights = Tensor::new(g.as_slice(), &Device::Cpu)?;
            for (f, reference) in [(Activation::Relu, relu as fn(&Tensor) -> Result<Tensor>), (Activation::Gelu, gelu)] {
                let want = reference(&var)?;
                let grads = (&want * &weights)?.sum_all()?.backward()?;
                let want_dx = grads.get(&var).expect("a gradient").to_vec1::<f32>()?;
                for (kind, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 1e-2)] {
                    // An offset, as a narrowed tensor has.
                    let (bx, bg) = (host.floats(kind, &x, 3), host.floats(kind, &g, 5));
                    let (vx, vg) = (View { buffer: &bx, offset: 3 }, View { buffer: &bg, offset: 5 });
                    let y = forward(&host, f, kind, vx, n)?;
                    close(&format!("{f:?} {kind:?}"), &y.read(), &want.to_vec1()?, tolerance);
                    let at = if f == Activation::Relu { View::all(&y) } else { vx };
                    let dx = backward(&host, f, kind, at, vg, n)?;
                    close(&format!("{f:?} {kind:?} backward"), &dx.read(), &want_dx, tolerance);
                }
            }
            for (kind, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1e-2)] {
                let (a, b) = (host.floats(kind, &x, 2), host.floats(kind, &g, 0));
                add(&host, kind, View { buffer: &a, offset: 2 }, View::all(&b), n)?;
                let want: Vec<f32> = x.iter().zip(&g).map(|(x, g)| x + g).collect();
                close(&format!("sum {kind:?}"), &a.read()[2..], &want, tolerance);
            }
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn rows_come_to_their_places() -> Result<()> {
        use super::super::launch::Upload;
        let host = Host::new();
        // The last has more elements than the largest grid has threads.
        let many = (1_200, 1_024, (0..1_200).rev().filter(|i| i % 12 != 5).collect());
        let cases = [(7, 33, vec![6u32, 0, 3]), (3, 1, vec![2, 1, 0]), (400, 5, (0..400).rev().step_by(3).collect()), many];
        for (all, d, places) in cases {
            let rows = places.len();
            let g = values(rows * d, 1);
            let given = host.floats(DType::F32, &g, 2);
            let out = host.floats(DType::F32, &vec![0.0; all * d], 4);
            let there = host.upload(Upload::U32(&places))?;
            let (given, to) = (View { buffer: &given, offset: 2 }, View { buffer: &out, offset: 4 });
            // SAFETY: the places are distinct and below `all`.
            unsafe { put_rows(&host, given, View::all(&there), to, [rows, d])? };
            let x = Var::zeros((all, d), DType::F32, &Device::Cpu)?;
            let weights = Tensor::from_vec(g, (rows, d), &Device::Cpu)?;
            let grads = (crate::pick_rows(&x, &places)? * weights)?.sum_all()?.backward()?;
            let want = grads.get(&x).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            close("rows", &out.read()[4..], &want, 0.0);
        }
        Ok(())
    }
}
