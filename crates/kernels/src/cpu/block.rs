//! Residual blocks on the CPU: one custom operation whose backward pass walks its layers itself.
//!
//! Kept between the passes are the convolutions' results and the statistics, not the activations: these are one pass over
//! memory away.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::batch_norm::{BatchNorm, Statistics, add_into, mask_block, statistics};
use super::conv::{self, Pass};
use super::half;
use super::memory::{host, tensor, values};
use crate::block::Keep;
use crate::conv::Geometry;

/// One convolution and norm of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub geometry: Geometry,
    /// Where its parameters start: the weight, the norm's scale, the norm's shift.
    pub offset: usize,
}

impl Layer {
    fn weights(&self) -> usize {
        let g = &self.geometry;
        g.o * (g.c / g.config.groups) * g.kh * g.kw
    }

    /// Number of its parameters.
    pub fn parameters(&self) -> usize {
        self.weights() + 2 * self.geometry.o
    }

    fn weight<'a>(&self, packed: &'a [f32]) -> &'a [f32] {
        &packed[self.offset..self.offset + self.weights()]
    }

    /// Scale and shift, (2, O).
    fn affine<'a>(&self, packed: &'a [f32]) -> &'a [f32] {
        let start = self.offset + self.weights();
        &packed[start..start + 2 * self.geometry.o]
    }
}

/// The operation of (x, packed parameters) → y.
pub(crate) struct ConvBlock {
    /// The path's layers, then the shortcut's if it has one.
    layers: Vec<Layer>,
    /// Layers of the path.
    path: usize,
    identity: bool,
    eps: f64,
    groups: usize,
    keep: Keep,
    track: bool,
    /// The convolutions' results.
    kept: Mutex<Option<Vec<Kept>>>,
    norms: Arc<OnceLock<Vec<Statistics>>>,
}

/// A convolution's result between the passes.
enum Kept {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Kept {
    fn new(values: Vec<f32>, keep: Keep) -> Self {
        match keep {
            Keep::F32 => Self::F32(values),
            Keep::Bf16 => Self::Bf16(half::narrowed(&values)),
        }
    }

    fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => half::widened(&values),
        }
    }
}

impl CustomOp2 for ConvBlock {
    fn name(&self) -> &'static str {
        "twinsight-conv-block"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, packed) = (values(s1, l1)?, values(s2, l2)?);
        let (mut kept, mut norms) = (Vec::new(), Vec::new());
        let mut keep = |c: Vec<f32>| {
            if self.track {
                kept.push(Kept::new(c, self.keep));
            }
        };
        let mut side = None;
        if let Some(layer) = self.side() {
            let c = conv::traced(&layer.geometry, Pass::Forward, x, layer.weight(packed), &[]);
            let s = statistics(&c, layer.geometry.o, self.groups);
            let r = self.norm(layer, &s, false).forward(&c, layer.affine(packed), None);
            side = Some((c, s, r));
        }
        let mut y = Cow::Borrowed(x);
        for (i, layer) in self.layers[..self.path].iter().enumerate() {
            let c = conv::traced(&layer.geometry, Pass::Forward, &y, layer.weight(packed), &[]);
            let s = statistics(&c, layer.geometry.o, self.groups);
            let residual = match &side {
                _ if i + 1 < self.path => None,
                Some((.., r)) => Some(r.as_slice()),
                None => self.identity.then_some(x),
            };
            y = Cow::Owned(self.norm(layer, &s, true).forward(&c, layer.affine(packed), residual));
            norms.push(s);
            keep(c);
        }
        if let Some((c, s, _)) = side {
            norms.push(s);
            keep(c);
        }
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = self.track.then_some(kept);
        // A second forward pass of the same operation computes the same statistics.
        let _ = self.norms.set(norms);
        let g = &self.layers[self.path - 1].geometry;
        Ok((CpuStorage::F32(y.into_owned()), Shape::from((g.n, g.oh, g.ow, g.o))))
    }

    fn bwd(&self, x: &Tensor, packed: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut kept), Some(norms)) = (kept, self.norms.get()) else {
            bail!("conv_block: backward ran before on this result and used up what was kept; run the forward pass again");
        };
        let grad = grad.contiguous()?;
        let to_x = x.track_op();
        let shape = x.shape().clone();
        let ((xs, xl), (ps, pl)) = (x.storage_and_layout(), packed.storage_and_layout());
        let ((ys, yl), (gs, gl)) = (y.storage_and_layout(), grad.storage_and_layout());
        let (x, packed, y, grad) = (host(&xs, xl)?, host(&ps, pl)?, host(&ys, yl)?, host(&gs, gl)?);
        let mut gradients = vec![0.0f32; packed.len()];
        let mut put = |layer: &Layer, weight: &[f32], affine: &[f32]| {
            let (start, middle) = (layer.offset, layer.offset + layer.weights());
            gradients[start..middle].copy_from_slice(weight);
            gradients[middle..middle + affine.len()].copy_from_slice(affine);
        };

        // Before the last ReLU; also the shortcut's gradient.
        let outer = mask_block(y, grad);
        let mut dx = None;
        if let (Some(layer), Some(c)) = (self.side(), (kept.len() > self.path).then(|| kept.pop()).flatten()) {
            let c = c.into_f32();
            let (dc, affine) = self.norm(layer, &norms[self.path], false).gradients(&c, layer.affine(packed), None, &outer);
            drop(c);
            put(layer, &conv::traced(&layer.geometry, Pass::ToWeight, x, &[], &dc), &affine);
            dx = to_x.then(|| conv::traced(&layer.geometry, Pass::ToInput, &[], layer.weight(packed), &dc));
        }
        let mut outer = Some(outer);
        let mut inner: Option<Vec<f32>> = None;
        // The activations of the layer above, computed while its input gradient was needed: they gate this layer's norm.
        let mut gate: Option<Vec<f32>> = None;
        for (i, layer) in self.layers[..self.path].iter().enumerate().rev() {
            let Some(c) = kept.pop() else { bail!("internal: conv_block kept too few results") };
            let c = c.into_f32();
            let norm = self.norm(layer, &norms[i], true);
            let g = inner.take().map_or_else(|| Cow::Borrowed(outer.as_deref().unwrap_or_default()), Cow::Owned);
            let (dc, affine) = norm.gradients(&c, layer.affine(packed), gate.take().as_deref(), &g);
            drop((c, g));
            if i + 1 == self.path && !self.identity {
                outer = None;
            }
            let input = match i {
                0 => Cow::Borrowed(x),
                _ => {
                    // The layer below is needed again in the next turn.
                    let below = kept.pop().map(Kept::into_f32).unwrap_or_default();
                    let lower = &self.layers[i - 1];
                    let a = self.norm(lower, &norms[i - 1], true).forward(&below, lower.affine(packed), None);
                    kept.push(Kept::F32(below));
                    Cow::Owned(a)
                }
            };
            put(layer, &conv::traced(&layer.geometry, Pass::ToWeight, &input, &[], &dc), &affine);
            if i > 0 || to_x {
                inner = Some(conv::traced(&layer.geometry, Pass::ToInput, &[], layer.weight(packed), &dc));
            }
            if let Cow::Owned(a) = input {
                gate = Some(a);
            }
        }
        let dx = match (inner, dx, outer.filter(|_| self.identity)) {
            (None, ..) => None,
            (Some(mut sum), other, residual) => {
                other.iter().chain(&residual).for_each(|other| add_into(&mut sum, other));
                Some(tensor(sum, shape)?)
            }
        };
        let len = gradients.len();
        Ok((dx, Some(tensor(gradients, len)?)))
    }
}

impl ConvBlock {
    /// `layers`: those of the path, then the shortcut's if it has one; `track`: whether a gradient will be asked for.
    pub fn new(layers: Vec<Layer>, path: usize, identity: bool, eps: f64, groups: usize, keep: Keep, track: bool) -> Self {
        Self { layers, path, identity, eps, groups, keep, track, kept: Mutex::new(None), norms: Arc::default() }
    }

    /// Where the statistics of the norms will be once the forward pass has run.
    pub fn norms(&self) -> Arc<OnceLock<Vec<Statistics>>> {
        self.norms.clone()
    }

    fn side(&self) -> Option<&Layer> {
        self.layers.get(self.path)
    }

    fn norm(&self, layer: &Layer, s: &Statistics, relu: bool) -> BatchNorm {
        BatchNorm::from_statistics(layer.geometry.o, self.groups, relu, s.clone(), self.eps)
    }
}
