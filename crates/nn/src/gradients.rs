//! Gradients by name, checked for gaps.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use twinsight_kernels::update::Clip;

use crate::{Error, ParamStore, Result};

/// The gradients of a network's trainable parameters by name. What is absent is left alone by an optimizer.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    map: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Takes the gradients of all trainable parameters out of candle's store.
    ///
    /// # Errors
    /// A trainable parameter without one ([`Error::MissingGradient`]); candle itself would pass over it in silence.
    pub fn collect(store: &GradStore, params: &ParamStore) -> Result<Self> {
        let found = Self::collect_present(store, params)?;
        found.check_complete(params)?;
        Ok(found)
    }

    /// Takes what gradients there are of the trainable parameters: a part of a network's, to which others are added.
    ///
    /// # Errors
    /// When candle fails.
    pub fn collect_present(store: &GradStore, params: &ParamStore) -> Result<Self> {
        let present = params.trainable().filter_map(|p| Some((p.name().to_string(), store.get(p.var())?)));
        Ok(Self { map: present.map(|(name, g)| Ok((name, g.detach().contiguous()?))).collect::<Result<_>>()? })
    }

    /// Refuses a set that lacks a trainable parameter's gradient.
    ///
    /// # Errors
    /// [`Error::MissingGradient`], by name.
    pub fn check_complete(&self, params: &ParamStore) -> Result<()> {
        match params.trainable().find(|p| !self.map.contains_key(p.name())) {
            None => Ok(()),
            Some(p) => Err(Error::MissingGradient(p.name().to_string())),
        }
    }

    /// The gradient of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.map.get(name)
    }

    /// Takes out a gradient: the parameter is frozen for this step.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.map.remove(name)
    }

    /// All gradients in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Looks for values that are not finite.
    ///
    /// # Errors
    /// [`Error::NonFiniteGradient`] with the first parameter, in order of names, whose gradient holds NaN or infinity.
    pub fn check_finite(&self) -> Result<()> {
        for ((name, gradient), square) in self.map.iter().zip(self.squares()?) {
            // A bad value makes a bad sum. On the CPU nothing else does; on other devices squares are added in `f32`, where a norm above
            // 1.8e19 makes one too.
            if !square.is_finite() && has_bad(gradient)? {
                return Err(Error::NonFiniteGradient(name.clone()));
            }
        }
        Ok(())
    }

    /// The L2 norm of all gradients together.
    ///
    /// # Errors
    /// When candle fails.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.squares()?.iter().sum::<f64>().sqrt())
    }

    /// Scales all gradients so that their norm together is at most `max`; returns the norm before.
    ///
    /// # Errors
    /// When candle fails.
    pub fn clip_norm(&mut self, max: f64) -> Result<f64> {
        let norm = self.norm()?;
        if norm > max {
            match self.on_cpu() {
                true => self.scale(max / (norm + 1e-6))?,
                false => self.clip(max, Clip::Together)?,
            }
        }
        Ok(norm)
    }

    /// [`Gradients::clip_norm`] without the norm: on devices other than the processor nothing is read back, so that the host need not wait.
    ///
    /// # Errors
    /// When candle fails.
    pub fn limit_norm(&mut self, max: f64) -> Result<()> {
        self.clip(max, Clip::Together)
    }

    /// Scales each gradient by itself so that its norm is at most `max` (DINO's `clip_gradients`). On devices other than the processor
    /// nothing is read back.
    ///
    /// # Errors
    /// When candle fails.
    pub fn clip_each(&mut self, max: f64) -> Result<()> {
        self.clip(max, Clip::Each)
    }

    /// Multiplies all gradients.
    ///
    /// # Errors
    /// When candle fails.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.map.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// Adds other gradients of the same network; a name that only they have is taken over.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        for (name, gradient) in &other.map {
            let sum = match self.map.get(name) {
                Some(own) => (own + gradient)?,
                None => gradient.clone(),
            };
            self.map.insert(name.clone(), sum);
        }
        Ok(())
    }

    fn on_cpu(&self) -> bool {
        self.map.values().all(|g| g.device().is_cpu())
    }

    fn clip(&mut self, max: f64, of: Clip) -> Result<()> {
        let mut all: Vec<&mut Tensor> = self.map.values_mut().collect();
        Ok(twinsight_kernels::update::clip(&mut all, max, of)?)
    }

    fn squares(&self) -> Result<Vec<f64>> {
        let all: Vec<&Tensor> = self.map.values().collect();
        Ok(twinsight_kernels::update::square_sums(&all)?)
    }
}

/// Whether a value is NaN or infinite.
fn has_bad(gradient: &Tensor) -> Result<bool> {
    Ok(gradient.flatten_all()?.to_vec1::<f32>()?.iter().any(|v| !v.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn gradients() -> Result<Gradients> {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu);
        let named = [("a", tensor(&[3.0, -4.0])?), ("b", tensor(&[0.1, 0.2, -0.2])?), ("c", tensor(&[0.0])?)];
        Ok(Gradients { map: named.into_iter().map(|(name, g)| (name.to_string(), g)).collect() })
    }

    #[test]
    fn clipping_without_looking_is_clipping() -> Result<()> {
        for max in [0.05, 0.3, 4.0, 100.0] {
            let (mut whole, mut limited) = (gradients()?, gradients()?);
            let norm = whole.clip_norm(max)?;
            limited.limit_norm(max)?;
            assert!((norm - 25.09_f64.sqrt()).abs() < 1e-6);
            for (want, got) in whole.map.values().zip(limited.map.values()) {
                assert_eq!(want.to_vec1::<f32>()?, got.to_vec1::<f32>()?, "{max}");
            }
            assert!(limited.norm()? <= max * (1.0 + 1e-6));
        }
        Gradients::default().limit_norm(1.0)
    }
}
