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

/// Says which rectangles of an upright image of the given width and height are needed; none means all of it. What reaches beyond the
/// image is cut off.
pub type Choose<'a> = dyn FnMut(u32, u32) -> Vec<Rect> + 'a;

/// What was decoded of an image: a part that holds the rectangles that were asked for, or more of it, or all. Within the part, pixels
/// outside the rectangles are of no meaning.
#[derive(Debug, Clone)]
pub struct Part {
    /// The part's pixels.
    pub image: DynamicImage,
    /// Where the part lies in the image: distance from the left edge.
    pub left: u32,
    /// Distance from the top edge.
    pub top: u32,
    /// Width of the whole image in pixels.
    pub width: u32,
    /// Height of the whole image in pixels.
    pub height: u32,
}

impl Part {
    /// All of an image.
    pub fn whole(image: DynamicImage) -> Self {
        let (width, height) = (image.width(), image.height());
        Self { image, left: 0, top: 0, width, height }
    }
}

impl Rect {
    /// All of a `width` × `height` image.
    pub(crate) fn all(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// The rectangles that `choose` wants of a `width` × `height` image, within it, and the smallest that holds them all.
    pub(crate) fn wanted(choose: &mut Choose<'_>, width: u32, height: u32) -> (Vec<Self>, Self) {
        let mut parts: Vec<Self> = choose(width, height).into_iter().filter_map(|r| r.within(width, height)).collect();
        if parts.is_empty() {
            parts.push(Self::all(width, height));
        }
        let bounds = parts.iter().copied().reduce(Self::join).unwrap_or(Self::all(width, height));
        (parts, bounds)
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
        use Orientation as O;
        let turned = matches!(orientation, O::Rotate90 | O::Rotate270 | O::Rotate90FlipH | O::Rotate270FlipH);
        let mut rect = match turned {
            true => Self { left: self.top, top: self.left, width: self.height, height: self.width },
            false => self,
        };
        if matches!(orientation, O::FlipHorizontal | O::Rotate180 | O::Rotate270 | O::Rotate270FlipH) {
            rect.left = width - rect.left - rect.width;
        }
        if matches!(orientation, O::FlipVertical | O::Rotate180 | O::Rotate90 | O::Rotate270FlipH) {
            rect.top = height - rect.top - rect.height;
        }
        rect
    }
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
    fn rectangles_are_cut_at_the_edges_and_joined() {
        let rect = |left, top, width, height| Rect { left, top, width, height };
        let wanted = |rects: &[Rect]| Rect::wanted(&mut |_, _| rects.to_vec(), 10, 8);
        assert_eq!(wanted(&[]), (vec![rect(0, 0, 10, 8)], rect(0, 0, 10, 8)));
        assert_eq!(wanted(&[rect(10, 0, 3, 3), rect(2, 2, 0, 5)]).1, rect(0, 0, 10, 8));
        let (parts, bounds) = wanted(&[rect(8, 7, u32::MAX, u32::MAX), rect(1, 2, 3, 4)]);
        assert_eq!((parts, bounds), (vec![rect(8, 7, 2, 1), rect(1, 2, 3, 4)], rect(1, 2, 9, 6)));
    }
}
