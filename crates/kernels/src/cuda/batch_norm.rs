//! Batch normalisation: statistics, the fused affine part, residual and ReLU, their gradients, and the running statistics.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, THREADS, View, int, launch};
use super::source::BATCH_NORM;
use super::tiles::Sizes;

/// Statistics of every group and channel, (groups, c) each.
pub(crate) struct Statistics<B> {
    pub mean: B,
    /// Biased.
    pub var: B,
    /// 1 / √(var + eps)
    pub scale: B,
}

/// The statistics of `x`, which has at least one row.
pub(crate) fn statistics<E: Engine>(
    e: &E,
    kind: DType,
    x: View<'_, E::Buffer>,
    sizes: Sizes,
    eps: f64,
) -> Result<Statistics<E::Buffer>> {
    let t = sizes.tiling(x.aligned(4));
    let parts = sizes.groups * t.chunks * sizes.c;
    let (mut means, mut squares) = (e.alloc(DType::F32, parts)?, e.alloc(DType::F32, parts)?);
    let mut args = vec![x.arg(), Arg::Out(&mut means), Arg::Out(&mut squares)];
    args.extend(t.args(sizes)?);
    // SAFETY: threads take channels below `c` and rows below the group's end; the parts have a place for each group, chunk and channel.
    unsafe { launch(e, &BATCH_NORM, &t.kernel("bn_partial", kind)?, t.grid(sizes), THREADS, args)? };
    let each = sizes.groups * sizes.c;
    let mut s =
        Statistics { mean: e.alloc(DType::F32, each)?, var: e.alloc(DType::F32, each)?, scale: e.alloc(DType::F32, each)? };
    let args = vec![
        Arg::In(&means, 0),
        Arg::In(&squares, 0),
        Arg::Out(&mut s.mean),
        Arg::Out(&mut s.var),
        Arg::Out(&mut s.scale),
        Arg::Int(int("the number of channels", sizes.c)?),
        Arg::Long(sizes.rows as i64),
        Arg::Long(t.chunk as i64),
        Arg::Int(t.chunks as i32),
        Arg::Float(eps as f32),
    ];
    // SAFETY: as above, and the results have a place for each group and channel.
    unsafe { launch(e, &BATCH_NORM, "bn_statistics", [sizes.c.div_ceil(32) as u32, 1, sizes.groups as u32], THREADS, args)? };
    Ok(s)
}

/// 1 / √(var + eps) of `c` variances.
pub(crate) fn scale<E: Engine>(e: &E, var: View<'_, E::Buffer>, c: usize, eps: f64) -> Result<E::Buffer> {
    let mut scale = e.alloc(DType::F32, c)?;
    let args = vec![var.arg(), Arg::Out(&mut scale), Arg::Int(int("the number of channels", c)?), Arg::Float(eps as f32)];
    // SAFETY: the kernel's threads stop at `c`.
    unsafe { launch(e, &BATCH_NORM, "bn_scale", [c.div_ceil(THREADS as usize) as u32, 1, 1], THREADS, args)? };
    Ok(scale)
}

/// The parts of a normalisation: `weight` and `bias` (c), `mean` and `scale` (groups, c).
pub(crate) struct Parts<'a, B> {
    pub weight: Option<View<'a, B>>,
    pub bias: Option<View<'a, B>>,
    pub mean: View<'a, B>,
    pub scale: View<'a, B>,
}

impl<B> Clone for Parts<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Parts<'_, B> {}

/// \[relu\]((x − mean) · scale · weight + bias \[+ residual\])
pub(crate) fn apply<E: Engine>(
    e: &E,
    kind: DType,
    x: View<'_, E::Buffer>,
    residual: Option<View<'_, E::Buffer>>,
    parts: Parts<'_, E::Buffer>,
    sizes: Sizes,
    relu: bool,
) -> Result<E::Buffer> {
    let t = sizes.tiling(x.aligned(4) && residual.is_none_or(|r| r.aligned(4)));
    let mut y = e.alloc(kind, sizes.len())?;
    let mut args = vec![
        x.arg(),
        Arg::maybe(residual),
        Arg::maybe(parts.weight),
        Arg::maybe(parts.bias),
        parts.mean.arg(),
        parts.scale.arg(),
        Arg::Out(&mut y),
    ];
    args.extend(t.args(sizes)?);
    args.push(Arg::Int(relu.into()));
    // SAFETY: threads take channels below `c` and rows below the group's end, which `x`, `y` and the residual have.
    unsafe { launch(e, &BATCH_NORM, &t.kernel("bn_apply", kind)?, t.grid(sizes), THREADS, args)? };
    Ok(y)
}

/// What a backward pass gives.
pub(crate) struct Gradients<B> {
    pub x: Option<B>,
    /// (c)
    pub weight: B,
    /// (c)
    pub bias: B,
    /// The gradient before the ReLU, where it was asked for and a ReLU was there; that of the result otherwise.
    pub cut: Option<B>,
}

/// What a backward pass is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// The gradient to the input.
    pub x: bool,
    /// The gradient before the ReLU, which is the residual's.
    pub cut: bool,
    /// Whether the statistics are functions of the input.
    pub from_batch: bool,
}

/// The gradients, given that to the result; `gate` is the result if a ReLU made it.
pub(crate) fn backward<E: Engine>(
    e: &E,
    kind: DType,
    [x, g]: [View<'_, E::Buffer>; 2],
    gate: Option<View<'_, E::Buffer>>,
    parts: Parts<'_, E::Buffer>,
    sizes: Sizes,
    wanted: Wanted,
) -> Result<Gradients<E::Buffer>> {
    let t = sizes.tiling(x.aligned(4) && g.aligned(4) && gate.is_none_or(|y| y.aligned(4)));
    let Sizes { c, rows, groups } = sizes;
    let part = groups * t.chunks * c;
    let (mut sums, mut products) = (e.alloc(DType::F32, part)?, e.alloc(DType::F32, part)?);
    let mut cut = (wanted.cut && gate.is_some()).then(|| e.alloc(kind, sizes.len())).transpose()?;
    let mut args = vec![g.arg(), Arg::maybe(gate), x.arg(), parts.mean.arg()];
    args.extend([cut.as_mut().map_or(Arg::Null, Arg::Out), Arg::Out(&mut sums), Arg::Out(&mut products)]);
    args.extend(t.args(sizes)?);
    // SAFETY: threads take channels below `c` and rows below the group's end; the parts have a place for each group, chunk and channel.
    unsafe { launch(e, &BATCH_NORM, &t.kernel("bn_sums", kind)?, t.grid(sizes), THREADS, args)? };

    let (mut weight, mut bias) = (e.alloc(DType::F32, c)?, e.alloc(DType::F32, c)?);
    let each = || e.alloc(DType::F32, groups * c);
    let (mut slope, mut along, mut shift) = (each()?, each()?, each()?);
    let channels = int("the number of channels", c)?;
    let args = vec![
        Arg::In(&sums, 0),
        Arg::In(&products, 0),
        Arg::maybe(parts.weight),
        parts.mean.arg(),
        parts.scale.arg(),
        Arg::Out(&mut weight),
        Arg::Out(&mut bias),
        Arg::Out(&mut slope),
        Arg::Out(&mut along),
        Arg::Out(&mut shift),
        Arg::Int(channels),
        Arg::Long(rows as i64),
        Arg::Int(t.chunks as i32),
        Arg::Int(int("the number of groups", groups)?),
        Arg::Int(wanted.from_batch.into()),
    ];
    // SAFETY: as above, and the results have a place for each channel, or each group and channel.
    unsafe { launch(e, &BATCH_NORM, "bn_backward", [c.div_ceil(32) as u32, 1, 1], THREADS, args)? };
    if !wanted.x {
        return Ok(Gradients { x: None, weight, bias, cut });
    }

    let mut dx = e.alloc(kind, sizes.len())?;
    // Where the gradient before the ReLU was written, it needs no gate any more.
    let (g, gate) = match &cut {
        Some(cut) => (View::all(cut), None),
        None => (g, gate),
    };
    let mut args = vec![g.arg(), Arg::maybe(gate), x.arg(), Arg::In(&slope, 0), Arg::In(&along, 0), Arg::In(&shift, 0)];
    args.push(Arg::Out(&mut dx));
    args.extend(t.args(sizes)?);
    // SAFETY: threads take channels below `c` and rows below the group's end, which all of them have.
    unsafe { launch(e, &BATCH_NORM, &t.kernel("bn_input", kind)?, t.grid(sizes), THREADS, args)? };
    Ok(Gradients { x: Some(dx), weight, bias, cut })
}

/// Moves running statistics (c) by those of the groups in their order, in place: r = (1 − momentum) r + momentum s, with the variance times
/// `unbiased`.
pub(crate) fn running<E: Engine>(
    e: &E,
    [mean, var]: [View<'_, E::Buffer>; 2],
    [running_mean, running_var]: [View<'_, E::Buffer>; 2],
    (c, groups): (usize, usize),
    momentum: f64,
    unbiased: f64,
) -> Result<()> {
    let args = vec![
        mean.arg(),
        var.arg(),
        Arg::Changed(running_mean.buffer, running_mean.offset),
        Arg::Changed(running_var.buffer, running_var.offset),
        Arg::Int(int("the number of channels", c)?),
        Arg::Int(int("the number of groups", groups)?),
        Arg::Float(momentum as f32),
        Arg::Float(unbiased as f32),
    ];
    // SAFETY: the kernel's threads stop at `c`; the statistics have `groups` times as many.
    unsafe { launch(e, &BATCH_NORM, "bn_running", [c.div_ceil(THREADS as usize) as u32, 1, 1], THREADS, args) }
}

#[cfg(feature = "cuda")]
pub(crate) use on_device::{eval, take_up, train};

#[cfg(feature = "cuda")]
mod on_device {
    use candle_core::backend::BackendDevice;
    use candle_core::{D, DType, Result, Shape, Tensor, Var};

    use super::super::tensor::{Reading, gpu, recorded2, recorded3, tensor};
    use super::{Parts, Sizes, Wanted, apply, backward, running, scale, statistics};
    use crate::batch_norm::{BatchNormConfig, BatchNormOutput};

    /// As [`crate::batch_norm_train`], of checked tensors on a CUDA device.
    pub(crate) fn train(
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        config: BatchNormConfig,
    ) -> Result<BatchNormOutput> {
        let x = x.contiguous()?;
        let c = x.dim(D::Minus1)?;
        let sizes = Sizes { c, rows: x.elem_count() / c / config.groups, groups: config.groups };
        let s = statistics(&gpu(&x)?, x.dtype(), Reading::of(&x)?.view()?, sizes, config.eps)?;
        let of = |buffer| tensor(buffer, (config.groups, c));
        let (mean, var, scale) = (of(s.mean), of(s.var), of(s.scale));
        let affine = Affine { weight: made(weight)?, bias: made(bias)?, mean: mean.clone(), scale };
        let y = affine.graph(&x, [weight, bias], residual, sizes, config.relu, true)?;
        Ok(BatchNormOutput { y, mean, var })
    }

    /// As [`crate::batch_norm_eval`], of checked tensors on a CUDA device.
    pub(crate) fn eval(
        x: &Tensor,
        [mean, var]: [&Tensor; 2],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        config: BatchNormConfig,
    ) -> Result<Tensor> {
        let (x, var) = (x.contiguous()?, var.detach().contiguous()?);
        let c = x.dim(D::Minus1)?;
        let sizes = Sizes { c, rows: x.elem_count().checked_div(c).unwrap_or(0), groups: 1 };
        let scale = tensor(scale(&gpu(&x)?, Reading::of(&var)?.view()?, c, config.eps)?, c);
        let affine = Affine { weight: made(weight)?, bias: made(bias)?, mean: mean.detach().contiguous()?, scale };
        affine.graph(&x, [weight, bias], residual, sizes, config.relu, false)
    }

    /// As [`crate::update::running_statistics`], of checked tensors on a CUDA device.
    pub(crate) fn take_up(seen: [&Tensor; 2], stored: [&Var; 2], momentum: f64, unbiased: f64) -> Result<()> {
        let (groups, c) = seen[0].dims2()?;
        let (mean, var) = (seen[0].detach().contiguous()?, seen[1].detach().contiguous()?);
        let (mean_to, var_to) = (stored[0].detach(), stored[1].detach());
        let (from, to) = ((Reading::of(&mean)?, Reading::of(&var)?), (Reading::of(&mean_to)?, Reading::of(&var_to)?));
        let (from, to) = ([from.0.view()?, from.1.view()?], [to.0.view()?, to.1.view()?]);
        running(&gpu(&mean)?, from, to, (c, groups), momentum, unbiased)
    }

    fn made(t: Option<&Tensor>) -> Result<Option<Tensor>> {
        t.map(|t| t.detach().contiguous()).transpose()
    }

    /// The parts of one normalisation, without a graph.
    struct Affine {
        weight: Option<Tensor>,
        bias: Option<Tensor>,
        mean: Tensor,
        scale: Tensor,
    }

    impl Affine {
        /// Calls `f` with the parts locked.
        fn with<R>(&self, f: impl FnOnce(Parts<'_, candle_core::CudaStorage>) -> Result<R>) -> Result<R> {
            let weight = self.weight.as_ref().map(Reading::of).transpose()?;
            let bias = self.bias.as_ref().map(Reading::of).transpose()?;
            let (mean, scale) = (Reading::of(&self.mean)?, Reading::of(&self.scale)?);
            f(Parts {
                weight: weight.as_ref().map(Reading::view).transpose()?,
                bias: bias.as_ref().map(Reading::view).transpose()?,
                mean: mean.view()?,
                scale: scale.view()?,
            })
        }

        /// The result, with its backward pass.
        fn graph(
            self,
            x: &Tensor,
            [weight, bias]: [Option<&Tensor>; 2],
            residual: Option<&Tensor>,
            sizes: Sizes,
            relu: bool,
            from_batch: bool,
        ) -> Result<Tensor> {
            let (device, kind) = (gpu(x)?, x.dtype());
            let residual = residual.map(|r| r.to_dtype(kind)?.contiguous()).transpose()?;
            let y = {
                let (reading, added) = (Reading::of(x)?, residual.as_ref().map(Reading::of).transpose()?);
                let added = added.as_ref().map(Reading::view).transpose()?;
                self.with(|parts| apply(&device, kind, reading.view()?, added, parts, sizes, relu))?
            };
            let parameters = pair(weight, bias, sizes.c, x)?;
            let shape = x.shape().clone();
            let back = move |x: &Tensor, y: &Tensor, grad: &Tensor, need: [bool; 2]| -> Result<[Option<Tensor>; 3]> {
                let wanted = Wanted { x: need[0], cut: need[1], from_batch };
                let x = x.detach();
                let (rx, rg, ry) = (Reading::of(&x)?, Reading::of(grad)?, Reading::of(y)?);
                let gate = if relu { Some(ry.view()?) } else { None };
                let views = [rx.view()?, rg.view()?];
                let grads = self.with(|parts| backward(&gpu(&x)?, kind, views, gate, parts, sizes, wanted))?;
                let dp = Tensor::stack(&[tensor(grads.weight, sizes.c), tensor(grads.bias, sizes.c)], 0)?;
                let dr = need[1].then(|| grads.cut.map_or_else(|| grad.clone(), |cut| tensor(cut, x.shape().clone())));
                Ok([grads.x.map(|dx| tensor(dx, x.shape().clone())), Some(dp), dr])
            };
            match &residual {
                None => recorded2("batch-norm", [x, &parameters], y, shape, move |[x, p], y, grad| {
                    let [dx, dp, _] = back(x, y, grad, [x.track_op(), false])?;
                    Ok([dx, dp.filter(|_| p.track_op())])
                }),
                Some(residual) => recorded3("batch-norm", [x, &parameters, residual], y, shape, move |[x, p, r], y, grad| {
                    let [dx, dp, dr] = back(x, y, grad, [x.track_op(), r.track_op()])?;
                    Ok([dx, dp.filter(|_| p.track_op()), dr])
                }),
            }
        }
    }

    /// Weight and bias as one tensor (2, c) of the graph, since an operation has three inputs at most. Its
    /// values, which the kernels do not read, since they take the two themselves, are zeros.
    fn pair(weight: Option<&Tensor>, bias: Option<&Tensor>, c: usize, on: &Tensor) -> Result<Tensor> {
        let zeros = || Tensor::zeros(c, DType::F32, on.device());
        let (weight, bias) = match (weight, bias) {
            (None, None) => return Tensor::zeros((2, c), DType::F32, on.device()),
            (weight, bias) => (weight.cloned().map_or_else(zeros, Ok)?, bias.cloned().map_or_else(zeros, Ok)?),
        };
        let nothing = gpu(on)?.0.zeros_impl(&Shape::from((2, c)), DType::F32)?;
        recorded2("affine", [&weight, &bias], nothing, (2, c), |[w, b], _, grad| {
            let part = |i: usize, t: &Tensor| if t.track_op() { grad.get(i).map(Some) } else { Ok(None) };
            Ok([part(0, w)?, part(1, b)?])
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::super::emulated::{Host, HostBuffer, close, values};
    use super::*;
    use crate::{BatchNormConfig, batch_norm_eval, batch_norm_train};

    fn tensor(v: &[f32], shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(v.to_vec(), shape, &Device::Cpu)
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn training_is_that_of_the_cpu() -> Result<()> {
        let host = Host::new();
        // Channels that fill no pack, one pack, several tiles; rows that fill no chunk and many.
        for (c, rows, groups) in
            [(1, 2, 1), (3, 7, 2), (4, 1, 1), (19, 133, 1), (64, 5, 3), (68, 700, 2), (260, 66, 1), (16, 3000, 2)]
        {
            for (with_residual, relu, kind) in
                [(false, false, DType::F32), (true, true, DType::F32), (false, true, DType::F32), (true, true, DType::BF16)]
            {
                let n = groups * rows * c;
                let sizes = Sizes { c, rows, groups };
                // A large mean, which a sum of squares alone would cancel away.
                let round = |v: Vec<f32>| host.floats(kind, &v, 0).read();
                let lift = if kind == DType::F32 { 50.0 } else { 1.0 };
                let x = round(values(n, 1).iter().map(|v| v + lift).collect());
                let (r, g) = (round(values(n, 2)), round(values(n, 3)));
                let (w, b) = (values(c, 4), values(c, 5));
                let shape = [groups * rows, c];
                let vars: Vec<Var> = [tensor(&x, &shape)?, tensor(&w, &[c])?, tensor(&b, &[c])?, tensor(&r, &shape)?]
                    .iter()
                    .map(Var::from_tensor)
                    .collect::<Result<_>>()?;
                let config = BatchNormConfig { eps: 1e-5, relu, groups };
                let residual = with_residual.then(|| vars[3].as_tensor());
                let want = batch_norm_train(&vars[0], Some(&vars[1]), Some(&vars[2]), residual, config)?;
                let grads = (&want.y * tensor(&g, &shape)?)?.sum_all()?.backward()?;
                let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
                let of = |v: &Var| flat(grads.get(v).expect("a gradient"));

                let offset = if c == 64 { 1 } else { 4 };
                let floats = |v: &[f32], kind| host.floats(kind, v, offset);
                let view = |buffer| View { buffer, offset };
                let (bx, br, bg) = (floats(&x, kind), floats(&r, kind), floats(&g, kind));
                let (bw, bb) = (floats(&w, DType::F32), floats(&b, DType::F32));
                let s = statistics(&host, kind, view(&bx), sizes, 1e-5)?;
                let what = format!("c {c} rows {rows} groups {groups} {kind:?} relu {relu} residual {with_residual}");
                close(&format!("{what}: mean"), &s.mean.read(), &flat(&want.mean)?, 1e-6);
                let exact = if rows == 1 { 1.0 } else { 2e-4 };
                close(&format!("{what}: var"), &s.var.read(), &flat(&want.var)?, exact);
                let parts = Parts {
                    weight: Some(view(&bw)),
                    bias: Some(view(&bb)),
                    mean: View::all(&s.mean),
                    scale: View::all(&s.scale),
                };
                let y = apply(&host, kind, view(&bx), with_residual.then(|| view(&br)), parts, sizes, relu)?;
                let tolerance = if kind == DType::F32 { 1e-3 } else { 1e-2 };
                close(&format!("{what}: y"), &y.read(), &flat(&want.y)?, tolerance);
                let gate = relu.then(|| View::all(&y));
                let wanted = Wanted { x: true, cut: with_residual, from_batch: true };
                let got = backward(&host, kind, [view(&bx), view(&bg)], gate, parts, sizes, wanted)?;
                let buffer = |b: &Option<HostBuffer>| b.as_ref().expect("asked for").read();
                if rows > 2 {
                    close(&format!("{what}: dx"), &buffer(&got.x), &of(&vars[0])?, 2.0 * tolerance);
                    close(&format!("{what}: dweight"), &got.weight.read(), &of(&vars[1])?, 2.0 * tolerance);
                }
                close(&format!("{what}: dbias"), &got.bias.read(), &of(&vars[2])?, 2.0 * tolerance);
                if with_residual {
                    close(&format!("{what}: dresidual"), &buffer(&got.cut), &of(&vars[3])?, tolerance);
                }
            }
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn evaluation_and_running_statistics_are_those_of_the_cpu() -> Result<()> {
        let host = Host::new();
        for (c, rows) in [(5, 0), (5, 9), (64, 33)] {
            let (x, g) = (values(rows * c, 1), values(rows * c, 2));
            let (mean, var) = (values(c, 3), values(c, 4).iter().map(|v| v.abs() + 0.1).collect::<Vec<_>>());
            let v = Var::from_tensor(&tensor(&x, &[rows, c])?)?;
            let config = BatchNormConfig { eps: 1e-3, relu: true, groups: 1 };
            let want = batch_norm_eval(&v, &tensor(&mean, &[c])?, &tensor(&var, &[c])?, None, None, None, config)?;
            let (bx, bg) = (host.floats(DType::F32, &x, 0), host.floats(DType::F32, &g, 0));
            let (bm, bv) = (host.floats(DType::F32, &mean, 0), host.floats(DType::F32, &var, 0));
            let scale = scale(&host, View::all(&bv), c, 1e-3)?;
            let parts = Parts { weight: None, bias: None, mean: View::all(&bm), scale: View::all(&scale) };
            let sizes = Sizes { c, rows, groups: 1 };
            let y = apply(&host, DType::F32, View::all(&bx), None, parts, sizes, true)?;
            close("eval", &y.read(), &want.flatten_all()?.to_vec1()?, 1e-6);
            if rows > 0 {
                let grads = (&want * tensor(&g, &[rows, c])?)?.sum_all()?.backward()?;
                let wanted = Wanted { x: true, cut: false, from_batch: false };
                let views = [View::all(&bx), View::all(&bg)];
                let got = backward(&host, DType::F32, views, Some(View::all(&y)), parts, sizes, wanted)?;
                let dx = grads.get(&v).expect("a gradient").flatten_all()?.to_vec1()?;
                close("eval: dx", &got.x.expect("asked for").read(), &dx, 1e-6);
            }
            let seen = [values(2 * c, 6), values(2 * c, 7)].map(|v| host.floats(DType::F32, &v, 0));
            running(&host, [View::all(&seen[0]), View::all(&seen[1])], [View::all(&bm), View::all(&bv)], (c, 2), 0.1, 1.25)?;
            let moved = |from: &[f32], seen: &[f32], factor: f32| -> Vec<f32> {
                let next = |r: f32, s: f32| r * 0.9 + s * factor * 0.1;
                from.iter().enumerate().map(|(i, &r)| next(next(r, seen[i]), seen[c + i])).collect()
            };
            close("running mean", &bm.read(), &moved(&mean, &seen[0].read(), 1.0), 1e-6);
            close("running variance", &bv.read(), &moved(&var, &seen[1].read(), 1.25), 1e-6);
        }
        Ok(())
    }
}
