//! Views a second on one thread, of pictures of the sizes that matter: `cargo run --release -p twinsight-augment --example bench`.

use std::time::Instant;

use image::DynamicImage;
use twinsight_augment::{
    ByolViews, DinoViews, DrawKey, Interpolation, Result, SimclrViews, Transform, ViewPlan, ViewSpec, render,
};

/// A picture of waves and a little noise.
fn picture(width: u32, height: u32, channels: usize) -> DynamicImage {
    let color = image::RgbImage::from_fn(width, height, |x, y| {
        let wave = |c: f32| 127.0 + 90.0 * (x as f32 / (5.0 + c)).sin() * (y as f32 / (7.0 - c)).cos();
        let noise = (x * 31 + y * 17) % 23;
        image::Rgb([0.0, 1.0, 2.0].map(|c| wave(c) as u8 + noise as u8))
    });
    let color = DynamicImage::from(color);
    if channels == 1 { color.to_luma8().into() } else { color }
}

fn measure(what: &str, plan: &ViewPlan, images: &[DynamicImage], seconds: f64) -> Result<()> {
    plan.check()?;
    let views = plan.view_count();
    let most = (0..views).map(|view| plan.view_len(view)).max().unwrap_or(0);
    let mut out = vec![0.0; most];
    let mut made = 0_u64;
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        for image in images {
            for view in 0..views {
                let key = DrawKey { seed: 0, epoch: 0, sample: made, view: view as u64 };
                render(plan, view, image, key, &mut out[..plan.view_len(view)])?;
                made += 1;
            }
        }
        best = best.min(start.elapsed().as_secs_f64() / (images.len() * views) as f64);
    }
    let mean = begin.elapsed().as_secs_f64() / made as f64;
    println!("{what:<34} {:>9.0} views/s  {:>8.1} µs a view (best batch {:.1})", 1.0 / mean, mean * 1e6, best * 1e6);
    Ok(())
}

/// The steps of a plan's first view, one at a time after the crop.
fn steps(plan: &ViewPlan, images: &[DynamicImage], seconds: f64) -> Result<()> {
    let spec = plan.view(0).clone();
    for step in [None].into_iter().chain(spec.transforms[1..].iter().map(Some)) {
        let mut one = plan.clone();
        let crop = Transform::Resize { shorter: None, interpolation: Interpolation::Bilinear };
        let text = format!("{:?}", step.unwrap_or(&spec.transforms[0]));
        let name = format!("  {} (always)", text.split(' ').next().unwrap_or_default());
        let transforms = match step.cloned() {
            None => vec![spec.transforms[0].clone()],
            Some(step) => vec![crop, step.with_probability(1.0)],
        };
        one.groups[0].spec = ViewSpec { size: spec.size, transforms };
        one.groups.truncate(1);
        measure(&name, &one, images, seconds)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1.0);
    for (size, channels) in [(28, 1), (32, 3)] {
        let images = vec![picture(size, size, channels); 64];
        let side = size as usize;
        println!("{size}×{size}×{channels}");
        let simclr = ViewPlan::simclr(side, channels, &SimclrViews::small());
        measure("simclr, small", &simclr, &images, seconds)?;
        steps(&simclr, &images, seconds / 2.0)?;
        measure("simclr", &ViewPlan::simclr(side, channels, &SimclrViews::default()), &images, seconds)?;
        measure("byol, small", &ViewPlan::byol(side, channels, &ByolViews::small()), &images, seconds)?;
        measure("dino, small, 4 local", &ViewPlan::dino(side, 12, 4, channels, &DinoViews::small()), &images, seconds)?;
        measure("eval", &ViewPlan::eval(side, channels), &images, seconds)?;
    }
    let images = vec![picture(500, 375, 3); 4];
    println!("500×375×3 to 224");
    let simclr = ViewPlan::simclr(224, 3, &SimclrViews::default());
    measure("simclr", &simclr, &images, seconds)?;
    steps(&simclr, &images, seconds / 2.0)?;
    measure("byol", &ViewPlan::byol(224, 3, &ByolViews::default()), &images, seconds)?;
    measure("dino, 8 local", &ViewPlan::dino(224, 96, 8, 3, &DinoViews::default()), &images, seconds)?;
    measure("eval", &ViewPlan::eval(224, 3), &images, seconds)
}
