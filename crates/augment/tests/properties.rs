//! Any image through any plan: right length, finite values, and bytes that depend on the key alone.

use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, Rgba};
use proptest::prelude::*;
use rayon::prelude::*;
use twinsight_augment::{
    ByolViews, DinoViews, DrawKey, Excerpt, Levels, Raster, SimclrViews, ViewPlan, needed, render, render_excerpt, render_image,
    render_raster,
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
