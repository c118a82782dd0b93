//! Views that were drawn first and rendered afterwards: the same bits as drawing while rendering gave, over plans with every step.

use anyhow::Result;
use image::DynamicImage;
use twinsight_augment::ops::Region;
use twinsight_augment::{
    ByolViews, DinoViews, DrawKey, DrawnView, Excerpt, Interpolation, Normalize, SimclrViews, Transform, ViewPlan, ViewSpec,
    Window, render, render_drawn,
};

/// A picture of waves with something of every level in it.
fn picture(width: u32, height: u32, channels: usize) -> DynamicImage {
    let color = image::RgbImage::from_fn(width, height, |x, y| {
        let level = |c: u32| ((x * (3 + c) + y * (5 - c)) % 256) as u8 ^ ((x / 7 + y / 5 + c) * 41 % 256) as u8;
        image::Rgb([level(0), level(1), level(2)])
    });
    let color = DynamicImage::from(color);
    if channels == 1 { color.to_luma8().into() } else { color }
}

/// Every step that draws, except JPEG, whose levels are another crate's.
fn everything(size: usize, interpolation: Interpolation) -> ViewPlan {
    let crop = Transform::RandomResizedCrop { scale: (0.1, 1.0), ratio: Transform::CROP_RATIO, interpolation };
    let steps = vec![
        crop,
        Transform::Equalize { p: 0.2 },
        Transform::HorizontalFlip { p: 0.5 },
        Transform::Affine { p: 0.5, degrees: 20.0, translate: 0.2, scale: (0.8, 1.2), shear: 5.0 },
        Transform::ColorJitter { p: 0.9, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 },
        Transform::ColorJitter { p: 0.5, brightness: 0.0, contrast: 0.8, saturation: 0.0, hue: 0.2 },
        Transform::Grayscale { p: 0.2 },
        Transform::ChannelDrop { p: 0.2 },
        Transform::Posterize { p: 0.3, bits: 4 },
        Transform::GaussianBlur { p: 0.5, sigma: (0.1, 2.0), kernel: Some(7) },
        Transform::Solarize { p: 0.3, threshold: 100 },
        Transform::erasing(0.5),
        Transform::Cutout { p: 0.3, size: 0.4 },
        Transform::HidePatches { p: 0.3, patch: 5, share: 0.3, blocks: false },
        Transform::HidePatches { p: 0.3, patch: 4, share: 0.3, blocks: true },
    ];
    let spec = ViewSpec { size, transforms: steps };
    let group = twinsight_augment::ViewGroup { name: "view".into(), count: 2, spec };
    ViewPlan { groups: vec![group], normalize: Normalize::cifar10(), channels: 3 }
}

fn plans() -> Vec<(&'static str, ViewPlan)> {
    let byol = ByolViews::default();
    vec![
        ("simclr 32", ViewPlan::simclr(32, 3, &SimclrViews::for_size(32))),
        ("simclr 96", ViewPlan::simclr(96, 3, &SimclrViews::default())),
        ("simclr gray", ViewPlan::simclr(28, 1, &SimclrViews::default())),
        ("byol", ViewPlan::byol(64, 3, &ByolViews { interpolation: Interpolation::Bicubic, ..byol })),
        ("dino", ViewPlan::dino(48, 20, 3, 3, &DinoViews::default())),
        ("everything", everything(33, Interpolation::Bilinear)),
        ("everything, cubic", everything(21, Interpolation::Bicubic)),
        ("evaluation", ViewPlan::eval(72, 3)),
    ]
}

/// FNV-1a over the values' bits.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn checksum(values: &[f32], sum: u64) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(sum, |sum, b| (sum ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// What all views of a plan make of three pictures in twenty epochs.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn sum_of(plan: &ViewPlan) -> Result<u64> {
    plan.check()?;
    let mut sum = 0xcbf2_9ce4_8422_2325;
    for (sample, (width, height)) in (0..).zip([(32, 32), (97, 61), (40, 130)]) {
        let image = picture(width, height, plan.channels);
        for (epoch, view) in (0..20).flat_map(|e| (0..plan.view_count()).map(move |v| (e, v))) {
            let key = DrawKey { seed: 5, epoch, sample, view: view as u64 };
            let mut out = vec![f32::NAN; plan.view_len(view)];
            render(plan, view, &image, key, &mut out)?;
            sum = checksum(&out, sum);
        }
    }
    Ok(sum)
}

/// The sums were taken before drawing and rendering were two steps. They hold where `ln` and `exp` round as they do here.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn views_are_what_they_were_when_drawing_and_rendering_were_one() -> Result<()> {
    let found = plans().iter().map(|(name, plan)| Ok((*name, sum_of(plan)?))).collect::<Result<Vec<_>>>()?;
    let expected = [
        ("simclr 32", 9045457584346155782),
        ("simclr 96", 11464191274073864020),
        ("simclr gray", 13017862710673191401),
        ("byol", 6226416913337980501),
        ("dino", 9230122323238673917),
        ("everything", 10998738344695188021),
        ("everything, cubic", 11781176133794972840),
        ("evaluation", 9553747296771131333),
    ];
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn a_drawn_view_is_rendered_as_the_view_itself() -> Result<()> {
    for (name, plan) in plans() {
        for (sample, (width, height)) in (0..).zip([(32, 32), (97, 61), (1, 9)]) {
            let image = picture(width, height, plan.channels);
            for (epoch, view) in (0..10).flat_map(|e| (0..plan.view_count()).map(move |v| (e, v))) {
                let key = DrawKey { seed: 6, epoch, sample, view: view as u64 };
                let (mut once, mut twice) = (vec![f32::NAN; plan.view_len(view)], vec![f32::NAN; plan.view_len(view)]);
                render(&plan, view, &image, key, &mut once)?;
                let drawn = DrawnView::draw(&plan, view, (width, height), key)?;
                let excerpt = Excerpt { image: &image, place: (0, 0), whole: (width, height), reduction: 1 };
                render_drawn(&plan, &drawn, &excerpt, &mut twice)?;
                assert_eq!(once, twice, "{name}: view {view} of image {sample} in epoch {epoch}");
            }
        }
    }
    Ok(())
}

#[test]
fn an_output_of_another_length_is_refused() -> Result<()> {
    let (plan, image) = (ViewPlan::simclr(8, 3, &SimclrViews::default()), picture(9, 9, 3));
    let drawn = DrawnView::draw(&plan, 0, (9, 9), DrawKey { seed: 0, epoch: 0, sample: 0, view: 0 })?;
    let excerpt = Excerpt { image: &image, place: (0, 0), whole: (9, 9), reduction: 1 };
    assert!(render_drawn(&plan, &drawn, &excerpt, &mut [0.0; 191]).is_err_and(|e| e.to_string().contains("192")));
    let beyond = Excerpt { whole: (20, 20), ..excerpt };
    let drawn = DrawnView { window: Window::Cut(Region { left: 5, top: 0, width: 6, height: 6 }), ..drawn };
    assert!(render_drawn(&plan, &drawn, &beyond, &mut [0.0; 192]).is_err_and(|e| e.to_string().contains("excerpt")));
    Ok(())
}
