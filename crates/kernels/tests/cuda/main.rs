//! The operations on a CUDA device against those on the CPU, forward and backward. Where no device opens, each test says so and passes.

#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;
mod half;
mod order;
mod state;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use common::{flat, near, tensor};
use twinsight_kernels::{
    BatchNormConfig, BlockParts, Conv2dConfig, ConvNorm, Keep, Shortcut, Similarities, attention, batch_norm_eval,
    batch_norm_train, conv_blocks, conv2d, cross_entropy_soft, epps_pulley, gelu, global_avg_pool, l2_normalize, layer_norm,
    linear, log_softmax, log_sum_exp, max_pool2d, open_cuda, pick_rows, relu, row_max, softmax,
};

/// The CUDA device that is named, or the first, or a line that says why not.
fn device() -> Option<Device> {
    let number = twinsight_test_support::test_device().expect("a device's name").unwrap_or(0);
    match open_cuda(number) {
        Ok(device) => Some(device),
        Err(e) => {
            println!("skipped: no CUDA device opens ({})", e.to_string().lines().next().unwrap_or_default());
            None
        }
    }
}

type Function = fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// The result of `f` and the gradients of Σ result · (random weights), with the inputs on `device`.
fn differentiate(device: &Device, inputs: &[Tensor], f: Function) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let vars = inputs.iter().map(|t| Ok(Var::from_tensor(&t.to_device(device)?)?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors)?.to_dtype(DType::F32)?;
    let weights = tensor(y.dims(), 999)?.to_device(device)?;
    // Of one axis: candle's sum over none asks the driver for a table of nothing.
    let grads = (&y * weights)?.flatten_all()?.sum_all()?.backward()?;
    let gradients = vars.iter().map(|v| grads.get(v).map_or_else(|| Ok(Vec::new()), flat)).collect::<Result<_>>()?;
    Ok((flat(&y)?, gradients))
}

/// Fails unless both devices agree.
fn agree(device: &Device, what: &str, shapes: &[&[usize]], tolerance: f64, f: Function) -> Result<()> {
    let inputs = shapes.iter().enumerate().map(|(i, s)| tensor(s, i as u64 + 1)).collect::<Result<Vec<_>>>()?;
    let (want, want_grads) = differentiate(&Device::Cpu, &inputs, f)?;
    let (got, got_grads) = differentiate(device, &inputs, f)?;
    near(what, &got, &want, tolerance)?;
    for (i, (got, want)) in got_grads.iter().zip(&want_grads).enumerate() {
        near(&format!("{what}: gradient to input {i}"), got, want, tolerance)?;
    }
    Ok(())
}

/// What failed, told at the end, so that one failure hides no other.
#[derive(Default)]
struct All(Vec<String>);

impl All {
    fn check(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.0.push(format!("{error:#}"));
        }
    }

    fn done(self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} failed:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}

#[test]
fn every_operation_gives_what_the_cpu_gives() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut all = All::default();
    let d = &device;
    all.check(agree(d, "relu", &[&[7, 33]], 1e-6, |t| relu(&t[0])));
    all.check(agree(d, "relu of a part", &[&[7, 33]], 1e-6, |t| relu(&t[0].narrow(0, 2, 3)?)));
    all.check(agree(d, "gelu of a transposed tensor", &[&[7, 33]], 1e-5, |t| gelu(&(t[0].t()? * 4.0)?)));
    all.check(agree(d, "softmax", &[&[3, 5, 37]], 1e-5, |t| softmax(&(&t[0] * 5.0)?)));
    all.check(agree(d, "long softmax", &[&[3, 5000]], 1e-5, |t| softmax(&(&t[0] * 5.0)?)));
    all.check(agree(d, "log-softmax", &[&[11, 67]], 1e-5, |t| log_softmax(&t[0])));
    all.check(agree(d, "l2", &[&[11, 67]], 1e-5, |t| l2_normalize(&t[0], 1e-12)));
    all.check(agree(d, "cross-entropy", &[&[9, 35], &[9, 35]], 1e-5, |t| cross_entropy_soft(&t[0], &t[1].abs()?.detach())));
    all.check(agree(d, "log-sum-exp", &[&[9, 35]], 1e-5, |t| log_sum_exp(&t[0], &[[0, 3]; 9])));
    all.check(agree(d, "row maximum", &[&[9, 35]], 1e-6, |t| (&t[0] * 0.0)?.sum(1)? + row_max(&t[0], &[[0, 3]; 9])?));
    all.check(agree(d, "rows that are picked", &[&[9, 35]], 1e-6, |t| pick_rows(&t[0], &[7, 0, 3, 8])));
    // More elements than the largest grid has threads.
    all.check(agree(d, "many rows that are picked", &[&[1200, 1024]], 1e-6, |t| {
        pick_rows(&t[0], &(0..1100).rev().collect::<Vec<_>>())
    }));
    all.check(agree(d, "similarities in parts", &[&[9, 16], &[35, 16]], 1e-4, |t| {
        Similarities::in_parts(&t[0], &t[1], 4)?.log_sum_exp(&[[0, 3]; 9])
    }));
    all.check(agree(d, "Epps-Pulley", &[&[2, 16, 9]], 1e-4, |t| epps_pulley(&t[0], 17, 3.0)));
    all.check(agree(d, "layer norm", &[&[6, 5, 33], &[33], &[33]], 1e-4, |t| layer_norm(&t[0], &t[1], &t[2], 1e-5)));
    all.check(agree(d, "linear", &[&[6, 5, 33], &[7, 33], &[7]], 1e-4, |t| linear(&t[0], &t[1], Some(&t[2]))));
    all.check(agree(d, "linear without bias", &[&[6, 33], &[7, 33]], 1e-4, |t| linear(&t[0], &t[1], None)));
    all.check(agree(d, "attention", &[&[2, 9, 3 * 4 * 8]], 1e-4, |t| attention(&t[0], 4)));
    all.check(agree(d, "max pool", &[&[2, 9, 7, 5]], 1e-6, |t| max_pool2d(&t[0], 3, 2, 1)));
    all.check(agree(d, "average pool", &[&[2, 9, 7, 5]], 1e-5, |t| global_avg_pool(&t[0])));
    for groups in [1, 2] {
        let train: Function = match groups {
            1 => |t| norm(t, 1),
            _ => |t| norm(t, 2),
        };
        for c in [19, 64] {
            all.check(agree(d, "batch norm", &[&[4, 5, 7, c], &[c], &[c], &[4, 5, 7, c]], 1e-3, train));
        }
    }
    all.check(agree(d, "batch norm by given statistics", &[&[9, 8], &[8], &[8]], 1e-4, |t| {
        batch_norm_eval(&t[0], &t[1], &t[2].abs()?, None, None, None, BatchNormConfig::default())
    }));
    all.done()
}

fn norm(t: &[Tensor], groups: usize) -> candle_core::Result<Tensor> {
    let config = BatchNormConfig { eps: 1e-5, relu: true, groups };
    batch_norm_train(&t[0], Some(&t[1]), Some(&t[2]), Some(&t[3]), config).map(|out| out.y)
}

#[test]
fn convolutions_give_what_the_cpu_gives() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut all = All::default();
    let cases: [(&[usize], &[usize], Function); 6] = [
        (&[2, 9, 8, 5], &[7, 5, 3, 3], |t| conv2d(&t[0], &t[1], Conv2dConfig { padding: 1, ..Conv2dConfig::default() })),
        (&[2, 9, 8, 8], &[16, 8, 1, 1], |t| conv2d(&t[0], &t[1], Conv2dConfig { stride: 2, ..Conv2dConfig::default() })),
        (&[2, 17, 17, 3], &[8, 3, 7, 7], |t| {
            conv2d(&t[0], &t[1], Conv2dConfig { stride: 2, padding: 3, ..Conv2dConfig::default() })
        }),
        (&[2, 9, 8, 8], &[8, 4, 3, 3], |t| {
            conv2d(&t[0], &t[1], Conv2dConfig { padding: 1, groups: 2, ..Conv2dConfig::default() })
        }),
        (&[2, 9, 8, 6], &[6, 1, 3, 3], |t| {
            conv2d(&t[0], &t[1], Conv2dConfig { padding: 1, groups: 6, ..Conv2dConfig::default() })
        }),
        (&[1, 9, 8, 4], &[4, 4, 3, 3], |t| {
            conv2d(&t[0], &t[1], Conv2dConfig { padding: 2, dilation: 2, ..Conv2dConfig::default() })
        }),
    ];
    for (x, weight, f) in cases {
        all.check(agree(&device, &format!("convolution of {x:?} with {weight:?}"), &[x, weight], 1e-4, f));
    }
    // Images that start within a vector of 16 bytes.
    all.check(agree(&device, "convolution of a part", &[&[3, 27, 27, 1], &[4, 1, 3, 3]], 1e-4, |t| {
        conv2d(&t[0].narrow(0, 1, 2)?, &t[1], Conv2dConfig { padding: 1, ..Conv2dConfig::default() })
    }));
    all.done()
}

/// Two layers beside the identity.
fn block(t: &[Tensor], keep: Keep) -> candle_core::Result<Tensor> {
    let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    let layer = ConvNorm { weight: &t[1], scale: &t[2], shift: &t[3], config };
    let parts = BlockParts { path: vec![layer, layer], shortcut: Shortcut::Identity };
    conv_blocks(&t[0], &[parts], 1e-5, 2, keep).map(|out| out.y)
}

/// Two layers beside a convolution of half the size, after a layer alone.
fn blocks(t: &[Tensor]) -> candle_core::Result<Tensor> {
    let config = |stride, padding| Conv2dConfig { stride, padding, ..Conv2dConfig::default() };
    let layer = |weight, config| ConvNorm { weight, scale: &t[4], shift: &t[5], config };
    let stem = BlockParts { path: vec![layer(&t[1], config(1, 1))], shortcut: Shortcut::None };
    let path = vec![layer(&t[2], config(2, 1)), layer(&t[2], config(1, 1))];
    let side = BlockParts { path, shortcut: Shortcut::ConvNorm(layer(&t[3], config(2, 0))) };
    conv_blocks(&t[0], &[stem, side], 1e-5, 1, Keep::F32).map(|out| out.y)
}

#[test]
fn residual_blocks_give_what_the_cpu_gives() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut all = All::default();
    let shapes: [&[usize]; 4] = [&[4, 8, 8, 16], &[16, 16, 3, 3], &[16], &[16]];
    all.check(agree(&device, "a residual block", &shapes, 1e-3, |t| block(t, Keep::F32)));
    let shapes: [&[usize]; 6] = [&[4, 9, 7, 5], &[12, 5, 3, 3], &[12, 12, 3, 3], &[12, 12, 1, 1], &[12], &[12]];
    all.check(agree(&device, "residual blocks", &shapes, 1e-3, blocks));
    all.done()
}
