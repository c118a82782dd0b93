//! Transformers on the maps of a residual network: their parameters' names, and that hidden patches stay hidden behind convolutions.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use twinsight_encoders::{Encoder, EncoderConfig, Masking, Stem, encoder};
use twinsight_nn::{Builder, DrawKey, Mode, ParamStore};

fn build(config: &EncoderConfig) -> Result<(Box<dyn Encoder>, ParamStore)> {
    let b = Builder::new(3, &Device::Cpu);
    let network = (encoder("vit_hybrid_mini")?.build)(config, &b)?;
    Ok((network, b.finish()))
}

fn small() -> EncoderConfig {
    EncoderConfig { channels: 2, image_size: 16, ..EncoderConfig::default() }
}

fn picture(shift: f64) -> Result<Tensor> {
    let x = Tensor::arange(0f32, (2 * 2 * 16 * 16) as f32, &Device::Cpu)?;
    Ok(((x * 0.37)?.sin()? + shift)?.reshape((2, 2, 16, 16))?)
}

/// The same images with other pixels in patch `patch` (of 4 × 4) of both.
fn altered(x: &Tensor, patch: usize) -> Result<Tensor> {
    let (row, column) = (patch / 4 * 4, patch % 4 * 4);
    let other = Tensor::full(7f32, (2, 2, 4, 4), &Device::Cpu)?;
    Ok(x.slice_assign(&[0..2, 0..2, row..row + 4, column..column + 4], &other)?)
}

fn tokens(network: &dyn Encoder, x: &Tensor, masking: &Masking) -> Result<Vec<f32>> {
    let mode = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 }).without_grad();
    let tokens = network.forward_masked(x, masking, &mode)?.tokens.context("tokens")?;
    Ok(tokens.flatten_all()?.to_vec1()?)
}

#[test]
fn parameters_have_timms_names() -> Result<()> {
    let (network, params) = build(&small())?;
    ensure!(network.patches(16) == Some(16), "{:?}", network.patches(16));
    for (name, shape) in [
        ("patch_embed.backbone.conv1.weight", &[64, 2, 3, 3][..]),
        ("patch_embed.backbone.layer2.0.downsample.0.weight", &[128, 64, 1, 1]),
        ("patch_embed.proj.weight", &[192, 128, 1, 1]),
        ("pos_embed", &[1, 17, 192]),
        ("blocks.1.attn.qkv.weight", &[576, 192]),
    ] {
        let p = params.get(name).with_context(|| name.to_string())?;
        ensure!(p.value().dims() == shape, "{name}: {:?}", p.value().dims());
    }
    ensure!(params.get("blocks.2.norm1.weight").is_none());
    Ok(())
}

#[test]
fn patches_are_whole_cells_of_the_maps() -> Result<()> {
    let large = EncoderConfig { channels: 3, image_size: 96, stem: Stem::Imagenet, patch: Some(16), ..EncoderConfig::default() };
    let (network, params) = build(&large)?;
    // The stem and one stage make cells of 8 pixels, so that a patch of 16 is 2 × 2 of them.
    ensure!(params.get("patch_embed.proj.weight").context("projection")?.value().dims() == [192, 128, 2, 2]);
    let x = Tensor::zeros((1, 3, 96, 96), candle_core::DType::F32, &Device::Cpu)?;
    ensure!(network.forward(&x, &Mode::EVAL)?.tokens.context("tokens")?.dims() == [1, 37, 192]);
    let text = build(&EncoderConfig { patch: Some(12), ..large }).err().context("12 is no multiple of 8")?.to_string();
    ensure!(text.contains("patch") && text.contains("12") && text.contains("a multiple of 8"), "{text}");
    Ok(())
}

#[test]
fn hidden_pixels_reach_no_token() -> Result<()> {
    let (network, _) = build(&small())?;
    let x = picture(0.2)?;
    let hidden = 5;
    let mask: Vec<f32> = (0..32).map(|i| if i % 16 == hidden { 1.0 } else { 0.0 }).collect();
    let token = Tensor::ones((1, 1, 192), candle_core::DType::F32, &Device::Cpu)?;
    let replace = Masking::Replace { mask: Tensor::from_vec(mask, (2, 16), &Device::Cpu)?, token };
    let kept: Vec<u32> = (0..32).map(|i| i % 16).filter(|&p| p != hidden as u32).collect();
    let keep = Masking::Keep(Tensor::from_vec(kept, (2, 15), &Device::Cpu)?);
    for masking in [&replace, &keep] {
        let before = tokens(&*network, &x, masking)?;
        ensure!(before == tokens(&*network, &altered(&x, hidden)?, masking)?, "pixels of a hidden patch changed a token");
        ensure!(before != tokens(&*network, &altered(&x, 6)?, masking)?, "pixels of a visible patch changed nothing");
    }
    Ok(())
}
