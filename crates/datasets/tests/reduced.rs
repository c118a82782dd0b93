//! JPEGs decoded at 1/2, 1/4 and 1/8: means of the full picture's pixels for every sampling and size, at the place that is told; Pillow's
//! values; and damaged files.

use std::path::Path;

use image::DynamicImage;
use proptest::prelude::*;
use twinsight_datasets::decode::{decode_bytes, decode_part};
use twinsight_datasets::{Part, Rect, Wanted};
use twinsight_test_support::jpeg::{Jpeg, Sampling, turned};

const SAMPLINGS: [Sampling; 5] =
    [Sampling::Gray, Sampling::Colour(1, 1), Sampling::Colour(2, 1), Sampling::Colour(2, 2), Sampling::Colour(1, 2)];

fn name() -> &'static Path {
    Path::new("x.jpg")
}

fn part(raw: &[u8], parts: &[Rect], reduction: u32) -> Part {
    decode_part(raw, name(), &mut |_, _| Wanted { parts: parts.to_vec(), reduction }).expect("a sound file")
}

/// The mean levels of the squares of `whole` that the part's pixels stand for, as far as they lie within it, with the part's own levels;
/// squares for which `take` is false are left out.
fn squares(part: &Part, whole: &DynamicImage, take: impl Fn(&[u8]) -> bool) -> Vec<(f64, u8)> {
    let channels = usize::from(whole.color().channel_count());
    let (width, bytes) = (whole.width() as usize, whole.as_bytes());
    let inside = |start: i32, i: usize, side: u32| {
        let first = start + i as i32 * part.reduction as i32;
        first.clamp(0, side as i32) as usize..(first + part.reduction as i32).clamp(0, side as i32) as usize
    };
    let mut found = Vec::new();
    let columns = part.image.width() as usize;
    for (i, pixel) in part.image.as_bytes().chunks_exact(channels).enumerate() {
        let across = inside(part.left, i % columns, whole.width());
        let down = inside(part.top, i / columns, whole.height());
        // Of what lies beyond the edge the file has levels of its own.
        if across.len().min(down.len()) < part.reduction as usize {
            continue;
        }
        for (c, &level) in pixel.iter().enumerate() {
            let at = |x: usize, y: usize| bytes[(y * width + x) * channels + c];
            let levels: Vec<u8> = down.clone().flat_map(|y| across.clone().map(move |x| (x, y))).map(|(x, y)| at(x, y)).collect();
            if take(&levels) {
                found.push((levels.iter().map(|&v| f64::from(v)).sum::<f64>() / levels.len() as f64, level));
            }
        }
    }
    found
}

/// The mean and the largest difference.
fn apart(pairs: &[(f64, u8)]) -> (f64, f64) {
    let far = |&(mean, level): &(f64, u8)| (mean - f64::from(level)).abs();
    (pairs.iter().map(far).sum::<f64>() / pairs.len().max(1) as f64, pairs.iter().map(far).fold(0.0, f64::max))
}

fn wave(component: usize, x: f64, y: f64) -> f64 {
    let c = component as f64;
    128.0 + 70.0 * ((x / (23.0 + 5.0 * c)).sin() + 0.4 * (y / (17.0 - 3.0 * c) + c).cos())
}

/// A level of its own for each place.
fn noise(component: usize, x: f64, y: f64) -> f64 {
    let mut h = (x as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (y as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    h = (h ^ component as u64 ^ h >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let share = (h >> 40) as f64 / (1_u64 << 24) as f64;
    // Chroma stays where colours do not leave the range.
    if component == 0 { 78.0 + 100.0 * share } else { 118.0 + 20.0 * share }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gray_is_the_mean_wherever_it_is_cut_and_however_it_is_turned(
        size in (1_u32..=70, 1_u32..=70),
        allowed in 2_u32..=11,
        orientation in 1_u8..=8,
        noise in 0_u32..=256,
        seed in any::<u32>(),
        shares in [0.0_f32..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
    ) {
        let jpeg = Jpeg { size, sampling: Sampling::Gray, restart: 0, factor: 1, noise: noise / 8, seed };
        let raw = turned(&jpeg.encode(), orientation);
        let whole = decode_bytes(&raw, name()).expect("a sound file");
        let span = |side: u32, a: f32, b: f32| {
            let start = ((a * side as f32) as u32).min(side - 1);
            (start, 1 + (b * (side - start) as f32) as u32)
        };
        let (left, width) = span(whole.width(), shares[0], shares[1]);
        let (top, height) = span(whole.height(), shares[2], shares[3]);
        let rect = Rect { left, top, width: width.min(whole.width() - left), height: height.min(whole.height() - top) };
        let found = part(&raw, &[rect], allowed);
        prop_assert_eq!(found.reduction, if allowed < 4 { 2 } else if allowed < 8 { 4 } else { 8 });
        prop_assert_eq!((found.width, found.height), (whole.width(), whole.height()));
        // It holds the rectangle, and no whole pixel more.
        for (start, count, first, length) in [
            (found.left, found.image.width(), rect.left, rect.width),
            (found.top, found.image.height(), rect.top, rect.height),
        ] {
            let (by, first) = (found.reduction as i32, first as i32);
            let (end, last) = (start + count as i32 * by, first + length as i32);
            prop_assert!(start <= first && first < start + by && end >= last && last > end - by, "{start} {end}, {rect:?}");
        }
        // Where no level was cut off at 0 or 255, a mean is that of the levels before they were rounded.
        let pairs = squares(&found, &whole, |levels| levels.iter().all(|l| (1..255).contains(l)));
        prop_assert!(apart(&pairs).1 <= 1.01, "{:?}", apart(&pairs));
    }

    #[test]
    fn a_reduced_part_has_the_pixels_of_the_reduced_whole(
        size in (1_u32..=200, 1_u32..=200),
        sampling in 0_usize..5,
        restart in prop_oneof![Just(0_u16), 1_u16..=40],
        factor in 1_u16..=300,
        reduction in 2_u32..=8,
        noise in 0_u32..=256,
        seed in any::<u32>(),
        place in (0_u32..200, 0_u32..200),
        length in (1_u32..200, 1_u32..200),
    ) {
        let raw = Jpeg { size, sampling: SAMPLINGS[sampling], restart, factor, noise, seed }.encode();
        let whole = part(&raw, &[], reduction);
        let by = whole.reduction;
        prop_assert_eq!((whole.left, whole.top), (0, 0));
        prop_assert_eq!((whole.image.width(), whole.image.height()), (size.0.div_ceil(by), size.1.div_ceil(by)));
        let rect = Rect { left: place.0.min(size.0 - 1), top: place.1.min(size.1 - 1), width: length.0, height: length.1 };
        let some = part(&raw, &[rect], reduction);
        let (left, top) = (some.left as u32 / by, some.top as u32 / by);
        prop_assert_eq!(&some.image, &whole.image.crop_imm(left, top, some.image.width(), some.image.height()));
    }

    #[test]
    fn damage_ends_in_an_error_or_in_another_picture(
        size in (1_u32..=70, 1_u32..=70),
        sampling in 0_usize..5,
        reduction in 2_u32..=8,
        seed in any::<u32>(),
        changes in prop::collection::vec((0.0_f32..1.0, any::<u8>()), 1..4),
        cut in 0.0_f32..1.5,
    ) {
        let mut raw = Jpeg { size, sampling: SAMPLINGS[sampling], restart: 3, factor: 9, noise: 60, seed }.encode();
        for (place, value) in changes {
            let place = 2 + (place * (raw.len() - 3) as f32) as usize;
            raw[place] = value;
        }
        raw.truncate((cut * raw.len() as f32) as usize);
        let whole = decode_bytes(&raw, name());
        let some = decode_part(&raw, name(), &mut |_, _| Wanted { parts: Vec::new(), reduction });
        prop_assert_eq!(some.as_ref().err().map(ToString::to_string), whole.as_ref().err().map(ToString::to_string));
        if let (Ok(some), Ok(whole)) = (some, whole) {
            prop_assert_eq!((some.width, some.height), (whole.width(), whole.height()));
        }
    }
}

#[test]
fn colours_are_near_the_mean_in_every_sampling() {
    for sampling in SAMPLINGS {
        for (size, reduction) in [((69, 70), 2), ((65, 43), 4), ((130, 121), 8), ((1, 2), 2), ((17, 16), 8)] {
            let jpeg = Jpeg { size, sampling, restart: 0, factor: 2, noise: 0, seed: 0 };
            // What chroma of half the size is enlarged to, and averaged again, is a little smoother than what it was.
            let halved = !matches!(sampling, Sampling::Gray | Sampling::Colour(1, 1));
            let bounds = if halved { [(0.75, 3.0), (3.5, 14.0)] } else { [(0.6, 3.0), (0.6, 3.0)] };
            for (kind, level, (mean, most)) in
                [("waves", wave as fn(usize, f64, f64) -> f64, bounds[0]), ("noise", noise, bounds[1])]
            {
                let raw = jpeg.picture(&level);
                let whole = decode_bytes(&raw, name()).expect("a sound file");
                let pairs = squares(&part(&raw, &[], reduction), &whole, |levels| levels.iter().all(|l| (1..255).contains(l)));
                let found = apart(&pairs);
                assert!(found.0 <= mean && found.1 <= most, "{kind}, {sampling:?}, {size:?}, 1/{reduction}: {found:?}");
                assert!(size.0 < 20 || pairs.len() > 100, "{kind}: {} levels", pairs.len());
            }
        }
    }
}

/// A file, with what Pillow reads from it at 1/2, 1/4 and 1/8: `tests/fixtures/data/make_reduced.py`.
#[test]
fn pillow_reads_the_same_levels() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/reduced.safetensors");
    let raw = std::fs::read(path)?;
    let all = safetensors::SafeTensors::deserialize(&raw)?;
    for kind in ["gray", "444", "420", "422"] {
        let file = all.tensor(kind)?.data().to_vec();
        for by in [2, 4, 8] {
            let theirs = all.tensor(&format!("{kind}_{by}"))?;
            let ours = part(&file, &[], by);
            assert_eq!(ours.reduction, by);
            assert_eq!(theirs.shape()[..2], [ours.image.height() as usize, ours.image.width() as usize]);
            let pairs: Vec<_> = theirs.data().iter().map(|&v| f64::from(v)).zip(ours.image.as_bytes().iter().copied()).collect();
            let found = apart(&pairs);
            if kind == "422" {
                // libjpeg-turbo reduces such chroma too far across, and enlarges it again: its pixels are farther from the mean.
                let whole = decode_bytes(&file, name())?;
                let near = apart(&squares(&ours, &whole, |_| true)).0;
                let pixels = theirs.data().to_vec();
                let image = image::RgbImage::from_raw(ours.image.width(), ours.image.height(), pixels).expect("all of it");
                let far = apart(&squares(&Part { image: image.into(), ..ours }, &whole, |_| true)).0;
                assert!(near < far, "1/{by}: {near} {far}");
                continue;
            }
            assert!(found.0 <= 0.03 && found.1 <= 2.0, "{kind}, 1/{by}: {found:?}");
        }
    }
    Ok(())
}
