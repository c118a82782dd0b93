//! The Epps-Pulley statistic on the CPU. Frequencies are multiples of one step, so that each value needs one sine and cosine alone:
//! those of the multiples follow by the addition theorems, in `f64`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::memory::{host, tensor, values};
use crate::trace::span;

/// See [`crate::epps_pulley`].
pub(crate) struct EppsPulley {
    pub knots: usize,
    pub max: f64,
}

/// Columns that one task handles.
const COLUMNS: usize = 16;

impl EppsPulley {
    fn step(&self) -> f64 {
        self.max / (self.knots - 1) as f64
    }

    /// φ(tₖ) and wₖ.
    fn knot(&self, k: usize) -> (f64, f64) {
        let (t, dt) = (k as f64 * self.step(), self.step());
        let phi = (-t * t / 2.0).exp();
        let weight = if k == 0 || k + 1 == self.knots { dt } else { 2.0 * dt };
        (phi, weight * phi)
    }

    /// Means of cosine and sine over the N values of each of some columns, knot after knot: (knots, columns, 2).
    fn means(&self, x: &[f32], [n, m]: [usize; 2], columns: std::ops::Range<usize>) -> Vec<[f64; 2]> {
        let width = columns.len();
        let mut sums = vec![[0.0; 2]; self.knots * width];
        for row in x.chunks_exact(m).take(n) {
            for (j, &v) in row[columns.clone()].iter().enumerate() {
                let (s1, c1) = (f64::from(v) * self.step()).sin_cos();
                let (mut c, mut s) = (1.0, 0.0);
                for k in 0..self.knots {
                    let sum = &mut sums[k * width + j];
                    sum[0] += c;
                    sum[1] += s;
                    (c, s) = (c * c1 - s * s1, s * c1 + c * s1);
                }
            }
        }
        sums.iter_mut().flatten().for_each(|s| *s /= n as f64);
        sums
    }

    /// All (view, columns) that tasks take.
    fn tasks(&self, [v, m]: [usize; 2]) -> Vec<(usize, std::ops::Range<usize>)> {
        (0..v).flat_map(|view| (0..m).step_by(COLUMNS).map(move |c| (view, c..(c + COLUMNS).min(m)))).collect()
    }
}

impl CustomOp1 for EppsPulley {
    fn name(&self) -> &'static str {
        "twinsight-epps-pulley"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("Epps-Pulley forward", 0);
        let (v, n, m) = layout.shape().dims3()?;
        let x = values(storage, layout)?;
        let parts: Vec<f64> = self
            .tasks([v, m])
            .into_par_iter()
            .map(|(view, columns)| {
                let width = columns.len();
                let means = self.means(&x[view * n * m..(view + 1) * n * m], [n, m], columns);
                let cost = |(i, [c, s]): (usize, &[f64; 2])| {
                    let (phi, weight) = self.knot(i / width);
                    weight * ((c - phi).powi(2) + s * s)
                };
                means.iter().enumerate().map(cost).sum::<f64>()
            })
            .collect();
        let mean = parts.iter().sum::<f64>() * n as f64 / (v * m) as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span("Epps-Pulley backward", 0);
        let (v, n, m) = x.dims3()?;
        // N of the statistic and 1/N of the means cancel.
        let scale = f64::from(grad.to_scalar::<f32>()?) / (v * m) as f64;
        let (storage, layout) = x.storage_and_layout();
        let data = host(&storage, layout)?;
        let parts: Vec<_> = self
            .tasks([v, m])
            .into_par_iter()
            .map(|(view, columns)| {
                let rows = &data[view * n * m..(view + 1) * n * m];
                let width = columns.len();
                let mut factors = self.means(rows, [n, m], columns.clone());
                for (i, [c, s]) in factors.iter_mut().enumerate() {
                    let k = i / width;
                    let (phi, weight) = self.knot(k);
                    let factor = 2.0 * scale * weight * k as f64 * self.step();
                    // d cos(tx) = −t sin(tx), d sin(tx) = t cos(tx).
                    (*c, *s) = (-(*c - phi) * factor, *s * factor);
                }
                let mut out = Vec::with_capacity(n * width);
                for row in rows.chunks_exact(m) {
                    for (j, &value) in row[columns.clone()].iter().enumerate() {
                        let (s1, c1) = (f64::from(value) * self.step()).sin_cos();
                        let (mut c, mut s, mut sum) = (1.0, 0.0, 0.0);
                        for k in 0..self.knots {
                            let [by_cos, by_sin] = factors[k * width + j];
                            sum += by_cos * s + by_sin * c;
                            (c, s) = (c * c1 - s * s1, s * c1 + c * s1);
                        }
                        out.push(sum as f32);
                    }
                }
                (view, columns, out)
            })
            .collect();
        let mut dx = vec![0f32; v * n * m];
        for (view, columns, out) in parts {
            for (row, part) in dx[view * n * m..(view + 1) * n * m].chunks_exact_mut(m).zip(out.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(part);
            }
        }
        Ok(Some(tensor(dx, (v, n, m))?))
    }
}
