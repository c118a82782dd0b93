//! Runs that are made to collapse are recognised, and the same runs left alone are not.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use twinsight_augment::Normalize;
use twinsight_encoders::{EncoderConfig, encoder};
use twinsight_nn::{Optimizer, OptimizerConfig, Precision};
use twinsight_ssl_methods::{At, Dino, DinoConfig, Method, MethodContext, SimSiam, SimSiamConfig, backward};
use twinsight_train::Diagnosis;
use twinsight_train::health::{Health, Watch};

/// Images a batch.
const BATCH: usize = 32;
/// Side of an image in pixels.
const SIDE: usize = 16;

#[test]
fn simsiam_without_its_predictor_collapses_and_is_found_out() -> Result<()> {
    let run = |without_predictor| -> Result<Option<Diagnosis>> {
        let config = SimSiamConfig {
            hidden_dim: 64,
            projection_dim: 64,
            projector_layers: 2,
            predictor_hidden_dim: 16,
            without_predictor,
            without_last_norm: true,
            ..SimSiamConfig::default()
        };
        train(&mut SimSiam::new(&config, &context()?)?, "simsiam", 0.4, 150)
    };
    let found = run(true)?.context("the collapse was not noticed")?.to_string();
    ensure!(found.contains("collapsed") || found.contains("on a line"), "{found}");
    ensure!(found.contains("simsiam") && found.contains("predictor_hidden_dim"), "{found}");
    ensure!(run(false)?.is_none(), "a run that did not collapse was stopped");
    Ok(())
}

#[test]
fn dino_without_centring_collapses_and_is_found_out() -> Result<()> {
    let run = |without_centering| -> Result<Option<Diagnosis>> {
        let config = DinoConfig {
            hidden_dim: 64,
            bottleneck_dim: 16,
            out_dim: 32,
            use_bn_in_head: true,
            freeze_last_layer_epochs: 0,
            warmup_teacher_epochs: 0,
            teacher_temperature: 0.04,
            momentum: 0.9,
            center_momentum: 0.9,
            local_views: 2,
            without_centering,
            ..DinoConfig::default()
        };
        train(&mut Dino::new(&config, &context()?)?, "dino", 0.03, 150)
    };
    let found = run(true)?.context("the collapse was not noticed")?.to_string();
    ensure!(found.contains("dino") && found.contains("teacher_temperature"), "{found}");
    ensure!(run(false)?.is_none(), "a run that did not collapse was stopped");
    Ok(())
}

fn context() -> Result<MethodContext> {
    Ok(MethodContext {
        encoder: encoder("resnet_mini")?,
        encoder_config: EncoderConfig { channels: 1, image_size: SIDE, ..EncoderConfig::default() },
        normalize: Normalize { mean: vec![0.5], std: vec![0.25] },
        batch_size: BATCH,
        epochs: 10,
        steps_per_epoch: 15,
        seed: 0,
        device: Device::Cpu,
    })
}

/// Trains for `steps` steps and gives what the watch finds, looking at every fifth.
fn train(method: &mut dyn Method, name: &str, rate: f64, steps: u64) -> Result<Option<Diagnosis>> {
    let config = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(&config, method.student())?;
    let mut watch = Watch::default();
    for step in 0..steps {
        let at = At { step, epoch: step / 15, steps_per_epoch: 15, epochs: 10, seed: 0, precision: Precision::F32 };
        let batch = views(method, step)?;
        let out = backward(method, &batch, &at, 0)?;
        let mut gradients = out.gradients.context("a loss that is not finite")?;
        method.adjust_gradients(&mut gradients, &at)?;
        optimizer.step(&gradients, rate, 0.0)?;
        method.after_step(&at)?;
        if step % 5 == 4
            && let Some(found) = watch.health(step, &Health::of(&out.output)?, name)
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Gratings, one of its own direction and width for each image, shifted from view to view.
fn views(method: &dyn Method, step: u64) -> Result<Vec<Tensor>> {
    let plan = method.views();
    let mut views = Vec::new();
    for v in 0..plan.view_count() {
        let side = plan.view(v).size;
        let mut values = Vec::with_capacity(BATCH * side * side);
        for image in 0..BATCH {
            let id = (step * BATCH as u64 + image as u64) as f32;
            let (angle, width) = (id * 2.399, 1.0 + (id * 0.37).sin().abs() * 3.0);
            let shift = (id * 1.7 + v as f32 * 2.1).sin();
            for y in 0..side {
                for x in 0..side {
                    let along = (x as f32 * angle.cos() + y as f32 * angle.sin()) / width;
                    // Noise that no two views share: to agree on everything, embeddings must say nothing.
                    let noise = ((x * 13 + y * 79) as f32 * 0.9898 + id * 37.7 + v as f32 * 11.1).sin() * 43_758.547;
                    values.push((along + shift).sin() + 2.0 * (noise - noise.floor() - 0.5));
                }
            }
        }
        views.push(Tensor::from_vec(values, (BATCH, 1, side, side), &Device::Cpu)?);
    }
    Ok(views)
}
