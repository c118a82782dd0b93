//! Devices by name. What a build can compute on is decided by its features: `cuda` (with or without `cudnn`) and `metal`; the processor is
//! always there.

use candle_core::Device;
use twinsight_kernels::{open_cuda, open_metal};

use crate::memory::Fits;
use crate::{Error, Result};

/// A device as it is named: `cpu`, `cuda`, `cuda:1`, `metal`, `metal:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Cpu,
    Cuda(usize),
    Metal(usize),
}

impl Name {
    fn parse(text: &str) -> Result<Self> {
        let (kind, number) = match text.split_once(':') {
            None => (text, Some(0)),
            Some((kind, number)) => (kind, number.parse::<usize>().ok()),
        };
        match (kind, number) {
            ("cpu", Some(0)) if text == "cpu" => Ok(Self::Cpu),
            ("cuda", Some(number)) => Ok(Self::Cuda(number)),
            ("metal", Some(number)) => Ok(Self::Metal(number)),
            _ => Err(Error::Config(format!("device = `{text}`: expected cpu, cuda, cuda:N, metal or metal:N, N from 0"))),
        }
    }
}

/// Refuses what names no device, without looking whether it is there.
///
/// # Errors
/// Another word than `cpu`, `cuda`, `cuda:N`, `metal`, `metal:N`.
pub fn check(name: &str) -> Result<()> {
    Name::parse(name).map(|_| ())
}

/// The device of this name. On CUDA all threads share one stream ([`open_cuda`]).
///
/// # Errors
/// A word that names none; a device that the program was not built for, or that the machine lacks.
pub fn open(name: &str) -> Result<Device> {
    match Name::parse(name)? {
        Name::Cpu => Ok(Device::Cpu),
        Name::Cuda(number) => {
            let built = candle_core::utils::cuda_is_available();
            opened(name, built, "cuda", "an NVIDIA GPU with its driver", || open_cuda(number))
        }
        Name::Metal(number) => {
            let built = candle_core::utils::metal_is_available();
            opened(name, built, "metal", "a Mac with Metal", || open_metal(number))
        }
    }
}

fn opened(
    name: &str,
    built: bool,
    feature: &str,
    needs: &str,
    open: impl FnOnce() -> candle_core::Result<Device>,
) -> Result<Device> {
    if !built {
        return Err(Error::Config(format!(
            "device = `{name}`: this program was built for the CPU; build it with `--features {feature}`, or take --device cpu"
        )));
    }
    open().map_err(|e| {
        let first = e.to_string();
        let first = first.lines().next().unwrap_or_default();
        Error::Config(format!("device = `{name}`: cannot be opened ({first}); it takes {needs}"))
    })
}

/// Whether the host may prepare step after step without a number from the device: on CUDA. On Metal candle gives memory that was sent to the
/// device free only where something is read back, so that batches would pile up.
pub(crate) fn runs_ahead(device: &Device) -> bool {
    device.is_cuda()
}

/// Whether `error` says that a device's memory was too small.
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    // The last two are Metal's.
    const WORDS: [&str; 6] = [
        "OUT_OF_MEMORY",
        "out of memory",
        "ALLOC_FAILED",
        "ALLOCATION_FAILED",
        "CallbackErrorOutOfMemory",
        "Failed to create metal resource: Buffer",
    ];
    let text = error.to_string();
    WORDS.iter().any(|words| text.contains(words))
}

/// The words for a device whose memory was too small for `part` images in the encoder at a time, and what to do.
pub(crate) fn out_of_memory(device: &str, part: usize, fits: Fits) -> Error {
    let known = fits.batch.map(|most| format!("the largest batch that would fit is about {most} (measured with smaller ones); "));
    // Half, where nothing was measured.
    let part_that_fits = if fits == Fits::default() { Some(part / 2) } else { fits.part };
    let advice = match (part_that_fits.filter(|&n| n > 1), fits.batch.filter(|&n| n > 1)) {
        (Some(n), _) => {
            format!("try --micro-batch {n}, which gives the gradients of the same batch from parts of it, or a smaller --batch")
        }
        (None, Some(n)) => {
            format!("try --batch {n}; with the views of the whole batch there, no smaller --micro-batch would fit")
        }
        (None, None) => "a smaller encoder or smaller views are needed".to_string(),
    };
    let known = known.unwrap_or_default();
    Error::Config(format!("{device} has not enough memory for {part} images in the encoder at a time: {known}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!(Name::parse("cpu").expect("a name"), Name::Cpu);
        assert_eq!(Name::parse("cuda").expect("a name"), Name::Cuda(0));
        assert_eq!(Name::parse("cuda:3").expect("a name"), Name::Cuda(3));
        assert_eq!(Name::parse("metal").expect("a name"), Name::Metal(0));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU", "metal:1:2"] {
            let error = check(wrong).expect_err("is no device").to_string();
            assert!(error.contains(&format!("`{wrong}`")) && error.contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn what_is_not_built_in_says_how_to_get_it() {
        assert!(open("cpu").expect("the processor").is_cpu());
        if !candle_core::utils::cuda_is_available() {
            let error = open("cuda:1").expect_err("not built in").to_string();
            assert!(error.contains("--features cuda"), "{error}");
        }
        if !candle_core::utils::metal_is_available() {
            let error = open("metal").expect_err("not built in").to_string();
            assert!(error.contains("--features metal"), "{error}");
        }
        assert!(!runs_ahead(&Device::Cpu));
    }

    #[test]
    fn too_little_memory_names_the_part_that_may_fit() {
        let full = |text: &str| is_out_of_memory(&Error::Config(text.into()));
        assert!(full("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")") && full("CUDNN_STATUS_ALLOC_FAILED"));
        assert!(full("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"));
        assert!(full("Failed to create metal resource: Buffer") && !full("Failed to create metal resource: CommandQueue"));
        assert!(!full("a full disk"));
        let words = |part, fits| out_of_memory("cuda", part, fits).to_string();
        let nothing = Fits::default();
        assert!(words(256, nothing).contains("256 images") && words(256, nothing).contains("--micro-batch 128"));
        let both = words(256, Fits { batch: Some(96), part: Some(120) });
        assert!(both.contains("about 96 (measured") && both.contains("--micro-batch 120"), "{both}");
        assert!(words(256, Fits { batch: Some(96), part: None }).contains("try --batch 96"));
        assert!(words(256, Fits { batch: Some(96), part: Some(1) }).contains("try --batch 96"));
        assert!(words(2, nothing).contains("smaller encoder"));
        assert!(words(64, Fits { batch: None, part: Some(1) }).contains("smaller encoder"));
    }
}
