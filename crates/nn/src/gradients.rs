//! Gradients by name, checked for gaps.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

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
            self.scale(max / (norm + 1e-6))?;
        }
        Ok(norm)
    }

    /// [`Gradients::clip_norm`] without the norm: on devices other than the processor nothing is read back, so that the host need not wait.
    ///
    /// # Errors
    /// When candle fails.
    pub fn limit_norm(&mut self, max: f64) -> Result<()> {
        if self.on_cpu() {
            return self.clip_norm(max).map(|_| ());
        }
        self.limit_norm_there(max)
    }

    /// Scales each gradient by itself so that its norm is at most `max` (DINO's `clip_gradients`). On devices other than the processor
    /// nothing is read back.
    ///
    /// # Errors
    /// When candle fails.
    pub fn clip_each(&mut self, max: f64) -> Result<()> {
        if !self.on_cpu() {
            return self.clip_each_there(max);
        }
        let squares = self.squares()?;
        for (gradient, square) in self.map.values_mut().zip(squares) {
            let factor = max / (square.sqrt() + 1e-6);
            if factor < 1.0 {
                *gradient = (&*gradient * factor)?;
            }
        }
        Ok(())
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

    /// [`Gradients::limit_norm`] on the gradients' device.
    fn limit_norm_there(&mut self, max: f64) -> Result<()> {
        let squares = self.map.values().map(|g| Ok(g.sqr()?.sum_all()?)).collect::<Result<Vec<Tensor>>>()?;
        if squares.is_empty() {
            return Ok(());
        }
        let factor = factor(&Tensor::stack(&squares, 0)?.sum_all()?, max)?;
        for gradient in self.map.values_mut() {
            *gradient = gradient.broadcast_mul(&factor)?;
        }
        Ok(())
    }

    /// [`Gradients::clip_each`] on the gradients' device.
    fn clip_each_there(&mut self, max: f64) -> Result<()> {
        for gradient in self.map.values_mut() {
            let factor = factor(&gradient.sqr()?.sum_all()?, max)?;
            *gradient = gradient.broadcast_mul(&factor)?;
        }
        Ok(())
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

/// What takes a norm, whose square is given, to at most `max`: max / (norm + 1e-6), at most 1.
fn factor(square: &Tensor, max: f64) -> Result<Tensor> {
    Ok(((square.sqrt()? + 1e-6)?.recip()? * max)?.minimum(1.0)?)
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
            let (mut whole, mut whole_there, mut each, mut each_there) = (gradients()?, gradients()?, gradients()?, gradients()?);
            whole.clip_norm(max)?;
            whole_there.limit_norm_there(max)?;
            each.clip_each(max)?;
            each_there.clip_each_there(max)?;
            for (want, got) in
                whole.map.values().zip(whole_there.map.values()).chain(each.map.values().zip(each_there.map.values()))
            {
                for (want, got) in want.to_vec1::<f32>()?.into_iter().zip(got.to_vec1::<f32>()?) {
                    assert!((want - got).abs() <= 2e-6 * want.abs(), "{max}: {got} for {want}");
                }
            }
        }
        let mut limited = gradients()?;
        limited.limit_norm(0.5)?;
        assert!((limited.norm()? - 0.5).abs() < 1e-5);
        Gradients::default().limit_norm_there(1.0)
    }
}
