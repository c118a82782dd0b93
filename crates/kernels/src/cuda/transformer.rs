//! Blocks of a transformer as one operation whose backward pass is driven here, as those of `block` and for the same reason.
//!
//! The branches are of the type that is asked for, what they are added to `f32`.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use super::attention::Kept;
use super::graph::{Given, handed2, parameters};
use crate::transformer::{Affine, TransformerParameters};

/// The parts of a block's passes, of tensors without a graph; tokens are rows.
pub(crate) trait Primitives: Send + Sync + 'static {
    /// Layer norm of `x` in `f32`, with a result of type `kind`.
    fn norm(&self, x: &Tensor, layer: [&Tensor; 2], eps: f64, kind: DType) -> Result<Normed>;
    /// The gradient to the input plus what comes from beside the norm, in `f32`, and the gradients to weight and bias; given are the gradient to
    /// the result and what comes from beside.
    fn norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        normed: &Normed,
        g_and_beside: [&Tensor; 2],
        eps: f64,
    ) -> Result<[Tensor; 3]>;
    /// x · weightᵀ + bias, with x and weight of one type.
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor>;
    /// The same added to `to`, in `f32`.
    fn linear_added(&self, to: &Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor>;
    /// The gradients to the input in its own type, to weight and bias in `f32`.
    fn linear_backward(&self, x: &Tensor, weight: &Tensor, g: &Tensor) -> Result<[Tensor; 3]>;
    /// GELU.
    fn gelu(&self, x: &Tensor) -> Result<Tensor>;
    /// Its gradient.
    fn gelu_backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor>;
    /// Attention of (N, T, 3 C), and what its gradient needs beside input and result.
    fn attention(&self, qkv: &Tensor, heads: usize) -> Result<(Tensor, Kept)>;
    /// Its gradient, of the result (N, T, C) and what was kept.
    fn attention_backward(&self, qkv: &Tensor, y: &Tensor, kept: &Kept, g: &Tensor, heads: usize) -> Result<Tensor>;
}

/// A norm's result; mean and 1 / √(var + eps) of every row.
pub(crate) struct Normed {
    pub y: Tensor,
    pub mean: Tensor,
    pub scale: Tensor,
}

/// Settings of all blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub heads: usize,
    pub eps: f64,
    pub kind: DType,
}

/// Weights of a block without a graph: those of norms as they are, those of linear layers rounded.
struct Weights {
    norm1: [Tensor; 2],
    qkv: [Tensor; 2],
    proj: [Tensor; 2],
    norm2: [Tensor; 2],
    fc1: [Tensor; 2],
    fc2: [Tensor; 2],
}

/// A block between the passes; all are rows, (N · T, …), but `qkv` and `kept`.
struct Block {
    weights: Weights,
    x: Tensor,
    norm1: Normed,
    qkv: Tensor,
    attended: Tensor,
    /// A number for each query and head, or the table of probabilities.
    kept: Kept,
    middle: Tensor,
    norm2: Normed,
    /// Before the GELU.
    inside: Tensor,
}

/// As [`crate::transformer_blocks`], of one block or more and checked tensors.
pub(crate) fn transformer_blocks<P: Primitives>(
    p: P,
    x: &Tensor,
    blocks: &[TransformerParameters<'_>],
    settings: Settings,
) -> Result<Tensor> {
    let (n, t, c) = x.dims3()?;
    let all: Vec<&Tensor> =
        blocks.iter().flat_map(TransformerParameters::layers).flat_map(|(_, layer)| [layer.weight, layer.bias]).collect();
    let track = x.track_op() || all.iter().any(|t| t.track_op());
    let mut kept = Vec::with_capacity(blocks.len());
    let mut y = x.detach().contiguous()?.reshape((n * t, c))?;
    for block in blocks {
        let (next, record) = forward(&p, &y, (n, t), block, settings)?;
        y = next;
        if track {
            kept.push(record);
        }
    }
    let y = y.reshape((n, t, c))?;
    if !track {
        return Ok(y);
    }
    let given = Given::default();
    let token = parameters(&all, &given)?;
    let kept = Mutex::new(Some(kept));
    handed2("transformer-blocks", [x, &token], &y, move |[x, token], grad| {
        let Some(kept) = kept.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("transformer_block: the backward pass runs once for a forward pass")
        };
        let (mut g, mut gradients) = (grad.reshape((n * t, c))?, Vec::new());
        for block in kept.into_iter().rev() {
            let (dx, mut of_block) = backward(&p, block, &g, (n, t), settings)?;
            g = dx;
            of_block.reverse();
            gradients.extend(of_block);
        }
        gradients.reverse();
        *given.lock().unwrap_or_else(PoisonError::into_inner) = gradients.into_iter().map(Some).collect();
        let dx = x.track_op().then(|| g.reshape((n, t, c))).transpose()?;
        Ok([dx, Some(token.zeros_like()?)])
    })
}

fn forward<P: Primitives>(
    p: &P,
    x: &Tensor,
    (n, t): (usize, usize),
    block: &TransformerParameters<'_>,
    settings: Settings,
) -> Result<(Tensor, Block)> {
    let Settings { heads, eps, kind } = settings;
    let plain = |a: Affine<'_>| -> Result<[Tensor; 2]> { Ok([a.weight.detach().contiguous()?, a.bias.detach().contiguous()?]) };
    let rounded = |a: Affine<'_>| -> Result<[Tensor; 2]> {
        Ok([a.weight.detach().to_dtype(kind)?.contiguous()?, a.bias.detach().contiguous()?])
    };
    let w = Weights {
        norm1: plain(block.norm1)?,
        qkv: rounded(block.qkv)?,
        proj: rounded(block.proj)?,
        norm2: plain(block.norm2)?,
        fc1: rounded(block.fc1)?,
        fc2: rounded(block.fc2)?,
    };
    let c = x.dim(1)?;
    let norm = |x: &Tensor, [weight, bias]: &[Tensor; 2]| p.norm(x, [weight, bias], eps, kind);
    let linear = |x: &Tensor, [weight, bias]: &[Tensor; 2]| p.linear(x, weight, bias);
    let norm1 = norm(x, &w.norm1)?;
    let qkv = linear(&norm1.y, &w.qkv)?.reshape((n, t, 3 * c))?;
    let (attended, kept) = p.attention(&qkv, heads)?;
    let attended = attended.reshape((n * t, c))?;
    let middle = p.linear_added(x, &attended, &w.proj[0], &w.proj[1])?;
    let norm2 = norm(&middle, &w.norm2)?;
    let inside = linear(&norm2.y, &w.fc1)?;
    let y = p.linear_added(&middle, &p.gelu(&inside)?, &w.fc2[0], &w.fc2[1])?;
    Ok((y, Block { weights: w, x: x.clone(), norm1, qkv, attended, kept, middle, norm2, inside }))
}

/// The gradient to the input, and those of the parameters in the order of [`TransformerParameters::layers`].
fn backward<P: Primitives>(
    p: &P,
    block: Block,
    g: &Tensor,
    (n, t): (usize, usize),
    settings: Settings,
) -> Result<(Tensor, Vec<Tensor>)> {
    let Settings { heads, eps, kind } = settings;
    let Block { weights: w, x, norm1, qkv, attended, kept, middle, norm2, inside } = block;
    let c = x.dim(1)?;
    // What the GELU gave is computed again rather than kept.
    let [d, fc2, fc2_bias] = p.linear_backward(&p.gelu(&inside)?, &w.fc2[0], &g.to_dtype(kind)?)?;
    let d = p.gelu_backward(&inside, &d)?;
    drop(inside);
    let [d, fc1, fc1_bias] = p.linear_backward(&norm2.y, &w.fc1[0], &d)?;
    let [g, norm2, norm2_bias] = p.norm_backward(&middle, &w.norm2[0], &norm2, [&d, g], eps)?;
    drop(middle);
    let [d, proj, proj_bias] = p.linear_backward(&attended, &w.proj[0], &g.to_dtype(kind)?)?;
    let d = p.attention_backward(&qkv, &attended.reshape((n, t, c))?, &kept, &d.reshape((n, t, c))?, heads)?;
    drop((qkv, attended, kept));
    let [d, qkv, qkv_bias] = p.linear_backward(&norm1.y, &w.qkv[0], &d.reshape((n * t, 3 * c))?)?;
    let [g, norm1, norm1_bias] = p.norm_backward(&x, &w.norm1[0], &norm1, [&d, &g], eps)?;
    let gradients = vec![norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias];
    Ok((g, gradients))
}

#[cfg(feature = "cuda")]
pub(crate) use on_device::OnDevice;

#[cfg(feature = "cuda")]
mod on_device {
    use candle_core::{DType, Result, Tensor};

    use super::super::elementwise::{self, Activation};
    use super::super::launch::View;
    use super::super::tensor::{Reading, gpu, tensor};
    use super::super::{attention, columns, layer_norm};
    use super::{Kept, Normed, Primitives};

    /// cuBLAS's products and the kernels of the other parts.
    pub(crate) struct OnDevice;

    impl Primitives for OnDevice {
        fn norm(&self, x: &Tensor, [weight, bias]: [&Tensor; 2], eps: f64, kind: DType) -> Result<Normed> {
            let (rows, c) = x.dims2()?;
            let (rx, rw, rb) = (Reading::of(x)?, Reading::of(weight)?, Reading::of(bias)?);
            let out = layer_norm::forward(&gpu(x)?, kind, rx.view()?, [rw.view()?, rb.view()?], (rows, c), eps)?;
            Ok(Normed { y: tensor(out.y, (rows, c)), mean: tensor(out.mean, rows), scale: tensor(out.scale, rows) })
        }

        fn norm_backward(
            &self,
            x: &Tensor,
            weight: &Tensor,
            normed: &Normed,
            [g, beside]: [&Tensor; 2],
            _: f64,
        ) -> Result<[Tensor; 3]> {
            let (sizes, kind, device) = (x.dims2()?, g.dtype(), gpu(x)?);
            let beside = beside.contiguous()?;
            let (rx, rw, rg, rb) = (Reading::of(x)?, Reading::of(weight)?, Reading::of(g)?, Reading::of(&beside)?);
            let (mean, scale) = (Reading::of(&normed.mean)?, Reading::of(&normed.scale)?);
            let rows = [mean.view()?, scale.view()?];
            let dx = layer_norm::to_input(&device, kind, [rx.view()?, rg.view()?, rw.view()?], rows, Some(rb.view()?), sizes)?;
            let both = tensor(layer_norm::to_affine(&device, kind, [rx.view()?, rg.view()?], rows, sizes)?, (2, sizes.1));
            Ok([tensor(dx, x.shape().clone()), both.get(0)?, both.get(1)?])
        }

        fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
            Ok(tensor(columns::on_device::forward(x, weight, Some(bias))?, (x.dim(0)?, weight.dim(0)?)))
        }

        fn linear_added(&self, to: &Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
            let (rows, c) = (x.dim(0)?, weight.dim(0)?);
            let branch = columns::on_device::forward(x, weight, None)?;
            let (to, bias) = (to.contiguous()?, bias.contiguous()?);
            let (rt, rb) = (Reading::of(&to)?, Reading::of(&bias)?);
            let y = columns::add_branch(&gpu(x)?, x.dtype(), [rt.view()?, View::all(&branch), rb.view()?], rows, c)?;
            Ok(tensor(y, (rows, c)))
        }

        fn linear_backward(&self, x: &Tensor, weight: &Tensor, g: &Tensor) -> Result<[Tensor; 3]> {
            use columns::on_device::{to_bias, to_input, to_weight};
            Ok([to_input(g, weight)?, to_weight(x, g)?, to_bias(g)?])
        }

        fn gelu(&self, x: &Tensor) -> Result<Tensor> {
            let view = Reading::of(x)?;
            let y = elementwise::forward(&gpu(x)?, Activation::Gelu, x.dtype(), view.view()?, x.elem_count())?;
            Ok(tensor(y, x.shape().clone()))
        }

        fn gelu_backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
            let (rx, rg) = (Reading::of(x)?, Reading::of(g)?);
            let dx = elementwise::backward(&gpu(x)?, Activation::Gelu, x.dtype(), rx.view()?, rg.view()?, x.elem_count())?;
            Ok(tensor(dx, x.shape().clone()))
        }

        fn attention(&self, qkv: &Tensor, heads: usize) -> Result<(Tensor, Kept)> {
            let (y, kept) = attention::on_device::forward(qkv, heads)?;
            Ok((tensor(y, (qkv.dim(0)?, qkv.dim(1)?, qkv.dim(2)? / 3)), kept))
        }

        fn attention_backward(&self, qkv: &Tensor, y: &Tensor, kept: &Kept, g: &Tensor, heads: usize) -> Result<Tensor> {
            attention::on_device::backward(qkv, y, kept, g, heads)
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::emulated::{Host, HostBuffer, values};
    use super::super::flash;
    use super::super::launch::View;
    use super::*;
    use crate::{Keep, attention, gelu, layer_norm, linear};

    /// The crate's own operations, differentiated one by one by candle; attention with emulated kernels, in bfloat16, where there is a host.
    #[derive(Default)]
    struct OneByOne(Option<Host>);

    /// The gradients of f(inputs) · g to the inputs.
    fn gradients<const N: usize>(inputs: [&Tensor; N], g: &Tensor, f: impl Fn(&[Var]) -> Result<Tensor>) -> Result<[Tensor; N]> {
        let vars = inputs.iter().map(|t| Var::from_tensor(t)).collect::<Result<Vec<_>>>()?;
        let grads = (f(&vars)? * g)?.sum_all()?.backward()?;
        Ok(std::array::from_fn(|i| grads.get(&vars[i]).expect("a gradient").detach()))
    }

    impl Primitives for OneByOne {
        fn norm(&self, x: &Tensor, [w, b]: [&Tensor; 2], eps: f64, _: DType) -> Result<Normed> {
            // This one needs no statistics for its gradient.
            Ok(Normed { y: layer_norm(x, w, b, eps)?, mean: x.clone(), scale: x.clone() })
        }

        fn norm_backward(
            &self,
            x: &Tensor,
            weight: &Tensor,
            _: &Normed,
            [g, beside]: [&Tensor; 2],
            eps: f64,
        ) -> Result<[Tensor; 3]> {
            let [dx, dw, db] = gradients([x, weight, &weight.zeros_like()?], g, |v| layer_norm(&v[0], &v[1], &v[2], eps))?;
            Ok([(beside + dx)?, dw, db])
        }

        fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
            linear(x, weight, Some(bias))
        }

        fn linear_added(&self, to: &Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
            to + linear(x, weight, Some(bias))?
        }

        fn linear_backward(&self, x: &Tensor, weight: &Tensor, g: &Tensor) -> Result<[Tensor; 3]> {
            let bias = Tensor::zeros(weight.dim(0)?, DType::F32, &Device::Cpu)?;
            gradients([x, weight, &bias], g, |v| linear(&v[0], &v[1], Some(&v[2])))
        }

        fn gelu(&self, x: &Tensor) -> Result<Tensor> {
            gelu(x)
        }

        fn gelu_backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
            gradients([x], g, |v| gelu(&v[0])).map(|[dx]| dx)
        }

        fn attention(&self, qkv: &Tensor, heads: usize) -> Result<(Tensor, Kept)> {
            let Some(host) = &self.0 else { return Ok((attention(qkv, heads)?, Kept::Logs(qkv.clone()))) };
            let (n, t, packed) = qkv.dims3()?;
            let sizes = flash::Sizes { n, t, heads, d: packed / (3 * heads) };
            let [y, logs] = flash::forward(host, View::all(&rounded(host, qkv)?), sizes)?;
            let logs = Tensor::from_vec(logs.read(), (n, heads, t), &Device::Cpu)?;
            Ok((Tensor::from_vec(y.read(), (n, t, packed / 3), &Device::Cpu)?, Kept::Logs(logs)))
        }

        fn attention_backward(&self, qkv: &Tensor, y: &Tensor, kept: &Kept, g: &Tensor, heads: usize) -> Result<Tensor> {
            let Some(host) = &self.0 else { return gradients([qkv], g, |v| attention(&v[0], heads)).map(|[dx]| dx) };
            let Kept::Logs(logs) = kept else { panic!("the logarithms were kept") };
            let (n, t, packed) = qkv.dims3()?;
            let sizes = flash::Sizes { n, t, heads, d: packed / (3 * heads) };
            let logs = host.floats(DType::F32, &logs.flatten_all()?.to_vec1()?, 0);
            let [qkv, y, g] = [rounded(host, qkv)?, rounded(host, y)?, rounded(host, g)?];
            let dx = flash::backward(host, View::all(&qkv), [View::all(&y), View::all(&logs)], View::all(&g), sizes)?;
            Tensor::from_vec(dx.read(), (n, t, packed), &Device::Cpu)
        }
    }

    fn rounded(host: &Host, t: &Tensor) -> Result<HostBuffer> {
        Ok(host.floats(DType::BF16, &t.flatten_all()?.to_vec1()?, 0))
    }

    fn var(shape: &[usize], seed: usize) -> Result<Var> {
        let half: Vec<f32> = values(shape.iter().product(), seed as u64).iter().map(|v| v * 0.5).collect();
        Var::from_vec(half, shape, &Device::Cpu)
    }

    /// How far `a` is off, of the largest number of `b`.
    fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
        let off = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        Ok(off / b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.max(1e-3))
    }

    /// Two blocks on (2, t, c) tokens driven by `p()`, against the fused operation: result and gradients within `off`.
    fn agree(p: impl Fn() -> OneByOne, (t, c, heads): (usize, usize, usize), off: [f32; 2]) -> Result<()> {
        let hidden = 2 * c + 4;
        let shapes: [&[usize]; 12] =
            [&[c], &[c], &[3 * c, c], &[3 * c], &[c, c], &[c], &[c], &[c], &[hidden, c], &[hidden], &[c, hidden], &[c]];
        let mut vars = vec![var(&[2, t, c], 1)?];
        for i in 0..24 {
            vars.push(var(shapes[i % 12], 2 + i)?);
        }
        let block = |b: usize| {
            let affine = |i: usize| Affine { weight: &vars[1 + 12 * b + 2 * i], bias: &vars[2 + 12 * b + 2 * i] };
            let [norm1, qkv, proj] = [affine(0), affine(1), affine(2)];
            TransformerParameters { norm1, qkv, proj, norm2: affine(3), fc1: affine(4), fc2: affine(5) }
        };
        let blocks = [block(0), block(1)];
        for track in [true, false] {
            let x = if track { vars[0].as_tensor().clone() } else { vars[0].as_detached_tensor() };
            let want = crate::transformer_blocks(&x, &blocks, heads, 1e-5, Keep::F32)?;
            let got = transformer_blocks(p(), &x, &blocks, Settings { heads, eps: 1e-5, kind: DType::F32 })?;
            assert!(got.dims() == want.dims() && difference(&got, &want)? < off[0], "{}", difference(&got, &want)?);
            let probe = var(&[2, t, c], 99)?.as_detached_tensor();
            let sum = |y: &Tensor| (y * &probe)?.sum_all();
            let (a, b) = (sum(&got)?.backward()?, sum(&want)?.backward()?);
            for (i, v) in vars.iter().enumerate().skip(usize::from(!track)) {
                let (a, b) = (a.get(v).expect("a gradient"), b.get(v).expect("a gradient"));
                assert!(difference(a, b)? < off[1], "variable {i}, tracked input {track}: {}", difference(a, b)?);
            }
            let again = sum(&got)?.backward().map(|_| ()).expect_err("a second backward pass").to_string();
            assert!(again.contains("runs once"), "{again}");
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_the_fused_operation() -> Result<()> {
        agree(OneByOne::default, (5, 8, 2), [1e-5, 2e-4])
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn blocks_that_keep_logarithms_are_near_the_fused_operation() -> Result<()> {
        // Queries, keys, values, results and gradients of attention are rounded to bfloat16; all else is f32.
        agree(|| OneByOne(Some(Host::new())), (67, 64, 2), [3e-3, 1.5e-2])
    }
}
