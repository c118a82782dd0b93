//! The loader: threads that turn images into batches of views ahead of the training step, in an order that depends on
//! the seed and the epoch alone.
//!
//! Batch `b` of epoch `e` holds the samples `order(e)[b·size .. (b+1)·size]`; the last, smaller batch of an epoch is left
//! out. Each view is drawn from the stream of (seed, epoch, sample, view), so that neither the number of threads nor a
//! resume in the middle of an epoch changes a pixel. At most `threads + 2` batches are held at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use twinsight_augment::{DrawKey, ViewPlan, render};
use twinsight_datasets::Dataset;

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
    /// The samples, by index in the data set.
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
            ahead: count as u64 + 2,
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
                    let order = Arc::new(epoch_order(self.config.dataset.len(), self.config.seed, epoch));
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
        for (slot, &sample) in samples.iter().enumerate() {
            let (image, used) = self.readable(sample)?;
            for (v, size) in sizes.iter().enumerate() {
                let key = DrawKey { seed: c.seed, epoch, sample: used as u64, view: v as u64 };
                render(&c.plan, v, &image, key, &mut views[v][slot * size..(slot + 1) * size])?;
            }
        }
        Ok(Raw { views, samples })
    }

    /// The image `sample`, or the next one that can be read; and which it is.
    fn readable(&self, sample: usize) -> Result<(image::DynamicImage, usize)> {
        let c = &self.config;
        let total = c.dataset.len();
        for shift in 0..total.min(1000) {
            let index = (sample + shift) % total;
            match c.dataset.get(index) {
                Ok(found) => return Ok((found.image, index)),
                Err(e) if c.strict => return Err(e.into()),
                Err(e) => {
                    self.lock().bad.insert(c.dataset.id(index), e.to_string());
                }
            }
        }
        Err(Error::Config(format!("{}: 1,000 images in a row can't be read; is it a folder of images?", c.dataset.name())))
    }
}
