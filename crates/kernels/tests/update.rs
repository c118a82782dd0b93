//! In-place updates against PyTorch's optimizers, the composed implementation, and for any number of threads.

mod common;

use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use common::{flat, same_bits_for_any_threads, tensor, var};
use twinsight_kernels::composed;
use twinsight_kernels::update::{AdamwConfig, AdamwTensor, Clip, SgdConfig, SgdTensor, adamw, clip, ema, sgd, square_sums};
use twinsight_test_support::{Golden, assert_close};

/// The weights after every step of a golden case.
fn follow(name: &str, mut step: impl FnMut(&Golden, &Var, &Tensor, u64) -> Result<()>) -> Result<()> {
    let golden = Golden::load(name)?;
    let start = golden.get("start")?;
    let w = Var::from_slice(&start.data, start.shape.as_slice(), &Device::Cpu)?;
    let (grads, weights) = (golden.get("grads")?, golden.get("weights")?);
    let each = start.data.len();
    for (i, (grad, want)) in grads.data.chunks_exact(each).zip(weights.data.chunks_exact(each)).enumerate() {
        let grad = Tensor::from_slice(grad, start.shape.as_slice(), &Device::Cpu)?;
        step(&golden, &w, &grad, i as u64 + 1)?;
        assert_close(&format!("{name} step {i}"), &flat(&w)?, want, 1e-6)?;
    }
    Ok(())
}

#[test]
fn sgd_follows_pytorch() -> Result<()> {
    for (name, nesterov) in [("optimizer_sgd", false), ("optimizer_sgd_nesterov", true)] {
        for f in [sgd, composed::update::sgd] {
            let momentum = var(&[6, 5], 1)?;
            momentum.set(&momentum.zeros_like()?)?;
            follow(name, |golden, w, grad, _| {
                let (lr, weight_decay) = (golden.number("lr")?, golden.number("weight_decay")?);
                let tensor = SgdTensor { param: w, grad, momentum: &momentum, lr, weight_decay, scale: 1.0 };
                Ok(f(&[tensor], SgdConfig { momentum: golden.number("momentum")?, nesterov })?)
            })?;
        }
    }
    Ok(())
}

#[test]
fn scaled_sgd_follows_lars() -> Result<()> {
    let momentum = var(&[6, 5], 1)?;
    momentum.set(&momentum.zeros_like()?)?;
    follow("optimizer_lars", |golden, w, grad, _| {
        let number = |key| golden.number(key);
        let (lr, weight_decay) = (number("lr")?, number("weight_decay")?);
        let norms: Vec<f64> = square_sums(&[w.as_tensor(), grad])?.into_iter().map(f64::sqrt).collect();
        let scale = number("trust_coefficient")? * norms[0] / (norms[1] + norms[0] * weight_decay + number("eps")?);
        let tensor = SgdTensor { param: w, grad, momentum: &momentum, lr, weight_decay, scale };
        Ok(sgd(&[tensor], SgdConfig { momentum: number("momentum")?, nesterov: false })?)
    })
}

#[test]
fn adamw_follows_pytorch() -> Result<()> {
    for f in [adamw, composed::update::adamw] {
        let (first, second) = (var(&[6, 5], 1)?, var(&[6, 5], 1)?);
        first.set(&first.zeros_like()?)?;
        second.set(&second.zeros_like()?)?;
        follow("optimizer_adamw", |golden, w, grad, step| {
            let (lr, weight_decay) = (golden.number("lr")?, golden.number("weight_decay")?);
            let tensor = AdamwTensor { param: w, grad, first: &first, second: &second, lr, weight_decay };
            Ok(f(&[tensor], AdamwConfig { beta1: 0.9, beta2: 0.999, eps: golden.number("eps")?, step })?)
        })?;
    }
    Ok(())
}

#[test]
fn large_tensors_give_the_same_for_any_threads_and_as_composed() -> Result<()> {
    let shape = [300, 333];
    let config = SgdConfig { momentum: 0.9, nesterov: true };
    let run = |f: fn(&[SgdTensor<'_>], SgdConfig) -> candle_core::Result<()>| -> Result<Vec<f32>> {
        let (param, momentum, grad) = (var(&shape, 1)?, var(&shape, 2)?, tensor(&shape, 3)?);
        f(&[SgdTensor { param: &param, grad: &grad, momentum: &momentum, lr: 0.1, weight_decay: 0.01, scale: 0.5 }], config)?;
        let mut all = flat(&param)?;
        all.extend(flat(&momentum)?);
        Ok(all)
    };
    same_bits_for_any_threads("sgd", || run(sgd))?;
    assert_close("sgd", &run(sgd)?, &run(composed::update::sgd)?, 1e-6)?;
    same_bits_for_any_threads("square_sums", || Ok(vec![square_sums(&[&tensor(&shape, 3)?])?[0] as f32]))?;
    let t = tensor(&shape, 3)?;
    let (fast, plain) = (square_sums(&[&t])?[0], composed::update::square_sums(&[&t])?[0]);
    assert!((fast - plain).abs() < 1e-9 * plain);
    Ok(())
}

#[test]
fn squares_are_added_up_by_rows_where_there_is_no_f64() -> Result<()> {
    let scalar = Tensor::new(3f32, &Device::Cpu)?;
    let (large, line) = (tensor(&[300, 37, 3, 3], 1)?, tensor(&[501], 2)?);
    let (turned, empty) = (tensor(&[40, 30], 3)?.t()?, tensor(&[1, 2], 3)?.narrow(0, 0, 0)?);
    let all = [&scalar, &empty, &large, &line, &turned];
    for (whole, rows) in composed::update::square_sums(&all)?.iter().zip(composed::update::square_sums_by_rows(&all)?) {
        assert!((whole - rows).abs() <= 1e-6 * whole, "{whole} and {rows}");
    }
    assert!(composed::update::square_sums_by_rows(&[])?.is_empty());
    Ok(())
}

#[test]
fn ema_moves_the_teacher_in_place() -> Result<()> {
    let (teacher, student) = (var(&[70_000], 1)?, tensor(&[70_000], 2)?);
    let alias = teacher.as_detached_tensor();
    let want = ((teacher.as_detached_tensor() * 0.9)? + (&student * 0.1)?)?;
    ema(&[(&teacher, &student)], 0.9)?;
    assert_close("teacher", &flat(&teacher)?, &flat(&want)?, 1e-6)?;
    assert_eq!(flat(&alias)?, flat(&teacher)?, "the same storage was changed");
    Ok(())
}

#[test]
fn shared_storage_and_wrong_shapes_are_refused() -> Result<()> {
    let (a, b) = (var(&[4], 1)?, var(&[4], 2)?);
    let config = SgdConfig { momentum: 0.9, nesterov: false };
    let step =
        |param, grad, momentum| sgd(&[SgdTensor { param, grad, momentum, lr: 0.1, weight_decay: 0.0, scale: 1.0 }], config);
    let grad = tensor(&[4], 3)?;
    assert!(step(&a, &grad, &a).expect_err("shared").to_string().contains("must not share storage"));
    assert!(step(&a, b.as_tensor(), &b).expect_err("shared").to_string().contains("must not share storage"));
    assert!(step(&a, &tensor(&[5], 3)?, &b).expect_err("shape").to_string().contains("grad 0 has shape [5], expected [4]"));
    assert!(ema(&[(&a, a.as_tensor())], 0.9).is_err());
    Ok(())
}

/// The gradients of a network with a tensor of its own for every kind: large, small, zero, empty.
fn gradients() -> Result<Vec<Tensor>> {
    let large = (tensor(&[40, 30], 1)? * 3.0)?;
    let small = (tensor(&[7], 2)? * 0.01)?;
    Ok(vec![large, small, Tensor::zeros(5, candle_core::DType::F32, &Device::Cpu)?, tensor(&[1, 2], 3)?.narrow(0, 0, 0)?])
}

#[test]
fn clipping_is_pytorchs_and_dinos() -> Result<()> {
    for max in [0.01, 0.5, 20.0, 1e4] {
        let before = gradients()?;
        let norms: Vec<f64> = square_sums(&before.iter().collect::<Vec<_>>())?.into_iter().map(f64::sqrt).collect();
        let whole = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        for of in [Clip::Together, Clip::Each] {
            for f in [clip, composed::update::clip] {
                let mut found = before.clone();
                f(&mut found.iter_mut().collect::<Vec<_>>(), max, of)?;
                for ((before, found), own) in before.iter().zip(&found).zip(&norms) {
                    // torch.nn.utils.clip_grad_norm_, and DINO's utils.clip_gradients.
                    let norm = if of == Clip::Together { whole } else { *own };
                    let factor = (max / (norm + 1e-6)).min(1.0);
                    let want: Vec<f32> = flat(before)?.into_iter().map(|v| (f64::from(v) * factor) as f32).collect();
                    assert_close(&format!("{of:?} by {max}"), &flat(found)?, &want, 1e-6)?;
                    anyhow::ensure!(found.dims() == before.dims());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn clipping_leaves_what_shares_memory_and_norms_that_are_no_numbers_alone() -> Result<()> {
    for f in [clip, composed::update::clip] {
        let shared = (Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)? * 2.0)?;
        let (mut a, mut b) = (shared.clone(), shared.clone());
        f(&mut [&mut a, &mut b], 1.0, Clip::Each)?;
        anyhow::ensure!(flat(&shared)? == [2.0; 4]);
        for clipped in [&a, &b] {
            assert_close("shared", &flat(clipped)?, &[0.5; 4], 1e-6)?;
        }
        for (bad, want) in [(f32::NAN, 3.0), (f32::INFINITY, 0.0)] {
            let mut t = Tensor::new(&[bad, 3.0], &Device::Cpu)?;
            f(&mut [&mut t], 1.0, Clip::Together)?;
            let found = flat(&t)?;
            anyhow::ensure!(found[0].is_nan() && found[1] == want, "{bad}: {found:?}");
        }
        f(&mut [], 1.0, Clip::Together)?;
    }
    let mut t = Tensor::new(&[1.0_f32], &Device::Cpu)?;
    let mut half = t.to_dtype(candle_core::DType::BF16)?;
    let told = clip(&mut [&mut t, &mut half], 1.0, Clip::Each).expect_err("bfloat16").to_string();
    anyhow::ensure!(told.contains("tensor 1") && told.contains("to_dtype"), "{told}");
    let told = clip(&mut [&mut t], -1.0, Clip::Each).expect_err("a negative norm").to_string();
    anyhow::ensure!(told.contains("-1") && told.contains("from 0"), "{told}");
    Ok(())
}
