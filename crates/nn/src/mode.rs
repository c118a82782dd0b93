//! How a forward pass is run: training or not, with a graph or not, and where its random draws come from.

use candle_core::{DType, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::init::standard_normal;

/// The precision of a training step. Weights, statistics, losses and the optimizer's state are `f32` in all of them.
///
/// On the CPU, products are computed in `f32` either way: bfloat16 dot products (`avx512_bf16`) were measured at half the rate of
/// `f32` multiply-adds on the processors at hand, and Winograd's algorithm needs fewer of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything as it is.
    #[default]
    F32,
    /// Products of `f32` numbers may round their factors to TF32 on CUDA devices that have it; elsewhere as `F32`.
    Tf32,
    /// On the CPU, what fused blocks keep for the backward pass is rounded to bfloat16, in half the memory. On CUDA, convolutions and linear
    /// layers multiply bfloat16 numbers, and the activations of ResNets' blocks and of transformers' branches are bfloat16; sums stay `f32`.
    Bf16,
}

impl Precision {
    /// Tells the kernels, for the whole process, whether products may run in TF32. To be called before a step at this precision.
    pub fn apply(self) {
        // With bfloat16, what is left in `f32` is so because it needs it.
        twinsight_kernels::allow_tf32(self == Self::Tf32);
    }

    /// How the kernels keep values.
    pub(crate) fn keep(self) -> twinsight_kernels::Keep {
        match self {
            Self::F32 | Self::Tf32 => twinsight_kernels::Keep::F32,
            Self::Bf16 => twinsight_kernels::Keep::Bf16,
        }
    }
}

/// The settings of one forward pass, handed down through every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Batch norm uses (and updates its running) batch statistics, drop path drops.
    pub train: bool,
    /// Parameters enter the graph, so that `backward` reaches them. A teacher's pass and an evaluation have none.
    pub grad: bool,
    /// How many equal blocks the batch axis holds one after the other: the number of views that were concatenated, 1 otherwise.
    pub blocks: usize,
    /// How many equal parts of the batch axis get batch-norm statistics of their own: as many as blocks where each view counts by
    /// itself, fewer where they count together, more where the images of a view are cut into groups.
    pub stat_groups: usize,
    /// Whether batch norm's running statistics take up what this pass sees. They should not where a batch goes through the network a
    /// second time, for its gradients.
    pub observe: bool,
    /// The precision of what is kept between the passes.
    pub precision: Precision,
    /// Where random draws come from.
    pub key: DrawKey,
    /// Which rows of the step's batch this pass holds; all of them where there is none.
    pub slice: Option<BatchSlice>,
}

/// A part of a batch: draws that belong to samples follow their places in the whole batch, so that cutting it changes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSlice {
    /// The place of the part's first sample in the whole batch.
    pub first: usize,
    /// Samples of the whole batch.
    pub of: usize,
}

impl Mode {
    /// Evaluation: running statistics, nothing dropped, no graph.
    pub const EVAL: Self =
        Self { train: false, grad: false, observe: false, ..Self::train(DrawKey { seed: 0, step: 0, pass: 0 }) };

    /// Training with a graph, with draws from `key`.
    pub const fn train(key: DrawKey) -> Self {
        Self { train: true, grad: true, blocks: 1, stat_groups: 1, observe: true, precision: Precision::F32, key, slice: None }
    }

    /// The same without a graph.
    pub const fn without_grad(self) -> Self {
        Self { grad: false, ..self }
    }

    /// The same without a change of running statistics.
    pub const fn without_observing(self) -> Self {
        Self { observe: false, ..self }
    }

    /// The same for a part of the step's batch.
    pub const fn with_slice(self, slice: BatchSlice) -> Self {
        Self { slice: Some(slice), ..self }
    }

    /// `x` in the type that products of this pass take: bfloat16 if the precision says so and the device does it, otherwise as it is.
    ///
    /// # Errors
    /// When candle fails.
    pub fn rounded(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self.precision == Precision::Bf16 && twinsight_kernels::takes_bf16(x.device()) {
            true => x.to_dtype(DType::BF16),
            false => Ok(x.clone()),
        }
    }

    /// For each of `rows` rows of the batch axis, which hold the mode's blocks one after the other, its place among all rows of the whole
    /// batch.
    pub fn places(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let each = rows / self.blocks.max(1);
        let slice = self.slice.unwrap_or(BatchSlice { first: 0, of: each });
        (0..rows).map(move |row| row / each.max(1) * slice.of + slice.first + row % each.max(1))
    }

    /// The same for `blocks` views one after the other, each with batch-norm statistics of its own.
    pub const fn with_views(self, blocks: usize) -> Self {
        Self { blocks, stat_groups: blocks, ..self }
    }

    /// The same with batch-norm statistics for each of `groups` equal parts of the batch, whatever views it holds.
    pub const fn with_stat_groups(self, groups: usize) -> Self {
        Self { stat_groups: groups, ..self }
    }

    /// The same at another precision.
    pub const fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same with the draws of pass number `pass` (a view, say) of the step.
    pub const fn with_pass(self, pass: u64) -> Self {
        Self { key: DrawKey { pass, ..self.key }, ..self }
    }
}

/// Names a stream of random draws inside the network: the same key and layer name give the same draws, on any number of
/// threads and after a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// The forward pass within the step.
    pub pass: u64,
}

impl DrawKey {
    /// The generator of the layer called `name`.
    pub fn rng(&self, name: &str) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        for (part, value) in bytes.chunks_exact_mut(8).zip([self.seed, self.step, self.pass, fnv1a(name)]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        ChaCha8Rng::from_seed(bytes)
    }

    /// `count` draws of a standard normal distribution from the stream of `name`.
    pub fn normals(&self, name: &str, count: usize) -> Vec<f32> {
        let mut rng = self.rng(name);
        (0..count).map(|_| standard_normal(&mut rng) as f32).collect()
    }
}

/// FNV-1a of a name, 64 bits: a hash that never changes between versions or machines.
pub(crate) fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn each_part_of_the_key_and_the_name_changes_the_draws() {
        let key = DrawKey { seed: 1, step: 2, pass: 3 };
        let first = |key: DrawKey, name: &str| key.rng(name).random::<u64>();
        assert_eq!(first(key, "a"), first(key, "a"));
        for (other, name) in
            [(DrawKey { seed: 2, ..key }, "a"), (DrawKey { step: 3, ..key }, "a"), (DrawKey { pass: 4, ..key }, "a"), (key, "b")]
        {
            assert_ne!(first(key, "a"), first(other, name));
        }
    }

    #[test]
    fn rows_of_a_part_know_their_places_in_the_whole() {
        let mode = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 }).with_views(2);
        assert_eq!(mode.places(6).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        let part = mode.with_slice(BatchSlice { first: 2, of: 10 });
        assert_eq!(part.places(6).collect::<Vec<_>>(), [2, 3, 4, 12, 13, 14]);
        let finer = part.with_stat_groups(6);
        assert_eq!(finer.places(6).collect::<Vec<_>>(), [2, 3, 4, 12, 13, 14], "groups of statistics move no row");
    }

    #[test]
    fn normals_are_normal() {
        let x = DrawKey { seed: 1, step: 2, pass: 3 }.normals("x", 20_001);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / 20_001.0;
        let square = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 20_001.0;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }
}
