//! Residual blocks against the chain of operations that they stand for, edges, threads, and what is kept.

mod common;

use anyhow::Result;
use candle_core::{Tensor, Var};
use common::{agree, differentiate, flat, near, same_bits_for_any_threads, tensor, var};
use proptest::prelude::*;
use twinsight_kernels::{
    BatchNormConfig, BlockParts, Conv2dConfig, ConvNorm, Keep, Shortcut, batch_norm_train, conv_block, conv_blocks, conv2d,
};

/// Input, then weight, scale and shift of every layer.
type Inputs = Vec<Var>;

/// One layer: outputs, kernel, stride, groups.
type Layer = (usize, usize, usize, usize);

#[derive(Debug, Clone)]
struct Shape {
    input: [usize; 4],
    path: Vec<Layer>,
    /// None: no shortcut; some without a layer: the input itself.
    shortcut: Option<Option<Layer>>,
    groups: usize,
}

impl Shape {
    fn layers(&self) -> Vec<Layer> {
        self.path.iter().copied().chain(self.shortcut.flatten()).collect()
    }

    fn inputs(&self) -> Result<Inputs> {
        let mut inputs = vec![var(&self.input, 1)?];
        let mut channels = self.input[3];
        for (i, &(o, k, _, groups)) in self.layers().iter().enumerate() {
            // The shortcut starts at the input again.
            let c = if i == self.path.len() { self.input[3] } else { channels };
            let seed = 10 * (i as u64 + 1);
            inputs.extend([var(&[o, c / groups, k, k], seed)?, var(&[o], seed + 1)?, var(&[o], seed + 2)?]);
            channels = o;
        }
        Ok(inputs)
    }

    fn parts<'a>(&self, t: &'a [Tensor]) -> Vec<ConvNorm<'a>> {
        let parts = self.layers().into_iter().zip(t[1..].chunks(3));
        parts
            .map(|((_, k, stride, groups), t)| ConvNorm {
                weight: &t[0],
                scale: &t[1],
                shift: &t[2],
                config: config(k, stride, groups),
            })
            .collect()
    }

    fn fused(&self, t: &[Tensor], keep: Keep) -> candle_core::Result<Tensor> {
        let mut parts = self.parts(t);
        let shortcut = match self.shortcut {
            None => Shortcut::None,
            Some(None) => Shortcut::Identity,
            Some(Some(_)) => Shortcut::ConvNorm(parts.pop().expect("a shortcut")),
        };
        conv_block(&t[0], &parts, shortcut, 1e-5, self.groups, keep).map(|o| o.y)
    }

    fn chain(&self, t: &[Tensor]) -> candle_core::Result<Tensor> {
        let mut parts = self.parts(t);
        let run = |x: &Tensor, p: &ConvNorm<'_>, residual: Option<&Tensor>, relu: bool| {
            let config = BatchNormConfig { eps: 1e-5, relu, groups: self.groups };
            batch_norm_train(&conv2d(x, p.weight, p.config)?, Some(p.scale), Some(p.shift), residual, config).map(|o| o.y)
        };
        let residual = match self.shortcut {
            None => None,
            Some(None) => Some(t[0].clone()),
            Some(Some(_)) => Some(run(&t[0], &parts.pop().expect("a shortcut"), None, false)?),
        };
        let mut y = t[0].clone();
        for (i, part) in parts.iter().enumerate() {
            y = run(&y, part, residual.as_ref().filter(|_| i + 1 == parts.len()), true)?;
        }
        Ok(y)
    }
}

fn config(kernel: usize, stride: usize, groups: usize) -> Conv2dConfig {
    Conv2dConfig { stride, padding: kernel / 2, groups, ..Conv2dConfig::default() }
}

fn basic() -> Shape {
    Shape { input: [4, 7, 5, 16], path: vec![(16, 3, 1, 1), (16, 3, 1, 1)], shortcut: Some(None), groups: 2 }
}

#[test]
fn every_instruction_set_holds() -> Result<()> {
    common::rerun_on_other_instruction_sets()
}

#[test]
fn it_is_the_chain_of_its_operations() -> Result<()> {
    for shape in [
        basic(),
        Shape { path: vec![(24, 3, 2, 1), (24, 3, 1, 1)], shortcut: Some(Some((24, 1, 2, 1))), ..basic() },
        Shape { path: vec![(5, 1, 1, 1), (5, 3, 1, 1), (16, 1, 1, 1)], ..basic() },
        Shape { input: [3, 9, 8, 3], path: vec![(17, 7, 2, 1)], shortcut: None, groups: 1 },
        Shape { input: [6, 4, 4, 12], path: vec![(12, 3, 1, 12), (20, 1, 1, 4)], shortcut: None, groups: 3 },
    ] {
        agree(&format!("{shape:?}"), &shape.inputs()?, 1e-4, |t| shape.fused(t, Keep::F32), |t| shape.chain(t))?;
    }
    Ok(())
}

#[test]
fn blocks_in_a_row_are_one_after_the_other() -> Result<()> {
    let first = Shape { path: vec![(24, 3, 2, 1), (24, 3, 1, 1)], shortcut: Some(Some((24, 1, 2, 1))), ..basic() };
    let second = Shape { input: [4, 4, 3, 24], path: vec![(7, 1, 1, 1), (24, 3, 1, 1)], shortcut: Some(None), ..basic() };
    let mut inputs = first.inputs()?;
    let count = inputs.len();
    inputs.extend(second.inputs()?.into_iter().skip(1));
    let parts = |t: &[Tensor]| -> Vec<Tensor> { [&t[..1], &t[count..]].concat() };
    let fused = |t: &[Tensor], keep: Keep| {
        let mut one = first.parts(&t[..count]);
        let shortcut = Shortcut::ConvNorm(one.pop().expect("a shortcut"));
        let after = parts(t);
        let blocks =
            [BlockParts { path: one, shortcut }, BlockParts { path: second.parts(&after), shortcut: Shortcut::Identity }];
        conv_blocks(&t[0], &blocks, 1e-5, 2, keep)
    };
    let chain = |t: &[Tensor]| {
        let mut after = parts(t);
        after[0] = first.chain(&t[..count])?;
        second.chain(&after)
    };
    agree("two blocks", &inputs, 1e-4, |t| fused(t, Keep::F32).map(|o| o.y), chain)?;
    let t: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    assert_eq!(fused(&t, Keep::F32)?.statistics.len(), 5);
    let (y, exact) = differentiate(&inputs, |t| fused(t, Keep::F32).map(|o| o.y))?;
    let (rounded_y, rounded) = differentiate(&inputs, |t| fused(t, Keep::Bf16).map(|o| o.y))?;
    assert_eq!(y, rounded_y);
    for (a, b) in exact.iter().zip(&rounded) {
        near("a gradient", b, a, 0.05)?;
    }
    Ok(())
}

#[test]
fn statistics_are_those_of_the_norms() -> Result<()> {
    let shape = basic();
    let inputs = shape.inputs()?;
    let t: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let out = conv_block(&t[0], &shape.parts(&t), Shortcut::Identity, 1e-5, 2, Keep::F32)?;
    assert_eq!(out.statistics.len(), 2);
    let c = conv2d(&t[0], &t[1], config(3, 1, 1))?;
    let want = batch_norm_train(&c, None, None, None, BatchNormConfig { groups: 2, ..BatchNormConfig::default() })?;
    assert_eq!(flat(&out.statistics[0].mean)?, flat(&want.mean)?);
    assert_eq!(flat(&out.statistics[0].var)?, flat(&want.var)?);
    assert_eq!(out.statistics[0].count, 2 * 7 * 5);

    // The path's norms in order, then the shortcut's.
    let shape = Shape { path: vec![(24, 3, 2, 1), (24, 3, 1, 1)], shortcut: Some(Some((24, 1, 2, 1))), ..basic() };
    let t: Vec<Tensor> = shape.inputs()?.iter().map(|v| v.as_tensor().clone()).collect();
    let parts = shape.parts(&t);
    let out = conv_block(&t[0], &parts[..2], Shortcut::ConvNorm(parts[2]), 1e-5, 2, Keep::F32)?;
    let norm = |x: &Tensor, part: &ConvNorm<'_>| {
        let config = BatchNormConfig { groups: 2, relu: true, ..BatchNormConfig::default() };
        batch_norm_train(&conv2d(x, part.weight, part.config)?, Some(part.scale), Some(part.shift), None, config)
    };
    let first = norm(&t[0], &parts[0])?;
    for (seen, want) in out.statistics.iter().zip([&first, &norm(&first.y, &parts[1])?, &norm(&t[0], &parts[2])?]) {
        assert_eq!(flat(&seen.mean)?, flat(&want.mean)?);
        assert_eq!(flat(&seen.var)?, flat(&want.var)?);
    }
    Ok(())
}

#[test]
fn frozen_layers_pass_gradients_on_and_get_none() -> Result<()> {
    let shape = Shape { path: vec![(24, 3, 2, 1), (24, 3, 1, 1)], shortcut: Some(Some((24, 1, 2, 1))), ..basic() };
    let inputs = shape.inputs()?;
    let (_, gradients) = differentiate(&inputs, |t| shape.fused(t, Keep::F32))?;
    let frozen: Vec<Tensor> = inputs[1..].iter().map(|v| v.as_detached_tensor()).collect();
    let with = |x: &Tensor| [&[x.clone()][..], &frozen].concat();
    let (_, alone) = differentiate(&inputs[..1], |t| shape.fused(&with(&t[0]), Keep::F32))?;
    assert_eq!(alone[0], gradients[0]);
    Ok(())
}

#[test]
fn threads_change_no_bit() -> Result<()> {
    let shape = Shape { input: [12, 16, 16, 16], ..basic() };
    let inputs = shape.inputs()?;
    same_bits_for_any_threads("conv_block", || {
        let (mut all, gradients) = differentiate(&inputs, |t| shape.fused(t, Keep::F32))?;
        all.extend(gradients.concat());
        Ok(all)
    })
}

#[test]
fn bfloat16_between_the_passes_leaves_the_result_and_moves_gradients_little() -> Result<()> {
    let shape = Shape { input: [4, 8, 8, 16], ..basic() };
    let inputs = shape.inputs()?;
    let (y, exact) = differentiate(&inputs, |t| shape.fused(t, Keep::F32))?;
    let (rounded_y, rounded) = differentiate(&inputs, |t| shape.fused(t, Keep::Bf16))?;
    assert_eq!(y, rounded_y);
    let mut moved = false;
    for (a, b) in exact.iter().zip(&rounded) {
        near("a gradient", b, a, 0.02)?;
        moved |= a != b;
    }
    assert!(moved, "nothing was rounded");
    Ok(())
}

#[test]
fn a_second_backward_pass_is_refused() -> Result<()> {
    let shape = basic();
    let t: Vec<Tensor> = shape.inputs()?.iter().map(|v| v.as_tensor().clone()).collect();
    let loss = shape.fused(&t, Keep::F32)?.sum_all()?;
    loss.backward()?;
    let error = loss.backward().expect_err("nothing is kept").to_string();
    assert!(error.contains("run the forward pass again"), "{error}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let x = tensor(&[4, 6, 6, 8], 1)?;
    let (weight, scale, shift) = (tensor(&[8, 8, 3, 3], 2)?, tensor(&[8], 3)?, tensor(&[8], 4)?);
    let layer = |stride| ConvNorm { weight: &weight, scale: &scale, shift: &shift, config: config(3, stride, 1) };
    let error = |path: &[ConvNorm<'_>], shortcut, groups| {
        conv_block(&x, path, shortcut, 1e-5, groups, Keep::F32).expect_err("refused").to_string()
    };
    assert!(error(&[], Shortcut::None, 1).contains("path has no layers"));
    assert!(error(&[layer(1)], Shortcut::None, 3).contains("groups is 3"));
    assert!(error(&[layer(2)], Shortcut::Identity, 1).contains("the path ends in [4, 3, 3, 8] but the shortcut in [4, 6, 6, 8]"));
    let short = tensor(&[7], 3)?;
    let bad = ConvNorm { scale: &short, ..layer(1) };
    assert!(error(&[bad], Shortcut::None, 1).contains("a norm's scale has shape [7], expected [8]"));
    let narrow = tensor(&[8, 4, 3, 3], 3)?;
    let bad = ConvNorm { weight: &narrow, ..layer(1) };
    assert!(error(&[bad], Shortcut::None, 1).contains("weight has shape [8, 4, 3, 3]"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any sizes, kernels, strides and shortcuts.
    #[test]
    fn it_is_the_chain_for_any_shape(
        n in 1usize..3, h in 1usize..10, w in 1usize..10, c in 1usize..20, inner in 1usize..20,
        kernel in prop::sample::select(vec![1usize, 3, 5]), stride in 1usize..3, groups in 1usize..3, shortcut in 0usize..3,
    ) {
        let last = if shortcut == 1 { (c, 3, 1, 1) } else { (9, 3, 1, 1) };
        let stride = if shortcut == 1 { 1 } else { stride };
        let shortcut = match shortcut { 0 => None, 1 => Some(None), _ => Some(Some((9, 1, stride, 1))) };
        // Two values a channel at least, and statistics that differ enough for a stable division.
        let shape = Shape {
            input: [2 * n * groups, h + 1, w + 1, c], path: vec![(inner, kernel, stride, 1), last], shortcut, groups,
        };
        let inputs = shape.inputs().expect("inputs");
        let result = agree("conv_block", &inputs, 2e-3, |t| shape.fused(t, Keep::F32), |t| shape.chain(t));
        prop_assert!(result.is_ok(), "{shape:?}: {result:?}");
    }
}
