//! The artefacts of JPEG compression: an image written and read again.

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat, ImageReader};

use crate::error::{Error, Result};
use crate::pixels::Pixels;

/// Writes the image as a JPEG of `quality` (1 to 100) and reads it back. One or three channels.
///
/// # Errors
/// Another number of channels, a side over 65,535.
pub fn jpeg(pixels: &mut Pixels, quality: u8) -> Result<()> {
    let (width, height, channels) = (pixels.width(), pixels.height(), pixels.channels());
    let failed = |reason: String| Error::Jpeg { width, height, channels, reason };
    let color = match channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        _ => return Err(failed("JPEG has 1 or 3 channels".into())),
    };
    let mut file = Vec::new();
    let raw = pixels.to_image().into_bytes();
    JpegEncoder::new_with_quality(&mut file, quality.clamp(1, 100))
        .encode(&raw, width as u32, height as u32, color)
        .map_err(|e| failed(e.to_string()))?;
    let read = ImageReader::with_format(std::io::Cursor::new(file), ImageFormat::Jpeg).decode();
    let image = read.map_err(|e| failed(e.to_string()))?;
    let raw = if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
    pixels.assign_interleaved(&raw, width, height, channels, channels);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_quality_is_further_from_the_image_than_high() {
        let raw: Vec<u8> = (0..40 * 24 * 3).map(|i| ((i / 3 % 40) * 5 + (i % 3) * 20) as u8 ^ (i / 360) as u8).collect();
        for channels in [1, 3] {
            let before = Pixels::from_interleaved(&raw, 40, 24, 3, channels);
            let apart = |quality| {
                let mut pixels = before.clone();
                jpeg(&mut pixels, quality).unwrap();
                let sum: u32 = pixels.data().iter().zip(before.data()).map(|(&a, &b)| u32::from(a.abs_diff(b))).sum();
                f64::from(sum) / before.data().len() as f64
            };
            assert!(apart(5) > apart(60) && apart(60) > 0.0 && apart(100) < 8.0, "{channels} channels");
        }
        let mut two = Pixels::default();
        two.reshape(4, 4, 2);
        assert!(jpeg(&mut two, 50).is_err());
    }
}
