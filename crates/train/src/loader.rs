//! The loader: threads that turn images into batches of views ahead of the training step, in an order that depends on
//! the seed and the epoch alone.
//!
//! Batch `b` of epoch `e` holds the samples `order(e)[b·size .. (b+1)·size]`, where the order is [`epoch_order`] or what the
//! data set asks for ([`Dataset::order`]: archives too large for memory are read from front to back); the last, smaller batch of an epoch is left
//! out. Each view is drawn from the stream of (seed, epoch, sample, view), so that neither the number of threads nor a
//! resume in the middle of an epoch changes a pixel. At most `threads + 2` batches are held at once, and fewer where they would
//! take more than half a gigabyte.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;

use crate::picture::Picture;
use crate::{Error, Result};

/// What the loader needs to know.
#[derive(Clone)]
pub struct LoaderConfig {
    /// The images.
    pub dataset: Arc<dyn Dataset>,
    /// The views to make of each.
    pub plan: ViewPlan,
    /// Images a batch.
    pub batch: usize,
    /// The run's seed.
    pub seed: u64,
    /// Threads; 0 for one a core.
    pub threads: usize,
    /// Whether the first unreadable image is an error (otherwise another image takes its place and it is named).
    pub strict: bool,
}

/// One batch.
pub struct Batch {
    /// One (N, C, S, S) tensor a view, in the plan's order.
    pub views: Vec<Tensor>,
    /// The samples, by index in the data set; those that took an unreadable one's place included.
    pub samples: Vec<usize>,
}

/// Threads that make the batches of one epoch after the other, from a given position on.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    device: Device,
    waited: Duration,
}

struct Shared {
    config: LoaderConfig,
    per_epoch: u64,
    ahead: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The next batch to be made, counted from the run's start.
    next_to_make: u64,
    /// The next batch to be handed out.
    next_to_take: u64,
    ready: BTreeMap<u64, std::result::Result<Raw, Error>>,
    closed: bool,
    bad: BTreeMap<String, String>,
    order: Option<(u64, Arc<Vec<u32>>)>,
}

struct Raw {
    views: Vec<Vec<f32>>,
    samples: Vec<usize>,
}

impl Loader {
    /// Starts threads that make batches from number `first` (counted from the run's start) on.
    ///
    /// # Errors
    /// Fewer images than one batch, or a view plan that does not hold together.
    pub fn start(config: LoaderConfig, first: u64, device: &Device) -> Result<Self> {
        config.plan.check()?;
        let per_epoch = steps_per_epoch(config.dataset.len(), config.batch)?;
        let count = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let shared = Arc::new(Shared {
            per_epoch,
            ahead: ahead(&config, count),
            config,
            state: Mutex::new(State {
                next_to_make: first,
                next_to_take: first,
                ready: BTreeMap::new(),
                closed: false,
                bad: BTreeMap::new(),
                order: None,
            }),
            changed: Condvar::new(),
        });
        let threads = (0..count)
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("loader-{i}")).spawn(move || shared.work())
            })
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| Error::Config(format!("data.workers = {count}: cannot start that many threads: {e}")))?;
        Ok(Self { shared, threads, device: device.clone(), waited: Duration::ZERO })
    }

    /// The next batch, in order.
    ///
    /// # Errors
    /// An image that can't be read under `strict`, or images none of which can be.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let start = Instant::now();
        let mut state = self.shared.lock();
        let number = state.next_to_take;
        let raw = loop {
            if let Some(raw) = state.ready.remove(&number) {
                break raw;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.next_to_take += 1;
        drop(state);
        self.shared.changed.notify_all();
        self.waited += start.elapsed();
        let raw = raw?;
        let (channels, n) = (self.shared.config.plan.channels, raw.samples.len());
        let views = raw
            .views
            .into_iter()
            .enumerate()
            .map(|(v, data)| {
                let side = self.shared.config.plan.view(v).size;
                Ok(Tensor::from_vec(data, (n, channels, side, side), &self.device)?)
            })
            .collect::<Result<_>>()?;
        Ok(Batch { views, samples: raw.samples })
    }

    /// How long [`Loader::next_batch`] has waited in all since the last call of this.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Images that could not be read so far, by id, with the reason.
    pub fn bad_images(&self) -> BTreeMap<String, String> {
        self.shared.lock().bad.clone()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so; there is nothing to add while dropping.
            let _ = thread.join();
        }
    }
}

/// Bytes of batches that are made ahead of the step, where that leaves two of them.
const AHEAD_BYTES: usize = 512 << 20;

/// How many batches may be in the making, waiting or in use at once.
fn ahead(config: &LoaderConfig, threads: usize) -> u64 {
    let plan = &config.plan;
    let pixels: usize = (0..plan.view_count()).map(|v| plan.channels * plan.view(v).size.pow(2)).sum();
    let batch = (pixels * config.batch * size_of::<f32>()).max(1);
    (AHEAD_BYTES / batch).max(2).min(threads + 2) as u64
}

/// Full batches in an epoch of `images` images.
///
/// # Errors
/// Fewer images than one batch.
pub fn steps_per_epoch(images: usize, batch: usize) -> Result<u64> {
    match images / batch.max(1) {
        0 => Err(Error::Config(format!(
            "{images} training images are fewer than one batch of {batch}: use --batch {} or less, or more images",
            images.max(2)
        ))),
        n => Ok(n as u64),
    }
}

/// The order in which epoch `epoch` sees the images: a permutation decided by (seed, epoch).
pub fn epoch_order(images: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(b"order\0\0\0");
    let mut order: Vec<u32> = (0..images as u32).collect();
    order.shuffle(&mut ChaCha8Rng::from_seed(key));
    order
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            while !state.closed && state.next_to_make >= state.next_to_take + self.ahead {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            let number = state.next_to_make;
            state.next_to_make += 1;
            let epoch = number / self.per_epoch;
            let order = match &state.order {
                Some((e, order)) if *e == epoch => order.clone(),
                _ => {
                    let LoaderConfig { dataset, seed, .. } = &self.config;
                    let wish = dataset.order(*seed, epoch);
                    let order = Arc::new(wish.unwrap_or_else(|| epoch_order(dataset.len(), *seed, epoch)));
                    state.order = Some((epoch, order.clone()));
                    order
                }
            };
            drop(state);
            let made =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.make(epoch, number % self.per_epoch, &order)))
                    .unwrap_or_else(|_| Err(Error::Config("a loader thread panicked; the message above says where".into())));
            self.lock().ready.insert(number, made);
            self.changed.notify_all();
        }
    }

    fn make(&self, epoch: u64, position: u64, order: &[u32]) -> Result<Raw> {
        let c = &self.config;
        let start = position as usize * c.batch;
        let samples: Vec<usize> = order[start..start + c.batch].iter().map(|&i| i as usize).collect();
        let sizes: Vec<usize> =
            (0..c.plan.view_count()).map(|v| c.plan.channels * c.plan.view(v).size * c.plan.view(v).size).collect();
        let mut views: Vec<Vec<f32>> = sizes.iter().map(|s| vec![0.0; s * c.batch]).collect();
        let mut used = Vec::with_capacity(samples.len());
        for (slot, &sample) in samples.iter().enumerate() {
            let (image, index) = self.readable(sample, order, start + c.batch + slot)?;
            used.push(index);
            for (v, size) in sizes.iter().enumerate() {
                let key = DrawKey { seed: c.seed, epoch, sample: sample as u64, view: v as u64 };
                image.render(&c.plan, v, key, &mut views[v][slot * size..(slot + 1) * size])?;
            }
        }
        Ok(Raw { views, samples: used })
    }

    /// The image `sample`, or in its place the first that can be read of those that `order` has from `after` on, behind the
    /// batch; and which it is.
    fn readable(&self, sample: usize, order: &[u32], after: usize) -> Result<(Picture, usize)> {
        let c = &self.config;
        let others = (after..).map(|i| order[i % order.len()] as usize);
        for index in std::iter::once(sample).chain(others).take(order.len().min(1000)) {
            match Picture::load(&*c.dataset, index) {
                Ok(found) => return Ok((found, index)),
                Err(e) if c.strict => return Err(e.into()),
                Err(e) => {
                    self.lock().bad.insert(c.dataset.id(index), e.to_string());
                }
            }
        }
        Err(Error::Config(format!("{}: 1,000 images in a row can't be read; is it a folder of images?", c.dataset.name())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, GrayImage, Luma};
    use twinsight_augment::SimclrViews;
    use twinsight_datasets::Sample;

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
        fn label(&self, _: usize) -> Option<u32> {
            None
        }
        fn classes(&self) -> Option<&[String]> {
            None
        }
        fn id(&self, index: usize) -> String {
            format!("#{index}")
        }
        fn channels(&self) -> usize {
            1
        }
        fn side(&self) -> Option<(u32, u32)> {
            Some((9, 8))
        }
    }

    fn loader(broken: &[usize], threads: usize, strict: bool, first: u64) -> Result<Loader> {
        let config = LoaderConfig {
            dataset: Arc::new(Images { broken: broken.to_vec() }),
            plan: ViewPlan::simclr(8, 1, &SimclrViews::small()),
            batch: 6,
            seed: 3,
            threads,
            strict,
        };
        Loader::start(config, first, &Device::Cpu)
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
}
