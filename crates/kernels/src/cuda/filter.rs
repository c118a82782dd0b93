//! Weights of convolutions as channels-last algorithms take them: (O, kh, kw, C / groups) of PyTorch's (O, C / groups, kh, kw), in the type of the
//! activations; and gradients of such weights back again. One kernel, where a chain of candle's operations would copy twice and send a table
//! of strides to the device.

use candle_core::{DType, Result, bail};

use super::launch::{Arg, Engine, THREADS, View, blocks_for, int, launch};
use super::source::FILTER;

/// (outer, b, a) of `x`, (outer, a, b), from one type to the other; one of the two is `f32`.
pub(crate) fn turned<E: Engine>(
    e: &E,
    [from, to]: [DType; 2],
    x: View<'_, E::Buffer>,
    [outer, a, b]: [usize; 3],
) -> Result<E::Buffer> {
    let kernel = match (from, to) {
        (DType::F32, DType::F32) => "turned_f32_f32",
        (DType::F32, DType::BF16) => "turned_f32_bf16",
        (DType::BF16, DType::F32) => "turned_bf16_f32",
        _ => bail!("internal: no CUDA kernel turns {from:?} to {to:?}"),
    };
    let n = outer * a * b;
    let mut y = e.alloc(to, n)?;
    let args = vec![x.arg(), Arg::Out(&mut y), Arg::Long(n as i64), Arg::Int(int("a row", a)?), Arg::Int(int("a row", b)?)];
    // SAFETY: the kernel's threads stop at element `n` of `y`, and what they read of `x` has numbers below outer · a · b too.
    unsafe { launch(e, &FILTER, kernel, [blocks_for(n), 1, 1], THREADS, args)? };
    Ok(y)
}

#[cfg(feature = "cudnn")]
pub(crate) mod on_device {
    use candle_core::{DType, Result, Tensor};

    use super::super::tensor::{Reading, gpu, tensor};
    use super::turned;

    /// The weight (O, C / groups, kh, kw) as (O, kh, kw, C / groups) of type `kind`.
    pub(crate) fn to_channels_last(weight: &Tensor, kind: DType) -> Result<Tensor> {
        let (o, c, kh, kw) = weight.dims4()?;
        let chain = || weight.to_dtype(kind)?.permute((0, 2, 3, 1))?.contiguous();
        if kh * kw == 1 || weight.dtype() != DType::F32 || !matches!(kind, DType::F32 | DType::BF16) {
            return chain();
        }
        let weight = weight.contiguous()?;
        let y = turned(&gpu(&weight)?, [DType::F32, kind], Reading::of(&weight)?.view()?, [o, c, kh * kw])?;
        Ok(tensor(y, (o, kh, kw, c)))
    }

    /// The gradient (O, kh, kw, C / groups) as (O, C / groups, kh, kw) of type `kind`.
    pub(crate) fn from_channels_last(gradient: &Tensor, kind: DType) -> Result<Tensor> {
        let (o, kh, kw, c) = gradient.dims4()?;
        let chain = || gradient.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(kind);
        if kh * kw == 1 || kind != DType::F32 || !matches!(gradient.dtype(), DType::F32 | DType::BF16) {
            return chain();
        }
        let gradient = gradient.contiguous()?;
        let y = turned(&gpu(&gradient)?, [gradient.dtype(), kind], Reading::of(&gradient)?.view()?, [o, kh * kw, c])?;
        Ok(tensor(y, (o, c, kh, kw)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::super::emulated::{Host, close, values};
    use super::*;

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn weights_are_turned_and_turned_back() -> Result<()> {
        let host = Host::new();
        for [o, c, k] in [[0, 3, 9], [1, 1, 1], [5, 3, 9], [64, 33, 9], [7, 300, 4]] {
            let numbers = values(o * c * k, 1);
            let want = Tensor::from_vec(numbers.clone(), (o, c, k), &Device::Cpu)?.transpose(1, 2)?.flatten_all()?;
            for (kind, tolerance) in [(DType::F32, 0.0), (DType::BF16, 4e-3)] {
                let x = host.floats(DType::F32, &numbers, 3);
                let y = turned(&host, [DType::F32, kind], View { buffer: &x, offset: 3 }, [o, c, k])?;
                close(&format!("{o} x {c} x {k} as {kind:?}"), &y.read(), &want.to_vec1()?, tolerance);
                let back = turned(&host, [kind, DType::F32], View::all(&y), [o, k, c])?;
                close(&format!("{o} x {c} x {k} back from {kind:?}"), &back.read(), &numbers, tolerance);
            }
        }
        let x = host.floats(DType::BF16, &[1.0], 0);
        assert!(turned(&host, [DType::BF16, DType::BF16], View::all(&x), [1, 1, 1]).is_err());
        Ok(())
    }
}
