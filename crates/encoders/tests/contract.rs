//! What holds for every encoder of the registry.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use twinsight_encoders::{ENCODERS, Encoder, EncoderConfig, EncoderSpec, FeatureSource, Ffn, Kind, Probe};
use twinsight_nn::{Builder, DrawKey, Mode, ParamStore};

const TRAIN: Mode = Mode::train(DrawKey { seed: 1, step: 0, pass: 0 });

/// Trainable numbers without a classifier, as torchvision and timm count them; ours for the two small ones of our own.
const PARAMETERS: [(&str, usize); 21] = [
    ("resnet_mini", 1_232_704),
    ("resnet18", 11_176_512),
    ("resnet34", 21_284_672),
    ("resnet50", 23_508_032),
    ("resnet101", 42_500_160),
    ("resnet152", 58_143_808),
    ("wide_resnet50_2", 66_834_240),
    ("convnext_atto", 3_374_520),
    ("convnext_femto", 4_832_784),
    ("convnext_pico", 8_532_672),
    ("convnext_nano", 14_952_560),
    ("convnext_tiny", 27_820_128),
    ("convnext_small", 49_454_688),
    ("convnext_base", 87_566_464),
    ("convnext_large", 196_230_336),
    ("vit_mini", 1_965_504),
    ("vit_hybrid_mini", 1_340_288),
    ("vit_tiny", 5_524_416),
    ("vit_small", 21_665_664),
    ("vit_base", 85_798_656),
    ("vit_large", 303_301_632),
];

/// The encoders whose weights are drawn and trained in a test: every family in every form that the larger ones have too.
fn small() -> impl Iterator<Item = &'static EncoderSpec> {
    const NAMES: [&str; 6] = ["resnet_mini", "resnet18", "resnet50", "convnext_atto", "vit_mini", "vit_tiny"];
    ENCODERS.iter().filter(|spec| NAMES.contains(&spec.name))
}

/// Values by name.
type Named = Vec<(String, Vec<f32>)>;

#[test]
fn every_encoder_has_the_parameters_of_its_home() -> Result<()> {
    for spec in ENCODERS {
        let config = EncoderConfig { image_size: 224, ..EncoderConfig::default() };
        let builder = Builder::zeros(&Device::Cpu);
        (spec.build)(&config, &builder)?;
        let found = builder.finish().trainable_count();
        let want = PARAMETERS.iter().find(|(name, _)| *name == spec.name).context(spec.name)?.1;
        ensure!(found == want, "{}: {found} parameters, expected {want}", spec.name);
    }
    Ok(())
}

#[test]
fn computing_blocks_again_changes_neither_values_nor_gradients() -> Result<()> {
    for spec in small() {
        let plain = EncoderConfig { drop_path: 0.3, ..config(32, 1) };
        let pass = |checkpoint_activations| -> Result<(Vec<f32>, Named)> {
            let (network, params) = build(spec, &EncoderConfig { checkpoint_activations, ..plain.clone() }, 0)?;
            let y = network.forward(&images(4, 1, 32)?, &TRAIN)?.pooled;
            let values = y.flatten_all()?.to_vec1::<f32>()?;
            let probe = Tensor::from_vec(noise(y.elem_count(), 9), y.dims(), &Device::Cpu)?;
            let store = (y * probe)?.sum_all()?.backward()?;
            let mut all = Vec::new();
            for p in params.iter() {
                let value = if p.is_trainable() { store.get(p.var()).context(p.name().to_string())? } else { p.value() };
                all.push((p.name().to_string(), value.flatten_all()?.to_vec1::<f32>()?));
            }
            Ok((values, all))
        };
        let ((y, gradients), (again, recomputed)) = (pass(false)?, pass(true)?);
        twinsight_test_support::assert_close(spec.name, &again, &y, 1e-5)?;
        for ((name, want), (_, got)) in gradients.iter().zip(&recomputed) {
            // Fused runs add in another order, and a ReLU near zero may turn.
            twinsight_test_support::assert_close(&format!("{} {name}", spec.name), got, want, 2e-2)?;
        }
    }
    Ok(())
}

#[test]
fn frozen_parameters_get_no_gradient_and_a_pattern_without_a_match_is_refused() -> Result<()> {
    for (spec, pattern) in small().map(|s| (s, if s.kind == Kind::Vit { "blocks.0.*" } else { "*.0.*weight" })) {
        let frozen = EncoderConfig { freeze: vec![pattern.into()], ..config(32, 1) };
        let (network, params) = build(spec, &frozen, 0)?;
        let store = network.forward(&images(2, 1, 32)?, &TRAIN)?.pooled.sqr()?.sum_all()?.backward()?;
        let (with, without): (Vec<_>, Vec<_>) = params
            .iter()
            .filter(|p| !p.name().contains("running"))
            .partition(|p| twinsight_nn::matches_pattern(pattern, p.name()));
        ensure!(!with.is_empty() && with.iter().all(|p| store.get(p.var()).is_none() && !p.is_trainable()), "{}", spec.name);
        ensure!(without.iter().all(|p| store.get(p.var()).is_some()), "{}", spec.name);
        let wrong = build(spec, &EncoderConfig { freeze: vec!["layer9.*".into()], ..config(32, 1) }, 0).err();
        ensure!(wrong.is_some_and(|e| e.to_string().contains("layer9")), "{}", spec.name);
    }
    Ok(())
}

#[test]
fn every_depth_gives_vectors_and_the_last_is_the_encoder_s_own() -> Result<()> {
    for spec in small() {
        let (network, _) = build(spec, &config(32, 1), 0)?;
        let x = images(2, 1, 32)?;
        let (own, all) = (network.forward(&x, &Mode::EVAL)?.pooled, network.depths(&x, &Mode::EVAL)?);
        let last = all.last().context("depths")?.pooled.flatten_all()?.to_vec1::<f32>()?;
        twinsight_test_support::assert_close(spec.name, &last, &own.flatten_all()?.to_vec1::<f32>()?, 1e-5)?;
        let (dim, depths) = (network.dim(), all.len());
        let width = |source: &str| -> Result<usize> {
            let (network, _) = build(spec, &config(32, 1), 0)?;
            Ok(Probe::new(network, source.parse::<FeatureSource>()?)?.dim())
        };
        ensure!(width("pooled")? == dim && width(&format!("depth-{depths}"))? == dim);
        let told = width(&format!("last-{}", depths + 1)).err().context("too deep")?.to_string();
        ensure!(told.contains(&format!("1 to {depths}")), "{told}");
        if spec.kind == Kind::Vit {
            ensure!(width("last-4")? == 4 * dim && width("class+mean")? == 2 * dim && width("patch-mean")? == dim);
            ensure!(width("last-4+mean")? == 5 * dim && width("last-0+mean").is_err());
            let weights = network.attention(&x)?.context("attention")?;
            ensure!(weights.dims()[0] == 2 && weights.dims()[2] == 64, "{:?}", weights.dims());
            let sums = weights.sum(2)?.flatten_all()?.to_vec1::<f32>()?;
            ensure!(sums.iter().all(|s| *s > 0.5 && *s < 1.0), "the class token looks at itself too: {sums:?}");
        } else {
            ensure!(width("patch-mean").is_err() && network.attention(&x)?.is_none());
        }
    }
    Ok(())
}

#[test]
fn transformers_of_every_form_train() -> Result<()> {
    let spec = twinsight_encoders::encoder("vit_mini")?;
    for (registers, layer_scale, ffn) in [(0, 0.1, Ffn::Mlp), (3, 0.0, Ffn::Mlp), (2, 0.1, Ffn::SwiGlu)] {
        for drop_path in [0.0, 0.4] {
            let config = EncoderConfig { registers, layer_scale, ffn, drop_path, ..config(16, 2) };
            let (network, params) = build(spec, &config, 0)?;
            let features = network.forward(&images(6, 2, 16)?, &TRAIN)?;
            let tokens = features.tokens.context("tokens")?;
            ensure!(tokens.dims() == [6, 17, network.dim()] && features.registers.is_some() == (registers > 0));
            let store = tokens.sqr()?.sin()?.sum_all()?.backward()?;
            for p in params.trainable() {
                let gradient = store.get(p.var()).with_context(|| format!("no gradient of {}", p.name()))?;
                ensure!(finite(gradient)? && largest(gradient)? > 0.0, "{}", p.name());
            }
        }
    }
    Ok(())
}

#[test]
fn output_is_finite_for_small_images_of_one_and_three_channels() -> Result<()> {
    for spec in small() {
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
    for spec in small() {
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
    for spec in small() {
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
    for spec in small() {
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

#[test]
fn heads_may_be_others_than_the_paper_s() -> Result<()> {
    let spec = twinsight_encoders::encoder("vit_mini")?;
    let x = images(2, 1, 32)?;
    let vectors = |heads: usize| -> Result<Vec<Vec<f32>>> {
        let (network, _) = build(spec, &EncoderConfig { heads, ..config(32, 1) }, 0)?;
        let seen = network.attention(&x)?.context("attention")?;
        ensure!(seen.dims()[1] == if heads == 0 { 3 } else { heads }, "{:?}", seen.dims());
        Ok(network.forward(&x, &Mode::EVAL)?.pooled.to_vec2::<f32>()?)
    };
    ensure!(vectors(0)? == vectors(3)? && vectors(0)? != vectors(6)?);
    ensure!(vectors(5).err().context("5 heads")?.to_string().contains("a divisor of 192"));
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
