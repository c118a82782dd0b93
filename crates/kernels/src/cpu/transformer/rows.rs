//! What the block does between its products, row by row, while the rows are in the cache.

use crate::cpu::layer_norm::moments;
use crate::cpu::vector::{gauss, sum, vectorized};

vectorized! {
    /// Layer norm of every row.
    pub(super) fn norm<'a>(x: &'a [f32], w: &'a [f32], b: &'a [f32], eps: f32, out: &'a mut [f32]) {
        let c = w.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let (mean, scale) = moments(x, eps);
            for (((out, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
                *out = (x - mean) * scale * w + b;
            }
        }
    }
}

vectorized! {
    /// The gradient of a layer norm, given that to its result, `g`: to `x` added to `skip` in `out`, to the parameters added to
    /// `dw` and `db`. `scratch` is a row long.
    pub(super) fn norm_backward<'a>(
        x: &'a [f32],
        w: &'a [f32],
        eps: f32,
        g: &'a [f32],
        skip: &'a [f32],
        out: &'a mut [f32],
        dw: &'a mut [f32],
        db: &'a mut [f32],
        scratch: &'a mut [f32],
    ) {
        let c = w.len();
        let (unit, product) = scratch.split_at_mut(c);
        let rows = out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(g.chunks_exact(c)).zip(skip.chunks_exact(c));
        for (((out, x), g), skip) in rows {
            let (mean, scale) = moments(x, eps);
            for i in 0..c {
                let normal = (x[i] - mean) * scale;
                unit[i] = normal;
                let weighted = g[i] * w[i];
                out[i] = weighted;
                product[i] = weighted * normal;
                dw[i] += g[i] * normal;
                db[i] += g[i];
            }
            let (level, along) = (sum(out) / c as f32, sum(product) / c as f32);
            for i in 0..c {
                out[i] = skip[i] + scale * ((out[i] - level) - unit[i] * along);
            }
        }
    }
}

vectorized! {
    /// out += x.
    pub(super) fn add<'a>(x: &'a [f32], out: &'a mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

vectorized! {
    /// x · Φ(x).
    pub(super) fn gelu<'a>(x: &'a [f32], out: &'a mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * gauss(x).0;
        }
    }
}

vectorized! {
    /// x · Φ(x), and the gradient to its result, `g`, becomes that to x.
    pub(super) fn gelu_backward<'a>(x: &'a [f32], g: &'a mut [f32], out: &'a mut [f32]) {
        for ((out, &x), g) in out.iter_mut().zip(x).zip(g) {
            let (distribution, density) = gauss(x);
            *out = x * distribution;
            *g *= distribution + x * density;
        }
    }
}

vectorized! {
    /// sums += Σ over the rows.
    pub(super) fn add_rows<'a>(x: &'a [f32], sums: &'a mut [f32]) {
        for x in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
    }
}
