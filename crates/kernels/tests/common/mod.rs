//! Random tensors, and comparisons of two implementations of one operation, forward and backward.

#![allow(dead_code)]

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor, Var};
use twinsight_test_support::{assert_close, relative_error};

/// Values in [-1, 1) from a counter hash, different for every `seed`.
pub fn values(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|i| {
            let mut z = (i + 1).wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A variable of random values in [-1, 1).
pub fn var(shape: &[usize], seed: u64) -> Result<Var> {
    Ok(Var::from_tensor(&tensor(shape, seed)?)?)
}

/// A tensor of random values in [-1, 1).
pub fn tensor(shape: &[usize], seed: u64) -> Result<Tensor> {
    Ok(Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu)?)
}

/// All elements in row-major order.
pub fn flat(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.detach().flatten_all()?.to_vec1()?)
}

/// The result of `f` at the inputs, and the gradients of Σ result · (random weights) to every input.
pub fn differentiate(inputs: &[Var], f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let weights = tensor(y.dims(), 999)?;
    let grads = (&y * weights)?.sum_all()?.backward()?;
    let gradients = inputs
        .iter()
        .map(|v| match grads.get(v) {
            Some(g) => flat(g),
            None => anyhow::bail!("an input of shape {:?} got no gradient", v.dims()),
        })
        .collect::<Result<_>>()?;
    Ok((flat(&y)?, gradients))
}

/// Fails unless both implementations agree, forward and backward.
pub fn agree(
    what: &str,
    inputs: &[Var],
    tolerance: f64,
    fast: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Result<()> {
    let (y, grads) = differentiate(inputs, fast)?;
    let (want_y, want_grads) = differentiate(inputs, reference)?;
    near(&format!("{what}: result"), &y, &want_y, tolerance)?;
    for (i, (got, want)) in grads.iter().zip(&want_grads).enumerate() {
        near(&format!("{what}: gradient to input {i}"), got, want, tolerance)?;
    }
    Ok(())
}

/// As `assert_close`, but for values that cancel to nothing an absolute error of a millionth a value passes.
pub fn near(what: &str, got: &[f32], want: &[f32], tolerance: f64) -> Result<()> {
    let difference: Vec<f32> = got.iter().zip(want).map(|(g, w)| g - w).collect();
    if got.len() == want.len() && relative_error(&difference, &vec![0.0; difference.len()]) < 1e-6 * (got.len() as f64).sqrt() {
        return Ok(());
    }
    assert_close(what, got, want, tolerance)
}

/// Fails unless the gradients of `f` agree with central differences along a random direction of every input.
pub fn finite_differences(
    what: &str,
    inputs: &[Var],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Result<()> {
    let (_, grads) = differentiate(inputs, &f)?;
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_detached_tensor()).collect();
    for (i, grad) in grads.iter().enumerate() {
        let direction = tensor(inputs[i].dims(), 77 + i as u64)?;
        let slope: f64 = flat(&direction)?.iter().zip(grad).map(|(&d, &g)| f64::from(d) * f64::from(g)).sum();
        let at = |step: f64| -> Result<f64> {
            let mut moved = tensors.clone();
            moved[i] = (&tensors[i] + (&direction * step)?)?;
            let y = flat(&f(&moved)?)?;
            let weights = values(y.len(), 999);
            Ok(y.iter().zip(weights).map(|(&y, w)| f64::from(y) * f64::from(w)).sum())
        };
        let step = 2e-3;
        let numeric = (at(step)? - at(-step)?) / (2.0 * step);
        let scale = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt().max(1e-3);
        ensure!(
            (numeric - slope).abs() <= tolerance * scale,
            "{what}: along a direction of input {i} the difference quotient is {numeric}, the gradient gives {slope} (scale {scale})"
        );
    }
    Ok(())
}

/// Runs `f` in a pool of one and in a pool of two threads and fails unless the results have the same bits.
pub fn same_bits_for_any_threads(what: &str, f: impl Fn() -> Result<Vec<f32>> + Sync + Send) -> Result<()> {
    let run = |threads: usize| -> Result<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(pool.install(&f)?.iter().map(|v| v.to_bits()).collect())
    };
    let one = run(1)?;
    for threads in [2, 3] {
        ensure!(one == run(threads)?, "{what}: {threads} threads give other bits than one");
    }
    Ok(())
}

/// Runs the other tests of this program again on the scalar path and on AVX2, where they hold the same results against the same
/// references.
pub fn rerun_on_other_instruction_sets() -> Result<()> {
    for set in ["scalar", "avx2"] {
        let mut tests = std::process::Command::new(std::env::current_exe()?);
        let output = tests.args(["--skip", "instruction_set"]).env("TWINSIGHT_SIMD", set).output()?;
        ensure!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
