//! Reading candle's storage as slices, and result buffers that are written once, in parallel, without being zeroed first.

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

/// Whether all the tensors are in main memory, where the implementations of this module can work.
pub(crate) fn on_cpu(t: &Tensor) -> bool {
    matches!(t.device(), Device::Cpu)
}

/// The elements of a contiguous `f32` tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::F32(_), None) => bail!("internal: a tensor of shape {:?} is not contiguous", layout.shape()),
        _ => bail!("internal: a tensor is not F32"),
    }
}

/// The elements of a contiguous `f32` tensor in main memory, given what `storage_and_layout` returned.
pub(crate) fn host<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => values(storage, layout),
        _ => bail!("internal: a tensor is not in main memory"),
    }
}

/// A tensor in main memory that takes over `data`; it carries no graph.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// A pointer that tasks write through, each in places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: the pointer is only dereferenced in `unsafe` code, which must see to it that threads write disjoint places.
unsafe impl Send for SharedMut {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// The places of a slice, for tasks that write disjoint parts of it.
    pub fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// The place `offset` floats further.
    ///
    /// # Safety
    /// The place must lie in the buffer that the pointer was made of.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller stays inside of the buffer.
        unsafe { self.0.add(offset) }
    }

    /// The same buffer from `offset` on.
    ///
    /// # Safety
    /// As [`SharedMut::at`].
    pub unsafe fn from(self, offset: usize) -> Self {
        // SAFETY: as the caller says.
        Self(unsafe { self.0.add(offset) })
    }

    /// A part of the buffer as a slice.
    ///
    /// # Safety
    /// The range must lie in the buffer, hold initialised values, and be used by no other thread meanwhile.
    pub unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// A result of `len` floats that holds nothing yet.
pub(crate) struct Uninit {
    data: Vec<f32>,
    len: usize,
}

impl Uninit {
    /// Reserves room for `len` floats.
    pub fn new(len: usize) -> Self {
        Self { data: Vec::with_capacity(len), len }
    }

    /// Where the floats go.
    pub fn shared(&mut self) -> SharedMut {
        SharedMut(self.data.as_mut_ptr())
    }

    /// The finished buffer.
    ///
    /// # Safety
    /// Every one of the `len` floats must have been written.
    pub unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: the capacity is at least `len`, and the caller has written all of it.
        unsafe { self.data.set_len(self.len) };
        self.data
    }
}

/// A buffer of `len` floats, written in parallel: `write` gets the start of a block of `block` floats, and the block.
///
/// # Safety
/// `write` must initialise every float that it gets.
pub(crate) unsafe fn filled(len: usize, block: usize, write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    let block = block.max(1);
    let room = &mut data.spare_capacity_mut()[..len];
    if len <= block {
        if len > 0 {
            write(0, room);
        }
    } else {
        room.par_chunks_mut(block).enumerate().for_each(|(i, out)| write(i * block, out));
    }
    // SAFETY: the capacity is at least `len`, and `write` has initialised every block.
    unsafe { data.set_len(len) };
    data
}

/// As [`filled`], cut into the given neighbouring ranges.
///
/// # Safety
/// `write` must initialise every float that it gets.
pub(crate) unsafe fn filled_ranges(
    len: usize,
    ranges: &[Range<usize>],
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    in_ranges(&mut data.spare_capacity_mut()[..len], ranges, write);
    // SAFETY: the capacity is at least `len`, and `write` has initialised the ranges, which cover it.
    unsafe { data.set_len(len) };
    data
}

/// Calls `write` with the start of every range and its part of `room`, in parallel; what it gives, in the ranges' order. The
/// ranges are neighbours and cover the room.
pub(crate) fn in_ranges<R: Send>(
    mut room: &mut [MaybeUninit<f32>],
    ranges: &[Range<usize>],
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) -> R + Sync,
) -> Vec<R> {
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (piece, rest) = room.split_at_mut(range.len());
        pieces.push((range.start, piece));
        room = rest;
    }
    assert!(room.is_empty(), "the ranges must cover the buffer");
    pieces.into_par_iter().map(|(start, out)| write(start, out)).collect()
}

/// Cuts `0..total` into blocks of `size`, the last one shorter.
pub(crate) fn blocks(total: usize, size: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..total.div_ceil(size)).into_par_iter().map(move |i| i * size..((i + 1) * size).min(total))
}

/// Part `i` of `0..total` cut into `parts` ranges whose lengths differ by at most one.
pub(crate) fn part(total: usize, parts: usize, i: usize) -> Range<usize> {
    i * total / parts..(i + 1) * total / parts
}
