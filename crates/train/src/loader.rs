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
//!
//! Where a [`ViewRenderer`] has the images, the threads only draw: order, epochs and streams are the same, and the renderer makes the
//! pixels when the batch is taken.

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
use twinsight_augment::{DrawKey, DrawnView, Excerpt, ViewPlan, needed, render_excerpt};
use twinsight_datasets::{Dataset, Part, Rect, Wanted};
use twinsight_kernels::transfer::{HostBuffer, Transfers, Upload};

use crate::picture::Picture;
use crate::renderer::{DrawnBatch, ViewRenderer};
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
    renderer: Option<Box<dyn ViewRenderer>>,
    /// The next batch, on its way to the device.
    coming: Option<(u64, Coming)>,
    waited: Duration,
}

/// A batch whose copy to the device has begun.
struct Coming {
    views: Vec<Upload>,
    samples: Vec<usize>,
}

struct Shared {
    config: LoaderConfig,
    /// What views are drawn for, where a renderer makes them: the images' widths and heights.
    sizes: Option<Arc<Vec<(u32, u32)>>>,
    /// Memory that batches are made in, and their way to the device.
    transfers: Transfers,
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

/// What the threads make of a batch.
enum Raw {
    /// Its views, and the samples.
    Made(Vec<HostBuffer>, Vec<usize>),
    /// What a renderer is to make.
    Drawn(DrawnBatch),
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
        Self::start_with(config, first, device, None)
    }

    /// As [`Loader::start`]; `renderer` has all the images and makes the views, which are drawn here.
    ///
    /// # Errors
    /// As [`Loader::start`]; a renderer of another number of images.
    pub fn start_with(
        config: LoaderConfig,
        first: u64,
        device: &Device,
        renderer: Option<Box<dyn ViewRenderer>>,
    ) -> Result<Self> {
        config.plan.check()?;
        let sizes = renderer.as_ref().map(|r| r.sizes());
        if let Some(found) = sizes.as_ref().map(|s| s.len()).filter(|&found| found != config.dataset.len()) {
            let expected = config.dataset.len();
            return Err(Error::Config(format!("views are made of {found} images, and the data set has {expected}")));
        }
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
            sizes,
            transfers: Transfers::new(device)?,
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
        let mut loader = Self { shared, threads: Vec::new(), renderer, coming: None, waited: Duration::ZERO };
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
        let coming = self.coming.take().filter(|(of, _)| *of == number).map(|(_, coming)| coming);
        let raw = loop {
            if coming.is_some() {
                break None;
            }
            if let Some(raw) = state.ready.remove(&number) {
                break Some(raw);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.next_to_take += 1;
        drop(state);
        self.shared.changed.notify_all();
        self.waited += start.elapsed();
        let Coming { views, samples } = match (coming, raw) {
            (Some(coming), _) => coming,
            (None, Some(raw)) => match raw? {
                Raw::Made(views, samples) => self.begin(views, samples)?,
                Raw::Drawn(drawn) => {
                    let renderer = self.renderer.as_mut().ok_or_else(|| Error::Config("nobody makes the drawn views".into()))?;
                    return Ok(Batch { views: renderer.render(&drawn)?, samples: drawn.samples });
                }
            },
            (None, None) => return Err(Error::Config("a batch got lost in the loader".into())),
        };
        let views = views.into_iter().map(|view| Ok(self.shared.transfers.finish(view)?)).collect::<Result<_>>()?;
        self.begin_next(number + 1)?;
        Ok(Batch { views, samples })
    }

    /// Begins the copies of a batch to the device.
    fn begin(&self, views: Vec<HostBuffer>, samples: Vec<usize>) -> Result<Coming> {
        let (plan, transfers) = (&self.shared.config.plan, &self.shared.transfers);
        let shape = |v: usize| (samples.len(), plan.channels, plan.view(v).size, plan.view(v).size);
        let views = views.into_iter().enumerate().map(|(v, data)| Ok(transfers.begin(data, shape(v).into())?));
        Ok(Coming { views: views.collect::<Result<_>>()?, samples })
    }

    /// Begins the copies of batch `number` if the device takes them beside its work and the batch is ready.
    fn begin_next(&mut self, number: u64) -> Result<()> {
        if !self.shared.transfers.are_apart() {
            return Ok(());
        }
        let mut state = self.shared.lock();
        if let Some(Ok(Raw::Made(..))) = state.ready.get(&number)
            && let Some(Ok(Raw::Made(views, samples))) = state.ready.remove(&number)
        {
            drop(state);
            self.coming = Some((number, self.begin(views, samples)?));
        }
        Ok(())
    }

    /// Takes out who makes the views, with the images that it keeps: for the loader after this one, which gives no batch that was drawn any more.
    pub fn take_renderer(&mut self) -> Option<Box<dyn ViewRenderer>> {
        self.renderer.take()
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
        if let Some(sizes) = &self.sizes {
            drop(turn);
            return Ok(Raw::Drawn(self.draw(epoch, &order[start..start + c.batch], sizes)?));
        }
        let lengths: Vec<usize> = (0..c.plan.view_count()).map(|v| c.plan.view_len(v)).collect();
        let mut views = lengths.iter().map(|s| Ok(self.transfers.buffer(s * c.batch)?)).collect::<Result<Vec<HostBuffer>>>()?;
        // Several blocks a thread, so that threads end together; none larger than sixteen.
        let size = c.batch.div_ceil(4 * self.pool.current_num_threads()).min(BLOCK);
        let mut used: Vec<Result<Vec<usize>>> = (0..c.batch.div_ceil(size)).map(|_| Ok(Vec::new())).collect();
        let slices = views.iter_mut().zip(&lengths).map(|(v, length)| Ok(v.as_mut_slice()?.chunks_mut(size * length)));
        let mut slices = slices.collect::<Result<Vec<_>>>()?;
        self.pool.in_place_scope_fifo(|scope| {
            for (block, used) in used.iter_mut().enumerate() {
                let out: Vec<&mut [f32]> = slices.iter_mut().filter_map(Iterator::next).collect();
                let slots = block * size..((block + 1) * size).min(c.batch);
                scope.spawn_fifo(move |_| *used = self.fill(epoch, start, slots, order, out));
            }
            drop(turn);
        });
        let samples = used.into_iter().collect::<Result<Vec<Vec<usize>>>>()?.concat();
        Ok(Raw::Made(views, samples))
    }

    /// Draws the views of a batch of `samples`.
    fn draw(&self, epoch: u64, samples: &[u32], sizes: &[(u32, u32)]) -> Result<DrawnBatch> {
        let LoaderConfig { plan, seed, .. } = &self.config;
        let one = |view: usize, sample: u32| {
            let key = DrawKey { seed: *seed, epoch, sample: u64::from(sample), view: view as u64 };
            Ok(DrawnView::draw(plan, view, sizes[sample as usize], key)?)
        };
        let of_view = |view: usize| samples.iter().map(|&sample| one(view, sample)).collect::<Result<Vec<_>>>();
        let views = (0..plan.view_count()).map(of_view).collect::<Result<_>>()?;
        Ok(DrawnBatch { samples: samples.iter().map(|&i| i as usize).collect(), views })
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
mod tests;
