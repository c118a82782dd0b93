//! Images of up to 16 channels, for pictures that are no photographs: bands of satellites, stains, slices.

use crate::error::{Error, Result};

/// Borrowed pixels: rows of interleaved channels, 8 or 16 bits.
#[derive(Debug, Clone, Copy)]
pub struct Raster<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) channels: usize,
    pub(crate) levels: Levels<'a>,
}

/// The levels of a [`Raster`].
#[derive(Debug, Clone, Copy)]
pub enum Levels<'a> {
    /// 8 bits a channel.
    Bytes(&'a [u8]),
    /// 16 bits a channel, which become 8 (`v / 257`, rounded) once they are resized.
    Words(&'a [u16]),
}

impl<'a> Raster<'a> {
    /// `levels` of a `width` × `height` image of `channels` (1 to 16).
    ///
    /// # Errors
    /// Another number of channels, no pixels, levels of another number.
    pub fn new(width: u32, height: u32, channels: usize, levels: Levels<'a>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::EmptyImage { width, height });
        }
        let found = match levels {
            Levels::Bytes(v) => v.len(),
            Levels::Words(v) => v.len(),
        };
        let expected = width as usize * height as usize * channels;
        if !(1..=16).contains(&channels) || found != expected {
            let reason = format!("{found} levels of {channels} channels (1 to 16), expected {expected}");
            return Err(Error::Resize { width, height, reason });
        }
        Ok(Self { width, height, channels, levels })
    }
}
