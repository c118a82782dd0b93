//! TIFF files of several bands, as programs for satellite images write them: one strip of pixels after the directory.

use anyhow::{Result, ensure};

/// A little-endian file of `size` (width, height) and `bands` of 16 bits; `samples` are height × width × bands.
///
/// # Errors
/// Samples of another number.
pub fn bands(size: (u16, u16), bands: u16, samples: &[u16]) -> Result<Vec<u8>> {
    ensure!(samples.len() == usize::from(size.0) * usize::from(size.1) * usize::from(bands), "{} samples", samples.len());
    const SHORT: u16 = 3;
    const LONG: u16 = 4;
    // Tag, type, count, value: width, height, bits, compression, gray levels, place, samples, rows, bytes, kind of the extra samples.
    let entries = 10;
    let bits_at = 8 + 2 + entries * 12 + 4;
    let extra_at = bits_at + 2 * u32::from(bands);
    let pixels_at = extra_at + 2 * u32::from(bands);
    let directory = [
        (256, SHORT, 1, u32::from(size.0)),
        (257, SHORT, 1, u32::from(size.1)),
        (258, SHORT, u32::from(bands), bits_at),
        (259, SHORT, 1, 1),
        (262, SHORT, 1, 1),
        (273, LONG, 1, pixels_at),
        (277, SHORT, 1, u32::from(bands)),
        (278, SHORT, 1, u32::from(size.1)),
        (279, LONG, 1, 2 * samples.len() as u32),
        (338, SHORT, u32::from(bands) - 1, extra_at),
    ];
    let mut raw = b"II*\0\x08\0\0\0".to_vec();
    raw.extend((directory.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in directory {
        raw.extend(u16::to_le_bytes(tag));
        raw.extend(kind.to_le_bytes());
        raw.extend(u32::to_le_bytes(count));
        raw.extend(value.to_le_bytes());
    }
    raw.extend([0; 4]);
    raw.extend((0..bands).flat_map(|_| 16_u16.to_le_bytes()));
    // None of the samples is alpha.
    raw.extend((0..bands).flat_map(|_| 0_u16.to_le_bytes()));
    raw.extend(samples.iter().flat_map(|s| s.to_le_bytes()));
    Ok(raw)
}
