//! Kernels on a CUDA device of candle: compiled by NVRTC when they are first needed, started on the device's stream.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, bail};

use super::launch::{Arg, Engine, Upload};
use super::source::Source;

/// A CUDA device as a place for kernels. They are started on its one stream ([`crate::open_cuda`]), whatever the thread.
pub(crate) struct Gpu<'a>(pub &'a CudaDevice);

impl Engine for Gpu<'_> {
    type Buffer = CudaStorage;

    fn alloc(&self, kind: DType, len: usize) -> Result<CudaStorage> {
        // Never nothing: whether the driver takes an allocation of no bytes is its affair.
        let room = len.max(1);
        // SAFETY: the callers write what they read: every kernel writes its whole result, or nothing is read of an empty one.
        let slice = unsafe {
            match kind {
                DType::F32 => CudaStorageSlice::F32(self.0.alloc(room)?),
                DType::BF16 => CudaStorageSlice::BF16(self.0.alloc(room)?),
                DType::U32 => CudaStorageSlice::U32(self.0.alloc(room)?),
                DType::U8 => CudaStorageSlice::U8(self.0.alloc(room)?),
                DType::I64 => CudaStorageSlice::I64(self.0.alloc(room)?),
                DType::F64 => CudaStorageSlice::F64(self.0.alloc(room)?),
                other => bail!("internal: no CUDA kernel writes {other:?}"),
            }
        };
        Ok(CudaStorage { slice, device: self.0.clone() })
    }

    fn upload(&self, values: Upload<'_>) -> Result<CudaStorage> {
        let slice = match values {
            #[cfg(any(test, feature = "emulation"))]
            Upload::U8([]) => CudaStorageSlice::U8(self.0.alloc_zeros(1)?),
            Upload::U32([]) => CudaStorageSlice::U32(self.0.alloc_zeros(1)?),
            Upload::I64([]) => CudaStorageSlice::I64(self.0.alloc_zeros(1)?),
            #[cfg(any(test, feature = "emulation"))]
            Upload::U8(values) => CudaStorageSlice::U8(self.0.clone_htod(values)?),
            Upload::U32(values) => CudaStorageSlice::U32(self.0.clone_htod(values)?),
            Upload::I64(values) => CudaStorageSlice::I64(self.0.clone_htod(values)?),
        };
        Ok(CudaStorage { slice, device: self.0.clone() })
    }

    fn address(&self, buffer: &CudaStorage, offset: usize) -> Result<u64> {
        // The kernels that follow run on the same stream, so that order needs no event.
        Ok(pointer(buffer, offset, &self.0.cuda_stream())?.0)
    }

    unsafe fn start(
        &self,
        source: &'static Source,
        kernel: &str,
        [x, y, z]: [u32; 3],
        block: u32,
        mut args: Vec<Arg<'_, CudaStorage>>,
    ) -> Result<()> {
        let function = function(self.0, source, kernel)?;
        let stream = self.0.cuda_stream();
        // Held until the kernel is started: they order it among the streams that share a buffer.
        let mut held = Vec::with_capacity(args.len());
        let mut values = Vec::with_capacity(args.len());
        for arg in &mut args {
            values.push(match arg {
                Arg::In(buffer, offset) | Arg::Changed(buffer, offset) => {
                    let (address, guard) = pointer(buffer, *offset, &stream)?;
                    held.push(guard);
                    Value::Pointer(address)
                }
                Arg::Out(buffer) => {
                    let (address, guard) = pointer_mut(buffer, &stream)?;
                    held.push(guard);
                    Value::Pointer(address)
                }
                Arg::Null => Value::Pointer(0),
                Arg::Int(v) => Value::Int(*v),
                Arg::Long(v) => Value::Long(*v),
                Arg::Float(v) => Value::Float(*v),
                Arg::Double(v) => Value::Double(*v),
            });
        }
        let mut builder = stream.launch_builder(&function);
        for value in &values {
            match value {
                Value::Pointer(v) => builder.arg(v),
                Value::Int(v) => builder.arg(v),
                Value::Long(v) => builder.arg(v),
                Value::Float(v) => builder.arg(v),
                Value::Double(v) => builder.arg(v),
            };
        }
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (block, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kinds of the arguments are the kernel's, which the emulated tests hold against its parameters; the caller answers
        // for the bounds.
        unsafe { builder.launch(config) }.map_err(|e| Error::Cuda(format!("{kernel}: {e}").into()))?;
        Ok(())
    }
}

/// Copies bytes into a part of a buffer of bytes, in the order of the device's stream. They are read by the time that this returns: the driver
/// takes memory that is not page-locked over into its own first.
pub(crate) fn copy_bytes(device: &CudaDevice, from: &[u8], to: &mut CudaStorage, place: Range<usize>) -> Result<()> {
    let CudaStorageSlice::U8(slice) = &mut to.slice else { bail!("internal: bytes were to be copied into {:?}", to.dtype()) };
    let Some(mut part) = slice.try_slice_mut(place.clone()).filter(|part| part.len() == from.len()) else {
        bail!("internal: {} bytes were to be copied to places {place:?} of a buffer", from.len());
    };
    if from.is_empty() {
        return Ok(());
    }
    device.cuda_stream().memcpy_htod(from, &mut part).map_err(|e| Error::Cuda(Box::new(e)))
}

/// An argument as the driver takes it.
enum Value {
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

/// The address of an element, and what notes the reading when it is dropped.
pub(super) fn pointer<'a>(buffer: &'a CudaStorage, offset: usize, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    fn of<'a, T>(slice: &'a CudaSlice<T>, offset: usize, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        let (address, guard) = slice.device_ptr(stream);
        (address + (offset * size_of::<T>()) as u64, guard)
    }
    Ok(match &buffer.slice {
        CudaStorageSlice::F32(s) => of(s, offset, stream),
        CudaStorageSlice::BF16(s) => of(s, offset, stream),
        CudaStorageSlice::U32(s) => of(s, offset, stream),
        CudaStorageSlice::U8(s) => of(s, offset, stream),
        CudaStorageSlice::I64(s) => of(s, offset, stream),
        CudaStorageSlice::F64(s) => of(s, offset, stream),
        _ => bail!("internal: a CUDA kernel was given an element type that none reads"),
    })
}

fn pointer_mut<'a>(buffer: &'a mut CudaStorage, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    Ok(match &mut buffer.slice {
        CudaStorageSlice::F32(s) => s.device_ptr_mut(stream),
        CudaStorageSlice::BF16(s) => s.device_ptr_mut(stream),
        CudaStorageSlice::U32(s) => s.device_ptr_mut(stream),
        CudaStorageSlice::U8(s) => s.device_ptr_mut(stream),
        CudaStorageSlice::I64(s) => s.device_ptr_mut(stream),
        CudaStorageSlice::F64(s) => s.device_ptr_mut(stream),
        _ => bail!("internal: a CUDA kernel was given an element type that none writes"),
    })
}

/// The kernel on the device, looked up once.
fn function(device: &CudaDevice, source: &'static Source, kernel: &str) -> Result<CudaFunction> {
    /// By the device and the source's name, then by the kernel's.
    type Found = HashMap<(DeviceId, &'static str), HashMap<String, CudaFunction>>;
    static FOUND: Mutex<Option<Found>> = Mutex::new(None);
    let key = (device.id(), source.name);
    let known = {
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        found.get_or_insert_default().get(&key).and_then(|kernels| kernels.get(kernel)).cloned()
    };
    if let Some(function) = known {
        return Ok(function);
    }
    let function = device.get_or_load_custom_func(kernel, &format!("twinsight-{}", source.name), &ptx(device, source)?)?;
    let function = function.into_cuda_function();
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.get_or_insert_default().entry(key).or_default().insert(kernel.to_string(), function.clone());
    Ok(function)
}

/// The source compiled for the device, once in a process.
fn ptx(device: &CudaDevice, source: &'static Source) -> Result<Arc<str>> {
    /// By the source's name and the device's compute capability.
    type Compiled = HashMap<(&'static str, (i32, i32)), Arc<str>>;
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
    let capability = device.cuda_stream().context().compute_capability().map_err(|e| Error::Cuda(Box::new(e)))?;
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.get_or_insert_default();
    if let Some(ptx) = compiled.get(&(source.name, capability)) {
        return Ok(Arc::clone(ptx));
    }
    let (major, minor) = capability;
    let compile = |options| compile_ptx_with_opts(source.text, CompileOptions { options, ..CompileOptions::default() });
    let of = |capability: String| compile(vec![format!("--gpu-architecture=compute_{capability}")]);
    // A compiler older than the device does not know it; what it makes for one that it knows is compiled on by the driver. Tensor cores of
    // compute capability 8.0 are beyond its default.
    let known = || if major >= 8 { of("80".into()) } else { compile(Vec::new()) };
    let ptx = of(format!("{major}{minor}"))
        .or_else(|error| known().map_err(|_| error))
        .map_err(|error| Error::Cuda(words(source, &error).into()))?;
    let ptx: Arc<str> = Ptx::to_src(&ptx).into();
    compiled.insert((source.name, capability), Arc::clone(&ptx));
    Ok(ptx)
}

fn words(source: &Source, error: &CompileError) -> String {
    match error {
        CompileError::CompileError { log, .. } => format!("NVRTC refuses {}.cu: {}", source.name, log.to_string_lossy()),
        other => {
            format!("NVRTC cannot compile {}.cu: {other:?}; is the library of the driver's CUDA version there?", source.name)
        }
    }
}
