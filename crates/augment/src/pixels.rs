//! The buffer that operations work on: 8-bit levels, one plane a channel.
//!
//! Planes rather than interleaved pixels, because every operation then runs over whole vectors of one channel, and because
//! the view ends as channels × height × width anyway.

use image::{DynamicImage, GrayImage, RgbImage};

use crate::ops::vectorised;

/// An 8-bit image of 1 to 16 channels, in planes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pixels {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

impl Pixels {
    /// The levels of an interleaved (height × width × channels) buffer.
    ///
    /// `from` channels (1 gray, 2 gray and alpha, 3 colour, 4 colour and alpha) become `to` (1 or 3): alpha is dropped, gray is
    /// replicated, colour becomes luma ([`crate::ops::luma`]).
    ///
    /// # Panics
    /// When the buffer is not `width * height * from` long, or a number of channels is none of those.
    pub fn from_interleaved(raw: &[u8], width: usize, height: usize, from: usize, to: usize) -> Self {
        let mut pixels = Self::default();
        pixels.assign_interleaved(raw, width, height, from, to);
        pixels
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 (gray), 3 (red, green, blue), or up to 16 of any meaning.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// All levels: channels × height × width.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// All levels, to be changed.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The levels of channel `c`: height × width.
    pub fn plane_mut(&mut self, c: usize) -> &mut [u8] {
        let area = self.width * self.height;
        &mut self.data[c * area..(c + 1) * area]
    }

    /// The red, green and blue planes, or nothing when there are other than three channels.
    pub(crate) fn rgb_mut(&mut self) -> Option<(&mut [u8], &mut [u8], &mut [u8])> {
        if self.channels != 3 {
            return None;
        }
        let area = self.width * self.height;
        let (red, rest) = self.data.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        Some((red, green, blue))
    }

    /// As [`Pixels::from_interleaved`], into this buffer's memory.
    pub(crate) fn assign_interleaved(&mut self, raw: &[u8], width: usize, height: usize, from: usize, to: usize) {
        let area = width * height;
        assert_eq!(raw.len(), area * from, "an interleaved buffer of {width}×{height}×{from}");
        self.reshape(width, height, to);
        match (from, to) {
            (1, 1) => self.data.copy_from_slice(raw),
            (1, 3) => self.data.chunks_exact_mut(area.max(1)).for_each(|plane| plane.copy_from_slice(raw)),
            (2, 1) => split_first::<2>(raw, &mut self.data),
            (2, 3) => {
                let (red, rest) = self.data.split_at_mut(area);
                split_first::<2>(raw, red);
                rest.chunks_exact_mut(area.max(1)).for_each(|plane| plane.copy_from_slice(red));
            }
            (3, 1) => join_luma::<3>(raw, &mut self.data),
            (4, 1) => join_luma::<4>(raw, &mut self.data),
            (3, 3) => split_rgb::<3>(raw, &mut self.data),
            (4, 3) => split_rgb::<4>(raw, &mut self.data),
            (from, to) if from == to => {
                for (c, plane) in self.data.chunks_exact_mut(area.max(1)).enumerate() {
                    plane.iter_mut().zip(raw[c..].iter().step_by(from)).for_each(|(to, &level)| *to = level);
                }
            }
            _ => panic!("{from} channels cannot become {to}: from 1 to 4 and to 1 or 3 are known"),
        }
    }

    /// Takes a size; the levels are whatever they were.
    pub(crate) fn reshape(&mut self, width: usize, height: usize, channels: usize) {
        (self.width, self.height, self.channels) = (width, height, channels);
        self.data.resize(width * height * channels, 0);
    }

    /// The image as interleaved pixels: `Luma8` or `Rgb8`; of other than 1 and 3 channels the first three (or the first, of two).
    pub fn to_image(&self) -> DynamicImage {
        let (w, h) = (self.width as u32, self.height as u32);
        let area = self.width * self.height;
        if self.channels < 3 {
            let data = self.data[..area].to_vec();
            return GrayImage::from_raw(w, h, data).expect("a plane has one level a pixel").into();
        }
        let mut raw = Vec::with_capacity(3 * area);
        for i in 0..area {
            raw.extend([self.data[i], self.data[area + i], self.data[2 * area + i]]);
        }
        RgbImage::from_raw(w, h, raw).expect("three planes have three levels a pixel").into()
    }
}

fn split_first<const N: usize>(raw: &[u8], plane: &mut [u8]) {
    for (pixel, level) in raw.chunks_exact(N).zip(plane) {
        *level = pixel[0];
    }
}

fn split_rgb<const N: usize>(raw: &[u8], planes: &mut [u8]) {
    vectorised(
        #[inline(always)]
        || {
            let area = raw.len() / N;
            let (red, rest) = planes.split_at_mut(area);
            let (green, blue) = rest.split_at_mut(area);
            for (((pixel, r), g), b) in raw.chunks_exact(N).zip(red).zip(green).zip(blue) {
                (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
            }
        },
    );
}

fn join_luma<const N: usize>(raw: &[u8], plane: &mut [u8]) {
    for (pixel, level) in raw.chunks_exact(N).zip(plane) {
        *level = crate::ops::luma(pixel[0], pixel[1], pixel[2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_become_what_the_plan_wants() {
        let to = |raw: &[u8], from, to| Pixels::from_interleaved(raw, 2, 1, from, to).data().to_vec();
        assert_eq!(to(&[1, 2], 1, 1), [1, 2]);
        assert_eq!(to(&[1, 2], 1, 3), [1, 2, 1, 2, 1, 2]);
        assert_eq!(to(&[1, 9, 2, 9], 2, 1), [1, 2]);
        assert_eq!(to(&[1, 9, 2, 9], 2, 3), [1, 2, 1, 2, 1, 2]);
        assert_eq!(to(&[255, 0, 0, 0, 255, 0], 3, 1), [76, 150]);
        assert_eq!(to(&[255, 0, 0, 7, 0, 255, 0, 7], 4, 1), [76, 150]);
        assert_eq!(to(&[1, 2, 3, 4, 5, 6], 3, 3), [1, 4, 2, 5, 3, 6]);
        assert_eq!(to(&[1, 2, 3, 9, 4, 5, 6, 9], 4, 3), [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn an_image_survives_the_way_there_and_back() {
        let raw: Vec<u8> = (0..3 * 4 * 5).collect();
        assert_eq!(Pixels::from_interleaved(&raw, 4, 5, 3, 3).to_image().as_bytes(), raw);
    }
}
