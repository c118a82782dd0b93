//! Runs on a CUDA device against the processor's: every method's first losses and what it learned in them, bfloat16 against `f32`, and a run that
//! goes on after a stop. Where no device opens, the tests say so and pass.

#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use toml::{Table, Value};
use twinsight_ssl_methods::{EncoderNeed, METHODS, MethodSpec};
use twinsight_train::observe::{Event, Observer, Silent};
use twinsight_train::{Layer, Outcome, RunConfig, Trainer};

/// The name of the device, or none where it does not open.
fn device() -> Result<Option<String>> {
    let number = twinsight_test_support::test_device()?.unwrap_or(0);
    match twinsight_kernels::open_cuda(number) {
        Ok(_) => Ok(Some(format!("cuda:{number}"))),
        Err(error) => {
            println!("skipped: no CUDA device opens ({error})");
            Ok(None)
        }
    }
}

/// Pictures with blobs of colours at places of their own.
fn pictures(folder: &Path, count: u32) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for i in 0..count {
        let picture = image::RgbImage::from_fn(24, 20, |x, y| {
            let level = |k: u32| {
                let (cx, cy) = ((7 * i + 5 * k) % 24, (3 * i + 11 * k) % 20);
                let far = x.abs_diff(cx).pow(2) + y.abs_diff(cy).pow(2);
                (240.0 * (-f64::from(far) / f64::from(20 + i % 7 * 9)).exp()) as u8 + ((x * 31 + y * 17 + i) % 9) as u8
            };
            image::Rgb([level(0), level(1), level(2)])
        });
        picture.save(folder.join(format!("{i:03}.png")))?;
    }
    Ok(())
}

/// A learning rate at which rounding does not grow from step to step.
const RATE: f64 = 0.001;

/// One that leaves the weights as they begin.
const NOTHING: f64 = 1e-12;

/// A run of a few steps of 8 images.
#[derive(Clone, Copy)]
struct Run<'a> {
    place: &'a Path,
    method: &'a str,
    encoder: &'a str,
    device: &'a str,
    precision: &'a str,
    epochs: u32,
    rate: f64,
    /// Every how many steps a loss is looked at; in between the host runs ahead of the device.
    every: u32,
}

/// What a run gave: the losses of all steps, and the encoder's parameters at the end.
struct Done {
    losses: Vec<f64>,
    encoder: BTreeMap<String, Vec<f32>>,
}

impl Run<'_> {
    fn trainer(&self, name: &str) -> Result<Trainer> {
        let images = self.place.join("images");
        if !images.exists() {
            pictures(&images, 32)?;
        }
        let text = format!(
            "method = '{}'\nencoder = '{}'\ndevice = '{}'\nbatch = 8\nepochs = {}\nseed = 3\n[network]\nprecision = '{}'\n\
             [log]\nevery = {}\non_collapse = 'warn'\n[schedule]\nlr = {}\n[eval]\nbaselines = false\nevery = 1000\n\
             [data]\nlabels = 'none'\nimage_size = 16\nheld_out = 0.0\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n",
            self.method, self.encoder, self.device, self.epochs, self.precision, self.every, self.rate
        );
        let mut table: Table = text.parse()?;
        table["data"].as_table_mut().context("data")?.insert("path".into(), Value::from(images.display().to_string()));
        Ok(Trainer::create(RunConfig::resolve(&[Layer::new("test", table)])?, &self.place.join(name))?)
    }

    fn done(&self, name: &str) -> Result<Done> {
        let outcome = self.trainer(name)?.run(&mut Silent, &AtomicBool::new(false))?;
        ensure!(matches!(outcome, Outcome::Finished(_)), "{name}: {outcome:?}");
        done(&self.place.join(name))
    }
}

fn done(run: &Path) -> Result<Done> {
    let tensors = candle_core::safetensors::load(run.join("encoder.safetensors"), &Device::Cpu)?;
    // Running statistics change without being learned.
    let learned = tensors.into_iter().filter(|(name, t)| !name.contains("running_") && t.dtype() == DType::F32);
    let encoder = learned.map(|(name, t)| Ok((name, t.flatten_all()?.to_vec1()?))).collect::<Result<_>>()?;
    Ok(Done { losses: losses(run)?, encoder })
}

/// How far the parameters of `got` are from those of `want`, as a share of how far these came from `start`.
fn astray(got: &Done, want: &Done, start: &Done) -> Result<f64> {
    let apart = |a: &Done, b: &Done| -> Result<f64> {
        ensure!(a.encoder.len() == b.encoder.len() && !a.encoder.is_empty(), "other parameters");
        let mut sum = 0.0;
        for (name, values) in &a.encoder {
            let other = b.encoder.get(name).with_context(|| name.clone())?;
            sum += values.iter().zip(other).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        }
        Ok(sum.sqrt())
    };
    let way = apart(want, start)?;
    ensure!(way > 0.0, "nothing was learned");
    Ok(apart(got, want)? / way)
}

/// As the run's metrics have them, the last of each step.
fn losses(run: &Path) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>()?;
    let steps = lines.iter().filter(|line| line["event"] == "step");
    let all = steps.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)));
    Ok(all.collect::<BTreeMap<_, _>>().into_values().collect())
}

fn near(what: &str, got: &[f64], want: &[f64], tolerance: f64) -> Result<()> {
    ensure!(got.len() == want.len() && !want.is_empty(), "{what}: {} losses for {}", got.len(), want.len());
    // Losses near zero are differences of larger numbers.
    let far = got
        .iter()
        .zip(want)
        .map(|(g, w)| (g - w).abs() / w.abs().max(0.1))
        .fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
    ensure!(far <= tolerance, "{what}: losses are up to {far:e} apart, {tolerance:e} allowed: {got:?} for {want:?}");
    Ok(())
}

/// A transformer where a method needs one or was made for them.
fn encoder(spec: &MethodSpec) -> &'static str {
    match spec.encoder == EncoderNeed::Vit || ["moco_v3", "dino", "lejepa"].contains(&spec.name) {
        true => "vit_mini",
        false => "resnet_mini",
    }
}

#[test]
fn every_method_begins_as_on_the_processor() -> Result<()> {
    let Some(device) = device()? else { return Ok(()) };
    let place = tempfile::tempdir()?;
    for spec in METHODS {
        let (method, encoder) = (spec.name, encoder(spec));
        let run = |device: &str, precision: &str, rate: f64| {
            let run = Run { place: place.path(), method, encoder, device, precision, epochs: 1, rate, every: 1 };
            run.done(&format!("{method}-{}-{precision}-{rate:e}", device.replace(':', "-")))
        };
        let start = run("cpu", "f32", NOTHING)?;
        let (want, got, half) = (run("cpu", "f32", RATE)?, run(&device, "f32", RATE)?, run(&device, "bf16", RATE)?);
        near(&format!("{method} with {encoder}"), &got.losses, &want.losses, 1e-3)?;
        let (off, half_off) = (astray(&got, &want, &start)?, astray(&half, &want, &start)?);
        println!("{method} with {encoder}: weights {off:.1e} of their way apart, with bfloat16 {half_off:.1e}");
        // AdamW's first steps go by the sign of gradients that are nothing but rounding, such as those to the bias of keys.
        ensure!(off <= 0.1, "{method} with {encoder}: weights went {off:e} of their way astray");
        // PyTorch's gradients of a ResNet-18 with autocast to bfloat16 are 0.32 of their norm from those with f32; updates by their sign, and by a
        // neighbour that is another, go further. Without any update it would be 1.
        ensure!(half_off <= 0.75, "{method} with {encoder}, bfloat16: weights went {half_off:e} of their way astray");
        // Single losses go ways of their own where a neighbour or a prototype is another.
        let mean = |losses: &[f64]| vec![losses.iter().sum::<f64>() / losses.len() as f64];
        ensure!(half.losses.len() == want.losses.len(), "{method}, bfloat16: {} losses", half.losses.len());
        near(&format!("{method} with {encoder}, bfloat16, by their mean"), &mean(&half.losses), &mean(&want.losses), 2e-2)?;
    }
    Ok(())
}

/// Asks to stop at a step.
struct Stopper<'a>(u64, &'a AtomicBool);

impl Observer for Stopper<'_> {
    fn event(&mut self, event: &Event) {
        if let Event::Step(step) = event
            && step.step == self.0
        {
            self.1.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn twenty_steps_agree_and_a_run_goes_on_after_a_stop() -> Result<()> {
    let Some(device) = device()? else { return Ok(()) };
    let place = tempfile::tempdir()?;
    for (method, encoder) in [("simclr", "resnet_mini"), ("dino", "vit_mini")] {
        let run =
            |device, rate| Run { place: place.path(), method, encoder, device, precision: "f32", epochs: 5, rate, every: 1 };
        let start = run("cpu", NOTHING).done(&format!("{method}-start"))?;
        let want = run("cpu", RATE).done(&format!("{method}-cpu"))?;
        ensure!(want.losses.len() == 20, "{} steps", want.losses.len());
        let what = format!("{method} with {encoder}");
        let check = |what: &str, got: &Done| {
            near(what, &got.losses, &want.losses, 1e-2)?;
            let off = astray(got, &want, &start)?;
            println!("{what}: weights {off:.1e} of their way apart");
            ensure!(off <= 0.1, "{what}: weights went {off:e} of their way astray");
            Ok::<(), anyhow::Error>(())
        };
        check(&what, &run(&device, RATE).done(&format!("{method}-device"))?)?;
        let seldom = Run { every: 10, ..run(&device, RATE) }.done(&format!("{method}-seldom"))?;
        let off = astray(&seldom, &want, &start)?;
        ensure!(off <= 0.1, "{what}, looked at in every tenth step: weights went {off:e} of their way astray");
        let (name, stop) = (format!("{method}-stopped"), AtomicBool::new(false));
        let outcome = run(&device, RATE).trainer(&name)?.run(&mut Stopper(7, &stop), &stop)?;
        ensure!(matches!(outcome, Outcome::Interrupted { step: 7, .. }), "{outcome:?}");
        let folder = place.path().join(&name);
        let outcome = Trainer::resume(&folder, None, None)?.run(&mut Silent, &AtomicBool::new(false))?;
        ensure!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
        check(&format!("{what}, resumed"), &done(&folder)?)?;
    }
    Ok(())
}
