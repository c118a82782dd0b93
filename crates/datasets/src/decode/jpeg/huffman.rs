//! Huffman codes of JPEG: a reader of bits, and tables that know for the next bits of the stream how long the code and the number
//! behind it are, so that the next symbol need not wait for this one's value.

use super::header::Codes;

/// Bits that the table is looked up by: longer codes are rare and take a slower way, and larger tables do not stay in the nearest cache.
const LOOK: u8 = 10;
/// Zeros that must follow the coded data: bits are read up to eight bytes ahead, eight bytes at a time.
pub(super) const PAD: usize = 16;

/// The place of the k-th coefficient of a block, read along its diagonals; beyond the block's end a place behind it.
const ZIGZAG: [u8; 128] = zigzag();

const fn zigzag() -> [u8; 128] {
    let mut places = [64; 128];
    let (mut x, mut y, mut k) = (0_usize, 0_usize, 0);
    while k < 64 {
        places[k] = (y * 8 + x) as u8;
        // Even diagonals go up to the right, odd ones down to the left.
        match ((x + y).is_multiple_of(2), x, y) {
            (true, 7, _) => y += 1,
            (true, _, 0) => x += 1,
            (true, ..) => (x, y) = (x + 1, y - 1),
            (false, _, 7) => x += 1,
            (false, 0, _) => y += 1,
            (false, ..) => (x, y) = (x - 1, y + 1),
        }
        k += 1;
    }
    places
}

/// Coefficients of one block, times their factors, row by row; what lies behind the 64 is of no meaning.
pub(super) type Block = [i32; 128];

/// What a code stands for. Fields of their own, since reading one from memory takes less than shifting it out of a word.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Bits of code and number together; 0 when there is no code that short.
    bits: u8,
    /// Bits of the code.
    code: u8,
    /// 63 less the bits of the number.
    shift: u8,
    /// Zeros before the number.
    run: u8,
    /// Places that it takes of the block.
    places: u8,
    /// What is added to a number that begins with 0: 1 − 2^size.
    low: i16,
}

impl Entry {
    /// Places that the end of a block takes: more than there are.
    const END: u8 = 128;
    /// Places that bits take which are no code: more than that.
    const WRONG: u8 = 255;

    fn new(length: u8, symbol: u8, dc: bool) -> Self {
        let (run, size) = if dc { (0, symbol) } else { (symbol >> 4, symbol & 15) };
        let (run, places) = if !dc && size == 0 && run != 15 { (0, Self::END) } else { (run, run + 1) };
        Self { bits: length + size, code: length, shift: 63 - size, run, places, low: 1 - (1 << size) }
    }

    /// The number behind the code, where `bits` begin with the code.
    #[inline(always)]
    fn number(&self, bits: u64) -> i32 {
        let behind = bits << (self.code & 63);
        let value = (behind >> 1 >> (self.shift & 63)) as i32;
        let negative = !((behind as i64) >> 63) as i32;
        value + (negative & i32::from(self.low))
    }
}

/// A table of codes, made once for as long as the same comes again.
#[derive(Debug)]
pub(super) struct Table {
    entries: Box<[Entry; 1 << LOOK]>,
    /// For each length the first code, left-aligned in 16 bits, that is longer; and what to add to a code for its symbol's place.
    longer: [(u32, i32); 17],
    symbols: Vec<u8>,
    lengths: [u8; 16],
    dc: bool,
}

impl Default for Table {
    fn default() -> Self {
        let entries = Box::new([Entry::default(); 1 << LOOK]);
        Self { entries, longer: [(0, 0); 17], symbols: Vec::new(), lengths: [0; 16], dc: false }
    }
}

impl Table {
    /// Makes it the table of `codes`, which must be sound.
    pub(super) fn set(&mut self, codes: Codes<'_>, dc: bool) {
        if self.dc == dc && self.lengths[..] == *codes.lengths && self.symbols == codes.symbols {
            return;
        }
        self.dc = dc;
        self.lengths.copy_from_slice(codes.lengths);
        self.symbols.clear();
        self.symbols.extend_from_slice(codes.symbols);
        self.entries.fill(Entry::default());
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, &count) in (1_u8..).zip(codes.lengths) {
            code <<= 1;
            self.longer[usize::from(length)] = ((code + u32::from(count)) << (16 - length), place as i32 - code as i32);
            for &symbol in &codes.symbols[place..place + usize::from(count)] {
                if length <= LOOK {
                    let first = (code << (LOOK - length)) as usize;
                    self.entries[first..first + (1 << (LOOK - length))].fill(Entry::new(length, symbol, dc));
                }
                code += 1;
            }
            place += usize::from(count);
        }
    }

    /// What a code of more than [`LOOK`] bits at the front of `bits` stands for.
    #[cold]
    #[inline(never)]
    fn find_long(&self, bits: u64) -> Entry {
        let front = (bits >> 48) as u32;
        let known = || {
            let length = (LOOK + 1..=16).find(|&l| front < self.longer[usize::from(l)].0)?;
            let place = (front >> (16 - length)) as i32 + self.longer[usize::from(length)].1;
            Some(Entry::new(length, *self.symbols.get(usize::try_from(place).ok()?)?, self.dc))
        };
        known().unwrap_or(Entry { places: Entry::WRONG, ..Entry::default() })
    }
}

/// What the code at the front of the bits stands for. A macro, so that an entry stays where it is in the table.
macro_rules! find {
    ($table:expr, $entries:expr, $bits:expr, $long:ident) => {{
        let entry = &$entries[($bits >> (64 - LOOK)) as usize];
        if entry.bits != 0 {
            entry
        } else {
            $long = $table.find_long($bits);
            &$long
        }
    }};
}

/// Coded data without stuffed bytes, read bit by bit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    next: usize,
    /// The next bits, from the highest down; at least `count` of them.
    bits: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// `data` ends with [`PAD`] zeros that do not belong to it.
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, next: 0, bits: 0, count: 0 }
    }

    /// Bits that are left; negative when more were read than there are.
    pub(super) fn left(&self) -> i64 {
        8 * (self.data.len() as i64 - PAD as i64 - self.next as i64) + i64::from(self.count)
    }

    /// Makes at least 56 bits ready.
    #[inline(always)]
    fn fill(&mut self) -> Option<()> {
        let more = u64::from_be_bytes(*self.data.get(self.next..)?.first_chunk()?);
        self.bits |= more >> self.count;
        self.next += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
        Some(())
    }

    #[inline(always)]
    fn skip(&mut self, entry: &Entry) {
        self.bits <<= entry.bits & 63;
        self.count = self.count.wrapping_sub(u32::from(entry.bits));
    }

    /// Reads one block. With `KEEP` its coefficients, times `factors` (in zigzag order), go to `block`; otherwise only `before`, the DC
    /// coefficient of the block before, changes. Gives the place in zigzag order of the last coefficient that was read.
    ///
    /// `None` when the data is no block's.
    #[inline(always)]
    pub(super) fn block<const KEEP: bool>(
        &mut self,
        dc: &Table,
        ac: &Table,
        factors: &[i32; 128],
        before: &mut i32,
        block: &mut Block,
    ) -> Option<usize> {
        let mut reader = *self;
        let mut long;
        reader.fill()?;
        let entry = find!(dc, dc.entries, reader.bits, long);
        if entry.places == Entry::WRONG {
            return None;
        }
        *before = before.wrapping_add(entry.number(reader.bits));
        reader.skip(entry);
        if KEEP {
            block[..64].fill(0);
            block[0] = before.wrapping_mul(factors[0]);
        }
        let entries = &*ac.entries;
        let mut k = 1;
        macro_rules! symbol {
            () => {
                let entry = find!(ac, entries, reader.bits, long);
                if KEEP {
                    let place = (k + usize::from(entry.run)) & 127;
                    block[usize::from(ZIGZAG[place]) & 127] = entry.number(reader.bits).wrapping_mul(factors[place]);
                }
                reader.skip(entry);
                k += usize::from(entry.places);
                if k >= 64 {
                    break;
                }
            };
        }
        // A symbol takes 26 bits at most: two of them go with each filling.
        loop {
            reader.fill()?;
            symbol!();
            symbol!();
        }
        *self = reader;
        match k.checked_sub(usize::from(Entry::END)) {
            Some(end @ 1..=63) => Some(end - 1),
            None if k == 64 => Some(63),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zigzag_visits_every_place_once() {
        let mut seen = ZIGZAG[..64].to_vec();
        assert_eq!(seen[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(seen[56..], [53, 60, 61, 54, 47, 55, 62, 63]);
        seen.sort_unstable();
        assert!((0..64).eq(seen));
    }
}
