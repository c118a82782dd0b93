//! Residual blocks as one operation whose backward pass is driven here: candle's would start the gradient of every activation with zeros and add
//! to them, which is more memory traffic than the gradients themselves.
//!
//! What the convolutions and norms are is left to [`Primitives`]: those of a CUDA device, or, in the tests, of the processor.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use super::graph::{Given, handed2, parameters};
use crate::block::{BlockParts, ConvBlockOutput, ConvNorm, NormStatistics, Shortcut};
use crate::conv::Geometry;

/// The parts of a block's passes, of tensors without a graph.
pub(crate) trait Primitives: Send + Sync + 'static {
    /// A convolution's weight as [`Primitives::conv`] takes it, for activations of type `kind`.
    fn filter(&self, weight: &Tensor, kind: DType) -> Result<Tensor>;
    /// The convolution.
    fn conv(&self, geometry: Geometry, x: &Tensor, filter: &Tensor) -> Result<Tensor>;
    /// Its gradient to the input.
    fn conv_input(&self, geometry: Geometry, g: &Tensor, filter: &Tensor) -> Result<Tensor>;
    /// Its gradient to the weight, of the weight's own shape and type.
    fn conv_weight(&self, geometry: Geometry, x: &Tensor, g: &Tensor) -> Result<Tensor>;
    /// Batch norm by the batch's statistics, the residual added, negative values cut if `relu`.
    fn norm(&self, x: &Tensor, affine: [&Tensor; 2], residual: Option<&Tensor>, settings: Settings, relu: bool)
    -> Result<Normed>;
    /// Its gradients; `gate` is the result if a ReLU made it.
    fn norm_backward(&self, layer: &Norm, g: &Tensor, gate: Option<&Tensor>, cut: bool) -> Result<NormGradients>;
    /// a + b, which may take the place of `a`.
    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor>;
}

/// Settings of all norms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub eps: f64,
    pub groups: usize,
}

/// What a norm's forward pass gives: the result, and mean, variance and 1 / √(variance + eps), (groups, C).
pub(crate) struct Normed {
    pub y: Tensor,
    pub mean: Tensor,
    pub var: Tensor,
    pub scale: Tensor,
}

/// What a norm's backward pass needs.
pub(crate) struct Norm {
    pub x: Tensor,
    pub weight: Tensor,
    pub mean: Tensor,
    pub scale: Tensor,
    pub groups: usize,
}

/// What it gives.
pub(crate) struct NormGradients {
    pub x: Tensor,
    pub weight: Tensor,
    pub bias: Tensor,
    /// The gradient before the ReLU, if it was asked for.
    pub cut: Option<Tensor>,
}

/// A layer between the passes.
struct Layer {
    geometry: Geometry,
    input: Tensor,
    filter: Tensor,
    norm: Norm,
}

/// A block between the passes: the layers of its path with their results, and its shortcut.
struct Block {
    path: Vec<(Layer, Tensor)>,
    side: Option<Layer>,
    identity: bool,
}

/// As [`crate::conv_blocks`], of checked tensors; `x` in the type that activations have.
pub(crate) fn conv_blocks<P: Primitives>(
    p: P,
    x: &Tensor,
    blocks: &[BlockParts<'_>],
    settings: Settings,
) -> Result<ConvBlockOutput> {
    let layers: Vec<&ConvNorm<'_>> = blocks.iter().flat_map(layers_of).collect();
    let track = x.track_op() || layers.iter().any(|l| l.weight.track_op() || l.scale.track_op() || l.shift.track_op());
    let mut statistics = Vec::with_capacity(layers.len());
    let mut kept = Vec::with_capacity(blocks.len());
    let mut y = x.detach().contiguous()?;
    for block in blocks {
        let (next, record) = forward(&p, &y, block, settings, &mut statistics)?;
        y = next;
        if track {
            kept.push(record);
        }
    }
    if !track {
        return Ok(ConvBlockOutput { y, statistics });
    }
    let given = Given::default();
    let all: Vec<&Tensor> = layers.iter().flat_map(|l| [l.weight, l.scale, l.shift]).collect();
    let token = parameters(&all, &given)?;
    let kept = Mutex::new(Some(kept));
    let y = handed2("conv-blocks", [x, &token], &y, move |[x, token], grad| {
        let Some(kept) = kept.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("conv_block: the backward pass runs once for a forward pass")
        };
        let (dx, all) = backward(&p, kept, grad, x.track_op())?;
        *given.lock().unwrap_or_else(PoisonError::into_inner) = all.into_iter().flatten().map(Some).collect();
        Ok([dx, Some(token.zeros_like()?)])
    })?;
    Ok(ConvBlockOutput { y, statistics })
}

/// The layers of a block in the order of their statistics: the path, then the shortcut.
fn layers_of<'a>(block: &'a BlockParts<'a>) -> impl Iterator<Item = &'a ConvNorm<'a>> {
    let side = match &block.shortcut {
        Shortcut::ConvNorm(layer) => Some(layer),
        _ => None,
    };
    block.path.iter().chain(side)
}

fn forward<P: Primitives>(
    p: &P,
    x: &Tensor,
    block: &BlockParts<'_>,
    settings: Settings,
    statistics: &mut Vec<NormStatistics>,
) -> Result<(Tensor, Block)> {
    let run = |x: &Tensor, layer: &ConvNorm<'_>, residual: Option<&Tensor>, relu: bool| -> Result<_> {
        let geometry = Geometry::of_sizes(x.dims(), layer.weight.dims(), layer.config)?;
        let filter = p.filter(&layer.weight.detach(), x.dtype())?;
        let c = p.conv(geometry, x, &filter)?;
        let (scale, shift) = (layer.scale.detach(), layer.shift.detach());
        let out = p.norm(&c, [&scale, &shift], residual, settings, relu)?;
        let count = geometry.n / settings.groups * geometry.oh * geometry.ow;
        let seen = NormStatistics { mean: out.mean.clone(), var: out.var, count };
        let norm = Norm { x: c, weight: scale, mean: out.mean, scale: out.scale, groups: settings.groups };
        Ok((out.y, Layer { geometry, input: x.clone(), filter, norm }, seen))
    };
    let (side, residual, last) = match &block.shortcut {
        Shortcut::None => (None, None, None),
        Shortcut::Identity => (None, Some(x.clone()), None),
        Shortcut::ConvNorm(layer) => {
            let (y, layer, seen) = run(x, layer, None, false)?;
            (Some(layer), Some(y), Some(seen))
        }
    };
    let (mut y, mut path) = (x.clone(), Vec::with_capacity(block.path.len()));
    for (i, layer) in block.path.iter().enumerate() {
        let (next, layer, seen) = run(&y, layer, residual.as_ref().filter(|_| i + 1 == block.path.len()), true)?;
        statistics.push(seen);
        path.push((layer, next.clone()));
        y = next;
    }
    statistics.extend(last);
    Ok((y, Block { path, side, identity: matches!(block.shortcut, Shortcut::Identity) }))
}

/// The gradient to the input, if `to_x`, and those of all layers. What is kept of a block is freed once its gradients are made.
fn backward<P: Primitives>(p: &P, kept: Vec<Block>, grad: &Tensor, to_x: bool) -> Result<(Option<Tensor>, Vec<[Tensor; 3]>)> {
    // From the last block to the first, to be turned around.
    let mut all = Vec::new();
    let mut g = Some(grad.clone());
    let count = kept.len();
    for (place, block) in kept.into_iter().rev().enumerate() {
        let Some(grad) = g.take() else { bail!("internal: a block's gradient is missing") };
        let wanted = to_x || place + 1 < count;
        let Block { path, side, identity } = block;
        let mut of_path = Vec::with_capacity(path.len());
        let (mut down, mut cut) = (Some(grad), None);
        let length = path.len();
        for (i, (layer, y)) in path.into_iter().enumerate().rev() {
            let Some(g) = down.take() else { bail!("internal: a layer's gradient is missing") };
            let at_end = i + 1 == length && (side.is_some() || identity);
            let (dx, triple, before) = through(p, &layer, &g, Some(&y), at_end, wanted || i > 0)?;
            of_path.push(triple);
            cut = cut.or(before);
            down = dx;
        }
        of_path.reverse();
        let mut to_input = down;
        if let (Some(layer), Some(cut)) = (&side, &cut) {
            let (dx, triple, _) = through(p, layer, cut, None, false, wanted)?;
            of_path.push(triple);
            to_input = joined(p, to_input, dx.as_ref())?;
        } else if identity {
            to_input = joined(p, to_input, cut.as_ref())?;
        }
        of_path.reverse();
        all.extend(of_path);
        g = to_input;
    }
    all.reverse();
    Ok((g.filter(|_| to_x), all))
}

/// Through a norm and its convolution: the gradient to the input, if wanted, those of the parameters, and that before the ReLU.
fn through<P: Primitives>(
    p: &P,
    layer: &Layer,
    g: &Tensor,
    gate: Option<&Tensor>,
    cut: bool,
    wanted: bool,
) -> Result<(Option<Tensor>, [Tensor; 3], Option<Tensor>)> {
    let norm = p.norm_backward(&layer.norm, g, gate, cut)?;
    let weight = p.conv_weight(layer.geometry, &layer.input, &norm.x)?;
    let dx = wanted.then(|| p.conv_input(layer.geometry, &norm.x, &layer.filter)).transpose()?;
    Ok((dx, [weight, norm.weight, norm.bias], norm.cut))
}

fn joined<P: Primitives>(p: &P, a: Option<Tensor>, b: Option<&Tensor>) -> Result<Option<Tensor>> {
    match (a, b) {
        (Some(a), Some(b)) => p.add(a, b).map(Some),
        (a, b) => Ok(a.or_else(|| b.cloned())),
    }
}

#[cfg(feature = "cudnn")]
pub(crate) use on_device::OnDevice;

#[cfg(feature = "cudnn")]
mod on_device {
    use candle_core::{D, DType, Result, Tensor};

    use super::super::batch_norm::{Parts, Wanted, apply, backward, statistics};
    use super::super::conv::{Pass, any_layout};
    use super::super::elementwise;
    use super::super::filter::on_device::{from_channels_last, to_channels_last};
    use super::super::tensor::{Reading, gpu, tensor};
    use super::super::tiles::Sizes;
    use super::{Norm, NormGradients, Normed, Primitives, Settings};
    use crate::conv::Geometry;

    /// cuDNN's convolutions and the norms' kernels.
    pub(crate) struct OnDevice;

    fn sizes(x: &Tensor, groups: usize) -> Result<Sizes> {
        let c = x.dim(D::Minus1)?;
        Ok(Sizes { c, rows: x.elem_count() / c.max(1) / groups, groups })
    }

    impl Primitives for OnDevice {
        fn filter(&self, weight: &Tensor, kind: DType) -> Result<Tensor> {
            to_channels_last(weight, kind)
        }

        fn conv(&self, geometry: Geometry, x: &Tensor, filter: &Tensor) -> Result<Tensor> {
            let Geometry { n, oh, ow, o, .. } = geometry;
            Ok(tensor(any_layout(geometry, Pass::Forward, [x, filter])?, (n, oh, ow, o)))
        }

        fn conv_input(&self, geometry: Geometry, g: &Tensor, filter: &Tensor) -> Result<Tensor> {
            let Geometry { n, h, w, c, .. } = geometry;
            Ok(tensor(any_layout(geometry, Pass::Data, [g, filter])?, (n, h, w, c)))
        }

        fn conv_weight(&self, geometry: Geometry, x: &Tensor, g: &Tensor) -> Result<Tensor> {
            let Geometry { o, kh, kw, c, config, .. } = geometry;
            let dw = tensor(any_layout(geometry, Pass::Weight, [x, g])?, (o, kh, kw, c / config.groups));
            from_channels_last(&dw, DType::F32)
        }

        fn norm(
            &self,
            x: &Tensor,
            [weight, bias]: [&Tensor; 2],
            residual: Option<&Tensor>,
            settings: Settings,
            relu: bool,
        ) -> Result<Normed> {
            let (device, kind, sizes) = (gpu(x)?, x.dtype(), sizes(x, settings.groups)?);
            let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
            let rx = Reading::of(x)?;
            let s = statistics(&device, kind, rx.view()?, sizes, settings.eps)?;
            let of = |buffer| tensor(buffer, (sizes.groups, sizes.c));
            let (mean, var, scale) = (of(s.mean), of(s.var), of(s.scale));
            let y = {
                let (rw, rb, rm, rs) = (Reading::of(&weight)?, Reading::of(&bias)?, Reading::of(&mean)?, Reading::of(&scale)?);
                let parts = Parts { weight: Some(rw.view()?), bias: Some(rb.view()?), mean: rm.view()?, scale: rs.view()? };
                let residual = residual.map(Reading::of).transpose()?;
                let residual = residual.as_ref().map(Reading::view).transpose()?;
                tensor(apply(&device, kind, rx.view()?, residual, parts, sizes, relu)?, x.shape().clone())
            };
            Ok(Normed { y, mean, var, scale })
        }

        fn norm_backward(&self, layer: &Norm, g: &Tensor, gate: Option<&Tensor>, cut: bool) -> Result<NormGradients> {
            let (kind, sizes) = (layer.x.dtype(), sizes(&layer.x, layer.groups)?);
            let weight = layer.weight.contiguous()?;
            let (rx, rg) = (Reading::of(&layer.x)?, Reading::of(g)?);
            let (rw, rm, rs) = (Reading::of(&weight)?, Reading::of(&layer.mean)?, Reading::of(&layer.scale)?);
            let parts = Parts { weight: Some(rw.view()?), bias: None, mean: rm.view()?, scale: rs.view()? };
            let gate = gate.map(Reading::of).transpose()?;
            let gate = gate.as_ref().map(Reading::view).transpose()?;
            let wanted = Wanted { x: true, cut, from_batch: true };
            let found = backward(&gpu(g)?, kind, [rx.view()?, rg.view()?], gate, parts, sizes, wanted)?;
            let Some(dx) = found.x else { candle_core::bail!("internal: batch norm gave no gradient to its input") };
            let shape = layer.x.shape();
            Ok(NormGradients {
                x: tensor(dx, shape.clone()),
                weight: tensor(found.weight, sizes.c),
                bias: tensor(found.bias, sizes.c),
                cut: found.cut.map(|cut| tensor(cut, shape.clone())),
            })
        }

        fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
            {
                let (ra, rb) = (Reading::of(&a)?, Reading::of(b)?);
                elementwise::add(&gpu(&a)?, a.dtype(), ra.view()?, rb.view()?, a.elem_count())?;
            }
            Ok(a)
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::{BatchNormConfig, Conv2dConfig, Keep, batch_norm_train, conv2d};

    /// The crate's own operations, differentiated one by one by candle.
    struct OneByOne(f64);

    fn gradient(y: &Tensor, g: &Tensor, to: &Var) -> Result<Tensor> {
        let grads = (y * g)?.sum_all()?.backward()?;
        Ok(grads.get(to).expect("a gradient").detach())
    }

    impl Primitives for OneByOne {
        fn filter(&self, weight: &Tensor, _: DType) -> Result<Tensor> {
            Ok(weight.clone())
        }

        fn conv(&self, geometry: Geometry, x: &Tensor, filter: &Tensor) -> Result<Tensor> {
            conv2d(x, filter, geometry.config)
        }

        fn conv_input(&self, geometry: Geometry, g: &Tensor, filter: &Tensor) -> Result<Tensor> {
            let x = Var::zeros((geometry.n, geometry.h, geometry.w, geometry.c), DType::F32, &Device::Cpu)?;
            gradient(&conv2d(&x, filter, geometry.config)?, g, &x)
        }

        fn conv_weight(&self, geometry: Geometry, x: &Tensor, g: &Tensor) -> Result<Tensor> {
            let Geometry { o, c, kh, kw, config, .. } = geometry;
            let w = Var::zeros((o, c / config.groups, kh, kw), DType::F32, &Device::Cpu)?;
            gradient(&conv2d(x, &w, config)?, g, &w)
        }

        fn norm(&self, x: &Tensor, [w, b]: [&Tensor; 2], residual: Option<&Tensor>, s: Settings, relu: bool) -> Result<Normed> {
            let config = BatchNormConfig { eps: s.eps, relu, groups: s.groups };
            let out = batch_norm_train(x, Some(w), Some(b), residual, config)?;
            Ok(Normed { y: out.y, scale: (&out.var + s.eps)?.sqrt()?.recip()?, mean: out.mean, var: out.var })
        }

        fn norm_backward(&self, layer: &Norm, g: &Tensor, gate: Option<&Tensor>, cut: bool) -> Result<NormGradients> {
            let g = match gate {
                Some(y) => y.gt(0f32)?.where_cond(g, &g.zeros_like()?)?,
                None => g.clone(),
            };
            let (x, w) = (Var::from_tensor(&layer.x)?, Var::from_tensor(&layer.weight)?);
            let b = Var::zeros(w.dims(), DType::F32, &Device::Cpu)?;
            let config = BatchNormConfig { eps: self.0, relu: false, groups: layer.groups };
            let y = batch_norm_train(&x, Some(&w), Some(&b), None, config)?.y;
            let [x, weight, bias] = [gradient(&y, &g, &x)?, gradient(&y, &g, &w)?, gradient(&y, &g, &b)?];
            Ok(NormGradients { x, weight, bias, cut: cut.then_some(g) })
        }

        fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
            a + b
        }
    }

    fn var(shape: &[usize], seed: u64) -> Result<Var> {
        let count = shape.iter().product();
        let values = (0..count).map(|i| ((i as f64 + 1.0) * (seed as f64 + 0.7) * 0.618).sin() as f32).collect::<Vec<_>>();
        Var::from_vec(values, shape, &Device::Cpu)
    }

    #[test]
    fn gradients_are_those_of_the_fused_operation() -> Result<()> {
        let conv = |stride, padding| Conv2dConfig { stride, padding, ..Conv2dConfig::default() };
        let weights = [[6, 4, 3, 3], [6, 6, 3, 3], [6, 6, 3, 3], [8, 6, 3, 3], [8, 8, 3, 3], [8, 6, 1, 1]];
        let mut vars = vec![var(&[4, 7, 6, 4], 1)?];
        for (i, w) in weights.iter().enumerate() {
            vars.push(var(w, 10 + i as u64)?);
            vars.push(var(&w[..1], 20 + i as u64)?);
            vars.push(var(&w[..1], 30 + i as u64)?);
        }
        let tensors = |i: usize| [0, 1, 2].map(|j| vars[1 + 3 * i + j].as_tensor().clone());
        let owned: Vec<[Tensor; 3]> = (0..weights.len()).map(tensors).collect();
        let of = |i: usize, config| {
            let [weight, scale, shift] = &owned[i];
            ConvNorm { weight, scale, shift, config }
        };
        let blocks = [
            BlockParts { path: vec![of(0, conv(1, 1))], shortcut: Shortcut::None },
            BlockParts { path: vec![of(1, conv(1, 1)), of(2, conv(1, 1))], shortcut: Shortcut::Identity },
            BlockParts { path: vec![of(3, conv(2, 1)), of(4, conv(1, 1))], shortcut: Shortcut::ConvNorm(of(5, conv(2, 0))) },
        ];
        for track in [true, false] {
            let x = if track { vars[0].as_tensor().clone() } else { vars[0].as_detached_tensor() };
            let want = crate::conv_blocks(&x, &blocks, 1e-3, 2, Keep::F32)?;
            let got = conv_blocks(OneByOne(1e-3), &x, &blocks, Settings { eps: 1e-3, groups: 2 })?;
            assert_eq!(got.y.dims(), want.y.dims());
            let difference = |a: &Tensor, b: &Tensor| -> Result<f32> {
                let off = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                Ok(off / b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.max(1e-3))
            };
            assert!(difference(&got.y, &want.y)? < 1e-5);
            assert_eq!(got.statistics.len(), want.statistics.len());
            for (a, b) in got.statistics.iter().zip(&want.statistics) {
                assert!(a.count == b.count && difference(&a.mean, &b.mean)? < 1e-5 && difference(&a.var, &b.var)? < 1e-5);
            }
            let probe = var(want.y.dims(), 99)?.as_detached_tensor();
            let sum = |y: &Tensor| (y * &probe)?.sum_all();
            let (a, b) = (sum(&got.y)?.backward()?, sum(&want.y)?.backward()?);
            for (i, v) in vars.iter().enumerate().skip(usize::from(!track)) {
                let (a, b) = (a.get(v).expect("a gradient"), b.get(v).expect("a gradient"));
                assert!(difference(a, b)? < 2e-4, "variable {i}, tracked input {track}: {}", difference(a, b)?);
            }
            assert!(track || a.get(&vars[0]).is_none());
            let again = sum(&got.y)?.backward().map(|_| ()).expect_err("a second backward pass").to_string();
            assert!(again.contains("runs once"), "{again}");
        }
        let frozen: Vec<[Tensor; 3]> = owned.iter().map(|l| [0, 1, 2].map(|j| l[j].detach())).collect();
        let [weight, scale, shift] = &frozen[0];
        let block = BlockParts { path: vec![ConvNorm { weight, scale, shift, config: conv(1, 1) }], shortcut: Shortcut::None };
        let y = conv_blocks(OneByOne(1e-3), &vars[0].as_detached_tensor(), &[block], Settings { eps: 1e-3, groups: 2 })?.y;
        assert!(!y.track_op(), "nothing to differentiate, nothing kept");
        Ok(())
    }
}
