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

/// Memory that is left alone, as a share: pieces that fit nothing.
const SPARE: f64 = 0.08;

/// How many images are in the encoder at a time.
pub(crate) fn part(batch: usize, micro_batch: usize) -> usize {
    if micro_batch == 0 { batch } else { micro_batch.min(batch) }
}

/// An error of a step of `part` images at a time; where it says that the device, here with its name, has not enough memory, with what would fit.
/// For a run that has failed, as [`measure`].
pub(crate) fn explained(error: Error, method: &mut dyn Method, (device, name): (&Device, &str), at: &At, part: usize) -> Error {
    match crate::device::is_out_of_memory(&error) {
        true => crate::device::out_of_memory(name, part, measure(method, device, at, part)),
        false => error,
    }
}

/// The most images at a time whose step fits into `total` bytes, by a line through two measurements; multiples of 8 from 16 on. `None` where
/// they do not grow with the images, or not even one would fit.
pub(crate) fn largest_part(total: u64, small: Held, large: Held) -> Option<usize> {
    if large.images <= small.images || large.bytes <= small.bytes {
        return None;
    }
    let each = (large.bytes - small.bytes) as f64 / (large.images - small.images) as f64;
    // Weights, the optimizer's state, the program itself.
    let fixed = (small.bytes as f64 - each * small.images as f64).max(0.0);
    let most = ((total as f64 * (1.0 - SPARE) - fixed) / each).floor();
    match most {
        most if most < 1.0 => None,
        most if most < 16.0 => Some(most as usize),
        most => Some(most as usize / 8 * 8),
    }
}

/// The most images at a time that would fit, where `part` did not: from the memory that a forward and a backward pass of an eighth and of a
/// quarter of them need. The method's state (queues, running statistics) takes up what it sees, so this is for a run that has failed. `None` where it can't be
/// measured.
fn measure(method: &mut dyn Method, device: &Device, at: &At, part: usize) -> Option<usize> {
    let total = device_memory(device)?.total;
    let (few, more) = (part / 8, part / 4);
    if few < 2 {
        return None;
    }
    let small = held(method, device, at, few)?;
    let large = held(method, device, at, more)?;
    // It did not fit, whatever the line says.
    largest_part(total, small, large).map(|most| most.min(part - 1))
}

fn held(method: &mut dyn Method, device: &Device, at: &At, images: usize) -> Option<Held> {
    let plan = method.views().clone();
    let views = (0..plan.view_count())
        .map(|v| Tensor::zeros((images, plan.channels, plan.view(v).size, plan.view(v).size), DType::F32, device))
        .collect::<candle_core::Result<Vec<_>>>()
        .ok()?;
    let bytes = peak_memory(device, || backward_unseen(method, &views, at, 0).ok())?;
    Some(Held { images: images as u64, bytes })
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
        assert_eq!(largest_part(3 * GIB, held(2), held(4)), Some(12), "small numbers are not rounded");
        assert_eq!(largest_part(2 * GIB, held(2), held(4)), None, "the weights alone fill it");
    }

    #[test]
    fn measurements_that_say_nothing_give_nothing() {
        let held = |images, bytes| Held { images, bytes };
        assert_eq!(largest_part(GIB, held(4, 100), held(4, 200)), None);
        assert_eq!(largest_part(GIB, held(4, 200), held(8, 200)), None);
    }
}
