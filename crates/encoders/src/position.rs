//! Resampling of a square table of position embeddings for images of another size.
//!
//! The weights depend on the two sizes alone, so resampling is the product with a constant matrix, and its gradient
//! reaches the table by candle's own matrix product.

/// The matrix (`to.0 * to.1`, `from * from`), row-major, that resamples a `from` × `from` grid of vectors to a grid of `to` =
/// (height, width), both in row-major order.
///
/// Bicubic with antialiasing (a = −0.5, half-pixel centres, weights that leave the grid dropped and the rest renormalised):
/// `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`, which timm's `resample_abs_pos_embed` calls.
pub fn bicubic_matrix(from: usize, to: (usize, usize)) -> Vec<f32> {
    let rows = axis_weights(from, to.0);
    let columns = axis_weights(from, to.1);
    let mut matrix = Vec::with_capacity(to.0 * to.1 * from * from);
    for row in rows.chunks_exact(from) {
        for column in columns.chunks_exact(from) {
            matrix.extend(row.iter().flat_map(|r| column.iter().map(move |c| (r * c) as f32)));
        }
    }
    matrix
}

/// (`to`, `from`) weights along one axis.
fn axis_weights(from: usize, to: usize) -> Vec<f64> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let mut weights = vec![0.0; to * from];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        for (j, weight) in row.iter_mut().enumerate().take(last).skip(first) {
            *weight = cubic((j as f64 + 0.5 - centre) / stretch);
        }
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}

/// Keys 1981, a = −0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_identity() {
        let matrix = bicubic_matrix(3, (3, 3));
        for (i, row) in matrix.chunks_exact(9).enumerate() {
            for (j, &w) in row.iter().enumerate() {
                assert!((w - f32::from(u8::from(i == j))).abs() < 1e-7, "({i}, {j}) is {w}");
            }
        }
    }

    #[test]
    fn a_constant_stays_itself() {
        for (from, to) in [(8, (4, 4)), (7, (3, 5)), (4, (9, 2)), (1, (3, 3))] {
            for row in bicubic_matrix(from, to).chunks_exact(from * from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }

    /// `F.interpolate(x, (1, 3 or 7), mode="bicubic", antialias=True)` in f32, each row of x (5, 5) being 0, 1, 4, 9, 16.
    #[test]
    fn values_equal_pytorch() {
        let squares: Vec<f64> = (0..25).map(|i| f64::from(i % 5).powi(2)).collect();
        let apply = |to| -> Vec<f64> {
            bicubic_matrix(5, (1, to))
                .chunks_exact(25)
                .map(|row| row.iter().zip(&squares).map(|(&w, x)| f64::from(w) * x).sum())
                .collect()
        };
        for (to, want) in [(3, &SMALLER[..]), (7, &LARGER[..])] {
            for (got, want) in apply(to).iter().zip(want) {
                assert!((got - want).abs() < 1e-5, "to {to}: {got} against {want}");
            }
        }
    }

    const SMALLER: [f64; 3] = [0.169_231_04, 4.195_348_74, 13.338_459_01];
    const LARGER: [f64; 7] = [-0.058_252_41, 0.360_111_09, 1.653_061_87, 4.0, 7.367_347_24, 12.415_513_04, 16.407_768_25];
}
