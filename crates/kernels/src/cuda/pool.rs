//! Pooling of channels-last images.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, THREADS, View, blocks_for, int, kernel_of, launch};
use super::source::POOL;
use crate::cpu::pool::MaxPoolSizes;

fn window<'a, B>(s: MaxPoolSizes) -> Result<Vec<Arg<'a, B>>> {
    let sizes = [s.h, s.w, s.c, s.kernel, s.stride, s.padding, s.oh, s.ow];
    int("an image's size", s.h * s.w)?;
    // What a kernel adds up must not overflow either.
    int("a window's end", s.oh.max(s.ow) * s.stride + s.kernel + s.padding)?;
    sizes.into_iter().map(|size| Ok(Arg::Int(int("a size of max_pool2d", size)?))).collect()
}

/// The maximum of every window of `x`, and, if `track`, the index in its image of the pixel that won each.
pub(crate) fn max<E: Engine>(
    e: &E,
    kind: DType,
    x: View<'_, E::Buffer>,
    s: MaxPoolSizes,
    track: bool,
) -> Result<(E::Buffer, Option<E::Buffer>)> {
    let count = s.n * s.oh * s.ow * s.c;
    let mut y = e.alloc(kind, count)?;
    let mut winners = track.then(|| e.alloc(DType::U32, count)).transpose()?;
    let mut args = vec![x.arg(), Arg::Out(&mut y), winners.as_mut().map_or(Arg::Null, Arg::Out), Arg::Long(count as i64)];
    args.extend(window(s)?);
    // SAFETY: threads stop at `count`, and windows are cut to the image.
    unsafe { launch(e, &POOL, &kernel_of("max_pool", kind)?, [blocks_for(count), 1, 1], THREADS, args)? };
    Ok((y, winners))
}

/// The gradient to the input, given the winners.
pub(crate) fn max_backward<E: Engine>(
    e: &E,
    kind: DType,
    g: View<'_, E::Buffer>,
    winners: &E::Buffer,
    s: MaxPoolSizes,
) -> Result<E::Buffer> {
    let count = s.n * s.h * s.w * s.c;
    let mut dx = e.alloc(kind, count)?;
    let mut args = vec![g.arg(), Arg::In(winners, 0), Arg::Out(&mut dx), Arg::Long(count as i64)];
    args.extend(window(s)?);
    // SAFETY: threads stop at `count`, and look at windows below (oh, ow).
    unsafe { launch(e, &POOL, &kernel_of("max_pool_backward", kind)?, [blocks_for(count), 1, 1], THREADS, args)? };
    Ok(dx)
}

/// The mean over the pixels of `x` (n, pixels, c), in `f32`.
pub(crate) fn average<E: Engine>(e: &E, kind: DType, x: View<'_, E::Buffer>, [n, pixels, c]: [usize; 3]) -> Result<E::Buffer> {
    let mut y = e.alloc(DType::F32, n * c)?;
    let args = vec![
        x.arg(),
        Arg::Out(&mut y),
        Arg::Long((n * c) as i64),
        Arg::Long(pixels as i64),
        Arg::Int(int("the number of channels", c)?),
    ];
    // SAFETY: threads stop at `n` times `c`, and go over the pixels of their image.
    unsafe { launch(e, &POOL, &kernel_of("average", kind)?, [blocks_for(n * c), 1, 1], THREADS, args)? };
    Ok(y)
}

/// The gradient of type `kind` to the input of [`average`].
pub(crate) fn average_backward<E: Engine>(
    e: &E,
    kind: DType,
    g: View<'_, E::Buffer>,
    [n, pixels, c]: [usize; 3],
) -> Result<E::Buffer> {
    let count = n * pixels * c;
    let mut dx = e.alloc(kind, count)?;
    let args = vec![
        g.arg(),
        Arg::Out(&mut dx),
        Arg::Long(count as i64),
        Arg::Long(pixels as i64),
        Arg::Int(int("the number of channels", c)?),
    ];
    // SAFETY: threads stop at `count`.
    unsafe { launch(e, &POOL, &kernel_of("average_backward", kind)?, [blocks_for(count), 1, 1], THREADS, args)? };
    Ok(dx)
}

#[cfg(feature = "cuda")]
pub(crate) use on_device::{global_avg_pool, max_pool2d};

#[cfg(feature = "cuda")]
mod on_device {
    use candle_core::{Result, Tensor};

    use super::super::tensor::{Reading, gpu, recorded1, tensor};
    use super::{average, average_backward, max, max_backward};
    use crate::cpu::pool::MaxPoolSizes;

    /// As [`crate::max_pool2d`], of a checked tensor on a CUDA device.
    pub(crate) fn max_pool2d(x: &Tensor, s: MaxPoolSizes) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (y, winners) = max(&gpu(&x)?, x.dtype(), Reading::of(&x)?.view()?, s, x.track_op())?;
        recorded1("max-pool2d", &x, y, (s.n, s.oh, s.ow, s.c), move |x, _, grad| {
            let Some(winners) = &winners else { return Ok(None) };
            let dx = max_backward(&gpu(grad)?, x.dtype(), Reading::of(grad)?.view()?, winners, s)?;
            Ok(Some(tensor(dx, (s.n, s.h, s.w, s.c))))
        })
    }

    /// As [`crate::global_avg_pool`], of a checked tensor on a CUDA device; the result is `f32`.
    pub(crate) fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (n, h, w, c) = x.dims4()?;
        let sizes = [n, h * w, c];
        let y = average(&gpu(&x)?, x.dtype(), Reading::of(&x)?.view()?, sizes)?;
        recorded1("global-avg-pool", &x, y, (n, c), move |x, _, grad| {
            let dx = average_backward(&gpu(grad)?, x.dtype(), Reading::of(grad)?.view()?, sizes)?;
            Ok(Some(tensor(dx, x.shape().clone())))
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::super::emulated::{Host, close, values};
    use super::*;

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn pooling_is_that_of_the_cpu() -> Result<()> {
        let host = Host::new();
        for ([n, h, w, c], kernel, stride, padding) in [
            ([0, 5, 4, 3], 3, 2, 1),
            ([2, 7, 9, 5], 3, 2, 1),
            ([1, 8, 8, 4], 2, 2, 0),
            ([2, 6, 5, 3], 3, 1, 1),
            ([1, 9, 9, 1], 2, 3, 1),
        ] {
            for (kind, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1e-2)] {
                // Few distinct values, so that windows have ties.
                let x: Vec<f32> = values(n * h * w * c, 1).iter().map(|v| (v * 4.0).round()).collect();
                let v = Var::from_tensor(&Tensor::from_vec(x.clone(), (n, h, w, c), &Device::Cpu)?)?;
                let want = crate::max_pool2d(&v, kernel, stride, padding)?;
                let (_, oh, ow, _) = want.dims4()?;
                let s = MaxPoolSizes { n, h, w, c, kernel, stride, padding, oh, ow };
                let bx = host.floats(kind, &x, 1);
                let (y, winners) = max(&host, kind, View { buffer: &bx, offset: 1 }, s, true)?;
                let what = format!("max {n} {h} {w} {c} {kernel} {stride} {padding} {kind:?}");
                close(&what, &y.read(), &want.flatten_all()?.to_vec1()?, tolerance);
                let g = values(n * oh * ow * c, 2);
                let g = host.floats(kind, &g, 0);
                let dx = max_backward(&host, kind, View::all(&g), &winners.expect("tracked"), s)?;
                let flat =
                    |grads: &candle_core::backprop::GradStore| grads.get(&v).expect("a gradient").flatten_all()?.to_vec1::<f32>();
                if n > 0 {
                    let grads = (&want * Tensor::from_vec(g.read(), want.dims(), &Device::Cpu)?)?.sum_all()?.backward()?;
                    close(&format!("{what}: dx"), &dx.read(), &flat(&grads)?, tolerance);
                }
                let want = crate::global_avg_pool(&v)?;
                let mean = average(&host, kind, View { buffer: &bx, offset: 1 }, [n, h * w, c])?;
                close(&format!("{what}: average"), &mean.read(), &want.flatten_all()?.to_vec1()?, tolerance);
                let g = values(n * c, 3);
                let dx = average_backward(&host, kind, View::all(&host.floats(DType::F32, &g, 0)), [n, h * w, c])?;
                if n > 0 {
                    let grads = (&want * Tensor::from_vec(g, (n, c), &Device::Cpu)?)?.sum_all()?.backward()?;
                    close(&format!("{what}: average dx"), &dx.read(), &flat(&grads)?, tolerance);
                }
            }
        }
        Ok(())
    }
}
