//! Fine-tuning on a CUDA device against the processor's. Where no device opens, the test says so and passes.

#![cfg(feature = "cuda")]

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::Device;
use twinsight_augment::{Normalize, ViewPlan};
use twinsight_datasets::{Dataset, PackedImages};
use twinsight_encoders::{EncoderConfig, encoder, save_encoder};
use twinsight_knn::top1;
use twinsight_nn::Builder;
use twinsight_train::finetune::{Depth, FineTuneConfig, fine_tune};

/// 96 images of two classes that differ in brightness, with noise.
fn images() -> Result<Arc<dyn Dataset>> {
    let labels: Vec<u32> = (0..96).map(|i| i % 2).collect();
    let level = |i: usize, p: usize| ((i * 7919 + p * 104_729) % 251) as u8 / if i % 2 == 1 { 1 } else { 3 };
    let pixels = (0..96).flat_map(|i| (0..16 * 16 * 3).map(move |p| level(i, p))).collect();
    let classes = vec!["dark".to_string(), "bright".to_string()];
    Ok(Arc::new(PackedImages::new("x", pixels, (16, 16, 3), Some(labels), classes)?))
}

#[test]
fn a_device_learns_what_the_processor_learns() -> Result<()> {
    let device = match twinsight_kernels::open_cuda(twinsight_test_support::test_device()?.unwrap_or(0)) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: no CUDA device opens ({error})");
            return Ok(());
        }
    };
    let (dir, images) = (tempfile::tempdir()?, images()?);
    let plan = ViewPlan { normalize: Normalize { mean: vec![0.4; 3], std: vec![0.3; 3] }, ..ViewPlan::eval(16, 3) };
    for name in ["resnet_mini", "vit_mini"] {
        let builder = Builder::new(3, &Device::Cpu);
        let spec = encoder(name)?;
        let network = (spec.build)(&EncoderConfig { channels: 3, image_size: 16, ..EncoderConfig::default() }, &builder)?;
        let path = dir.path().join(format!("{name}.safetensors"));
        save_encoder(&path, spec, network.config(), &builder.finish(), &Default::default())?;
        for depth in [Depth::Full, Depth::Last(1)] {
            let config = FineTuneConfig { depth, epochs: Some(2), batch: 16, lr: Some(0.002), ..FineTuneConfig::default() };
            let run = |on: &Device| fine_tune(&path, &images, &*images, &plan, &config, on, &mut |_| {});
            let (want, got) = (run(&Device::Cpu)?, run(&device)?);
            ensure!((want.epochs, want.steps, &want.labels) == (got.epochs, got.steps, &got.labels), "{name}, {depth:?}");
            let right = [top1(&want.predicted, &want.labels), top1(&got.predicted, &got.labels)];
            ensure!((right[0] - right[1]).abs() <= 0.05, "{name}, {depth:?}: {right:?} of the images are recognised");
        }
    }
    Ok(())
}
