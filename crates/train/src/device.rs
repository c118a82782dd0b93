//! Devices by name. What a build can compute on is decided by its features: `cuda` (with or without `cudnn`) and `metal`; the processor is
//! always there.

use candle_core::Device;

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

/// The device of this name.
///
/// # Errors
/// A word that names none; a device that the program was not built for, or that the machine lacks.
pub fn open(name: &str) -> Result<Device> {
    match Name::parse(name)? {
        Name::Cpu => Ok(Device::Cpu),
        Name::Cuda(number) => {
            let built = candle_core::utils::cuda_is_available();
            opened(name, built, "cuda", "an NVIDIA GPU with its driver", || Device::new_cuda(number))
        }
        Name::Metal(number) => {
            let built = candle_core::utils::metal_is_available();
            opened(name, built, "metal", "a Mac with Metal", || Device::new_metal(number))
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

/// The words for what a device ran out of, and what to do, where `error` says that its memory was too small.
pub(crate) fn out_of_memory(error: &Error, device: &str, batch: usize, micro_batch: usize) -> Option<Error> {
    let text = error.to_string();
    if !["OUT_OF_MEMORY", "out of memory"].iter().any(|words| text.contains(words)) {
        return None;
    }
    let part = if micro_batch == 0 { batch } else { micro_batch.min(batch) };
    let advice = match part / 2 {
        0 | 1 => "a smaller encoder or smaller views are needed".to_string(),
        half => format!(
            "try --micro-batch {half}, which gives the gradients of the same batch from parts of it, or a smaller --batch"
        ),
    };
    Some(Error::Config(format!("{device} has not enough memory for {part} images in the encoder at a time: {advice}")))
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
    }

    #[test]
    fn too_little_memory_names_the_part_that_may_fit() {
        let full = Error::Config("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into());
        let words = |batch, micro| out_of_memory(&full, "cuda", batch, micro).expect("recognised").to_string();
        assert!(words(256, 0).contains("--micro-batch 128"), "{}", words(256, 0));
        assert!(words(256, 64).contains("--micro-batch 32"));
        assert!(words(256, 2).contains("smaller encoder"));
        assert!(out_of_memory(&Error::Config("a full disk".into()), "cuda", 2, 0).is_none());
    }
}
