//! Views of photographs that are decoded at a fraction of their size are nearly those of the full picture, on any number of threads; and
//! `data.reduced_decode = false` gives the full picture's.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use twinsight_augment::{DinoViews, DrawKey, Normalize, SimclrViews, ViewPlan, render};
use twinsight_datasets::{Dataset, OpenOptions, open};
use twinsight_train::loader::{Loader, LoaderConfig};

/// Something like a photograph: coarse shapes and ever weaker detail down to single pixels, with edges.
fn photograph(width: u32, height: u32, seed: u32) -> RgbImage {
    let hash = |x: i64, y: i64, n: u32| {
        let h = (x.wrapping_mul(0x9e37_79b9) ^ y.wrapping_mul(0x85eb_ca6b) ^ i64::from(n + 97 * seed).wrapping_mul(0xc2b2_ae35))
            as u64;
        let h = (h ^ h >> 15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((h ^ h >> 31) >> 33) as f64 / (1_u64 << 31) as f64 - 0.5
    };
    // Values at the corners of a grid, and between them in proportion.
    let smooth = |x: f64, y: f64, n: u32| {
        let (i, j) = (x.floor(), y.floor());
        let (u, v) = (x - i, y - j);
        let at = |a: i64, b: i64| hash(i as i64 + a, j as i64 + b, n);
        (at(0, 0) * (1.0 - u) + at(1, 0) * u) * (1.0 - v) + (at(0, 1) * (1.0 - u) + at(1, 1) * u) * v
    };
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x), f64::from(y));
        let detail =
            |n: u32| (0..8).map(|o| smooth(x / f64::from(1 << o), y / f64::from(1 << o), n + o) * f64::from(1 << o)).sum::<f64>();
        let (light, tint) = (detail(0) * 0.5, detail(20) * 0.12);
        let edge = if smooth(x / 90.0, y / 70.0, 50) > 0.1 { 40.0 } else { 0.0 };
        Rgb([light + tint + edge, light + edge * 0.6, light - tint].map(|v| (120.0 + v).clamp(0.0, 255.0) as u8))
    })
}

fn write(folder: &Path) -> Result<()> {
    for (i, (width, height)) in (0..).zip([(801, 533), (600, 900), (450, 449), (1003, 300)]) {
        let mut file = std::fs::File::create(folder.join(format!("{i}.jpg")))?;
        JpegEncoder::new_with_quality(&mut file, 90).encode_image(&photograph(width, height, i))?;
    }
    Ok(())
}

/// All views of the first batch, and which images they are of.
fn views(
    dataset: &Arc<dyn Dataset>,
    plan: &ViewPlan,
    threads: usize,
    reduced_decode: bool,
) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
    let (dataset, plan) = (dataset.clone(), plan.clone());
    let config = LoaderConfig { dataset, plan, batch: 4, seed: 5, threads, reduced_decode, strict: true };
    let batch = Loader::start(config, 0, &Device::Cpu)?.next_batch()?;
    Ok((batch.samples, batch.views.iter().map(|v| Ok(v.flatten_all()?.to_vec1()?)).collect::<Result<_>>()?))
}

#[test]
fn views_of_reduced_photographs_are_near_those_of_full_ones() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write(folder.path())?;
    let path = folder.path().display().to_string();
    let dataset = open(&path, &OpenOptions { keep_bytes: 0, ..OpenOptions::default() })?.train;
    let crops = SimclrViews { crop_scale_min: 0.3, ..SimclrViews::default() };
    for plan in [ViewPlan::simclr(32, 3, &crops), ViewPlan::dino(40, 16, 1, 3, &DinoViews::default()), ViewPlan::eval(30, 3)] {
        let plan = plan.with_normalize(Normalize::none(3));
        let (samples, full) = views(&dataset, &plan, 1, false)?;
        let (same, reduced) = views(&dataset, &plan, 1, true)?;
        assert_eq!(samples, same);
        assert_eq!(reduced, views(&dataset, &plan, 3, true)?.1, "threads change nothing");
        assert_ne!(full, reduced, "nothing was reduced");
        for (v, (full, reduced)) in full.iter().zip(&reduced).enumerate() {
            let length = plan.view_len(v);
            for (i, (full, reduced)) in full.chunks_exact(length).zip(reduced.chunks_exact(length)).enumerate() {
                let far: Vec<f32> = full.iter().zip(reduced).map(|(a, b)| 255.0 * (a - b).abs()).collect();
                let (mean, most) = (far.iter().sum::<f32>() / length as f32, far.iter().copied().fold(0.0, f32::max));
                assert!(mean < 0.6 && most < 12.0, "view {v} of image {i}: mean {mean}, most {most} levels");
                // The full ones are what the whole picture gives.
                let image = dataset.get(samples[i])?.image;
                let key = DrawKey { seed: 5, epoch: 0, sample: samples[i] as u64, view: v as u64 };
                let mut own = vec![0.0; length];
                render(&plan, v, &image, key, &mut own)?;
                assert_eq!(own, full);
            }
        }
    }
    Ok(())
}
