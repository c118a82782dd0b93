//! A global allocator that keeps large blocks for reuse.
//!
//! Training allocates and frees the same large buffers in every step. General allocators give such blocks back to the
//! system, which then clears every page again at the next use: about a third of the time of a memory-bound step. Lists of
//! freed blocks by size avoid that, but hold the sum of what each size ever needed at once; here blocks are cut from large
//! segments, the smallest gap that fits first, and free neighbours become one again, so that a step's later buffers lie
//! where its earlier ones lay, whatever their sizes.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Wraps an allocator; blocks of 64 KiB and more are cut from segments of a gigabyte that are got from it, of which only what is used
/// becomes memory on systems that commit memory when it is touched. Segments that are free again are given back while more than a limit
/// is free in all; one block in use keeps its segment.
///
/// For programs: `#[global_allocator] static ALLOCATOR: CachingAllocator<System> = CachingAllocator::new(System, 4 << 30);`
#[derive(Debug)]
pub struct CachingAllocator<A> {
    inner: A,
    limit: usize,
    arena: Mutex<Arena>,
}

/// Segments and the gaps in them. Its trees allocate nodes far below [`SMALLEST`], which come from the inner allocator, so that the
/// lock is never taken twice.
#[derive(Debug)]
struct Arena {
    segments: BTreeMap<usize, Segment>,
    /// Lengths of the gaps, by their addresses.
    gaps: BTreeMap<usize, usize>,
    /// The gaps as (length, address).
    by_length: BTreeSet<(usize, usize)>,
    /// Bytes of all gaps that were in use before.
    kept: usize,
}

/// Memory from the inner allocator, zeros when it was got.
#[derive(Debug)]
struct Segment {
    /// What the inner allocator gave.
    got: usize,
    length: usize,
    /// Everything from this address on has never been handed out, and is zeros still.
    fresh: usize,
}

/// A block that was cut, with how many bytes at its start are not known to be zeros.
struct Cut {
    address: usize,
    used: usize,
}

const SMALLEST: usize = 64 << 10;
/// Blocks begin and end at multiples of this.
const PAGE: usize = 4096;
const SEGMENT: usize = 1 << 30;

impl<A> CachingAllocator<A> {
    /// An allocator on `inner` that gives free segments back while more than `limit` bytes are kept.
    pub const fn new(inner: A, limit: usize) -> Self {
        let arena = Arena { segments: BTreeMap::new(), gaps: BTreeMap::new(), by_length: BTreeSet::new(), kept: 0 };
        Self { inner, limit, arena: Mutex::new(arena) }
    }

    /// Bytes that were in use and are kept for reuse at the moment.
    pub fn kept(&self) -> usize {
        self.lock().kept
    }

    /// Nothing can fail halfway while it is held, so that a panic elsewhere leaves it sound.
    fn lock(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The length of the block for a layout; none for layouts that the inner allocator serves.
fn length(layout: Layout) -> Option<usize> {
    let ours = layout.size() >= SMALLEST && layout.align() <= PAGE;
    if ours { layout.size().checked_next_multiple_of(PAGE) } else { None }
}

/// What is asked of the inner allocator for a segment. A page more than its length, for it to begin at one: an alignment asked for makes
/// many allocators clear the memory themselves, where the system would give it clear.
fn segment_layout(length: usize) -> Option<Layout> {
    Layout::from_size_align(length.checked_add(PAGE)?, 16).ok()
}

impl Arena {
    /// Cuts a block from the smallest gap that holds it; of equal ones the lowest.
    fn cut(&mut self, length: usize) -> Option<Cut> {
        let (gap, address) = self.by_length.range((length, 0)..).next().copied()?;
        self.remove(address, gap);
        if gap > length {
            self.insert(address + length, gap - length);
        }
        let (_, segment) = self.segments.range_mut(..=address).next_back()?;
        let used = segment.fresh.saturating_sub(address).min(length);
        segment.fresh = segment.fresh.max(address + length);
        self.kept -= used;
        Some(Cut { address, used })
    }

    /// Takes a block back and joins it with the gaps beside it.
    fn give(&mut self, address: usize, length: usize) {
        let Some((&start, segment)) = self.segments.range(..=address).next_back() else { return };
        let end = start + segment.length;
        self.kept += length;
        let (mut low, mut high) = (address, address + length);
        if let Some((&before, &gap)) = self.gaps.range(start..address).next_back()
            && before + gap == address
        {
            self.remove(before, gap);
            low = before;
        }
        if high < end
            && let Some(&gap) = self.gaps.get(&high)
        {
            self.remove(high, gap);
            high += gap;
        }
        self.insert(low, high - low);
    }

    /// Adds the memory at `got`, which is a page longer than `length`, as a segment that is all gap.
    fn add(&mut self, got: usize, length: usize) {
        let address = got.next_multiple_of(PAGE);
        self.segments.insert(address, Segment { got, length, fresh: address });
        self.insert(address, length);
    }

    /// Forgets a segment that is all gap and was used, if there is one.
    fn forget_one(&mut self) -> Option<Segment> {
        let free = |(address, segment): &(&usize, &Segment)| {
            segment.fresh > **address && self.gaps.get(address).is_some_and(|&gap| gap == segment.length)
        };
        let address = *self.segments.iter().find(free)?.0;
        let segment = self.segments.remove(&address)?;
        self.remove(address, segment.length);
        self.kept -= segment.fresh - address;
        Some(segment)
    }

    fn insert(&mut self, address: usize, length: usize) {
        self.gaps.insert(address, length);
        self.by_length.insert((length, address));
    }

    fn remove(&mut self, address: usize, length: usize) {
        self.gaps.remove(&address);
        self.by_length.remove(&(length, address));
    }
}

impl<A: GlobalAlloc> CachingAllocator<A> {
    /// Cuts a block, from a new segment where no gap holds it.
    fn take(&self, length: usize) -> Option<Cut> {
        let mut arena = self.lock();
        if let Some(cut) = arena.cut(length) {
            return Some(cut);
        }
        // A gigabyte where the system has it to give, what is needed otherwise.
        for size in [length.max(SEGMENT), length] {
            let layout = segment_layout(size)?;
            // SAFETY: the size is above zero.
            let got = unsafe { self.inner.alloc_zeroed(layout) };
            if !got.is_null() {
                arena.add(got.expose_provenance(), size);
                return arena.cut(length);
            }
        }
        None
    }

    /// Takes a block back, and gives its segment back to the inner allocator where it is all free and too much is kept.
    fn put(&self, pointer: *mut u8, length: usize) {
        let mut arena = self.lock();
        arena.give(pointer.expose_provenance(), length);
        while arena.kept > self.limit {
            let Some(segment) = arena.forget_one() else { return };
            if let Some(layout) = segment_layout(segment.length) {
                // SAFETY: the segment was got with this layout, no block of it is in use, and the arena has forgotten it.
                unsafe { self.inner.dealloc(std::ptr::with_exposed_provenance_mut(segment.got), layout) }
            }
        }
    }
}

// SAFETY: a block goes to one owner at a time: it is cut from a gap, of which it is then no longer part, inside a segment that stays
// while a block of it is in use. Whether a block is cut or comes from `inner` depends on its layout alone, so that freeing finds the
// length it was cut with.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CachingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match length(layout) {
            Some(length) => self.take(length).map_or(null_mut(), |cut| std::ptr::with_exposed_provenance_mut(cut.address)),
            // SAFETY: as the caller promises.
            None => unsafe { self.inner.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(length) = length(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { self.inner.alloc_zeroed(layout) };
        };
        let Some(cut) = self.take(length) else { return null_mut() };
        let pointer: *mut u8 = std::ptr::with_exposed_provenance_mut(cut.address);
        // SAFETY: the block has at least so many bytes.
        unsafe { pointer.write_bytes(0, cut.used.min(layout.size())) };
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match length(layout) {
            Some(length) => self.put(pointer, length),
            // SAFETY: as the caller promises.
            None => unsafe { self.inner.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that is valid with this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (length(layout), length(new)) {
            // SAFETY: as the caller promises.
            (None, None) => unsafe { self.inner.realloc(pointer, layout, size) },
            (Some(old), Some(now)) if old == now => pointer,
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

    use proptest::prelude::*;

    use super::*;

    fn of(size: usize) -> Layout {
        Layout::from_size_align(size, 4).unwrap()
    }

    /// The lengths of all gaps, those of untouched memory included, and whether no two touch and none leaves its segment.
    fn gaps(allocator: &CachingAllocator<System>) -> (Vec<usize>, bool) {
        let arena = allocator.lock();
        let apart = arena.gaps.iter().zip(arena.gaps.iter().skip(1)).all(|((a, length), (b, _))| a + length < *b);
        let inside = arena.gaps.iter().all(|(a, length)| {
            arena.segments.range(..=a).next_back().is_some_and(|(start, segment)| a + length <= start + segment.length)
        });
        let listed: BTreeSet<_> = arena.gaps.iter().map(|(&a, &length)| (length, a)).collect();
        (arena.gaps.values().copied().collect(), apart && inside && listed == arena.by_length)
    }

    #[test]
    fn small_blocks_and_wide_alignments_are_left_alone() {
        assert_eq!(length(of(SMALLEST - 1)), None);
        assert_eq!(length(Layout::from_size_align(SMALLEST, 2 * PAGE).unwrap()), None);
        assert_eq!(length(of(SMALLEST)), Some(SMALLEST));
        assert_eq!(length(of(SMALLEST + 1)), Some(SMALLEST + PAGE));
    }

    #[test]
    fn blocks_of_other_sizes_lie_where_freed_ones_lay() {
        let allocator = CachingAllocator::new(System, 4 << 30);
        // SAFETY: every block is used within its layout and freed once, with the layout that it has.
        unsafe {
            let blocks = [300_000, 400_000, 500_000].map(|size| (allocator.alloc(of(size)), of(size)));
            blocks.iter().for_each(|(p, layout)| allocator.dealloc(*p, *layout));
            let kept = allocator.kept();
            let large = allocator.alloc(of(1_150_000));
            assert_eq!(large, blocks[0].0, "neighbours became one gap");
            assert!(allocator.kept() < kept / 10);
            allocator.dealloc(large, of(1_150_000));
            assert_eq!(gaps(&allocator).0, [SEGMENT]);
        }
    }

    #[test]
    fn zeros_are_zeros_in_fresh_memory_and_in_used() {
        let allocator = CachingAllocator::new(System, 4 << 30);
        // SAFETY: as above.
        unsafe {
            let first = allocator.alloc(of(300_000));
            first.write_bytes(7, 300_000);
            allocator.dealloc(first, of(300_000));
            // Begins in used memory and ends in fresh.
            let again = allocator.alloc_zeroed(of(700_000));
            assert_eq!(again, first);
            assert!((0..700_000).all(|i| again.add(i).read() == 0));
            assert_eq!(allocator.kept(), 0);
            allocator.dealloc(again, of(700_000));
        }
    }

    #[test]
    fn free_segments_go_back_over_the_limit_and_large_blocks_get_their_own() {
        let allocator = CachingAllocator::new(System, 1 << 20);
        // SAFETY: as above.
        unsafe {
            let small = allocator.alloc(of(500_000));
            let large = allocator.alloc(of(SEGMENT + 1));
            assert_eq!(allocator.lock().segments.len(), 2);
            allocator.dealloc(small, of(500_000));
            assert_eq!(allocator.lock().segments.len(), 2, "half a megabyte is kept");
            allocator.dealloc(large, of(SEGMENT + 1));
            assert_eq!(allocator.lock().segments.len(), 1);
            assert!(allocator.kept() <= 1 << 20);
        }
    }

    #[test]
    fn growing_and_shrinking_keep_the_contents() {
        let allocator = CachingAllocator::new(System, 1 << 24);
        let mut layout = of(1000);
        // SAFETY: as above.
        unsafe {
            let mut p = allocator.alloc(layout);
            (0..1000).for_each(|i| p.add(i).write(i as u8));
            for size in [70_000, 71_000, 900_000, 65_536, 2000, 1000] {
                p = allocator.realloc(p, layout, size);
                layout = of(size);
                assert!((0..1000).all(|i| p.add(i).read() == i as u8), "{size}");
            }
            allocator.dealloc(p, layout);
        }
    }

    #[test]
    fn threads_share_it() {
        let allocator = CachingAllocator::new(System, 4 << 30);
        std::thread::scope(|scope| {
            for mark in 1..5_u8 {
                let allocator = &allocator;
                scope.spawn(move || {
                    for round in 0..200_usize {
                        let layout = of(SMALLEST + (round * 7919) % 200_000);
                        // SAFETY: as above.
                        unsafe {
                            let p = allocator.alloc(layout);
                            p.write_bytes(mark, layout.size());
                            assert!((0..layout.size()).step_by(997).all(|i| p.add(i).read() == mark));
                            allocator.dealloc(p, layout);
                        }
                    }
                });
            }
        });
        assert_eq!(gaps(&allocator).0, [SEGMENT]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Blocks never overlap, keep what was written, and leave one gap behind.
        #[test]
        fn blocks_are_their_owners_alone(steps in proptest::collection::vec((any::<bool>(), 0..40_usize, 1..300_000_usize), 1..80)) {
            static ALLOCATOR: CachingAllocator<System> = CachingAllocator::new(System, 4 << 30);
            let allocator = &ALLOCATOR;
            let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
            let check = |&(p, layout, mark): &(*mut u8, Layout, u8)| {
                // SAFETY: the block is live.
                (0..layout.size()).step_by(1000).chain([layout.size() - 1]).all(|i| unsafe { p.add(i).read() } == mark)
            };
            for (i, (free, which, more)) in steps.into_iter().enumerate() {
                if free && !live.is_empty() {
                    let block = live.swap_remove(which % live.len());
                    prop_assert!(check(&block));
                    // SAFETY: it is freed once, with its layout.
                    unsafe { allocator.dealloc(block.0, block.1) };
                } else {
                    let (layout, mark) = (of(SMALLEST - 1 + more), i as u8);
                    // SAFETY: the block is written within its layout.
                    let p = unsafe {
                        let p = allocator.alloc(layout);
                        p.write_bytes(mark, layout.size());
                        p
                    };
                    live.push((p, layout, mark));
                }
                prop_assert!(gaps(allocator).1);
            }
            prop_assert!(live.iter().all(check));
            // SAFETY: as above.
            live.iter().for_each(|(p, layout, _)| unsafe { allocator.dealloc(*p, *layout) });
            prop_assert!(matches!(gaps(allocator).0[..], [SEGMENT] | []));
        }
    }
}
