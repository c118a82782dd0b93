//! Parts of JPEGs: the same pixels as all of the image has, which are the general decoder's, for every sampling, with and without restart
//! markers; and damaged files, which behave as they do there.

use std::path::Path;

use image::DynamicImage;
use proptest::prelude::*;
use twinsight_datasets::decode::{decode_bytes, decode_part};
use twinsight_datasets::{Part, Rect};
use twinsight_test_support::jpeg::{Jpeg, Sampling};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// What the general decoder makes of a file that is not cut off.
fn reference(raw: &[u8]) -> Option<Vec<u8>> {
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(30_000).set_max_height(30_000);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(raw), options);
    decoder.decode_headers().ok()?;
    if decoder.input_colorspace() == Some(ColorSpace::Luma) {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::Luma));
    }
    decoder.decode().ok()
}

fn name() -> &'static Path {
    Path::new("x.jpg")
}

fn part(raw: &[u8], rects: &[Rect]) -> Part {
    decode_part(raw, name(), &mut |_, _| rects.to_vec().into()).expect("a sound file")
}

/// Whether the pixels of `rect` in `part` are those of `whole`.
fn same(part: &Part, whole: &DynamicImage, rect: Rect) -> bool {
    let (left, top) = (rect.left - part.left as u32, rect.top - part.top as u32);
    let inside = part.image.crop_imm(left, top, rect.width, rect.height);
    inside == whole.crop_imm(rect.left, rect.top, rect.width, rect.height)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    prop_oneof![
        Just(Sampling::Gray),
        Just(Sampling::Colour(1, 1)),
        Just(Sampling::Colour(2, 1)),
        Just(Sampling::Colour(2, 2)),
        Just(Sampling::Colour(1, 2)),
    ]
}

fn sides() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![(1_u32..=300, 1_u32..=300), (1_u32..=20, 1_u32..=20), (1_u32..=3, 1_u32..=300), (1_u32..=300, 1_u32..=3)]
}

/// A rectangle within a picture, from four shares of its sides.
fn rect((width, height): (u32, u32), shares: [f32; 4]) -> Rect {
    let span = |side: u32, a: f32, b: f32| {
        let start = ((a * side as f32) as u32).min(side - 1);
        (start, 1 + (b * (side - start) as f32) as u32)
    };
    let ((left, width), (top, height)) = (span(width, shares[0], shares[1]), span(height, shares[2], shares[3]));
    Rect { left, top, width, height }
}

fn shares() -> impl Strategy<Value = [f32; 4]> {
    [0.0_f32..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_part_has_the_pixels_of_the_whole_and_the_whole_those_of_the_general_decoder(
        size in sides(),
        sampling in sampling(),
        restart in prop_oneof![Just(0_u16), 1_u16..=40],
        factor in prop_oneof![1_u16..=4, 5_u16..=255, 256_u16..=2000],
        noise in 0_u32..=256,
        seed in any::<u32>(),
        first in shares(),
        second in shares(),
    ) {
        let jpeg = Jpeg { size, sampling, restart, factor, noise, seed };
        let wave = |component: usize, x: f64, y: f64| 128.0 + 90.0 * ((x + 3.0 * y) / (7.0 + component as f64)).sin();
        let raw = if seed.is_multiple_of(4) { jpeg.picture(&wave) } else { jpeg.encode() };
        let whole = decode_bytes(&raw, name()).expect("a sound file");
        prop_assert_eq!((whole.width(), whole.height()), size);
        let known = reference(&raw);
        prop_assert_eq!(Some(whole.as_bytes()), known.as_deref());
        let rects = [rect(size, first), rect(size, second)];
        let one = part(&raw, &rects[..1]);
        prop_assert_eq!((one.left, one.top, one.image.width(), one.image.height()), {
            let Rect { left, top, width, height } = rects[0];
            (left as i32, top as i32, width, height)
        });
        prop_assert!(same(&one, &whole, rects[0]));
        let both = part(&raw, &rects);
        prop_assert!(rects.iter().all(|&r| same(&both, &whole, r)));
    }

    #[test]
    fn damage_is_no_other_than_in_the_general_decoder(
        size in sides(),
        sampling in sampling(),
        restart in prop_oneof![Just(0_u16), 1_u16..=9],
        seed in any::<u32>(),
        changes in prop::collection::vec((0.0_f32..1.0, any::<u8>()), 1..4),
        cut in 0.0_f32..1.5,
        shares in shares(),
    ) {
        let mut raw = Jpeg { size, sampling, restart, factor: 9, noise: 60, seed }.encode();
        for (place, value) in changes {
            let place = 2 + (place * (raw.len() - 3) as f32) as usize;
            raw[place] = value;
        }
        raw.truncate((cut * raw.len() as f32) as usize);
        // The picture may say to be larger now, but not so large that it takes long.
        let found = decode_bytes(&raw, name());
        if let Ok(whole) = &found {
            let known = reference(&raw);
        prop_assert_eq!(Some(whole.as_bytes()), known.as_deref());
        }
        let mut asked = None;
        let some = decode_part(&raw, name(), &mut |w, h| {
            asked = Some(rect((w, h), shares));
            asked.into_iter().collect::<Vec<_>>().into()
        });
        prop_assert_eq!(some.as_ref().err().map(ToString::to_string), found.as_ref().err().map(ToString::to_string));
        if let (Ok(some), Ok(whole), Some(rect)) = (&some, &found, asked) {
            prop_assert!(same(some, whole, rect));
        }
    }
}
