//! JPEG files, by zune-jpeg itself: the `image` crate reads the headers of each three times, which for small images takes longer
//! than the pixels.

use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{MAX_SIDE, bad, check_size};
use crate::Result;

/// Decodes a whole JPEG to `Luma8` or `Rgb8`, turned upright.
pub(super) fn decode(raw: &[u8], name: &Path) -> Result<DynamicImage> {
    if !is_whole(raw) {
        return Err(bad(name, "the JPEG data breaks off before its end"));
    }
    let side = MAX_SIDE as usize;
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(side).set_max_height(side);
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
