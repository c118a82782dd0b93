//! Rounding to bfloat16 and back, for values that are only kept, never computed with.

use super::memory::filled;
use super::vector::vectorized;
use rayon::prelude::*;

/// Values that one task converts.
const BLOCK: usize = 65_536;

/// The upper halves of the values' bits, rounded to nearest, ties to even; NaN stays NaN.
pub(crate) fn narrowed(x: &[f32]) -> Vec<u16> {
    let mut out = vec![0u16; x.len()];
    out.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(out, x)| narrow(x, out));
    out
}

/// The values that the bits stand for.
pub(crate) fn widened(x: &[u16]) -> Vec<f32> {
    // SAFETY: `zip` goes through all of a block, since the source has as many values from `start` on.
    unsafe {
        filled(x.len(), BLOCK, |start, out| {
            for (out, &x) in out.iter_mut().zip(&x[start..]) {
                out.write(f32::from_bits(u32::from(x) << 16));
            }
        })
    }
}

vectorized! {
    fn narrow<'a>(x: &'a [f32], out: &'a mut [u16]) {
        for (out, x) in out.iter_mut().zip(x) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            *out = if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded as u16 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rounds_as_the_definition_says() {
        let x = [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, -3.3e38, f32::INFINITY, f32::NEG_INFINITY, 1e-40, f32::MAX];
        let back = widened(&narrowed(&x));
        // 1 + 1/256 lies halfway between 1 and 1 + 1/128 and goes to the even one; 1 + 3/256 goes up.
        assert_eq!(&back[..5], &[0.0, -0.0, 1.0, 1.0, 1.015_625]);
        assert!((back[5] / x[5] - 1.0).abs() < 1.0 / 256.0);
        assert_eq!(&back[6..8], &[f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(back[9], f32::INFINITY, "beyond the largest bfloat16");
        for nan in [f32::NAN, f32::from_bits(0xffff_ffff), f32::from_bits(0x7f80_0001)] {
            assert!(widened(&narrowed(&[nan]))[0].is_nan(), "{:x}", nan.to_bits());
        }
        let many: Vec<f32> = (0..100_003).map(|i| (i as f32 * 0.37).sin()).collect();
        assert!(widened(&narrowed(&many)).iter().zip(&many).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
    }
}
