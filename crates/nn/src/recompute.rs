//! Forward passes whose inner values are computed again in the backward pass instead of being kept: less memory for about a
//! third more time (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result as CandleResult, Shape, Storage, Tensor, Var, bail,
};

use crate::{Mode, Parameter, Result};

/// A part of a network as a function of its input.
type Part = Arc<dyn Fn(&Tensor, &Mode) -> Result<Tensor> + Send + Sync>;

/// `part(x)`, of whose graph only `x`, the result and one copy of the part's weights are kept; the backward pass runs `part` a
/// second time, with the same draws, and without moving running statistics again. `params` are all parameters that `part` uses.
/// Without a graph, or where nothing in it is trainable, `part` is called as it is.
///
/// # Errors
/// What `part` says.
pub fn recomputed(
    x: &Tensor,
    mode: &Mode,
    params: Vec<Parameter>,
    part: impl Fn(&Tensor, &Mode) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let params: Vec<Parameter> = params.into_iter().filter(Parameter::is_trainable).collect();
    if !mode.grad || params.is_empty() {
        return part(x, mode);
    }
    let y = part(&x.detach(), &mode.without_grad())?;
    // The graph reaches the parameters through one packed tensor: an operation has three inputs at most.
    let flat = params.iter().map(|p| p.get(mode).flatten_all()).collect::<CandleResult<Vec<_>>>()?;
    let packed = Tensor::cat(&flat, 0)?;
    let op = Recomputed { part: Arc::new(part), params, mode: mode.without_observing(), result: Mutex::new(Some(y)) };
    Ok(x.contiguous()?.apply_op2(&packed, op)?)
}

struct Recomputed {
    part: Part,
    params: Vec<Parameter>,
    mode: Mode,
    /// What the forward pass hands over.
    result: Mutex<Option<Tensor>>,
}

impl Recomputed {
    /// The result, which is there once.
    fn take(&self) -> CandleResult<Tensor> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(y) => Ok(y),
            None => bail!("{}: the forward pass runs once", self.name()),
        }
    }
}

impl CustomOp2 for Recomputed {
    fn name(&self) -> &'static str {
        "twinsight-recomputed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let y = self.take()?;
        Ok((CpuStorage::F32(y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?), y.shape().clone()))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        // A copy of its own, so that the storage holds nothing else.
        let y = self.take()?.force_contiguous()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
            _ => bail!("{}: the result is not on the device of its input", self.name()),
        }
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        let y = self.take()?.force_contiguous()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Metal(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
            _ => bail!("{}: the result is not on the device of its input", self.name()),
        }
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let input = Var::from_tensor(&x.detach())?;
        let from = if x.track_op() { input.as_tensor().clone() } else { input.as_detached_tensor() };
        let y = (self.part)(&from, &self.mode).map_err(candle_core::Error::wrap)?;
        let mut gradients = (y * grad.detach())?.sum_all()?.backward()?;
        let to_x = if x.track_op() { gradients.remove(&input) } else { None };
        let to_params = self
            .params
            .iter()
            .map(|p| match gradients.remove(p.var()) {
                Some(gradient) => gradient.detach().flatten_all(),
                None => p.value().zeros_like()?.flatten_all(),
            })
            .collect::<CandleResult<Vec<_>>>()?;
        Ok((to_x.map(|t| t.detach()), Some(Tensor::cat(&to_params, 0)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Attention, Builder, DrawKey, DropPath, Linear};

    #[test]
    fn values_and_gradients_are_the_plain_pass_s() -> Result<()> {
        let b = Builder::new(3, &Device::Cpu);
        let attention = Attention::new(&b.under("attn"), 8, 2)?;
        let drop = DropPath::new(&b.under("drop"), 0.5)?;
        let first = Linear::torch_default(&b.under("first"), 8, 8, true)?;
        let params: Vec<Parameter> = b.finish().iter().cloned().collect();
        let inner: Vec<Parameter> = b.finish().sub_store("attn").iter().cloned().collect();
        let mode = Mode::train(DrawKey { seed: 1, step: 2, pass: 0 });
        let x = Tensor::arange(0f32, 240.0, &Device::Cpu)?.affine(0.37, 0.1)?.sin()?.reshape((6, 5, 8))?;
        let part = move |x: &Tensor, mode: &Mode| Ok((x + drop.forward(&attention.forward(x, mode)?, mode)?)?);
        let x = first.forward(&x, &mode)?;
        let plain = part(&x, &mode)?;
        let again = recomputed(&x, &mode, inner, part)?;
        assert_eq!(plain.to_vec3::<f32>()?, again.to_vec3::<f32>()?);
        let probe = plain.cos()?.detach();
        let (want, got) = ((plain * &probe)?.sum_all()?.backward()?, (again * &probe)?.sum_all()?.backward()?);
        for p in &params {
            let (want, got) = (want.get(p.var()).expect("plain"), got.get(p.var()).expect("recomputed"));
            let difference = (want - got)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-5, "{}: {difference}", p.name());
        }
        Ok(())
    }
}
