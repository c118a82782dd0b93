//! Runs on a CUDA device against the processor's: every method's first losses, bfloat16 against `f32`, and a run that goes on after a stop. Where
//! no device opens, the tests say so and pass.

#![cfg(feature = "cuda")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
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

/// A run of a few steps of 8 images, with a learning rate at which rounding does not grow from step to step.
struct Run<'a> {
    place: &'a Path,
    method: &'a str,
    encoder: &'a str,
    device: &'a str,
    precision: &'a str,
    epochs: u32,
}

impl Run<'_> {
    fn trainer(&self, name: &str) -> Result<Trainer> {
        let images = self.place.join("images");
        if !images.exists() {
            pictures(&images, 32)?;
        }
        let text = format!(
            "method = '{}'\nencoder = '{}'\ndevice = '{}'\nbatch = 8\nepochs = {}\nseed = 3\n[network]\nprecision = '{}'\n\
             [log]\nevery = 1\non_collapse = 'warn'\n[schedule]\nlr = 0.0001\n[eval]\nbaselines = false\nevery = 1000\n\
             [data]\nlabels = 'none'\nimage_size = 16\nheld_out = 0.0\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n",
            self.method, self.encoder, self.device, self.epochs, self.precision
        );
        let mut table: Table = text.parse()?;
        table["data"].as_table_mut().context("data")?.insert("path".into(), Value::from(images.display().to_string()));
        Ok(Trainer::create(RunConfig::resolve(&[Layer::new("test", table)])?, &self.place.join(name))?)
    }

    /// The losses of all steps.
    fn losses(&self, name: &str) -> Result<Vec<f64>> {
        let outcome = self.trainer(name)?.run(&mut Silent, &AtomicBool::new(false))?;
        ensure!(matches!(outcome, Outcome::Finished(_)), "{name}: {outcome:?}");
        losses(&self.place.join(name))
    }
}

/// As the run's metrics have them, the last of each step.
fn losses(run: &Path) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>()?;
    let steps = lines.iter().filter(|line| line["event"] == "step");
    let all = steps.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)));
    Ok(all.collect::<std::collections::BTreeMap<_, _>>().into_values().collect())
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
fn every_methods_first_losses_are_the_processors() -> Result<()> {
    let Some(device) = device()? else { return Ok(()) };
    let place = tempfile::tempdir()?;
    for spec in METHODS {
        let (method, encoder) = (spec.name, encoder(spec));
        let run = |device: &str, precision: &str| {
            let run = Run { place: place.path(), method, encoder, device, precision, epochs: 1 };
            run.losses(&format!("{method}-{}-{precision}", device.replace(':', "-")))
        };
        let (want, got, half) = (run("cpu", "f32")?, run(&device, "f32")?, run(&device, "bf16")?);
        near(&format!("{method} with {encoder}"), &got, &want, 1e-3)?;
        near(&format!("{method} with {encoder}, bfloat16"), &half, &want, 3e-2)?;
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
fn twenty_losses_agree_and_a_run_goes_on_after_a_stop() -> Result<()> {
    let Some(device) = device()? else { return Ok(()) };
    let place = tempfile::tempdir()?;
    for (method, encoder) in [("simclr", "resnet_mini"), ("dino", "vit_mini")] {
        let run = |device| Run { place: place.path(), method, encoder, device, precision: "f32", epochs: 5 };
        let want = run("cpu").losses(&format!("{method}-cpu"))?;
        ensure!(want.len() == 20, "{} steps", want.len());
        near(&format!("{method} with {encoder}, 20 steps"), &run(&device).losses(&format!("{method}-device"))?, &want, 1e-2)?;
        let (name, stop) = (format!("{method}-stopped"), AtomicBool::new(false));
        let outcome = run(&device).trainer(&name)?.run(&mut Stopper(7, &stop), &stop)?;
        ensure!(matches!(outcome, Outcome::Interrupted { step: 7, .. }), "{outcome:?}");
        let folder = place.path().join(&name);
        let mut resumed = Trainer::resume(&folder, None, None)?;
        let outcome = resumed.run(&mut Silent, &AtomicBool::new(false))?;
        ensure!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
        near(&format!("{method} with {encoder}, resumed"), &losses(&folder)?, &want, 1e-2)?;
    }
    Ok(())
}
