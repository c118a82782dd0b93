//! Layers against PyTorch's values and against finite differences.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use twinsight_nn::{
    Attention, BatchNorm, BlockShortcut, Builder, Conv2d, Conv2dConfig, ConvNorm, DrawKey, DropPath, Gradients, Init, LayerNorm,
    LayerScale, Linear, Mlp, Mode, NormKind, ParamStore, ResidualBlock, WeightNormLinear, residual_blocks,
};
use twinsight_test_support::{Golden, GoldenTensor, assert_close, procedural};

const TRAIN: Mode = Mode::train(DrawKey { seed: 1, step: 2, pass: 3 });

fn tensor(g: &GoldenTensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(&g.data, g.shape.as_slice(), &Device::Cpu)?)
}

/// (N, C, H, W) → (N, H, W, C).
fn last(t: &Tensor) -> Result<Tensor> {
    Ok(t.permute((0, 2, 3, 1))?.contiguous()?)
}

/// (N, H, W, C) → the values of (N, C, H, W).
fn first(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.permute((0, 3, 1, 2))?.flatten_all()?.to_vec1()?)
}

fn values(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1()?)
}

#[test]
fn running_statistics_of_blocks_are_those_of_their_layers() -> Result<()> {
    let x = last(&Tensor::from_vec(procedural("conv", &[4 * 6 * 8 * 8], 3), (4, 6, 8, 8), &Device::Cpu)?)?;
    let mode = TRAIN.with_stat_groups(2);
    let b = Builder::new(7, &Device::Cpu);
    let layer = |names, channels, kernel, stride| ConvNorm::new(&b, names, channels, kernel, stride, NormKind::Batch);
    let first = ResidualBlock::new(
        vec![layer(["conv1", "bn1"], [6, 10], 3, 2)?, layer(["conv2", "bn2"], [10, 10], 3, 1)?],
        BlockShortcut::ConvNorm(Box::new(layer(["conv3", "bn3"], [6, 10], 1, 2)?)),
    );
    let second = ResidualBlock::new(vec![layer(["conv4", "bn4"], [10, 10], 3, 1)?], BlockShortcut::Identity);
    let fused = b.finish();
    let b = Builder::new(7, &Device::Cpu);
    let mut layers = Vec::new();
    for (i, inputs, kernel, stride) in [(1, 6, 3, 2), (2, 10, 3, 1), (3, 6, 1, 2), (4, 10, 3, 1)] {
        let config = Conv2dConfig { stride, padding: kernel / 2, ..Conv2dConfig::default() };
        let conv = Conv2d::new(&b.under(format!("conv{i}")), inputs, 10, kernel, config, false, Init::KaimingNormalFanOut)?;
        layers.push((conv, BatchNorm::new(&b.under(format!("bn{i}")), 10, true)?));
    }
    let run = |i: usize, x: &Tensor, residual: Option<&Tensor>, relu: bool| -> Result<Tensor> {
        Ok(layers[i].1.forward_fused(&layers[i].0.forward(x, &mode)?, residual, relu, &mode)?)
    };
    for _ in 0..2 {
        let y = residual_blocks([&first, &second], &x, &mode)?;
        let side = run(2, &x, None, false)?;
        let middle = run(1, &run(0, &x, None, true)?, Some(&side), true)?;
        let want = run(3, &middle, Some(&middle), true)?;
        assert_close("the result", &values(&y)?, &values(&want)?, 1e-5)?;
    }
    let alone = b.finish();
    for p in fused.iter() {
        let other = alone.get(p.name()).with_context(|| format!("{} is missing", p.name()))?;
        assert_close(p.name(), &values(p.value())?, &values(other.value())?, 1e-5)?;
    }
    Ok(())
}

#[test]
fn golden_convolutions() -> Result<()> {
    for name in ["k1_s2_d1_g1", "k3_s1_d1_g1", "k3_s1_d2_g1", "k3_s2_d1_g1", "k7_s1_d1_g8", "k7_s2_d1_g1"] {
        let golden = Golden::load(&format!("layer_conv_{name}"))?;
        let number = |key: &str| golden.number(key).map(|v| v as usize);
        let config = Conv2dConfig {
            stride: number("stride")?,
            padding: number("padding")?,
            dilation: number("dilation")?,
            groups: number("groups")?,
        };
        let b = Builder::new(0, &Device::Cpu);
        let conv = Conv2d::new(&b, 8, 8, number("kernel")?, config, false, Init::TorchDefault)?;
        let store = b.finish();
        let weight = store.get("weight").context("weight")?;
        weight.set(&tensor(golden.get("weight")?)?)?;
        let x = candle_core::Var::from_tensor(&last(&tensor(golden.get("x")?)?)?)?;
        let y = conv.forward(&x, &TRAIN)?;
        assert_close(name, &first(&y)?, &golden.get("y")?.data, 1e-4)?;
        let grads = (y * last(&tensor(golden.get("probe")?)?)?)?.sum_all()?.backward()?;
        assert_close(name, &first(grads.get(&x).context("x")?)?, &golden.get("grad_x")?.data, 1e-4)?;
        let got = values(grads.get(weight.var()).context("weight")?)?;
        assert_close(name, &got, &golden.get("grad_weight")?.data, 1e-4)?;
    }
    Ok(())
}

#[test]
fn golden_batch_norm() -> Result<()> {
    let golden = Golden::load("layer_batch_norm")?;
    let b = Builder::new(0, &Device::Cpu);
    let norm = BatchNorm::new(&b, 6, true)?;
    let store = b.finish();
    for p in store.iter() {
        p.set(&Tensor::from_vec(procedural(p.name(), p.dims(), golden.seed()?), p.dims(), &Device::Cpu)?)?;
    }
    let x = candle_core::Var::from_tensor(&last(&tensor(golden.get("x")?)?)?)?;
    let y = norm.forward(&x, &TRAIN)?;
    assert_close("y", &first(&y)?, &golden.get("y")?.data, 1e-5)?;
    let grads = (y * last(&tensor(golden.get("probe")?)?)?)?.sum_all()?.backward()?;
    assert_close("grad_x", &first(grads.get(&x).context("x")?)?, &golden.get("grad_x")?.data, 1e-4)?;
    for (name, key) in [("weight", "grad_weight"), ("bias", "grad_bias")] {
        let got = values(grads.get(store.get(name).context(name)?.var()).context(name)?)?;
        assert_close(key, &got, &golden.get(key)?.data, 1e-4)?;
    }
    for name in ["running_mean", "running_var"] {
        assert_close(name, &values(store.get(name).context(name)?.value())?, &golden.get(name)?.data, 1e-5)?;
    }
    Ok(())
}

#[test]
fn blocks_of_a_batch_are_normalised_as_separate_calls() -> Result<()> {
    let make = || -> Result<(BatchNorm, ParamStore)> {
        let b = Builder::new(0, &Device::Cpu);
        Ok((BatchNorm::new(&b, 5, true)?, b.finish()))
    };
    let ((joint, joint_store), (single, single_store)) = (make()?, make()?);
    let x = Tensor::from_vec(Init::Normal(2.0).values("x", &[8, 3, 3, 5], 0), (8, 3, 3, 5), &Device::Cpu)?;
    let y = joint.forward(&x, &TRAIN.with_stat_groups(2))?;
    let parts = [single.forward(&x.narrow(0, 0, 4)?, &TRAIN)?, single.forward(&x.narrow(0, 4, 4)?, &TRAIN)?];
    assert_close("y", &values(&y)?, &values(&Tensor::cat(&parts, 0)?)?, 1e-6)?;
    for (a, b) in joint_store.iter().zip(single_store.iter()) {
        assert_close(a.name(), &values(a.value())?, &values(b.value())?, 1e-6)?;
    }
    Ok(())
}

/// Compares every gradient of `probe · layer(x)` with central differences.
fn check(b: &Builder, x: &Tensor, mode: &Mode, forward: impl Fn(&Tensor, &Mode) -> Result<Tensor>) -> Result<()> {
    let store = b.finish();
    let probe = |y: &Tensor| -> Result<Tensor> {
        let w = Tensor::from_vec(Init::Normal(1.0).values("probe", y.dims(), 9), y.dims(), &Device::Cpu)?;
        Ok((y * w)?.sum_all()?)
    };
    let loss = |x: &Tensor, mode: &Mode| -> Result<f64> { Ok(f64::from(probe(&forward(x, mode)?)?.to_scalar::<f32>()?)) };
    let xv = candle_core::Var::from_tensor(&x.copy()?)?;
    let grads = probe(&forward(&xv, mode)?)?.backward()?;
    let named = Gradients::collect(&grads, &store)?;
    let mut targets = vec![("x".to_string(), xv.clone(), grads.get(&xv).context("x")?.clone())];
    for p in store.trainable() {
        targets.push((p.name().to_string(), p.var().clone(), named.get(p.name()).context("gradient")?.clone()));
    }
    for (name, var, gradient) in targets {
        let start = values(&var)?;
        let got = values(&gradient)?;
        let scale = got.iter().fold(0.0_f32, |a, v| a.max(v.abs())).max(0.1);
        for i in (0..start.len()).step_by((start.len() / 7).max(1)) {
            let h = 1e-2;
            let at = |d: f32| -> Result<f64> {
                let mut moved = start.clone();
                moved[i] += d;
                var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu)?)?;
                loss(&xv, &mode.without_grad())
            };
            let want = ((at(h)? - at(-h)?) / f64::from(2.0 * h)) as f32;
            var.set(&Tensor::from_slice(&start, var.dims(), &Device::Cpu)?)?;
            ensure!((got[i] - want).abs() < 0.02 * scale, "{name}[{i}]: {} and by differences {want}", got[i]);
        }
    }
    Ok(())
}

fn input(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(Init::Normal(1.0).values("x", shape, 4), shape, &Device::Cpu)?)
}

#[test]
fn gradients_agree_with_finite_differences() -> Result<()> {
    let b = || Builder::new(5, &Device::Cpu);
    let x = input(&[2, 5, 8])?;
    let (b1, b2, b3, b4, b5, b6) = (b(), b(), b(), b(), b(), b());
    let attention = Attention::new(&b1, 8, 2)?;
    for p in b1.finish().trainable() {
        p.set(&(p.value() * 10.0)?)?;
    }
    check(&b1, &x, &TRAIN, |x, m| Ok(attention.forward(x, m)?))?;
    let mlp = Mlp::new(&b2, 8, 12)?;
    for p in b2.finish().trainable() {
        p.set(&(p.value() * 10.0)?)?;
    }
    check(&b2, &x, &TRAIN, |x, m| Ok(mlp.forward(x, m)?))?;
    let norm = LayerNorm::new(&b3, 8, 1e-6)?;
    check(&b3, &x, &TRAIN, |x, m| Ok(norm.forward(x, m)?))?;
    let scale = LayerScale::new(&b4, 8, 0.3)?;
    check(&b4, &x, &TRAIN, |x, m| Ok(scale.forward(x, m)?))?;
    let linear = Linear::torch_default(&b5, 8, 6, true)?;
    check(&b5, &x, &TRAIN, |x, m| Ok(linear.forward(x, m)?))?;
    let weight_norm = WeightNormLinear::new(&b6, 8, 6, false)?;
    check(&b6, &x, &TRAIN, |x, m| Ok(weight_norm.forward(x, m)?))
}

#[test]
fn weight_norm_rows_have_the_length_of_their_gains() -> Result<()> {
    let b = Builder::new(5, &Device::Cpu);
    let layer = WeightNormLinear::new(&b, 4, 3, true)?;
    let y = layer.forward(&Tensor::eye(4, DType::F32, &Device::Cpu)?, &TRAIN)?;
    for norm in values(&y.sqr()?.sum(0)?)? {
        ensure!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
    ensure!(b.finish().trainable().count() == 1, "a fixed gain is no trainable parameter");
    Ok(())
}

#[test]
fn drop_path_drops_whole_samples_and_repeats_itself() -> Result<()> {
    let drop = DropPath::new(&Builder::new(0, &Device::Cpu).under("blocks.3"), 0.25)?;
    let x = Tensor::ones((4000, 2), DType::F32, &Device::Cpu)?;
    let y = drop.forward(&x, &TRAIN)?.to_vec2::<f32>()?;
    ensure!(y.iter().all(|r| r[0] == r[1] && (r[0] == 0.0 || (r[0] - 4.0 / 3.0).abs() < 1e-6)));
    let dropped = y.iter().filter(|r| r[0] == 0.0).count();
    ensure!((880..1120).contains(&dropped), "{dropped} of 4000 at a rate of 0.25");
    ensure!(y == drop.forward(&x, &TRAIN)?.to_vec2::<f32>()?);
    ensure!(y != drop.forward(&x, &TRAIN.with_pass(9))?.to_vec2::<f32>()?);
    ensure!(values(&drop.forward(&x, &Mode::EVAL)?)?.iter().all(|&v| v == 1.0));
    ensure!(DropPath::new(&Builder::new(0, &Device::Cpu), 1.0).is_err());
    Ok(())
}

#[test]
fn batch_norm_refuses_to_train_on_one_value_a_channel() -> Result<()> {
    let b = Builder::new(0, &Device::Cpu);
    let norm = BatchNorm::new(&b.under("head.bn"), 3, true)?;
    let text = norm.forward(&input(&[2, 3])?, &TRAIN.with_stat_groups(2)).err().context("must be refused")?.to_string();
    ensure!(text.contains("head.bn"), "{text}");
    for p in b.finish().iter().filter(|p| !p.is_trainable()) {
        ensure!(values(p.value())?.iter().all(|v| *v == 0.0 || *v == 1.0), "{} changed", p.name());
    }
    norm.forward(&input(&[1, 3])?, &Mode::EVAL)?;
    Ok(())
}

#[test]
fn evaluation_uses_running_statistics_and_keeps_them() -> Result<()> {
    let b = Builder::new(0, &Device::Cpu);
    let norm = BatchNorm::new(&b, 3, false)?;
    let store = b.finish();
    store.get("running_mean").context("mean")?.set(&Tensor::new(&[1.0_f32, 2.0, 3.0], &Device::Cpu)?)?;
    store.get("running_var").context("var")?.set(&Tensor::new(&[4.0_f32, 4.0, 4.0], &Device::Cpu)?)?;
    let y = norm.forward(&Tensor::new(&[[3.0_f32, 2.0, 1.0]], &Device::Cpu)?, &Mode::EVAL)?;
    assert_close("eval", &values(&y)?, &[1.0, 0.0, -1.0], 1e-5)?;
    ensure!(values(store.get("running_mean").context("mean")?.value())? == [1.0, 2.0, 3.0]);
    Ok(())
}
