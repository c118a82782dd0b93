//! Times the main shapes of small-image training, forward and backward, beside a plain matrix product in the same run.
//!
//! `cargo run --release -p twinsight-kernels --example bench [FILTER]`. The first rate is by the clock, the second by
//! processor time of all threads, which a busy machine disturbs less. Backward times run from the moment that the result's
//! gradient is known to the moment that the input's is; they hold candle's additions of both to zeros.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use twinsight_kernels::update::{AdamwConfig, AdamwTensor, SgdConfig, SgdTensor, adamw, sgd};
use twinsight_kernels::{
    BatchNormConfig, CachingAllocator, Conv2dConfig, attention, batch_norm_train, conv2d, ema, gelu, layer_norm, linear,
    max_pool2d,
};

#[global_allocator]
static ALLOCATOR: CachingAllocator<mimalloc::MiMalloc> = CachingAllocator::new(mimalloc::MiMalloc, 4 << 30);

fn main() -> Result<()> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let wanted = |name: &str| name.contains(&filter);
    if wanted("matrix product") {
        let (a, b) = (random((2048, 2048))?.as_detached_tensor(), random((2048, 2048))?.as_detached_tensor());
        print("matrix product 2048, candle", "GFLOP/s", 17.18, time(|| a.matmul(&b).map(|_| ()))?);
    }

    for (c, o, size, stride, k) in [
        (3, 64, 32, 1, 3),
        (64, 64, 32, 1, 3),
        (64, 128, 32, 2, 3),
        (128, 128, 16, 1, 3),
        (256, 256, 8, 1, 3),
        (512, 512, 4, 1, 3),
        (256, 512, 8, 2, 1),
    ] {
        let name = format!("conv {k}x{k} {c:>3} to {o:>3} at {size:>2} stride {stride}");
        if wanted(&name) {
            let (x, w) = (random((128, size, size, c))?, random((o, c, k, k))?);
            let config = Conv2dConfig { stride, padding: k / 2, ..Default::default() };
            let flops = 2.0 * (128 * (size / stride).pow(2) * o * c * k * k) as f64 * 1e-9;
            measure(&name, "GFLOP/s", (flops, flops), &[("x", &x), ("weight", &w)], |t| conv2d(&t[0], &t[1], config))?;
        }
    }
    let (w, b) = (random(64)?, random(64)?);
    let gb = (128 * 32 * 32 * 64) as f64 * 4e-9;
    for (relu, skip) in [(false, false), (true, false), (true, true)] {
        let name = format!("batch norm (128,32,32,64) relu {relu} residual {skip}");
        if wanted(&name) {
            let (x, r) = (random((128, 32, 32, 64))?, random((128, 32, 32, 64))?);
            let config = BatchNormConfig { relu, ..Default::default() };
            let more = if skip { 1.0 } else { 0.0 };
            measure(&name, "GB/s", ((3.0 + more) * gb, 5.0 * gb), &[("all", &x), ("", &w), ("", &b), ("", &r)], |t| {
                batch_norm_train(&t[0], Some(&t[1]), Some(&t[2]), skip.then(|| &t[3]), config).map(|o| o.y)
            })?;
        }
    }
    for (rows, inputs, outputs) in [(256, 512, 2048), (256, 2048, 2048), (128 * 65, 192, 768)] {
        let name = format!("linear {rows} x {inputs} to {outputs}");
        if wanted(&name) {
            let (x, w, b) = (random((rows, inputs))?, random((outputs, inputs))?, random(outputs)?);
            let flops = 2.0 * (rows * inputs * outputs) as f64 * 1e-9;
            let of = [("x", &x), ("weight", &w)];
            measure(&name, "GFLOP/s", (flops, flops), &of, |t| linear(&t[0], &t[1], Some(&b)))?;
        }
    }
    if wanted("attention") {
        let x = random((128, 65, 3 * 192))?;
        let flops = 4.0 * (128 * 3 * 65 * 65 * 64) as f64 * 1e-9;
        measure("attention (128,65,3 heads of 64)", "GFLOP/s", (flops, 2.5 * flops), &[("qkv", &x)], |t| attention(&t[0], 3))?;
    }
    let tokens = (128 * 65 * 768) as f64 * 4e-9;
    if wanted("gelu") {
        let x = random((128, 65, 768))?;
        measure("gelu (128,65,768)", "GB/s", (2.0 * tokens, 3.0 * tokens), &[("x", &x)], |t| gelu(&t[0]))?;
    }
    if wanted("layer norm") {
        let (x, w, b) = (random((128, 65, 768))?, random(768)?, random(768)?);
        measure("layer norm (128,65,768)", "GB/s", (2.0 * tokens, 3.0 * tokens), &[("all", &x), ("", &w), ("", &b)], |t| {
            layer_norm(&t[0], &t[1], &t[2], 1e-6)
        })?;
    }
    if wanted("max pool") {
        let x = random((32, 56, 56, 64))?;
        let gb = (32 * 56 * 56 * 64) as f64 * 4e-9;
        measure("max pool 3/2/1 (32,56,56,64)", "GB/s", (gb, gb), &[("x", &x)], |t| max_pool2d(&t[0], 3, 2, 1))?;
    }
    if wanted("update") {
        let shape = (4096, 2048);
        let (p, m, v, g) = (random(shape)?, random(shape)?, random(shape)?, random(shape)?);
        let gb = (4096 * 2048) as f64 * 4e-9;
        let g = g.as_detached_tensor();
        print("update ema, 8 million", "GB/s", 3.0 * gb, time(|| ema(&[(&p, &g)], 0.99))?);
        let config = SgdConfig { momentum: 0.9, nesterov: false };
        let one = SgdTensor { param: &p, grad: &g, momentum: &m, lr: 1e-9, weight_decay: 0.0, scale: 1.0 };
        print("update sgd, 8 million", "GB/s", 5.0 * gb, time(|| sgd(&[one], config))?);
        let config = AdamwConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 3 };
        let one = AdamwTensor { param: &p, grad: &g, first: &m, second: &v, lr: 1e-9, weight_decay: 0.0 };
        print("update adamw, 8 million", "GB/s", 7.0 * gb, time(|| adamw(&[one], config))?);
    }
    Ok(())
}

fn random(shape: impl Into<Shape>) -> Result<Var> {
    Var::rand(-1f32, 1f32, shape, &Device::Cpu)
}

/// Seconds of one run: the best by the clock, and the mean by processor time.
#[derive(Clone, Copy)]
struct Time {
    clock: f64,
    processor: f64,
}

fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or("").split(' ').skip(11).take(2);
    fields.filter_map(|v| v.parse::<f64>().ok()).sum::<f64>() * 0.01
}

fn time(mut f: impl FnMut() -> Result<()>) -> Result<Time> {
    f()?;
    let (mut best, mut runs) = (f64::MAX, 0);
    let (start, processor) = (Instant::now(), processor_time());
    while runs < 3 || start.elapsed() < Duration::from_millis(500) {
        let one = Instant::now();
        f()?;
        best = best.min(one.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(Time { clock: best, processor: (processor_time() - processor) / f64::from(runs) })
}

fn print(name: &str, unit: &str, work: f64, t: Time) {
    let (ms, rate, each) = (t.clock * 1e3, work / t.clock, work / t.processor);
    println!("{name:<58} {ms:>8.2} ms {rate:>7.1} {unit} ({each:>7.1} by processor time)");
}

/// Times the forward pass, and the backward pass to every named input alone ("all": to all of them at once).
fn measure(
    name: &str,
    unit: &str,
    work: (f64, f64),
    inputs: &[(&str, &Var)],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let fixed: Vec<Tensor> = inputs.iter().map(|(_, v)| v.as_detached_tensor()).collect();
    let forward = time(|| f(&fixed).map(|_| ()))?;
    print(&format!("{name} forward"), unit, work.0, forward);
    for (i, (what, _)) in inputs.iter().enumerate().filter(|(_, (what, _))| !what.is_empty()) {
        let (before, after) = (Probe::default(), Probe::default());
        let mut best = Time { clock: f64::MAX, processor: f64::MAX };
        let (start, mut runs) = (Instant::now(), 0);
        while runs < 3 || start.elapsed() < Duration::from_millis(800) {
            runs += 1;
            let mut tensors = fixed.clone();
            for (j, (_, v)) in inputs.iter().enumerate() {
                if i == j {
                    tensors[j] = v.as_tensor().apply_op1(after.clone())?;
                } else if *what == "all" {
                    tensors[j] = v.as_tensor().clone();
                }
            }
            let y = f(&tensors)?.apply_op1(before.clone())?;
            y.sum_all()?.backward()?;
            let span = |a: Option<Mark>, b: Option<Mark>| a.zip(b).map(|(a, b)| (b.0 - a.0, b.1 - a.1));
            let marks = (before.0.lock().map(|m| *m).ok().flatten(), after.0.lock().map(|m| *m).ok().flatten());
            if let Some((clock, processor)) = span(marks.0, marks.1) {
                best.clock = best.clock.min(clock.as_secs_f64());
                best.processor = best.processor.min(processor.max(0.01));
            }
        }
        print(&format!("{name} to {what}"), unit, work.1, best);
    }
    Ok(())
}

/// The clock's and the processor's time.
type Mark = (Instant, f64);

/// The identity, which notes when its gradient comes by.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Option<Mark>>>);

impl CustomOp1 for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        if let Ok(mut mark) = self.0.lock() {
            *mark = Some((Instant::now(), processor_time()));
        }
        Ok(Some(grad))
    }
}
