//! Blocks of a transformer on the CPU as one operation, block after block: tasks are groups of samples whose rows stay in the second-level cache
//! while the whole block passes over them, so that no intermediate is read from main memory again within a pass.
//!
//! The forward pass keeps what costs more to compute again than to read (queries, keys and values, the attention's
//! result, the middle sum, the MLP before its GELU); the backward pass takes these, so that memory is freed as it proceeds,
//! and computes norms, GELU and probabilities again.

mod backward;
mod forward;
mod rows;
mod sums;

use std::borrow::Borrow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::heads::Heads;
use super::memory::{host, part, tensor, values};
use super::panels::{Packed, Strides};
use super::simd::TILE;
use crate::trace::span;

/// Rows of a group, roughly: the largest number whose intermediates stay in the second-level cache.
const GROUP_ROWS: usize = 144;
/// Blocks of groups whose gradients to the parameters are summed apart.
const BLOCKS: usize = 8;

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Samples.
    pub n: usize,
    /// Tokens of a sample.
    pub t: usize,
    /// Floats of a token.
    pub c: usize,
    /// Attention heads.
    pub heads: usize,
    /// Floats of a token within the MLP.
    pub hidden: usize,
    /// What the norms add to the variance.
    pub eps: f32,
}

/// Where the parameters lie in the packed tensor.
struct Places {
    norm1: [Range<usize>; 2],
    qkv: [Range<usize>; 2],
    proj: [Range<usize>; 2],
    norm2: [Range<usize>; 2],
    fc1: [Range<usize>; 2],
    fc2: [Range<usize>; 2],
    len: usize,
}

impl Sizes {
    fn places(&self) -> Places {
        let (c, hidden) = (self.c, self.hidden);
        let mut len = 0;
        let mut next = |weight: usize, bias: usize| {
            let middle = len + weight;
            let range = [len..middle, middle..middle + bias];
            len = middle + bias;
            range
        };
        let (norm1, qkv, proj) = (next(c, c), next(3 * c * c, 3 * c), next(c * c, c));
        let (norm2, fc1, fc2) = (next(c, c), next(hidden * c, hidden), next(c * hidden, c));
        Places { norm1, qkv, proj, norm2, fc1, fc2, len }
    }

    fn attention(&self) -> Heads {
        Heads { t: self.t, heads: self.heads, d: self.c / self.heads }
    }

    /// Groups of samples; none where there is nothing to compute.
    fn groups(&self) -> usize {
        GROUP_ROWS.checked_div(self.t).map_or(0, |samples| self.n.div_ceil(samples.max(1)))
    }

    /// Rows of group `i`: whole samples.
    fn group(&self, i: usize) -> Range<usize> {
        let samples = part(self.n, self.groups(), i);
        samples.start * self.t..samples.end * self.t
    }

    /// Rows of the largest group.
    fn most_rows(&self) -> usize {
        (0..self.groups()).map(|i| self.group(i).len()).max().unwrap_or(0)
    }

    fn rows(&self) -> usize {
        self.n * self.t
    }

    /// Floats of all parameters.
    pub fn parameters(&self) -> usize {
        self.places().len
    }

    /// Multiply-adds of a forward pass.
    pub fn multiply_adds(&self) -> usize {
        self.rows() * (4 * self.c * self.c + 2 * self.c * self.hidden) + 2 * self.rows() * self.t * self.c
    }
}

/// What the forward pass of one block keeps, by rows.
struct Saved {
    /// What went in, but for the first block, whose input is the operation's.
    input: Option<Vec<f32>>,
    qkv: Vec<f32>,
    attention: Vec<f32>,
    middle: Vec<f32>,
    hidden: Vec<f32>,
}

/// Blocks one after the other on x (N, T, C) and their parameters, flattened one after the other.
pub(crate) struct TransformerBlocks {
    sizes: Sizes,
    /// Number of blocks.
    depth: usize,
    /// Whether a gradient may be asked for.
    track: bool,
    saved: Mutex<Option<Vec<Saved>>>,
}

impl TransformerBlocks {
    pub fn new(sizes: Sizes, depth: usize, track: bool) -> Self {
        Self { sizes, depth, track, saved: Mutex::new(None) }
    }

    /// The gradients to x and the packed parameters, from what is still kept afterwards: for measuring.
    pub fn backward_again(&self, x: &Tensor, packed: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match &*self.saved.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(saved) => self.gradients(x, packed, grad, saved.iter()),
            None => bail!("internal: nothing was kept of the forward pass"),
        }
    }

    /// The gradients, given what the blocks kept, the first one's first.
    fn gradients(
        &self,
        x: &Tensor,
        packed: &Tensor,
        grad: &Tensor,
        saved: impl DoubleEndedIterator<Item = impl Borrow<Saved>> + ExactSizeIterator,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _span = span("transformer block backward", 2 * self.depth * self.sizes.multiply_adds());
        let grad = grad.contiguous()?;
        let ((xs, xl), (ps, pl), (gs, gl)) = (x.storage_and_layout(), packed.storage_and_layout(), grad.storage_and_layout());
        let (x, packed, grad) = (host(&xs, xl)?, host(&ps, pl)?, host(&gs, gl)?);
        let mut to_packed = vec![0.0; packed.len()];
        let mut gradient: Option<Vec<f32>> = None;
        for (i, saved) in saved.enumerate().rev() {
            let saved = saved.borrow();
            let range = i * self.sizes.parameters()..(i + 1) * self.sizes.parameters();
            let input = saved.input.as_deref().unwrap_or(x);
            let g = gradient.as_deref().unwrap_or(grad);
            let to = &mut to_packed[range.clone()];
            gradient = Some(backward::backward(&self.sizes, input, &packed[range], g, saved, to));
        }
        let dx = gradient.map(|dx| tensor(dx, xl.shape().clone())).transpose()?;
        Ok((dx, Some(tensor(to_packed, pl.shape().clone())?)))
    }
}

impl CustomOp2 for TransformerBlocks {
    fn name(&self) -> &'static str {
        "twinsight-transformer-blocks"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span("transformer block forward", self.depth * self.sizes.multiply_adds());
        let (x, packed) = (values(s1, l1)?, values(s2, l2)?);
        let mut kept = Vec::new();
        let mut input: Option<Vec<f32>> = None;
        for parameters in packed.chunks_exact(self.sizes.parameters()) {
            let (y, saved) = forward::forward(&self.sizes, input.as_deref().unwrap_or(x), parameters, self.track);
            kept.extend(saved.map(|saved| Saved { input: input.take(), ..saved }));
            input = Some(y);
        }
        let Some(y) = input else { bail!("internal: there is no block") };
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = self.track.then_some(kept);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, packed: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(saved) = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("transformer_block: backward ran before on this forward pass; run the forward pass again");
        };
        self.gradients(x, packed, grad, saved.into_iter())
    }
}

/// A weight (O, I) as the right operand of x · weightᵀ.
fn packed_forward(weight: &[f32], inputs: usize, outputs: usize) -> Packed {
    Packed::new(weight, Strides { start: 0, block: 0, row: 1, column: inputs }, 1, inputs, outputs)
}

/// A weight (O, I) as the right operand of g · weight.
fn packed_backward(weight: &[f32], inputs: usize, outputs: usize) -> Packed {
    Packed::new(weight, Strides { start: 0, block: 0, row: inputs, column: 1 }, 1, outputs, inputs)
}

/// A bias as wide as whole tiles.
fn wide(bias: &[f32]) -> Vec<f32> {
    let mut wide = bias.to_vec();
    wide.resize(bias.len().next_multiple_of(TILE.width()), 0.0);
    wide
}
