//! The Epps-Pulley statistic; no table over samples and frequencies is stored.

use candle_core::{DType, Result, bail};

use super::launch::{Arg, Engine, THREADS, View, blocks_for, int, launch};
use super::rows;
use super::source::EPPS_PULLEY;

/// Sizes of x (views, n, m), and the frequencies k · dt, k below `knots`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub views: usize,
    pub n: usize,
    pub m: usize,
    pub knots: usize,
    pub dt: f64,
}

/// The statistic, one number, and the means of cosines and sines, (views, knots, m), for the backward pass.
pub(crate) fn forward<E: Engine>(e: &E, x: View<'_, E::Buffer>, s: Sizes) -> Result<(E::Buffer, [E::Buffer; 2])> {
    if s.knots > 65_535 || s.views > 65_535 {
        bail!("epps_pulley: {} views and {} knots, the CUDA kernels take up to 65535", s.views, s.knots);
    }
    let (count, m, knots) = (s.views * s.knots * s.m, int("the number of columns", s.m)?, s.knots as i32);
    let (mut cosines, mut sines) = (e.alloc(DType::F32, count)?, e.alloc(DType::F32, count)?);
    let args =
        vec![x.arg(), Arg::Out(&mut cosines), Arg::Out(&mut sines), Arg::Long(s.n as i64), Arg::Int(m), Arg::Float(s.dt as f32)];
    let grid = [s.m.div_ceil(32) as u32, s.knots as u32, s.views as u32];
    // SAFETY: threads take columns below `m` and samples below `n`; the means have a place for each view, knot and column.
    unsafe { launch(e, &EPPS_PULLEY, "ep_means", grid, THREADS, args)? };
    let mut terms = e.alloc(DType::F32, count)?;
    let args = vec![
        Arg::In(&cosines, 0),
        Arg::In(&sines, 0),
        Arg::Out(&mut terms),
        Arg::Long(count as i64),
        Arg::Int(m),
        Arg::Int(knots),
        Arg::Float(s.dt as f32),
    ];
    // SAFETY: threads stop at `count`.
    unsafe { launch(e, &EPPS_PULLEY, "ep_terms", [blocks_for(count), 1, 1], THREADS, args)? };
    let statistic = rows::total(e, &terms, count, s.n as f64 / (s.views * s.m) as f64)?;
    Ok((statistic, [cosines, sines]))
}

/// The gradient to x; `g` is one number on the device.
pub(crate) fn backward<E: Engine>(
    e: &E,
    [x, g]: [View<'_, E::Buffer>; 2],
    [cosines, sines]: [&E::Buffer; 2],
    s: Sizes,
) -> Result<E::Buffer> {
    let count = s.views * s.n * s.m;
    let mut dx = e.alloc(DType::F32, count)?;
    let args = vec![
        x.arg(),
        Arg::In(cosines, 0),
        Arg::In(sines, 0),
        g.arg(),
        Arg::Out(&mut dx),
        Arg::Long(count as i64),
        Arg::Long(s.n as i64),
        Arg::Int(int("the number of columns", s.m)?),
        Arg::Int(s.knots as i32),
        Arg::Float(s.dt as f32),
        Arg::Float((1.0 / (s.views * s.m) as f64) as f32),
    ];
    // SAFETY: threads stop at `count` and look at the means of their view and column.
    unsafe { launch(e, &EPPS_PULLEY, "ep_backward", [blocks_for(count), 1, 1], THREADS, args)? };
    Ok(dx)
}

/// As [`crate::epps_pulley`], of a checked tensor on a CUDA device.
#[cfg(feature = "cuda")]
pub(crate) fn epps_pulley(x: &candle_core::Tensor, knots: usize, max: f64) -> Result<candle_core::Tensor> {
    use super::tensor::{Reading, gpu, recorded1, tensor};
    let x = x.contiguous()?;
    let (views, n, m) = x.dims3()?;
    let sizes = Sizes { views, n, m, knots, dt: max / (knots - 1) as f64 };
    let (y, means) = forward(&gpu(&x)?, Reading::of(&x)?.view()?, sizes)?;
    recorded1("epps-pulley", &x, y, (), move |x, _, grad| {
        let (rx, rg) = (Reading::of(x)?, Reading::of(grad)?);
        let dx = backward(&gpu(x)?, [rx.view()?, rg.view()?], [&means[0], &means[1]], sizes)?;
        Ok(Some(tensor(dx, x.shape().clone())))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::super::emulated::{Host, close, values};
    use super::*;

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn it_is_that_of_the_cpu() -> Result<()> {
        let host = Host::new();
        for (views, n, m, knots) in [(1, 1, 1, 2), (2, 9, 5, 17), (1, 100, 33, 8)] {
            let x: Vec<f32> = values(views * n * m, 1).iter().map(|v| v * 2.0).collect();
            let v = Var::from_tensor(&Tensor::from_vec(x.clone(), (views, n, m), &Device::Cpu)?)?;
            let want = crate::epps_pulley(&v, knots, 3.0)?;
            let grads = (&want * 0.7)?.backward()?;
            let sizes = Sizes { views, n, m, knots, dt: 3.0 / (knots - 1) as f64 };
            let bx = host.floats(DType::F32, &x, 1);
            let view = View { buffer: &bx, offset: 1 };
            let (y, means) = forward(&host, view, sizes)?;
            let what = format!("{views} {n} {m} {knots}");
            close(&what, &y.read(), &[want.to_scalar()?], 1e-5);
            let g = host.floats(DType::F32, &[0.7], 0);
            let dx = backward(&host, [view, View::all(&g)], [&means[0], &means[1]], sizes)?;
            let want = grads.get(&v).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            close(&format!("{what}: dx"), &dx.read(), &want, 1e-4);
        }
        Ok(())
    }
}
