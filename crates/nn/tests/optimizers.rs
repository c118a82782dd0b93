//! Optimizers against PyTorch's and lightly's values, and restored to the bit.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use twinsight_nn::{
    Builder, DrawKey, Gradients, Init, Linear, Mode, Optimizer, OptimizerConfig, ParamStore, Role, StateLoader, StateSaver,
    load_tensors, save_tensors,
};
use twinsight_test_support::{Golden, assert_close};

/// Gradients with given values, by way of a loss that has them.
fn gradients(store: &ParamStore, of: &[(&str, Tensor)]) -> Result<Gradients> {
    let mut loss: Option<Tensor> = None;
    for (name, g) in of {
        let term = (store.get(name).context("parameter")?.var().as_tensor() * g)?.sum_all()?;
        loss = Some(match loss {
            Some(l) => (l + term)?,
            None => term,
        });
    }
    Ok(Gradients::collect(&loss.context("no gradient")?.backward()?, store)?)
}

#[test]
fn golden_steps() -> Result<()> {
    for name in ["sgd", "sgd_nesterov", "adamw", "lars"] {
        let golden = Golden::load(&format!("optimizer_{name}"))?;
        let (lr, weight_decay) = (golden.number("lr")?, golden.number("weight_decay")?);
        let config = match name {
            "adamw" => OptimizerConfig::AdamW {
                beta1: golden.case["betas"][0].as_f64().context("betas")?,
                beta2: golden.case["betas"][1].as_f64().context("betas")?,
                eps: golden.number("eps")?,
                weight_decay,
            },
            "lars" => OptimizerConfig::Lars {
                momentum: golden.number("momentum")?,
                weight_decay,
                trust_coefficient: golden.number("trust_coefficient")?,
                eps: golden.number("eps")?,
                clip: false,
                nesterov: false,
            },
            _ => OptimizerConfig::Sgd { momentum: golden.number("momentum")?, nesterov: name == "sgd_nesterov", weight_decay },
        };
        let b = Builder::new(0, &Device::Cpu);
        let w = b.parameter("w", &[6, 5], Role::Weight, Init::Constant(0.0))?;
        w.set(&Tensor::from_slice(&golden.get("start")?.data, (6, 5), &Device::Cpu)?)?;
        let store = b.finish();
        let mut optimizer = Optimizer::new(&config, &store)?;
        for step in 0..6 {
            let g = Tensor::from_slice(&golden.get("grads")?.data[step * 30..(step + 1) * 30], (6, 5), &Device::Cpu)?;
            optimizer.step(&gradients(&store, &[("w", g)])?, lr, weight_decay)?;
            let got: Vec<f32> = w.value().flatten_all()?.to_vec1()?;
            assert_close(&format!("{name} step {step}"), &got, &golden.get("weights")?.data[step * 30..(step + 1) * 30], 1e-5)?;
        }
    }
    Ok(())
}

#[test]
fn biases_and_norms_are_not_decayed_and_frozen_ones_not_moved() -> Result<()> {
    let configs = [
        OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.5 },
        OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.5 },
        OptimizerConfig::Lars {
            momentum: 0.9,
            weight_decay: 0.5,
            trust_coefficient: 0.1,
            eps: 1e-8,
            clip: false,
            nesterov: false,
        },
    ];
    for config in configs {
        let b = Builder::new(0, &Device::Cpu);
        for (name, role) in [("w", Role::Weight), ("b", Role::Bias), ("n", Role::Norm), ("t", Role::Token), ("f", Role::Weight)] {
            b.parameter(name, &[3], role, Init::Constant(2.0))?;
        }
        let store = b.finish();
        let mut optimizer = Optimizer::new(&config, &store)?;
        let tiny = Tensor::from_vec(vec![1e-30_f32; 3], 3, &Device::Cpu)?;
        let all: Vec<(&str, Tensor)> = ["w", "b", "n", "t", "f"].map(|n| (n, tiny.clone())).to_vec();
        let mut g = gradients(&store, &all)?;
        g.remove("f");
        optimizer.step(&g, 0.1, 0.5)?;
        let value = |name: &str| -> Result<f32> { Ok(store.get(name).context("parameter")?.value().to_vec1::<f32>()?[0]) };
        ensure!(value("w")? < 2.0, "{config:?}: a weight is decayed");
        for name in ["b", "n", "t", "f"] {
            ensure!(value(name)? == 2.0, "{config:?}: {name} moved to {}", value(name)?);
        }
    }
    Ok(())
}

#[test]
fn lars_leaves_a_weight_without_gradient_alone() -> Result<()> {
    // lightly scales and decays only where both norms are above zero.
    let b = Builder::new(0, &Device::Cpu);
    let w = b.parameter("w", &[3], Role::Weight, Init::Constant(2.0))?;
    let store = b.finish();
    let config = OptimizerConfig::Lars {
        momentum: 0.9,
        weight_decay: 0.5,
        trust_coefficient: 0.1,
        eps: 1e-8,
        clip: false,
        nesterov: false,
    };
    let zeros = Tensor::from_vec(vec![0.0_f32; 3], 3, &Device::Cpu)?;
    Optimizer::new(&config, &store)?.step(&gradients(&store, &[("w", zeros)])?, 1.0, 0.5)?;
    ensure!(w.value().to_vec1::<f32>()? == [2.0; 3]);
    Ok(())
}

#[test]
fn constants_out_of_range_and_foreign_gradients_are_refused() -> Result<()> {
    let make = |names: &[&str], size: usize| -> Result<ParamStore> {
        let b = Builder::new(0, &Device::Cpu);
        for name in names {
            b.parameter(name, &[size], Role::Weight, Init::Constant(1.0))?;
        }
        Ok(b.finish())
    };
    let store = make(&["w"], 3)?;
    for (config, word) in [
        (OptimizerConfig::Sgd { momentum: 1.0, nesterov: false, weight_decay: 0.0 }, "momentum"),
        (OptimizerConfig::Sgd { momentum: 0.0, nesterov: true, weight_decay: 0.0 }, "nesterov"),
        (OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: -1.0 }, "weight_decay"),
        (OptimizerConfig::AdamW { beta1: 0.9, beta2: f64::NAN, eps: 1e-8, weight_decay: 0.0 }, "beta2"),
    ] {
        let text = Optimizer::new(&config, &store).err().context("must be refused")?.to_string();
        ensure!(text.contains(word), "{text}");
    }
    let mut optimizer = Optimizer::new(&OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 }, &store)?;
    for (other, word) in [(make(&["w", "foreign"], 3)?, "foreign"), (make(&["w"], 4)?, "`w`")] {
        let ones: Vec<(&str, Tensor)> = other.iter().map(|p| (p.name(), p.value().clone())).collect();
        let text = optimizer.step(&gradients(&other, &ones)?, 0.1, 0.0).err().context("must be refused")?.to_string();
        ensure!(text.contains(word), "{text}");
    }
    let own = gradients(&store, &[("w", store.get("w").context("w")?.value().copy()?)])?;
    ensure!(optimizer.step(&own, f64::NAN, 0.0).is_err());
    ensure!(store.get("w").context("w")?.value().to_vec1::<f32>()? == [1.0; 3], "a refused step changed a weight");
    Ok(())
}

#[test]
fn a_gradient_that_is_not_finite_is_named() -> Result<()> {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let b = Builder::new(0, &Device::Cpu);
        for name in ["a", "spoilt", "z"] {
            b.parameter(name, &[2], Role::Weight, Init::Constant(1.0))?;
        }
        let store = b.finish();
        let large = Tensor::from_vec(vec![f32::MAX, 1.0], 2, &Device::Cpu)?;
        let g = |spoilt: Tensor| gradients(&store, &[("a", large.clone()), ("spoilt", spoilt), ("z", large.clone())]);
        g(large.clone())?.check_finite()?;
        let text = g(Tensor::from_vec(vec![1.0, bad], 2, &Device::Cpu)?)?.check_finite().err().context("refused")?.to_string();
        ensure!(text.contains("spoilt"), "{text}");
    }
    Ok(())
}

#[test]
fn a_restored_optimizer_takes_the_same_next_step() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("state.safetensors");
    let configs = [
        OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05 },
        OptimizerConfig::Lars {
            momentum: 0.9,
            weight_decay: 0.01,
            trust_coefficient: 0.02,
            eps: 1e-8,
            clip: true,
            nesterov: false,
        },
    ];
    for config in configs {
        let make = |seed| -> Result<(Linear, ParamStore, Optimizer)> {
            let b = Builder::new(seed, &Device::Cpu);
            let layer = Linear::torch_default(&b, 7, 5, true)?;
            let store = b.finish();
            let optimizer = Optimizer::new(&config, &store)?;
            Ok((layer, store, optimizer))
        };
        let step = |layer: &Linear, store: &ParamStore, optimizer: &mut Optimizer, i: u64| -> Result<()> {
            let x = Tensor::from_vec(Init::Normal(1.0).values("x", &[4, 7], i), (4, 7), &Device::Cpu)?;
            let y = layer.forward(&x, &Mode::train(DrawKey { seed: 0, step: i, pass: 0 }))?;
            let g = Gradients::collect(&y.sqr()?.sum_all()?.backward()?, store)?;
            Ok(optimizer.step(&g, 0.01, 0.05)?)
        };
        let (layer, store, mut optimizer) = make(1)?;
        for i in 0..3 {
            step(&layer, &store, &mut optimizer, i)?;
        }
        let mut saver = StateSaver::new();
        twinsight_nn::StateVisitor::params(&mut saver, "net", &store)?;
        optimizer.visit_state(&mut saver)?;
        save_tensors(&path, &saver.into_tensors(), &BTreeMap::new())?;
        step(&layer, &store, &mut optimizer, 3)?;

        let (other, other_store, mut restored) = make(2)?;
        let mut loader = StateLoader::new(load_tensors(&path, &Device::Cpu)?.0, "state");
        twinsight_nn::StateVisitor::params(&mut loader, "net", &other_store)?;
        restored.visit_state(&mut loader)?;
        loader.finish()?;
        step(&other, &other_store, &mut restored, 3)?;
        for (a, b) in store.iter().zip(other_store.iter()) {
            let bits = |t: &Tensor| -> Result<Vec<u32>> {
                Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            ensure!(bits(a.value())? == bits(b.value())?, "{config:?}: {} differs after a restored step", a.name());
        }
    }
    Ok(())
}

#[test]
fn a_missing_gradient_is_named_and_clipping_bounds_norms() -> Result<()> {
    let b = Builder::new(0, &Device::Cpu);
    for name in ["used", "forgotten"] {
        b.parameter(name, &[4], Role::Weight, Init::Constant(1.0))?;
    }
    let store = b.finish();
    let used = store.get("used").context("used")?.var().as_tensor();
    let error = Gradients::collect(&used.sum_all()?.backward()?, &store).err().context("must be refused")?;
    ensure!(error.to_string().contains("forgotten"), "{error}");
    let forgotten = store.get("forgotten").context("forgotten")?.var().as_tensor();
    let loss = ((used.sum_all()? * 3.0)? + (forgotten.sum_all()? * 0.1)?)?;
    let mut g = Gradients::collect(&loss.backward()?, &store)?;
    let norm = g.norm()?;
    ensure!((norm - (36.0_f64 + 0.04).sqrt()).abs() < 1e-5, "{norm}");
    g.clip_each(1.0)?;
    let length = |g: &Gradients, n: &str| -> Result<f32> {
        Ok(g.get(n).context("gradient")?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt())
    };
    ensure!((length(&g, "used")? - 1.0).abs() < 1e-4 && (length(&g, "forgotten")? - 0.2).abs() < 1e-6);
    g.clip_norm(0.5)?;
    ensure!((g.norm()? - 0.5).abs() < 1e-4);
    Ok(())
}
