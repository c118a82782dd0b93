//! Convolution against the composed implementation over odd shapes, at edges, and for any number of threads.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use common::{agree, differentiate, finite_differences, flat, same_bits_for_any_threads, tensor, var};
use proptest::prelude::*;
use twinsight_kernels::{Conv2dConfig, composed, conv2d};

fn compare(
    n: usize,
    (h, w): (usize, usize),
    (c, o): (usize, usize),
    (kh, kw): (usize, usize),
    config: Conv2dConfig,
) -> Result<()> {
    let inputs = [var(&[n, h, w, c], 1)?, var(&[o, c / config.groups, kh, kw], 2)?];
    let what = format!("x {n} {h} {w} {c}, weight {o} {kh} {kw}, {config:?}");
    agree(&what, &inputs, 1e-5, |t| conv2d(&t[0], &t[1], config), |t| composed::conv::conv2d(&t[0], &t[1], config))
}

#[test]
fn every_instruction_set_holds() -> Result<()> {
    common::rerun_on_other_instruction_sets()
}

#[test]
fn shapes_at_the_edges() -> Result<()> {
    let plain = Conv2dConfig::default();
    let padded = Conv2dConfig { padding: 1, ..plain };
    compare(1, (1, 1), (1, 1), (1, 1), plain)?;
    compare(1, (1, 1), (1, 1), (3, 3), padded)?;
    compare(1, (5, 1), (3, 33), (3, 1), Conv2dConfig { padding: 0, ..plain })?;
    compare(2, (9, 7), (17, 31), (3, 3), padded)?;
    compare(3, (8, 8), (16, 32), (3, 3), padded)?;
    compare(1, (13, 11), (13, 49), (3, 3), Conv2dConfig { stride: 2, ..padded })?;
    // A stride beyond the kernel: some inputs are never read.
    compare(2, (11, 12), (5, 6), (2, 2), Conv2dConfig { stride: 3, ..plain })?;
    // More pixels than one chunk and one block hold.
    compare(5, (23, 29), (4, 20), (3, 3), padded)?;
    compare(2, (33, 31), (70, 40), (3, 3), padded)?;
    // Depthwise with a tail, and with a stride.
    compare(2, (9, 8), (19, 19), (3, 3), Conv2dConfig { groups: 19, ..padded })?;
    compare(2, (9, 8), (40, 40), (7, 7), Conv2dConfig { groups: 40, padding: 3, stride: 2, dilation: 1 })?;
    // Groups of several channels, and more outputs than inputs with one channel a group.
    compare(2, (6, 7), (12, 24), (3, 3), Conv2dConfig { groups: 4, ..padded })?;
    compare(2, (6, 7), (6, 12), (3, 3), Conv2dConfig { groups: 6, ..padded })
}

#[test]
fn three_by_three_kernels_of_many_channels() -> Result<()> {
    // These take the fast algorithm for small kernels: sides that tiles of 4 fit and do not, every padding, many tiles.
    for (n, side, (c, o), padding) in [
        (1, (4, 4), (16, 16), 1),
        (2, (8, 8), (32, 48), 1),
        (3, (7, 13), (48, 16), 1),
        (2, (14, 5), (16, 32), 0),
        (2, (6, 9), (64, 80), 2),
        (40, (12, 16), (16, 16), 1),
        (130, (4, 4), (256, 272), 1),
    ] {
        compare(n, side, (c, o), (3, 3), Conv2dConfig { padding, ..Default::default() })?;
    }
    Ok(())
}

#[test]
fn winograd_stays_within_its_bound_of_float64() -> Result<()> {
    // F(4 x 4, 3 x 3) with the points 0, ±1, ±2, ∞: the error's norm over the result's. Measured for values uniform in [-1, 1):
    // forward 1.1e-6 (16 channels) to 3.0e-6 (256), to the input at most 1.9e-6, to the weight at most 1.4e-6.
    for (n, side, c, o) in [(2, 8, 64, 64), (1, 9, 256, 64), (3, 12, 16, 32)] {
        let inputs = [var(&[n, side, side, c], 1)?, var(&[o, c, 3, 3], 2)?];
        let config = Conv2dConfig { padding: 1, ..Default::default() };
        let (y, grads) = differentiate(&inputs, |t| conv2d(&t[0], &t[1], config))?;
        let [x, w] = [&inputs[0], &inputs[1]].map(|t| flat(t).expect("values"));
        // What `differentiate` weighs the result with.
        let g = flat(&common::tensor(&[n, side, side, o], 999)?)?;
        let (mut exact, mut to_x, mut to_w) = (vec![0f64; y.len()], vec![0f64; x.len()], vec![0f64; w.len()]);
        for (image, row, column, tap) in
            (0..n).flat_map(|i| (0..side).flat_map(move |r| (0..side).flat_map(move |k| (0..9).map(move |tap| (i, r, k, tap)))))
        {
            let (from, to) = ((row + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
            if from >= side || to >= side {
                continue;
            }
            let (px, py) = (((image * side + from) * side + to) * c, ((image * side + row) * side + column) * o);
            for i in 0..c {
                for j in 0..o {
                    let (x, w, g) = (f64::from(x[px + i]), f64::from(w[(j * c + i) * 9 + tap]), f64::from(g[py + j]));
                    exact[py + j] += x * w;
                    to_x[px + i] += g * w;
                    to_w[(j * c + i) * 9 + tap] += g * x;
                }
            }
        }
        for (what, got, want, bound) in [("y", &y, exact, 4e-6), ("x", &grads[0], to_x, 4e-6), ("weight", &grads[1], to_w, 4e-6)]
        {
            let square = |v: f64| v * v;
            let off: f64 = got.iter().zip(&want).map(|(&a, &b)| square(f64::from(a) - b)).sum();
            let error = (off / want.iter().map(|&v| square(v)).sum::<f64>()).sqrt();
            assert!(error < bound, "{what} at {c} to {o} channels: {error:e}");
            println!("{what} at {c} to {o} channels: {error:e}");
        }
    }
    Ok(())
}

#[test]
fn an_empty_batch_gives_an_empty_result() -> Result<()> {
    let inputs = [var(&[0, 5, 5, 3], 1)?, var(&[4, 3, 3, 3], 2)?];
    let y = conv2d(&inputs[0], &inputs[1], Conv2dConfig::default())?;
    assert_eq!(y.dims(), [0, 3, 3, 4]);
    // More rows and columns than one tile has.
    for groups in [1, 2] {
        let config = Conv2dConfig { groups, ..Default::default() };
        let inputs = [var(&[0, 5, 5, 34], 1)?, var(&[140, 34 / groups, 3, 3], 2)?];
        let (_, grads) = differentiate(&inputs, |t| conv2d(&t[0], &t[1], config))?;
        assert!(grads[0].is_empty() && grads[1].iter().all(|&g| g == 0.0));
    }
    Ok(())
}

#[test]
fn an_input_that_is_not_contiguous_counts_by_its_values() -> Result<()> {
    let config = Conv2dConfig { padding: 1, ..Default::default() };
    let inputs = [var(&[2, 3, 6, 5], 1)?, var(&[3, 3, 4, 4], 2)?];
    let turn =
        |t: &[Tensor]| -> candle_core::Result<(Tensor, Tensor)> { Ok((t[0].permute((0, 2, 3, 1))?, t[1].narrow(2, 1, 3)?)) };
    agree(
        "permuted",
        &inputs,
        1e-5,
        |t| turn(t).and_then(|(x, w)| conv2d(&x, &w, config)),
        |t| turn(t).and_then(|(x, w)| composed::conv::conv2d(&x.contiguous()?, &w.contiguous()?, config)),
    )
}

#[test]
fn gradients_follow_finite_differences() -> Result<()> {
    let config = Conv2dConfig { stride: 2, padding: 1, dilation: 2, groups: 2 };
    let inputs = [var(&[2, 9, 8, 6], 1)?, var(&[4, 3, 3, 2], 2)?];
    finite_differences("conv2d", &inputs, 2e-3, |t| conv2d(&t[0], &t[1], config))
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    let config = Conv2dConfig { padding: 1, ..Default::default() };
    for (n, size, c, o, groups) in [(9, 16, 24, 40, 1), (70, 4, 130, 64, 1), (9, 12, 32, 32, 32), (9, 16, 32, 48, 1)] {
        same_bits_for_any_threads("conv2d", || {
            let config = Conv2dConfig { groups, ..config };
            let inputs = [var(&[n, size, size, c], 1)?, var(&[o, c / groups, 3, 3], 2)?];
            let (mut y, grads) = differentiate(&inputs, |t| conv2d(&t[0], &t[1], config))?;
            grads.into_iter().for_each(|g| y.extend(g));
            Ok(y)
        })?;
    }
    Ok(())
}

#[test]
fn wrong_inputs_are_named() -> Result<()> {
    let (x, weight) = (tensor(&[1, 4, 4, 3], 1)?, tensor(&[2, 3, 3, 3], 2)?);
    let message = |x: &Tensor, w: &Tensor, config| conv2d(x, w, config).expect_err("must be refused").to_string();
    let plain = Conv2dConfig::default();
    assert!(message(&x.to_dtype(DType::F64)?, &weight, plain).contains("x has element type F64, expected F32"));
    assert!(message(&x, &weight, Conv2dConfig { groups: 2, ..plain }).contains("groups is 2"));
    assert!(message(&x, &tensor(&[2, 2, 3, 3], 2)?, plain).contains("C / groups = 3"));
    assert!(message(&x, &weight, Conv2dConfig { stride: 0, ..plain }).contains("stride 0"));
    assert!(message(&x, &weight, Conv2dConfig { dilation: 2, ..plain }).contains("smaller than the window of 5"));
    assert!(message(&Tensor::zeros((4, 4, 3), DType::F32, &Device::Cpu)?, &weight, plain).contains("four axes"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn any_shape(
        n in 1usize..4, h in 1usize..14, w in 1usize..14, groups in 1usize..4, cg in 1usize..9, og in 1usize..20,
        kh in 1usize..5, kw in 1usize..5, stride in 1usize..4, padding in 0usize..4, dilation in 1usize..4,
    ) {
        let fits = |size: usize, k: usize| size + 2 * padding > dilation * (k - 1);
        prop_assume!(fits(h, kh) && fits(w, kw));
        let config = Conv2dConfig { stride, padding, dilation, groups };
        compare(n, (h, w), (cg * groups, og * groups), (kh, kw), config).map_err(|e| TestCaseError::fail(e.to_string()))?;
    }

    /// Channels for the fast algorithm, for several panels and groups of packed operands, and for whole rows of a kernel.
    #[test]
    fn any_shape_of_many_channels(
        n in 1usize..4, h in 1usize..14, w in 1usize..14, c in prop::sample::select(vec![1usize, 3, 7, 16, 17, 32, 48, 80]),
        o in prop::sample::select(vec![5usize, 16, 33, 48, 70, 80]), k in prop::sample::select(vec![1usize, 3, 5]),
        stride in 1usize..3, padding in 0usize..3,
    ) {
        prop_assume!(h + 2 * padding >= k && w + 2 * padding >= k);
        let config = Conv2dConfig { stride, padding, ..Default::default() };
        compare(n, (h, w), (c, o), (k, k), config).map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}
