//! Attention of bfloat16 without a table of probabilities (FlashAttention-2, Dao 2023, arXiv:2307.08691), straight from packed queries, keys and
//! values and back: one kernel forward, two backward, which compute the probabilities again from the logarithms of their rows' sums.
//!
//! As compiled for compute capability 9.0 and heads of 64 numbers, a thread has 128 registers forward, 128 for the gradient to the queries and 168 for
//! those to keys and values, none of them spilled, and a block of 128 threads 36 KiB of shared memory (37 KiB for keys): four blocks and three fit
//! a multiprocessor by their registers. Tiles of 64 rows are the largest for which two fit into the 48 KiB that a kernel gets without asking.

use candle_core::{DType, Result, bail};

use super::launch::{Arg, Engine, View, int, launch};
use super::source::FLASH;

/// Sizes of packed heads, (n, t, 3, heads, d).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub n: usize,
    pub t: usize,
    pub heads: usize,
    pub d: usize,
}

/// Threads of a block.
const BLOCK: u32 = 128;

/// Rows of a block, of queries or keys.
const TILE: usize = 64;

/// Elements of 16 bytes: all tensors must start at a multiple of as many.
pub(crate) const PACK: usize = 8;

/// Whether there are kernels for the type and the size of heads.
pub(crate) fn takes(kind: DType, d: usize) -> bool {
    kind == DType::BF16 && matches!(d, 32 | 64)
}

impl Sizes {
    /// Blocks; none where there is nothing to do.
    fn grid(&self) -> Result<[u32; 3]> {
        let blocks = self.n * self.heads * self.t.div_ceil(TILE);
        Ok([int("the number of attention's blocks", blocks)? as u32, 1, 1])
    }

    fn kernel(&self, base: &str) -> Result<String> {
        match self.d {
            32 | 64 => Ok(format!("flash_{base}_{}", self.d)),
            d => bail!("internal: no attention without a table for heads of {d}"),
        }
    }

    fn args<'a, B>(&self) -> Result<[Arg<'a, B>; 3]> {
        let scale = 1.0 / (self.d as f64).sqrt();
        Ok([
            Arg::Int(int("attention's tokens", self.t)?),
            Arg::Int(int("attention's heads", self.heads)?),
            Arg::Float(scale as f32),
        ])
    }

    fn check<B>(&self, tensors: &[View<'_, B>]) -> Result<()> {
        if tensors.iter().any(|view| !view.aligned(PACK)) {
            bail!("internal: a tensor of attention does not start at a multiple of 16 bytes");
        }
        Ok(())
    }
}

/// The result (n, t, heads · d) of bfloat16, and the logarithms of the sums of the exponentials of every query's scores, (n, heads, t) of `f32`.
pub(crate) fn forward<E: Engine>(e: &E, qkv: View<'_, E::Buffer>, s: Sizes) -> Result<[E::Buffer; 2]> {
    s.check(&[qkv])?;
    let mut y = e.alloc(DType::BF16, s.n * s.t * s.heads * s.d)?;
    let mut logs = e.alloc(DType::F32, s.n * s.heads * s.t)?;
    let mut args = vec![qkv.arg(), Arg::Out(&mut y), Arg::Out(&mut logs)];
    args.extend(s.args()?);
    // SAFETY: a block takes a tile of rows of one head, and of them and the rows that it walks over those below `t`.
    unsafe { launch(e, &FLASH, &s.kernel("forward")?, s.grid()?, BLOCK, args)? };
    Ok([y, logs])
}

/// The gradient to `qkv`, of it, what [`forward`] gave, and the gradient `g` to the result. The same bits every time.
pub(crate) fn backward<E: Engine>(
    e: &E,
    qkv: View<'_, E::Buffer>,
    [y, logs]: [View<'_, E::Buffer>; 2],
    g: View<'_, E::Buffer>,
    s: Sizes,
) -> Result<E::Buffer> {
    s.check(&[qkv, y, g])?;
    let mut dx = e.alloc(DType::BF16, 3 * s.n * s.t * s.heads * s.d)?;
    // Of every query, the sum of y g.
    let mut along = e.alloc(DType::F32, s.n * s.heads * s.t)?;
    let mut args = vec![qkv.arg(), y.arg(), g.arg(), logs.arg(), Arg::Out(&mut along), Arg::Out(&mut dx)];
    args.extend(s.args()?);
    // SAFETY: as in `forward`; of `dx` the queries' part is written.
    unsafe { launch(e, &FLASH, &s.kernel("to_queries")?, s.grid()?, BLOCK, args)? };
    let mut args = vec![qkv.arg(), g.arg(), logs.arg(), View::all(&along).arg(), Arg::Out(&mut dx)];
    args.extend(s.args()?);
    // SAFETY: as above, of `dx` the parts of keys and values.
    unsafe { launch(e, &FLASH, &s.kernel("to_keys")?, s.grid()?, BLOCK, args)? };
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::super::emulated::{Host, close, values};
    use super::super::source::Source;
    use super::*;

    /// The operation's result and gradient on the processor in `f32`, of queries, keys and values (n, t, 3 · heads · d).
    fn reference(qkv: &[f32], g: &[f32], s: Sizes) -> Result<[Vec<f32>; 2]> {
        let x = Var::from_tensor(&Tensor::from_slice(qkv, (s.n, s.t, 3 * s.heads * s.d), &Device::Cpu)?)?;
        let y = crate::attention(&x, s.heads)?;
        let grads = (&y * Tensor::from_slice(g, y.shape(), &Device::Cpu)?)?.sum_all()?.backward()?;
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        Ok([flat(&y)?, flat(grads.get(&x).expect("a gradient"))?])
    }

    /// The logarithms of the sums of the exponentials of the scores, (n, heads, t).
    fn logarithms(qkv: &[f32], Sizes { n, t, heads, d }: Sizes) -> Vec<f32> {
        let row = |sample: usize, token: usize, part: usize, head: usize| {
            &qkv[((((sample * t + token) * 3) + part) * heads + head) * d..][..d]
        };
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let mut all = Vec::new();
        for (sample, head) in (0..n).flat_map(|i| (0..heads).map(move |j| (i, j))) {
            for query in 0..t {
                let q = row(sample, query, 0, head);
                let scores: Vec<f64> = (0..t).map(|key| product(q, row(sample, key, 1, head)) / (d as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                all.push((top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln()) as f32);
            }
        }
        all
    }

    /// How far off norms may be from `f32` on the same bfloat16 inputs. Factors are rounded by at most 2^-9 of themselves, evenly, and results once
    /// more: forward the probabilities and the result, backward those, their gradients, the stored result and the gradient.
    const FORWARD: f64 = 4e-3;
    const BACKWARD: f64 = 8e-3;

    fn agree(host: &Host, s: Sizes, scale: f32, offset: usize) -> Result<()> {
        let count = s.n * s.t * s.heads * s.d;
        let numbers: Vec<f32> = values(3 * count, 1).iter().map(|v| v * scale).collect();
        let qkv = host.floats(DType::BF16, &numbers, offset);
        let g = host.floats(DType::BF16, &values(count, 2), 2 * offset);
        let what = format!("{s:?}, numbers to {scale}");
        let [want, want_dx] = reference(&qkv.read()[offset..], &g.read()[2 * offset..], s)?;
        let qkv_view = View { buffer: &qkv, offset };
        let [y, logs] = forward(host, qkv_view, s)?;
        close(&format!("result of {what}"), &y.read(), &want, FORWARD);
        close(&format!("logarithms of {what}"), &logs.read(), &logarithms(&qkv.read()[offset..], s), 1e-5);
        let kept = [View::all(&y), View::all(&logs)];
        let dx = backward(host, qkv_view, kept, View { buffer: &g, offset: 2 * offset }, s)?;
        // Part by part: the values' gradients are much larger than the others.
        let (got, width) = (dx.read(), s.heads * s.d);
        let part = |all: &[f32], i: usize| -> Vec<f32> {
            all.chunks(3 * width).flat_map(|row| row[i * width..][..width].to_vec()).collect()
        };
        for (i, name) in ["queries", "keys", "values"].into_iter().enumerate() {
            if s.t == 1 && i < 2 {
                // The one probability is 1 whatever the score: what is left is rounding of two sums of f32.
                assert!(part(&got, i).iter().all(|v| v.abs() < 1e-5), "gradient to {name} of one token");
                continue;
            }
            close(&format!("gradient to {name} of {what}"), &part(&got, i), &part(&want_dx, i), BACKWARD);
        }
        Ok(())
    }

    /// Fragments gathered by the PTX ISA's formulas for mma.m16n8k16, number by number, and by `ldmatrix` as `flash.cu` calls it.
    static LAYOUTS: Source = Source {
        name: "layouts",
        text: concat!(
            include_str!("prelude.cuh"),
            include_str!("mma.cuh"),
            r#"
extern "C" __global__ void layouts(const bf16 *a, const bf16 *b, float *d, float *same) {
    __shared__ Pack<bf16, 16> rows[16], deep[16], wide[8];
    int lane = threadIdx.x, g = lane / 4, q = lane % 4;
    for (int i = lane; i < 256; i += 32) {
        rows[i / 16].at[i % 16] = a[i];
        if (i < 128) deep[i / 8].at[i % 8] = b[i];
        if (i < 128) wide[i % 8].at[i / 8] = b[i];
        if (i < 128) deep[i / 8].at[8 + i % 8] = b[i];
    }
    __syncthreads();
    u32 left[4] = {}, right[2] = {}, from[4], transposed[4], plain[4];
    for (int i = 0; i < 8; i++) {
        int row = (i < 2 || (4 <= i && i < 6)) ? g : g + 8, column = q * 2 + (i & 1) + (i < 4 ? 0 : 8);
        left[i / 2] |= (u32)a[16 * row + column].bits << 16 * (i & 1);
    }
    for (int i = 0; i < 4; i++) {
        int row = q * 2 + (i & 1) + (i < 2 ? 0 : 8);
        right[i / 2] |= (u32)b[8 * row + g].bits << 16 * (i & 1);
    }
    ldmatrix(from, &rows[lane % 16].at[lane / 16 * 8]);
    ldmatrix_transposed(transposed, &deep[lane % 16].at[lane / 16 * 8]);
    ldmatrix(plain, &wide[lane % 8].at[lane / 8 % 2 * 8]);
    bool all = true;
    for (int i = 0; i < 4; i++) all = all && from[i] == left[i] && transposed[i] == right[i % 2] && plain[i] == right[i % 2];
    same[lane] = all ? 1.0f : 0.0f;
    float sum[4] = {};
    mma(sum, left, right[0], right[1]);
    for (int i = 0; i < 4; i++) d[8 * (i < 2 ? g : g + 8) + q * 2 + (i & 1)] = sum[i];
}
"#
        ),
    };

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn fragments_lie_as_the_instruction_set_says() -> Result<()> {
        let host = Host::of(&LAYOUTS);
        let (a, b) = (host.floats(DType::BF16, &values(256, 1), 0), host.floats(DType::BF16, &values(128, 2), 0));
        let (mut d, mut same) = (host.alloc(DType::F32, 128)?, host.alloc(DType::F32, 32)?);
        let args = vec![Arg::In(&a, 0), Arg::In(&b, 0), Arg::Out(&mut d), Arg::Out(&mut same)];
        // SAFETY: one warp, of two matrices of 16 x 16 and 16 x 8 numbers, with room for their product and a number a lane.
        unsafe { host.start(&LAYOUTS, "layouts", [1, 1, 1], 32, args)? };
        assert_eq!(same.read(), [1.0; 32]);
        let matrix = |x: &[f32], shape: (usize, usize)| Tensor::from_slice(x, shape, &Device::Cpu);
        let want = matrix(&a.read(), (16, 16))?.matmul(&matrix(&b.read(), (16, 8))?)?.flatten_all()?.to_vec1::<f32>()?;
        close("product", &d.read(), &want, 1e-6);
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn tiles_give_what_the_table_gives() -> Result<()> {
        let host = Host::new();
        for (n, t, heads, d) in [(2, 1, 3, 64), (1, 16, 1, 32), (2, 17, 2, 64), (1, 37, 3, 64), (2, 65, 1, 32), (1, 65, 2, 64)] {
            agree(&host, Sizes { n, t, heads, d }, 1.5, 0)?;
        }
        // Three tiles and more, the last of one chunk of five rows; another tensor before.
        agree(&host, Sizes { n: 1, t: 197, heads: 1, d: 64 }, 2.0, PACK)?;
        agree(&host, Sizes { n: 1, t: 128, heads: 2, d: 32 }, 1.0, 5 * PACK)
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn sharp_and_flat_probabilities_hold() -> Result<()> {
        let host = Host::new();
        // Scores beyond a hundred: exponentials overflow unless the largest is taken off, and keys that do not exist would have score 0.
        agree(&host, Sizes { n: 1, t: 70, heads: 1, d: 64 }, 12.0, 0)?;
        agree(&host, Sizes { n: 1, t: 70, heads: 1, d: 64 }, 0.01, 0)?;
        // All scores far below 0: a key that does not exist would take everything.
        let s = Sizes { n: 1, t: 67, heads: 1, d: 64 };
        let mut numbers = values(3 * s.t * s.d, 3);
        for row in numbers.chunks_mut(3 * s.d) {
            row[..s.d].fill(8.0);
            row[s.d..2 * s.d].iter_mut().for_each(|v| *v = *v * 0.1 - 8.0);
        }
        let qkv = host.floats(DType::BF16, &numbers, 0);
        let g = host.floats(DType::BF16, &values(s.t * s.d, 4), 0);
        let [want, want_dx] = reference(&qkv.read(), &g.read(), s)?;
        let [y, logs] = forward(&host, View::all(&qkv), s)?;
        close("result of low scores", &y.read(), &want, FORWARD);
        assert!(logs.read().iter().all(|&log| log < -400.0));
        let dx = backward(&host, View::all(&qkv), [View::all(&y), View::all(&logs)], View::all(&g), s)?.read();
        assert!(dx.iter().all(|v| v.is_finite()));
        let values_of = |all: &[f32]| -> Vec<f32> { all.chunks(3 * s.d).flat_map(|row| row[2 * s.d..].to_vec()).collect() };
        close("gradient to the values of low scores", &values_of(&dx), &values_of(&want_dx), BACKWARD);
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn what_is_not_a_number_is_seen_and_nothing_gives_nothing() -> Result<()> {
        let host = Host::new();
        let s = Sizes { n: 1, t: 20, heads: 2, d: 32 };
        let mut numbers = values(3 * s.t * s.heads * s.d, 1);
        // A number of the first head's key of token 18.
        numbers[(18 * 3 + 1) * s.heads * s.d] = f32::NAN;
        let y = forward(&host, View::all(&host.floats(DType::BF16, &numbers, 0)), s)?[0].read();
        assert!(y.chunks(s.d).enumerate().all(|(i, row)| row.iter().all(|v| v.is_nan() == (i % 2 == 0))), "one head of both");
        for (n, t) in [(0, 5), (3, 0)] {
            let s = Sizes { n, t, heads: 2, d: 64 };
            let none = host.floats(DType::BF16, &[], 0);
            let [y, logs] = forward(&host, View::all(&none), s)?;
            let dx = backward(&host, View::all(&none), [View::all(&y), View::all(&logs)], View::all(&none), s)?;
            assert!(y.read().is_empty() && logs.read().is_empty() && dx.read().is_empty());
        }
        let error = forward(&host, View { buffer: &host.floats(DType::BF16, &numbers, 4), offset: 4 }, s).err().expect("refused");
        assert!(error.to_string().contains("16 bytes"), "{error}");
        Ok(())
    }
}
