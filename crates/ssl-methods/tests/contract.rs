//! What holds for every method of the registry: finite losses, gradients for the student alone, reproducibility, complete
//! state, settings refused by name, and a loss that falls.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use toml::{Table, Value};
use twinsight_augment::Normalize;
use twinsight_encoders::{EncoderConfig, encoder};
use twinsight_nn::{
    Gradients, NormKind, Optimizer, OptimizerConfig, ParamStore, Precision, StateLoader, StateSaver, load_tensors, save_tensors,
};
use twinsight_ssl_methods::{At, EncoderNeed, LossOutput, METHODS, Method, MethodContext, MethodSpec, backward};
use twinsight_test_support::procedural;

/// Images a batch.
const BATCH: usize = 6;

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

/// DINO's head keeps its last layer for the first epochs, and no gradient is longer than the limit.
#[test]
fn dino_freezes_and_clips() -> Result<()> {
    let case = cases()?.into_iter().find(|c| c.spec.name == "dino").context("dino")?;
    let mut method = case.build(0)?;
    let views = batches(&*method, 1)?;
    let last = "projector.last_layer.weight_v";
    for (epoch, frozen) in [(0, true), (1, false)] {
        let at = At { epoch, ..at(0) };
        let store = method.loss(&views, &at)?.loss.backward()?;
        let mut gradients = Gradients::collect(&store, method.student())?;
        gradients.scale(1e4)?;
        method.adjust_gradients(&mut gradients, &at)?;
        ensure!(gradients.get(last).is_none() == frozen, "epoch {epoch}");
        let norm = |g: &Tensor| -> Result<f32> { Ok(g.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt()) };
        for p in method.student().trainable().filter(|p| !frozen || p.name() != last) {
            let length = norm(gradients.get(p.name()).context("gradient")?)?;
            ensure!(length <= 3.0 + 1e-3, "the gradient of {} has length {length}", p.name());
        }
    }
    Ok(())
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

/// Small crops as large as the large ones, which then go through the encoder with them, in parts too.
#[test]
fn small_crops_may_be_as_large_as_the_large_ones() -> Result<()> {
    for name in ["dino", "ibot", "swav"] {
        let mut case = cases()?.into_iter().rfind(|c| c.spec.name == name).context("a case")?;
        case.settings.insert("local_size".into(), Value::Integer(16));
        let run = |micro: usize| -> Result<f32> {
            let mut method = case.build_with(0, NormKind::Group, 0.0)?;
            let views = batches(&*method, 1)?;
            let out = backward(&mut *method, &views, &at(0), micro)?;
            ensure!(out.gradients.is_some(), "{name} has no gradients");
            Ok(out.output.loss.to_scalar()?)
        };
        let (whole, parts) = (run(0)?, run(2)?);
        ensure!((whole - parts).abs() <= 1e-5 * whole.abs().max(1.0), "{name}: {parts} in parts, {whole} whole");
    }
    Ok(())
}

/// After a step each weight of the teacher is m times itself and 1 − m times the student's, m on its way from start to end; the
/// teacher has no predictor.
#[test]
fn teachers_follow_by_their_momentum() -> Result<()> {
    for_every_case(|case| {
        let mut method = case.build(0)?;
        if method.teacher().is_none() {
            return Ok(());
        }
        let mut settings = case.settings.clone();
        settings.extend("momentum = 0.8\nmomentum_end = 0.9".parse::<Table>()?);
        method = Case { spec: case.spec, encoder: case.encoder, settings }.build(0)?;
        for p in method.student().trainable() {
            p.set(&(p.value() + 1.0)?)?;
        }
        let before: BTreeMap<String, Vec<f32>> = method
            .teacher()
            .context("teacher")?
            .trainable()
            .map(|p| Ok((p.name().to_string(), flat(p.value())?)))
            .collect::<Result<_>>()?;
        ensure!(before.keys().all(|name| !name.starts_with("predictor")), "the teacher has a predictor");
        // Half of all steps: half the way.
        method.after_step(&at(10))?;
        for p in method.teacher().context("teacher")?.trainable() {
            let student = flat(method.student().get(p.name()).context("student")?.value())?;
            for ((&now, &old), &s) in flat(p.value())?.iter().zip(&before[p.name()]).zip(&student) {
                let want = 0.85 * old + 0.15 * s;
                ensure!((now - want).abs() < 1e-5, "{}: {now}, expected {want}", p.name());
            }
        }
        Ok(())
    })
}

/// SwAV's prototypes stay for the steps that were asked for, and have length 1 after each.
#[test]
fn swav_keeps_its_prototypes_for_a_while_and_their_length_for_ever() -> Result<()> {
    let mut case = cases()?.into_iter().find(|c| c.spec.name == "swav").context("swav")?;
    case.settings.insert("freeze_prototypes_steps".into(), Value::Integer(2));
    let (mut method, mut optimizer) = case.start(0)?;
    let prototypes = |m: &dyn Method| flat(m.student().get("prototypes.weight").expect("prototypes").value());
    let start = prototypes(&*method)?;
    for step in 0..4 {
        case.step(&mut *method, &mut optimizer, step, step as u32)?;
        let now = prototypes(&*method)?;
        let still = now.iter().zip(&start).all(|(a, b)| (a - b).abs() < 1e-6);
        ensure!(still == (step < 2), "step {step}");
        ensure!(now.chunks_exact(16).all(|p| (p.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5), "step {step}");
    }
    Ok(())
}

/// MoCo v3's patch projection stays at its start where that was asked for.
#[test]
fn moco_v3_keeps_its_patch_projection() -> Result<()> {
    let mut case = cases()?.into_iter().find(|c| c.spec.name == "moco_v3" && c.encoder == "vit_mini").context("moco_v3")?;
    for frozen in [true, false] {
        case.settings.insert("freeze_patch_embed".into(), Value::Boolean(frozen));
        let (mut method, mut optimizer) = case.start(0)?;
        let weights = |m: &dyn Method| flat(m.student().get("backbone.patch_embed.proj.weight").expect("weights").value());
        let start = weights(&*method)?;
        // A layer with 4 × 4 patches of, by rule, three channels into 192 elements.
        let bound = (6.0f32 / (3.0 * 16.0 + 192.0)).sqrt();
        ensure!(!frozen || start.iter().all(|w| w.abs() <= bound) && start.iter().any(|w| w.abs() > 0.9 * bound), "{bound}");
        case.step(&mut *method, &mut optimizer, 0, 1)?;
        ensure!((weights(&*method)? == start) == frozen, "frozen: {frozen}");
    }
    Ok(())
}

/// Batch norm's running statistics take up a batch in parts once, not twice.
#[test]
fn running_statistics_take_up_parts_once() -> Result<()> {
    let case = cases()?.into_iter().find(|c| c.spec.name == "simclr").context("simclr")?;
    let mut method = case.build(0)?;
    let views = batches(&*method, 1)?;
    backward(&mut *method, &views, &at(0), 3)?;
    let other = case.build(0)?;
    for first in [0, 3] {
        let part: Vec<Tensor> = views.iter().map(|v| Ok(v.narrow(0, first, 3)?)).collect::<Result<_>>()?;
        other.student_outputs(&part, 0, &at(0).mode())?;
    }
    let backbone = |m: &dyn Method| values(&m.student().sub_store("backbone"));
    ensure!(backbone(&*method)? == backbone(&*other)?, "running statistics differ from those of one pass over the parts");
    Ok(())
}

/// A method with a small network and small settings.
struct Case {
    spec: &'static MethodSpec,
    encoder: &'static str,
    settings: Table,
}

impl Case {
    fn build(&self, seed: u64) -> Result<Box<dyn Method>> {
        self.build_with(seed, NormKind::Batch, 0.0)
    }

    /// Whether the method cannot train this encoder.
    fn unfit(&self) -> bool {
        self.spec.encoder == EncoderNeed::Vit && !self.encoder.starts_with("vit")
    }

    fn build_with(&self, seed: u64, norm: NormKind, drop_path: f64) -> Result<Box<dyn Method>> {
        let context = MethodContext {
            encoder: encoder(self.encoder)?,
            encoder_config: EncoderConfig { channels: 1, image_size: 16, norm, drop_path, ..EncoderConfig::default() },
            normalize: Normalize { mean: vec![0.5], std: vec![0.25] },
            batch_size: BATCH,
            epochs: 4,
            steps_per_epoch: 5,
            seed,
            device: Device::Cpu,
        };
        Ok((self.spec.build)(&self.settings, &context)?)
    }

    fn start(&self, seed: u64) -> Result<(Box<dyn Method>, Optimizer)> {
        let method = self.build(seed)?;
        let config = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        let optimizer = Optimizer::new(&config, method.student())?;
        Ok((method, optimizer))
    }

    /// One whole step on batch number `batch`.
    fn step(&self, method: &mut dyn Method, optimizer: &mut Optimizer, step: u64, batch: u32) -> Result<LossOutput> {
        let at = at(step);
        let views = batches(method, batch)?;
        let out = method.loss(&views, &at)?;
        let store = out.loss.backward()?;
        let mut gradients = Gradients::collect(&store, method.student())?;
        method.adjust_gradients(&mut gradients, &at)?;
        optimizer.step(&gradients, 0.05, 0.0)?;
        method.after_step(&at)?;
        Ok(out)
    }
}

fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for spec in METHODS {
        let small: Table = match spec.name {
            "simclr" => "projection_dim = 16".parse()?,
            "dcl" | "dclw" => "projection_dim = 16\ntemperature = 0.3".parse()?,
            "moco_v2" => "projection_dim = 16\nqueue_size = 4096\nnorm_groups = 3\nmomentum = 0.9\nmomentum_end = -1.0".parse()?,
            "nnclr" => {
                "hidden_dim = 32\nprojection_dim = 16\npredictor_hidden_dim = 32\nqueue_size = 16\ntemperature = 0.5".parse()?
            }
            "simsiam" => "hidden_dim = 32\nprojection_dim = 32\npredictor_hidden_dim = 8".parse()?,
            "barlow_twins" | "byol" | "moco_v3" | "vicreg" => "hidden_dim = 32\nprojection_dim = 16".parse()?,
            "swav" => {
                "hidden_dim = 32\nprojection_dim = 16\nprototypes = 24\nlocal_views = 2\nqueue_size = 12\nqueue_start_epoch = 0\n\
                 freeze_prototypes_steps = 0\nviews = { local_scale_min = 0.2 }"
                    .parse()?
            }
            "lejepa" => "hidden_dim = 32\nprojection_dim = 16\nslices = 32\nlocal_views = 2\nlambda = 0.2".parse()?,
            "mae" => "decoder_dim = 32\ndecoder_depth = 1\ndecoder_heads = 2\nmask_ratio = 0.5".parse()?,
            "ibot" | "dinov2" => {
                "hidden_dim = 32\nbottleneck_dim = 16\nout_dim = 24\nlocal_views = 2\nmask_ratio_min = 0.3\nfreeze_last_layer_epochs = 0"
                    .parse()?
            }
            "dino" => "hidden_dim = 32\nbottleneck_dim = 16\nout_dim = 24\nlocal_views = 2".parse()?,
            _ => Table::new(),
        };
        if spec.encoder == EncoderNeed::Any {
            cases.push(Case { spec, encoder: "resnet_mini", settings: small.clone() });
        }
        if matches!(spec.name, "dino" | "moco_v3" | "mae" | "ibot" | "dinov2") {
            cases.push(Case { spec, encoder: "vit_mini", settings: small });
        }
    }
    Ok(cases)
}

fn for_every_case(mut check: impl FnMut(&Case) -> Result<()>) -> Result<()> {
    for case in cases()? {
        check(&case).with_context(|| format!("{} with {}", case.spec.name, case.encoder))?;
    }
    Ok(())
}

/// Step `step` of 20; the first epoch, in which DINO's last layer is frozen, has 5.
fn at(step: u64) -> At {
    At { step, epoch: step / 5, steps_per_epoch: 5, epochs: 4, seed: 0, precision: Precision::F32 }
}

/// One batch a view of the plan: different blobs for different images, the same for one image's views up to noise.
fn batches(method: &dyn Method, number: u32) -> Result<Vec<Tensor>> {
    let plan = method.views();
    let mut views = Vec::new();
    for v in 0..plan.view_count() {
        let size = plan.view(v).size;
        let noise = procedural("cls_token", &[BATCH * size * size], 1000 * number + v as u32);
        let mut values = Vec::with_capacity(noise.len());
        for (i, n) in noise.into_iter().enumerate() {
            let (image, y, x) = (i / (size * size), i / size % size, i % size);
            let wave = ((image + 1) as f32 * x as f32 / size as f32 * 3.0).sin() + (image as f32 - y as f32 / size as f32).cos();
            values.push(wave + 5.0 * n + number as f32 * 0.1);
        }
        views.push(Tensor::from_vec(values, (BATCH, plan.channels, size, size), &Device::Cpu)?);
    }
    Ok(views)
}

fn bits(out: &LossOutput) -> Result<u32> {
    Ok(out.loss.to_scalar::<f32>()?.to_bits())
}

fn values(store: &ParamStore) -> Result<Vec<(String, Vec<u32>)>> {
    store.iter().map(|p| Ok((p.name().to_string(), flat(p.value())?.into_iter().map(f32::to_bits).collect()))).collect()
}

fn flat(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1::<f32>()?)
}

fn finite(t: &Tensor) -> Result<bool> {
    Ok(flat(t)?.iter().all(|v| v.is_finite()))
}
