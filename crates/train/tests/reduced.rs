//! Views of photographs that are decoded at a fraction of their size are nearly those of the full picture, however they are stored and
//! turned and on any number of threads; `data.reduced_decode = false` gives the full picture's, and so does fine-tuning.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use candle_core::Device;
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use twinsight_augment::{DinoViews, DrawKey, Normalize, SimclrViews, ViewPlan, render};
use twinsight_datasets::{Choose, Dataset, LabelMode, OpenOptions, Part, Sample, open};
use twinsight_nn::Builder;
use twinsight_test_support::jpeg::{Jpeg, Sampling, turned};
use twinsight_train::finetune::{Depth, FineTuneConfig, fine_tune};
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

/// Photographs of several shapes; and one in every sampling of chroma, turned in every way that EXIF knows.
fn write(folder: &Path) -> Result<()> {
    for (i, (width, height)) in (0..).zip([(801, 533), (600, 900), (450, 449), (1003, 300)]) {
        let mut file = std::fs::File::create(folder.join(format!("{i}.jpg")))?;
        JpegEncoder::new_with_quality(&mut file, 90).encode_image(&photograph(width, height, i))?;
    }
    let size = (333, 261);
    let image = photograph(size.0, size.1, 9);
    // JFIF's luma and chroma.
    let level = |component: usize, x: f64, y: f64| {
        let [r, g, b] = image.get_pixel((x as u32).min(size.0 - 1), (y as u32).min(size.1 - 1)).0.map(f64::from);
        match component {
            0 => 0.299 * r + 0.587 * g + 0.114 * b,
            1 => 128.0 - 0.168_736 * r - 0.331_264 * g + 0.5 * b,
            _ => 128.0 + 0.5 * r - 0.418_688 * g - 0.081_312 * b,
        }
    };
    for (across, down) in [(1, 1), (2, 1), (2, 2), (1, 2)] {
        let sampling = Sampling::Colour(across, down);
        let raw = Jpeg { size, sampling, restart: 0, factor: 5, noise: 0, seed: 0 }.picture(&level);
        for orientation in 1..=8 {
            std::fs::write(folder.join(format!("s{across}{down}-{orientation}.jpg")), turned(&raw, orientation))?;
        }
    }
    Ok(())
}

/// All views of one batch of all images, and which images they are of.
fn views(
    dataset: &Arc<dyn Dataset>,
    plan: &ViewPlan,
    threads: usize,
    reduced_decode: bool,
) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
    let (dataset, plan) = (dataset.clone(), plan.clone());
    let config = LoaderConfig { batch: dataset.len(), dataset, plan, seed: 5, threads, reduced_decode, strict: true };
    let batch = Loader::start(config, 0, &Device::Cpu)?.next_batch()?;
    Ok((batch.samples, batch.views.iter().map(|v| Ok(v.flatten_all()?.to_vec1()?)).collect::<Result<_>>()?))
}

#[test]
fn views_of_reduced_photographs_are_near_those_of_full_ones() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write(folder.path())?;
    let path = folder.path().display().to_string();
    let dataset = open(&path, &OpenOptions { keep_bytes: 0, ..OpenOptions::default() })?.train;
    assert_eq!(dataset.len(), 36);
    let mut is_reduced = vec![false; dataset.len()];
    let crops = SimclrViews { crop_scale_min: 0.3, ..SimclrViews::default() };
    for plan in [ViewPlan::simclr(32, 3, &crops), ViewPlan::dino(40, 16, 1, 3, &DinoViews::default()), ViewPlan::eval(30, 3)] {
        let plan = plan.with_normalize(Normalize::none(3));
        let (samples, full) = views(&dataset, &plan, 1, false)?;
        let (same, reduced) = views(&dataset, &plan, 1, true)?;
        assert_eq!(samples, same);
        assert_eq!(reduced, views(&dataset, &plan, 3, true)?.1, "threads change nothing");
        for (v, (full, reduced)) in full.iter().zip(&reduced).enumerate() {
            let length = plan.view_len(v);
            for (i, (full, reduced)) in full.chunks_exact(length).zip(reduced.chunks_exact(length)).enumerate() {
                let far: Vec<f32> = full.iter().zip(reduced).map(|(a, b)| 255.0 * (a - b).abs()).collect();
                let (mean, most) = (far.iter().sum::<f32>() / length as f32, far.iter().copied().fold(0.0, f32::max));
                let id = dataset.id(samples[i]);
                assert!(mean < 0.6 && most < 12.0, "view {v} of {id}: mean {mean}, most {most} levels");
                is_reduced[samples[i]] |= full != reduced;
                // The full ones are what the whole picture gives.
                let image = dataset.get(samples[i])?.image;
                let key = DrawKey { seed: 5, epoch: 0, sample: samples[i] as u64, view: v as u64 };
                let mut own = vec![0.0; length];
                render(&plan, v, &image, key, &mut own)?;
                assert_eq!(own, full);
            }
        }
    }
    let left: Vec<String> = (0..dataset.len()).filter(|&i| !is_reduced[i]).map(|i| dataset.id(i)).collect();
    assert!(left.is_empty(), "never reduced: {left:?}");
    Ok(())
}

/// A data set that notes how far its images might have been reduced.
struct Noted {
    images: Arc<dyn Dataset>,
    most: AtomicU32,
}

impl Dataset for Noted {
    fn name(&self) -> &str {
        self.images.name()
    }
    fn len(&self) -> usize {
        self.images.len()
    }
    fn get(&self, index: usize) -> twinsight_datasets::Result<Sample> {
        self.images.get(index)
    }
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> twinsight_datasets::Result<Part> {
        self.images.get_part(index, &mut |width, height| {
            let wanted = choose(width, height);
            self.most.fetch_max(wanted.reduction, Ordering::Relaxed);
            wanted
        })
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.images.label(index)
    }
    fn classes(&self) -> Option<&[String]> {
        self.images.classes()
    }
    fn id(&self, index: usize) -> String {
        self.images.id(index)
    }
    fn channels(&self) -> usize {
        self.images.channels()
    }
    fn side(&self) -> Option<(u32, u32)> {
        self.images.side()
    }
}

#[test]
fn fine_tuning_decodes_at_full_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (class, seed) in [("a", 1), ("b", 2)] {
        let below = folder.path().join("images").join(class);
        std::fs::create_dir_all(&below)?;
        for i in 0..3 {
            photograph(200, 150, 10 * seed + i).save(below.join(format!("{i}.jpg")))?;
        }
    }
    let path = folder.path().join("images").display().to_string();
    let images = open(&path, &OpenOptions { keep_bytes: 0, labels: LabelMode::Folder, ..OpenOptions::default() })?.train;
    let noted = Arc::new(Noted { images, most: AtomicU32::new(0) });
    let dataset: Arc<dyn Dataset> = noted.clone();

    let builder = Builder::new(3, &Device::Cpu);
    let spec = twinsight_encoders::encoder("resnet_mini")?;
    let config = twinsight_encoders::EncoderConfig { channels: 3, image_size: 16, ..Default::default() };
    let network = (spec.build)(&config, &builder)?;
    let encoder = folder.path().join("encoder.safetensors");
    twinsight_encoders::save_encoder(&encoder, spec, network.config(), &builder.finish(), &Default::default())?;
    let plan = ViewPlan::eval(16, 3).with_normalize(Normalize::none(3));
    let config = FineTuneConfig { depth: Depth::Last(1), epochs: Some(1), batch: 6, lr: Some(0.01), ..FineTuneConfig::default() };
    fine_tune(&encoder, &dataset, &*dataset, &plan, &config, &candle_core::Device::Cpu, &mut |_| {})?;
    assert_eq!(noted.most.load(Ordering::Relaxed), 1, "crops were asked for, none of a reduced image");
    // The same images in training.
    views(&dataset, &plan, 1, true)?;
    assert_eq!(noted.most.load(Ordering::Relaxed), 4);
    Ok(())
}
