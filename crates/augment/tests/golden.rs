//! Every deterministic operation against torchvision on PIL images: the golden file `augment`, whose tensors' names say what was done.

use anyhow::{Context, Result, bail};
use twinsight_augment::{Interpolation, Pixels, ops};
use twinsight_test_support::{Golden, GoldenTensor};

/// The operation that made the tensor `key`, done to `image`.
fn operate(key: &str, image: &Pixels) -> Result<Pixels> {
    let mut pixels = image.clone();
    let parts: Vec<&str> = key.split('_').collect();
    match parts[..] {
        ["brightness", factor] => ops::adjust_brightness(&mut pixels, factor.parse()?),
        ["contrast", factor] => ops::adjust_contrast(&mut pixels, factor.parse()?),
        ["saturation", factor] => ops::adjust_saturation(&mut pixels, factor.parse()?),
        ["hue", turn] => ops::adjust_hue(&mut pixels, turn.parse()?),
        ["grayscale"] => ops::grayscale(&mut pixels),
        ["solarize", threshold] => ops::solarize(&mut pixels, threshold.parse()?),
        ["equalize"] => ops::equalize(&mut pixels),
        ["posterize", bits] => ops::posterize(&mut pixels, bits.parse()?),
        ["affine", angle, dx, dy, scale, sx, sy] => {
            let affine = ops::Affine {
                angle: angle.parse()?,
                translate: (dx.parse()?, dy.parse()?),
                scale: scale.parse()?,
                shear: (sx.parse()?, sy.parse()?),
            };
            ops::affine(&mut pixels, &affine, &[9, 8, 7]);
        }
        ["hflip"] => ops::hflip(&mut pixels),
        ["blur", kernel, sigma] => {
            let kernel = kernel.strip_prefix('k').context(key.to_string())?.parse()?;
            let sigma = sigma.strip_prefix('s').context(key.to_string())?.parse()?;
            ops::gaussian_blur(&mut pixels, kernel, sigma);
        }
        ["crop", top, left, height, width, "to", size, mode] => {
            let region = ops::Region { top: top.parse()?, left: left.parse()?, height: height.parse()?, width: width.parse()? };
            let interpolation = match mode {
                "bilinear" => Interpolation::Bilinear,
                "bicubic" => Interpolation::Bicubic,
                _ => bail!("{key}: an unknown interpolation"),
            };
            let size = size.parse()?;
            pixels = ops::resized_crop(&image.to_image(), region, size, size, 3, interpolation)?;
        }
        _ => bail!("{key}: an unknown operation"),
    }
    Ok(pixels)
}

fn pixels(tensor: &GoldenTensor) -> Pixels {
    let [height, width, channels] = tensor.shape[..] else { panic!("{:?} is not an image", tensor.shape) };
    let raw: Vec<u8> = tensor.data.iter().map(|&v| v as u8).collect();
    Pixels::from_interleaved(&raw, width, height, channels, 3)
}

#[test]
fn operations_equal_the_reference() -> Result<()> {
    let golden = Golden::load("augment")?;
    let image = pixels(golden.get("image")?);
    let mut seen = std::collections::BTreeSet::new();
    for (key, tensor) in golden.tensors.iter().filter(|(key, _)| *key != "image") {
        let want = pixels(tensor);
        let got = operate(key, &image)?;
        assert_eq!((got.width(), got.height()), (want.width(), want.height()), "{key}");
        let apart: Vec<u32> = got.data().iter().zip(want.data()).map(|(&a, &b)| a.abs_diff(b).into()).collect();
        let most = *apart.iter().max().context("an empty image")?;
        let mean = f64::from(apart.iter().sum::<u32>()) / apart.len() as f64;
        println!("{key}: mean {mean:.5}, most {most}");
        // What the reference does in whole levels is exact; resizing and blur may round differently.
        let kind = key.split('_').next().unwrap_or(key);
        let (mean_bound, bound) = match kind {
            "crop" => (0.5, 3),
            "blur" => (0.01, 1),
            _ => (0.0, 0),
        };
        assert!(mean <= mean_bound && most <= bound, "{key}: mean {mean}, most {most}");
        seen.insert(kind.to_string());
    }
    let all = ["blur", "brightness", "contrast", "crop", "grayscale", "hflip", "hue", "saturation", "solarize"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    Ok(())
}

#[test]
fn levels_and_affine_changes_equal_the_reference() -> Result<()> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/levels.safetensors");
    let golden = Golden::read(&path)?;
    let image = pixels(golden.get("image")?);
    assert_eq!(golden.tensors.len(), 10);
    for (key, tensor) in golden.tensors.iter().filter(|(key, _)| *key != "image") {
        let (want, got) = (pixels(tensor), operate(key, &image)?);
        let apart = got.data().iter().zip(want.data()).map(|(&a, &b)| a.abs_diff(b)).max().context("an empty image")?;
        // Places are computed in another order of additions, which may cut a level that lies on a whole number.
        let bound = if key.starts_with("affine") { 1 } else { 0 };
        let differ = got.data().iter().zip(want.data()).filter(|(a, b)| a != b).count();
        assert!(apart <= bound && differ * 100 <= got.data().len(), "{key}: most {apart}, {differ} levels");
    }
    Ok(())
}
