//! Convolutions by cuDNN, channels last: forward, to the input and to the weight, each by the algorithm that was measured fastest for its
//! sizes on its device.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t as DataAlgorithm, cudnnConvolutionBwdFilterAlgo_t as WeightAlgorithm,
    cudnnConvolutionFwdAlgo_t as ForwardAlgorithm, cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType, CudnnError, FilterDescriptor,
    TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Shape, Storage, Tensor, WithDType, bail};
use half::bf16;

use super::cudnn::{Attempt, aligned, choose};
use super::filter::on_device::{from_channels_last, to_channels_last};
use super::launch::{View, int};
use super::tensor::{Reading, gpu, recorded2, tensor};
use crate::conv::Geometry;
use crate::precision::tf32_allowed;

/// The most memory that an algorithm may work in, in bytes.
const WORKSPACE: usize = 1 << 30;

/// How often an algorithm is timed.
const TIMES: usize = 3;

/// As [`crate::conv2d`], of checked tensors on a CUDA device, `x` of `f32` or bfloat16; the weight is rounded to the type of `x`, and sums are
/// `f32`.
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor> {
    let (x, kind) = (x.contiguous()?, x.dtype());
    let Geometry { n, o, oh, ow, .. } = geometry;
    let shape = (n, oh, ow, o);
    if n * o * geometry.c == 0 {
        // Room for one at least: whether the driver takes an allocation of nothing is its affair.
        let zeros = gpu(&x)?.0.zeros_impl(&Shape::from((n * oh * ow * o).max(1)), kind)?;
        return Ok(tensor(zeros, shape));
    }
    let filter = to_channels_last(&weight.detach(), kind)?;
    let y = any_layout(geometry, Pass::Forward, [&x.detach(), &filter])?;
    recorded2("conv2d", [&x, weight], y, shape, move |[x, weight], _, grad| {
        let dx = match x.track_op() {
            true => Some(tensor(any_layout(geometry, Pass::Data, [grad, &filter])?, x.shape().clone())),
            false => None,
        };
        let dw = match weight.track_op() {
            true => {
                let dw = tensor(any_layout(geometry, Pass::Weight, [&x.detach(), grad])?, filter.shape().clone());
                Some(from_channels_last(&dw, weight.dtype())?)
            }
            false => None,
        };
        Ok([dx, dw])
    })
}

/// A pass over contiguous channels-last tensors of one type. Where cuDNN has no algorithm for them, in planes of `f32` instead, which it has for
/// everything, between copies.
pub(super) fn any_layout(geometry: Geometry, pass: Pass, inputs: [&Tensor; 2]) -> Result<CudaStorage> {
    let kind = inputs[0].dtype();
    let device = gpu(inputs[0])?.0;
    let run = |[a, b]: [&Tensor; 2], layout: Layout| {
        let (kind, a, b) = (a.dtype(), aligned(a)?, aligned(b)?);
        let (a, b) = (Reading::of(&a)?, Reading::of(&b)?);
        run(device, kind, geometry, pass, layout, [a.view()?, b.view()?])
    };
    if let Some(out) = run(inputs, Layout::ChannelsLast)? {
        return Ok(out);
    }
    let plane = |t: &Tensor| t.to_dtype(DType::F32)?.permute((0, 3, 1, 2))?.contiguous();
    let (a, b) = (plane(inputs[0])?, plane(inputs[1])?);
    let Some(out) = run([&a, &b], Layout::Planes)? else {
        bail!("conv2d: cuDNN has no algorithm for {geometry:?}; build without the feature `cudnn`")
    };
    let Geometry { n, h, w, c, o, kh, kw, oh, ow, config } = geometry;
    let out = tensor(
        out,
        match pass {
            Pass::Forward => (n, o, oh, ow),
            Pass::Data => (n, c, h, w),
            Pass::Weight => (o, c / config.groups, kh, kw),
        },
    );
    let out = out.permute((0, 2, 3, 1))?.to_dtype(kind)?.force_contiguous()?;
    let (storage, layout) = out.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => storage.try_clone(layout),
        _ => bail!("internal: a tensor left the CUDA device"),
    }
}

/// The order of axes in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Layout {
    ChannelsLast,
    Planes,
}

/// What is computed of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    /// The result, of the input and the weight.
    Forward,
    /// The gradient to the input, of that to the result and the weight.
    Data,
    /// The gradient to the weight, of the input and the gradient to the result.
    Weight,
}

/// What an algorithm was measured for.
type Key = (DeviceId, Pass, Layout, Geometry, DType, bool);

/// An algorithm by its number in cuDNN, and the bytes that it works in.
type Chosen = (u32, usize);

/// The fastest algorithms; none where all are unfit. A failure is not kept.
static FASTEST: Mutex<Option<HashMap<Key, Option<Chosen>>>> = Mutex::new(None);

/// The result, if cuDNN has an algorithm.
fn run(
    device: &CudaDevice,
    kind: DType,
    geometry: Geometry,
    pass: Pass,
    layout: Layout,
    inputs: [View<'_, CudaStorage>; 2],
) -> Result<Option<CudaStorage>> {
    match kind {
        DType::F32 => typed::<f32>(device, geometry, pass, layout, inputs),
        DType::BF16 => typed::<bf16>(device, geometry, pass, layout, inputs),
        other => bail!("conv2d: x has element type {other:?}, expected F32 or BF16"),
    }
}

fn typed<T>(
    device: &CudaDevice,
    geometry: Geometry,
    pass: Pass,
    layout: Layout,
    inputs: [View<'_, CudaStorage>; 2],
) -> Result<Option<CudaStorage>>
where
    T: CudaDType + CudnnDataType + DeviceRepr + WithDType,
{
    let Geometry { n, h, w, c, o, kh, kw, oh, ow, config } = geometry;
    let (image, filter, result) = (n * h * w * c, o * kh * kw * (c / config.groups), n * oh * ow * o);
    let (sizes, len) = match pass {
        Pass::Forward => ([image, filter], result),
        Pass::Data => ([result, filter], image),
        Pass::Weight => ([image, result], filter),
    };
    let part = |i: usize| -> Result<CudaView<'_, T>> {
        let View { buffer, offset } = inputs[i];
        let slice = buffer.as_cuda_slice::<T>()?;
        match slice.try_slice(offset..offset + sizes[i]) {
            Some(view) => Ok(view),
            None => bail!("internal: an input of conv2d has fewer than {} elements", sizes[i]),
        }
    };
    let (a, b) = (part(0)?, part(1)?);
    let key = (device.id(), pass, layout, geometry, T::DTYPE, tf32_allowed());
    let known = FASTEST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().get(&key).copied();
    if known == Some(None) {
        return Ok(None);
    }
    // SAFETY: every algorithm writes its whole result.
    let mut out = unsafe { device.alloc::<T>(len)? };
    let call = Call::<T>::new(device, geometry, layout)?;
    let algorithm = match known {
        Some(algorithm) => algorithm,
        None => {
            let fastest = call.fastest(device, pass, [&a, &b], &mut out)?;
            FASTEST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(key, fastest);
            fastest
        }
    };
    let Some((algorithm, room)) = algorithm else { return Ok(None) };
    call.run(device, pass, algorithm, &mut Some(room), [&a, &b], &mut out).map_err(Attempt::into_error)?;
    Ok(Some(CudaStorage::wrap_cuda_slice(out, device.clone())))
}

impl From<CudnnError> for Attempt {
    fn from(error: CudnnError) -> Self {
        Self::of_status(&format!("{:?}", error.0))
    }
}

/// The algorithms of a pass, by number: first those that give the same bits every time, then those that do not, which are tried only where
/// none of the first runs.
fn candidates(pass: Pass) -> [&'static [u32]; 2] {
    use DataAlgorithm as D;
    use ForwardAlgorithm as F;
    use WeightAlgorithm as W;
    match pass {
        Pass::Forward => [
            const {
                &[
                    F::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM as u32,
                    F::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM as u32,
                    F::CUDNN_CONVOLUTION_FWD_ALGO_GEMM as u32,
                    F::CUDNN_CONVOLUTION_FWD_ALGO_FFT as u32,
                    F::CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING as u32,
                    F::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD as u32,
                    F::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED as u32,
                ]
            },
            &[],
        ],
        Pass::Data => [
            const {
                &[
                    D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1 as u32,
                    D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT as u32,
                    D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT_TILING as u32,
                    D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD as u32,
                    D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED as u32,
                ]
            },
            const { &[D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 as u32] },
        ],
        Pass::Weight => [
            const {
                &[
                    W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1 as u32,
                    W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT as u32,
                    W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT_TILING as u32,
                    W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED as u32,
                ]
            },
            const { &[W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0 as u32, W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3 as u32] },
        ],
    }
}

/// The enumerator of this number among those given.
macro_rules! numbered {
    ($kind:ident, $number:expr, $($name:ident),+ $(,)?) => {
        match $number {
            $(n if n == $kind::$name as u32 => $kind::$name,)+
            other => return Err(Attempt::Unfit(format!("no algorithm {other}"))),
        }
    };
}

/// The descriptors of one convolution.
struct Call<T> {
    conv: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    filter: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
}

impl<T: CudaDType + CudnnDataType + DeviceRepr + WithDType> Call<T> {
    fn new(device: &CudaDevice, geometry: Geometry, layout: Layout) -> Result<Self> {
        let Geometry { n, h, w, c, o, kh, kw, oh, ow, config } = geometry;
        let size = |size: usize| int("conv2d: a size", size);
        let both = |value: usize| Ok::<_, Error>([size(value)?; 2]);
        let dims = |d: [usize; 4]| Ok::<_, Error>([size(d[0])?, size(d[1])?, size(d[2])?, size(d[3])?]);
        let cudnn = handle(device)?;
        let order = match layout {
            Layout::ChannelsLast => cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
            Layout::Planes => cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
        };
        let mut conv = cudnn.create_conv2d::<f32>(
            both(config.padding)?,
            both(config.stride)?,
            both(config.dilation)?,
            cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
        )?;
        conv.set_group_count(size(config.groups)?)?;
        // The default lets `f32` products run in TF32, and bfloat16's on tensor cores; it is what PyTorch asks for with both.
        conv.set_math_type(match (T::DTYPE, tf32_allowed()) {
            (DType::F32, false) => cudnnMathType_t::CUDNN_FMA_MATH,
            _ => cudnnMathType_t::CUDNN_DEFAULT_MATH,
        })?;
        // Sizes are named in the order N, C, H, W whatever the format.
        Ok(Self {
            conv,
            x: cudnn.create_4d_tensor(order, dims([n, c, h, w])?)?,
            filter: cudnn.create_4d_filter(order, dims([o, c / config.groups, kh, kw])?)?,
            y: cudnn.create_4d_tensor(order, dims([n, o, oh, ow])?)?,
        })
    }

    /// Runs an algorithm. `known`: the bytes that it works in; cuDNN is asked where that is not known yet, which takes it a while.
    fn run(
        &self,
        device: &CudaDevice,
        pass: Pass,
        algorithm: u32,
        known: &mut Option<usize>,
        [a, b]: [&CudaView<'_, T>; 2],
        out: &mut CudaSlice<T>,
    ) -> std::result::Result<(), Attempt> {
        let scales = (T::from_f64(1.0), T::from_f64(0.0));
        let mut room = |ask: &dyn Fn() -> std::result::Result<usize, CudnnError>| -> std::result::Result<_, Attempt> {
            let size = known.map_or_else(ask, Ok)?;
            *known = Some(size);
            if size > WORKSPACE {
                return Err(Attempt::Unfit(format!("an algorithm needs {size} bytes to work in, more than {WORKSPACE}")));
            }
            // SAFETY: cuDNN writes what it reads of its workspace.
            let room = (size > 0).then(|| unsafe { device.alloc::<u8>(size) }).transpose();
            // A full memory is no property of the algorithm.
            room.map_err(Attempt::Failed)
        };
        let Self { conv, x, filter, y } = self;
        match pass {
            Pass::Forward => {
                let op = ConvForward { conv, x, w: filter, y };
                let algorithm = numbered!(
                    ForwardAlgorithm,
                    algorithm,
                    CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
                    CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
                    CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
                    CUDNN_CONVOLUTION_FWD_ALGO_FFT,
                    CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING,
                    CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD,
                    CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
                );
                let mut room = room(&|| op.get_workspace_size(algorithm))?;
                // SAFETY: `a`, `b` and `out` have the sizes and types of the descriptors, dense and in their order.
                unsafe { op.launch(algorithm, room.as_mut(), scales, a, b, out)? };
            }
            Pass::Data => {
                let op = ConvBackwardData { conv, dx: x, w: filter, dy: y };
                let algorithm = numbered!(
                    DataAlgorithm,
                    algorithm,
                    CUDNN_CONVOLUTION_BWD_DATA_ALGO_0,
                    CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
                    CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT,
                    CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT_TILING,
                    CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD,
                    CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED,
                );
                let mut room = room(&|| op.get_workspace_size(algorithm))?;
                // SAFETY: as above; `a` is the gradient to the result, `b` the weight.
                unsafe { op.launch(algorithm, room.as_mut(), scales, out, b, a)? };
            }
            Pass::Weight => {
                let op = ConvBackwardFilter { conv, x, dw: filter, dy: y };
                let algorithm = numbered!(
                    WeightAlgorithm,
                    algorithm,
                    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0,
                    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
                    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT,
                    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3,
                    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED,
                    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT_TILING,
                );
                let mut room = room(&|| op.get_workspace_size(algorithm))?;
                // SAFETY: as above; `a` is the input, `b` the gradient to the result.
                unsafe { op.launch(algorithm, room.as_mut(), scales, a, out, b)? };
            }
        }
        Ok(())
    }

    /// The algorithm with the shortest time, each after a run that is not timed; none where none runs. What does not run is named on standard
    /// error where `TWINSIGHT_CUDNN_LOG` is set.
    fn fastest(
        &self,
        device: &CudaDevice,
        pass: Pass,
        inputs: [&CudaView<'_, T>; 2],
        out: &mut CudaSlice<T>,
    ) -> Result<Option<Chosen>> {
        let stream = device.cuda_stream();
        let failed = |e| Error::Cuda(Box::new(e));
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(|e| Attempt::Failed(failed(e)));
        let (mut rooms, mut shortest) = (HashMap::new(), f32::INFINITY);
        let mut timed = |algorithm: u32| {
            let mut room = None;
            self.run(device, pass, algorithm, &mut room, inputs, out)?;
            rooms.insert(algorithm, room.unwrap_or_default());
            let mut times = |count: usize| -> std::result::Result<f32, Attempt> {
                let start = event()?;
                for _ in 0..count {
                    self.run(device, pass, algorithm, &mut room, inputs, out)?;
                }
                let time = start.elapsed_ms(&event()?).map_err(|e| Attempt::Failed(failed(e)))?;
                Ok(time / count as f32)
            };
            let once = times(1)?;
            // What takes twice as long as another need not be timed any better.
            let time = if once > 2.0 * shortest { once } else { times(TIMES)? };
            shortest = shortest.min(time);
            Ok(time)
        };
        let found = choose(
            candidates(pass),
            |algorithm| {
                let done = timed(algorithm);
                if let Err(reason) = &done
                    && std::env::var_os("TWINSIGHT_CUDNN_LOG").is_some()
                {
                    eprintln!("conv2d: {pass:?}, algorithm {algorithm}, {:?}: {reason:?}", T::DTYPE);
                }
                done
            },
            || stream.synchronize().map_err(failed),
        )?;
        Ok(found.map(|algorithm| (algorithm, rooms.get(&algorithm).copied().unwrap_or_default())))
    }
}

/// cuDNN's handle of this thread for the device: handles may not be shared among threads.
fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    thread_local! {
        static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
    }
    HANDLES.with_borrow_mut(|handles| {
        if let Some(handle) = handles.get(&device.id()) {
            return Ok(Arc::clone(handle));
        }
        let handle = Cudnn::new(device.cuda_stream())?;
        handles.insert(device.id(), Arc::clone(&handle));
        Ok(handle)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_that_repeat_their_bits_come_first() {
        let data = candidates(Pass::Data);
        assert!(!data[0].contains(&(DataAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 as u32)) && data[1].len() == 1);
        let weight = candidates(Pass::Weight);
        for number in [WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0, WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3]
        {
            assert!(!weight[0].contains(&(number as u32)) && weight[1].contains(&(number as u32)));
        }
    }
}
