//! The distributions of random draws: what is uniform is uniform, what happens with probability p happens that often.

use image::DynamicImage;
use twinsight_augment::{
    DrawKey, Draws, Interpolation, Normalize, Transform, ViewGroup, ViewPlan, ViewSpec, ops, render_image, sample,
};

const DRAWS: u64 = 20_000;

fn keys(count: u64) -> impl Iterator<Item = DrawKey> {
    (0..count).map(|i| DrawKey { seed: 3, epoch: i / 1000, sample: i % 1000, view: 1 })
}

/// Fails unless `values` look uniform in [low, high]: the greatest distance between the distributions (Kolmogorov and Smirnov)
/// stays below what chance exceeds once in ten thousand times, plus `slack` for values on a grid.
fn assert_uniform(what: &str, mut values: Vec<f64>, low: f64, high: f64, slack: f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let distance =
        values.iter().enumerate().map(|(i, v)| ((v - low) / (high - low) - (i as f64 + 0.5) / n).abs()).fold(0.0, f64::max);
    assert!(distance < 2.23 / n.sqrt() + slack, "{what}: {distance}");
}

/// Fails unless `hits` of `n` fits probability `p` within five standard deviations and `slack`.
fn assert_rate(what: &str, hits: usize, n: u64, p: f64, slack: f64) {
    let (rate, sigma) = (hits as f64 / n as f64, (p * (1.0 - p) / n as f64).sqrt());
    assert!((rate - p).abs() <= 5.0 * sigma + slack, "{what}: {rate}, expected {p} ± {sigma}");
}

#[test]
fn crops_have_uniform_areas_ratios_and_places() {
    // Within these scales every ratio fits, so that no try is rejected.
    let (side, scale, ratio) = (4000_u32, (0.08, 0.5), Transform::CROP_RATIO);
    let regions: Vec<_> = keys(DRAWS).map(|key| sample::crop_region(&mut Draws::new(key), side, side, scale, ratio)).collect();
    let area = |r: &ops::Region| f64::from(r.width) * f64::from(r.height) / f64::from(side).powi(2);
    assert_uniform("area", regions.iter().map(area).collect(), 0.08, 0.5, 1e-3);
    let log_ratio = |r: &ops::Region| (f64::from(r.width) / f64::from(r.height)).ln();
    let (low, high) = (f64::from(ratio.0).ln(), f64::from(ratio.1).ln());
    assert_uniform("ratio", regions.iter().map(log_ratio).collect(), low, high, 2e-3);
    let place = |start: u32, length: u32| (f64::from(start) + 0.5) / f64::from(side - length + 1);
    assert_uniform("left", regions.iter().map(|r| place(r.left, r.width)).collect(), 0.0, 1.0, 1e-3);
    assert_uniform("top", regions.iter().map(|r| place(r.top, r.height)).collect(), 0.0, 1.0, 1e-3);
}

#[test]
fn a_crop_that_never_fits_is_the_largest_in_the_centre() {
    let draw = |w, h| {
        sample::crop_region(
            &mut Draws::new(DrawKey { seed: 0, epoch: 0, sample: 0, view: 0 }),
            w,
            h,
            (1.0, 1.0),
            Transform::CROP_RATIO,
        )
    };
    let tuple = |r: ops::Region| (r.left, r.top, r.width, r.height);
    assert_eq!(tuple(draw(300, 30)), (130, 0, 40, 30));
    assert_eq!(tuple(draw(30, 300)), (0, 130, 30, 40));
    assert_eq!(tuple(draw(1, 300)), (0, 149, 1, 1));
}

#[test]
fn jitter_is_uniform_and_in_every_order() {
    let jitters: Vec<_> = keys(DRAWS).map(|key| sample::jitter(&mut Draws::new(key), 0.4, 1.5, 0.2, 0.1)).collect();
    let of = |part: fn(&sample::Jitter) -> f64| jitters.iter().map(part).collect::<Vec<_>>();
    assert_uniform("brightness", of(|j| j.brightness), 0.6, 1.4, 1e-6);
    assert_uniform("contrast", of(|j| j.contrast), 0.0, 2.5, 1e-6);
    assert_uniform("saturation", of(|j| j.saturation), 0.8, 1.2, 1e-6);
    assert_uniform("hue", of(|j| j.hue), -0.1, 0.1, 1e-6);
    let mut orders = std::collections::BTreeMap::new();
    jitters.iter().for_each(|j| *orders.entry(j.order).or_insert(0) += 1);
    assert_eq!(orders.len(), 24);
    orders.values().for_each(|&hits| assert_rate("order", hits, DRAWS, 1.0 / 24.0, 0.0));
}

#[test]
fn erased_rectangles_are_uniform_in_area_and_stay_inside() {
    let (side, scale, ratio) = (1000, (0.02, 0.2), (0.3, 3.3));
    let draw = |key| sample::erase_region(&mut Draws::new(key), side, side, scale, ratio).expect("every try fits");
    let regions: Vec<_> = keys(DRAWS).map(draw).collect();
    assert!(regions.iter().all(|r| r.left + r.width <= side && r.top + r.height <= side));
    let area = |r: &ops::Region| f64::from(r.width * r.height) / f64::from(side * side);
    assert_uniform("area", regions.iter().map(area).collect(), 0.02, 0.2, 2e-3);
    let log_ratio = |r: &ops::Region| (f64::from(r.height) / f64::from(r.width)).ln();
    assert_uniform("ratio", regions.iter().map(log_ratio).collect(), 0.3_f64.ln(), 3.3_f64.ln(), 5e-3);
    assert_eq!(sample::erase_region(&mut Draws::new(keys(1).next().unwrap()), 1, 1, (1.0, 1.0), (1.0, 1.0)), None);
}

/// Side of the picture: enough pixels for its levels to be spread when it is equalised.
const SIDE: u32 = 20;

/// How many of `DRAWS` views of a picture differ from it when only `step` is done.
fn changed(step: Transform) -> usize {
    let image = image::RgbImage::from_fn(SIDE, SIDE, |x, y| image::Rgb([(x * 12) as u8, (y * 12) as u8, 90]));
    let image = DynamicImage::from(image);
    let resize = Transform::Resize { shorter: None, interpolation: Interpolation::Bilinear };
    let spec = ViewSpec { size: SIDE as usize, transforms: vec![resize, step] };
    let groups = vec![ViewGroup { name: "view".to_string(), count: 1, spec }];
    let plan = ViewPlan { groups, normalize: Normalize::none(3), channels: 3 };
    plan.check().unwrap();
    keys(DRAWS).filter(|&key| render_image(&plan, 0, &image, key).unwrap() != image).count()
}

#[test]
fn every_step_happens_as_often_as_it_should() {
    for p in [0.0, 0.3, 1.0] {
        let jitter = Transform::ColorJitter { p, brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.5 };
        let steps = [
            ("flip", Transform::HorizontalFlip { p }),
            ("jitter", jitter),
            ("gray", Transform::Grayscale { p }),
            ("blur", Transform::GaussianBlur { p, sigma: (1.0, 2.0), kernel: None }),
            ("solarize", Transform::Solarize { p, threshold: 100 }),
            ("erase", Transform::RandomErasing { p, scale: (0.2, 0.33), ratio: (0.5, 2.0) }),
            ("affine", Transform::Affine { p, degrees: 0.0, translate: 0.0, scale: (0.5, 0.6), shear: 0.0 }),
            ("channel", Transform::ChannelDrop { p }),
            ("posterize", Transform::Posterize { p, bits: 2 }),
            ("equalize", Transform::Equalize { p }),
            ("cutout", Transform::Cutout { p, size: 0.5 }),
            ("hide", Transform::HidePatches { p, patch: 2, share: 0.5, blocks: true }),
        ];
        for (what, step) in steps {
            // A hue turned by less than one step may leave the picture as it is.
            let slack = if what == "jitter" { 0.01 } else { 0.0 };
            assert_rate(what, changed(step), DRAWS, f64::from(p), slack);
        }
    }
}
