//! What holds for every method of the registry: finite losses, gradients for the student alone, reproducibility, complete
//! state, settings refused by name, and a loss that falls.

mod cases;
mod teachers;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use toml::{Table, Value};
use twinsight_encoders::encoder;
use twinsight_nn::{Gradients, NormKind, Precision, StateLoader, StateSaver, load_tensors, save_tensors};
use twinsight_ssl_methods::{At, EncoderNeed, METHODS, backward};
use twinsight_test_support::procedural;

use cases::{BATCH, Case, at, batches, bits, cases, finite, flat, for_every_case, values};

#[test]
fn the_loss_is_finite_and_so_is_what_comes_with_it() -> Result<()> {
    for_every_case(|case| {
        let mut method = case.build(0)?;
        let views = batches(&*method, 1)?;
        let out = method.loss(&views, &at(0))?;
        ensure!(out.loss.rank() == 0 && finite(&out.loss)?, "loss {:?}", out.loss);
        ensure!(out.embedding.rank() == 2 && out.embedding.dim(0)? == BATCH, "embedding {:?}", out.embedding.dims());
        ensure!(finite(&out.embedding)?, "the embedding is not finite");
        for (name, value) in &out.metrics {
            ensure!(value.rank() == 0 && finite(value)?, "metric {name} is {value:?}");
        }
        Ok(())
    })
}

#[test]
fn the_student_gets_every_gradient_and_the_teacher_none() -> Result<()> {
    for_every_case(|case| {
        let mut method = case.build(0)?;
        let views = batches(&*method, 1)?;
        let out = method.loss(&views, &at(0))?;
        let store = out.loss.backward()?;
        let gradients = Gradients::collect(&store, method.student())?;
        for p in method.student().trainable() {
            let gradient = gradients.get(p.name()).with_context(|| format!("{} has no gradient", p.name()))?;
            ensure!(finite(gradient)?, "the gradient of {} is not finite", p.name());
            let largest = gradient.abs()?.max_all()?.to_scalar::<f32>()?;
            ensure!(largest > 1e-8, "the gradient of {} is zero (largest element {largest:e})", p.name());
        }
        for p in method.teacher().iter().flat_map(|t| t.iter()) {
            ensure!(store.get(p.var()).is_none(), "the teacher's {} has a gradient", p.name());
        }
        Ok(())
    })
}

#[test]
fn the_teacher_starts_as_the_student_and_shares_no_memory_with_it() -> Result<()> {
    for_every_case(|case| {
        let mut method = case.build(0)?;
        let Some(teacher) = method.teacher() else { return Ok(()) };
        let before = values(teacher)?;
        for p in teacher.iter() {
            let own = method.student().get(p.name()).with_context(|| format!("the student has no {}", p.name()))?;
            ensure!(flat(own.value())? == flat(p.value())?, "{} starts differently", p.name());
        }
        for p in method.student().iter() {
            p.set(&(p.value() + 1.0)?)?;
        }
        ensure!(values(method.teacher().context("teacher")?)? == before, "a change of the student changed the teacher");
        method.after_step(&at(0))?;
        ensure!(values(method.teacher().context("teacher")?)? != before, "the teacher does not follow");
        Ok(())
    })
}

#[test]
fn the_seed_decides_the_loss() -> Result<()> {
    for_every_case(|case| {
        let loss = |seed| -> Result<u32> {
            let mut method = case.build(seed)?;
            let views = batches(&*method, 1)?;
            bits(&method.loss(&views, &at(0))?)
        };
        ensure!(loss(3)? == loss(3)?, "the same seed gave another loss");
        ensure!(loss(3)? != loss(4)?, "another seed gave the same loss");
        Ok(())
    })
}

#[test]
fn saved_and_loaded_it_goes_on_as_if_nothing_had_happened() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("state.safetensors");
    for_every_case(|case| {
        let (mut method, mut optimizer) = case.start(0)?;
        for step in 0..2 {
            case.step(&mut *method, &mut optimizer, step, step as u32)?;
        }
        let mut saver = StateSaver::default();
        method.visit_state(&mut saver)?;
        optimizer.visit_state(&mut saver)?;
        save_tensors(&path, &saver.into_tensors(), &BTreeMap::new())?;
        // Another seed: whatever is not part of the state would differ.
        let (mut fresh, mut fresh_optimizer) = case.start(99)?;
        let (tensors, _) = load_tensors(&path, &Device::Cpu)?;
        let mut loader = StateLoader::new(tensors, "state.safetensors");
        fresh.visit_state(&mut loader)?;
        fresh_optimizer.visit_state(&mut loader)?;
        loader.finish()?;
        for step in 2..4 {
            let want = case.step(&mut *method, &mut optimizer, step, step as u32)?;
            let got = case.step(&mut *fresh, &mut fresh_optimizer, step, step as u32)?;
            ensure!(bits(&got)? == bits(&want)?, "step {step}: another loss");
            ensure!(values(fresh.student())? == values(method.student())?, "step {step}: another student");
            let teachers = (fresh.teacher().map(values).transpose()?, method.teacher().map(values).transpose()?);
            ensure!(teachers.0 == teachers.1, "step {step}: another teacher");
        }
        Ok(())
    })
}

#[test]
fn unknown_settings_are_refused_with_the_nearest() -> Result<()> {
    for spec in METHODS {
        for key in (spec.defaults)().keys() {
            let misspelt = format!("{key}_");
            let table = Table::from_iter([(misspelt.clone(), Value::Integer(1))]);
            let encoder = if spec.encoder == EncoderNeed::Vit { "vit_mini" } else { "resnet_mini" };
            let case = Case { spec, encoder, settings: table };
            let text = case.build(0).err().with_context(|| format!("{misspelt} was accepted"))?.to_string();
            ensure!(text.contains(&misspelt) && text.contains(&format!("did you mean `{key}")), "{text}");
        }
    }
    Ok(())
}

#[test]
fn values_out_of_range_are_refused_by_name() -> Result<()> {
    let bad = [
        ("simclr", "temperature = 0.0"),
        ("simclr", "temperature = -1.0"),
        ("simclr", "temperature = nan"),
        ("simclr", "projection_dim = 0"),
        ("simclr", "temperature = 'warm'"),
        ("byol", "momentum = 1.5"),
        ("byol", "momentum = -0.1"),
        ("barlow_twins", "lambda = 0.0"),
        ("barlow_twins", "projection_dim = 1"),
        ("byol", "hidden_dim = 0"),
        ("byol", "projection_dim = -4"),
        ("dcl", "temperature = 0.0"),
        ("dclw", "sigma = -1.0"),
        ("nnclr", "queue_size = 0"),
        ("nnclr", "temperature = inf"),
        ("moco_v2", "queue_size = 0"),
        ("moco_v2", "norm_groups = 0"),
        ("moco_v2", "momentum = 1.5"),
        ("moco_v3", "momentum = -0.5"),
        ("moco_v3", "temperature = 0.0"),
        ("simsiam", "projector_layers = 4"),
        ("simsiam", "predictor_hidden_dim = 0"),
        ("vicreg", "variance = -1.0"),
        ("vicreg", "projection_dim = 1"),
        ("swav", "epsilon = 0.0"),
        ("swav", "prototypes = 1"),
        ("lejepa", "lambda = 1.0"),
        ("lejepa", "knots = 1"),
        ("ibot", "mask_probability = 0.0"),
        ("ibot", "mask_ratio_min = 0.9"),
        ("ibot", "centering = 'both'"),
        ("dinov2", "koleo_weight = -1.0"),
        ("mae", "mask_ratio = 1.0"),
        ("mae", "decoder_dim = 30"),
        ("dino", "out_dim = 0"),
        ("dino", "bottleneck_dim = 0"),
        ("dino", "student_temperature = 0.0"),
        ("dino", "teacher_temperature = 0.0"),
        ("dino", "warmup_teacher_temperature = inf"),
        ("dino", "momentum = 2.0"),
        ("dino", "center_momentum = 1.1"),
        ("dino", "clip_gradient = -1.0"),
    ];
    for (name, setting) in bad {
        let spec = twinsight_ssl_methods::method(name)?;
        let encoder = if spec.encoder == EncoderNeed::Vit { "vit_mini" } else { "resnet_mini" };
        let case = Case { spec, encoder, settings: setting.parse()? };
        let text = case.build(0).err().with_context(|| format!("{name}: {setting} was accepted"))?.to_string();
        let key = setting.split(' ').next().unwrap_or_default();
        ensure!(text.contains(name) && text.contains(key), "{name}: {setting}: {text}");
        ensure!(!text.contains('\n'), "{text}");
    }
    Ok(())
}

#[test]
fn views_that_do_not_fit_the_plan_are_refused() -> Result<()> {
    for_every_case(|case| {
        let mut method = case.build(0)?;
        let views = batches(&*method, 1)?;
        ensure!(method.loss(&views[1..], &at(0)).is_err(), "a view less was accepted");
        ensure!(method.loss(&[], &at(0)).is_err(), "no views were accepted");
        let mut small = views.clone();
        if views.len() < 2 {
            return Ok(());
        }
        small[1] = small[1].narrow(0, 0, BATCH - 1)?;
        let text = method.loss(&small, &at(0)).err().context("a smaller batch was accepted")?.to_string();
        ensure!(text.contains("view 1"), "{text}");
        Ok(())
    })
}

#[test]
fn a_few_steps_lower_the_loss_of_a_fixed_batch() -> Result<()> {
    for_every_case(|case| {
        let (mut method, mut optimizer) = case.start(0)?;
        let mut losses = Vec::new();
        for step in 0..12 {
            losses.push(case.step(&mut *method, &mut optimizer, step, 1)?.loss.to_scalar::<f32>()?);
        }
        // MoCo's queue fills with the keys of this one batch, which its queries cannot be told from.
        let until = if case.spec.name == "moco_v2" { 4 } else { losses.len() };
        let (first, last) = (losses[0], losses[until - 1]);
        ensure!(last < first - 0.02, "the loss went from {first} to {last}: {losses:?}");
        Ok(())
    })
}

#[test]
fn bfloat16_between_the_passes_changes_gradients_and_not_the_loss() -> Result<()> {
    for_every_case(|case| {
        let run = |precision| -> Result<(u32, Vec<f32>)> {
            let mut method = case.build(0)?;
            let views = batches(&*method, 1)?;
            let out = method.loss(&views, &At { precision, ..at(0) })?;
            let gradients = Gradients::collect(&out.loss.backward()?, method.student())?;
            Ok((bits(&out)?, gradients.iter().map(|(_, g)| flat(g)).collect::<Result<Vec<_>>>()?.concat()))
        };
        let ((exact, gradients), (rounded, others)) = (run(Precision::F32)?, run(Precision::Bf16)?);
        ensure!(exact == rounded, "the loss changed");
        if case.encoder.starts_with("resnet") {
            ensure!(gradients != others, "nothing was rounded");
        }
        let square = |v: &[f32]| v.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        let off: Vec<f32> = gradients.iter().zip(&others).map(|(a, b)| a - b).collect();
        ensure!(square(&off) < 0.01 * square(&gradients), "gradients are off by {}", (square(&off) / square(&gradients)).sqrt());
        Ok(())
    })
}

#[test]
fn the_evaluated_encoder_has_the_encoders_own_names() -> Result<()> {
    for_every_case(|case| {
        let method = case.build(0)?;
        let builder = twinsight_nn::Builder::new(1, &Device::Cpu);
        let alone = (encoder(case.encoder)?.build)(method.encoder().config(), &builder)?;
        builder.finish().load(&method.encoder_params().snapshot()?, "the method's encoder")?;
        let x = Tensor::from_vec(procedural("cls_token", &[2 * 256], 5), (2, 1, 16, 16), &Device::Cpu)?;
        let mode = twinsight_nn::Mode::EVAL;
        let (a, b) = (method.encoder().forward(&x, &mode)?, alone.forward(&x, &mode)?);
        ensure!(flat(&a.pooled)? == flat(&b.pooled)?, "the exported parameters are not the encoder's");
        Ok(())
    })
}

/// In parts of a batch, gradients are those of the whole one, where images do not see each other in the backbone.
#[test]
fn a_batch_in_parts_gives_the_same_gradients() -> Result<()> {
    for case in cases()? {
        let name = case.spec.name;
        // The remaining batch norm, in heads, sees the whole batch either way.
        for (encoder, micro) in [("resnet_mini", 4), ("vit_mini", 2), ("vit_mini", 5)] {
            let case = Case { spec: case.spec, encoder, settings: case.settings.clone() };
            if case.unfit() {
                continue;
            }
            let run = |micro: usize| -> Result<_> {
                let mut method = case.build_with(0, NormKind::Group, 0.2)?;
                let views = batches(&*method, 1)?;
                let out = backward(&mut *method, &views, &at(3), micro)?;
                let gradients = out.gradients.context("no gradients")?;
                Ok((out.output.loss.to_scalar::<f32>()?, gradients))
            };
            let ((loss, whole), (other, parts)) = (run(0)?, run(micro)?);
            ensure!((loss - other).abs() <= 1e-5 * loss.abs().max(1.0), "{name}, {encoder}: loss {other}, whole {loss}");
            let square = |v: &[f32]| v.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            let all = whole.iter().map(|(_, g)| Ok(square(&flat(g)?))).sum::<Result<f64>>()?;
            let mut off = 0.0;
            for (parameter, gradient) in whole.iter() {
                let (a, b) = (flat(gradient)?, flat(parts.get(parameter).context("missing")?)?);
                let own = square(&a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<_>>());
                // Where sums cancel (a bias before batch norm), what is left is rounding; a wrong gradient is off by its own size.
                let error = (own / square(&a).max(1e-6 * all)).sqrt();
                ensure!(error < 1e-3, "{name}, {encoder} in parts of {micro}: the gradient of {parameter} differs by {error:e}");
                off += own;
            }
            ensure!(whole.len() == parts.len() && all > 0.0, "{name}, {encoder}");
            let error = (off / all).sqrt();
            ensure!(error < 1e-5, "{name}, {encoder} in parts of {micro}: gradients differ by {error:e}");
        }
    }
    Ok(())
}
