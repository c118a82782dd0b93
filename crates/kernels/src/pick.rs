//! Some rows of a matrix, of which the gradient comes back to their places.

use candle_core::{Result, Tensor, bail};

use crate::check;

/// The rows of `x` at `places`, in their order. candle's `index_select` adds gradients up, since it takes a row several times; this takes each
/// once, so that a device can put them back all at the same time.
///
/// # Shapes
/// `x` (M, D); `places`: K numbers below M. The result is (K, D).
///
/// # Errors
/// When `x` is not `f32` or has not two axes, or a place is not below M or named twice.
pub fn pick_rows(x: &Tensor, places: &[u32]) -> Result<Tensor> {
    const OP: &str = "pick_rows";
    check::f32(OP, "x", x)?;
    let [m, _] = *x.dims() else { bail!("{OP}: x has shape {:?}, expected (M, D)", x.dims()) };
    let mut taken = vec![false; m];
    for &place in places {
        match taken.get_mut(place as usize) {
            None => bail!("{OP}: there is no row {place}; x has {m}"),
            Some(true) => bail!("{OP}: row {place} is named twice"),
            Some(free) => *free = true,
        }
    }
    let places = Tensor::new(places, x.device())?;
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor::serves(x) && places.elem_count() > 0 {
        return crate::cuda::elementwise::pick_rows(&x.contiguous()?, &places);
    }
    x.contiguous()?.index_select(&places, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn rows_are_picked_and_their_gradients_come_back() -> Result<()> {
        let x = Var::from_tensor(&Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((4, 3))?)?;
        let y = pick_rows(&x, &[3, 1])?;
        assert_eq!(y.to_vec2::<f32>()?, [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]);
        let gradient = (&y * &y)?.sum_all()?.backward()?.get(&x).expect("a gradient").to_vec2::<f32>()?;
        assert_eq!(gradient, [[0.0; 3], [6.0, 8.0, 10.0], [0.0; 3], [18.0, 20.0, 22.0]]);
        for (wrong, words) in [(&[4][..], "no row 4; x has 4"), (&[1, 2, 1], "row 1 is named twice")] {
            assert!(pick_rows(&x, wrong).expect_err("refused").to_string().contains(words));
        }
        assert!(pick_rows(&x.flatten_all()?, &[0]).is_err());
        Ok(())
    }
}
