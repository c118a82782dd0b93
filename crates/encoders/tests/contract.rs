//! What holds for every encoder of the registry.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use twinsight_encoders::{ENCODERS, Encoder, EncoderConfig, EncoderSpec, Kind};
use twinsight_nn::{Builder, DrawKey, Mode, ParamStore};

const TRAIN: Mode = Mode::train(DrawKey { seed: 1, step: 0, pass: 0 });

#[test]
fn output_is_finite_for_small_images_of_one_and_three_channels() -> Result<()> {
    for spec in ENCODERS {
        for (image_size, channels) in [(28, 1), (32, 3), (64, 1)] {
            let (network, _) = build(spec, &config(image_size, channels), 0)?;
            let features = network.forward(&images(2, channels, image_size)?, &Mode::EVAL)?;
            let what = format!("{} at {image_size} pixels, {channels} channels", spec.name);
            ensure!(features.pooled.dims() == [2, network.dim()], "{what}: {:?}", features.pooled.dims());
            ensure!(finite(&features.pooled)?, "{what}: not finite");
            ensure!(features.tokens.is_some() == (spec.kind == Kind::Vit), "{what}: tokens");
            let rows = features.pooled.to_vec2::<f32>()?;
            ensure!(rows[0] != rows[1], "{what}: two images, one vector");
        }
    }
    Ok(())
}

#[test]
fn every_trainable_parameter_gets_a_finite_gradient() -> Result<()> {
    for spec in ENCODERS {
        let (network, params) = build(spec, &config(28, 1), 0)?;
        let y = network.forward(&images(2, 1, 28)?, &TRAIN)?.pooled;
        let probe = Tensor::from_vec(noise(y.elem_count(), 9), y.dims(), &Device::Cpu)?;
        let gradients = (y * probe)?.sum_all()?.backward()?;
        for p in params.trainable() {
            let gradient = gradients.get(p.var()).with_context(|| format!("{}: no gradient of {}", spec.name, p.name()))?;
            ensure!(finite(gradient)?, "{}: the gradient of {} is not finite", spec.name, p.name());
            ensure!(largest(gradient)? > 0.0, "{}: the gradient of {} is zero", spec.name, p.name());
        }
        for p in params.iter().filter(|p| !p.is_trainable()) {
            ensure!(gradients.get(p.var()).is_none(), "{}: buffer {} has a gradient", spec.name, p.name());
        }
    }
    Ok(())
}

#[test]
fn the_seed_decides_the_weights() -> Result<()> {
    for spec in ENCODERS {
        let weights = |seed| -> Result<Vec<Vec<f32>>> {
            let (_, params) = build(spec, &config(28, 1), seed)?;
            params.iter().map(|p| Ok(p.value().flatten_all()?.to_vec1::<f32>()?)).collect()
        };
        let first = weights(0)?;
        ensure!(first == weights(0)?, "{}: the same seed gave other weights", spec.name);
        ensure!(first != weights(1)?, "{}: another seed gave the same weights", spec.name);
    }
    Ok(())
}

#[test]
fn other_sizes_than_the_one_built_for_are_taken() -> Result<()> {
    for spec in ENCODERS.iter().filter(|spec| ["resnet_mini", "vit_tiny"].contains(&spec.name)) {
        let (network, _) = build(spec, &config(32, 3), 0)?;
        for (height, width) in [(16, 16), (20, 32)] {
            let x = Tensor::from_vec(noise(3 * height * width, 2), (1, 3, height, width), &Device::Cpu)?;
            ensure!(finite(&network.forward(&x, &Mode::EVAL)?.pooled)?, "{} at {height} × {width}", spec.name);
        }
    }
    Ok(())
}

#[test]
fn wrong_input_and_settings_are_refused_in_words() -> Result<()> {
    for spec in ENCODERS {
        let text = match build(spec, &config(28, 0), 0) {
            Ok(_) => anyhow::bail!("{}: no channels were accepted", spec.name),
            Err(e) => e.to_string(),
        };
        ensure!(text.contains("channels"), "{text}");
        let (network, _) = build(spec, &config(28, 3), 0)?;
        let refused = network.forward(&images(1, 1, 28)?, &Mode::EVAL).err().context("one channel was accepted")?;
        ensure!(refused.to_string().contains("(N, 3, height, width)"), "{refused}");
        if spec.kind == Kind::Vit {
            let refused = network.forward(&images(1, 3, 30)?, &Mode::EVAL).err().context("30 pixels were accepted")?;
            ensure!(refused.to_string().contains("multiples of 4"), "{refused}");
            ensure!(build(spec, &config(30, 3), 0).is_err(), "30 pixels in patches of 4");
        }
    }
    Ok(())
}

#[test]
fn zero_init_residual_starts_blocks_as_the_identity() -> Result<()> {
    let spec = twinsight_encoders::encoder("resnet_mini")?;
    let (_, params) = build(spec, &EncoderConfig { zero_init_residual: true, ..config(28, 1) }, 0)?;
    ensure!(largest(params.get("layer2.0.bn2.weight").context("bn2")?.value())? == 0.0);
    ensure!(largest(params.get("layer2.0.bn1.weight").context("bn1")?.value())? == 1.0);
    Ok(())
}

#[test]
fn drop_path_draws_by_key_in_training_only() -> Result<()> {
    let spec = twinsight_encoders::encoder("vit_tiny")?;
    let (network, _) = build(spec, &EncoderConfig { drop_path: 0.5, ..config(16, 1) }, 0)?;
    let x = images(4, 1, 16)?;
    let run = |mode: &Mode| -> Result<Vec<Vec<f32>>> { Ok(network.forward(&x, mode)?.pooled.to_vec2::<f32>()?) };
    ensure!(run(&TRAIN)? == run(&TRAIN)?, "the same key must drop the same paths");
    ensure!(run(&TRAIN)? != run(&TRAIN.with_pass(1))?, "another key must drop others");
    ensure!(run(&Mode::EVAL)? == run(&Mode { key: TRAIN.key, ..Mode::EVAL })?, "nothing is dropped in evaluation");
    Ok(())
}

fn config(image_size: usize, channels: usize) -> EncoderConfig {
    EncoderConfig { image_size, channels, ..EncoderConfig::default() }
}

fn build(spec: &EncoderSpec, config: &EncoderConfig, seed: u64) -> Result<(Box<dyn Encoder>, ParamStore)> {
    let builder = Builder::new(seed, &Device::Cpu);
    let network = (spec.build)(config, &builder)?;
    Ok((network, builder.finish()))
}

fn images(n: usize, channels: usize, side: usize) -> Result<Tensor> {
    Ok(Tensor::from_vec(noise(n * channels * side * side, 1), (n, channels, side, side), &Device::Cpu)?)
}

/// Values in [-1, 1) that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    twinsight_test_support::procedural("cls_token", &[count], seed).into_iter().map(|v| 10.0 * v).collect()
}

fn finite(t: &Tensor) -> Result<bool> {
    Ok(t.flatten_all()?.to_vec1::<f32>()?.iter().all(|v| v.is_finite()))
}

fn largest(t: &Tensor) -> Result<f32> {
    Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
}
