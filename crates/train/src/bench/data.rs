//! Throughput of data: encoded bytes in memory in, normalised views out, without any training beside it. Reading files is not timed,
//! nor are starting threads and each one's first images.
//!
//! SimCLR's views are those of the paper whatever the size (jitter 0.8, 0.8, 0.8, 0.2, blur half of the time), as programs that this one is
//! compared with make them; those of other methods are their defaults.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use toml::Table;
use twinsight_augment::{DrawKey, Normalize, SimclrViews, ViewPlan, render_excerpt};
use twinsight_datasets::{Dataset, decode};
use twinsight_ssl_methods::{ViewContext, method};

use crate::loader::{excerpt, wanted};
use crate::{Error, Result};

/// What to time.
#[derive(Debug, Clone)]
pub struct BenchData {
    /// The method whose views are made.
    pub method: String,
    /// Side of the views in pixels.
    pub size: usize,
    /// Images to make views of, at least; those of the data set are repeated, for a second or longer.
    pub count: usize,
    /// Threads, from 1.
    pub threads: usize,
    /// Whether JPEGs may be decoded at a fraction of their size where views are much smaller, as training does it.
    pub reduced_decode: bool,
}

/// The figures; the first four names are shared with the Python program that it is compared with.
#[derive(Debug, Clone, Serialize)]
pub struct DataReport {
    /// Who measured.
    pub peer: String,
    /// Side of the views in pixels.
    pub size: usize,
    /// Images of which views were made.
    pub count: usize,
    /// Images a second, all of their views made.
    pub images_per_s: f64,
    /// Threads.
    pub threads: usize,
    /// The method whose views were made.
    pub method: String,
    /// Views an image.
    pub views: usize,
    /// Microseconds a thread spends on decoding an image.
    pub decode_us: f64,
    /// Microseconds a thread spends on all views of an image.
    pub views_us: f64,
    /// The share of a thread's time that decoding takes, 0 to 1.
    pub decode_share: f64,
    /// The share that views take.
    pub views_share: f64,
}

/// The shortest time that is measured.
const LEAST: Duration = Duration::from_secs(1);

/// What one thread did.
struct Timed {
    start: Instant,
    end: Instant,
    made: usize,
    /// Seconds spent on decoding and on views.
    spent: [f64; 2],
}

/// Times the views of the first images of `dataset`, which must lie encoded.
///
/// # Errors
/// No encoded images, an image that can't be read, settings out of range.
pub fn bench_data(bench: &BenchData, dataset: &dyn Dataset) -> Result<DataReport> {
    if bench.count == 0 || bench.threads == 0 {
        return Err(Error::Config("--count and --threads take numbers of at least 1".into()));
    }
    let files: Vec<Vec<u8>> = (0..dataset.len().min(bench.count))
        .map(|i| {
            let none = || Error::Config(format!("{}: its images do not lie encoded; there is nothing to decode", dataset.name()));
            Ok(dataset.encoded(i).ok_or_else(none)??)
        })
        .collect::<Result<_>>()?;
    let channels = 3;
    let normalize = Normalize::cifar10();
    let plan = match bench.method.as_str() {
        "simclr" => ViewPlan::simclr(bench.size, channels, &SimclrViews::default()).with_normalize(normalize),
        name => {
            let context = ViewContext { image_size: bench.size, channels, patch: 1, normalize };
            (method(name)?.views)(&Table::new(), &context)?
        }
    };
    plan.check()?;
    let views = plan.view_count();
    let one = |i: usize, out: &mut [f32], spent: &mut [f64; 2]| -> Result<()> {
        let start = Instant::now();
        let name = dataset.id(i % files.len());
        let key = |view: usize| DrawKey { seed: 0, epoch: 0, sample: i as u64, view: view as u64 };
        let choose = &mut |w, h| wanted(&plan, (w, h), bench.reduced_decode, key);
        let part = decode::decode_part(&files[i % files.len()], name.as_ref(), choose)?;
        let decoded = Instant::now();
        let excerpt = excerpt(&part);
        for view in 0..views {
            render_excerpt(&plan, view, &excerpt, key(view), &mut out[..plan.view_len(view)])?;
        }
        spent[0] += (decoded - start).as_secs_f64();
        spent[1] += decoded.elapsed().as_secs_f64();
        Ok(())
    };
    let most = (0..views).map(|v| plan.view_len(v)).max().unwrap_or(0);
    let next = AtomicUsize::new(0);
    let ready = Barrier::new(bench.threads);
    // Every thread makes some views before the clock starts, and goes on until there are enough and the time is up.
    let work = || -> Result<Timed> {
        let mut out = vec![0.0; most];
        let warm = (0..50.min(bench.count)).try_for_each(|i| one(i, &mut out, &mut [0.0; 2]));
        ready.wait();
        warm?;
        let start = Instant::now();
        let mut timed = Timed { start, end: start, made: 0, spent: [0.0; 2] };
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= bench.count && start.elapsed() >= LEAST {
                break;
            }
            one(i, &mut out, &mut timed.spent)?;
            timed.made += 1;
        }
        timed.end = Instant::now();
        Ok(timed)
    };
    let timed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..bench.threads).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err(Error::Config("a thread panicked; the message above says where".into()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<_>>>()
    })?;
    let start = timed.iter().map(|t| t.start).min();
    let end = timed.iter().map(|t| t.end).max();
    let seconds = start.zip(end).map_or(0.0, |(start, end)| (end - start).as_secs_f64());
    let made: usize = timed.iter().map(|t| t.made).sum();
    let sum = |part: usize| timed.iter().map(|t| t.spent[part]).sum::<f64>();
    let tenths = |v: f64| (v * 10.0).round() / 10.0;
    let each = |part: usize| tenths(sum(part) / made as f64 * 1e6);
    let share = |part: usize| (sum(part) / (sum(0) + sum(1)) * 1e3).round() / 1e3;
    Ok(DataReport {
        peer: "twinsight".into(),
        size: bench.size,
        count: made,
        images_per_s: tenths(made as f64 / seconds),
        threads: bench.threads,
        method: bench.method.clone(),
        views,
        decode_us: each(0),
        views_us: each(1),
        decode_share: share(0),
        views_share: share(1),
    })
}
