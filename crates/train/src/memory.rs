//! How many images fit into a device's memory at a time: measured where a step did not fit.

use candle_core::{DType, Device, Tensor};
use twinsight_kernels::{device_memory, peak_memory};
use twinsight_ssl_methods::{At, Method, backward_unseen};

use crate::Error;

/// The most bytes in use at a time in a step of some images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub images: u64,
    pub bytes: u64,
}

/// What is left alone of the memory that images could have, as a share: pieces that fit nothing.
const SPARE: f64 = 0.08;

/// How many images are in the encoder at a time.
pub(crate) fn part(batch: usize, micro_batch: usize) -> usize {
    if micro_batch == 0 { batch } else { micro_batch.min(batch) }
}

/// An error of a step of `batch` images, `part` at a time; where it says that the device, here with its name, has not enough memory, with what
/// would fit. For a run that has failed: the method's state (queues, running statistics) takes up what is measured with.
pub(crate) fn explained(
    error: Error,
    method: &mut dyn Method,
    (device, name): (&Device, &str),
    at: &At,
    (batch, part): (usize, usize),
) -> Error {
    if !crate::device::is_out_of_memory(&error) {
        return error;
    }
    // Each by steps of its own kind: a batch in parts keeps the views and results of the whole, and has one view in the encoder at a time.
    let whole = measure(device, part, |images| held(method, device, at, (images, 0)));
    let parts = measure(device, part, |images| held(method, device, at, (batch, images)));
    crate::device::out_of_memory(name, part, Fits { batch: whole, part: parts })
}

/// An error of evaluating `batch` images at a time; where it says that the device has not enough memory, with what to do.
pub(crate) fn explained_judging(error: Error, device: &str, batch: usize) -> Error {
    if !crate::device::is_out_of_memory(&error) {
        return error;
    }
    Error::Config(format!(
        "{device} has not enough memory to evaluate {batch} images at a time: try fewer, --set eval.batch={}",
        (batch / 4).max(1)
    ))
}

/// How many images would fit, where that could be measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fits {
    /// As a batch.
    pub batch: Option<usize>,
    /// At a time, of the batch that was asked for.
    pub part: Option<usize>,
}

/// The most images at a time whose step fits into `total` bytes, by a line through two measurements; multiples of 8 from 16 on. `None` where
/// they do not grow with the images, or not even one would fit.
pub(crate) fn largest_part(total: u64, small: Held, large: Held) -> Option<usize> {
    if large.images <= small.images || large.bytes <= small.bytes {
        return None;
    }
    let each = (large.bytes - small.bytes) as f64 / (large.images - small.images) as f64;
    // Weights, the optimizer's state, the program itself, other programs.
    let fixed = (small.bytes as f64 - each * small.images as f64).max(0.0);
    let most = ((total as f64 - fixed) * (1.0 - SPARE) / each).floor();
    match most {
        most if most < 1.0 => None,
        most if most < 16.0 => Some(most as usize),
        most => Some(most as usize / 8 * 8),
    }
}

/// The most images that would fit, where `part` did not, by the memory that steps of some and of twice as many need: an eighth and a quarter, or
/// as many fewer as fit. `None` where it can't be measured, and where the line says that `part` fits.
fn measure(device: &Device, part: usize, mut held: impl FnMut(usize) -> Option<Held>) -> Option<usize> {
    let total = device_memory(device)?.total;
    let mut few = part / 8;
    while few >= 2 {
        // The larger first: where it does not fit, the smaller need not be tried.
        if let Some(large) = held(2 * few)
            && let Some(small) = held(few)
        {
            return largest_part(total, small, large).filter(|most| *most < part);
        }
        few /= 2;
    }
    None
}

/// The most memory of a step of `batch` images, `part` at a time or all for 0.
fn held(method: &mut dyn Method, device: &Device, at: &At, (batch, part): (usize, usize)) -> Option<Held> {
    let plan = method.views().clone();
    let views = (0..plan.view_count())
        .map(|v| Tensor::zeros((batch, plan.channels, plan.view(v).size, plan.view(v).size), DType::F32, device))
        .collect::<candle_core::Result<Vec<_>>>()
        .ok()?;
    let bytes = peak_memory(device, || backward_unseen(method, &views, at, part).ok())?;
    Some(Held { images: if part == 0 { batch } else { part } as u64, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_largest_part_follows_from_two_measurements() {
        // 2 GiB that are always there, 64 MiB an image.
        let held = |images: u64| Held { images, bytes: 2 * GIB + images * (GIB / 16) };
        let most = largest_part(80 * GIB, held(32), held(64)).expect("fits");
        assert!(most.is_multiple_of(8) && (1136..=1160).contains(&most), "{most}");
        let needs = |images: usize| 2.0 * GIB as f64 + images as f64 * GIB as f64 / 16.0;
        assert!(needs(most) <= 80.0 * GIB as f64, "what it names fits");
        assert_eq!(largest_part(3 * GIB, held(2), held(4)), Some(14), "small numbers are not rounded");
        assert_eq!(largest_part(2 * GIB, held(2), held(4)), None, "the weights alone fill it");
    }

    #[test]
    fn evaluation_that_does_not_fit_says_so() {
        let full = Error::Config("CUDA_ERROR_OUT_OF_MEMORY".into());
        let words = explained_judging(full, "cuda", 256).to_string();
        assert!(words.contains("to evaluate 256 images") && words.contains("eval.batch=64"), "{words}");
        assert_eq!(
            explained_judging(Error::Config("another".into()), "cuda", 256).to_string(),
            Error::Config("another".into()).to_string()
        );
    }

    #[test]
    fn on_the_processor_nothing_is_measured() {
        assert_eq!(measure(&Device::Cpu, 64, |_| panic!("no memory to measure")), None);
    }

    #[test]
    fn measurements_that_say_nothing_give_nothing() {
        let held = |images, bytes| Held { images, bytes };
        assert_eq!(largest_part(GIB, held(4, 100), held(4, 200)), None);
        assert_eq!(largest_part(GIB, held(4, 200), held(8, 200)), None);
    }
}
