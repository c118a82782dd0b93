//! Between candle's tensors on a CUDA device and the kernels' buffers.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Device, Error, Layout, Result, Shape, Storage, StorageRef, Tensor,
    bail,
};

use super::device::Gpu;
use super::launch::View;

/// Whether the kernels of this module take the tensor: it is on a CUDA device, and `TWINSIGHT_CUDA_KERNELS` is not 0, which leaves
/// everything to candle's own operations.
pub(crate) fn serves(t: &Tensor) -> bool {
    served(t.device())
}

/// As [`serves`], of tensors on the device.
pub(crate) fn served(device: &Device) -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    device.is_cuda() && is_on(&ON, "TWINSIGHT_CUDA_KERNELS")
}

/// Whether attention may do without its table of probabilities: `TWINSIGHT_CUDA_FLASH` is not 0.
pub(crate) fn without_table() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    is_on(&ON, "TWINSIGHT_CUDA_FLASH")
}

/// Whether a switch of the environment is not 0; read once.
fn is_on(known: &OnceLock<bool>, switch: &str) -> bool {
    *known.get_or_init(|| std::env::var_os(switch).is_none_or(|v| v != "0"))
}

/// Whether the device's tensor cores multiply bfloat16 numbers: from compute capability 8.0 on.
pub(crate) fn multiplies_bf16(gpu: &Gpu<'_>) -> Result<bool> {
    let capability = gpu.0.cuda_stream().context().compute_capability();
    Ok(capability.map_err(|e| Error::Cuda(Box::new(e)))?.0 >= 8)
}

/// The device of a tensor for which [`serves`] is true.
pub(crate) fn gpu(t: &Tensor) -> Result<Gpu<'_>> {
    match t.device() {
        Device::Cuda(device) => Ok(Gpu(device)),
        other => bail!("internal: a tensor is on {other:?}, not on a CUDA device"),
    }
}

/// A contiguous tensor's storage, locked for reading.
pub(crate) struct Reading<'a> {
    storage: StorageRef<'a>,
    offset: usize,
}

impl<'a> Reading<'a> {
    /// Locks the storage of `t`, which must be contiguous.
    pub fn of(t: &'a Tensor) -> Result<Self> {
        let (storage, layout) = t.storage_and_layout();
        if !layout.is_contiguous() {
            bail!("internal: a tensor of shape {:?} is not contiguous", t.dims());
        }
        Ok(Self { offset: layout.start_offset(), storage })
    }

    /// The tensor's elements.
    pub fn view(&self) -> Result<View<'_, CudaStorage>> {
        match &*self.storage {
            Storage::Cuda(buffer) => Ok(View { buffer, offset: self.offset }),
            _ => bail!("internal: a tensor is not on a CUDA device"),
        }
    }
}

/// A tensor without a graph that takes over `buffer`.
pub(crate) fn tensor(buffer: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(buffer), shape, BackpropOp::none(), false)
}

/// a (…, m, k) times b (…, k, n), by cuBLAS, outside of any graph; the axes before the last two are equal. What strides it takes is cuBLAS's
/// affair: matrices that are contiguous, or transposed ones.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<CudaStorage> {
    let rank = a.rank();
    if rank < 2 || b.rank() != rank || a.dims()[..rank - 2] != b.dims()[..rank - 2] || a.dims()[rank - 1] != b.dims()[rank - 2] {
        bail!("internal: matrices of shapes {:?} and {:?} were to be multiplied", a.dims(), b.dims());
    }
    let batch: usize = a.dims()[..rank - 2].iter().product();
    let (m, k, n) = (a.dims()[rank - 2], a.dims()[rank - 1], b.dims()[rank - 1]);
    if batch * m * k * n == 0 {
        let device = gpu(a)?.0;
        return device.zeros_impl(&Shape::from((batch * m * n).max(1)), a.dtype());
    }
    let ((sa, la), (sb, lb)) = (a.storage_and_layout(), b.storage_and_layout());
    match (&*sa, &*sb) {
        (Storage::Cuda(sa), Storage::Cuda(sb)) => sa.matmul(sb, (batch, m, n, k), la, lb),
        _ => bail!("internal: a tensor is not on a CUDA device"),
    }
}

/// A result that was computed already, on its way into the graph, and its backward pass.
pub(crate) struct Recorded<F> {
    name: &'static str,
    result: Mutex<Option<(CudaStorage, Shape)>>,
    back: F,
}

impl<F> Recorded<F> {
    fn new(name: &'static str, buffer: CudaStorage, shape: Shape, back: F) -> Self {
        Self { name, result: Mutex::new(Some((buffer, shape))), back }
    }

    fn take(&self) -> Result<(CudaStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: the forward pass of one operation ran a second time", self.name),
        }
    }

    fn elsewhere<T>(&self) -> Result<T> {
        bail!("internal: {} was recorded on a CUDA device and runs on another", self.name)
    }
}

/// The result as a function of `x`; `back` gets the input, the result and the gradient to the result.
pub(crate) fn recorded1<F>(
    name: &'static str,
    x: &Tensor,
    buffer: CudaStorage,
    shape: impl Into<Shape>,
    back: F,
) -> Result<Tensor>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
{
    let shape = shape.into();
    match x.track_op() {
        true => x.apply_op1(Recorded::new(name, buffer, shape, back)),
        false => Ok(tensor(buffer, shape)),
    }
}

/// As [`recorded1`], of two tensors.
pub(crate) fn recorded2<F>(
    name: &'static str,
    [a, b]: [&Tensor; 2],
    buffer: CudaStorage,
    shape: impl Into<Shape>,
    back: F,
) -> Result<Tensor>
where
    F: Fn([&Tensor; 2], &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
{
    let shape = shape.into();
    match a.track_op() || b.track_op() {
        true => a.apply_op2(b, Recorded::new(name, buffer, shape, back)),
        false => Ok(tensor(buffer, shape)),
    }
}

/// As [`recorded1`], of three tensors.
pub(crate) fn recorded3<F>(
    name: &'static str,
    [a, b, c]: [&Tensor; 3],
    buffer: CudaStorage,
    shape: impl Into<Shape>,
    back: F,
) -> Result<Tensor>
where
    F: Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
{
    let shape = shape.into();
    match a.track_op() || b.track_op() || c.track_op() {
        true => a.apply_op3(b, c, Recorded::new(name, buffer, shape, back)),
        false => Ok(tensor(buffer, shape)),
    }
}

impl<F> CustomOp1 for Recorded<F>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Option<Tensor>>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.back)(&x.detach(), &y.detach(), &grad.detach().contiguous()?)
    }
}

impl<F> CustomOp2 for Recorded<F>
where
    F: Fn([&Tensor; 2], &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = (self.back)([a, b], &y.detach(), &grad.detach().contiguous()?)?;
        Ok((da, db))
    }
}

impl<F> CustomOp3 for Recorded<F>
where
    F: Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Option<Tensor>; 3]>,
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
        self.elsewhere()
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
        self.take()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = (self.back)([a, b, c], &y.detach(), &grad.detach().contiguous()?)?;
        Ok((da, db, dc))
    }
}
