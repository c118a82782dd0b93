//! bfloat16 beside `f32`, forward and backward.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use twinsight_kernels::{Affine, Keep, TransformerParameters, attention, linear, softmax, takes_bf16, transformer_blocks};

use crate::common::{flat, near, tensor};
use crate::{All, Function, agree, block, device, differentiate};

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
        near(what, &got, &want, off[0])?;
        for (i, (got, want)) in got_grads.iter().zip(&want_grads).enumerate() {
            ensure!(!want.is_empty(), "{what}: no gradient to input {i}");
            near(&format!("{what}: gradient to input {i}"), got, want, off[1])?;
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
        all.check((|| {
            let first = differentiate(&device, &inputs, f)?;
            ensure!(differentiate(&device, &inputs, f)? == first, "{what}: other bits the second time");
            Ok(())
        })());
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
