//! One image file: its header, its pixels, and whether it is all there.

pub(crate) mod bands;
mod jpeg;

use std::fs::File;
use std::io::{BufRead, Cursor, Read, Seek};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::levels::LevelRange;
use crate::part::{Choose, Part, Wanted, swaps_sides};
use crate::{Error, Result};

/// Endings of image files, in lower case.
pub const ENDINGS: [&str; 16] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "bmp", "gif", "webp", "tif", "tiff", "pnm", "ppm", "pgm", "pbm", "pam"];

/// Endings of image files of forms that are not read, in lower case: they are counted and told, so that nobody misses them unawares.
pub const UNREAD: [&str; 22] = [
    "heic", "heif", "avif", "jxl", "jp2", "j2k", "jpf", "tga", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "psd",
    "svg", "exr", "hdr", "dds", "ico",
];

/// Largest side of an image that is read at all.
const MAX_SIDE: u32 = 30_000;
/// Most pixels of an image that is read at all: what Pillow, too, takes for a decompression bomb.
const MAX_PIXELS: u64 = 178_956_970;
/// Largest file that is read, and most memory that a decoder may take.
pub(crate) const MAX_BYTES: u64 = 1 << 30;
/// Enough of a file for the header of nearly every image, and how much more is read where it is one that has more: descriptions and
/// previews may come before.
pub(crate) const HEADS: [u64; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Width and height once it is turned upright.
    pub(crate) size: (u32, u32),
    /// Whether it has no colour.
    pub(crate) gray: bool,
    /// Channels and bytes a level, where it is no picture but bands ([`crate::Bands`]).
    pub(crate) bands: Option<(usize, usize)>,
}

impl Header {
    /// Bytes of its decoded form: bands as they are, pictures in 8 bits and `channels` channels.
    pub(crate) fn bytes(self, channels: usize) -> u64 {
        let pixel = self.bands.map_or(channels, |(channels, bytes)| channels * bytes);
        u64::from(self.size.0) * u64::from(self.size.1) * pixel as u64
    }
}

/// Whether a file's ending is an image's.
pub(crate) fn has_image_ending(path: &Path) -> bool {
    ending(path).is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

/// A file's ending in lower case, if it is that of a form of images that is not read.
pub(crate) fn unread_ending(path: &Path) -> Option<String> {
    ending(path).filter(|e| UNREAD.contains(&e.as_str()))
}

fn ending(path: &Path) -> Option<String> {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase)
}

/// Decodes an image file of any known form by its content, turned upright by its EXIF orientation.
///
/// Of moving pictures the first frame is taken; palettes become colours, CMYK becomes RGB.
///
/// # Errors
/// A file that can't be read or decoded, a JPEG that breaks off, an image of more than 30,000 pixels a side or 179 million in all.
pub fn decode(path: &Path) -> Result<DynamicImage> {
    decode_bytes(&content(path, MAX_BYTES + 1)?, path)
}

/// Decodes the content of an image file, as [`decode`]; `name` is told in errors.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(raw: &[u8], name: &Path) -> Result<DynamicImage> {
    decode_part(raw, name, &mut |_, _| Wanted::all()).map(|part| part.image)
}

/// Decodes what is needed of the content of an image file: `choose` is told the upright image's width and height. Of most JPEGs only the
/// rectangles that it wants are decoded, of other images all; pixels are the same as those of [`decode_bytes`]. Where it allows a
/// [reduction](Wanted::reduction), most JPEGs are decoded at the largest of 1/1, 1/2, 1/4 and 1/8 that it allows: each pixel is the mean of a square
/// of the image's, to about a level (chroma that is stored at half the size counts without being enlarged and averaged again).
///
/// # Errors
/// As [`decode`]. Damage behind the part that is needed may go unnoticed.
pub fn decode_part(raw: &[u8], name: &Path, choose: &mut Choose<'_>) -> Result<Part> {
    decode_mapped(raw, name, None, choose)
}

/// As [`decode_part`], with levels of 16 bits mapped.
pub(crate) fn decode_mapped(raw: &[u8], name: &Path, levels: Option<LevelRange>, choose: &mut Choose<'_>) -> Result<Part> {
    if raw.len() as u64 > MAX_BYTES {
        return Err(bad(name, "larger than 1 GiB"));
    }
    if raw.starts_with(&[0xff, 0xd8]) {
        return jpeg::decode(raw, name, choose);
    }
    if raw.is_empty() {
        return Err(bad(name, "the file is empty"));
    }
    if bands::is_tiff(raw) && bands::shape(Cursor::new(raw)).is_some_and(|s| s.is_picture) {
        let bands = bands::decode(raw.to_vec(), name)?;
        let bands = match levels {
            Some(range) => range.bands(bands),
            None => bands,
        };
        return Ok(Part::whole(bands.preview()));
    }
    let mut decoder = decoder(Cursor::new(raw), name)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, name)?;
    if decoder.total_bytes() > MAX_BYTES {
        return Err(bad(name, format!("{width} × {height} pixels take more than 1 GiB")));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| bad(name, e))?;
    image.apply_orientation(orientation);
    Ok(Part::whole(match levels {
        Some(range) => range.image(image),
        None => image,
    }))
}

/// As [`decode_mapped`], in 8 bits and 1 or 3 channels: alpha is dropped, gray repeated.
pub(crate) fn decode_as(
    raw: &[u8],
    name: &Path,
    channels: usize,
    levels: Option<LevelRange>,
    choose: &mut Choose<'_>,
) -> Result<Part> {
    let part = decode_mapped(raw, name, levels, choose)?;
    let image = if channels == 1 { part.image.into_luma8().into() } else { part.image.into_rgb8().into() };
    Ok(Part { image, ..part })
}

/// Reads an image's header from the beginning of its content.
///
/// # Errors
/// Content that begins as no image does, or says that the image is larger than any that is read.
pub(crate) fn header(raw: &[u8], name: &Path) -> Result<Header> {
    if raw.is_empty() {
        return Err(bad(name, "the file is empty"));
    }
    header_of(Cursor::new(raw), name)
}

/// As [`header`], from a file of which as little is read as its form allows.
///
/// # Errors
/// As [`header`]; a file that can't be read.
pub(crate) fn header_of(mut file: impl BufRead + Seek, name: &Path) -> Result<Header> {
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_ok() && bands::is_tiff(&magic) {
        file.rewind().map_err(Error::io(name))?;
        if let Some(shape) = bands::shape(&mut file) {
            shape.check(name)?;
            let bands = (!shape.is_picture).then_some((shape.channels, usize::from(shape.bits / 8)));
            return Ok(Header { size: shape.size, gray: shape.is_picture, bands });
        }
    }
    file.rewind().map_err(Error::io(name))?;
    let mut decoder = decoder(file, name)?;
    let (w, h) = decoder.dimensions();
    check_size(w, h, name)?;
    let turned = swaps_sides(decoder.orientation().unwrap_or(Orientation::NoTransforms));
    Ok(Header { size: if turned { (h, w) } else { (w, h) }, gray: !decoder.color_type().has_color(), bands: None })
}

fn check_size(width: u32, height: u32, name: &Path) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(bad(name, format!("it says to be {width} × {height} pixels large")));
    }
    if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        let most = format!("at most {MAX_SIDE} a side and {} million in all are read", MAX_PIXELS / 1_000_000);
        return Err(bad(name, format!("it says to be {width} × {height} pixels large; {most}")));
    }
    Ok(())
}

fn decoder<'a>(file: impl BufRead + Seek + 'a, name: &Path) -> Result<impl ImageDecoder + 'a> {
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(Error::io(name))?;
    if reader.format().is_none() {
        return Err(bad(name, "its content begins as no known form of image does"));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    reader.into_decoder().map_err(|e| bad(name, e))
}

/// The first `most` bytes of a regular file; anything else that has a name (a pipe, a device) is an error and not waited for.
pub(crate) fn content(path: &Path, most: u64) -> Result<Vec<u8>> {
    let about = std::fs::metadata(path).map_err(Error::io(path))?;
    if !about.is_file() {
        return Err(bad(path, "it is no regular file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let mut raw = Vec::with_capacity(about.len().min(most).min(MAX_BYTES) as usize);
    file.take(most).read_to_end(&mut raw).map_err(Error::io(path))?;
    Ok(raw)
}

fn bad(path: &Path, reason: impl ToString) -> Error {
    Error::BadImage { path: path.to_path_buf(), reason: reason.to_string().replace('\n', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{ImageEncoder as _, RgbImage};

    fn picture() -> RgbImage {
        RgbImage::from_fn(90, 60, |x, y| image::Rgb([(x * 7 + y * 3) as u8, (x ^ y) as u8, (y * 5) as u8]))
    }

    /// EXIF of one entry: orientation `value`.
    fn exif(value: u8) -> Vec<u8> {
        let mut raw = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        raw.extend([value, 0, 0, 0, 0, 0, 0, 0]);
        raw
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_an_error() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.jpg");
        picture().save(&path)?;
        let whole = std::fs::read(&path)?;
        assert_eq!(decode(&path)?.width(), 90);
        for end in [1, 2, 3, 20, 300, whole.len() / 3, whole.len() / 2, whole.len() - 10, whole.len() - 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..end])?;
            let text = decode(&path).expect_err("it is cut").to_string();
            assert!(text.contains("x.jpg"), "{text}");
        }
        // What cameras append does no harm.
        std::fs::write(&path, [&whole[..], &[0xff, 0xd8, 1, 2, 3]].concat())?;
        assert_eq!(decode(&path)?.width(), 90);
        Ok(())
    }

    #[test]
    fn exif_turns_the_image_and_its_size() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("turned.jpg");
        for (value, size) in [(1, (90, 60)), (3, (90, 60)), (6, (60, 90)), (8, (60, 90))] {
            let mut encoder = JpegEncoder::new_with_quality(File::create(&path)?, 100);
            encoder.set_exif_metadata(exif(value))?;
            encoder.encode_image(&picture())?;
            let image = decode(&path)?;
            assert_eq!((image.width(), image.height()), size, "orientation {value}");
            assert_eq!(header(&content(&path, HEADS[1])?, &path)?, Header { size, gray: false, bands: None });
            let corner = image.to_rgb8().get_pixel(if value == 6 { 59 } else { 0 }, if value == 8 { 89 } else { 0 }).0;
            let want = if value == 3 { picture().get_pixel(89, 59).0 } else { picture().get_pixel(0, 0).0 };
            assert!(corner.iter().zip(want).all(|(a, b)| a.abs_diff(b) < 40), "orientation {value}: {corner:?} {want:?}");
        }
        Ok(())
    }

    #[test]
    fn an_image_that_claims_to_be_huge_is_refused_at_once() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("bomb.pgm");
        std::fs::write(&path, b"P5 29000 29000 65535\n\0")?;
        assert!(decode(&path).is_err());
        std::fs::write(&path, b"P5 4000000000 2 255\n\0")?;
        assert!(decode(&path).is_err() && header(&content(&path, HEADS[1])?, &path).is_err());
        Ok(())
    }
}
