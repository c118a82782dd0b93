//! The random stream of one view: a key of four counters, and the few kinds of draws that transforms need.
//!
//! Draws are built here from the generator's raw words rather than taken from a distributions crate, so that a run's views do
//! not change when a dependency changes its algorithm.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Separates this crate's streams from others that are keyed by the same counters.
const STREAM: u64 = u64::from_le_bytes(*b"augment\0");

/// Which view is being made. Equal keys give equal draws; keys that differ in any part give independent ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DrawKey {
    /// The run's seed.
    pub seed: u64,
    /// The pass over the data, from 0.
    pub epoch: u64,
    /// The image's index in the data set.
    pub sample: u64,
    /// The view's index among the image's views.
    pub view: u64,
}

impl DrawKey {
    /// The key's generator: ChaCha8 keyed by the four counters.
    pub fn rng(self) -> ChaCha8Rng {
        let mut key = [0; 32];
        for (bytes, part) in key.chunks_exact_mut(8).zip([self.seed, self.epoch, self.sample, self.view]) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(STREAM);
        rng
    }
}

/// The draws of one view, in order.
#[derive(Debug, Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream of `key`, from its beginning.
    pub fn new(key: DrawKey) -> Self {
        Self(key.rng())
    }

    /// Uniform in [0, 1), 53 bits; one 64-bit word.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in [low, high); one 64-bit word.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`; one 64-bit word whatever `p` is. Never true for 0, always for 1.
    pub fn coin(&mut self, p: f32) -> bool {
        self.unit() < f64::from(p)
    }

    /// A whole number in 0..`count` (0 when `count` is 0); one 64-bit word. The bias is below `count` / 2⁶⁴.
    pub fn below(&mut self, count: u32) -> u32 {
        ((u128::from(self.0.next_u64()) * u128::from(count)) >> 64) as u32
    }
}

impl From<DrawKey> for Draws {
    fn from(key: DrawKey) -> Self {
        Self::new(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DrawKey = DrawKey { seed: 1, epoch: 2, sample: 3, view: 4 };

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |key: DrawKey| Draws::new(key).unit();
        let all = [
            first(KEY),
            first(DrawKey { seed: 0, ..KEY }),
            first(DrawKey { epoch: 0, ..KEY }),
            first(DrawKey { sample: 0, ..KEY }),
            first(DrawKey { view: 0, ..KEY }),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
        assert_eq!(first(KEY), first(KEY));
    }

    #[test]
    fn draws_stay_in_their_ranges() {
        let mut draws = Draws::new(KEY);
        let mut seen = [0; 5];
        for _ in 0..5000 {
            assert!((0.0..1.0).contains(&draws.unit()));
            seen[draws.below(5) as usize] += 1;
            assert!(!draws.coin(0.0) && draws.coin(1.0));
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
        assert_eq!(draws.below(0), 0);
    }
}
