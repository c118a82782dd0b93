//! Multi-head self-attention: where `flash` takes it, by its kernels; else heads apart and together again, around products by cuBLAS and the
//! softmax of `rows`.

use candle_core::{DType, Result, Tensor};

use super::launch::{Arg, Engine, THREADS, View, int, kernel_of, launch};
use super::source::ATTENTION;

/// Sizes of packed heads, (n, t, parts, heads, d).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub n: usize,
    pub t: usize,
    pub parts: usize,
    pub heads: usize,
    pub d: usize,
}

/// Rows that a block moves, one a warp.
const ROWS: usize = THREADS as usize / 32;

impl Heads {
    fn args<'a, B>(self, sizes: &[usize]) -> Result<Vec<Arg<'a, B>>> {
        sizes.iter().map(|&size| Ok(Arg::Int(int("a size of attention", size)?))).collect()
    }
}

/// (n, t, parts, heads, d) to (parts, n, heads, t, d).
pub(crate) fn split<E: Engine>(e: &E, kind: DType, packed: View<'_, E::Buffer>, s: Heads) -> Result<E::Buffer> {
    let rows = s.n * s.t * s.parts * s.heads;
    let mut apart = e.alloc(kind, rows * s.d)?;
    let mut args = vec![packed.arg(), Arg::Out(&mut apart)];
    args.extend(s.args(&[rows, s.n, s.t, s.parts, s.heads, s.d])?);
    let grid = [rows.div_ceil(ROWS) as u32, 1, 1];
    // SAFETY: warps take rows below `rows`, each of `d` numbers, to distinct places.
    unsafe { launch(e, &ATTENTION, &kernel_of("split_heads", kind)?, grid, THREADS, args)? };
    Ok(apart)
}

/// `s.parts` tensors (n, heads, t, d) to one (n, t, parts, heads, d).
pub(crate) fn join<E: Engine>(e: &E, kind: DType, apart: &[View<'_, E::Buffer>], s: Heads) -> Result<E::Buffer> {
    let rows = s.n * s.t * s.heads;
    let mut packed = e.alloc(kind, rows * apart.len() * s.d)?;
    for (part, &from) in apart.iter().enumerate() {
        let mut args = vec![from.arg(), Arg::Out(&mut packed)];
        args.extend(s.args(&[rows, s.t, apart.len(), s.heads, s.d, part])?);
        let grid = [rows.div_ceil(ROWS) as u32, 1, 1];
        // SAFETY: warps take rows below `rows`, each of `d` numbers, to the part's own places.
        unsafe { launch(e, &ATTENTION, &kernel_of("join_heads", kind)?, grid, THREADS, args)? };
    }
    Ok(packed)
}

/// What the gradient needs beside queries, keys and values and the result.
pub(crate) enum Kept {
    /// The probabilities, (n · heads, t, t).
    Table(Tensor),
    /// The logarithms of the sums of the exponentials of every query's scores, (n, heads, t) of `f32`: see [`super::flash`].
    Logs(Tensor),
}

#[cfg(feature = "cuda")]
pub(crate) use on_device::attention;

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use std::borrow::Cow;

    use candle_core::{CudaStorage, Result, Tensor};

    use super::super::flash;
    use super::super::rows::{Size, softmax, softmax_backward};
    use super::super::tensor::{Reading, gpu, multiplies_bf16, product, recorded1, tensor, without_table};
    use super::{Heads, Kept, join, split};

    /// As [`crate::attention`], of a checked tensor on a CUDA device.
    pub(crate) fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
        let qkv = qkv.contiguous()?;
        let (y, kept) = forward(&qkv.detach(), heads)?;
        let shape = (qkv.dim(0)?, qkv.dim(1)?, qkv.dim(2)? / 3);
        recorded1("attention", &qkv, y, shape, move |qkv, y, grad| backward(qkv, y, &kept, grad, heads).map(Some))
    }

    fn sizes(qkv: &Tensor, heads: usize) -> Result<(Heads, Size, f64)> {
        let (n, t, packed) = qkv.dims3()?;
        let d = packed / (3 * heads);
        let size = Size { rows: n * heads * t, k: t };
        Ok((Heads { n, t, parts: 3, heads, d }, size, 1.0 / (d as f64).sqrt()))
    }

    /// The result (n, t, heads · d), and what is kept for [`backward`]: a table only where there is no kernel that does without.
    pub(crate) fn forward(qkv: &Tensor, heads: usize) -> Result<(CudaStorage, Kept)> {
        let (Heads { n, t, d, .. }, ..) = sizes(qkv, heads)?;
        let device = gpu(qkv)?;
        if flash::takes(qkv.dtype(), d) && without_table() && multiplies_bf16(&device)? {
            let qkv = packs(qkv)?;
            let done = flash::forward(&device, Reading::of(&qkv)?.view()?, flash::Sizes { n, t, heads, d });
            // A table would need more memory than what was not there.
            let [y, logs] = done.map_err(|e| match e.to_string().contains("OUT_OF_MEMORY") {
                true => e,
                false => e.context("attention without a table of probabilities; TWINSIGHT_CUDA_FLASH=0 makes one"),
            })?;
            return Ok((y, Kept::Logs(tensor(logs, (n, heads, t)))));
        }
        with_table(qkv, heads)
    }

    fn with_table(qkv: &Tensor, heads: usize) -> Result<(CudaStorage, Kept)> {
        let kind = qkv.dtype();
        let (sizes, size, scale) = sizes(qkv, heads)?;
        let Heads { n, t, d, .. } = sizes;
        let [q, k, v] = apart(qkv, sizes)?;
        let scores = tensor(product(&q, &k.t()?)?, (n * heads, t, t));
        let p = softmax(&gpu(qkv)?, kind, Reading::of(&scores)?.view()?, size, scale)?;
        drop(scores);
        let p = tensor(p, (n * heads, t, t));
        let out = tensor(product(&p, &v)?, (n * heads, t, d));
        let y = join(&gpu(qkv)?, kind, &[Reading::of(&out)?.view()?], sizes)?;
        Ok((y, Kept::Table(p)))
    }

    /// The gradient to `qkv`, of the result `y` and what [`forward`] kept.
    pub(crate) fn backward(qkv: &Tensor, y: &Tensor, kept: &Kept, grad: &Tensor, heads: usize) -> Result<Tensor> {
        let p = match kept {
            Kept::Table(p) => p,
            Kept::Logs(logs) => {
                let (Heads { n, t, d, .. }, ..) = sizes(qkv, heads)?;
                let (qkv, y, grad) = (packs(qkv)?, packs(y)?, packs(grad)?);
                let (rx, ry, rl, rg) = (Reading::of(&qkv)?, Reading::of(&y)?, Reading::of(logs)?, Reading::of(&grad)?);
                let sizes = flash::Sizes { n, t, heads, d };
                let dx = flash::backward(&gpu(&qkv)?, rx.view()?, [ry.view()?, rl.view()?], rg.view()?, sizes)?;
                return Ok(tensor(dx, qkv.shape().clone()));
            }
        };
        let (kind, device) = (qkv.dtype(), gpu(qkv)?);
        let (sizes, size, scale) = sizes(qkv, heads)?;
        let Heads { n, t, d, .. } = sizes;
        // Copied apart again rather than kept.
        let [q, k, v] = apart(qkv, sizes)?;
        let g = split(&device, kind, Reading::of(grad)?.view()?, Heads { parts: 1, ..sizes })?;
        let g = tensor(g, (n * heads, t, d));
        let of = |buffer| tensor(buffer, (n * heads, t, d));
        let dv = of(product(&p.t()?, &g)?);
        let dp = tensor(product(&g, &v.t()?)?, (n * heads, t, t));
        let ds = softmax_backward(&device, kind, [Reading::of(p)?.view()?, Reading::of(&dp)?.view()?], size, scale)?;
        let ds = tensor(ds, (n * heads, t, t));
        let (dq, dk) = (of(product(&ds, &k)?), of(product(&ds.t()?, &q)?));
        let parts = [Reading::of(&dq)?, Reading::of(&dk)?, Reading::of(&dv)?];
        let views = [parts[0].view()?, parts[1].view()?, parts[2].view()?];
        Ok(tensor(join(&device, kind, &views, sizes)?, qkv.shape().clone()))
    }

    /// The tensor, or a copy of it that starts at a multiple of 16 bytes.
    fn packs(t: &Tensor) -> Result<Cow<'_, Tensor>> {
        match t.layout().start_offset().is_multiple_of(flash::PACK) {
            true => Ok(Cow::Borrowed(t)),
            false => t.force_contiguous().map(Cow::Owned),
        }
    }

    /// Queries, keys and values, (n · heads, t, d) each.
    fn apart(qkv: &Tensor, s: Heads) -> Result<[Tensor; 3]> {
        let all = tensor(split(&gpu(qkv)?, qkv.dtype(), Reading::of(qkv)?.view()?, s)?, (3, s.n * s.heads, s.t, s.d));
        Ok([all.get(0)?, all.get(1)?, all.get(2)?])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::emulated::{Host, close, values};
    use super::*;

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn heads_go_apart_and_together() -> Result<()> {
        let host = Host::new();
        for (n, t, heads, d) in [(0, 3, 2, 4), (1, 1, 1, 1), (2, 5, 3, 7), (3, 17, 2, 64)] {
            for kind in [DType::F32, DType::BF16] {
                let s = Heads { n, t, parts: 3, heads, d };
                let packed = host.floats(kind, &values(n * t * 3 * heads * d, 1), 2);
                let given = packed.read()[2..].to_vec();
                let apart = split(&host, kind, View { buffer: &packed, offset: 2 }, s)?;
                let x = Tensor::from_vec(given.clone(), (n, t, 3, heads, d), &Device::Cpu)?;
                let want = x.permute((2, 0, 3, 1, 4))?.contiguous()?.flatten_all()?.to_vec1()?;
                close("apart", &apart.read(), &want, 0.0);
                let part = n * heads * t * d;
                let views = [0, 1, 2].map(|i| View { buffer: &apart, offset: i * part });
                close("together", &join(&host, kind, &views, s)?.read(), &given, 0.0);
                let one = join(&host, kind, &views[1..2], s)?;
                let want = x.narrow(2, 1, 1)?.contiguous()?.flatten_all()?.to_vec1()?;
                close("one part", &one.read(), &want, 0.0);
            }
        }
        Ok(())
    }
}
