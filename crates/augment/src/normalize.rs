//! The last step of a view: from 8-bit levels to the numbers that a network sees.

use serde::{Deserialize, Serialize};

/// Per-channel mean and standard deviation of values in 0..1; a normalised value is `(v / 255 − mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// Means, one a channel.
    pub mean: Vec<f32>,
    /// Standard deviations, one a channel, greater than 0.
    pub std: Vec<f32>,
}

impl Normalize {
    /// The statistics of ImageNet's training images that torchvision's and most papers' models use; for one channel their averages
    /// (0.449, 0.226), and for other numbers of channels these in each.
    pub fn imagenet(channels: usize) -> Self {
        match channels {
            n if n != 3 => Self { mean: vec![0.449; n], std: vec![0.226; n] },
            _ => Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] },
        }
    }

    /// The statistics of CIFAR-10's training images.
    pub fn cifar10() -> Self {
        Self { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.247, 0.2435, 0.2616] }
    }

    /// Values stay in 0..1.
    pub fn none(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], std: vec![1.0; channels] }
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// The factor and offset that take a level (0..255) of channel `c` to its normalised value: level · factor + offset.
    ///
    /// # Panics
    /// When there is no such channel; so does [`Normalize::zero_level`].
    pub fn affine(&self, c: usize) -> (f32, f32) {
        (1.0 / (255.0 * self.std[c]), -self.mean[c] / self.std[c])
    }

    /// The level nearest to normalised 0 in channel `c`: what stands for nothing where something is hidden.
    pub fn zero_level(&self, c: usize) -> u8 {
        (self.mean[c] * 255.0).round_ties_even().clamp(0.0, 255.0) as u8
    }
}
