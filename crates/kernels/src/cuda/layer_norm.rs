//! Layer normalisation along the last axis.

use candle_core::{DType, Result};

use super::columns;
use super::launch::{Arg, Engine, THREADS, View, int, kernel_of, launch};
use super::source::LAYER_NORM;
use super::tiles::Sizes;

/// Rows that a block takes, one a warp.
const ROWS: usize = THREADS as usize / 32;

/// The result, and the mean and 1 / √(var + eps) of every row, (rows) of `f32`.
pub(crate) struct Normed<B> {
    pub y: B,
    pub mean: B,
    pub scale: B,
}

/// Normalises `x` (rows, c) of `f32`; the result is of type `kind`. `affine`: weight and bias, (c).
pub(crate) fn forward<E: Engine>(
    e: &E,
    kind: DType,
    x: View<'_, E::Buffer>,
    affine: [View<'_, E::Buffer>; 2],
    (rows, c): (usize, usize),
    eps: f64,
) -> Result<Normed<E::Buffer>> {
    let mut out = Normed { y: e.alloc(kind, rows * c)?, mean: e.alloc(DType::F32, rows)?, scale: e.alloc(DType::F32, rows)? };
    let args = vec![
        x.arg(),
        affine[0].arg(),
        affine[1].arg(),
        Arg::Out(&mut out.y),
        Arg::Out(&mut out.mean),
        Arg::Out(&mut out.scale),
        Arg::Int(int("the number of features", c)?),
        Arg::Long(rows as i64),
        Arg::Float(eps as f32),
    ];
    // SAFETY: warps take rows below `rows` and their lanes columns below `c`.
    unsafe { launch(e, &LAYER_NORM, &kernel_of("layer_norm", kind)?, [rows.div_ceil(ROWS) as u32, 1, 1], THREADS, args)? };
    Ok(out)
}

/// The gradient to the input; `g`, of type `kind`, is that to the result. It is added to `add`, (rows, c) of `f32`, where there is one.
pub(crate) fn to_input<E: Engine>(
    e: &E,
    kind: DType,
    [x, g, weight]: [View<'_, E::Buffer>; 3],
    [mean, scale]: [View<'_, E::Buffer>; 2],
    add: Option<View<'_, E::Buffer>>,
    (rows, c): (usize, usize),
) -> Result<E::Buffer> {
    let mut dx = e.alloc(DType::F32, rows * c)?;
    let c = int("the number of features", c)?;
    let add = add.map_or(Arg::Null, View::arg);
    let stored = [mean.arg(), scale.arg(), add, Arg::Out(&mut dx), Arg::Int(c), Arg::Long(rows as i64)];
    let args = [x.arg(), weight.arg(), g.arg()].into_iter().chain(stored).collect();
    let grid = [rows.div_ceil(ROWS) as u32, 1, 1];
    // SAFETY: warps take rows below `rows` and their lanes columns below `c`.
    unsafe { launch(e, &LAYER_NORM, &kernel_of("layer_norm_input", kind)?, grid, THREADS, args)? };
    Ok(dx)
}

/// The gradients to weight and bias, (2, c).
pub(crate) fn to_affine<E: Engine>(
    e: &E,
    kind: DType,
    [x, g]: [View<'_, E::Buffer>; 2],
    [mean, scale]: [View<'_, E::Buffer>; 2],
    (rows, c): (usize, usize),
) -> Result<E::Buffer> {
    let sizes = Sizes { c, rows, groups: 1 };
    let t = sizes.tiling(x.aligned(4) && g.aligned(4));
    let mut parts = e.alloc(DType::F32, t.chunks * 2 * c)?;
    let mut args = vec![x.arg(), g.arg(), mean.arg(), scale.arg(), Arg::Out(&mut parts)];
    args.extend(t.args(sizes)?);
    // SAFETY: threads take columns below `c` and rows below `rows`; the parts have two places for each chunk and column.
    unsafe { launch(e, &LAYER_NORM, &t.kernel("layer_norm_parameters", kind)?, t.grid(sizes), THREADS, args)? };
    columns::finish(e, &parts, t.chunks, 2 * c)
}

#[cfg(feature = "cuda")]
pub(crate) use on_device::layer_norm;

#[cfg(feature = "cuda")]
mod on_device {
    use candle_core::{D, DType, Result, Tensor};

    use super::super::launch::View;
    use super::super::tensor::{Reading, gpu, recorded3, tensor};
    use super::{forward, to_affine, to_input};

    /// As [`crate::layer_norm`], of checked tensors on a CUDA device, with a result of type `kind`.
    pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, kind: DType) -> Result<Tensor> {
        let x = x.contiguous()?;
        let c = x.dim(D::Minus1)?;
        let sizes = (x.elem_count() / c.max(1), c);
        let (w, b) = (weight.detach().contiguous()?, bias.detach().contiguous()?);
        let out = {
            let (x, w, b) = (Reading::of(&x)?, Reading::of(&w)?, Reading::of(&b)?);
            forward(&gpu(weight)?, kind, x.view()?, [w.view()?, b.view()?], sizes, eps)?
        };
        let (mean, scale, shape) = (out.mean, out.scale, x.shape().clone());
        recorded3("layer-norm", [&x, weight, bias], out.y, shape, move |[x, weight, bias], _, grad| {
            let device = gpu(x)?;
            let inside = x.detach();
            let (rx, rg, rw) = (Reading::of(&inside)?, Reading::of(grad)?, Reading::of(&w)?);
            let rows = [View::all(&mean), View::all(&scale)];
            let dx = match x.track_op() {
                true => Some(to_input(&device, kind, [rx.view()?, rg.view()?, rw.view()?], rows, None, sizes)?),
                false => None,
            };
            let affine = match weight.track_op() || bias.track_op() {
                true => Some(tensor(to_affine(&device, kind, [rx.view()?, rg.view()?], rows, sizes)?, (2, c))),
                false => None,
            };
            let part = |i: usize| affine.as_ref().map(|both| both.get(i)).transpose();
            Ok([dx.map(|dx| tensor(dx, x.shape().clone())), part(0)?, part(1)?])
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
    fn it_is_that_of_the_cpu() -> Result<()> {
        let host = Host::new();
        for (rows, c) in [(0, 7), (1, 1), (9, 5), (17, 33), (300, 64), (12, 384)] {
            for (kind, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 1e-2)] {
                let x: Vec<f32> = values(rows * c, 1).iter().map(|v| v + 3.0).collect();
                let g = host.floats(kind, &values(rows * c, 2), 0).read();
                let (w, b) = (values(c, 3), values(c, 4));
                let of = |v: &[f32], shape: &[usize]| Tensor::from_vec(v.to_vec(), shape, &Device::Cpu)?.contiguous();
                let vars = [of(&x, &[rows, c])?, of(&w, &[c])?, of(&b, &[c])?];
                let vars = vars.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
                let want = crate::layer_norm(&vars[0], &vars[1], &vars[2], 1e-5)?;
                let (bx, bg) = (host.floats(DType::F32, &x, 4), host.floats(kind, &g, 4));
                let (vx, vg) = (View { buffer: &bx, offset: 4 }, View { buffer: &bg, offset: 4 });
                let (bw, bb) = (host.floats(DType::F32, &w, 0), host.floats(DType::F32, &b, 0));
                let out = forward(&host, kind, vx, [View::all(&bw), View::all(&bb)], (rows, c), 1e-5)?;
                let what = format!("{rows} x {c} {kind:?}");
                close(&what, &out.y.read(), &want.flatten_all()?.to_vec1()?, tolerance);
                let stored = [View::all(&out.mean), View::all(&out.scale)];
                let dx = to_input(&host, kind, [vx, vg, View::all(&bw)], stored, None, (rows, c))?;
                let add = host.floats(DType::F32, &values(rows * c, 5), 3);
                let both =
                    to_input(&host, kind, [vx, vg, View::all(&bw)], stored, Some(View { buffer: &add, offset: 3 }), (rows, c))?;
                let sum: Vec<f32> = dx.read().iter().zip(&add.read()[3..]).map(|(a, b)| a + b).collect();
                close(&format!("{what}, added"), &both.read(), &sum, 1e-6);
                let affine = to_affine(&host, kind, [vx, vg], stored, (rows, c))?.read();
                if rows == 0 {
                    assert_eq!(affine, vec![0.0; 2 * c], "nothing to sum");
                    continue;
                }
                let grads = (&want * of(&g, &[rows, c])?)?.sum_all()?.backward()?;
                let wanted = |i: usize| grads.get(&vars[i]).expect("a gradient").flatten_all()?.to_vec1::<f32>();
                if c > 1 {
                    close(&format!("{what}: dx"), &dx.read(), &wanted(0)?, tolerance);
                    close(&format!("{what}: dweight"), &affine[..c], &wanted(1)?, tolerance);
                }
                close(&format!("{what}: dbias"), &affine[c..], &wanted(2)?, tolerance);
            }
        }
        Ok(())
    }
}
