//! Any image through any plan: right length, finite values, and bytes that depend on the key alone.

use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};
use proptest::prelude::*;
use rayon::prelude::*;
use twinsight_augment::ops::Region;
use twinsight_augment::{
    ByolViews, DinoViews, DrawKey, Excerpt, Levels, Normalize, Raster, SimclrViews, ViewPlan, needed, render, render_excerpt,
    render_image, render_raster,
};

/// A picture of noise with `channels` channels of 8 or 16 bits.
fn picture(width: u32, height: u32, channels: usize, deep: bool, seed: u32) -> DynamicImage {
    let count = width as usize * height as usize * channels;
    let word = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 16) as u16;
    let bytes = || (0..count).map(|i| word(i) as u8).collect::<Vec<u8>>();
    let words = || (0..count).map(word).collect::<Vec<u16>>();
    let image: Option<DynamicImage> = match (channels, deep) {
        (1, false) => ImageBuffer::<Luma<u8>, _>::from_raw(width, height, bytes()).map(Into::into),
        (2, false) => ImageBuffer::<LumaA<u8>, _>::from_raw(width, height, bytes()).map(Into::into),
        (3, false) => ImageBuffer::<Rgb<u8>, _>::from_raw(width, height, bytes()).map(Into::into),
        (_, false) => ImageBuffer::<Rgba<u8>, _>::from_raw(width, height, bytes()).map(Into::into),
        (1, true) => ImageBuffer::<Luma<u16>, _>::from_raw(width, height, words()).map(Into::into),
        (2, true) => ImageBuffer::<LumaA<u16>, _>::from_raw(width, height, words()).map(Into::into),
        (3, true) => ImageBuffer::<Rgb<u16>, _>::from_raw(width, height, words()).map(Into::into),
        (_, true) => ImageBuffer::<Rgba<u16>, _>::from_raw(width, height, words()).map(Into::into),
    };
    image.expect("as many values as the picture needs")
}

/// Every step that is off by default, half of the time.
fn everything() -> SimclrViews {
    SimclrViews {
        affine_p: 0.5,
        affine_degrees: 180.0,
        affine_shear: 30.0,
        channel_drop_p: 0.5,
        posterize_p: 0.5,
        equalize_p: 0.5,
        jpeg_p: 0.5,
        cutout_p: 0.5,
        hide_p: 0.5,
        hide_blocks: true,
        ..SimclrViews::default()
    }
}

fn plans(size: usize, local: usize, channels: usize) -> Vec<ViewPlan> {
    let busy = SimclrViews { erase_p: 1.0, solarize_p: 0.5, blur_p: 1.0, ..SimclrViews::default() };
    let all = everything();
    vec![
        ViewPlan::simclr(size, channels, &SimclrViews::for_size(size)),
        ViewPlan::simclr(size, channels, &busy),
        ViewPlan::simclr(size, channels, &all),
        ViewPlan::byol(size, channels, &ByolViews::default()),
        ViewPlan::dino(size, local, 2, channels, &DinoViews::default()),
        ViewPlan::eval(size, channels),
    ]
}

fn view_of(plan: &ViewPlan, view: usize, image: &DynamicImage, key: DrawKey) -> Vec<f32> {
    let mut out = vec![f32::NAN; plan.view_len(view)];
    render(plan, view, image, key, &mut out).expect("a sound plan and a picture");
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_image_goes_through_any_plan(
        (width, height) in prop_oneof![(1_u32..=300, 1_u32..=300), (1_u32..=4, 1_u32..=300), (1_u32..=300, 1_u32..=4), (1_u32..=4, 1_u32..=4)],
        depth in 1_usize..=4,
        deep in any::<bool>(),
        size in 1_usize..=48,
        local in 1_usize..=20,
        gray in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let image = picture(width, height, depth, deep, seed);
        let channels = if gray { 1 } else { 3 };
        for plan in plans(size, local, channels) {
            plan.check().unwrap();
            for view in 0..plan.view_count() {
                let key = DrawKey { seed: seed.into(), epoch: 1, sample: 2, view: view as u64 };
                let out = view_of(&plan, view, &image, key);
                let side = plan.view(view).size;
                prop_assert_eq!(out.len(), channels * side * side);
                prop_assert!(out.iter().all(|v| v.is_finite() && v.abs() < 3.0));
                prop_assert_eq!(&out, &view_of(&plan, view, &image, key));
                let shown = render_image(&plan, view, &image, key).unwrap();
                prop_assert_eq!((shown.width(), shown.height()), (side as u32, side as u32));
                prop_assert_eq!(shown.color().channel_count() as usize, channels);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_number_of_channels_goes_through_what_needs_no_colour(
        (width, height) in (1_u32..=300, 1_u32..=300),
        channels in 1_usize..=16,
        deep in any::<bool>(),
        size in 1_usize..=40,
        seed in any::<u32>(),
    ) {
        let count = width as usize * height as usize * channels;
        let words: Vec<u16> = (0..count).map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 16) as u16).collect();
        let bytes: Vec<u8> = words.iter().map(|&v| v as u8).collect();
        let levels = if deep { Levels::Words(&words) } else { Levels::Bytes(&bytes) };
        let image = Raster::new(width, height, channels, levels).unwrap();
        let views = SimclrViews { jitter_saturation: 0.0, jitter_hue: 0.0, gray_p: 0.0, jpeg_p: 0.0, ..everything() };
        let plan = ViewPlan::simclr(size, channels, &views);
        plan.check().unwrap();
        // What needs colour is refused when the plan is made.
        let colour = ViewPlan::simclr(size, channels, &SimclrViews::default());
        prop_assert_eq!(colour.check().is_ok(), matches!(channels, 1 | 3));
        for view in 0..2 {
            let key = DrawKey { seed: seed.into(), epoch: 1, sample: 2, view };
            let mut out = [vec![f32::NAN; plan.view_len(0)], vec![f32::NAN; plan.view_len(0)]];
            for out in &mut out {
                render_raster(&plan, view as usize, &image, key, out).unwrap();
            }
            prop_assert_eq!(out[0].len(), channels * size * size);
            prop_assert!(out[0].iter().all(|v| v.is_finite() && v.abs() < 3.0));
            prop_assert_eq!(&out[0], &out[1]);
        }
    }
}

#[test]
fn an_excerpt_with_what_is_needed_gives_the_view_of_the_whole() {
    let images: Vec<_> = (0..12).map(|i| picture(30 + i * 20, 280 - i * 20, 1 + i as usize % 4, i % 3 == 0, i)).collect();
    for (i, image) in images.iter().enumerate() {
        let whole = (image.width(), image.height());
        for plan in &plans(40, 16, 3) {
            for view in 0..plan.view_count() {
                let key = DrawKey { seed: 7, epoch: 1, sample: i as u64, view: view as u64 };
                let Some(r) = needed(plan, view, whole, key).unwrap().region else {
                    assert_eq!(plan.view_count(), 1, "only views for evaluation may need all");
                    continue;
                };
                // A little more than what is needed.
                let (left, top) = (r.left.saturating_sub(3), r.top.saturating_sub(1));
                let part = image.crop_imm(left, top, r.left + r.width - left, r.top + r.height + 2 - top);
                let render_part = |image: &DynamicImage, place| {
                    let mut out = vec![f32::NAN; plan.view_len(view)];
                    render_excerpt(plan, view, &Excerpt { image, place, whole, reduction: 1 }, key, &mut out).map(|()| out)
                };
                let expected = view_of(plan, view, image, key);
                assert_eq!(render_part(&part, (left as i32, top as i32)).unwrap(), expected);
                assert_eq!(render_part(image, (0, 0)).unwrap(), expected);
                // Less than what is needed is an error, not another view.
                let less = image.crop_imm(r.left, r.top, r.width.max(2) - 1, r.height);
                if r.width > 1 {
                    let told = render_part(&less, (r.left as i32, r.top as i32)).unwrap_err().to_string();
                    assert!(told.contains("excerpt"), "{told}");
                }
            }
        }
    }
}

/// Slow waves: what is a pixel away differs by more than what a reduction changes.
fn scene(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (f64::from(x), f64::from(y));
        Rgb([(u / 21.0).sin() + (v / 34.0).cos(), ((u + v) / 29.0).cos(), (u / 40.0 - v / 25.0).sin()]
            .map(|wave| (125.0 + 45.0 * wave) as u8))
    })
}

/// Means of squares of `by` × `by` pixels of the image, the first of which begins at `from` (beyond the edge where negative), so many
/// across and down; of what lies beyond the edges nothing counts.
fn means(image: &RgbImage, by: i32, from: (i32, i32), (columns, rows): (u32, u32)) -> DynamicImage {
    let inside = |start: i32, side: u32| start.clamp(0, side as i32) as u32..(start + by).clamp(0, side as i32) as u32;
    RgbImage::from_fn(columns, rows, |i, j| {
        let across = inside(from.0 + i as i32 * by, image.width());
        let down = inside(from.1 + j as i32 * by, image.height());
        let count = (across.len() * down.len()) as u32;
        let pixels = down.flat_map(|y| across.clone().map(move |x| (x, y))).map(|(x, y)| image.get_pixel(x, y).0);
        let sums = pixels.fold([0; 3], |sums: [u32; 3], pixel| std::array::from_fn(|c| sums[c] + u32::from(pixel[c])));
        Rgb(sums.map(|sum| ((sum + count / 2) / count) as u8))
    })
    .into()
}

#[test]
fn an_excerpt_of_means_gives_nearly_the_view_of_the_whole() {
    // Of each reduction, and of parts that begin before the corner or not: the mean differences of the views, and the largest of a level.
    let mut seen = std::collections::BTreeMap::<(i32, bool), (Vec<f32>, f32)>::new();
    for (width, height) in [(251, 203), (160, 333)] {
        let image = scene(width, height);
        let full = DynamicImage::from(image.clone());
        let crops = SimclrViews { crop_scale_min: 0.3, ..SimclrViews::default() };
        for plan in [
            ViewPlan::simclr(11, 3, &crops),
            ViewPlan::byol(9, 3, &ByolViews::default()),
            ViewPlan::dino(12, 5, 1, 3, &DinoViews::default()),
            ViewPlan::eval(8, 3),
        ] {
            let plan = plan.with_normalize(Normalize::none(3));
            for (view, sample) in (0..plan.view_count()).flat_map(|view| (0..6).map(move |sample| (view, sample))) {
                let key = DrawKey { seed: 3, epoch: 0, sample, view: view as u64 };
                let expected = view_of(&plan, view, &full, key);
                let found = needed(&plan, view, (width, height), key).unwrap();
                let r = found.region.unwrap_or(Region { left: 0, top: 0, width, height });
                for by in [2, 4, 8].into_iter().filter(|&by| by <= found.reduction as i32) {
                    // Squares that begin at the corner, and some that begin before it.
                    for shift in [0, 1, by - 1] {
                        let span = |start: u32, length: u32| {
                            let first = (start as i32 + shift).div_euclid(by) * by - shift;
                            (first, (start as i32 + length as i32 - first).unsigned_abs().div_ceil(by as u32))
                        };
                        let ((left, columns), (top, rows)) = (span(r.left, r.width), span(r.top, r.height));
                        let render_part = |columns: u32| {
                            let part = means(&image, by, (left, top), (columns, rows));
                            let (place, whole, reduction) = ((left, top), (width, height), by as u32);
                            let mut out = vec![f32::NAN; plan.view_len(view)];
                            render_excerpt(&plan, view, &Excerpt { image: &part, place, whole, reduction }, key, &mut out)
                                .map(|()| out)
                        };
                        let view_of_part = render_part(columns).unwrap();
                        let far = expected.iter().zip(&view_of_part).map(|(a, b)| 255.0 * (a - b).abs());
                        let (sum, most) = far.fold((0.0, 0.0_f32), |(sum, most), v| (sum + v, most.max(v)));
                        let mean = sum / expected.len() as f32;
                        let at = format!("{width} × {height}, view {view}, 1/{by} from {left}, {top}");
                        let worst = seen.entry((by, left < 0 || top < 0)).or_default();
                        worst.0.push(mean);
                        worst.1 = worst.1.max(most);
                        // Squares that do not hold all of the part are an error, not another view.
                        if columns > 1 {
                            let told = render_part(columns - 1).unwrap_err().to_string();
                            assert!(told.contains(&format!("reduced {by} times")), "{at}: {told}");
                        }
                    }
                }
            }
        }
    }
    let all: Vec<_> = [2, 4, 8].into_iter().flat_map(|by| [(by, false), (by, true)]).collect();
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), all);
    for ((by, before), (means, most)) in seen {
        // Squares at the edge of a crop hold a little of what is outside, which counts in views of a few pixels.
        let (mean, worst) = (means.iter().sum::<f32>() / means.len() as f32, means.iter().copied().fold(0.0, f32::max));
        let told = format!("1/{by}, before the corner: {before}: {mean} levels, at worst {worst} and {most}");
        assert!(mean < 0.1 + 0.07 * by as f32 && worst < 0.5 + 0.25 * by as f32 && most < 10.0, "{told}");
    }
}

#[test]
fn threads_and_order_change_nothing() {
    let images: Vec<_> = (0..40).map(|i| picture(20 + i * 7, 300 - i * 7, 1 + i as usize % 4, i % 3 == 0, i)).collect();
    let plans = plans(33, 17, 3);
    let jobs: Vec<_> = (0..images.len())
        .flat_map(|i| plans.iter().flat_map(move |plan| (0..plan.view_count()).map(move |view| (i, plan, view))))
        .collect();
    let run = |&(i, plan, view): &(usize, &ViewPlan, usize)| {
        view_of(plan, view, &images[i], DrawKey { seed: 9, epoch: 4, sample: i as u64, view: view as u64 })
    };
    let forwards: Vec<_> = jobs.iter().map(run).collect();
    let mut backwards: Vec<_> = jobs.iter().rev().map(run).collect();
    backwards.reverse();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let parallel: Vec<_> = pool.install(|| jobs.par_iter().map(run).collect());
    assert!(forwards == backwards && forwards == parallel);
}

#[test]
fn other_keys_give_other_views() {
    let image = picture(64, 48, 3, false, 5);
    let key = DrawKey { seed: 1, epoch: 1, sample: 1, view: 1 };
    let others =
        [DrawKey { seed: 2, ..key }, DrawKey { epoch: 2, ..key }, DrawKey { sample: 2, ..key }, DrawKey { view: 2, ..key }];
    for plan in &plans(32, 16, 3)[..5] {
        let first = view_of(plan, 0, &image, key);
        assert!(others.iter().all(|&other| view_of(plan, 0, &image, other) != first));
    }
}

#[test]
fn gray_pictures_give_the_same_view_in_one_and_three_channels() {
    // Without steps that need colour, a gray picture's three channels are the one channel's.
    let image = picture(50, 40, 1, false, 8);
    let views = SimclrViews { jitter_saturation: 0.0, jitter_hue: 0.0, ..SimclrViews::default() };
    let key = DrawKey { seed: 1, epoch: 0, sample: 3, view: 0 };
    let one = render_image(&ViewPlan::simclr(24, 1, &views), 0, &image, key).unwrap();
    let three = render_image(&ViewPlan::simclr(24, 3, &views), 0, &image, key).unwrap();
    assert_eq!(one.to_rgb8(), three.to_rgb8());
}
