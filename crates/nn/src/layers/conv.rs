//! Convolution over channels-last images.

use candle_core::Tensor;
use twinsight_kernels::Conv2dConfig;

use crate::{Builder, Init, Mode, Parameter, Result, Role};

/// A two-dimensional convolution with the parameters of `torch.nn.Conv2d`: `weight` (outputs, inputs / groups, k, k) and,
/// with a bias, `bias` (outputs). Images are (N, H, W, C).
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Parameter,
    bias: Option<Parameter>,
    config: Conv2dConfig,
}

impl Conv2d {
    /// A layer with a square kernel whose weight starts by `init` and whose bias, if any, at 0.
    ///
    /// # Errors
    /// Channels that the groups do not divide; a name that is taken.
    pub fn new(
        b: &Builder,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        config: Conv2dConfig,
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let groups = config.groups;
        if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) || kernel == 0 || config.stride == 0 {
            return Err(crate::Error::BadSetting(format!(
                "convolution {}: {inputs} to {outputs} channels, kernel {kernel}, {config:?}: groups must divide both, kernel and \
                 stride must be at least 1",
                b.prefix()
            )));
        }
        let shape = [outputs, inputs / groups, kernel, kernel];
        Ok(Self {
            weight: b.parameter("weight", &shape, Role::Weight, init)?,
            bias: bias.then(|| b.parameter("bias", &[outputs], Role::Bias, Init::Constant(0.0))).transpose()?,
            config,
        })
    }

    /// The weight and the settings, if the layer has no bias.
    pub(super) fn without_bias(&self, mode: &Mode) -> Option<(&Tensor, Conv2dConfig)> {
        self.bias.is_none().then(|| (self.weight.get(mode), self.config))
    }

    /// (N, H, W, inputs) → (N, H', W', outputs).
    ///
    /// # Errors
    /// Another number of channels, an image smaller than the kernel.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor> {
        let y = twinsight_kernels::conv2d(&mode.rounded(x)?, self.weight.get(mode), self.config)?.to_dtype(x.dtype())?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias.get(mode))?,
            None => y,
        })
    }
}
