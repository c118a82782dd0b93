//! Throughput of one training step on random views made beforehand: forward of all views, loss, backward, optimizer and
//! what the method does after a step. No image is decoded or augmented, so that only the step is timed.
//!
//! Heads, view sizes and optimizer are those that throughput comparisons of PyTorch programs commonly use: SimCLR
//! D-D-128; BYOL D-1024-256 and 256-1024-256; Barlow Twins D-2048-2048-2048; DINO 2048-2048-256-4096 without batch norm, two
//! global and six local views; SGD with momentum 0.9, weight decay 5e-4, learning rate 0.01.

use std::time::Instant;

use candle_core::Tensor;
use serde::Serialize;
use twinsight_augment::Normalize;
use twinsight_encoders::EncoderConfig;
use twinsight_kernels::trace::{self, OpTotal};
use twinsight_nn::{DrawKey, Optimizer, OptimizerConfig, Precision};
use twinsight_ssl_methods::{At, MethodContext, backward, backward_unseen, method};

use crate::{Error, Result};

/// What to time.
#[derive(Debug, Clone)]
pub struct BenchStep {
    /// Method, encoder: names in the registries.
    pub method: String,
    /// The encoder's name.
    pub encoder: String,
    /// Images a step.
    pub batch: usize,
    /// Side of the (global) views in pixels.
    pub size: usize,
    /// Side of DINO's local views in pixels.
    pub local_size: usize,
    /// Images in the encoder at a time; 0: the whole batch.
    pub micro_batch: usize,
    /// The precision of the step.
    pub precision: Precision,
    /// Timed steps; one more is made before them, and one after them to count operations.
    pub steps: usize,
    /// What computes, as [`crate::device::open`] takes it.
    pub device: String,
}

/// The share of one kind of operation in a step.
#[derive(Debug, Clone, Serialize)]
pub struct OpShare {
    /// The operation and its pass.
    pub name: String,
    /// How often it ran.
    pub calls: u64,
    /// Seconds in the step.
    pub seconds: f64,
    /// Seconds over the step's.
    pub share: f64,
    /// Billions of multiply-adds, by the operation's definition; 0 where it is no product.
    pub gmac: f64,
}

/// The figures of a timed step; the names are shared with the PyTorch program that it is compared with.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Who measured.
    pub peer: String,
    /// The method.
    pub method: String,
    /// The encoder.
    pub encoder: String,
    /// Images a step.
    pub batch: usize,
    /// Side of the views.
    pub size: usize,
    /// The precision of the step.
    pub dtype: Precision,
    /// Whether a graph compiler ran (never here; the key is shared).
    pub compile: bool,
    /// The device.
    pub device: String,
    /// Images a second at the median step, each image counted once however many views.
    pub images_per_s: f64,
    /// Median seconds a step.
    pub step_s: f64,
    /// Seconds of the fastest step.
    pub best_step_s: f64,
    /// Peak resident memory of the process in MiB; `null` where the system does not tell.
    pub peak_rss_mb: Option<u64>,
    /// Billions of multiply-adds of a step, forward and backward of every product, by their definitions: what Winograd's
    /// algorithm saves is counted, what recomputation adds is not. `None` on devices other than the CPU, where they are not counted.
    pub gmac_per_step: Option<f64>,
    /// Where the time of one more step went, the longest first; what the operations leave is the rest. Empty on other devices, which work
    /// behind the program's back.
    pub profile: Vec<OpShare>,
}

/// Times `bench.steps` steps after one that warms up.
///
/// # Errors
/// Unknown names, sizes that the encoder can't take.
pub fn bench_step(bench: &BenchStep, tick: &mut dyn FnMut(usize)) -> Result<BenchReport> {
    if bench.steps == 0 || bench.batch < 2 || bench.size < 8 {
        return Err(Error::Config("bench step needs --steps 1 or more, --batch 2 or more and --size 8 or more".into()));
    }
    let spec = method(&bench.method)?;
    let mut options = (spec.defaults)();
    for (key, value) in comparison_options(&bench.method, bench.local_size) {
        if let Some(slot) = options.get_mut(key) {
            *slot = value;
        }
    }
    let device = crate::device::open(&bench.device)?;
    bench.precision.apply();
    let context = MethodContext {
        encoder: twinsight_encoders::encoder(&bench.encoder)?,
        encoder_config: EncoderConfig { channels: 3, image_size: bench.size, ..EncoderConfig::default() },
        normalize: Normalize { mean: vec![0.5; 3], std: vec![0.25; 3] },
        batch_size: bench.batch,
        epochs: 100,
        steps_per_epoch: 100,
        seed: 0,
        device: device.clone(),
    };
    let mut method = (spec.build)(&options, &context)?;
    let weight_decay = 5e-4;
    let config = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay };
    let mut optimizer = Optimizer::new(&config, method.student())?;
    let plan = method.views().clone();
    let views = (0..plan.view_count())
        .map(|v| {
            let side = plan.view(v).size;
            let key = DrawKey { seed: 0, step: 0, pass: v as u64 };
            let values = key.normals("bench", bench.batch * 3 * side * side);
            Ok(Tensor::from_vec(values, (bench.batch, 3, side, side), &device)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut times = Vec::with_capacity(bench.steps);
    let mut traced = Vec::new();
    // As in training: each loss is looked at, but CUDA is not waited for within a step.
    let on_cpu = device.is_cpu();
    let go = if crate::device::runs_ahead(&device) { backward_unseen } else { backward };
    let not_finite = || Error::Config("the loss is not finite".into());
    let mut last = None;
    // Past the epochs in which DINO's last layer is frozen, so that a step does all its work.
    let at = |i: usize| At {
        step: 1000 + i as u64,
        epoch: 10,
        steps_per_epoch: 100,
        epochs: 100,
        seed: 0,
        precision: bench.precision,
    };
    for i in 0..=bench.steps + usize::from(on_cpu) {
        if i > bench.steps {
            trace::start();
        }
        let start = Instant::now();
        let mut step = || -> Result<()> {
            let at = at(i);
            let made = go(&mut *method, &views, &at, bench.micro_batch)?;
            let mut gradients = made.gradients.ok_or_else(not_finite)?;
            last = Some(made.output.loss);
            method.adjust_gradients(&mut gradients, &at)?;
            optimizer.step(&gradients, 0.01, weight_decay)?;
            method.after_step(&at)?;
            // Devices work behind the program's back: the step has ended when they have.
            Ok(device.synchronize()?)
        };
        if let Err(error) = step() {
            drop(views);
            let part = crate::memory::part(bench.batch, bench.micro_batch);
            return Err(crate::memory::explained(error, &mut *method, (&device, &bench.device), &at(i), (bench.batch, part)));
        }
        let seconds = start.elapsed().as_secs_f64();
        if i > bench.steps {
            traced = profile(&trace::stop(), seconds);
        } else {
            if i > 0 {
                times.push(seconds);
            }
            tick(i);
        }
    }
    // What would be timed otherwise are NaNs.
    if let Some(loss) = last
        && !loss.to_scalar::<f32>()?.is_finite()
    {
        return Err(not_finite());
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    Ok(BenchReport {
        peer: format!("twinsight {}", env!("CARGO_PKG_VERSION")),
        method: bench.method.clone(),
        encoder: bench.encoder.clone(),
        batch: bench.batch,
        size: bench.size,
        dtype: bench.precision,
        compile: false,
        device: bench.device.clone(),
        images_per_s: (bench.batch as f64 / median * 100.0).round() / 100.0,
        step_s: (median * 1e4).round() / 1e4,
        best_step_s: (times[0] * 1e4).round() / 1e4,
        peak_rss_mb: peak_rss_mb(),
        gmac_per_step: on_cpu.then(|| (traced.iter().map(|t| t.gmac).sum::<f64>() * 100.0).round() / 100.0),
        profile: traced,
    })
}

/// The operations' shares of a step of `seconds`, and at the end what they leave.
fn profile(totals: &[OpTotal], seconds: f64) -> Vec<OpShare> {
    let share =
        |name: &str, calls, own: f64, gmac| OpShare { name: name.into(), calls, seconds: own, share: own / seconds, gmac };
    let rest = seconds - totals.iter().map(|t| t.seconds).sum::<f64>();
    let operations = totals.iter().map(|t| share(t.name, t.calls, t.seconds, t.multiply_adds as f64 * 1e-9));
    operations.chain([share("rest (sums, copies, graph)", 0, rest, 0.0)]).collect()
}

/// The heads of the comparison, where they differ from the method's defaults.
fn comparison_options(method: &str, local_size: usize) -> Vec<(&'static str, toml::Value)> {
    let int = |v: usize| toml::Value::Integer(v as i64);
    match method {
        "simclr" => vec![("projection_dim", int(128)), ("temperature", toml::Value::Float(0.5))],
        "barlow_twins" => {
            vec![("lambda", toml::Value::Float(5e-3)), ("hidden_dim", int(2048)), ("projection_dim", int(2048))]
        }
        "byol" => vec![("hidden_dim", int(1024)), ("projection_dim", int(256))],
        "dino" => vec![
            ("hidden_dim", int(2048)),
            ("bottleneck_dim", int(256)),
            ("out_dim", int(4096)),
            ("local_views", int(6)),
            ("local_size", int(local_size)),
        ],
        _ => Vec::new(),
    }
}

/// `VmHWM` of this process, in MiB.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kb| kb / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_keys_of_the_peers() -> Result<()> {
        let bench = BenchStep {
            method: "simclr".into(),
            encoder: "resnet_mini".into(),
            batch: 2,
            size: 8,
            local_size: 8,
            micro_batch: 0,
            precision: Precision::F32,
            steps: 1,
            device: "cpu".into(),
        };
        let report = serde_json::to_value(bench_step(&bench, &mut |_| {})?).expect("is JSON");
        let keys =
            ["peer", "method", "encoder", "batch", "size", "dtype", "compile", "device", "images_per_s", "step_s", "best_step_s"];
        for key in keys {
            assert!(report.get(key).is_some_and(|value| !value.is_null()), "{key}: {report}");
        }
        assert!(report.get("peak_rss_mb").is_some() && report["dtype"] == "f32" && report["compile"] == false);
        Ok(())
    }
}
