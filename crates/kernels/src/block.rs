//! Residual blocks: convolutions, each with its batch norm and ReLU, beside a shortcut, as one operation.

use candle_core::{DType, Result, Tensor, bail};

use crate::conv::Geometry;
use crate::cpu::block::{ConvBlocks, Layer, Layers, Settings};
use crate::cpu::memory::{on_cpu, tensor};
use crate::{BatchNormConfig, Conv2dConfig, batch_norm_train, check, conv2d};

/// A convolution without bias and the batch norm after it.
#[derive(Debug, Clone, Copy)]
pub struct ConvNorm<'a> {
    /// The convolution's weight, (O, C / groups, kh, kw).
    pub weight: &'a Tensor,
    /// The norm's scale, (O).
    pub scale: &'a Tensor,
    /// The norm's shift, (O).
    pub shift: &'a Tensor,
    /// The convolution's settings.
    pub config: Conv2dConfig,
}

/// What is added to the last norm's result before its ReLU.
#[derive(Debug, Clone, Copy)]
pub enum Shortcut<'a> {
    /// Nothing.
    None,
    /// The input itself.
    Identity,
    /// The input after a convolution and a norm, without a ReLU.
    ConvNorm(ConvNorm<'a>),
}

/// One block of [`conv_blocks`].
#[derive(Debug, Clone)]
pub struct BlockParts<'a> {
    /// Its layers; one at least.
    pub path: Vec<ConvNorm<'a>>,
    /// What is added before its last ReLU.
    pub shortcut: Shortcut<'a>,
}

/// What [`conv_block`] and [`conv_blocks`] give.
#[derive(Debug, Clone)]
pub struct ConvBlockOutput {
    /// The result, (N, H', W', O).
    pub y: Tensor,
    /// What each norm saw: those of the path in order, then the shortcut's.
    pub statistics: Vec<NormStatistics>,
}

/// The statistics of one norm, without a graph.
#[derive(Debug, Clone)]
pub struct NormStatistics {
    /// Mean of every block and channel, (groups, O).
    pub mean: Tensor,
    /// Biased variance, (groups, O).
    pub var: Tensor,
    /// Values that each of them is made of.
    pub count: usize,
}

/// How values are kept between the forward and the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16, in half the memory. On the CPU the forward pass is not touched by it, and gradients see the rounded values. Where
    /// [`crate::takes_bf16`] says so, activations are bfloat16 in both passes, with sums and statistics in `f32`, and so is the result of
    /// residual blocks.
    Bf16,
}

/// A residual block (He et al. 2016) in training: every layer of `path` is a convolution, batch normalisation by the batch's own
/// statistics (of `groups` equal blocks of the batch axis, as [`batch_norm_train`]) and a ReLU; the shortcut is added before the
/// last ReLU.
///
/// The same as the chain of [`conv2d`] and [`batch_norm_train`], with less memory and traffic: between the passes only the
/// convolutions' results are kept, activations are computed again from them, and no gradient inside of the block is added
/// to zeros first.
///
/// The backward pass uses up what was kept; a second one on the same result is an error.
///
/// # Shapes
/// `x` (N, H, W, C); the result (N, H', W', O) of the last convolution. The shortcut must give the same shape.
///
/// # Errors
/// When a tensor is not `f32`, shapes do not fit, `path` is empty, the batch is empty or not divisible by `groups`.
pub fn conv_block(
    x: &Tensor,
    path: &[ConvNorm<'_>],
    shortcut: Shortcut<'_>,
    eps: f64,
    groups: usize,
    keep: Keep,
) -> Result<ConvBlockOutput> {
    conv_blocks(x, &[BlockParts { path: path.to_vec(), shortcut }], eps, groups, keep)
}

/// Residual blocks one after the other, as [`conv_block`] each: between them, too, no gradient is added to zeros, and what a
/// block gave the next one is freed as the backward pass goes by. The statistics are the blocks' in order.
///
/// # Shapes
/// As [`conv_block`], each block's input being the result of the one before it. No blocks give `x` back.
///
/// # Errors
/// As [`conv_block`].
pub fn conv_blocks(x: &Tensor, blocks: &[BlockParts<'_>], eps: f64, groups: usize, keep: Keep) -> Result<ConvBlockOutput> {
    const OP: &str = "conv_block";
    let (n, ..) = check::nhwc(OP, x)?;
    if groups == 0 || n == 0 || n % groups != 0 {
        bail!("{OP}: groups is {groups}, which must divide the batch of {n}, which must not be empty");
    }
    if blocks.is_empty() {
        return Ok(ConvBlockOutput { y: x.clone(), statistics: Vec::new() });
    }
    let (mut all, mut parameters, mut sizes) = (Vec::with_capacity(blocks.len()), Vec::new(), Vec::new());
    let (mut shape, mut offset) = (x.dims().to_vec(), 0);
    for BlockParts { path, shortcut } in blocks {
        let mut layers = Vec::with_capacity(path.len() + 1);
        let input = shape.clone();
        let mut add = |layer: &ConvNorm<'_>, from: &[usize]| -> Result<Vec<usize>> {
            let (geometry, to) = described(OP, from, layer, x)?;
            let described = Layer { geometry, offset };
            offset += described.parameters();
            layers.push(described);
            parameters.extend([layer.weight.flatten_all()?, layer.scale.clone(), layer.shift.clone()]);
            sizes.push((geometry.o, n / groups * geometry.oh * geometry.ow));
            Ok(to)
        };
        if path.is_empty() {
            bail!("{OP}: path has no layers, expected one or more");
        }
        for layer in path {
            shape = add(layer, &shape)?;
        }
        let side = match shortcut {
            Shortcut::None => shape.clone(),
            Shortcut::Identity => input,
            Shortcut::ConvNorm(layer) => add(layer, &input)?,
        };
        if side != shape {
            bail!("{OP}: the path ends in {shape:?} but the shortcut in {side:?}; they must be equal");
        }
        all.push(Layers { all: layers, path: path.len(), identity: matches!(shortcut, Shortcut::Identity) });
    }
    if !on_cpu(x) {
        let half = keep == Keep::Bf16 && crate::takes_bf16(x.device());
        let (mut y, mut statistics) = (if half { x.to_dtype(DType::BF16)? } else { x.clone() }, Vec::new());
        for block in blocks {
            let out = composed(&y, &block.path, block.shortcut, eps, groups)?;
            statistics.extend(out.statistics);
            y = out.y;
        }
        return Ok(ConvBlockOutput { y, statistics });
    }
    // A custom operation has three inputs at most, so all parameters become one.
    let packed = Tensor::cat(&parameters, 0)?;
    let track = x.track_op() || packed.track_op();
    let op = ConvBlocks::new(all, Settings { eps, groups, keep }, track);
    let norms = op.norms();
    let y = x.contiguous()?.apply_op2(&packed, op)?;
    let norms = norms.get().map(Vec::as_slice).unwrap_or_default();
    let statistics = norms
        .iter()
        .flatten()
        .zip(sizes)
        .map(|(s, (channels, count))| {
            let shape = (groups, channels);
            Ok(NormStatistics { mean: tensor(s.mean.clone(), shape)?, var: tensor(s.var.clone(), shape)?, count })
        })
        .collect::<Result<_>>()?;
    Ok(ConvBlockOutput { y, statistics })
}

/// Checks a layer whose input has the shape `input`; its geometry and the shape of its output.
fn described(op: &str, input: &[usize], layer: &ConvNorm<'_>, on: &Tensor) -> Result<(Geometry, Vec<usize>)> {
    check::f32_on(op, "a convolution's weight", layer.weight, on)?;
    let geometry = Geometry::of_sizes(input, layer.weight.dims(), layer.config)?;
    check::shaped(op, "a norm's scale", layer.scale, &[geometry.o], on)?;
    check::shaped(op, "a norm's shift", layer.shift, &[geometry.o], on)?;
    let shape = vec![geometry.n, geometry.oh, geometry.ow, geometry.o];
    if shape.contains(&0) {
        bail!("{op}: a convolution's result has shape {shape:?}; statistics need at least one value a channel");
    }
    Ok((geometry, shape))
}

/// The same as a chain of the crate's operations.
fn composed(x: &Tensor, path: &[ConvNorm<'_>], shortcut: Shortcut<'_>, eps: f64, groups: usize) -> Result<ConvBlockOutput> {
    let run = |x: &Tensor, layer: &ConvNorm<'_>, residual: Option<&Tensor>, relu: bool| {
        let config = BatchNormConfig { eps, relu, groups };
        let c = conv2d(x, layer.weight, layer.config)?;
        let count = c.elem_count() / layer.scale.elem_count() / groups;
        let out = batch_norm_train(&c, Some(layer.scale), Some(layer.shift), residual, config)?;
        Ok::<_, candle_core::Error>((out.y, NormStatistics { mean: out.mean, var: out.var, count }))
    };
    let (residual, last) = match &shortcut {
        Shortcut::None => (None, None),
        Shortcut::Identity => (Some(x.clone()), None),
        Shortcut::ConvNorm(layer) => {
            let (y, statistics) = run(x, layer, None, false)?;
            (Some(y), Some(statistics))
        }
    };
    let (mut y, mut statistics) = (x.clone(), Vec::new());
    for (i, layer) in path.iter().enumerate() {
        let residual = residual.as_ref().filter(|_| i + 1 == path.len());
        let (next, seen) = run(&y, layer, residual, true)?;
        statistics.push(seen);
        y = next;
    }
    statistics.extend(last);
    Ok(ConvBlockOutput { y, statistics })
}
