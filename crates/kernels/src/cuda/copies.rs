//! Copies to a CUDA device beside what it computes: page-locked memory, a stream of their own, and events between the two streams.
//!
//! The stream is not one of cudarc's own: those would make every use of every tensor record an event, so that streams could share them.
//! Here a copy is the only thing that both streams touch, and two events order it.

use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::result::stream::{StreamKind, create, destroy};
use candle_core::cuda_backend::cudarc::driver::sys::CUstream;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Error, Result, Shape, Storage, Tensor};

/// Page-locked memory; some of it is kept for the next batch.
pub(crate) struct Pinned {
    memory: PinnedHostSlice<f32>,
    len: usize,
}

impl Pinned {
    /// The values, once no copy reads them any more.
    pub fn as_mut_slice(&mut self) -> Result<&mut [f32]> {
        let values = self.memory.as_mut_slice().map_err(failed)?;
        Ok(&mut values[..self.len])
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

/// A copy that was begun.
pub(crate) struct Begun {
    to: ManuallyDrop<CudaSlice<f32>>,
    from: Option<Pinned>,
    done: CudaEvent,
    taken: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.taken {
            // The memory goes back to the device's stream, which knows nothing of the copy. If the wait fails, it is leaked rather than
            // written to by a copy after others have it.
            if self.done.synchronize().is_ok() {
                // SAFETY: `to` was not taken, and is not looked at again.
                unsafe { ManuallyDrop::drop(&mut self.to) };
            }
        }
    }
}

/// The copies to one device.
pub(crate) struct Copies {
    device: CudaDevice,
    /// Borrows `raw`.
    stream: Arc<CudaStream>,
    raw: CUstream,
    /// Memory that waits for the next batch.
    idle: Mutex<Vec<PinnedHostSlice<f32>>>,
}

// SAFETY: a stream's handle may be used from any thread; everything else is shared by cudarc's own types and the mutex.
unsafe impl Send for Copies {}
// SAFETY: as above; CUDA's calls on one stream from several threads are allowed.
unsafe impl Sync for Copies {}

impl Drop for Copies {
    fn drop(&mut self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // A failure can't be told any more, and the stream is then left to the end of the process.
        if self.stream.synchronize().is_ok() {
            // SAFETY: the stream was made by `new`, is idle, and nothing uses it after this.
            let _ = unsafe { destroy(self.raw) };
        }
    }
}

impl Copies {
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let context = Arc::clone(device.cuda_stream().context());
        context.bind_to_thread().map_err(failed)?;
        let raw = create(StreamKind::NonBlocking).map_err(failed)?;
        // SAFETY: the stream is of this context and lives until `drop`, after every use.
        let stream = unsafe { context.wrap_borrowed_stream(raw) };
        Ok(Self { device: device.clone(), stream, raw, idle: Mutex::new(Vec::new()) })
    }

    /// Memory for `len` values.
    pub fn buffer(&self, len: usize) -> Result<Pinned> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = idle.iter().position(|memory| memory.len() == len.max(1)) {
            return Ok(Pinned { memory: idle.swap_remove(at), len });
        }
        drop(idle);
        let context = Arc::clone(self.stream.context());
        // SAFETY: the memory is written below before anybody reads it. Flags of 0: it is read by the host too, so not write-combined.
        let mut memory = unsafe { context.alloc_pinned_with_flags::<f32>(len.max(1), 0) }.map_err(failed)?;
        memory.as_mut_slice().map_err(failed)?.fill(0.0);
        Ok(Pinned { memory, len })
    }

    /// Begins to copy. The device's memory is allocated on the stream of the calling thread, which must be the one that computes.
    pub fn begin(&self, from: Pinned) -> Result<Begun> {
        let compute = self.device.cuda_stream();
        // SAFETY: the copy writes every element before `finish` lets the stream read them.
        let mut to = unsafe { compute.alloc::<f32>(from.memory.len()) }.map_err(failed)?;
        // Allocation is ordered on the computing stream.
        self.stream.join(&compute).map_err(failed)?;
        let copied = self.stream.memcpy_htod(&from.memory, &mut to);
        let done = match copied.and_then(|()| self.stream.record_event(None)) {
            Ok(done) => done,
            Err(error) => {
                // Whatever was begun must not write to memory that others get.
                self.stream.synchronize().map_err(failed)?;
                return Err(failed(error));
            }
        };
        Ok(Begun { to: ManuallyDrop::new(to), from: Some(from), done, taken: false })
    }

    /// The tensor; the calling thread's stream waits for the copy, the host does not.
    pub fn finish(&self, mut copy: Begun, shape: Shape) -> Result<Tensor> {
        self.device.cuda_stream().wait(&copy.done).map_err(failed)?;
        copy.taken = true;
        // SAFETY: it is taken once: `taken` keeps `drop` from it.
        let to = unsafe { ManuallyDrop::take(&mut copy.to) };
        if let Some(from) = copy.from.take() {
            // The memory's own event is waited for before it is written again.
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(from.memory);
        }
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(to, self.device.clone()));
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }
}

fn failed(error: DriverError) -> Error {
    Error::Cuda(Box::new(error))
}
