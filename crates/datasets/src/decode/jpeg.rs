//! JPEG files. Those of the usual kind are decoded here, as far as they are needed; all others by zune-jpeg itself (the `image` crate reads
//! the headers of each three times, which for small images takes longer than the pixels).

mod color;
mod header;
mod huffman;
mod idct;
mod planes;

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use self::color::Lines;
use self::header::Frame;
use self::huffman::Table;
use self::planes::{Plane, Segments};
use super::{MAX_SIDE, bad, check_size};
use crate::Result;
use crate::part::{Choose, Part, Rect, Wanted, swaps_sides};

/// Memory above which a thread keeps none of it from one image to the next, in bytes.
const KEPT: usize = 32 << 20;

/// Most pixels, and most bytes of a file, that are decoded here: the levels of all components are held beside the pixels, which the
/// general decoder does without.
const MOST: usize = 64 << 20;

/// What a thread keeps from one image to the next. Contents never carry over, but for tables of codes that come again.
#[derive(Default)]
struct Scratch {
    data: Vec<u8>,
    segments: Segments,
    tables: [[Table; 2]; 3],
    planes: [Plane; 3],
    lines: Lines,
}

/// Decodes what `choose` wants of a JPEG to `Luma8` or `Rgb8`, turned upright.
///
/// Ordinary files are decoded here, no more of them than is needed, and reduced where that is allowed; other kinds, and those in which
/// anything is amiss, by the general decoder and as a whole. Both give the same pixels where nothing is reduced.
pub(super) fn decode(raw: &[u8], name: &Path, choose: &mut Choose<'_>) -> Result<Part> {
    match ordinary(raw, name, choose) {
        Some(part) => Ok(part),
        None => general(raw, name).map(Part::whole),
    }
}

/// Decodes an ordinary JPEG; `None` where it is another kind or anything is amiss.
fn ordinary(raw: &[u8], name: &Path, choose: &mut Choose<'_>) -> Option<Part> {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    let frame = header::read(raw)?;
    let size = (frame.width as u32, frame.height as u32);
    check_size(size.0, size.1, name).ok()?;
    if frame.unchecked {
        JpegDecoder::new_with_options(ZCursor::new(raw), options()).decode_headers().ok()?;
    }
    let orientation = frame.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
    let (width, height) = if swaps_sides(orientation) { (size.1, size.0) } else { size };
    let (Wanted { parts, reduction }, bounds) = Rect::wanted(choose, width, height);
    // The largest power of two that is allowed.
    let reduction = 1 << reduction.clamp(1, 8).ilog2();
    let stored = |r: Rect| r.stored(orientation, size).reduced(reduction);
    let out = stored(bounds);
    if raw.len() > MOST || out.width as usize * out.height as usize > MOST {
        return None;
    }
    let parts: Vec<Rect> = parts.into_iter().map(stored).collect();
    let mut image = SCRATCH.with_borrow_mut(|scratch| {
        let image = scratch.decode(&frame, reduction as usize, &parts, out);
        if scratch.planes.iter().map(Plane::bytes).sum::<usize>() + scratch.data.capacity() > KEPT {
            scratch.planes.iter_mut().for_each(Plane::release);
            scratch.data = Vec::new();
        }
        image
    })?;
    image.apply_orientation(orientation);
    let (left, top) = bounds.reduced_corner(orientation, size, reduction);
    Some(Part { image, left, top, width, height, reduction })
}

impl Scratch {
    /// The pixels `bounds` of the stored image, reduced `reduction` times, of which `parts` are needed.
    fn decode(&mut self, frame: &Frame<'_>, reduction: usize, parts: &[Rect], bounds: Rect) -> Option<DynamicImage> {
        let Self { data, segments, tables, planes, lines } = self;
        planes::unstuff(frame.rest, data, segments)?;
        for (component, [dc, ac]) in frame.components.iter().zip(&mut *tables) {
            dc.set(component.dc, true);
            ac.set(component.ac, false);
        }
        let channels = frame.components.len();
        let mut pixels = vec![0; bounds.width as usize * bounds.height as usize * channels];
        let out = &mut pixels[..];
        pulp::Arch::new().dispatch(Work { frame, reduction, parts, bounds, data, segments, tables, planes, lines, out })?;
        match channels {
            1 => GrayImage::from_raw(bounds.width, bounds.height, pixels).map(DynamicImage::from),
            _ => RgbImage::from_raw(bounds.width, bounds.height, pixels).map(DynamicImage::from),
        }
    }
}

/// All of the work on coded data, compiled for each set of vector instructions. (A closure's body would be called rather than inlined
/// where they are switched on, and stay without them.)
struct Work<'a> {
    frame: &'a Frame<'a>,
    reduction: usize,
    parts: &'a [Rect],
    bounds: Rect,
    data: &'a [u8],
    segments: &'a [Range<usize>],
    tables: &'a [[Table; 2]; 3],
    planes: &'a mut [Plane; 3],
    lines: &'a mut Lines,
    out: &'a mut [u8],
}

impl pulp::WithSimd for Work<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Option<()> {
        let Self { frame, reduction, parts, bounds, data, segments, tables, planes, lines, out } = self;
        planes::decode(frame, reduction, parts, data, segments, tables, planes)?;
        let (left, width, channels) = (bounds.left as usize, bounds.width as usize, frame.components.len());
        // Reduced planes are all of the same size.
        let ratio = if reduction == 1 { (frame.components[0].across, frame.components[0].down) } else { (1, 1) };
        let [luma, cb, cr] = &*planes;
        for (y, out) in (bounds.top as usize..).zip(out.chunks_exact_mut(width * channels)) {
            let here = parts.iter().filter(|r| (r.top as usize..(r.top + r.height) as usize).contains(&y));
            let spans = here.map(|r| (r.left as usize, (r.left + r.width) as usize));
            let Some((start, end)) = spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else { continue };
            let out = &mut out[(start - left) * channels..(end - left) * channels];
            match channels {
                1 => out.copy_from_slice(luma.row(y, start..end)),
                _ => color::row([luma, cb, cr], ratio, y, start..end, lines, out),
            }
        }
        Some(())
    }
}

fn options() -> DecoderOptions {
    let side = MAX_SIDE as usize;
    DecoderOptions::default().set_strict_mode(false).set_max_width(side).set_max_height(side)
}

/// Decodes a whole JPEG of any kind.
fn general(raw: &[u8], name: &Path) -> Result<DynamicImage> {
    if !is_whole(raw) {
        return Err(bad(name, "the JPEG data breaks off before its end"));
    }
    let options = options();
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(raw), options);
    decoder.decode_headers().map_err(|e| bad(name, e))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let (width, height) = (width as u32, height as u32);
    check_size(width, height, name)?;
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    if gray {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::Luma));
    }
    let orientation = decoder.exif().and_then(|e| Orientation::from_exif_chunk(e)).unwrap_or(Orientation::NoTransforms);
    let pixels = decoder.decode().map_err(|e| bad(name, e))?;
    let image = match gray {
        true => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        false => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    let mut image = image.ok_or_else(|| bad(name, "the decoder gave another number of pixels than it announced"))?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Whether a JPEG's segments (ITU-T T.81, annex B) go on to the end-of-image marker. Decoders fill what is missing with gray and
/// say nothing, and an encoder would learn from that.
fn is_whole(raw: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // To the next marker: a byte 0xff followed by neither a stuffed zero nor more filling.
        let marker = loop {
            let Some(next) = raw.get(at..).and_then(|rest| memchr::memchr(0xff, rest)) else { return false };
            at += next;
            match raw.get(at + 1) {
                None => return false,
                Some(0x00) => at += 2,
                Some(0xff) => at += 1,
                Some(&marker) => break marker,
            }
        };
        at += 2;
        match marker {
            0xd9 => return true,
            // Without length: restart markers, start of image, TEM.
            0xd0..=0xd8 | 0x01 => {}
            _ => match raw.get(at..at + 2) {
                Some(length) => at += usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
}
