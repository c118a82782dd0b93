//! Residual blocks on the CPU: one custom operation whose backward pass walks its layers itself.
//!
//! Kept between the passes are the convolutions' results and the statistics, not the activations: these are one pass over
//! memory away.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::batch_norm::{BatchNorm, Statistics, add_into, statistics};
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
        let g = &self.layers[self.path - 1].geometry;
        let shape = Shape::from((g.n, g.oh, g.ow, g.o));
        let mut y = Vec::with_capacity(shape.elem_count());
        let room = &mut y.spare_capacity_mut()[..shape.elem_count()];
        let (kept, norms) = self.forward(x, packed, room);
        // SAFETY: `forward` writes all of its room.
        unsafe { y.set_len(shape.elem_count()) };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = self.track.then_some(kept);
        // A second forward pass of the same operation computes the same statistics.
        let _ = self.norms.set(norms);
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, packed: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(kept), Some(norms)) = (kept, self.norms.get()) else {
            bail!("conv_block: backward ran before on this result and used up what was kept; run the forward pass again");
        };
        let grad = grad.contiguous()?;
        let to_x = x.track_op();
        let shape = x.shape().clone();
        let ((xs, xl), (ps, pl)) = (x.storage_and_layout(), packed.storage_and_layout());
        let ((ys, yl), (gs, gl)) = (y.storage_and_layout(), grad.storage_and_layout());
        let (x, packed, y, grad) = (host(&xs, xl)?, host(&ps, pl)?, host(&ys, yl)?, host(&gs, gl)?);
        let mut gradients = vec![0.0f32; packed.len()];
        let dx = self.backward([x, y, grad], packed, kept, norms, &mut gradients, to_x)?;
        let dx = dx.map(|dx| tensor(dx, shape)).transpose()?;
        let len = gradients.len();
        Ok((dx, Some(tensor(gradients, len)?)))
    }
}

impl ConvBlock {
    /// Writes the result to `y`; what is kept, and the statistics of every norm.
    fn forward(&self, x: &[f32], packed: &[f32], y: &mut [MaybeUninit<f32>]) -> (Vec<Kept>, Vec<Statistics>) {
        let convolve = |layer: &Layer, x: &[f32]| {
            let c = conv::traced(&layer.geometry, Pass::Forward, x, layer.weight(packed), &[]);
            let s = statistics(&c, layer.geometry.o, self.groups);
            (c, s)
        };
        let side = self.side().map(|layer| {
            let (c, s) = convolve(layer, x);
            let r = self.norm(layer, &s, false).forward(&c, layer.affine(packed), None);
            (c, s, r)
        });
        let (mut kept, mut norms) = (Vec::new(), Vec::new());
        let mut a = Cow::Borrowed(x);
        for layer in &self.layers[..self.path - 1] {
            let (c, s) = convolve(layer, &a);
            a = Cow::Owned(self.norm(layer, &s, true).forward(&c, layer.affine(packed), None));
            norms.push(s);
            kept.push(c);
        }
        let layer = &self.layers[self.path - 1];
        let (c, s) = convolve(layer, &a);
        drop(a);
        let residual = match &side {
            Some((.., r)) => Some(r.as_slice()),
            None => self.identity.then_some(x),
        };
        self.norm(layer, &s, true).forward_into(&c, layer.affine(packed), residual, y);
        norms.push(s);
        kept.push(c);
        if let Some((c, s, _)) = side {
            norms.push(s);
            kept.push(c);
        }
        match self.track {
            true => (kept.into_iter().map(|c| Kept::new(c, self.keep)).collect(), norms),
            false => (Vec::new(), norms),
        }
    }

    /// Writes the gradients of the parameters; the one to x if it is asked for.
    fn backward(
        &self,
        [x, y, grad]: [&[f32]; 3],
        packed: &[f32],
        mut kept: Vec<Kept>,
        norms: &[Statistics],
        gradients: &mut [f32],
        to_x: bool,
    ) -> Result<Option<Vec<f32>>> {
        let mut put = |layer: &Layer, weight: &[f32], affine: &[f32]| {
            let (start, middle) = (layer.offset, layer.offset + layer.weights());
            gradients[start..middle].copy_from_slice(weight);
            gradients[middle..middle + affine.len()].copy_from_slice(affine);
        };
        let convolve = |layer: &Layer, pass: Pass, x: &[f32], dc: &[f32]| {
            let weight = if pass == Pass::ToInput { layer.weight(packed) } else { &[] };
            conv::traced(&layer.geometry, pass, x, weight, dc)
        };
        let mut side = match self.side() {
            Some(layer) => Some((layer, pop(&mut kept)?)),
            None => None,
        };
        let shortcut = side.is_some() || self.identity;
        // The gradient to x through the shortcut.
        let mut other = None;
        let mut inner: Option<Vec<f32>> = None;
        // The activations of the layer above, computed for its weights' gradient: they gate this layer's norm.
        let mut gate: Option<Vec<f32>> = None;
        for (i, layer) in self.layers[..self.path].iter().enumerate().rev() {
            let c = pop(&mut kept)?;
            let (norm, affine) = (self.norm(layer, &norms[i], true), layer.affine(packed));
            let (dc, d_affine) = match inner.take() {
                // The last layer.
                None if shortcut => {
                    let (dc, d_affine, cut) = norm.gradients_and_cut(&c, affine, y, grad);
                    other = match side.take() {
                        None => Some(cut),
                        Some((layer, c)) => {
                            let norm = self.norm(layer, &norms[self.path], false);
                            let (dc, d_affine) = norm.gradients(&c, layer.affine(packed), None, &cut);
                            drop((c, cut));
                            put(layer, &convolve(layer, Pass::ToWeight, x, &dc), &d_affine);
                            to_x.then(|| convolve(layer, Pass::ToInput, &[], &dc))
                        }
                    };
                    (dc, d_affine)
                }
                None => norm.gradients(&c, affine, Some(y), grad),
                Some(g) => norm.gradients(&c, affine, gate.take().as_deref(), &g),
            };
            drop(c);
            let input = match i {
                0 => Cow::Borrowed(x),
                _ => {
                    // The layer below is needed again in the next turn.
                    let (below, lower) = (pop(&mut kept)?, &self.layers[i - 1]);
                    let a = self.norm(lower, &norms[i - 1], true).forward(&below, lower.affine(packed), None);
                    kept.push(Kept::F32(below));
                    Cow::Owned(a)
                }
            };
            put(layer, &convolve(layer, Pass::ToWeight, &input, &dc), &d_affine);
            if i > 0 || to_x {
                inner = Some(convolve(layer, Pass::ToInput, &[], &dc));
            }
            if let Cow::Owned(a) = input {
                gate = Some(a);
            }
        }
        if let (Some(sum), Some(other)) = (&mut inner, other) {
            add_into(sum, &other);
        }
        Ok(inner)
    }
}

/// The last of the kept results, as `f32`.
fn pop(kept: &mut Vec<Kept>) -> Result<Vec<f32>> {
    match kept.pop() {
        Some(c) => Ok(c.into_f32()),
        None => bail!("internal: conv_block kept too few results"),
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
