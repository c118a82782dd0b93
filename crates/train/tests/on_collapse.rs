//! A run that collapses is stopped with its figures saved, or warned of and gone on with, as was asked; and the watch survives a resume.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};
use twinsight_train::observe::{Event, Observer};
use twinsight_train::{Error, Layer, Outcome, RunConfig, Trainer};

/// Twelve times the same gray: whatever is learned from it is one point.
fn pictures(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for i in 0..12 {
        image::RgbImage::from_pixel(20, 16, image::Rgb([90, 90, 90])).save(folder.join(format!("{i:02}.png")))?;
    }
    Ok(())
}

fn trainer(place: &Path, name: &str, on_collapse: &str) -> Result<Trainer> {
    let images = place.join("images");
    pictures(&images)?;
    let text = format!(
        "method = 'vicreg'\nencoder = 'resnet_mini'\nbatch = 4\nepochs = 5\n[log]\nevery = 1\non_collapse = '{on_collapse}'\n\
         [data]\nlabels = 'none'\nimage_size = 16\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n\
         [options]\nhidden_dim = 32\nprojection_dim = 16\nvariance = 0.0\ncovariance = 0.0\n\
         views = {{ jitter_p = 0.0, gray_p = 0.0 }}\n"
    );
    let mut table: Table = text.parse()?;
    table["data"].as_table_mut().context("data")?.insert("path".into(), Value::from(images.display().to_string()));
    Ok(Trainer::create(RunConfig::resolve(&[Layer::new("test", table)])?, &place.join(name))?)
}

/// Keeps warnings, and asks to stop at a step.
struct Notes<'a> {
    warnings: Vec<String>,
    stop_at: u64,
    stop: &'a AtomicBool,
}

impl Observer for Notes<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Note(text) if text.starts_with("warning") => self.warnings.push(text.clone()),
            Event::Step(step) if step.step == self.stop_at => self.stop.store(true, Ordering::SeqCst),
            _ => {}
        }
    }
}

#[test]
fn stop_ends_the_run_and_keeps_what_it_was() -> Result<()> {
    let place = tempfile::tempdir()?;
    let stop = AtomicBool::new(false);
    let mut notes = Notes { warnings: Vec::new(), stop_at: 0, stop: &stop };
    let Err(Error::Diverged(found)) = trainer(place.path(), "run", "stop")?.run(&mut notes, &stop) else {
        bail!("the collapse was not noticed")
    };
    ensure!(found.to_string().contains("collapsed"), "{found}");
    let folder = place.path().join("run");
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl"))?;
    ensure!(metrics.lines().any(|l| l.contains("\"event\":\"collapsed\"")), "{metrics}");
    ensure!(folder.join("checkpoint.safetensors").is_file(), "no checkpoint was left");
    Ok(())
}

#[test]
fn warn_goes_on_to_the_end() -> Result<()> {
    let place = tempfile::tempdir()?;
    let stop = AtomicBool::new(false);
    let mut notes = Notes { warnings: Vec::new(), stop_at: 0, stop: &stop };
    let outcome = trainer(place.path(), "run", "warn")?.run(&mut notes, &stop)?;
    ensure!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
    ensure!(notes.warnings.iter().any(|w| w.contains("collapsed") && w.contains("options.variance")), "{:?}", notes.warnings);
    Ok(())
}

#[test]
fn what_was_counted_before_a_resume_counts_after_it() -> Result<()> {
    let place = tempfile::tempdir()?;
    // Five measurements in a row make a collapse: three before the stop, two after.
    let stop = AtomicBool::new(false);
    let mut notes = Notes { warnings: Vec::new(), stop_at: 3, stop: &stop };
    let outcome = trainer(place.path(), "run", "stop")?.run(&mut notes, &stop)?;
    ensure!(matches!(outcome, Outcome::Interrupted { step: 3, .. }), "{outcome:?}");
    let stop = AtomicBool::new(false);
    let mut notes = Notes { warnings: Vec::new(), stop_at: 0, stop: &stop };
    let mut resumed = Trainer::resume(&place.path().join("run"), None, None)?;
    let Err(Error::Diverged(found)) = resumed.run(&mut notes, &stop) else { bail!("the collapse was not noticed") };
    ensure!(found.to_string().contains("step 4"), "{found}");
    Ok(())
}
