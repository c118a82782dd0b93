//! Projection and prediction heads, used in training only, under lightly's parameter names (`layers.0.weight` …).

use candle_core::Tensor;
use twinsight_kernels::{gelu, l2_normalize, relu};
use twinsight_nn::{BatchNorm, Builder, Init, Linear, Mode, WeightNormLinear};

use crate::Result;

/// Linear layers with batch norm and a nonlinearity between them.
pub struct ProjectionHead {
    layers: Vec<(Linear, Option<BatchNorm>, Activation)>,
}

/// One layer of a [`ProjectionHead`].
#[derive(Debug, Clone, Copy)]
pub struct HeadLayer {
    /// Elements going in.
    pub inputs: usize,
    /// Elements coming out.
    pub outputs: usize,
    /// Whether something is added to the product.
    pub bias: bool,
    /// What normalises the product.
    pub norm: HeadNorm,
    /// What comes last.
    pub activation: Activation,
}

/// The norm behind a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorm {
    /// None.
    None,
    /// Batch norm.
    Batch,
    /// Batch norm without scale and shift.
    Plain,
}

/// A nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// None at all.
    None,
    /// max(x, 0).
    Relu,
    /// x Φ(x), exact.
    Gelu,
}

impl ProjectionHead {
    /// Builds `layers` under `b`. Names count norms and nonlinearities too, as PyTorch's `Sequential` does. Weights start by
    /// `init` and biases at 0, or, without `init`, both as PyTorch's linear layer does.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, layers: &[HeadLayer], init: Option<Init>) -> Result<Self> {
        let b = b.under("layers");
        let mut index = 0;
        let mut built = Vec::with_capacity(layers.len());
        for layer in layers {
            let here = b.under(index);
            let linear = match init {
                Some(init) => Linear::new(&here, layer.inputs, layer.outputs, layer.bias, init)?,
                None => Linear::torch_default(&here, layer.inputs, layer.outputs, layer.bias)?,
            };
            index += 1;
            let mut norm = None;
            if layer.norm != HeadNorm::None {
                norm = Some(BatchNorm::new(&b.under(index), layer.outputs, layer.norm == HeadNorm::Batch)?);
                index += 1;
            }
            index += usize::from(layer.activation != Activation::None);
            built.push((linear, norm, layer.activation));
        }
        Ok(Self { layers: built })
    }

    /// The heads of most methods: `widths` from input to output; linear layers without bias, each but the last with batch norm and ReLU
    /// behind it, and behind the last one `last`. Batch norm would undo the bias of what it follows.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn normed(b: &Builder, widths: &[usize], last: HeadNorm) -> Result<Self> {
        Self::layered(b, widths, HeadNorm::Batch, last, false)
    }

    /// Linear layers with biases and ReLU between them, without norms: the projector of MoCo v2.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn plain(b: &Builder, widths: &[usize]) -> Result<Self> {
        Self::layered(b, widths, HeadNorm::None, HeadNorm::None, true)
    }

    /// As [`ProjectionHead::normed`], with a bias in the last layer, which no norm follows: the predictor of SimSiam.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn normed_with_bias(b: &Builder, widths: &[usize]) -> Result<Self> {
        Self::layered(b, widths, HeadNorm::Batch, HeadNorm::None, true)
    }

    fn layered(b: &Builder, widths: &[usize], inner: HeadNorm, last: HeadNorm, bias: bool) -> Result<Self> {
        let count = widths.len().saturating_sub(1);
        let layers: Vec<HeadLayer> = widths
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let is_last = i + 1 == count;
                let norm = if is_last { last } else { inner };
                HeadLayer {
                    inputs: pair[0],
                    outputs: pair[1],
                    bias: bias && norm == HeadNorm::None,
                    norm,
                    activation: if is_last { Activation::None } else { Activation::Relu },
                }
            })
            .collect();
        Self::new(b, &layers, None)
    }

    /// (N, inputs) to (N, outputs).
    ///
    /// # Errors
    /// Another shape than the first layer's.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let mut x = x.clone();
        for (linear, norm, activation) in &self.layers {
            x = linear.forward(&x, mode)?;
            let cut = *activation == Activation::Relu;
            x = match (norm, activation) {
                (Some(norm), Activation::Gelu) => gelu(&norm.forward_fused(&x, None, false, mode)?)?,
                (Some(norm), _) => norm.forward_fused(&x, None, cut, mode)?,
                (None, Activation::Relu) => relu(&x)?,
                (None, Activation::Gelu) => gelu(&x)?,
                (None, Activation::None) => x,
            };
        }
        Ok(x)
    }
}

/// The sizes of a [`DinoHead`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DinoHeadShape {
    /// Width of the two hidden layers.
    pub hidden: usize,
    /// Elements of the bottleneck.
    pub bottleneck: usize,
    /// Prototypes.
    pub outputs: usize,
    /// Whether `weight_g` stays 1.
    pub norm_last_layer: bool,
    /// Whether the hidden layers are batch-normalised; they have no bias then, which the norm's own would only repeat.
    pub batch_norm: bool,
}

/// DINO's head: a perceptron of three layers with GELU down to a bottleneck, normalisation to length 1, and a linear layer
/// whose rows are `weight_g` times unit vectors (Caron et al. 2021, appendix C).
pub struct DinoHead {
    perceptron: ProjectionHead,
    last_layer: WeightNormLinear,
}

impl DinoHead {
    /// Builds the head of `shape` under `b` for vectors of `inputs` numbers.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(b: &Builder, inputs: usize, shape: &DinoHeadShape) -> Result<Self> {
        let DinoHeadShape { hidden, bottleneck, outputs, norm_last_layer, batch_norm } = *shape;
        let layer = |inputs, outputs, activation| {
            let norm = if batch_norm && activation == Activation::Gelu { HeadNorm::Batch } else { HeadNorm::None };
            HeadLayer { inputs, outputs, bias: norm == HeadNorm::None, norm, activation }
        };
        let layers = [
            layer(inputs, hidden, Activation::Gelu),
            layer(hidden, hidden, Activation::Gelu),
            layer(hidden, bottleneck, Activation::None),
        ];
        Ok(Self {
            perceptron: ProjectionHead::new(b, &layers, Some(Init::TruncNormal(0.02)))?,
            last_layer: WeightNormLinear::new(&b.under("last_layer"), bottleneck, outputs, norm_last_layer)?,
        })
    }

    /// (N, inputs) to the normalised bottleneck (N, bottleneck) and the logits (N, outputs).
    ///
    /// # Errors
    /// Another shape than the first layer's.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<(Tensor, Tensor)> {
        let bottleneck = l2_normalize(&self.perceptron.forward(x, mode)?, 1e-12)?;
        let logits = self.last_layer.forward(&bottleneck, mode)?;
        Ok((bottleneck, logits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    const SMALL: DinoHeadShape =
        DinoHeadShape { hidden: 16, bottleneck: 4, outputs: 32, norm_last_layer: true, batch_norm: false };

    fn names(b: &Builder) -> Vec<String> {
        b.finish().iter().map(|p| p.name().to_string()).collect()
    }

    #[test]
    fn names_are_those_of_lightly() -> Result<()> {
        let b = Builder::new(0, &Device::Cpu);
        ProjectionHead::normed(&b, &[8, 16, 4], HeadNorm::Batch)?;
        let norm = |i: usize| ["weight", "bias", "running_mean", "running_var"].map(|n| format!("layers.{i}.{n}")).to_vec();
        let mut want = vec!["layers.0.weight".to_string()];
        want.extend(norm(1));
        want.push("layers.3.weight".into());
        want.extend(norm(4));
        assert_eq!(names(&b), want);

        let b = Builder::new(0, &Device::Cpu);
        DinoHead::new(&b, 8, &SMALL)?;
        let found = names(&b);
        for name in ["layers.0.bias", "layers.2.weight", "layers.4.bias", "last_layer.weight_g", "last_layer.weight_v"] {
            assert!(found.iter().any(|n| n == name), "{name} is not in {found:?}");
        }
        assert_eq!(b.finish().trainable().count(), 7, "weight_g must be fixed");

        let b = Builder::new(0, &Device::Cpu);
        DinoHead::new(&b, 8, &DinoHeadShape { batch_norm: true, ..SMALL })?;
        let found = names(&b);
        for name in ["layers.0.weight", "layers.1.running_mean", "layers.3.weight", "layers.4.running_var", "layers.6.bias"] {
            assert!(found.iter().any(|n| n == name), "{name} is not in {found:?}");
        }
        Ok(())
    }

    #[test]
    fn the_bottleneck_has_length_one_and_logits_are_cosines() -> Result<()> {
        let b = Builder::new(0, &Device::Cpu);
        let head = DinoHead::new(&b, 8, &SMALL)?;
        let x = Tensor::arange(0f32, 24.0, &Device::Cpu)?.reshape((3, 8))?.to_dtype(DType::F32)?;
        let (bottleneck, logits) = head.forward(&x, &Mode::EVAL)?;
        assert_eq!((bottleneck.dims(), logits.dims()), (&[3, 4][..], &[3, 32][..]));
        for length in bottleneck.sqr()?.sum(1)?.to_vec1::<f32>()? {
            assert!((length - 1.0).abs() < 1e-5);
        }
        assert!(logits.abs()?.flatten_all()?.to_vec1::<f32>()?.iter().all(|&c| c <= 1.0 + 1e-5));
        Ok(())
    }
}
