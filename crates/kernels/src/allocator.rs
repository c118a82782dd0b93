//! A global allocator that keeps large blocks for reuse.
//!
//! Training allocates and frees the same large buffers in every step. General allocators give such blocks back to the
//! system, which then clears every page again at the next use: about a third of the time of a memory-bound step.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Wraps an allocator; blocks of 64 KiB and more are kept in lists by size class when they are freed, up to a limit.
///
/// For programs: `#[global_allocator] static ALLOCATOR: CachingAllocator<System> = CachingAllocator::new(System, 4 << 30);`
#[derive(Debug)]
pub struct CachingAllocator<A> {
    inner: A,
    limit: usize,
    kept: AtomicUsize,
    classes: [Mutex<Free>; CLASSES],
}

/// The head of a list of free blocks, each of which holds the address of the next one in its first bytes.
#[derive(Debug)]
struct Free(*mut u8);

// SAFETY: the blocks of a list belong to the list alone until they are handed out.
unsafe impl Send for Free {}

const SMALLEST: usize = 64 << 10;
const ALIGN: usize = 64;
/// Four classes between powers of two, from 64 KiB to 64 GiB.
const CLASSES: usize = 4 * 20 + 1;

impl<A> CachingAllocator<A> {
    /// An allocator on `inner` that keeps at most `limit` bytes of free blocks.
    pub const fn new(inner: A, limit: usize) -> Self {
        Self { inner, limit, kept: AtomicUsize::new(0), classes: [const { Mutex::new(Free(null_mut())) }; CLASSES] }
    }

    /// Bytes of free blocks that are kept at the moment.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }
}

/// The class of a layout, and the layout of the class's blocks; none for blocks that are not kept.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    if layout.size() < SMALLEST || layout.align() > ALIGN {
        return None;
    }
    // Quarters of the power of two at or below the size, rounded up.
    let power = layout.size().ilog2() as usize;
    let quarter = 1usize << (power - 2);
    let quarters = layout.size().div_ceil(quarter);
    let index = (power - 16) * 4 + quarters - 4;
    let block = Layout::from_size_align(quarters.checked_mul(quarter)?, ALIGN).ok()?;
    (index < CLASSES).then_some((index, block))
}

impl<A> CachingAllocator<A> {
    /// Takes a kept block of a class.
    fn take(&self, index: usize, block: Layout) -> Option<*mut u8> {
        let mut free = self.classes[index].lock().ok()?;
        if free.0.is_null() {
            return None;
        }
        let taken = free.0;
        // SAFETY: a kept block is at least 64 KiB, aligned to 64 bytes, and starts with the address of the next one.
        free.0 = unsafe { taken.cast::<*mut u8>().read() };
        self.kept.fetch_sub(block.size(), Ordering::Relaxed);
        Some(taken)
    }

    /// Keeps a block, unless the limit is reached.
    fn keep(&self, index: usize, block: Layout, pointer: *mut u8) -> bool {
        let before = self.kept.fetch_add(block.size(), Ordering::Relaxed);
        let place = if before + block.size() <= self.limit { self.classes[index].lock().ok() } else { None };
        let Some(mut free) = place else {
            self.kept.fetch_sub(block.size(), Ordering::Relaxed);
            return false;
        };
        // SAFETY: the block was freed by its owner, is large enough and aligned.
        unsafe { pointer.cast::<*mut u8>().write(free.0) };
        free.0 = pointer;
        true
    }
}

// SAFETY: a block goes to one owner at a time: it comes from `inner` or from a list, of which it is then no longer part.
// Which of the two ways a block takes depends on its layout alone, so that freeing finds the layout it was made with.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CachingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            // SAFETY: `block` has a size above zero.
            Some((index, block)) => self.take(index, block).unwrap_or_else(|| unsafe { self.inner.alloc(block) }),
            // SAFETY: as the caller promises.
            None => unsafe { self.inner.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((index, block)) = class(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { self.inner.alloc_zeroed(layout) };
        };
        match self.take(index, block) {
            Some(pointer) => {
                // SAFETY: the block is at least as large as the layout.
                unsafe { pointer.write_bytes(0, layout.size()) };
                pointer
            }
            // SAFETY: `block` has a size above zero.
            None => unsafe { self.inner.alloc_zeroed(block) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match class(layout) {
            Some((index, block)) => {
                if !self.keep(index, block, pointer) {
                    // SAFETY: the block was made with this layout, and is not kept.
                    unsafe { self.inner.dealloc(pointer, block) }
                }
            }
            // SAFETY: as the caller promises.
            None => unsafe { self.inner.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that is valid with this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(layout), class(new)) {
            // SAFETY: as the caller promises.
            (None, None) => unsafe { self.inner.realloc(pointer, layout, size) },
            // The block is large enough for both.
            (Some((old, _)), Some((now, _))) if old == now => pointer,
            // SAFETY: both blocks hold the bytes that are copied; the old one is the caller's.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(pointer, layout.size().min(size));
                    self.dealloc(pointer, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::System;

    use super::*;

    #[test]
    fn classes_hold_their_sizes_and_grow_with_them() {
        let mut last = 0;
        for size in (SMALLEST..40 << 20).step_by(10_007) {
            let (index, block) = class(Layout::from_size_align(size, 4).unwrap()).unwrap();
            assert!(block.size() >= size && block.size() <= size + size / 4, "{size} in {}", block.size());
            assert!(index >= last && index < CLASSES);
            assert_eq!(class(block), Some((index, block)), "a block is of its own class");
            last = index;
        }
        assert!(class(Layout::from_size_align(SMALLEST - 1, 4).unwrap()).is_none());
        assert!(class(Layout::from_size_align(SMALLEST, 4096).unwrap()).is_none());
    }

    #[test]
    fn freed_blocks_come_back_zeroed_when_asked_and_the_limit_holds() {
        let allocator = CachingAllocator::new(System, 1 << 20);
        let layout = Layout::from_size_align(300_000, 4).unwrap();
        // SAFETY: every block is used within its layout and freed once, with the layout that it has.
        unsafe {
            let first = allocator.alloc(layout);
            first.write_bytes(7, layout.size());
            allocator.dealloc(first, layout);
            assert!(allocator.kept() >= layout.size());
            let again = allocator.alloc_zeroed(layout);
            assert_eq!(again, first);
            assert!((0..layout.size()).all(|i| again.add(i).read() == 0));
            assert_eq!(allocator.kept(), 0);
            let others: Vec<_> = (0..5).map(|_| allocator.alloc(layout)).collect();
            others.into_iter().for_each(|p| allocator.dealloc(p, layout));
            assert!(allocator.kept() <= 1 << 20);
            allocator.dealloc(again, layout);
        }
    }

    #[test]
    fn growing_and_shrinking_keep_the_contents() {
        let allocator = CachingAllocator::new(System, 1 << 24);
        let mut layout = Layout::from_size_align(1000, 4).unwrap();
        // SAFETY: as above.
        unsafe {
            let mut p = allocator.alloc(layout);
            (0..1000).for_each(|i| p.add(i).write(i as u8));
            for size in [70_000, 71_000, 900_000, 65_536, 2000, 1000] {
                p = allocator.realloc(p, layout, size);
                layout = Layout::from_size_align(size, 4).unwrap();
                assert!((0..1000).all(|i| p.add(i).read() == i as u8), "{size}");
            }
            allocator.dealloc(p, layout);
        }
    }
}
