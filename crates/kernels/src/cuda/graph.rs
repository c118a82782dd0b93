//! Operations whose results are there already, on any device, as nodes of candle's graph.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};

/// A result on its way into the graph, and its backward pass.
struct Handed<F> {
    name: &'static str,
    result: Mutex<Option<Tensor>>,
    back: F,
}

/// `result` as a function of two tensors; `back` gets them and the gradient to the result. A copy of the result enters the graph.
pub(crate) fn handed2<F>(name: &'static str, [a, b]: [&Tensor; 2], result: &Tensor, back: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
{
    a.apply_op2(b, Handed { name, result: Mutex::new(Some(result.detach())), back })
}

/// As [`handed2`], of three tensors.
pub(crate) fn handed3<F>(name: &'static str, [a, b, c]: [&Tensor; 3], result: &Tensor, back: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 3], &Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
{
    a.apply_op3(b, c, Handed { name, result: Mutex::new(Some(result.detach())), back })
}

/// Gradients of parameters, in the order in which [`parameters`] took them, once a backward pass has put them there.
pub(crate) type Given = Arc<Mutex<Vec<Option<Tensor>>>>;

/// One tensor of the graph that stands for all parameters, since an operation has three inputs at most. Its value is a zero; the gradients come from
/// `given`, which the operation behind it fills before candle walks on to the parameters.
pub(crate) fn parameters(all: &[&Tensor], given: &Given) -> Result<Tensor> {
    let Some(first) = all.first() else { bail!("internal: an operation without parameters") };
    let zero = Tensor::zeros(1, DType::F32, first.device())?;
    let mut token: Option<Tensor> = None;
    for (i, three) in all.chunks(3).enumerate() {
        let at = |j: usize| three.get(j).copied().unwrap_or(&zero);
        let (given, count) = (Arc::clone(given), three.len());
        let own = handed3("parameters", [at(0), at(1), at(2)], &zero, move |tensors, _| {
            let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
            let mut out = [const { None }; 3];
            for (j, (out, t)) in out.iter_mut().zip(tensors).enumerate().take(count) {
                let Some(gradient) = given.get_mut(3 * i + j).and_then(Option::take) else {
                    bail!("the gradients of an operation's parameters were used up")
                };
                *out = t.track_op().then_some(gradient);
            }
            Ok(out)
        })?;
        token = Some(match token {
            None => own,
            Some(before) => handed2("parameters", [&before, &own], &zero, |[a, b], grad| {
                let of = |t: &Tensor| t.track_op().then(|| grad.clone());
                Ok([of(a), of(b)])
            })?,
        });
    }
    Ok(token.unwrap_or(zero))
}

impl<F> Handed<F> {
    /// The result as storage of its own that starts with it.
    fn take<S>(&self, of: impl FnOnce(&Storage, &Layout) -> Result<S>) -> Result<(S, Shape)> {
        let Some(result) = self.result.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("{}: the forward pass of one operation ran a second time", self.name)
        };
        let result = if result.layout().start_offset() == 0 { result.contiguous()? } else { result.force_contiguous()? };
        let (storage, layout) = result.storage_and_layout();
        Ok((of(&storage, layout)?, result.shape().clone()))
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cpu(storage) => storage.try_clone(layout),
            _ => bail!("{}: the result is not on the device of its input", self.name),
        })
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => bail!("{}: the result is not on the device of its input", self.name),
        })
    }
}

impl<F> CustomOp2 for Handed<F>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = (self.back)([a, b], &grad.detach().contiguous()?)?;
        Ok((da, db))
    }
}

impl<F> CustomOp3 for Handed<F>
where
    F: Fn([&Tensor; 3], &Tensor) -> Result<[Option<Tensor>; 3]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = (self.back)([a, b, c], &grad.detach().contiguous()?)?;
        Ok((da, db, dc))
    }
}
