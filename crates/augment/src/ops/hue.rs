//! Hue, through the 8-bit HSV of PIL: a rotation in steps of 1/255 of the circle, exact to PIL's rounding for every colour.
//!
//! PIL computes with a mix of `float` and `double`. Here everything is `f32` or whole numbers, so that a vector holds twice as many pixels;
//! the tests find no colour that rounds otherwise.

use super::{floor, nearest, vectorised};
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
fn hsv(r: i32, g: i32, b: i32) -> (i32, i32, i32) {
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
    let turn = if sixth < 0.0 { sixth + 1.0 } else { sixth };
    let hue = if chroma == 0 { 0 } else { floor(turn * 255.0) };
    (hue, floor((chroma * 255) as f32 / max.max(1) as f32), max)
}

/// The colour of a hue, saturation and value, each 0..=255.
#[inline(always)]
fn rgb(h: i32, s: i32, v: i32) -> (i32, i32, i32) {
    let angle = h * 6;
    // ⌊angle / 255⌋, 0..=6, and what is left of the angle, in 255ths.
    let sector = (angle * 257 + 257) >> 16;
    let f = (angle - 255 * sector) as f32;
    // Products of three levels are whole numbers below 2²⁴, and quotients never fall on a half.
    let (value, drop) = (v as f32, (v * s) as f32);
    let p = nearest(value - drop * (1.0 / 255.0));
    let q = nearest(value - drop * f * (1.0 / 65_025.0));
    let t = nearest(value - drop * (255.0 - f) * (1.0 / 65_025.0));
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
