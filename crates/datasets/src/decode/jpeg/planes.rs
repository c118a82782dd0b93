//! The levels of each component of a JPEG, in as much of the image as is asked for.

use std::ops::Range;

use super::header::Frame;
use super::huffman::{Bits, Block, PAD, Table};
use super::idct;
use crate::part::Rect;

/// Levels of one component, in whole blocks, of a part of its plane.
#[derive(Debug, Default)]
pub(super) struct Plane {
    /// The whole plane's width and height.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Width and height of a block in levels: 8 where it is not reduced.
    block: (usize, usize),
    /// The blocks that are kept: for each row of blocks of the plane the first and the one behind the last.
    spans: Vec<Range<usize>>,
    /// The first kept row of blocks, and the leftmost kept block of all.
    top: usize,
    left: usize,
    stride: usize,
    levels: Vec<u8>,
}

/// Where a part of the coded data begins and ends: what lies between two restart markers, without stuffed bytes, and [`PAD`] zeros.
pub(super) type Segments = Vec<Range<usize>>;

impl Plane {
    /// Makes room for the levels that the pixels `parts` (of the image that is made) need. `blocks` is the plane's size in blocks, `block`
    /// that of one in levels; `across` and `down` are how much smaller than the image the plane is.
    fn set(&mut self, blocks: (usize, usize), block: (usize, usize), (across, down): (usize, usize), parts: &[Rect]) {
        (self.width, self.height) = (block.0 * blocks.0, block.1 * blocks.1);
        self.block = block;
        self.spans.clear();
        self.spans.resize(blocks.1, 0..0);
        for part in parts {
            // A level that is enlarged needs its neighbours.
            let span = |start: u32, length: u32, ratio: usize, block: usize, side: usize| {
                let (first, last) = (start as usize / ratio, (start + length - 1) as usize / ratio);
                first.saturating_sub(ratio - 1) / block..((last + ratio - 1) / block + 1).min(side)
            };
            let columns = span(part.left, part.width, across, block.0, blocks.0);
            for row in &mut self.spans[span(part.top, part.height, down, block.1, blocks.1)] {
                *row = match row.start >= row.end {
                    true => columns.clone(),
                    false => row.start.min(columns.start)..row.end.max(columns.end),
                };
            }
        }
        let kept = || self.spans.iter().filter(|s| !s.is_empty());
        self.top = self.spans.iter().position(|s| !s.is_empty()).unwrap_or(0);
        self.left = kept().map(|s| s.start).min().unwrap_or(0);
        self.stride = block.0 * (kept().map(|s| s.end).max().unwrap_or(0) - self.left);
        let needed = block.1 * (self.end() - self.top) * self.stride;
        if self.levels.len() < needed {
            self.levels.resize(needed, 0);
        }
    }

    /// The row of blocks behind the last that is kept.
    fn end(&self) -> usize {
        self.spans.iter().rposition(|s| !s.is_empty()).map_or(0, |last| last + 1)
    }

    /// Levels of a row, which must be kept.
    #[inline(always)]
    pub(super) fn row(&self, y: usize, columns: Range<usize>) -> &[u8] {
        let start = (y - self.block.1 * self.top) * self.stride;
        let left = self.block.0 * self.left;
        &self.levels[start + columns.start - left..start + columns.end - left]
    }

    /// Gives its memory back.
    pub(super) fn release(&mut self) {
        self.levels = Vec::new();
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.levels.capacity()
    }
}

/// Copies coded data up to the end-of-image marker without its stuffed bytes and markers, [`PAD`] zeros after each part.
///
/// `None` where anything but restart markers interrupts it, or it has no end.
pub(super) fn unstuff(rest: &[u8], data: &mut Vec<u8>, segments: &mut Segments) -> Option<()> {
    data.clear();
    segments.clear();
    let (mut at, mut start) = (0, 0);
    loop {
        let next = at + memchr::memchr(0xff, rest.get(at..)?)?;
        match *rest.get(next + 1)? {
            0 => {
                data.extend_from_slice(&rest[at..=next]);
                at = next + 2;
            }
            marker @ (0xd0..=0xd7 | 0xd9) => {
                data.extend_from_slice(&rest[at..next]);
                data.extend_from_slice(&[0; PAD]);
                segments.push(start..data.len());
                (at, start) = (next + 2, data.len());
                if marker == 0xd9 {
                    return Some(());
                }
            }
            _ => return None,
        }
    }
}

/// Decodes the levels that the pixels `parts` of the image, reduced `reduction` times, need into `planes`. `tables` holds a DC and an AC
/// table for each component.
///
/// Reduced planes are all of the image's size: chroma that is stored at half of luma's is reduced half as much.
///
/// `None` where the data is not sound as far as it was read: to the last row of units that is needed.
#[inline(always)]
pub(super) fn decode(
    frame: &Frame<'_>,
    reduction: usize,
    parts: &[Rect],
    data: &[u8],
    segments: &[Range<usize>],
    tables: &[[Table; 2]; 3],
    planes: &mut [Plane; 3],
) -> Option<()> {
    // Two copies of the loop: the one over whole blocks keeps their size as a constant.
    if reduction == 1 {
        decode_at::<false>(frame, reduction, parts, data, segments, tables, planes)
    } else {
        decode_at::<true>(frame, reduction, parts, data, segments, tables, planes)
    }
}

/// As [`decode`]; `REDUCED` where `reduction` is above 1.
#[inline(always)]
fn decode_at<const REDUCED: bool>(
    frame: &Frame<'_>,
    reduction: usize,
    parts: &[Rect],
    data: &[u8],
    segments: &[Range<usize>],
    tables: &[[Table; 2]; 3],
    planes: &mut [Plane; 3],
) -> Option<()> {
    let most = |side: fn(&super::header::Component<'_>) -> usize| frame.components.iter().map(side).max().unwrap_or(1);
    let (across, down) = (most(|c| c.across), most(|c| c.down));
    let (columns, rows) = (frame.width.div_ceil(8 * across), frame.height.div_ceil(8 * down));
    let mut factors = [[0; 128]; 3];
    let mut end = 0;
    for ((component, plane), factors) in frame.components.iter().zip(&mut *planes).zip(&mut factors) {
        factors[..64].copy_from_slice(&component.factors);
        let smaller = (across / component.across, down / component.down);
        let (block, ratio) = match reduction {
            1 => ((8, 8), smaller),
            _ => ((8 * smaller.0 / reduction, 8 * smaller.1 / reduction), (1, 1)),
        };
        plane.set((columns * component.across, rows * component.down), block, ratio, parts);
        end = end.max(plane.end().div_ceil(component.down));
    }
    let restart = if frame.restart == 0 { columns * rows } else { frame.restart };
    if segments.len() != (columns * rows).div_ceil(restart) {
        return None;
    }
    let mut segments = segments.iter();
    let mut bits = Bits::new(&data[segments.next()?.clone()]);
    let mut before = [0; 3];
    // A block is transformed once the next one is read: by then its coefficients, written one by one, can be read as vectors at once.
    let mut blocks = [[0; 128]; 2];
    let mut turn = false;
    let mut waiting: Option<Waiting> = None;
    let mut until_restart = restart;
    for row in 0..end {
        for column in 0..columns {
            if until_restart == 0 {
                // A part ends with less than a byte of filling.
                if !(0..8).contains(&bits.left()) {
                    return None;
                }
                bits = Bits::new(&data[segments.next()?.clone()]);
                before = [0; 3];
                until_restart = restart;
            }
            until_restart -= 1;
            for (c, component) in frame.components.iter().enumerate() {
                let [dc, ac] = &tables[c];
                let (factors, before) = (&factors[c], &mut before[c]);
                for y in row * component.down..(row + 1) * component.down {
                    for x in column * component.across..(column + 1) * component.across {
                        let plane = &mut planes[c];
                        if !plane.spans[y].contains(&x) {
                            bits.block::<false>(dc, ac, factors, before, &mut blocks[0])?;
                            continue;
                        }
                        let block = if REDUCED { plane.block } else { (8, 8) };
                        let start = block.1 * (y - plane.top) * plane.stride + block.0 * (x - plane.left);
                        if REDUCED && block == (1, 1) {
                            bits.block::<false>(dc, ac, factors, before, &mut blocks[0])?;
                            plane.levels[start] = idct::mean(before.wrapping_mul(factors[0]));
                        } else {
                            let [even, odd] = &mut blocks;
                            let (block, other) = if turn { (odd, even) } else { (even, odd) };
                            turn = !turn;
                            let last = bits.block::<true>(dc, ac, factors, before, block)?;
                            if let Some(w) = waiting.replace(Waiting { component: c, start, last }) {
                                w.transform::<REDUCED>(other, planes);
                            }
                        }
                    }
                }
            }
        }
        if bits.left() < 0 {
            return None;
        }
    }
    if let Some(w) = waiting {
        w.transform::<REDUCED>(&blocks[usize::from(!turn)], planes);
    }
    Some(())
}

/// Where a block that was read belongs.
struct Waiting {
    component: usize,
    start: usize,
    last: usize,
}

impl Waiting {
    #[inline(always)]
    fn transform<const REDUCED: bool>(&self, block: &Block, planes: &mut [Plane; 3]) {
        let plane = &mut planes[self.component];
        let out = &mut plane.levels[self.start..];
        match plane.block {
            smaller if REDUCED && smaller != (8, 8) => idct::reduce(block, self.last, smaller, out, plane.stride),
            _ => idct::transform(block, self.last, out, plane.stride),
        }
    }
}
