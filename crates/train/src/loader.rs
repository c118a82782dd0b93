//! The loader: threads that turn images into batches of views ahead of the training step, in an order that depends on
//! the seed and the epoch alone.
//!
//! Batch `b` of epoch `e` holds the samples `order(e)[b·size .. (b+1)·size]`, where the order is [`epoch_order`] or what the
//! data set asks for ([`Dataset::order`]: archives too large for memory are read from front to back); the last, smaller batch of an epoch is left
//! out. Each view is drawn from the stream of (seed, epoch, sample, view), so that neither the number of threads nor a
//! resume in the middle of an epoch changes a pixel.
//!
//! The images of a batch are handed out in blocks of up to sixteen, each of which is written to its own slice of the batch's memory: even
//! one batch keeps all threads busy. Two batches are in the making at a time, so that no thread waits for the last block of one; their
//! blocks are taken in order, so that the earlier batch is ready first. At most `threads + 2` batches are held at once, and fewer where
//! they would take more than half a gigabyte.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::ThreadPool;
use twinsight_augment::{DrawKey, Excerpt, ViewPlan, needed, render_excerpt};
use twinsight_datasets::{Dataset, Part, Rect, Wanted};

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
    /// Whether images that are much larger than their views may be decoded at a fraction of their size ([`needed`] says when).
    pub reduced_decode: bool,
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
    /// The threads that make views.
    pool: ThreadPool,
    /// Held while the blocks of a batch are handed out: those of the next come after them.
    turn: Mutex<()>,
    closing: AtomicBool,
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

/// What was read of an image.
enum Found {
    /// What the views' crops need of a picture.
    Part(Part),
    /// All of an image of other channels or bits than pictures have.
    Bands(Picture),
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
        let cannot = |e: String| Error::Config(format!("data.workers = {count}: cannot start that many threads: {e}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("loader-{i}"));
        let shared = Arc::new(Shared {
            per_epoch,
            ahead: ahead(&config, count),
            config,
            pool: pool.build().map_err(|e| cannot(e.to_string()))?,
            turn: Mutex::new(()),
            closing: AtomicBool::new(false),
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
        let mut loader = Self { shared, threads: Vec::new(), device: device.clone(), waited: Duration::ZERO };
        for i in 0..IN_THE_MAKING {
            let shared = loader.shared.clone();
            let thread = std::thread::Builder::new().name(format!("batches-{i}")).spawn(move || shared.work());
            loader.threads.push(thread.map_err(|e| cannot(e.to_string()))?);
        }
        Ok(loader)
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
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so; there is nothing to add while dropping.
            let _ = thread.join();
        }
    }
}

/// Batches that are in the making at once.
const IN_THE_MAKING: usize = 2;
/// Images of a block, at most: few enough that threads end a batch together.
const BLOCK: usize = 16;

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

    /// Makes batches, one after the other, until the loader is closed.
    fn work(&self) {
        loop {
            // Batches are numbered and handed out in turn, so that blocks of the earlier are taken first.
            let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
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
            let make = || self.make(epoch, number % self.per_epoch, &order, turn);
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make))
                .unwrap_or_else(|_| Err(Error::Config("a loader thread panicked; the message above says where".into())));
            self.lock().ready.insert(number, made);
            self.changed.notify_all();
        }
    }

    /// Makes one batch; `turn` is given back once its blocks are handed out.
    fn make(&self, epoch: u64, position: u64, order: &[u32], turn: MutexGuard<'_, ()>) -> Result<Raw> {
        let c = &self.config;
        let start = position as usize * c.batch;
        let lengths: Vec<usize> = (0..c.plan.view_count()).map(|v| c.plan.view_len(v)).collect();
        let mut views: Vec<Vec<f32>> = lengths.iter().map(|s| vec![0.0; s * c.batch]).collect();
        // Several blocks a thread, so that threads end together; none larger than sixteen.
        let size = c.batch.div_ceil(4 * self.pool.current_num_threads()).min(BLOCK);
        let mut used: Vec<Result<Vec<usize>>> = (0..c.batch.div_ceil(size)).map(|_| Ok(Vec::new())).collect();
        let mut slices: Vec<_> = views.iter_mut().zip(&lengths).map(|(v, length)| v.chunks_mut(size * length)).collect();
        self.pool.in_place_scope_fifo(|scope| {
            for (block, used) in used.iter_mut().enumerate() {
                let out: Vec<&mut [f32]> = slices.iter_mut().filter_map(Iterator::next).collect();
                let slots = block * size..((block + 1) * size).min(c.batch);
                scope.spawn_fifo(move |_| *used = self.fill(epoch, start, slots, order, out));
            }
            drop(turn);
        });
        let samples = used.into_iter().collect::<Result<Vec<Vec<usize>>>>()?.concat();
        Ok(Raw { views, samples })
    }

    /// Makes the views of the batch's images `slots`, into `out`, one slice a view; the batch begins at `start` of the order. Gives the
    /// images that were taken.
    fn fill(
        &self,
        epoch: u64,
        start: usize,
        slots: std::ops::Range<usize>,
        order: &[u32],
        mut out: Vec<&mut [f32]>,
    ) -> Result<Vec<usize>> {
        let c = &self.config;
        let mut used = Vec::with_capacity(slots.len());
        for (i, slot) in slots.enumerate() {
            if self.closing.load(Ordering::Relaxed) {
                break; // Nobody will take the batch.
            }
            let sample = order[start + slot] as usize;
            let key = |view: usize| DrawKey { seed: c.seed, epoch, sample: sample as u64, view: view as u64 };
            let (found, index) =
                self.readable(sample, order, start + c.batch + slot, &mut |w, h| wanted(&c.plan, (w, h), c.reduced_decode, key))?;
            used.push(index);
            for (v, out) in out.iter_mut().enumerate() {
                let length = c.plan.view_len(v);
                let out = &mut out[i * length..(i + 1) * length];
                match &found {
                    Found::Part(part) => {
                        render_excerpt(&c.plan, v, &excerpt(part), key(v), out)?;
                    }
                    Found::Bands(picture) => picture.render(&c.plan, v, key(v), out)?,
                }
            }
        }
        Ok(used)
    }

    /// What `choose` wants of the image `sample`, or in its place of the first that can be read of those that `order` has from `after` on,
    /// behind the batch; and which it is.
    fn readable(
        &self,
        sample: usize,
        order: &[u32],
        after: usize,
        choose: &mut dyn FnMut(u32, u32) -> Wanted,
    ) -> Result<(Found, usize)> {
        let c = &self.config;
        let others = (after..).map(|i| order[i % order.len()] as usize);
        for index in std::iter::once(sample).chain(others).take(order.len().min(1000)) {
            let found = match c.dataset.bands(index) {
                Some(bands) => bands.map(|b| Found::Bands(Picture::Bands(b))),
                None => c.dataset.get_part(index, choose).map(Found::Part),
            };
            match found {
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

/// What all views of a `size` image are made of; no rectangle, which stands for all, where a view may need all. With `reduced` the image may
/// be as much smaller as suits all of them.
pub(crate) fn wanted(plan: &ViewPlan, size: (u32, u32), reduced: bool, key: impl Fn(usize) -> DrawKey) -> Wanted {
    let rect = |r: twinsight_augment::ops::Region| Rect { left: r.left, top: r.top, width: r.width, height: r.height };
    // A view that can't be made will say so itself.
    let of = |view: usize| needed(plan, view, size, key(view)).ok();
    let Some(views) = (0..plan.view_count()).map(of).collect::<Option<Vec<_>>>() else { return Wanted::all() };
    let parts = views.iter().map(|view| view.region.map(rect)).collect::<Option<_>>().unwrap_or_default();
    let least = views.iter().map(|view| view.reduction).min().unwrap_or(1);
    Wanted { parts, reduction: if reduced { least } else { 1 } }
}

/// A part as what views are made of.
pub(crate) fn excerpt(part: &Part) -> Excerpt<'_> {
    let (place, whole) = ((part.left, part.top), (part.width, part.height));
    Excerpt { image: &part.image, place, whole, reduction: part.reduction }
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
            reduced_decode: true,
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
}
