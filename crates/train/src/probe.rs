//! A linear probe that learns beside the method: each step, the labels of some of the batch's images train a linear classifier on the
//! backbone's features, normalised a number at a time over images (a batch norm without scale and shift, as He et al. 2022 have it for
//! linear probes, arXiv:2111.06377, appendix A.1). No gradient goes back, so the encoder never learns from a label.

use candle_core::{DType, Device, Tensor};
use twinsight_datasets::Dataset;
use twinsight_encoders::Encoder;
use twinsight_kernels::cross_entropy_soft;
use twinsight_nn::{BatchNorm, Builder, DrawKey, Gradients, Linear, Mode, ParamStore, StateVisitor};

use crate::evaluate::Features;
use crate::loader::Batch;
use crate::{Error, Result};

/// The classifier.
pub struct OnlineProbe {
    norm: BatchNorm,
    head: Linear,
    params: ParamStore,
    classes: usize,
    images: usize,
}

/// Images of a step, with labels.
pub struct Lesson {
    views: Tensor,
    labels: Vec<u32>,
}

/// Learning rate times the number of features.
const RATE: f64 = 1.0;

impl OnlineProbe {
    /// A probe of features of `dim` numbers that learns from `images` images a step. It starts at zero.
    ///
    /// # Errors
    /// When candle fails.
    pub fn new(dim: usize, classes: usize, images: usize, device: &Device) -> Result<Self> {
        let builder = Builder::new(0, device);
        let norm = BatchNorm::new(&builder.under("norm"), dim, false)?;
        let head = Linear::new(&builder, dim, classes, true, twinsight_nn::Init::Constant(0.0))?;
        Ok(Self { norm, head, params: builder.finish(), classes, images })
    }

    /// The part of a batch that the next step learns from: its first images in their first view.
    ///
    /// # Errors
    /// When candle fails.
    pub fn lesson(&self, batch: &Batch, dataset: &dyn Dataset) -> Result<Lesson> {
        let count = self.images.min(batch.samples.len());
        let labels = batch.samples[..count].iter().filter_map(|&i| dataset.label(i)).collect();
        Ok(Lesson { views: batch.views[0].narrow(0, 0, count)?.contiguous()?, labels })
    }

    /// Learns from a lesson, on the features that `encoder` makes now. Nothing where an image has no label.
    ///
    /// # Errors
    /// A failing forward pass.
    pub fn learn(&mut self, encoder: &dyn Encoder, lesson: &Lesson) -> Result<()> {
        let pooled = encoder.forward(&lesson.views, &Mode::EVAL)?.pooled.to_dtype(DType::F32)?;
        let (n, dim) = pooled.dims2()?;
        // One image has no statistics.
        if lesson.labels.len() != n || n < 2 {
            return Ok(());
        }
        if let Some(label) = lesson.labels.iter().find(|&&label| label as usize >= self.classes) {
            return Err(Error::Config(format!("an image has the label {label}, and there are {} classes", self.classes)));
        }
        // Ones and zeros are made there: devices take small copies without waiting.
        let labels = Tensor::new(&lesson.labels[..], pooled.device())?.unsqueeze(1)?;
        let classes = Tensor::arange(0, self.classes as u32, pooled.device())?.unsqueeze(0)?;
        let targets = labels.broadcast_eq(&classes)?.to_dtype(DType::F32)?;
        let mode = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 });
        let rows = self.norm.forward(&pooled, &mode)?.detach();
        let loss = cross_entropy_soft(&self.head.forward(&rows, &mode)?, &targets)?;
        let gradients = Gradients::collect(&loss.backward()?, &self.params)?;
        for parameter in self.params.trainable() {
            if let Some(gradient) = gradients.get(parameter.name()) {
                parameter.set(&(parameter.value() - (gradient * (RATE / dim as f64))?)?)?;
            }
        }
        Ok(())
    }

    /// The share of labelled features that it recognises.
    ///
    /// # Errors
    /// When candle fails.
    pub fn accuracy(&self, features: &Features) -> Result<f64> {
        let device = self.params.iter().next().map_or(Device::Cpu, |p| p.value().device().clone());
        let rows = Tensor::from_slice(&features.rows, (features.index.len(), features.dim), &device)?;
        let rows = self.norm.forward(&rows, &Mode::EVAL)?;
        let best = self.head.forward(&rows, &Mode::EVAL)?.argmax(1)?.to_vec1::<u32>()?;
        let right = best.iter().zip(&features.labels).filter(|(a, b)| a == b).count();
        Ok(right as f64 / best.len().max(1) as f64)
    }

    /// Shows its weights to `visitor`.
    ///
    /// # Errors
    /// What the visitor says.
    pub fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        Ok(visitor.params("probe", &self.params)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_encoders::{EncoderConfig, encoder};

    #[test]
    fn labels_are_learned_and_the_encoder_stays_as_it_was() -> anyhow::Result<()> {
        let device = Device::Cpu;
        let builder = Builder::new(3, &device);
        let config = EncoderConfig { channels: 1, image_size: 16, ..EncoderConfig::default() };
        let network = (encoder("resnet_mini")?.build)(&config, &builder)?;
        let params = builder.finish();
        let before = params.snapshot()?;
        // Bright images and dark ones.
        let labels: Vec<u32> = (0..16).map(|i| i % 2).collect();
        let pixels = labels
            .iter()
            .enumerate()
            .flat_map(|(i, &l)| (0..256).map(move |p| if l == 1 { 1.5 } else { -1.5 } + ((i * 31 + p * 7) % 13) as f32 / 13.0));
        let views = Tensor::from_vec(pixels.collect::<Vec<f32>>(), (16, 1, 16, 16), &device)?;
        let mut probe = OnlineProbe::new(network.dim(), 2, 16, &device)?;
        let lesson = Lesson { views: views.clone(), labels: labels.clone() };
        for _ in 0..60 {
            probe.learn(&*network, &lesson)?;
        }
        let rows = network.forward(&views, &Mode::EVAL)?.pooled.flatten_all()?.to_vec1::<f32>()?;
        let features = Features { rows, dim: network.dim(), index: (0..16).collect(), labels, bad: Vec::new() };
        assert!(probe.accuracy(&features)? > 0.9, "{}", probe.accuracy(&features)?);
        for (name, tensor) in params.snapshot()? {
            let same = tensor.flatten_all()?.to_vec1::<f32>()? == before[&name].flatten_all()?.to_vec1::<f32>()?;
            assert!(same, "{name} changed");
        }
        Ok(())
    }
}
