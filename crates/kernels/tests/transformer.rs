//! The transformer's block against the chain of its parts, its errors, and threads.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use common::{agree, differentiate, same_bits_for_any_threads, var};
use twinsight_kernels::{
    Affine, Keep, TransformerParameters, attention, gelu, layer_norm, linear, transformer_block, transformer_blocks,
};

const EPS: f64 = 1e-6;

/// x and the twelve parameters.
fn inputs(n: usize, t: usize, c: usize, hidden: usize) -> Result<Vec<Var>> {
    let shapes: [&[usize]; 13] =
        [&[n, t, c], &[c], &[c], &[3 * c, c], &[3 * c], &[c, c], &[c], &[c], &[c], &[hidden, c], &[hidden], &[c, hidden], &[c]];
    shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| match shape.len() {
            2 => Ok(Var::from_tensor(&(var(shape, i as u64)?.as_tensor() * (1.5 / (shape[1] as f64).sqrt()))?)?),
            _ => var(shape, i as u64),
        })
        .collect()
}

fn parameters(t: &[Tensor]) -> TransformerParameters<'_> {
    let layer = |i: usize| Affine { weight: &t[i], bias: &t[i + 1] };
    TransformerParameters { norm1: layer(1), qkv: layer(3), proj: layer(5), norm2: layer(7), fc1: layer(9), fc2: layer(11) }
}

fn fused(t: &[Tensor], heads: usize) -> candle_core::Result<Tensor> {
    transformer_block(&t[0], &parameters(t), heads, EPS)
}

fn parts(t: &[Tensor], heads: usize) -> candle_core::Result<Tensor> {
    let y = linear(&layer_norm(&t[0], &t[1], &t[2], EPS)?, &t[3], Some(&t[4]))?;
    let x = (&t[0] + linear(&attention(&y, heads)?, &t[5], Some(&t[6]))?)?;
    let y = linear(&layer_norm(&x, &t[7], &t[8], EPS)?, &t[9], Some(&t[10]))?;
    &x + linear(&gelu(&y)?, &t[11], Some(&t[12]))?
}

#[test]
fn every_instruction_set_holds() -> Result<()> {
    common::rerun_on_other_instruction_sets()
}

#[test]
fn the_block_is_the_chain_of_its_parts() -> Result<()> {
    for (n, t, c, heads, hidden) in [
        (3, 1, 48, 3, 192),
        (1, 1, 36, 2, 7),
        (7, 5, 36, 2, 50),
        (37, 17, 48, 3, 192),
        (5, 65, 48, 3, 100),
        (2, 65, 192, 3, 768),
        (1, 197, 20, 1, 33),
        (300, 2, 6, 6, 5),
    ] {
        let what = format!("{n} samples of {t} tokens of {c} in {heads} heads, hidden {hidden}");
        agree(&what, &inputs(n, t, c, hidden)?, 1e-4, |t| fused(t, heads), |t| parts(t, heads))?;
    }
    Ok(())
}

#[test]
fn blocks_are_one_block_after_the_other() -> Result<()> {
    let (n, t, c, hidden) = (5, 17, 36, 50);
    let mut all = inputs(n, t, c, hidden)?;
    all.extend(inputs(n, t, c, hidden)?.into_iter().skip(1));
    let several = |t: &[Tensor]| transformer_blocks(&t[0], &[parameters(t), parameters(&t[12..])], 2, EPS, Keep::F32);
    let each = |t: &[Tensor]| {
        let mut second = t[12..].to_vec();
        second[0] = fused(t, 2)?;
        fused(&second, 2)
    };
    agree("two blocks", &all, 1e-6, several, each)?;
    let x = all[0].as_tensor();
    assert_eq!(transformer_blocks(x, &[], 2, EPS, Keep::F32)?.id(), x.id());
    Ok(())
}

#[test]
fn results_do_not_depend_on_threads() -> Result<()> {
    for (n, t) in [(37, 17), (7, 65)] {
        same_bits_for_any_threads("transformer_block", || {
            let (mut all, gradients) = differentiate(&inputs(n, t, 48, 100)?, |t| fused(t, 3))?;
            gradients.into_iter().for_each(|g| all.extend(g));
            Ok(all)
        })?;
    }
    Ok(())
}

#[test]
fn a_second_backward_pass_is_refused() -> Result<()> {
    let inputs = inputs(2, 5, 12, 20)?;
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let loss = fused(&tensors, 2)?.sum_all()?;
    loss.backward()?;
    let error = loss.backward().expect_err("must be refused").to_string();
    assert!(error.contains("transformer_block: backward ran before"), "{error}");
    Ok(())
}

#[test]
fn gradients_come_for_what_is_tracked() -> Result<()> {
    let inputs = inputs(3, 5, 12, 20)?;
    let plain: Vec<Tensor> = inputs.iter().map(|v| v.as_detached_tensor()).collect();
    assert!(!fused(&plain, 2)?.track_op(), "without variables there is no graph");
    let mut one = plain.clone();
    one[9] = inputs[9].as_tensor().clone();
    let grads = fused(&one, 2)?.sum_all()?.backward()?;
    let want = parts(&one, 2)?.sum_all()?.backward()?;
    let (got, want) = (grads.get(&inputs[9]).expect("fc1"), want.get(&inputs[9]).expect("fc1"));
    let difference = (got - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-4, "{difference}");
    let mut one = plain.clone();
    one[0] = inputs[0].as_tensor().clone();
    assert!(fused(&one, 2)?.sum_all()?.backward()?.get(&inputs[0]).is_some());
    Ok(())
}

#[test]
fn nothing_gives_nothing() -> Result<()> {
    for (n, t) in [(0, 5), (3, 0), (0, 0)] {
        let inputs = inputs(n, t, 12, 20)?;
        let (y, grads) = differentiate(&inputs, |t| fused(t, 2))?;
        assert!(y.is_empty() && grads[0].is_empty());
        assert!(grads[1..].iter().flatten().all(|&g| g == 0.0));
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_named() -> Result<()> {
    let good: Vec<Tensor> = inputs(2, 5, 12, 20)?.iter().map(|v| v.as_detached_tensor()).collect();
    for (i, name) in [
        (0, "x"),
        (1, "norm1.weight"),
        (4, "qkv.bias"),
        (5, "proj.weight"),
        (8, "norm2.bias"),
        (9, "fc1.weight"),
        (11, "fc2.weight"),
    ] {
        let mut bad = good.clone();
        bad[i] = Tensor::zeros(5, DType::F32, &Device::Cpu)?;
        let error = fused(&bad, 2).expect_err("must be refused").to_string();
        assert!(error.contains(&format!("{name} has shape [5]")), "{error}");
    }
    let error = fused(&good, 5).expect_err("must be refused").to_string();
    assert!(error.contains("heads = 5"), "{error}");
    Ok(())
}
