//! One walk over all state, taken by two visitors: one that saves, one that loads.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::{Error, ParamStore, Result};

/// Is shown every piece of state by name, and may read or overwrite it.
pub trait StateVisitor {
    /// A tensor that lives in `var`.
    ///
    /// # Errors
    /// A name that was shown before; while loading, a tensor that is missing or misshapen.
    fn tensor(&mut self, name: &str, var: &Var) -> Result<()>;

    /// A whole number.
    ///
    /// # Errors
    /// As [`StateVisitor::tensor`].
    fn counter(&mut self, name: &str, value: &mut u64) -> Result<()>;

    /// A number.
    ///
    /// # Errors
    /// As [`StateVisitor::tensor`].
    fn scalar(&mut self, name: &str, value: &mut f64) -> Result<()>;

    /// Every parameter and buffer of a network, under `prefix.`.
    ///
    /// # Errors
    /// As [`StateVisitor::tensor`].
    fn params(&mut self, prefix: &str, params: &ParamStore) -> Result<()> {
        params.iter().try_for_each(|p| self.tensor(&format!("{prefix}.{}", p.name()), p.var()))
    }
}

/// Takes deep copies of all state. Numbers become 0-d tensors, exact to the bit.
#[derive(Debug, Default)]
pub struct StateSaver {
    tensors: BTreeMap<String, Tensor>,
}

impl StateSaver {
    /// A saver that holds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was seen.
    pub fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.tensors
    }

    fn put(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        match self.tensors.insert(name.to_string(), tensor) {
            None => Ok(()),
            Some(_) => Err(Error::DuplicateParameter(name.to_string())),
        }
    }
}

impl StateVisitor for StateSaver {
    fn tensor(&mut self, name: &str, var: &Var) -> Result<()> {
        // Not `copy`, whose result shares its memory on Metal.
        self.put(name, var.as_detached_tensor().force_contiguous()?)
    }

    fn counter(&mut self, name: &str, value: &mut u64) -> Result<()> {
        self.put(name, Tensor::new(*value as i64, &Device::Cpu)?)
    }

    fn scalar(&mut self, name: &str, value: &mut f64) -> Result<()> {
        self.put(name, Tensor::new(*value, &Device::Cpu)?)
    }
}

/// Overwrites all state with saved tensors, strictly.
///
/// Tensors are checked during the walk and written by [`StateLoader::finish`], so that an error leaves every tensor as it
/// was. Counters and scalars are lent for a moment only, and are written at once.
#[derive(Debug)]
#[must_use = "tensors are written by `finish`"]
pub struct StateLoader {
    tensors: BTreeMap<String, Tensor>,
    checked: Vec<(Var, Tensor)>,
    place: String,
}

impl StateLoader {
    /// A loader of `tensors`; `place` (a file) is named in errors.
    pub fn new(tensors: BTreeMap<String, Tensor>, place: impl Into<String>) -> Self {
        Self { tensors, checked: Vec::new(), place: place.into() }
    }

    /// To be called after the walk: writes all tensors.
    ///
    /// # Errors
    /// A tensor that nothing asked for; then none is written.
    pub fn finish(self) -> Result<()> {
        match self.tensors.into_keys().next() {
            None => self.checked.iter().try_for_each(|(var, tensor)| Ok(var.set(tensor)?)),
            Some(name) => Err(Error::ExtraTensor { place: self.place, name }),
        }
    }

    fn take(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let Some(tensor) = self.tensors.remove(name) else {
            return Err(Error::MissingTensor { place: self.place.clone(), name: name.into(), expected: shape.to_vec() });
        };
        if tensor.dims() != shape {
            return Err(Error::ShapeMismatch {
                place: self.place.clone(),
                name: name.into(),
                found: tensor.dims().to_vec(),
                expected: shape.to_vec(),
            });
        }
        if tensor.dtype() != dtype {
            return Err(Error::BadFile {
                path: self.place.clone().into(),
                reason: format!("tensor `{name}` has element type {:?}, expected {dtype:?}", tensor.dtype()),
            });
        }
        Ok(tensor)
    }
}

impl StateVisitor for StateLoader {
    fn tensor(&mut self, name: &str, var: &Var) -> Result<()> {
        let tensor = self.take(name, var.dims(), var.dtype())?;
        self.checked.push((var.clone(), tensor.to_device(var.device())?.contiguous()?));
        Ok(())
    }

    fn counter(&mut self, name: &str, value: &mut u64) -> Result<()> {
        *value = self.take(name, &[], DType::I64)?.to_scalar::<i64>()? as u64;
        Ok(())
    }

    fn scalar(&mut self, name: &str, value: &mut f64) -> Result<()> {
        *value = self.take(name, &[], DType::F64)?.to_scalar::<f64>()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(v: &mut dyn StateVisitor, var: &Var, count: &mut u64, number: &mut f64) -> Result<()> {
        v.tensor("a.weight", var)?;
        v.counter("steps", count)?;
        v.scalar("best", number)
    }

    #[test]
    fn what_was_saved_is_loaded_to_the_bit() -> Result<()> {
        let var = Var::from_vec(vec![1.0_f32, f32::MIN_POSITIVE, -0.0], 3, &Device::Cpu)?;
        let (mut count, mut number) = (u64::MAX / 3, f64::NAN);
        let mut saver = StateSaver::new();
        walk(&mut saver, &var, &mut count, &mut number)?;
        let saved = saver.into_tensors();
        var.set(&Tensor::zeros(3, DType::F32, &Device::Cpu)?)?;
        let (mut c, mut n) = (0, 0.0);
        let mut loader = StateLoader::new(saved, "file");
        walk(&mut loader, &var, &mut c, &mut n)?;
        loader.finish()?;
        let bits: Vec<u32> = var.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, [1.0_f32.to_bits(), f32::MIN_POSITIVE.to_bits(), (-0.0_f32).to_bits()]);
        assert_eq!((c, n.to_bits()), (count, number.to_bits()));
        Ok(())
    }

    #[test]
    fn loading_is_strict() -> Result<()> {
        let var = Var::from_vec(vec![1.0_f32; 3], 3, &Device::Cpu)?;
        let mut saver = StateSaver::new();
        walk(&mut saver, &var, &mut 1, &mut 2.0)?;
        let saved = saver.into_tensors();
        let attempt = |tensors: BTreeMap<String, Tensor>| -> Result<()> {
            let mut loader = StateLoader::new(tensors, "file");
            walk(&mut loader, &var, &mut 0, &mut 0.0)?;
            loader.finish()
        };
        attempt(saved.clone())?;
        var.set(&Tensor::zeros(3, DType::F32, &Device::Cpu)?)?;
        let mut missing = saved.clone();
        missing.remove("steps");
        let mut extra = saved.clone();
        extra.insert("other".into(), Tensor::new(1.0_f32, &Device::Cpu)?);
        let mut kind = saved.clone();
        kind.insert("steps".into(), Tensor::new(1.0_f64, &Device::Cpu)?);
        let mut shape = saved;
        shape.insert("a.weight".into(), Tensor::zeros(4, DType::F32, &Device::Cpu)?);
        for (bad, word) in [(missing, "steps"), (extra, "other"), (shape, "a.weight"), (kind, "steps")] {
            let text = attempt(bad).expect_err("must be refused").to_string();
            assert!(text.contains(word) && text.contains("file"), "{text}");
            assert_eq!(var.to_vec1::<f32>()?, [0.0; 3], "a refused load wrote a tensor");
        }
        Ok(())
    }
}
