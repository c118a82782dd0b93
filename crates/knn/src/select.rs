//! The running selection of one query: the best keys seen so far, with a margin, block of the bank after block.
//!
//! Most keys are far below the k-th best, so they cost one comparison. The rest are pushed to a buffer that is cut back
//! to the k best (and those within the margin of the k-th) whenever it is full, which is cheaper than a heap.

use pulp::Arch;

/// Best keys of one query. A key is any number that is greater the nearer a row is.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// Key and index in one number, see [`pack`].
    entries: Vec<u64>,
    k: usize,
    /// Keys within this of the k-th best are kept: their order is not certain yet.
    margin: f32,
    /// Keys below it are of no interest any more.
    limit: f32,
    capacity: usize,
}

/// Room for keys beyond twice `k`.
const SLACK: usize = 128;
/// Keys compared at a time.
const WIDTH: usize = 64;
/// Keys compared at a time where one of [`WIDTH`] is near.
const GROUP: usize = 16;

impl Selection {
    /// Keeps the `k` best keys and those within `margin` of the k-th.
    pub fn new(k: usize, margin: f32) -> Self {
        let capacity = 2 * k + SLACK;
        Self { entries: Vec::with_capacity(capacity + GROUP), k, margin, limit: f32::NEG_INFINITY, capacity }
    }

    /// Takes the keys `products[i] * scale[i] + shift[i]` of rows `first`, `first + 1`, …, row `skip` left out.
    pub fn offer(&mut self, products: &[f32], scale: &[f32], shift: &[f32], first: u32, skip: u32) {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                let (scale, shift) = (&scale[..products.len()], &shift[..products.len()]);
                let mut keys = [0.0f32; WIDTH];
                for start in (0..products.len()).step_by(WIDTH) {
                    let range = start..(start + WIDTH).min(products.len());
                    let (p, a, b) = (&products[range.clone()], &scale[range.clone()], &shift[range]);
                    if p.len() < WIDTH {
                        // No key of the loop before may be taken for one of this.
                        keys = [f32::NAN; WIDTH];
                        keys.iter_mut().zip(p.iter().zip(a).zip(b)).for_each(|(k, ((p, a), b))| *k = p * a + b);
                    } else {
                        for i in 0..WIDTH {
                            keys[i] = p[i] * a[i] + b[i];
                        }
                    }
                    let mut near = 0;
                    for key in &keys {
                        near |= u32::from(*key >= self.limit);
                    }
                    if near != 0 {
                        self.push(&keys, first + start as u32, skip);
                    }
                }
            },
        );
    }

    /// The indices that may be among the k nearest, in no order.
    pub fn finish(mut self) -> Vec<u32> {
        self.cut();
        self.entries.iter().map(|&e| index(e)).collect()
    }

    /// Joins the selection of another part of the bank.
    pub fn join(&mut self, other: &Self) {
        self.entries.extend_from_slice(&other.entries);
    }

    /// Takes those of `keys` that are not below the limit.
    #[inline(always)]
    fn push(&mut self, keys: &[f32; WIDTH], first: u32, skip: u32) {
        for (g, group) in keys.as_chunks::<GROUP>().0.iter().enumerate() {
            if !group.iter().fold(false, |near, key| near | (*key >= self.limit)) {
                continue;
            }
            // Written every time and counted when wanted: whether a key is near is hard to foresee.
            let mut near = [0u64; GROUP];
            let mut count = 0;
            for (i, &key) in group.iter().enumerate() {
                let at = first.wrapping_add((g * GROUP + i) as u32);
                near[count] = pack(key, at);
                count += usize::from((key >= self.limit) & (at != skip));
            }
            self.entries.extend_from_slice(&near[..count]);
            if self.entries.len() >= self.capacity {
                self.cut();
            }
        }
    }

    /// Throws away what is certainly not among the k best, and raises the limit.
    fn cut(&mut self) {
        if self.entries.len() <= self.k {
            return;
        }
        let (_, &mut kth, _) = self.entries.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
        self.limit = key(kth) - self.margin;
        let mut kept = self.k;
        for i in self.k..self.entries.len() {
            if key(self.entries[i]) >= self.limit {
                self.entries.swap(kept, i);
                kept += 1;
            }
        }
        self.entries.truncate(kept);
        // Many keys within the margin: a larger buffer keeps the cuts rare.
        self.capacity = self.capacity.max(2 * kept + SLACK);
    }
}

/// Greater for a greater key, then for a lower index.
fn pack(key: f32, index: u32) -> u64 {
    let bits = key.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
    u64::from(ordered) << 32 | u64::from(!index)
}

fn index(entry: u64) -> u32 {
    !(entry as u32)
}

fn key(entry: u64) -> f32 {
    let ordered = (entry >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & 0x7fff_ffff } else { !ordered })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packing_keeps_order_and_comes_back() {
        let keys = [f32::MIN, -1.5, -0.0, 0.0, f32::MIN_POSITIVE, 2.0, f32::MAX];
        for pair in keys.windows(2) {
            assert!(pack(pair[0], 0) <= pack(pair[1], 9) || pair[0] == pair[1], "{pair:?}");
        }
        assert!(pack(1.0, 3) > pack(1.0, 4));
        for k in keys {
            assert_eq!((key(pack(k, 77)), index(pack(k, 77))), (k, 77));
        }
    }

    proptest! {
        #[test]
        fn selected_are_the_best_and_those_within_the_margin(
            keys in prop::collection::vec(-50i32..50, 1..900), k in 1usize..40, margin in 0u8..3, blocks in 1usize..200,
        ) {
            let k = k.min(keys.len());
            let values: Vec<f32> = keys.iter().map(|&v| v as f32).collect();
            let (ones, zeros) = (vec![1.0; values.len()], vec![0.0; values.len()]);
            let mut selection = Selection::new(k, f32::from(margin));
            for (b, part) in values.chunks(blocks).enumerate() {
                selection.offer(part, &ones[..part.len()], &zeros[..part.len()], (b * blocks) as u32, u32::MAX);
            }
            let mut got = selection.finish();
            got.sort_unstable();
            let mut sorted = values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let limit = sorted[k - 1] - f32::from(margin);
            let want: Vec<u32> = (0..values.len() as u32).filter(|&i| values[i as usize] >= limit).collect();
            prop_assert_eq!(got, want);
        }
    }
}
