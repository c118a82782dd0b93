//! Seeded initialisers. A parameter's first values depend on (seed, full name) alone, so that adding a layer changes no
//! other layer's start, and building on two machines gives the same network.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::mode::fnv1a;

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// One value everywhere.
    Constant(f32),
    /// Uniform in [-bound, bound).
    Uniform(f64),
    /// Normal with mean 0.
    Normal(f64),
    /// Normal with mean 0 and standard deviation `std`, redrawn outside [-2, 2] (absolute, as in timm's and DINO's
    /// `trunc_normal_` with its default bounds).
    TruncNormal(f64),
    /// He et al. 2015, `fan_out` mode, gain √2: torchvision's choice for the convolutions of a ResNet.
    /// Fan out is the first axis times the kernel's size.
    KaimingNormalFanOut,
    /// PyTorch's default for linear and convolution weights: uniform in ±1/√fan_in (Kaiming uniform with a = √5).
    TorchDefault,
    /// Glorot and Bengio 2010: uniform in ±√(6 / (fan_in + fan_out)).
    XavierUniform,
}

impl Init {
    /// The starting values of the parameter `name` of `shape` (PyTorch's layout: outputs first) under `seed`.
    pub fn values(self, name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
        let count: usize = shape.iter().product();
        let fan_in: usize = shape.iter().skip(1).product::<usize>().max(1);
        let receptive: usize = shape.iter().skip(2).product::<usize>().max(1);
        let fan_out = shape.first().copied().unwrap_or(1) * receptive;
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&fnv1a(name).to_le_bytes());
        key[16..24].copy_from_slice(b"init\0\0\0\0");
        let mut rng = ChaCha8Rng::from_seed(key);
        match self {
            Self::Constant(value) => vec![value; count],
            Self::Uniform(bound) => uniform(&mut rng, bound, count),
            Self::Normal(std) => normal(&mut rng, std, count),
            Self::TruncNormal(std) => (0..count)
                .map(|_| {
                    loop {
                        let value = standard_normal(&mut rng) * std;
                        if value.abs() <= 2.0 {
                            return value as f32;
                        }
                    }
                })
                .collect(),
            Self::KaimingNormalFanOut => normal(&mut rng, (2.0 / fan_out as f64).sqrt(), count),
            Self::TorchDefault => uniform(&mut rng, 1.0 / (fan_in as f64).sqrt(), count),
            Self::XavierUniform => uniform(&mut rng, (6.0 / (fan_in + fan_out) as f64).sqrt(), count),
        }
    }
}

fn uniform(rng: &mut ChaCha8Rng, bound: f64, count: usize) -> Vec<f32> {
    (0..count).map(|_| ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32).collect()
}

fn normal(rng: &mut ChaCha8Rng, std: f64, count: usize) -> Vec<f32> {
    (0..count).map(|_| (standard_normal(rng) * std) as f32).collect()
}

/// Box and Muller 1958, the cosine half; two draws a value.
pub(crate) fn standard_normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (mean, (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    #[test]
    fn moments_are_those_of_the_papers() {
        let shape = [64, 32, 3, 3];
        for (init, std) in [
            (Init::Normal(0.02), 0.02),
            (Init::TruncNormal(0.02), 0.02),
            (Init::KaimingNormalFanOut, (2.0 / (64.0 * 9.0_f64)).sqrt()),
            (Init::TorchDefault, (1.0 / (3.0 * 32.0 * 9.0_f64)).sqrt()),
            (Init::XavierUniform, (2.0 / ((32.0 + 64.0) * 9.0_f64)).sqrt()),
        ] {
            let (mean, found) = moments(&init.values("w", &shape, 7));
            assert!(mean.abs() < 0.05 * std, "{init:?}: mean {mean}");
            assert!((found / std - 1.0).abs() < 0.03, "{init:?}: {found} against {std}");
        }
    }

    #[test]
    fn name_and_seed_decide() {
        let draw = |name, seed| Init::Normal(1.0).values(name, &[8], seed);
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("b", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
    }
}
