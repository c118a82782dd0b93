//! Throughput of data: encoded bytes in memory in, normalised views out, without any training beside it. Reading files is not timed.
//!
//! SimCLR's views are those of the paper whatever the size (jitter 0.8, 0.8, 0.8, 0.2, blur half of the time), as programs that this one is
//! compared with make them; those of other methods are their defaults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;
use toml::Table;
use twinsight_augment::{DrawKey, Normalize, SimclrViews, ViewPlan, render};
use twinsight_datasets::{Dataset, decode};
use twinsight_ssl_methods::{ViewContext, method};

use crate::{Error, Result};

/// What to time.
#[derive(Debug, Clone)]
pub struct BenchData {
    /// The method whose views are made.
    pub method: String,
    /// Side of the views in pixels.
    pub size: usize,
    /// Images to make views of; those of the data set are repeated.
    pub count: usize,
    /// Threads, from 1.
    pub threads: usize,
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
        let image = decode::decode_bytes(&files[i % files.len()], name.as_ref())?;
        let decoded = Instant::now();
        for view in 0..views {
            let key = DrawKey { seed: 0, epoch: 0, sample: i as u64, view: view as u64 };
            render(&plan, view, &image, key, &mut out[..plan.view_len(view)])?;
        }
        spent[0] += (decoded - start).as_secs_f64();
        spent[1] += decoded.elapsed().as_secs_f64();
        Ok(())
    };
    let most = (0..views).map(|v| plan.view_len(v)).max().unwrap_or(0);
    let mut out = vec![0.0; most];
    for i in 0..50.min(bench.count) {
        one(i, &mut out, &mut [0.0; 2])?;
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<[f64; 2]> {
        let (mut out, mut spent) = (vec![0.0; most], [0.0; 2]);
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= bench.count {
                return Ok(spent);
            }
            one(i, &mut out, &mut spent)?;
        }
    };
    let start = Instant::now();
    let spent = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..bench.threads).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err(Error::Config("a thread panicked; the message above says where".into()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<_>>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let each = |part: usize| {
        let sum: f64 = spent.iter().map(|s| s[part]).sum();
        (sum / bench.count as f64 * 1e7).round() / 10.0
    };
    Ok(DataReport {
        peer: "twinsight".into(),
        size: bench.size,
        count: bench.count,
        images_per_s: (bench.count as f64 / seconds * 10.0).round() / 10.0,
        threads: bench.threads,
        method: bench.method.clone(),
        views,
        decode_us: each(0),
        views_us: each(1),
    })
}
