//! The operations on a CUDA device against those on the CPU, forward and backward. Where no device opens, each test says so and passes.

#![cfg(feature = "cuda")]

mod common;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use common::{flat, near, tensor};
use twinsight_kernels::update::{self, AdamwConfig, AdamwTensor, LarsConfig, SgdConfig, SgdTensor};
use twinsight_kernels::{
    Affine, BatchNormConfig, BlockParts, Conv2dConfig, ConvNorm, Keep, Shortcut, Similarities, TransformerParameters, attention,
    batch_norm_eval, batch_norm_train, conv_blocks, conv2d, cross_entropy_soft, epps_pulley, gelu, global_avg_pool, l2_normalize,
    layer_norm, linear, log_softmax, log_sum_exp, max_pool2d, open_cuda, relu, row_max, softmax, takes_bf16, transformer_blocks,
};

/// The first CUDA device, or a line that says why not.
fn device() -> Option<Device> {
    match open_cuda(0) {
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
    let grads = (&y * weights)?.sum_all()?.backward()?;
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

/// Two transformer parameters' worth of tensors as one block.
fn transformer(t: &[Tensor], keep: Keep) -> candle_core::Result<Tensor> {
    let affine = |i: usize| Affine { weight: &t[i], bias: &t[i + 1] };
    let parameters = TransformerParameters {
        norm1: affine(1),
        qkv: affine(3),
        proj: affine(5),
        norm2: affine(7),
        fc1: affine(9),
        fc2: affine(11),
    };
    transformer_blocks(&t[0], &[parameters], 4, 1e-6, keep)
}

/// Matrices by the root of their width, so that scores are not far apart, which rounding would change much.
fn scaled(t: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
    t.iter().map(|t| if t.rank() == 2 { t / (t.dim(1)? as f64).sqrt() } else { Ok(t.clone()) }).collect()
}

#[test]
fn bfloat16_is_near_f32_forward_and_backward() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut all = All::default();
    if !takes_bf16(&device) {
        return Ok(());
    }
    // How far off results and gradients may be: of norms, within which a few values round to the other side of a ReLU.
    let near_f32 = |what: &str, shapes: &[&[usize]], exact: Function, half: Function, off: [f64; 2]| -> Result<()> {
        let inputs = shapes.iter().enumerate().map(|(i, s)| tensor(s, i as u64 + 1)).collect::<Result<Vec<_>>>()?;
        let (want, want_grads) = differentiate(&device, &inputs, exact)?;
        let (got, got_grads) = differentiate(&device, &inputs, half)?;
        all.check(near(what, &got, &want, off[0]));
        for (i, (got, want)) in got_grads.iter().zip(&want_grads).enumerate() {
            ensure!(!want.is_empty(), "{what}: no gradient to input {i}");
            all.check(near(&format!("{what}: gradient to input {i}"), got, want, off[1]));
        }
        Ok(())
    };
    let shapes: [&[usize]; 4] = [&[4, 8, 8, 16], &[16, 16, 3, 3], &[16], &[16]];
    all.check(near_f32("block", &shapes, |t| block(t, Keep::F32), |t| block(t, Keep::Bf16), [3e-2, 1e-1]));
    let shapes: [&[usize]; 13] =
        [&[2, 9, 32], &[32], &[32], &[96, 32], &[96], &[32, 32], &[32], &[32], &[32], &[64, 32], &[64], &[32, 64], &[32]];
    all.check(near_f32(
        "transformer block",
        &shapes,
        |t| transformer(t, Keep::F32),
        |t| transformer(t, Keep::Bf16),
        [3e-2, 1e-1],
    ));
    // Heads of 32 numbers, which need no table of probabilities.
    let shapes: [&[usize]; 13] = [
        &[2, 67, 128],
        &[128],
        &[128],
        &[384, 128],
        &[384],
        &[128, 128],
        &[128],
        &[128],
        &[128],
        &[64, 128],
        &[64],
        &[128, 64],
        &[128],
    ];
    let [exact, half]: [Function; 2] = [|t| transformer(&scaled(t)?, Keep::F32), |t| transformer(&scaled(t)?, Keep::Bf16)];
    all.check(near_f32("wide transformer block", &shapes, exact, half, [3e-2, 1e-1]));
    let shapes: [&[usize]; 3] = [&[6, 5, 32], &[8, 32], &[8]];
    let half: Function = |t| linear(&t[0].to_dtype(DType::BF16)?, &t[1], Some(&t[2]));
    all.check(near_f32("linear", &shapes, |t| linear(&t[0], &t[1], Some(&t[2])), half, [1e-2, 2e-2]));
    let inputs = [tensor(&[2, 3, 33], 1)?.to_device(&device)?];
    ensure!(block_kinds(&device)? == [DType::F32, DType::BF16]);
    let half = |f: Function| -> Result<Vec<f32>> { flat(&f(&[inputs[0].to_dtype(DType::BF16)?])?.to_dtype(DType::F32)?) };
    all.check(near("softmax", &half(|t| softmax(&t[0]))?, &flat(&softmax(&inputs[0])?)?, 1e-2));
    all.done()
}

/// Attention of bfloat16 on a device, and of the same rounded numbers in `f32` on the CPU, from queries, keys and values (N, T, heads · D).
fn half_attention(t: &[Tensor], heads: usize) -> candle_core::Result<Tensor> {
    let half = Tensor::cat(&[&t[0], &t[1], &t[2]], 2)?.to_dtype(DType::BF16)?;
    if half.device().is_cpu() {
        return attention(&half.to_dtype(DType::F32)?, heads);
    }
    attention(&half, heads)?.to_dtype(DType::F32)
}

#[test]
fn attention_of_bfloat16_gives_what_the_cpu_gives() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut all = All::default();
    if !takes_bf16(&device) {
        return Ok(());
    }
    // Heads of 64 and 32 numbers have kernels of their own, from compute capability 8.0 on; those of 48 go by a table of probabilities.
    let cases: [([usize; 3], Function); 8] = [
        ([3, 2, 192], |t| half_attention(t, 3)),
        ([2, 37, 128], |t| half_attention(t, 2)),
        ([2, 64, 64], |t| half_attention(t, 1)),
        ([5, 65, 192], |t| half_attention(t, 3)),
        ([2, 197, 384], |t| half_attention(t, 6)),
        ([1, 1025, 64], |t| half_attention(t, 1)),
        ([2, 197, 128], |t| half_attention(t, 4)),
        ([2, 37, 96], |t| half_attention(t, 2)),
    ];
    for (shape, f) in cases {
        let what = format!("attention of bfloat16, {shape:?}");
        // The probabilities, their gradients, the result and the gradient to it are rounded on the device, by up to 2^-9 each.
        all.check(agree(&device, &what, &[&shape[..]; 3], 2e-2, f));
        let inputs = [1, 2, 3].map(|seed| tensor(&shape, seed));
        let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
        let first = differentiate(&device, &inputs, f)?;
        ensure!(differentiate(&device, &inputs, f)? == first, "{what}: other bits the second time");
    }
    // One token looks at itself alone.
    let one = tensor(&[7, 1, 3 * 64], 1)?.to_dtype(DType::BF16)?;
    let values = flat(&one.narrow(2, 128, 64)?.to_dtype(DType::F32)?)?;
    all.check(near("one token", &flat(&attention(&one.to_device(&device)?, 1)?.to_dtype(DType::F32)?)?, &values, 1e-6));
    // Numbers that do not start at a multiple of 16 bytes.
    let whole = tensor(&[1 + 2 * 9 * 192], 4)?.to_dtype(DType::BF16)?.to_device(&device)?;
    let part = whole.narrow(0, 1, 2 * 9 * 192)?.reshape((2, 9, 192))?;
    let want = attention(&part.to_device(&Device::Cpu)?.to_dtype(DType::F32)?, 1)?;
    all.check(near("a part", &flat(&attention(&part, 1)?.to_dtype(DType::F32)?)?, &flat(&want)?, 1e-2));
    all.done()
}

/// The element types of a block's result, kept in `f32` and in bfloat16.
fn block_kinds(device: &Device) -> Result<[DType; 2]> {
    let shapes: [&[usize]; 4] = [&[4, 8, 8, 16], &[16, 16, 3, 3], &[16], &[16]];
    let inputs = shapes.iter().map(|s| Ok(tensor(s, 1)?.to_device(device)?)).collect::<Result<Vec<_>>>()?;
    Ok([block(&inputs, Keep::F32)?.dtype(), block(&inputs, Keep::Bf16)?.dtype()])
}

#[test]
fn updates_give_what_the_cpu_gives() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let state = |on: &Device| -> Result<Vec<Vec<Var>>> {
        let lengths = [1, 300, 7, 20_000];
        let var = |len: usize, seed: u64| Ok(Var::from_tensor(&tensor(&[len], seed)?.abs()?.to_device(on)?)?);
        lengths.iter().enumerate().map(|(i, &len)| (0..4).map(|j| var(len, (10 * i + j) as u64)).collect()).collect()
    };
    let run = |on: &Device| -> Result<Vec<Vec<f32>>> {
        let vars = state(on)?;
        let config = SgdConfig { momentum: 0.9, nesterov: true };
        let step = |v: &'_ Vec<Var>| (v[0].clone(), v[1].as_tensor().clone(), v[2].clone());
        let owned: Vec<_> = vars.iter().map(step).collect();
        let tensors: Vec<_> = owned
            .iter()
            .map(|(param, grad, momentum)| SgdTensor { param, grad, momentum, lr: 0.1, weight_decay: 0.01, scale: 1.0 })
            .collect();
        update::sgd(&tensors, config)?;
        update::lars(&tensors, config, LarsConfig { trust_coefficient: 0.01, eps: 1e-8, clip: false })?;
        let tensors: Vec<_> = vars
            .iter()
            .map(|v| AdamwTensor { param: &v[0], grad: &v[1], first: &v[2], second: &v[3], lr: 0.01, weight_decay: 0.1 })
            .collect();
        update::adamw(&tensors, AdamwConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 2 })?;
        let pairs: Vec<_> = vars.iter().map(|v| (&v[2], v[0].as_tensor())).collect();
        update::ema(&pairs, 0.9)?;
        update::running_statistics(
            [&tensor(&[2, 300], 5)?.to_device(on)?, &tensor(&[2, 300], 6)?.to_device(on)?],
            [&vars[2][0], &vars[2][3]],
            0.1,
            20,
        )?;
        let squares = update::square_sums(&vars.iter().map(|v| v[1].as_tensor()).collect::<Vec<_>>())?;
        let mut found: Vec<Vec<f32>> = vars.iter().flatten().map(|v| flat(v)).collect::<Result<_>>()?;
        found.push(squares.into_iter().map(|s| s as f32).collect());
        Ok(found)
    };
    for (i, (got, want)) in run(&device)?.iter().zip(&run(&Device::Cpu)?).enumerate() {
        near(&format!("tensor {i}"), got, want, 1e-5)?;
    }
    Ok(())
}

#[test]
fn clipping_gives_what_the_cpu_gives_and_touches_no_other_tensor() -> Result<()> {
    use twinsight_kernels::update::{Clip, clip};
    let Some(device) = device() else { return Ok(()) };
    let lengths = [1, 300, 5, 16_384, 70_001];
    let before = lengths.iter().zip(1..).map(|(&len, seed)| tensor(&[len], seed)).collect::<Result<Vec<_>, _>>()?;
    for (of, max) in [Clip::Together, Clip::Each].into_iter().flat_map(|of| [0.0, 0.5, 30.0, 1e6].map(|max| (of, max))) {
        let mut want = before.clone();
        clip(&mut want.iter_mut().collect::<Vec<_>>(), max, of)?;
        let there = before.iter().map(|t| Ok(t.to_device(&device)?)).collect::<Result<Vec<Tensor>>>()?;
        let run = || -> Result<Vec<Vec<f32>>> {
            let mut found = there.clone();
            clip(&mut found.iter_mut().collect::<Vec<_>>(), max, of)?;
            found.iter().map(flat).collect()
        };
        let (found, again) = (run()?, run()?);
        ensure!(found == again, "{of:?} by {max}: a second run gives other bits");
        for (i, (got, want)) in found.iter().zip(&want).enumerate() {
            near(&format!("{of:?} by {max}, tensor {i}"), got, &flat(want)?, 1e-6)?;
        }
        for (i, (there, before)) in there.iter().zip(&before).enumerate() {
            ensure!(flat(there)? == flat(before)?, "{of:?} by {max}: gradient {i} was changed in place");
        }
    }
    // A norm that `f32` has no sum of squares for.
    let mut large = Tensor::full(1e25f32, 20, &device)?;
    clip(&mut [&mut large], 1.0, Clip::Together)?;
    near("large numbers", &flat(&large)?, &[0.05f32.sqrt(); 20], 1e-6)
}

/// Work that keeps the device from what follows for a while.
fn busy(device: &Device) -> Result<Tensor> {
    let x = Tensor::full(1e-4f32, (4096, 4096), device)?;
    let mut y = x.clone();
    for _ in 0..200 {
        y = y.matmul(&x)?;
    }
    Ok(y)
}

/// By themselves: what candle and the driver make of no elements is theirs.
#[test]
fn empty_tensors_are_no_trouble() -> Result<()> {
    use twinsight_kernels::update::{Clip, clip};
    let Some(device) = device() else { return Ok(()) };
    let none = Tensor::zeros((1, 9, 8, 5), DType::F32, &device)?.narrow(0, 0, 0)?;
    let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    let empty = conv2d(&none, &Tensor::zeros((7, 5, 3, 3), DType::F32, &device)?, config)?;
    ensure!(empty.dims() == [0, 9, 8, 7]);
    let mut tensors = [Tensor::zeros(0, DType::F32, &device)?, Tensor::ones(3, DType::F32, &device)?];
    clip(&mut tensors.iter_mut().collect::<Vec<_>>(), 1.0, Clip::Together)?;
    near("clipped beside nothing", &flat(&tensors[1])?, &[1.0 / 3f32.sqrt(); 3], 1e-5)
}

#[test]
fn tables_of_views_are_not_rewritten_before_they_are_read() -> Result<()> {
    use twinsight_kernels::views::{DeviceImages, ViewChannel, ViewCrop, ViewTable};
    let Some(device) = device() else { return Ok(()) };
    // An image of 16 pixels for each table, all of one level.
    let bytes: Vec<u8> = (0..20 * 16).map(|i| (i / 16 * 7) as u8).collect();
    // In parts, of which the second has not come yet.
    let mut images = DeviceImages::with_room(&device, bytes.len())?;
    images.append(&bytes[..100])?;
    let mut late = ViewTable::new(4, false, &[ViewChannel { factor: 1.0, offset: 0.0, nothing: 0 }])?;
    late.push(&ViewCrop { place: 96, image: (4, 4), crop: (0, 0, 4, 4), flip: false })?;
    ensure!(images.render(&late).is_err(), "an image is not whole yet");
    images.append(&bytes[100..])?;
    ensure!(images.len() == bytes.len() && images.append(&[0]).is_err());
    let busy = busy(&device)?;
    let mut views = Vec::new();
    for i in 0..20_u64 {
        let mut table = ViewTable::new(4, false, &[ViewChannel { factor: 1.0, offset: 0.0, nothing: 0 }])?;
        table.push(&ViewCrop { place: 16 * i, image: (4, 4), crop: (0, 0, 4, 4), flip: false })?;
        views.push(images.render(&table)?);
    }
    for (i, view) in views.iter().enumerate() {
        let found = flat(view)?;
        ensure!(found.iter().all(|&v| v == (7 * i) as f32), "view {i} is made of another's table: {found:?}");
    }
    ensure!(flat(&busy)?.iter().all(|v| v.is_finite()));
    Ok(())
}

#[test]
fn tensors_pass_between_threads() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    for i in 0..20 {
        let slow = busy(&device)?.affine(0.0, f64::from(i))?;
        // Another thread's work comes after this one's.
        let there = std::thread::scope(|scope| scope.spawn(|| relu(&slow).and_then(|y| y.sum_all())).join());
        let sum = there.map_err(|_| anyhow::anyhow!("a thread panicked"))??.to_scalar::<f32>()?;
        let want = i as f32 * 4096.0 * 4096.0;
        ensure!((sum - want).abs() <= 1e-3 * want, "{sum} for {want}");
    }
    Ok(())
}

#[test]
fn copies_beside_the_work_bring_every_value() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let transfers = twinsight_kernels::transfer::Transfers::new(&device)?;
    ensure!(transfers.are_apart(), "copies to a CUDA device run on a stream of their own");
    // Copies come after what the device was told before, so that the host is ahead of all of them from here on.
    let busy = busy(&device)?;
    // More batches than rooms, of two lengths, with work in between; and one that nobody takes.
    let mut sums = Vec::new();
    for i in 0..20_usize {
        let len = if i % 3 == 0 { 70_000 } else { 1 << 20 };
        let mut buffer = transfers.buffer(len)?;
        buffer.as_mut_slice()?.iter_mut().enumerate().for_each(|(k, v)| *v = ((k * 7 + i) % 13) as f32);
        let upload = transfers.begin(buffer, len.into())?;
        if i == 11 {
            drop(upload);
            continue;
        }
        let tensor = transfers.finish(upload)?;
        sums.push((i, len, tensor.clone(), tensor.sum_all()?));
    }
    for (i, len, tensor, sum) in sums {
        let want: Vec<f32> = (0..len).map(|k| ((k * 7 + i) % 13) as f32).collect();
        ensure!(tensor.to_vec1::<f32>()? == want, "batch {i} was changed on its way");
        let (got, want) = (sum.to_scalar::<f32>()?, want.iter().sum::<f32>());
        ensure!((got - want).abs() <= 1e-4 * want, "the sum of batch {i}, taken while others were copied, is {got}, not {want}");
    }
    ensure!(flat(&busy)?.iter().all(|v| v.is_finite()));
    Ok(())
}
