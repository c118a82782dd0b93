//! Activation functions.

#[cfg(feature = "cuda")]
use candle_core::Tensor;
use candle_core::{DType, Result};

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
        }
        Ok(())
    }
}
