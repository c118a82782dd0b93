//! Parts of images: what a reader needs of one, and what a decoder gave.

use image::DynamicImage;
use image::metadata::Orientation;

/// A rectangle of whole pixels of an upright image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Distance from the left edge.
    pub left: u32,
    /// Distance from the top edge.
    pub top: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// What a reader needs of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The rectangles that are needed; none means all of the image. What reaches beyond the image is cut off.
    pub parts: Vec<Rect>,
    /// How many times smaller the image may be made on both axes, where its form allows that to be done for less than decoding all of it: 1
    /// for not at all. The decoder may take any less.
    pub reduction: u32,
}

/// Says what is needed of an upright image of the given width and height.
pub type Choose<'a> = dyn FnMut(u32, u32) -> Wanted + 'a;

/// What was decoded of an image: a part that holds the rectangles that were asked for, or more of it, or all. Within the part, pixels
/// outside the rectangles are of no meaning.
#[derive(Debug, Clone)]
pub struct Part {
    /// The part's pixels. Where the part is [reduced](Self::reduction), each is the mean of a square of the image's.
    pub image: DynamicImage,
    /// Where the part lies in the image: distance from the left edge in the image's own pixels. Negative where the first of the reduced
    /// pixels reaches beyond the edge (in images that are turned upright); the last one may, too.
    pub left: i32,
    /// Distance from the top edge.
    pub top: i32,
    /// Width of the whole image in its own pixels.
    pub width: u32,
    /// Height of the whole image in its own pixels.
    pub height: u32,
    /// The side of the square of the image's pixels that one of the part stands for: 1, 2, 4 or 8.
    pub reduction: u32,
}

impl Wanted {
    /// All of an image, as it is.
    pub fn all() -> Self {
        Vec::new().into()
    }
}

/// These rectangles, as they are.
impl From<Vec<Rect>> for Wanted {
    fn from(parts: Vec<Rect>) -> Self {
        Self { parts, reduction: 1 }
    }
}

impl Part {
    /// All of an image.
    pub fn whole(image: DynamicImage) -> Self {
        let (width, height) = (image.width(), image.height());
        Self { image, left: 0, top: 0, width, height, reduction: 1 }
    }
}

impl Rect {
    /// All of a `width` × `height` image.
    pub(crate) fn all(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// What `choose` wants of a `width` × `height` image, its rectangles within the image, and the smallest that holds them all.
    pub(crate) fn wanted(choose: &mut Choose<'_>, width: u32, height: u32) -> (Wanted, Self) {
        let Wanted { parts, reduction } = choose(width, height);
        let mut parts: Vec<Self> = parts.into_iter().filter_map(|r| r.within(width, height)).collect();
        if parts.is_empty() {
            parts.push(Self::all(width, height));
        }
        let bounds = parts.iter().copied().reduce(Self::join).unwrap_or(Self::all(width, height));
        (Wanted { parts, reduction }, bounds)
    }

    /// What of it lies within a `width` × `height` image, if anything.
    fn within(self, width: u32, height: u32) -> Option<Self> {
        let (left, top) = (self.left.min(width), self.top.min(height));
        let cut = Self { left, top, width: self.width.min(width - left), height: self.height.min(height - top) };
        (cut.width > 0 && cut.height > 0).then_some(cut)
    }

    /// The smallest rectangle that holds both.
    fn join(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// Where the rectangle lies in the image as it is stored, `width` × `height`, which `orientation` turns upright.
    pub(crate) fn stored(self, orientation: Orientation, (width, height): (u32, u32)) -> Self {
        let mut rect = match swaps_sides(orientation) {
            true => Self { left: self.top, top: self.left, width: self.height, height: self.width },
            false => self,
        };
        let (across, down) = runs_backwards(orientation);
        if across {
            rect.left = width - rect.left - rect.width;
        }
        if down {
            rect.top = height - rect.top - rect.height;
        }
        rect
    }

    /// The pixels of an image reduced `by` times that cover the rectangle.
    pub(crate) fn reduced(self, by: u32) -> Self {
        let span = |start: u32, length: u32| (start / by, (start + length).div_ceil(by) - start / by);
        let ((left, width), (top, height)) = (span(self.left, self.width), span(self.top, self.height));
        Self { left, top, width, height }
    }

    /// Where the upper left corner of those pixels lies in the upright image, in that image's pixels: they are squares of the image as it
    /// is stored, `size`.
    pub(crate) fn reduced_corner(self, orientation: Orientation, size: (u32, u32), by: u32) -> (i32, i32) {
        let stored = self.stored(orientation, size);
        let (across, down) = runs_backwards(orientation);
        let beyond = |start: u32, length: u32, backwards: bool| match backwards {
            true => (start + length).next_multiple_of(by) - (start + length),
            false => start % by,
        };
        let (x, y) = (beyond(stored.left, stored.width, across), beyond(stored.top, stored.height, down));
        let (x, y) = if swaps_sides(orientation) { (y, x) } else { (x, y) };
        (self.left as i32 - x as i32, self.top as i32 - y as i32)
    }
}

/// Whether the stored image's rows are columns of the upright one.
pub(crate) fn swaps_sides(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// Whether the stored image's columns, and whether its rows, run against those of the upright one.
fn runs_backwards(orientation: Orientation) -> (bool, bool) {
    use Orientation as O;
    (
        matches!(orientation, O::FlipHorizontal | O::Rotate180 | O::Rotate270 | O::Rotate270FlipH),
        matches!(orientation, O::FlipVertical | O::Rotate180 | O::Rotate90 | O::Rotate270FlipH),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_turned_image_is_turned_as_the_image_is() {
        let stored = DynamicImage::from(image::GrayImage::from_fn(7, 5, |x, y| image::Luma([(y * 7 + x) as u8])));
        let all = (1..=8).filter_map(Orientation::from_exif);
        assert_eq!(all.clone().count(), 8);
        for orientation in all {
            let mut upright = stored.clone();
            upright.apply_orientation(orientation);
            let rect = Rect { left: 1, top: 2, width: 3, height: 2 };
            let place = rect.stored(orientation, (7, 5));
            let mut part = stored.crop_imm(place.left, place.top, place.width, place.height);
            part.apply_orientation(orientation);
            assert_eq!(part, upright.crop_imm(rect.left, rect.top, rect.width, rect.height), "{orientation:?}");
        }
    }

    #[test]
    fn reduced_pixels_of_a_turned_image_lie_where_their_squares_do() {
        // Every stored pixel knows its square; the corner of the part is that of the square of its first pixel.
        let size = (13, 10);
        for by in [1, 2, 4, 8] {
            let squares = image::GrayImage::from_fn(size.0, size.1, |x, y| image::Luma([(y / by * 16 + x / by) as u8]));
            for orientation in (1..=8).filter_map(Orientation::from_exif) {
                let mut upright = DynamicImage::from(squares.clone());
                upright.apply_orientation(orientation);
                let (width, height) = (upright.width(), upright.height());
                for rect in [Rect::all(width, height), Rect { left: 1, top: 2, width: 3, height: 4 }] {
                    let cover = rect.stored(orientation, size).reduced(by);
                    let number = |x, y| image::Luma([((cover.top + y) * 16 + cover.left + x) as u8]);
                    let mut part = DynamicImage::from(image::GrayImage::from_fn(cover.width, cover.height, number));
                    part.apply_orientation(orientation);
                    let (left, top) = rect.reduced_corner(orientation, size, by);
                    for (x, y, level) in part.to_luma8().enumerate_pixels() {
                        let inside = |start: i32, i: u32, side: u32| {
                            let first = start + (i * by) as i32;
                            (first.max(0) as u32).min(side - 1)..((first + by as i32).max(1) as u32).min(side)
                        };
                        for (u, v) in inside(left, x, width).flat_map(|u| inside(top, y, height).map(move |v| (u, v))) {
                            assert_eq!(upright.to_luma8().get_pixel(u, v), level, "{orientation:?}, {by}, {rect:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rectangles_are_cut_at_the_edges_and_joined() {
        let rect = |left, top, width, height| Rect { left, top, width, height };
        let wanted = |rects: &[Rect]| {
            let (wanted, bounds) = Rect::wanted(&mut |_, _| rects.to_vec().into(), 10, 8);
            (wanted.parts, bounds)
        };
        assert_eq!(wanted(&[]), (vec![rect(0, 0, 10, 8)], rect(0, 0, 10, 8)));
        assert_eq!(wanted(&[rect(10, 0, 3, 3), rect(2, 2, 0, 5)]).1, rect(0, 0, 10, 8));
        let (parts, bounds) = wanted(&[rect(8, 7, u32::MAX, u32::MAX), rect(1, 2, 3, 4)]);
        assert_eq!((parts, bounds), (vec![rect(8, 7, 2, 1), rect(1, 2, 3, 4)], rect(1, 2, 9, 6)));
    }
}
