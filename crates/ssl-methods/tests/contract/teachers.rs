//! What holds between steps: teachers that follow, layers and prototypes that are kept, statistics that are taken up once.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use toml::{Table, Value};
use twinsight_nn::{Gradients, NormKind};
use twinsight_ssl_methods::{At, Method, backward};

use crate::cases::{Case, at, batches, cases, flat, for_every_case, values};

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
