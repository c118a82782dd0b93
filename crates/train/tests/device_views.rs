//! Views by the kernels of `kernels/src/cuda/views.cu`, whose sources run here behind a C++ compiler, against those of the processor: the
//! same values to the last bit, for the plans of the methods and for every step; and against golden values of torchvision.

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use twinsight_augment::ops::Region;
use twinsight_augment::{
    ByolViews, DinoViews, DrawKey, DrawnView, Interpolation, Normalize, SimclrViews, Step, Transform, ViewGroup, ViewPlan,
    ViewSpec, Window,
};
use twinsight_datasets::{Dataset, Sample};
use twinsight_kernels::views::emulated;
use twinsight_test_support::{Golden, GoldenTensor};
use twinsight_train::renderer::{DrawnBatch, HostRenderer, ViewRenderer, supported, tables};
use twinsight_train::resident::Resident;

/// Pictures of any sizes, all of one number of channels.
struct Pictures(Vec<image::DynamicImage>, usize);

impl Dataset for Pictures {
    fn name(&self) -> &str {
        "pictures"
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, index: usize) -> twinsight_datasets::Result<Sample> {
        Ok(Sample { image: self.0[index].clone(), label: None })
    }
    fn is_kept(&self) -> bool {
        true
    }
    fn channels(&self) -> usize {
        self.1
    }
}

/// Waves, edges and noise of every level.
fn pictures(sizes: &[(u32, u32)], channels: usize) -> Pictures {
    let picture = |(i, &(width, height)): (u32, &(u32, u32))| {
        let color = image::RgbImage::from_fn(width, height, |x, y| {
            let level = |c: u32| ((x * (3 + c) + y * (5 - c) + i * 50) % 256) as u8 ^ ((x / 7 + y / 5 + c) * 41 % 256) as u8;
            image::Rgb([level(0), level(1), level(2)])
        });
        let color = image::DynamicImage::from(color);
        if channels == 1 { color.to_luma8().into() } else { color }
    };
    Pictures((0..).zip(sizes).map(picture).collect(), channels)
}

fn resident(pictures: &Pictures) -> Result<Resident> {
    Resident::of(pictures, pictures.1, 1 << 26).map_err(anyhow::Error::msg)
}

/// Every step that the kernels do, often.
fn everything(size: usize, interpolation: Interpolation) -> ViewPlan {
    let transforms = vec![
        Transform::RandomResizedCrop { scale: (0.05, 1.0), ratio: (0.5, 2.0), interpolation },
        Transform::HorizontalFlip { p: 0.5 },
        Transform::Solarize { p: 0.3, threshold: 60 },
        Transform::GaussianBlur { p: 0.5, sigma: (0.1, 3.0), kernel: Some(9) },
        Transform::ColorJitter { p: 0.9, brightness: 0.8, contrast: 0.8, saturation: 0.8, hue: 0.5 },
        Transform::ColorJitter { p: 0.5, brightness: 0.0, contrast: 1.5, saturation: 0.0, hue: 0.2 },
        Transform::Grayscale { p: 0.2 },
        Transform::ChannelDrop { p: 0.2 },
        Transform::Posterize { p: 0.3, bits: 3 },
        Transform::GaussianBlur { p: 0.5, sigma: (0.5, 2.0), kernel: Some(3) },
        Transform::Solarize { p: 0.3, threshold: 128 },
        Transform::erasing(0.5),
        Transform::Cutout { p: 0.3, size: 0.4 },
        Transform::HidePatches { p: 0.3, patch: 5, share: 0.3, blocks: false },
    ];
    let group = ViewGroup { name: "view".into(), count: 2, spec: ViewSpec { size, transforms } };
    ViewPlan { groups: vec![group], normalize: Normalize::cifar10(), channels: 3 }
}

/// A batch of every image, drawn.
fn drawn(plan: &ViewPlan, images: &Resident, epoch: u64) -> Result<DrawnBatch> {
    let sizes = images.places().sizes();
    let one = |view: usize, sample: usize| {
        let key = DrawKey { seed: 4, epoch, sample: sample as u64, view: view as u64 };
        DrawnView::draw(plan, view, sizes[sample], key)
    };
    let views = (0..plan.view_count()).map(|v| (0..sizes.len()).map(|s| one(v, s)).collect());
    Ok(DrawnBatch { views: views.collect::<Result<_, _>>()?, samples: (0..sizes.len()).collect() })
}

fn values(tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    tensors.iter().map(|t| Ok(t.flatten_all()?.to_vec1()?)).collect()
}

/// How many values differ in any bit, of how many, and by how much at most.
fn apart(got: &[f32], want: &[f32]) -> (usize, usize, f32) {
    assert_eq!(got.len(), want.len());
    let off = got.iter().zip(want).filter(|(a, b)| a.to_bits() != b.to_bits());
    let most = off.clone().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    (off.count(), got.len(), most)
}

/// A name, a plan, and sizes of images.
type Case = (&'static str, ViewPlan, Vec<(u32, u32)>);

/// What is compared.
fn cases() -> Vec<Case> {
    let byol = ByolViews { interpolation: Interpolation::Bicubic, ..ByolViews::default() };
    let small = vec![(32, 32); 6];
    let mixed = vec![(32, 32), (97, 61), (40, 130), (1, 9), (5, 1), (64, 64)];
    vec![
        ("simclr, CIFAR's size", ViewPlan::simclr(32, 3, &SimclrViews::for_size(32)), small.clone()),
        ("simclr, 48", ViewPlan::simclr(48, 3, &SimclrViews::default()), mixed.clone()),
        ("simclr, gray", ViewPlan::simclr(28, 1, &SimclrViews::default()), mixed.clone()),
        ("byol, cubic", ViewPlan::byol(40, 3, &byol), mixed.clone()),
        ("dino", ViewPlan::dino(32, 12, 3, 3, &DinoViews::default()), small),
        ("everything", everything(21, Interpolation::Bilinear), mixed.clone()),
        ("everything, cubic", everything(13, Interpolation::Bicubic), mixed),
    ]
}

#[test]
#[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
fn the_kernels_views_are_the_processors_bit_for_bit() -> Result<()> {
    for (name, plan, sizes) in cases() {
        plan.check()?;
        supported(&plan).map_err(anyhow::Error::msg)?;
        let images = resident(&pictures(&sizes, plan.channels))?;
        let mut host = HostRenderer::new(images.clone(), plan.clone());
        for epoch in 0..6 {
            let batch = drawn(&plan, &images, epoch)?;
            let want = values(&host.render(&batch)?)?;
            for (views, table) in tables(&plan, &batch, images.places())? {
                let got = emulated(images.bytes(), &table)?;
                let (off, of, most) = apart(&got, &want[views.clone()].concat());
                assert_eq!(off, 0, "{name}, views {views:?} of epoch {epoch}: {off} of {of} values are off, by {most} at most");
            }
        }
    }
    Ok(())
}

#[cfg(feature = "cuda")]
#[test]
fn a_devices_views_are_the_processors() -> Result<()> {
    let device = match twinsight_kernels::open_cuda(twinsight_test_support::test_device()?.unwrap_or(0)) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: no CUDA device opens ({error})");
            return Ok(());
        }
    };
    for (name, plan, sizes) in cases() {
        let set = pictures(&sizes, plan.channels);
        let images = resident(&set)?;
        let mut host = HostRenderer::new(images.clone(), plan.clone());
        let places = images.places().clone();
        let mut there = twinsight_train::renderer::DeviceRenderer::new(&set, places, plan.clone(), &device)?;
        for epoch in 0..6 {
            let batch = drawn(&plan, &images, epoch)?;
            let (want, got) = (values(&host.render(&batch)?)?, values(&there.render(&batch)?)?);
            for (v, (got, want)) in got.iter().zip(&want).enumerate() {
                let (off, of, most) = apart(got, want);
                assert_eq!(off, 0, "{name}, view {v} of epoch {epoch}: {off} of {of} values are off, by {most} at most");
            }
        }
    }
    Ok(())
}

/// A view that shows what torchvision made in the golden tensor `key`, where that can be told from a square of the image: the view, the
/// golden column that its first one is, and how many columns are alike.
fn golden_view(key: &str, (width, side): (usize, usize)) -> Result<Option<(DrawnView, usize, usize)>> {
    let square = Window::Cut(Region { left: 0, top: 0, width: side as u32, height: side as u32 });
    let view = |steps| DrawnView { size: side, window: square, interpolation: Interpolation::Bilinear, steps };
    let parts: Vec<&str> = key.split('_').collect();
    let step = match parts[..] {
        ["brightness", factor] => Step::Brightness(factor.parse()?),
        ["saturation", factor] => Step::Saturation(factor.parse()?),
        ["hue", turn] => Step::Hue(turn.parse()?),
        ["grayscale"] => Step::Grayscale,
        ["solarize", threshold] => Step::Solarize(threshold.parse()?),
        ["posterize", bits] => Step::Posterize(bits.parse()?),
        ["hflip"] => return Ok(Some((view(vec![Step::Flip]), width - side, side))),
        ["blur", kernel, sigma] => {
            let kernel: usize = kernel.strip_prefix('k').context(key.to_string())?.parse()?;
            let blur = Step::Blur { kernel, sigma: sigma.strip_prefix('s').context(key.to_string())?.parse()? };
            // The right edge is one in the view alone.
            return Ok(Some((view(vec![blur]), 0, side - kernel / 2)));
        }
        ["crop", top, left, height, width, "to", size, mode] => {
            let region = Region { top: top.parse()?, left: left.parse()?, height: height.parse()?, width: width.parse()? };
            let interpolation = if mode == "bicubic" { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let size = size.parse()?;
            return Ok(Some((DrawnView { size, window: Window::Cut(region), interpolation, steps: Vec::new() }, 0, size)));
        }
        // The mean of contrast is the whole image's; the others are not done by the kernels.
        ["contrast" | "affine" | "equalize", ..] => return Ok(None),
        _ => bail!("{key}: an unknown operation"),
    };
    Ok(Some((view(vec![step]), 0, side)))
}

#[test]
#[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
fn the_kernels_steps_equal_the_reference() -> Result<()> {
    let golden = Golden::load("augment")?;
    let levels = |tensor: &GoldenTensor| tensor.data.iter().map(|&v| v as u8).collect::<Vec<u8>>();
    let image = golden.get("image")?;
    let [height, width, 3] = image.shape[..] else { bail!("{:?} is no colour image", image.shape) };
    let picture = image::RgbImage::from_raw(width as u32, height as u32, levels(image)).context("an image")?;
    let images = resident(&Pictures(vec![picture.into()], 3))?;
    let plan = ViewPlan { normalize: Normalize::none(3), ..ViewPlan::eval(height, 3) };
    let mut seen = std::collections::BTreeSet::new();
    for (key, tensor) in golden.tensors.iter().filter(|(key, _)| *key != "image") {
        let Some((view, first, columns)) = golden_view(key, (width, height))? else { continue };
        let (side, of) = (view.size, tensor.shape[1]);
        let batch = DrawnBatch { samples: vec![0], views: vec![vec![view]] };
        let (_, table) = tables(&plan, &batch, images.places())?.pop().context("one table")?;
        let (got, want) = (emulated(images.bytes(), &table)?, levels(tensor));
        let mut off = Vec::new();
        for (c, y, x) in (0..3).flat_map(|c| (0..side).flat_map(move |y| (0..columns).map(move |x| (c, y, x)))) {
            let got = (got[(c * side + y) * side + x] * 255.0).round();
            off.push((got - f32::from(want[(y * of + first + x) * 3 + c])).abs());
        }
        let (mean, most) = (off.iter().sum::<f32>() / off.len() as f32, off.iter().copied().fold(0.0, f32::max));
        println!("{key}: mean {mean:.5}, most {most}");
        // The bounds that the processor's operations are held to.
        let kind = key.split('_').next().unwrap_or(key);
        let (mean_bound, bound) = match kind {
            "crop" => (0.5, 3.0),
            "blur" => (0.01, 1.0),
            _ => (0.0, 0.0),
        };
        assert!(mean <= mean_bound && most <= bound, "{key}: mean {mean}, most {most}");
        seen.insert(kind.to_string());
    }
    let all = ["blur", "brightness", "crop", "grayscale", "hflip", "hue", "saturation", "solarize"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    Ok(())
}
