//! Hue, through the 8-bit HSV of PIL: a rotation in steps of 1/255 of the circle, exact to PIL's rounding for every colour.
//!
//! PIL computes with a mix of `float` and `double`. Here everything is `f32`, so that a vector holds twice as many pixels; where a
//! rounding of the last bit would change a level, the product is taken in two exact halves.

use super::{floor, vectorised};
use crate::pixels::Pixels;

/// Turns every colour's hue by `turn` of the circle (−0.5..=0.5). Images of other than three channels stay as they are.
///
/// As in torchvision the turn is cut to a whole number of 255ths, and even a turn of 0 rounds colours to 8-bit HSV and back.
pub fn adjust_hue(pixels: &mut Pixels, turn: f64) {
    let shift = (turn * 255.0) as i32 & 0xff;
    let Some((red, green, blue)) = pixels.rgb_mut() else { return };
    vectorised(
        #[inline(always)]
        || {
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let (h, s, v) = hsv(i32::from(*r), i32::from(*g), i32::from(*b));
                let (new_r, new_g, new_b) = rgb((h + shift) & 0xff, s, v);
                (*r, *g, *b) = (new_r as u8, new_g as u8, new_b as u8);
            }
        },
    );
}

/// Hue, saturation and value, each 0..=255, of a colour.
#[inline(always)]
fn hsv(r: i32, g: i32, b: i32) -> (i32, f32, f32) {
    let max = r.max(g).max(b);
    let min = r.min(g).min(b);
    let chroma = max - min;
    // The middle channel's distance from the largest, as a share of the chroma, up or down from a multiple of a sixth.
    let share = (2 * max + min - r - g - b) as f32 / chroma.max(1) as f32;
    let (start, sign) = if r == max {
        if g >= b { (1.0, -1.0) } else { (-1.0, 1.0) }
    } else if g == max {
        if r <= b { (3.0, -1.0) } else { (1.0, 1.0) }
    } else if g <= r {
        (5.0, -1.0)
    } else {
        (3.0_f32, 1.0_f32)
    };
    let sixth = (start + sign * share) / 6.0;
    let hue = if sixth < 0.0 { sixth + 1.0 } else { sixth };
    // ⌊hue · 255⌋ of the exact product.
    let high = f32::from_bits(hue.to_bits() & 0xffff_ff00);
    let (high, low) = (high * 255.0, (hue - high) * 255.0);
    let whole = floor(high + low);
    let whole = if whole as f32 - high > low { whole - 1 } else { whole };
    let hue = if chroma == 0 { 0 } else { whole };
    let saturation = floor((chroma * 255) as f32 / max.max(1) as f32);
    (hue, saturation as f32, max as f32)
}

/// The colour of a hue, saturation and value, each 0..=255.
#[inline(always)]
fn rgb(h: i32, s: f32, v: f32) -> (i32, i32, i32) {
    let angle = h as f32 * 6.0 / 255.0;
    let sector = floor(angle); // 0..=6
    let f = angle - sector as f32;
    let s = s / 255.0;
    let round = |x: f32| floor(x + 0.5);
    let p = round(v * (1.0 - s));
    let q = round(v * (1.0 - s * f));
    let t = round(v * (1.0 - s * (1.0 - f)));
    let v = floor(v);
    let sector = if sector == 6 { 0 } else { sector };
    let pick = |values: [i32; 6]| {
        let low = if sector == 0 { values[0] } else { values[1] };
        let mid = if sector == 2 { values[2] } else { values[3] };
        let high = if sector == 4 { values[4] } else { values[5] };
        let upper = if sector >= 4 { high } else { mid };
        if sector < 2 { low } else { upper }
    };
    (pick([v, q, p, p, t, v]), pick([t, v, v, q, p, p]), pick([p, p, t, v, v, q]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PIL's conversions in its own precision: `float` quotients, `double` in between.
    fn reference_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        if max == min {
            return (0, 0, max);
        }
        let chroma = f32::from(max - min);
        let part = |c: u8| f64::from(f32::from(max - c) / chroma);
        let h = if r == max {
            part(b) - part(g)
        } else if g == max {
            2.0 + part(r) - part(b)
        } else {
            4.0 + part(g) - part(r)
        } as f32;
        let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
        let s = chroma / f32::from(max);
        ((f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max)
    }

    fn reference_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
        // Exact integers: numerators over 255 and 255².
        let (h, s, v) = (u64::from(h), u64::from(s), u64::from(v));
        let (sector, f) = (h * 6 / 255, h * 6 % 255);
        let p = (2 * v * (255 - s) + 255) / 510;
        let q = (2 * v * (65025 - s * f) + 65025) / 130_050;
        let t = (2 * v * (65025 - s * (255 - f)) + 65025) / 130_050;
        let (r, g, b) = match sector % 6 {
            0 => (v, t, p),
            1 => (q, v, p),
            2 => (p, v, t),
            3 => (p, q, v),
            4 => (t, p, v),
            _ => (v, p, q),
        };
        (r as u8, g as u8, b as u8)
    }

    #[test]
    fn every_colour_rounds_as_in_the_reference() {
        // A third of all colours: every pair of red and green, with blues of a stride that meets each residue.
        for r in 0..=255_u8 {
            for g in 0..=255_u8 {
                for b in (0..86_u16).map(|i| (i * 3 + u16::from(r ^ g) % 3).min(255) as u8) {
                    let (h, s, v) = hsv(r.into(), g.into(), b.into());
                    assert_eq!((h as u8, s as u8, v as u8), reference_hsv(r, g, b), "{r} {g} {b}");
                    let (h, s, v) = (r, g, b);
                    let (r, g, b) = rgb(h.into(), s.into(), v.into());
                    assert_eq!((r as u8, g as u8, b as u8), reference_rgb(h, s, v), "{h} {s} {v}");
                }
            }
        }
    }

    #[test]
    fn a_third_of_the_circle_takes_red_to_green() {
        let mut pixels = Pixels::from_interleaved(&[200, 0, 0], 1, 1, 3, 3);
        adjust_hue(&mut pixels, 1.0 / 3.0);
        assert_eq!(pixels.data(), [0, 200, 0]);
    }
}
