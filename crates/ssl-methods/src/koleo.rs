//! The Kozachenko-Leonenko regulariser (Sablayrolles et al. 2019), as DINOv2 uses it: vectors of a batch keep away from their nearest.

use candle_core::{D, DType, Tensor};
use twinsight_kernels::{l2_normalize, linear};

use crate::Result;

const EPS: f64 = 1e-8;

/// −1/N Σ log(dᵢ + 1e-8), dᵢ the distance of row i to its nearest other row, both scaled to length 1.
///
/// Same values as lightly's `KoLeoLoss` and DINOv2's.
///
/// # Shapes
/// `x` (N, D) with N ≥ 2; the result is a scalar.
///
/// # Errors
/// When `x` is not of two axes.
pub fn koleo_loss(x: &Tensor) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    let x = l2_normalize(x, EPS)?;
    let fixed = x.detach();
    let itself = (Tensor::eye(n, DType::F32, x.device())? * -4.0)?;
    let nearest = (linear(&fixed, &fixed, None)? + itself)?.argmax(D::Minus1)?;
    let difference = ((&x - x.index_select(&nearest, 0)?)? + EPS)?;
    let distance = difference.sqr()?.sum(D::Minus1)?.sqrt()?;
    Ok((distance + EPS)?.log()?.mean_all()?.neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::matches_golden;

    #[test]
    fn the_loss_equals_lightly() -> anyhow::Result<()> {
        matches_golden("loss_koleo", &[("x", "grad_x")], |x, _| Ok(koleo_loss(&x[0])?))
    }
}
