//! Operations on the distribution of levels: posterise, equalise, channels dropped. As PIL's `ImageOps` does them, a channel at a time.

use super::vectorised;
use crate::pixels::Pixels;

/// Keeps the `bits` highest bits of every level (1 to 8; 8 changes nothing).
pub fn posterize(pixels: &mut Pixels, bits: u8) {
    let mask = 0xff_u8 << (8 - bits.clamp(1, 8));
    let data = pixels.data_mut();
    vectorised(
        #[inline(always)]
        || data.iter_mut().for_each(|v| *v &= mask),
    );
}

/// Spreads the levels of every channel so that each occurs about as often as any other. A channel of one level stays as it is.
pub fn equalize(pixels: &mut Pixels) {
    for c in 0..pixels.channels() {
        let plane = pixels.plane_mut(c);
        let mut counts = [0_usize; 256];
        plane.iter().for_each(|&v| counts[usize::from(v)] += 1);
        let Some(last) = counts.iter().rfind(|&&n| n > 0) else { continue };
        if *last == plane.len() {
            continue;
        }
        let step = (plane.len() - last) / 255;
        if step == 0 {
            continue;
        }
        let mut table = [0; 256];
        let mut sum = step / 2;
        for (to, count) in table.iter_mut().zip(counts) {
            *to = (sum / step).min(255) as u8;
            sum += count;
        }
        plane.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
    }
}

/// Fills channel `c` with `level`.
pub fn drop_channel(pixels: &mut Pixels, c: usize, level: u8) {
    pixels.plane_mut(c).fill(level);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_channel_is_not_equalised_and_others_do_not_mind_it() {
        let raw: Vec<u8> = (0..1024).flat_map(|i| [77, (i % 16) as u8, 0]).collect();
        let mut pixels = Pixels::from_interleaved(&raw, 32, 32, 3, 3);
        equalize(&mut pixels);
        assert!(pixels.plane_mut(0).iter().all(|&v| v == 77));
        // What Pillow makes of it.
        let expected = [0, 21, 43, 64, 85, 107, 128, 149, 171, 192, 213, 235, 255, 255, 255, 255];
        assert_eq!(pixels.plane_mut(1)[..16], expected);
    }

    #[test]
    fn bits_are_cut_from_below() {
        let mut pixels = Pixels::from_interleaved(&[0, 1, 127, 128, 255], 5, 1, 1, 1);
        posterize(&mut pixels, 8);
        assert_eq!(pixels.data(), [0, 1, 127, 128, 255]);
        posterize(&mut pixels, 1);
        assert_eq!(pixels.data(), [0, 0, 0, 128, 128]);
        drop_channel(&mut pixels, 0, 9);
        assert_eq!(pixels.data(), [9; 5]);
    }
}
