//! What an encoder costs: parameters, multiply-adds, memory of a training step.

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use twinsight_encoders::{EncoderConfig, EncoderSpec};
use twinsight_kernels::trace;
use twinsight_nn::{Builder, DrawKey, Mode};

use crate::{Error, Result};

/// Figures of an encoder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Its name.
    pub encoder: String,
    /// Its settings.
    pub config: EncoderConfig,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Numbers of a vector.
    pub dim: usize,
    /// Multiply-adds of the products for one image.
    pub multiply_adds: u64,
    /// Images of the step that `step_bytes` is about.
    pub batch: usize,
    /// Bytes of a training step of `batch` images, each seen once: weights, gradients, one state of the optimizer (SGD with momentum)
    /// and what the passes keep. Extrapolated from the peaks of steps of 2 and of 6 images; `None` where the system does not tell.
    pub step_bytes: Option<u64>,
}

/// Takes the figures, by running the encoder on a few pictures of its size. Before other work of the process: peaks of memory
/// are the process's.
///
/// # Errors
/// Settings that the encoder refuses.
pub fn inspect(spec: &EncoderSpec, config: &EncoderConfig, batch: usize) -> Result<Inspection> {
    if batch == 0 {
        return Err(Error::Config("--batch 0: expected 1 or more images".into()));
    }
    let builder = Builder::zeros(&Device::Cpu);
    let network = (spec.build)(config, &builder)?;
    let side = config.image_size;
    let pictures = |n: usize| Tensor::ones((n, config.channels, side, side), DType::F32, &Device::Cpu);
    trace::start();
    let one = network.forward(&pictures(1)?, &Mode::EVAL);
    let multiply_adds = trace::stop().iter().map(|t| t.multiply_adds).sum();
    one?;
    let step = |n: usize| -> Result<Option<u64>> {
        let mode = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 });
        let gradients = network.forward(&pictures(n)?, &mode)?.pooled.sum_all()?.backward()?;
        drop(gradients);
        Ok(peak_bytes())
    };
    const FEW: (u64, u64) = (2, 6);
    let peaks = step(FEW.0 as usize)?.zip(step(FEW.1 as usize)?);
    let parameters = builder.finish().trainable_count();
    let step_bytes = peaks.map(|(few, more)| {
        let each = more.saturating_sub(few) / (FEW.1 - FEW.0);
        (few + 4 * parameters as u64).saturating_sub(FEW.0 * each) + each * batch as u64
    });
    let (encoder, dim) = (spec.name.to_string(), network.dim());
    Ok(Inspection { encoder, config: config.clone(), parameters, dim, multiply_adds, batch, step_bytes })
}

/// The most memory that this process had so far.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
