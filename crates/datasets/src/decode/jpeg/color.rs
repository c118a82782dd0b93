//! From levels of components to pixels: chroma brought to the size of luma (each new level three parts of the nearer and one of the
//! farther, first down and then across, rounded half up each time), and YCbCr to RGB by ITU-R 601 in 14 bits after the point, as the
//! general decoder does both, bit for bit.

use std::ops::Range;

use super::planes::Plane;

/// Lines to work in.
#[derive(Debug, Default)]
pub(super) struct Lines {
    down: Vec<u8>,
    chroma: [Vec<u8>; 2],
}

/// Converts the pixels `columns` of row `y`, both of the image, to interleaved RGB. `across` and `down` are how much smaller the chroma
/// planes are (1 or 2).
#[inline(always)]
pub(super) fn row(
    [luma, cb, cr]: [&Plane; 3],
    (across, down): (usize, usize),
    y: usize,
    columns: Range<usize>,
    lines: &mut Lines,
    out: &mut [u8],
) {
    let luma = luma.row(y, columns.clone());
    if (across, down) == (1, 1) {
        return convert(luma, cb.row(y, columns.clone()), cr.row(y, columns), out);
    }
    for (plane, line) in [cb, cr].into_iter().zip(&mut lines.chroma) {
        enlarge(plane, (across, down), y, columns.clone(), &mut lines.down, line);
    }
    // Lines of double width begin at an even pixel.
    let skip = columns.start % across;
    let [cb, cr] = &lines.chroma;
    convert(luma, &cb[skip..], &cr[skip..], out);
}

/// Row `y` of a chroma plane at the size of luma, from the pixel (even where it is enlarged across) at or before `columns` on.
#[inline(always)]
fn enlarge(
    plane: &Plane,
    (across, down): (usize, usize),
    y: usize,
    columns: Range<usize>,
    rows: &mut Vec<u8>,
    line: &mut Vec<u8>,
) {
    let first = columns.start / across;
    let end = (columns.end - 1) / across + 1;
    // With the neighbours on both sides, where there are such.
    let (left, right) = (first.saturating_sub(across - 1), (end + across - 1).min(plane.width));
    let near = plane.row(y / down, left..right);
    rows.clear();
    if down == 1 {
        rows.extend_from_slice(near);
    } else {
        let other = if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(plane.height - 1) };
        let far = plane.row(other, left..right);
        rows.resize(near.len(), 0);
        rows.iter_mut().zip(near).zip(far).for_each(|((to, &near), &far)| *to = mix(near, far));
    }
    line.clear();
    if across == 1 {
        line.extend_from_slice(rows);
        return;
    }
    // Edges are repeated, which leaves the outermost levels as they are.
    if left == first {
        rows.insert(0, rows[0]);
    }
    if right == end {
        rows.push(rows[rows.len() - 1]);
    }
    line.resize(2 * (end - first), 0);
    let pairs = line.as_chunks_mut::<2>().0;
    for (((pair, &before), &near), &after) in pairs.iter_mut().zip(&*rows).zip(&rows[1..]).zip(&rows[2..]) {
        *pair = [mix(near, before), mix(near, after)];
    }
}

#[inline(always)]
fn mix(near: u8, far: u8) -> u8 {
    ((3 * u16::from(near) + u16::from(far) + 2) >> 2) as u8
}

#[inline(always)]
fn convert(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    for (((pixel, &y), &cb), &cr) in out.as_chunks_mut::<3>().0.iter_mut().zip(luma).zip(cb).zip(cr) {
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        let y = i32::from(y) * 16_384 + 8191;
        let level = |v: i32| (v >> 14).clamp(0, 255) as u8;
        *pixel = [level(y + cr * 22_970), level(y - cr * 11_700 - cb * 5638), level(y + cb * 29_032)];
    }
}
