//! eˣ and the Gaussian on whole vectors, with fused multiply-adds.

use pulp::Simd;

/// eˣ for x ≤ 0, to about one part in 10⁷; 0 below −86.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let least = simd.splat_f32s(LEAST);
    let tiny = simd.less_than_f32s(x, least);
    let value = exp_above(simd, simd.select_f32s(tiny, least, x));
    simd.select_f32s(tiny, simd.splat_f32s(0.0), value)
}

/// Where eˣ is still a normal number, after rounding too.
const LEAST: f32 = -86.0;

/// eˣ for −86 ≤ x ≤ 0.
#[inline(always)]
fn exp_above<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    let round = simd.splat_f32s(12_582_912.0);
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), round);
    let n = simd.sub_f32s(shifted, round);
    // ln 2 in two parts, the first exact in products with small integers.
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let mut p = simd.splat_f32s(1.0 / 5040.0);
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(term));
    }
    // n moves into the exponent.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

/// The Gaussian's distribution function and density at x: (Φ(x), φ(x)), to 3e-7.
///
/// Abramowitz and Stegun 1964, formula 7.1.26, for the complementary error function.
#[inline(always)]
pub(crate) fn gauss<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let z = simd.mul_f32s(simd.abs_f32s(x), simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let power = simd.neg_f32s(simd.mul_f32s(z, z));
    let least = simd.splat_f32s(LEAST);
    let e = exp_above(simd, simd.select_f32s(simd.less_than_f32s(power, least), least, power));
    let one = simd.splat_f32s(1.0);
    let t = simd.div_f32s(one, simd.mul_add_e_f32s(z, simd.splat_f32s(0.327_591_1), one));
    // The formula's coefficients by half.
    let mut p = simd.splat_f32s(0.530_702_7);
    for term in [-0.726_576, 0.710_706_9, -0.142_248_37, 0.127_414_8] {
        p = simd.mul_add_e_f32s(p, t, simd.splat_f32s(term));
    }
    let tail = simd.mul_f32s(simd.mul_f32s(p, t), e);
    let below = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    (simd.select_f32s(below, tail, simd.sub_f32s(one, tail)), simd.mul_f32s(e, simd.splat_f32s(0.398_942_3)))
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::*;
    use crate::cpu::simd::ARCH;

    /// Both functions at one value.
    struct At(f32);

    impl WithSimd for At {
        type Output = [f32; 3];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [f32; 3] {
            let x = simd.splat_f32s(self.0);
            let (distribution, density) = gauss(simd, x);
            [exp(simd, x), distribution, density].map(|v| simd.reduce_max_f32s(v))
        }
    }

    #[test]
    fn exp_is_right_to_a_few_units() {
        for i in 0..20_000 {
            let x = -90.0 + i as f32 * 0.0045;
            let want = f64::from(x).exp();
            let got = f64::from(ARCH.dispatch(At(x))[0]);
            assert!((got - want).abs() <= 3e-7 * want + 5e-38, "exp({x}) = {got}, want {want}");
        }
        assert_eq!(ARCH.dispatch(At(f32::NEG_INFINITY))[0], 0.0);
        assert_eq!(ARCH.dispatch(At(0.0))[0], 1.0);
    }

    #[test]
    fn the_gaussian_is_that_of_the_plain_code_and_of_its_series() {
        for i in 0..4_000 {
            let x = -20.0 + i as f32 * 0.01;
            let (distribution, density) = crate::cpu::vector::gauss(x);
            let [_, got, slope] = ARCH.dispatch(At(x));
            assert!((got - distribution).abs() < 3e-7 && (slope - density).abs() < 3e-7, "at {x}");
            // Φ(x) = 1/2 + φ(x) Σ x²ᵏ⁺¹ / (1 · 3 · … · (2 k + 1)), which converges for every x.
            let z = f64::from(x);
            if z.abs() < 6.0 {
                let phi = (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt();
                let terms = (1..200).scan(z, |term, k| {
                    *term *= z * z / f64::from(2 * k + 1);
                    Some(*term)
                });
                let want = 0.5 + phi * (z + terms.sum::<f64>());
                assert!(
                    (f64::from(got) - want).abs() < 3e-7 && (f64::from(slope) - phi).abs() < 3e-7,
                    "at {x}: {got}, want {want}"
                );
            }
        }
    }
}
