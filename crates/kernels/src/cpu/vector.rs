//! Loops over slices that compile to the machine's vectors: plain code with as many partial sums as lanes, dispatched at
//! run time, so that results depend neither on the instruction set's width nor on the number of threads.

/// Declares a function whose body is compiled for every instruction set and dispatched at run time. What the body calls
/// must be `#[inline(always)]`.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$life:lifetime>($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$life>($($arg: $ty),*) $(-> $ret)? {
            struct Op<$life> { $($arg: $ty,)* marker: std::marker::PhantomData<&$life ()> }
            impl<$life> pulp::WithSimd for Op<$life> {
                type Output = $crate::cpu::vector::vectorized!(@ret $($ret)?);
                #[inline(always)]
                fn with_simd<Simd: pulp::Simd>(self, _: Simd) -> Self::Output {
                    let Op { $($arg,)* marker: _ } = self;
                    $body
                }
            }
            $crate::cpu::simd::ARCH.dispatch(Op { $($arg,)* marker: std::marker::PhantomData })
        }
    };
    (@ret) => { () };
    (@ret $ret:ty) => { $ret };
}
pub(crate) use vectorized;

/// Partial sums of a reduction.
const LANES: usize = 32;

/// Folds `term(i)` of `0..len` into [`LANES`] partial sums, and those in order.
#[inline(always)]
fn reduce(len: usize, start: f32, term: impl Fn(usize) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let whole = len / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane = join(*lane, term(i + j));
        }
    }
    for (lane, i) in lanes.iter_mut().zip(whole..len) {
        *lane = join(*lane, term(i));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] = join(lanes[j], lanes[j + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ term(i) in `f64`, in eight partial sums.
#[inline(always)]
pub(crate) fn reduce_f64(len: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0f64; 8];
    let whole = len / 8 * 8;
    for i in (0..whole).step_by(8) {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += term(i + j);
        }
    }
    for (lane, i) in lanes.iter_mut().zip(whole..len) {
        *lane += term(i);
    }
    lanes.iter().sum()
}

/// Σ x.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    reduce(x.len(), 0.0, |i| x[i], |a, b| a + b)
}

/// Σ x · y.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    reduce(x.len(), 0.0, |i| x[i] * y[i], |a, b| a + b)
}

/// Σ (x − centre)².
#[inline(always)]
pub(crate) fn square_deviation(x: &[f32], centre: f32) -> f32 {
    reduce(x.len(), 0.0, |i| (x[i] - centre) * (x[i] - centre), |a, b| a + b)
}

/// The largest element; −∞ for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    reduce(x.len(), f32::NEG_INFINITY, |i| x[i], |a, b| if b > a { b } else { a })
}

/// Σ eˣ⁻ˢʰⁱᶠᵗ, for `shift` at least every x.
#[inline(always)]
pub(crate) fn sum_exp(x: &[f32], shift: f32) -> f32 {
    reduce(x.len(), 0.0, |i| exp(x[i] - shift), |a, b| a + b)
}

/// eˣ for x ≤ 0 (and a little above), to about one part in 10⁷; 0 below the smallest normal number.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x < -87.3 { -87.3 } else { x };
    let bounded = if bounded > 88.0 { 88.0 } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in products with small integers.
    let r = (bounded - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.3 { 0.0 } else { p * power }
}

/// The Gaussian's distribution function and density at x: (Φ(x), φ(x)), to 1e-7.
///
/// Abramowitz and Stegun 1964, formula 7.1.26, for the complementary error function.
#[inline(always)]
pub(crate) fn gauss(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let e = exp(-z * z);
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * e;
    (if x < 0.0 { tail } else { 1.0 - tail }, e * 0.398_942_3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_a_few_units() {
        for i in 0..20_000 {
            let x = -90.0 + i as f32 * 0.0046;
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            assert!((got - want).abs() <= 3e-7 * want + 2e-38, "exp({x}) = {got}, want {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_take_every_element() {
        for len in 0..100 {
            let x: Vec<f32> = (0..len).map(|i| i as f32 - 40.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(dot(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
        }
    }
}
