//! Tests of the loader: order, draws, threads, renderers, images that can't be read.

use super::*;
use image::{DynamicImage, GrayImage, Luma};
use twinsight_augment::{ByolViews, DinoViews, SimclrViews};
use twinsight_datasets::Sample;

use crate::renderer::HostRenderer;
use crate::resident::Resident;

/// 20 gray images, of which those of `broken` can't be read.
struct Images {
    broken: Vec<usize>,
}

impl Dataset for Images {
    fn name(&self) -> &str {
        "images"
    }
    fn len(&self) -> usize {
        20
    }
    fn get(&self, index: usize) -> twinsight_datasets::Result<Sample> {
        if self.broken.contains(&index) {
            return Err(twinsight_datasets::Error::BadSetting(format!("image {index} is broken")));
        }
        let image = GrayImage::from_fn(9, 8, |x, y| Luma([(x * 20 + y * 7 + index as u32 * 11) as u8]));
        Ok(Sample { image: DynamicImage::ImageLuma8(image), label: None })
    }
    fn channels(&self) -> usize {
        1
    }
    fn is_kept(&self) -> bool {
        true
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((9, 8))
    }
}

fn config(broken: &[usize], threads: usize, strict: bool) -> LoaderConfig {
    LoaderConfig {
        dataset: Arc::new(Images { broken: broken.to_vec() }),
        plan: ViewPlan::simclr(8, 1, &SimclrViews::small()),
        batch: 6,
        seed: 3,
        threads,
        reduced_decode: true,
        strict,
    }
}

fn loader(broken: &[usize], threads: usize, strict: bool, first: u64) -> Result<Loader> {
    Loader::start(config(broken, threads, strict), first, &Device::Cpu)
}

/// A loader whose views a renderer makes.
fn drawing(config: LoaderConfig, first: u64) -> Result<Loader> {
    let images = Resident::of(&*config.dataset, config.plan.channels, 1 << 20).map_err(Error::Config)?;
    let renderer = Box::new(HostRenderer::new(images, config.plan.clone()));
    Loader::start_with(config, first, &Device::Cpu, Some(renderer))
}

type Seen = (Vec<usize>, Vec<Vec<f32>>);

fn batches(loader: &mut Loader, count: usize) -> Result<Vec<Seen>> {
    (0..count)
        .map(|_| {
            let batch = loader.next_batch()?;
            let views = batch.views.iter().map(|v| Ok(v.flatten_all()?.to_vec1()?)).collect::<Result<_>>()?;
            Ok((batch.samples, views))
        })
        .collect()
}

#[test]
fn threads_and_a_start_in_the_middle_change_nothing() -> Result<()> {
    let all = batches(&mut loader(&[], 1, false, 0)?, 8)?;
    assert_eq!(all, batches(&mut loader(&[], 3, false, 0)?, 8)?);
    assert_eq!(all[4..], batches(&mut loader(&[], 2, false, 4)?, 4)?);
    // Three batches an epoch; within one no image comes twice, and epochs differ.
    let mut epoch: Vec<usize> = all[..3].iter().flat_map(|b| b.0.clone()).collect();
    epoch.sort_unstable();
    epoch.dedup();
    assert_eq!(epoch.len(), 18);
    assert_ne!(all[0].0, all[3].0);
    assert_ne!(all[0].1[0], all[0].1[1], "two views are drawn apart");
    Ok(())
}

#[test]
fn a_renderers_batches_are_the_threads_own_bit_for_bit() -> Result<()> {
    // Two sizes of views, images of different sizes, a part of a data set, from the middle of an epoch over its end.
    let colour = |x: u32, y: u32, i: u32| image::Rgb([x * 7 + i * 31, y * 5 + i * 3, (x ^ y) * 11].map(|v| v as u8));
    let sizes: Vec<(u32, u32)> = (0..20).map(|i| (8 + i % 7, 9 + i % 5)).collect();
    let whole: Arc<dyn Dataset> =
        Arc::new(Sizes((0..).zip(&sizes).map(|(i, &(w, h))| image::RgbImage::from_fn(w, h, |x, y| colour(x, y, i))).collect()));
    let (rest, held) = twinsight_datasets::hold_out(whole, 0.2, 0)?;
    assert_eq!((rest.len(), held.len()), (16, 4));
    for plan in [
        ViewPlan::dino(16, 8, 3, 3, &DinoViews::default()),
        ViewPlan::byol(12, 3, &ByolViews { erase_p: 0.5, affine_p: 0.5, ..ByolViews::default() }),
    ] {
        let config = || LoaderConfig {
            dataset: rest.clone(),
            plan: plan.clone(),
            batch: 5,
            seed: 9,
            threads: 2,
            reduced_decode: true,
            strict: true,
        };
        let want = batches(&mut Loader::start(config(), 0, &Device::Cpu)?, 7)?;
        assert_eq!(batches(&mut drawing(config(), 0)?, 7)?, want);
        assert_eq!(batches(&mut drawing(config(), 2)?, 5)?, want[2..]);
    }
    let other = Resident::of(&*held, 3, 1 << 20).map_err(Error::Config)?;
    let plan = ViewPlan::simclr(8, 1, &SimclrViews::small());
    let renderer = Box::new(HostRenderer::new(other, plan));
    let told = Loader::start_with(config(&[], 1, true), 0, &Device::Cpu, Some(renderer)).err().map(|e| e.to_string());
    assert!(told.as_deref().is_some_and(|t| t.contains("4 images") && t.contains("20")), "{told:?}");
    assert_eq!(batches(&mut drawing(config(&[], 1, true), 4)?, 4)?, batches(&mut loader(&[], 3, true, 4)?, 4)?);
    Ok(())
}

/// Colour images of any sizes.
struct Sizes(Vec<image::RgbImage>);

impl Dataset for Sizes {
    fn name(&self) -> &str {
        "sizes"
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, index: usize) -> twinsight_datasets::Result<Sample> {
        Ok(Sample { image: self.0[index].clone().into(), label: None })
    }
    fn channels(&self) -> usize {
        3
    }
    fn is_kept(&self) -> bool {
        true
    }
}

/// Notes which threads read the images of the first batch, and holds each of them until four have come.
struct Meeting {
    first: Vec<usize>,
    threads: Mutex<std::collections::HashSet<std::thread::ThreadId>>,
    came: Condvar,
}

impl Dataset for Meeting {
    fn name(&self) -> &str {
        "meeting"
    }
    fn len(&self) -> usize {
        100
    }
    fn get(&self, index: usize) -> twinsight_datasets::Result<Sample> {
        if self.first.contains(&index) {
            let mut threads = self.threads.lock().unwrap();
            threads.insert(std::thread::current().id());
            self.came.notify_all();
            drop(self.came.wait_timeout_while(threads, Duration::from_secs(1), |t| t.len() < 4).unwrap());
        }
        Ok(Sample { image: DynamicImage::new_luma8(4, 4), label: None })
    }
    fn channels(&self) -> usize {
        1
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((4, 4))
    }
}

#[test]
fn one_large_batch_keeps_all_threads_busy() -> Result<()> {
    let first: Vec<usize> = epoch_order(100, 3, 0)[..64].iter().map(|&i| i as usize).collect();
    let (threads, came) = (Mutex::default(), Condvar::new());
    let dataset = Arc::new(Meeting { first: first.clone(), threads, came });
    let plan = ViewPlan::simclr(8, 1, &SimclrViews::small());
    let config =
        LoaderConfig { dataset: dataset.clone(), plan, batch: 64, seed: 3, threads: 4, reduced_decode: true, strict: true };
    let batch = Loader::start(config, 0, &Device::Cpu)?.next_batch()?;
    assert_eq!(batch.samples, first);
    assert_eq!(dataset.threads.lock().unwrap().len(), 4);
    Ok(())
}

#[test]
fn an_unreadable_image_is_replaced_by_one_outside_the_batch_and_named() -> Result<()> {
    let whole = batches(&mut loader(&[], 1, false, 0)?, 3)?;
    let broken = whole[0].0[2];
    let mut found = loader(&[broken], 2, false, 0)?;
    let first = &batches(&mut found, 1)?[0];
    assert!(!whole[0].0.contains(&first.0[2]), "{:?}", first.0);
    assert_eq!((first.0[..2].to_vec(), first.0[3..].to_vec()), (whole[0].0[..2].to_vec(), whole[0].0[3..].to_vec()));
    assert_eq!(found.bad_images().keys().collect::<Vec<_>>(), [&format!("#{broken}")]);
    let told = loader(&[broken], 2, true, 0)?.next_batch().err().map(|e| e.to_string()).unwrap_or_default();
    assert!(told.contains("is broken"), "{told}");
    let all: Vec<usize> = (0..20).collect();
    assert!(loader(&all, 2, false, 0)?.next_batch().is_err());
    assert!(steps_per_epoch(5, 6).is_err());
    Ok(())
}
