//! Copies to a CUDA device beside what it computes: page-locked memory, a stream of their own, and events between the two streams.
//!
//! The stream is not one of cudarc's own: those would make every use of every tensor record an event, so that streams could share them.
//! Here a copy is the only thing that both streams touch, and two events order it. For the same reason cudarc's page-locked memory does not
//! know when a copy has read it (it records its event only among several streams of its own), so that each lies here beside the event after
//! its copy until that has come.

use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::result::stream::{StreamKind, create, destroy};
use candle_core::cuda_backend::cudarc::driver::sys::CUstream;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Error, Result, Shape, Storage, Tensor, bail};

/// Rooms of one length that wait for their copies before a further one waits with them.
const MOST_WAITING: usize = 4;

/// Page-locked memory that no copy reads.
pub(crate) struct Pinned {
    memory: PinnedHostSlice<f32>,
    len: usize,
}

impl Pinned {
    /// The values.
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
    /// After the copy; there until the copy is taken.
    done: Option<CudaEvent>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            // The memory goes back to the device's stream, which knows nothing of the copy, and the room to the system. If the wait fails,
            // both are leaked rather than read and written by a copy after others have them.
            match done.synchronize() {
                // SAFETY: `to` was not taken, since `done` was there, and is not looked at again.
                Ok(()) => unsafe { ManuallyDrop::drop(&mut self.to) },
                Err(_) => std::mem::forget(self.from.take()),
            }
        }
    }
}

/// Page-locked memory whose copy was begun, and the event after it.
struct Used {
    memory: PinnedHostSlice<f32>,
    done: CudaEvent,
}

/// The copies to one device.
pub(crate) struct Copies {
    device: CudaDevice,
    /// Borrows `raw`.
    stream: Arc<CudaStream>,
    raw: CUstream,
    /// Memory that waits for its copy and then for the next batch, the oldest first.
    used: Mutex<Vec<Used>>,
}

// SAFETY: a stream's handle may be used from any thread; everything else is shared by cudarc's own types and the mutex.
unsafe impl Send for Copies {}
// SAFETY: as above; CUDA's calls on one stream from several threads are allowed.
unsafe impl Sync for Copies {}

impl Drop for Copies {
    fn drop(&mut self) {
        let used = std::mem::take(self.used.get_mut().unwrap_or_else(PoisonError::into_inner));
        // A failure can't be told any more; stream and memory are then left to the end of the process.
        match self.stream.synchronize() {
            Ok(()) => {
                drop(used);
                // SAFETY: the stream was made by `new`, is idle, and nothing uses it after this.
                let _ = unsafe { destroy(self.raw) };
            }
            Err(_) => std::mem::forget(used),
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
        Ok(Self { device: device.clone(), stream, raw, used: Mutex::new(Vec::new()) })
    }

    /// Memory for `len` values that no copy reads: some whose copy has ended, else new memory, else, where enough waits, the oldest after
    /// its copy.
    pub fn buffer(&self, len: usize) -> Result<Pinned> {
        let room = len.max(1);
        // The loader's threads come here too.
        self.stream.context().bind_to_thread().map_err(failed)?;
        let found = {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let of_length = |u: &Used| u.memory.len() == room;
            let at = match used.iter().position(|u| of_length(u) && u.done.is_complete()) {
                None if used.iter().filter(|u| of_length(u)).count() >= MOST_WAITING => used.iter().position(of_length),
                at => at,
            };
            at.map(|at| used.remove(at))
        };
        if let Some(Used { memory, done }) = found {
            if let Err(error) = done.synchronize() {
                // The copy may still read it.
                std::mem::forget(memory);
                return Err(failed(error));
            }
            return Ok(Pinned { memory, len });
        }
        let context = Arc::clone(self.stream.context());
        // SAFETY: the memory is written below before anybody reads it. Flags of 0: it is read by the host too, so not write-combined.
        let mut memory = unsafe { context.alloc_pinned_with_flags::<f32>(room, 0) }.map_err(failed)?;
        memory.as_mut_slice().map_err(failed)?.fill(0.0);
        Ok(Pinned { memory, len })
    }

    /// Begins to copy, after what the device's stream was told before: its memory is allocated there.
    pub fn begin(&self, from: Pinned) -> Result<Begun> {
        let compute = self.device.cuda_stream();
        // SAFETY: the copy writes every element before `finish` lets the stream read them.
        let to = unsafe { compute.alloc::<f32>(from.memory.len()) }.map_err(failed)?;
        // Allocation is ordered on the computing stream.
        self.stream.join(&compute).map_err(failed)?;
        copied(&self.stream, from, to)
    }

    /// The tensor, by a copy on the device's own stream.
    pub fn send(&self, from: Pinned, shape: Shape) -> Result<Tensor> {
        let compute = self.device.cuda_stream();
        // SAFETY: the copy writes every element before what follows on the stream reads them.
        let to = unsafe { compute.alloc::<f32>(from.memory.len()) }.map_err(failed)?;
        self.taken(copied(&compute, from, to)?, shape)
    }

    /// The tensor; the device's stream waits for the copy, the host does not.
    pub fn finish(&self, copy: Begun, shape: Shape) -> Result<Tensor> {
        if let Some(done) = &copy.done {
            self.device.cuda_stream().wait(done).map_err(failed)?;
        }
        self.taken(copy, shape)
    }

    /// The tensor of a copy that comes before what follows on the device's stream.
    fn taken(&self, mut copy: Begun, shape: Shape) -> Result<Tensor> {
        let Some(done) = copy.done.take() else { bail!("internal: a copy was taken twice") };
        // SAFETY: it is taken once: without `done`, `drop` keeps its hands from it.
        let to = unsafe { ManuallyDrop::take(&mut copy.to) };
        if let Some(Pinned { memory, .. }) = copy.from.take() {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).push(Used { memory, done });
        }
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(to, self.device.clone()));
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }
}

/// The copy, begun on `stream`.
fn copied(stream: &Arc<CudaStream>, from: Pinned, mut to: CudaSlice<f32>) -> Result<Begun> {
    let copied = stream.memcpy_htod(&from.memory, &mut to);
    match copied.and_then(|()| stream.record_event(None)) {
        Ok(done) => Ok(Begun { to: ManuallyDrop::new(to), from: Some(from), done: Some(done) }),
        Err(error) => {
            // Whatever was begun must not touch memory that others get.
            if let Err(error) = stream.synchronize() {
                std::mem::forget((to, from));
                return Err(failed(error));
            }
            Err(failed(error))
        }
    }
}

fn failed(error: DriverError) -> Error {
    Error::Cuda(Box::new(error))
}
