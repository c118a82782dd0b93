//! What is said where a step does not fit into a CUDA device's memory: the sizes that it names do fit. A program of its own, since it leaves others
//! no memory. Where no device opens, the test says so and passes.

#![cfg(feature = "cuda")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use toml::{Table, Value};
use twinsight_kernels::device_memory;
use twinsight_train::observe::Silent;
use twinsight_train::{Layer, Outcome, RunConfig, Trainer};

const BATCH: usize = 256;

fn run(place: &Path, device: &str, size: usize, batch: usize, micro_batch: usize) -> Result<Outcome> {
    let text = format!(
        "method = 'simclr'\nencoder = 'resnet_mini'\ndevice = '{device}'\nbatch = {batch}\nmicro_batch = {micro_batch}\nepochs = 1\n\
         [eval]\nbaselines = false\nevery = 1000\nbatch = 16\n\
         [data]\nlabels = 'none'\nimage_size = {size}\nheld_out = 0.0\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
    );
    let mut table: Table = text.parse()?;
    let images = place.join("images");
    table["data"].as_table_mut().context("data")?.insert("path".into(), Value::from(images.display().to_string()));
    let out = place.join(format!("{batch}-{micro_batch}"));
    let mut trainer = Trainer::create(RunConfig::resolve(&[Layer::new("test", table)])?, &out)?;
    Ok(trainer.run(&mut Silent, &AtomicBool::new(false))?)
}

/// The number behind these words.
fn number(text: &str, words: &str) -> Result<usize> {
    let rest = text.split_once(words).with_context(|| format!("`{words}` is not in: {text}"))?.1;
    Ok(rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse()?)
}

/// Takes all memory but so many bytes.
fn ballast(device: &Device, left: u64) -> Result<Vec<Tensor>> {
    let mut held = Vec::new();
    loop {
        let free = device_memory(device).context("the driver does not say")?.free;
        if free <= left {
            return Ok(held);
        }
        held.push(Tensor::zeros((free - left).clamp(1 << 20, 1 << 30) as usize, DType::U8, device)?);
    }
}

#[test]
fn sizes_that_are_named_fit() -> Result<()> {
    let number_of = twinsight_test_support::test_device()?.unwrap_or(0);
    let device = match twinsight_kernels::open_cuda(number_of) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: no CUDA device opens ({error})");
            return Ok(());
        }
    };
    let (place, name) = (tempfile::tempdir()?, format!("cuda:{number_of}"));
    let images = place.path().join("images");
    std::fs::create_dir_all(&images)?;
    for i in 0..BATCH as u32 {
        image::RgbImage::from_fn(18, 18, |x, y| image::Rgb([(x * i % 256) as u8, (y * 9) as u8, (i * 5 % 256) as u8]))
            .save(images.join(format!("{i:03}.png")))?;
    }
    // A large device's libraries take some hundred MiB for themselves.
    let total = device_memory(&device).context("the driver does not say")?.total;
    let (left, size) = if total <= 4 << 30 { (60 << 20, 16) } else { (1 << 30, 64) };
    // They take it when they are first used.
    ensure!(matches!(run(place.path(), &name, size, 8, 0)?, Outcome::Finished(_)), "with all the memory");
    let _held = ballast(&device, left)?;
    let Err(error) = run(place.path(), &name, size, BATCH, 0) else { bail!("{BATCH} images fit into {left} bytes") };
    let text = error.to_string();
    let (batch, part) = (number(&text, "would fit is about ")?, number(&text, "--micro-batch ")?);
    println!("{text}");
    ensure!(batch < BATCH && part < BATCH && batch >= 16 && part >= 16, "{text}");
    ensure!(matches!(run(place.path(), &name, size, batch, 0)?, Outcome::Finished(_)), "a batch of {batch}");
    ensure!(matches!(run(place.path(), &name, size, BATCH, part)?, Outcome::Finished(_)), "{part} at a time");
    Ok(())
}
