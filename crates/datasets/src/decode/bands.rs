//! TIFF files of several bands: what the `image` crate refuses, since it is no picture.
//!
//! A file is one of bands when its photometric interpretation is gray and it has two samples a pixel or more, or when it is colour beside
//! samples that are not said to be alpha (near infrared, usually). Gray with alpha is a picture, which is read here as well. Unsigned
//! samples of 8 or 16 bits are read, in pixels or in planes.

use std::io::{Cursor, Read, Seek};
use std::path::Path;

use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::{MAX_BYTES, bad, check_size};
use crate::bands::MAX_CHANNELS;
use crate::{BandLevels, Bands, Result};

/// Values of the tags that matter (TIFF 6.0, sections 4 and 8).
const GRAY: [u16; 2] = [0, 1];
const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const UNSPECIFIED: u16 = 0;
const PLANES: u16 = 2;
const UNSIGNED: u16 = 1;
const PHOTOMETRIC_TAG: u16 = 262;

/// What a file of bands says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Width and height in pixels.
    pub(crate) size: (u32, u32),
    /// Bands, from 2.
    pub(crate) channels: usize,
    /// Bits a sample.
    pub(crate) bits: u16,
    /// Whether they are gray and alpha: a picture.
    pub(crate) is_picture: bool,
    planes: bool,
    unsigned: bool,
}

/// Whether content begins as a TIFF file does.
pub(crate) fn is_tiff(raw: &[u8]) -> bool {
    [&b"II*\0"[..], b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| raw.starts_with(magic))
}

/// What a TIFF file says of its bands; `None` where it is another picture or damaged, which the decoder of pictures then tells.
pub(crate) fn shape(file: impl Read + Seek) -> Option<Shape> {
    let mut decoder = Decoder::new(file).ok()?;
    let samples = number(&mut decoder, Tag::SamplesPerPixel).unwrap_or(1);
    let photometric = number(&mut decoder, Tag::PhotometricInterpretation)?;
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).ok().flatten().unwrap_or_default();
    let has_alpha = extra.first().is_some_and(|&kind| kind != UNSPECIFIED);
    let is_bands = match photometric {
        gray if GRAY.contains(&gray) => samples > 1,
        RGB => samples > 4 || samples == 4 && extra.first() == Some(&UNSPECIFIED),
        _ => false,
    };
    let bits = decoder.find_tag_unsigned_vec::<u16>(Tag::BitsPerSample).ok().flatten()?;
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).ok().flatten().unwrap_or_default();
    is_bands.then_some(Shape {
        size: decoder.dimensions().ok()?,
        channels: usize::from(samples),
        is_picture: samples == 2 && has_alpha,
        bits: bits.first().copied().filter(|first| bits.iter().all(|b| b == first)).unwrap_or(0),
        planes: number(&mut decoder, Tag::PlanarConfiguration) == Some(PLANES),
        unsigned: formats.iter().all(|&f| f == UNSIGNED),
    })
}

fn number(decoder: &mut Decoder<impl Read + Seek>, tag: Tag) -> Option<u16> {
    decoder.find_tag_unsigned::<u16>(tag).ok().flatten()
}

impl Shape {
    /// Whether files of this shape are read.
    ///
    /// # Errors
    /// Too many bands or pixels, other samples than unsigned ones of 8 and 16 bits; `name` is told.
    pub(crate) fn check(self, name: &Path) -> Result<()> {
        check_size(self.size.0, self.size.1, name)?;
        if self.channels > MAX_CHANNELS {
            return Err(bad(name, format!("has {} bands; at most {MAX_CHANNELS} are read", self.channels)));
        }
        if !matches!(self.bits, 8 | 16) || !self.unsigned {
            let kind = if self.unsigned { "" } else { "signed or floating-point " };
            return Err(bad(name, format!("has {kind}bands of {} bits; unsigned ones of 8 or 16 bits are read", self.bits)));
        }
        Ok(())
    }
}

/// Decodes a file of bands.
///
/// # Errors
/// A file that is none, is damaged, or is larger than any that is read.
pub(crate) fn decode(raw: Vec<u8>, name: &Path) -> Result<Bands> {
    let shape = shape(Cursor::new(&raw)).ok_or_else(|| bad(name, "is no TIFF file of several bands"))?;
    shape.check(name)?;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_BYTES as usize;
    limits.intermediate_buffer_size = MAX_BYTES as usize;
    let mut decoder = Decoder::new(Cursor::new(as_gray(raw))).map_err(|e| bad(name, e))?.with_limits(limits);
    let mut found = DecodingResult::U8(Vec::new());
    decoder.read_image_to_buffer(&mut found).map_err(|e| bad(name, e))?;
    let levels = match found {
        DecodingResult::U8(v) => BandLevels::Bytes(interleaved(v, shape)),
        DecodingResult::U16(v) => BandLevels::Words(interleaved(v, shape)),
        _ => return Err(bad(name, "has samples of another kind than it says")),
    };
    Bands::new(shape.size.0, shape.size.1, shape.channels, levels).map_err(|e| bad(name, e))
}

/// Samples pixel by pixel.
fn interleaved<T: Copy>(samples: Vec<T>, shape: Shape) -> Vec<T> {
    let pixels = samples.len() / shape.channels;
    if !shape.planes || samples.len() != pixels * shape.channels {
        return samples;
    }
    (0..pixels).flat_map(|p| (0..shape.channels).map(move |c| c * pixels + p)).map(|i| samples[i]).collect()
}

/// The same file with its colours called gray levels: the decoder leaves out what comes beside colours.
fn as_gray(mut raw: Vec<u8>) -> Vec<u8> {
    let found = photometric(&raw);
    if let Some((place, big_endian)) = found
        && let Some(value) = raw.get_mut(place..place + 2)
    {
        value.copy_from_slice(&if big_endian { BLACK_IS_ZERO.to_be_bytes() } else { BLACK_IS_ZERO.to_le_bytes() });
    }
    raw
}

/// Where the first directory's photometric interpretation stands, and whether the file has the highest byte first.
fn photometric(raw: &[u8]) -> Option<(usize, bool)> {
    let big_endian = raw.starts_with(b"MM");
    let number = |place: usize, length: usize| {
        let bytes = raw.get(place..place.checked_add(length)?)?;
        let add = |n: u64, b: &u8| n << 8 | u64::from(*b);
        Some(if big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
    };
    // BigTIFF has wider counts and places.
    let big = number(2, 2)? == 43;
    let (start, head, entry) = if big { (number(8, 8)?, 8, 20) } else { (number(4, 4)?, 2, 12) };
    let start = usize::try_from(start).ok()?;
    let first = start.checked_add(head)?;
    let count = usize::try_from(number(start, head)?).ok()?.min(raw.len() / entry);
    let place = (0..count).map(|i| first + i * entry).find(|&at| number(at, 2) == Some(u64::from(PHOTOMETRIC_TAG)))?;
    Some((place + if big { 12 } else { 8 }, big_endian))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiff::encoder::TiffEncoder;

    /// A little-endian file of one strip (pixels) or one strip a plane.
    fn file(
        size: (u16, u16),
        channels: u16,
        photometric: u16,
        extra: &[u16],
        planes: bool,
        samples: &[u16],
    ) -> anyhow::Result<Vec<u8>> {
        let mut out = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut out)?;
        let mut directory = encoder.image_directory()?;
        let strips: Vec<&[u16]> =
            if planes { samples.chunks(samples.len() / usize::from(channels)).collect() } else { vec![samples] };
        let places = strips.iter().map(|s| directory.write_data(*s)).collect::<Result<Vec<u64>, _>>()?;
        let lengths: Vec<u32> = strips.iter().map(|s| 2 * s.len() as u32).collect();
        let places: Vec<u32> = places.into_iter().map(u32::try_from).collect::<Result<_, _>>()?;
        directory.write_tag(Tag::ImageWidth, size.0)?;
        directory.write_tag(Tag::ImageLength, size.1)?;
        directory.write_tag(Tag::BitsPerSample, &vec![16_u16; channels.into()][..])?;
        directory.write_tag(Tag::Compression, 1_u16)?;
        directory.write_tag(Tag::PhotometricInterpretation, photometric)?;
        directory.write_tag(Tag::StripOffsets, &places[..])?;
        directory.write_tag(Tag::SamplesPerPixel, channels)?;
        directory.write_tag(Tag::RowsPerStrip, size.1)?;
        directory.write_tag(Tag::StripByteCounts, &lengths[..])?;
        directory.write_tag(Tag::PlanarConfiguration, if planes { 2_u16 } else { 1 })?;
        if !extra.is_empty() {
            directory.write_tag(Tag::ExtraSamples, extra)?;
        }
        directory.finish()?;
        Ok(out.into_inner())
    }

    #[test]
    fn bands_come_back_from_pixels_planes_and_beside_colours() -> anyhow::Result<()> {
        let name = Path::new("x.tif");
        let samples: Vec<u16> = (0..5 * 6).map(|i| i * 2003).collect();
        for (photometric, extra) in [(1, vec![0, 0, 0, 0]), (2, vec![0, 0]), (1, Vec::new())] {
            let raw = file((3, 2), 5, photometric, &extra, false, &samples)?;
            assert!(is_tiff(&raw) && shape(Cursor::new(&raw)).is_some_and(|s| (s.size, s.channels, s.bits) == ((3, 2), 5, 16)));
            let found = decode(raw, name)?;
            assert_eq!(found.levels(), &BandLevels::Words(samples.clone()), "photometric {photometric}");
        }
        let planes: Vec<u16> = (0..5).flat_map(|c| (0..6).map(move |p| p * 5 + c)).map(|i: usize| samples[i]).collect();
        let found = decode(file((3, 2), 5, 1, &[0, 0, 0, 0], true, &planes)?, name)?;
        assert_eq!(found.levels(), &BandLevels::Words(samples.clone()));
        // Gray with alpha and colour with alpha are pictures.
        let raw = file((3, 2), 4, 2, &[2], false, &samples[..24])?;
        assert_eq!(shape(Cursor::new(&raw)), None);
        let raw = file((3, 2), 2, 1, &[2], false, &samples[..12])?;
        assert!(shape(Cursor::new(&raw)).is_some_and(|s| s.is_picture));
        let image = crate::decode::decode_bytes(&raw, name)?;
        assert_eq!(image.to_luma8().as_raw()[2], ((4 * 2003 + 128) / 257) as u8);
        let header = crate::decode::header(&raw, name)?;
        assert!(header.gray && header.bands.is_none());
        let infrared = file((3, 2), 4, 2, &[0], false, &samples[..24])?;
        assert_eq!(decode(infrared, name)?.channels(), 4);
        Ok(())
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() -> anyhow::Result<()> {
        let samples: Vec<u16> = (0..5 * 6).collect();
        let whole = file((3, 2), 5, 2, &[0, 0], false, &samples)?;
        for i in 0..whole.len() {
            for raw in [whole[..i].to_vec(), whole.iter().enumerate().map(|(n, b)| if n == i { b ^ 0xff } else { *b }).collect()]
            {
                let _ = photometric(&raw);
                let _ = decode(raw, Path::new("x.tif"));
            }
        }
        let many = file((3, 2), 17, 1, &[], false, &vec![0; 17 * 6])?;
        let told = decode(many, Path::new("x.tif")).expect_err("17 bands").to_string();
        assert!(told.contains("17 bands") && told.contains("x.tif"), "{told}");
        Ok(())
    }
}
