//! Residual blocks on the CPU: one custom operation for a chain of them, whose backward pass walks blocks and layers itself.
//!
//! Kept between the passes are the convolutions' results and the statistics, not the activations: these are one pass over
//! memory away.

use std::borrow::Cow;
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

/// The layers of one block.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    /// The path's layers, then the shortcut's if it has one.
    pub all: Vec<Layer>,
    /// Layers of the path.
    pub path: usize,
    /// Whether the shortcut is the input itself.
    pub identity: bool,
}

/// The operation of (x, packed parameters) → y: block after block.
pub(crate) struct ConvBlocks {
    blocks: Vec<Layers>,
    settings: Settings,
    track: bool,
    kept: Mutex<Option<Between>>,
    norms: Arc<OnceLock<Vec<Vec<Statistics>>>>,
}

/// What all blocks have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Added to variances.
    pub eps: f64,
    /// Equal blocks of the batch axis with statistics of their own.
    pub groups: usize,
    /// How values are kept between the passes.
    pub keep: Keep,
}

/// What lies between the passes.
struct Between {
    /// The convolutions' results of every block.
    results: Vec<Vec<Kept>>,
    /// The results of every block but the last.
    between: Vec<Kept>,
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

impl CustomOp2 for ConvBlocks {
    fn name(&self) -> &'static str {
        "twinsight-conv-blocks"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, packed) = (values(s1, l1)?, values(s2, l2)?);
        let (mut results, mut between, mut norms) = (Vec::new(), Vec::new(), Vec::new());
        let mut last: Option<Vec<f32>> = None;
        let mut shape = l1.shape().clone();
        for layers in &self.blocks {
            let block = Block { layers, settings: self.settings };
            let (y, kept, seen) = block.forward(last.as_deref().unwrap_or(x), packed);
            if self.track {
                between.extend(last.take().map(|input| Kept::new(input, self.settings.keep)));
                results.push(kept.into_iter().map(|c| Kept::new(c, self.settings.keep)).collect());
            }
            norms.push(seen);
            last = Some(y);
            let g = &layers.all[layers.path - 1].geometry;
            shape = Shape::from((g.n, g.oh, g.ow, g.o));
        }
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = self.track.then_some(Between { results, between });
        // A second forward pass of the same operation computes the same statistics.
        let _ = self.norms.set(norms);
        Ok((CpuStorage::F32(last.unwrap_or_else(|| x.to_vec())), shape))
    }

    fn bwd(&self, x: &Tensor, packed: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(Between { mut results, mut between }), Some(norms)) = (kept, self.norms.get()) else {
            bail!("conv_block: backward ran before on this result and used up what was kept; run the forward pass again");
        };
        let grad = grad.contiguous()?;
        let (to_x, to_parameters) = (x.track_op(), packed.track_op());
        let shape = x.shape().clone();
        let ((xs, xl), (ps, pl)) = (x.storage_and_layout(), packed.storage_and_layout());
        let ((ys, yl), (gs, gl)) = (y.storage_and_layout(), grad.storage_and_layout());
        let (x, packed) = (host(&xs, xl)?, host(&ps, pl)?);
        let (mut y, mut g) = (Cow::Borrowed(host(&ys, yl)?), Some(Cow::Borrowed(host(&gs, gl)?)));
        let mut gradients = vec![0.0f32; packed.len()];
        for (i, layers) in self.blocks.iter().enumerate().rev() {
            let block = Block { layers, settings: self.settings };
            let input = match i {
                0 => Cow::Borrowed(x),
                _ => Cow::Owned(pop(&mut between)?),
            };
            let (Some(kept), Some(from)) = (results.pop(), g.take()) else { bail!("internal: conv_block kept too little") };
            // Nothing upstream of frozen blocks needs their gradients.
            let asked = to_parameters.then_some(&mut gradients[..]);
            let dx = block.backward([&input, &y, &from], packed, kept, &norms[i], asked, to_x || (i > 0 && to_parameters))?;
            g = dx.map(Cow::Owned);
            y = input;
        }
        let dx = g.filter(|_| to_x).map(|g| tensor(g.into_owned(), shape)).transpose()?;
        let len = gradients.len();
        Ok((dx, to_parameters.then(|| tensor(gradients, len)).transpose()?))
    }
}

/// One block at work.
struct Block<'a> {
    layers: &'a Layers,
    settings: Settings,
}

impl Block<'_> {
    /// The result, the convolutions' results, and the statistics of every norm.
    fn forward(&self, x: &[f32], packed: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>, Vec<Statistics>) {
        let convolve = |layer: &Layer, x: &[f32]| {
            let c = conv::traced(&layer.geometry, Pass::Forward, x, layer.weight(packed), &[]);
            let s = statistics(&c, layer.geometry.o, self.settings.groups);
            (c, s)
        };
        let side = self.side().map(|layer| {
            let (c, s) = convolve(layer, x);
            let r = self.norm(layer, &s, false).forward(&c, layer.affine(packed), None);
            (c, s, r)
        });
        let (mut kept, mut norms) = (Vec::new(), Vec::new());
        let mut a = Cow::Borrowed(x);
        for layer in &self.layers.all[..self.layers.path - 1] {
            let (c, s) = convolve(layer, &a);
            a = Cow::Owned(self.norm(layer, &s, true).forward(&c, layer.affine(packed), None));
            norms.push(s);
            kept.push(c);
        }
        let layer = &self.layers.all[self.layers.path - 1];
        let (c, s) = convolve(layer, &a);
        drop(a);
        let residual = match &side {
            Some((.., r)) => Some(r.as_slice()),
            None => self.layers.identity.then_some(x),
        };
        let y = self.norm(layer, &s, true).forward(&c, layer.affine(packed), residual);
        norms.push(s);
        kept.push(c);
        if let Some((c, s, _)) = side {
            norms.push(s);
            kept.push(c);
        }
        (y, kept, norms)
    }

    /// Writes the gradients of the parameters, and gives the one to x, where they are asked for.
    fn backward(
        &self,
        [x, y, grad]: [&[f32]; 3],
        packed: &[f32],
        mut kept: Vec<Kept>,
        norms: &[Statistics],
        mut gradients: Option<&mut [f32]>,
        to_x: bool,
    ) -> Result<Option<Vec<f32>>> {
        let mut put = |layer: &Layer, x: &[f32], dc: &[f32], affine: &[f32]| {
            if let Some(gradients) = gradients.as_deref_mut() {
                let (start, middle) = (layer.offset, layer.offset + layer.weights());
                gradients[start..middle].copy_from_slice(&conv::traced(&layer.geometry, Pass::ToWeight, x, &[], dc));
                gradients[middle..middle + affine.len()].copy_from_slice(affine);
            }
        };
        let to_input = |layer: &Layer, dc: &[f32]| conv::traced(&layer.geometry, Pass::ToInput, &[], layer.weight(packed), dc);
        let mut side = match self.side() {
            Some(layer) => Some((layer, pop(&mut kept)?)),
            None => None,
        };
        let shortcut = side.is_some() || self.layers.identity;
        // The gradient to x through the shortcut.
        let mut other = None;
        let mut inner: Option<Vec<f32>> = None;
        // The activations of the layer above, computed for its weights' gradient: they gate this layer's norm.
        let mut gate: Option<Vec<f32>> = None;
        for (i, layer) in self.layers.all[..self.layers.path].iter().enumerate().rev() {
            let c = pop(&mut kept)?;
            let (norm, affine) = (self.norm(layer, &norms[i], true), layer.affine(packed));
            let (dc, d_affine) = match inner.take() {
                // The last layer.
                None if shortcut => {
                    let (dc, d_affine, cut) = norm.gradients_and_cut(&c, affine, y, grad);
                    other = match side.take() {
                        None => Some(cut),
                        Some((layer, c)) => {
                            let norm = self.norm(layer, &norms[self.layers.path], false);
                            let (dc, d_affine) = norm.gradients(&c, layer.affine(packed), None, &cut);
                            drop((c, cut));
                            put(layer, x, &dc, &d_affine);
                            to_x.then(|| to_input(layer, &dc))
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
                    let (below, lower) = (pop(&mut kept)?, &self.layers.all[i - 1]);
                    let a = self.norm(lower, &norms[i - 1], true).forward(&below, lower.affine(packed), None);
                    kept.push(Kept::F32(below));
                    Cow::Owned(a)
                }
            };
            put(layer, &input, &dc, &d_affine);
            if i > 0 || to_x {
                inner = Some(to_input(layer, &dc));
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

impl Block<'_> {
    fn side(&self) -> Option<&Layer> {
        self.layers.all.get(self.layers.path)
    }

    fn norm(&self, layer: &Layer, s: &Statistics, relu: bool) -> BatchNorm {
        BatchNorm::from_statistics(layer.geometry.o, self.settings.groups, relu, s.clone(), self.settings.eps)
    }
}

impl ConvBlocks {
    /// `track`: whether a gradient will be asked for.
    pub fn new(blocks: Vec<Layers>, settings: Settings, track: bool) -> Self {
        Self { blocks, settings, track, kept: Mutex::new(None), norms: Arc::default() }
    }

    /// Where the statistics of every block's norms will be once the forward pass has run.
    pub fn norms(&self) -> Arc<OnceLock<Vec<Vec<Statistics>>>> {
        self.norms.clone()
    }
}
