//! Optimizers over parameters by name: SGD, AdamW, LARS. Biases, norms and tokens are neither decayed nor scaled by LARS.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use twinsight_kernels::update::{self, AdamwConfig, AdamwTensor, LarsConfig, SgdConfig, SgdTensor};

use crate::{Error, Gradients, ParamStore, Parameter, Result, Role, StateVisitor};

/// Which optimizer, with its constants. Learning rate and weight decay are given anew with each step; the decay here is the
/// one that a fixed schedule would use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent as `torch.optim.SGD`; the decay is added to the gradient.
    Sgd {
        /// 0 to below 1.
        momentum: f64,
        /// Nesterov's form.
        nesterov: bool,
        /// L2 penalty.
        weight_decay: f64,
    },
    /// Loshchilov & Hutter 2019, as `torch.optim.AdamW`; the decay is decoupled.
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        eps: f64,
        /// Decoupled decay.
        weight_decay: f64,
    },
    /// You et al. 2017, as `lightly.utils.lars.LARS`: a parameter that is not decayed (at a decay of 0, none is) has no
    /// trust ratio, and one whose norm or gradient is zero is neither scaled nor decayed.
    Lars {
        /// 0 to below 1.
        momentum: f64,
        /// L2 penalty, inside the trust ratio.
        weight_decay: f64,
        /// η.
        trust_coefficient: f64,
        /// Added to the denominator of the ratio.
        eps: f64,
        /// Whether trust ratio / learning rate is clipped at 1 (solo-learn's option).
        clip: bool,
        /// Nesterov's form.
        nesterov: bool,
    },
}

impl OptimizerConfig {
    /// Whether every constant is in its range.
    ///
    /// # Errors
    /// The first that is not, by name.
    pub fn check(&self) -> Result<()> {
        let share = |name: &str, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(Error::BadSetting(format!("optimizer {name} = {value} is not in 0 to below 1"))),
        };
        let positive = |name: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::BadSetting(format!("optimizer {name} = {value} is not above 0"))),
        };
        let heavy_ball = |momentum: f64, nesterov: bool| {
            share("momentum", momentum)?;
            match nesterov && momentum == 0.0 {
                true => Err(Error::BadSetting("optimizer nesterov = true needs a momentum above 0".into())),
                false => Ok(()),
            }
        };
        let (Self::Sgd { weight_decay, .. } | Self::AdamW { weight_decay, .. } | Self::Lars { weight_decay, .. }) = *self;
        decay_in_range(weight_decay)?;
        match *self {
            Self::Sgd { momentum, nesterov, .. } => heavy_ball(momentum, nesterov),
            Self::AdamW { beta1, beta2, eps, .. } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                positive("eps", eps)
            }
            Self::Lars { momentum, nesterov, trust_coefficient, eps, .. } => {
                heavy_ball(momentum, nesterov)?;
                positive("trust_coefficient", trust_coefficient)?;
                positive("eps", eps)
            }
        }
    }
}

fn decay_in_range(value: f64) -> Result<()> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::BadSetting(format!("weight_decay = {value} is not 0 or more"))),
    }
}

/// An optimizer with its state, which lives in variables keyed by the parameters' names.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
    steps: u64,
}

#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    first: Var,
    /// AdamW's second moment.
    second: Option<Var>,
    /// Steps that this parameter took part in (fewer than all when it was frozen for some).
    steps: u64,
}

impl Optimizer {
    /// An optimizer of all trainable parameters of `params`.
    ///
    /// # Errors
    /// Constants out of range.
    pub fn new(config: &OptimizerConfig, params: &ParamStore) -> Result<Self> {
        config.check()?;
        let two = matches!(config, OptimizerConfig::AdamW { .. });
        let slots = params
            .trainable()
            .map(|p| {
                let zeros = || Var::zeros(p.dims(), DType::F32, p.value().device());
                Ok(Slot { parameter: p.clone(), first: zeros()?, second: two.then(zeros).transpose()?, steps: 0 })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config: *config, slots, steps: 0 })
    }

    /// Updates every parameter that has a gradient, in place. `weight_decay` takes the place of the configuration's.
    ///
    /// All is checked before the first value changes.
    ///
    /// # Errors
    /// A gradient of another shape, or of a parameter that this optimizer does not have, by name; a learning rate or decay
    /// that is negative or not finite.
    pub fn step(&mut self, gradients: &Gradients, lr: f64, weight_decay: f64) -> Result<()> {
        if !(lr >= 0.0 && lr.is_finite()) {
            return Err(Error::BadSetting(format!("learning rate {lr} is not 0 or more")));
        }
        decay_in_range(weight_decay)?;
        self.check_names_and_shapes(gradients)?;
        self.steps += 1;
        let decayed = |p: &Parameter| if p.role() == Role::Weight { weight_decay } else { 0.0 };
        let mut active: Vec<(&mut Slot, &Tensor)> =
            self.slots.iter_mut().filter_map(|s| gradients.get(s.parameter.name()).map(|g| (s, g))).collect();
        active.iter_mut().for_each(|(slot, _)| slot.steps += 1);
        match self.config {
            OptimizerConfig::Sgd { momentum, nesterov, .. } => {
                let tensors: Vec<_> = active
                    .iter()
                    .map(|(s, grad)| SgdTensor {
                        param: s.parameter.var(),
                        grad,
                        momentum: &s.first,
                        lr,
                        weight_decay: decayed(&s.parameter),
                        scale: 1.0,
                    })
                    .collect();
                update::sgd(&tensors, SgdConfig { momentum, nesterov })?;
            }
            OptimizerConfig::Lars { momentum, nesterov, trust_coefficient, eps, clip, .. } => {
                let tensors: Vec<_> = active
                    .iter()
                    .map(|(s, grad)| SgdTensor {
                        param: s.parameter.var(),
                        grad,
                        momentum: &s.first,
                        lr,
                        weight_decay: decayed(&s.parameter),
                        scale: 1.0,
                    })
                    .collect();
                update::lars(&tensors, SgdConfig { momentum, nesterov }, LarsConfig { trust_coefficient, eps, clip })?;
            }
            OptimizerConfig::AdamW { beta1, beta2, eps, .. } => {
                // Parameters that were frozen for a while have taken fewer steps, which the bias correction counts.
                let mut counts: Vec<u64> = active.iter().map(|(s, _)| s.steps).collect();
                counts.sort_unstable();
                counts.dedup();
                for step in counts {
                    let tensors: Vec<_> = active
                        .iter()
                        .filter(|(s, _)| s.steps == step)
                        .filter_map(|(s, grad)| {
                            Some(AdamwTensor {
                                param: s.parameter.var(),
                                grad,
                                first: &s.first,
                                second: s.second.as_ref()?,
                                lr,
                                weight_decay: decayed(&s.parameter),
                            })
                        })
                        .collect();
                    update::adamw(&tensors, AdamwConfig { beta1, beta2, eps, step })?;
                }
            }
        }
        Ok(())
    }

    fn check_names_and_shapes(&self, gradients: &Gradients) -> Result<()> {
        let known: BTreeMap<&str, &[usize]> = self.slots.iter().map(|s| (s.parameter.name(), s.parameter.dims())).collect();
        for (name, gradient) in gradients.iter() {
            match known.get(name) {
                None => return Err(Error::ExtraTensor { place: "gradients".into(), name: name.into() }),
                Some(&expected) if expected != gradient.dims() => {
                    return Err(Error::ShapeMismatch {
                        place: "gradients".into(),
                        name: name.into(),
                        found: gradient.dims().to_vec(),
                        expected: expected.to_vec(),
                    });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Shows all state: momentum buffers, moments, step counts.
    ///
    /// # Errors
    /// The visitor's.
    pub fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        visitor.counter("optimizer.steps", &mut self.steps)?;
        for slot in &mut self.slots {
            let name = slot.parameter.name().to_string();
            visitor.tensor(&format!("optimizer.first.{name}"), &slot.first)?;
            if let Some(second) = &slot.second {
                visitor.tensor(&format!("optimizer.second.{name}"), second)?;
            }
            visitor.counter(&format!("optimizer.count.{name}"), &mut slot.steps)?;
        }
        Ok(())
    }
}
