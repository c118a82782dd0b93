//! Fine-tuning on random weights and small pictures: what is trained, what stays, and that nothing depends on how a device does it.

use super::lessons::MOST_UNREAD;
use super::*;

/// An encoder file with random weights, and 60 images of two classes that differ in brightness and noise.
fn place(dir: &Path, name: &str) -> anyhow::Result<(std::path::PathBuf, Arc<dyn Dataset>, ViewPlan)> {
    let builder = Builder::new(3, &Device::Cpu);
    let spec = twinsight_encoders::encoder(name)?;
    let config = twinsight_encoders::EncoderConfig { channels: 1, image_size: 16, ..Default::default() };
    let network = (spec.build)(&config, &builder)?;
    let path = dir.join("encoder.safetensors");
    twinsight_encoders::save_encoder(&path, spec, network.config(), &builder.finish(), &Default::default())?;
    let labels: Vec<u32> = (0..60).map(|i| i % 2).collect();
    let pixel = |i: usize, p: usize| ((i * 7919 + p * 104_729) % 251) as u8 / if labels[i] == 1 { 1 } else { 3 };
    let pixels = (0..60).flat_map(|i| (0..256).map(move |p| (i, p))).map(|(i, p)| pixel(i, p)).collect();
    let classes = vec!["dark".to_string(), "bright".to_string()];
    let images = twinsight_datasets::PackedImages::new("x", pixels, (16, 16, 1), Some(labels), classes)?;
    let plan = ViewPlan { normalize: twinsight_augment::Normalize { mean: vec![0.4], std: vec![0.3] }, ..ViewPlan::eval(16, 1) };
    Ok((path, Arc::new(images), plan))
}

#[test]
fn what_is_not_trained_stays_to_the_bit_and_what_is_trained_moves() -> anyhow::Result<()> {
    for (name, moved, still) in [
        ("resnet_mini", "layer3.0.conv1.weight", ["layer1.0.bn1.running_mean", "layer2.0.conv1.weight"]),
        ("vit_mini", "norm.weight", ["cls_token", "blocks.0.norm1.weight"]),
    ] {
        let dir = tempfile::tempdir()?;
        let (path, images, plan) = place(dir.path(), name)?;
        let config = FineTuneConfig { depth: Depth::Last(1), epochs: Some(2), batch: 16, lr: Some(0.01), ..Default::default() };
        let before = twinsight_encoders::load_encoder(&path, &Device::Cpu)?.params.snapshot()?;
        let mut network = Network::new(&path, config.depth, &Device::Cpu)?;
        let (start, _) = network.start(&images, &plan, 2, 0)?;
        let mut lessons = Lessons::new(&images, &plan, &Device::Cpu, &mut |_| {})?;
        network.train(&mut lessons, &config, &start, 0.01, &mut |_| {})?;
        let after = network.body.snapshot()?;
        let same = |n: &str| -> anyhow::Result<bool> {
            Ok(before[n].flatten_all()?.to_vec1::<f32>()? == after[n].flatten_all()?.to_vec1::<f32>()?)
        };
        for n in before.keys().filter(|n| n.contains("running_")).map(String::as_str).chain(still) {
            anyhow::ensure!(same(n)?, "{name}: {n} changed");
        }
        anyhow::ensure!(!same(moved)?, "{name}: {moved} was not trained");
    }
    Ok(())
}

#[test]
fn the_rate_is_chosen_and_images_without_a_label_are_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (path, images, plan) = place(dir.path(), "resnet_mini")?;
    let config = FineTuneConfig { epochs: Some(1), batch: 16, ..Default::default() };
    let found = fine_tune(&path, &images, &*images, &plan, &config, &Device::Cpu, &mut |_| {})?;
    assert_eq!(found.tried.iter().map(|t| t.0).collect::<Vec<_>>(), RATES);
    let most = found.tried.iter().map(|t| t.1).fold(0.0, f64::max);
    assert_eq!(found.tried.iter().find(|t| t.1 == most).map(|t| t.0), Some(found.lr));
    assert!(top1(&found.predicted, &found.labels) > 0.9 && found.known == 2);
    let bare = twinsight_datasets::PackedImages::new("bare", vec![0; 256 * 4], (16, 16, 1), None, Vec::new())?;
    let bare: Arc<dyn Dataset> = Arc::new(bare);
    let told = fine_tune(&path, &bare, &*images, &plan, &config, &Device::Cpu, &mut |_| {}).expect_err("no labels").to_string();
    assert!(told.contains("needs labels, and #0 has none"), "{told}");
    Ok(())
}

#[test]
fn the_last_blocks_are_found_by_name() -> Result<()> {
    let vit = ["cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight"];
    assert_eq!(trained_names(vit.into_iter(), Depth::Last(1))?, ["blocks.1.norm1.weight", "norm.weight"]);
    let resnet = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight"];
    assert_eq!(trained_names(resnet.into_iter(), Depth::Last(1))?, ["layer2.0.conv1.weight"]);
    assert_eq!(trained_names(resnet.into_iter(), Depth::Full)?.len(), 4);
    assert!(trained_names(resnet.into_iter(), Depth::Last(0))?.is_empty());
    let told = trained_names(resnet.into_iter(), Depth::Last(3)).expect_err("two only").to_string();
    assert!(told.contains("has 2"), "{told}");
    Ok(())
}

/// What a device does otherwise than the processor, done on the processor: a network that is built again, losses that are read late, views
/// by a renderer that is used for one training after the other.
#[test]
fn what_a_device_does_otherwise_changes_no_bit() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (path, images, plan) = place(dir.path(), "resnet_mini")?;
    let config = FineTuneConfig { epochs: Some(3), batch: 16, ..Default::default() };
    let outcome = |as_device: bool| -> anyhow::Result<_> {
        let mut lessons = Lessons::new(&images, &plan, &Device::Cpu, &mut |_| {})?;
        if as_device {
            let kept = crate::resident::Resident::of(&*images, 1, 1 << 20).map_err(anyhow::Error::msg)?;
            lessons.renderer = Some(Box::new(crate::renderer::HostRenderer::new(kept, lessons.plan.clone())));
        }
        let (mut found, mut told) = (Vec::new(), Vec::new());
        for lr in [0.002, 0.01] {
            let mut network = Network::new(&path, config.depth, &Device::Cpu)?;
            if as_device {
                let loaded = twinsight_encoders::load_encoder(&path, &Device::Cpu)?;
                (network.encoder, network.body) = rebuilt(&loaded, loaded.encoder.config(), &Device::Cpu)?;
                network.defers = true;
            }
            let (start, _) = network.start(&images, &plan, 2, 0)?;
            network.train(&mut lessons, &config, &start, lr, &mut |words| told.push(words.to_string()))?;
            let (predicted, features) = network.predict(&*images, &plan)?;
            found.push((predicted, features.rows));
        }
        anyhow::ensure!(lessons.renderer.is_some() == as_device);
        Ok((found, told))
    };
    let (plain, device) = (outcome(false)?, outcome(true)?);
    assert_eq!(plain.1, device.1);
    assert!(plain.0 == device.0, "other predictions or features");
    Ok(())
}

#[test]
fn a_loss_that_is_not_finite_is_named_by_its_step_however_late_it_is_read() -> anyhow::Result<()> {
    let loss = |value: f32| Tensor::new(value, &Device::Cpu);
    for defers in [false, true] {
        let mut losses = Losses::new(defers);
        losses.push(0, &loss(1.5)?, 0.1)?;
        losses.push(1, &loss(2.0)?, 0.1)?;
        assert_eq!((losses.take(0.1)?, losses.take(0.1)?), (3.5, 0.0));
        let mut told = None;
        for step in 2..2 + MOST_UNREAD as u64 {
            let value = if step == 5 { f32::NAN } else { 1.0 };
            if let Err(error) = losses.push(step, &loss(value)?, 0.1) {
                told.get_or_insert((step, error.to_string()));
            }
        }
        let (at, words) = told.expect("noticed without being asked");
        assert_eq!(at, if defers { 1 + MOST_UNREAD as u64 } else { 5 });
        assert!(words.contains("NaN at step 5") && words.contains("--lr (it is 0.1)"), "{words}");
    }
    Ok(())
}
