//! The headers of a JPEG of the usual kind (ITU-T T.81: sequential, Huffman-coded, 8 bits, gray or YCbCr, all in one scan), read
//! without copying anything. Whatever is unusual or looks wrong is left to the general decoder, which knows more kinds and says what
//! is wrong with a file.

/// What the headers say.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Width in pixels, as stored.
    pub(super) width: usize,
    /// Height in pixels, as stored.
    pub(super) height: usize,
    /// One component (gray), or Y, Cb and Cr.
    pub(super) components: Vec<Component<'a>>,
    /// Units between restart markers; 0 without.
    pub(super) restart: usize,
    /// What follows the headers: coded data to the end-of-image marker, and perhaps more.
    pub(super) rest: &'a [u8],
    /// The last EXIF segment, from its TIFF header on.
    pub(super) exif: Option<&'a [u8]>,
    /// Whether there are segments that only the general decoder checks.
    pub(super) unchecked: bool,
}

/// How one component is stored.
#[derive(Debug)]
pub(super) struct Component<'a> {
    /// Blocks across in a unit: 1 or 2.
    pub(super) across: usize,
    /// Blocks down in a unit: 1 or 2.
    pub(super) down: usize,
    /// Quantisation factors, in zigzag order.
    pub(super) factors: [i32; 64],
    /// Its table of DC codes.
    pub(super) dc: Codes<'a>,
    /// Its table of AC codes.
    pub(super) ac: Codes<'a>,
}

/// A Huffman table as stored: how many codes there are of each length from 1 to 16 bits, and the symbols in the order of their codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes<'a> {
    /// Sixteen numbers.
    pub(super) lengths: &'a [u8],
    /// As many as those add up to.
    pub(super) symbols: &'a [u8],
}

/// What the segments before the frame's own have defined.
#[derive(Default)]
struct Tables<'a> {
    factors: [Option<[i32; 64]>; 4],
    dc: [Option<Codes<'a>>; 4],
    ac: [Option<Codes<'a>>; 4],
}

/// A component of the frame header: identifier, sampling factors, number of its quantisation table.
#[derive(Clone, Copy)]
struct Declared {
    id: u8,
    across: usize,
    down: usize,
    factors: usize,
}

/// Reads the headers up to the coded data; `None` for all that is not of the usual kind.
pub(super) fn read(raw: &[u8]) -> Option<Frame<'_>> {
    let mut at = 2;
    let mut tables = Tables::default();
    let mut declared: Option<(usize, usize, Vec<Declared>)> = None;
    let (mut restart, mut exif, mut unchecked) = (0, None, false);
    loop {
        let [0xff, marker, high, low] = *raw.get(at..at + 4)?.first_chunk()? else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = raw.get(at + 4..at + 2 + length)?;
        at += 2 + length;
        match marker {
            0xc0 | 0xc1 if declared.is_none() => declared = Some(frame(body)?),
            0xc4 => tables.codes(body)?,
            0xdb => tables.quantisation(body)?,
            0xdd => restart = usize::from(u16::from_be_bytes(body.try_into().ok()?)),
            0xda => {
                let (width, height, declared) = declared?;
                let components = tables.scan(body, &declared)?;
                return Some(Frame { width, height, components, restart, rest: raw.get(at..)?, exif, unchecked });
            }
            0xe0 if body.len() > 4 && !body.starts_with(b"AVI1\0") => {}
            0xe1 => match body.strip_prefix(b"Exif\0\0") {
                Some(chunk) if !chunk.is_empty() => exif = Some(chunk),
                _ => unchecked = true,
            },
            // Colour profiles and the like may be split over segments in ways that are wrong.
            0xe2 | 0xed => unchecked = true,
            // Adobe's marker: only with the transform of ordinary colours.
            0xee if body.starts_with(b"Adobe") && body.get(11) != Some(&1) => return None,
            0xe3..=0xec | 0xee | 0xef | 0xfe => {}
            _ => return None,
        }
    }
}

/// The frame header: width, height and the components of kinds that are decoded here.
fn frame(body: &[u8]) -> Option<(usize, usize, Vec<Declared>)> {
    let (&[8, h0, h1, w0, w1, count], rest) = body.split_first_chunk::<6>()? else { return None };
    let (width, height) = (usize::from(u16::from_be_bytes([w0, w1])), usize::from(u16::from_be_bytes([h0, h1])));
    let read = |c: &[u8]| Declared {
        id: c[0],
        across: usize::from(c[1] >> 4),
        down: usize::from(c[1] & 15),
        factors: usize::from(c[2]),
    };
    let components: Vec<Declared> = rest.chunks_exact(3).map(read).collect();
    let sides = |c: &Declared| (c.across, c.down);
    let known = match &components[..] {
        [gray] => sides(gray) == (1, 1),
        [y, cb, cr] => {
            let named = [y.id, cb.id, cr.id] == *b"RGB";
            matches!(sides(y), (1 | 2, 1 | 2)) && sides(cb) == (1, 1) && sides(cr) == (1, 1) && !named
        }
        _ => false,
    };
    (known && width > 0 && height > 0 && rest.len() == 3 * usize::from(count)).then_some((width, height, components))
}

impl<'a> Tables<'a> {
    /// A segment of Huffman tables.
    fn codes(&mut self, mut body: &'a [u8]) -> Option<()> {
        while !body.is_empty() {
            let (&[kind], rest) = body.split_first_chunk()?;
            let (lengths, rest) = rest.split_at_checked(16)?;
            let (symbols, rest) = rest.split_at_checked(lengths.iter().map(|&n| usize::from(n)).sum())?;
            body = rest;
            let codes = Codes { lengths, symbols };
            let place = match kind >> 4 {
                0 => self.dc.get_mut(usize::from(kind & 15))?,
                1 => self.ac.get_mut(usize::from(kind & 15))?,
                _ => return None,
            };
            if !codes.is_sound(kind >> 4 == 0) {
                return None;
            }
            *place = Some(codes);
        }
        Some(())
    }

    /// A segment of quantisation tables.
    fn quantisation(&mut self, mut body: &'a [u8]) -> Option<()> {
        while !body.is_empty() {
            let (&[kind], rest) = body.split_first_chunk()?;
            let (values, rest) = rest.split_at_checked(if kind >> 4 == 0 { 64 } else { 128 })?;
            body = rest;
            let mut factors = [0; 64];
            match kind >> 4 {
                0 => factors.iter_mut().zip(values).for_each(|(f, &v)| *f = i32::from(v)),
                1 => {
                    let words = values.as_chunks::<2>().0;
                    factors.iter_mut().zip(words).for_each(|(f, &v)| *f = i32::from(u16::from_be_bytes(v)));
                }
                _ => return None,
            }
            *self.factors.get_mut(usize::from(kind & 15))? = Some(factors);
        }
        Some(())
    }

    /// The scan header: all components of the frame in their order, all coefficients at once.
    fn scan(&self, body: &[u8], declared: &[Declared]) -> Option<Vec<Component<'a>>> {
        let (&[count], rest) = body.split_first_chunk()?;
        if usize::from(count) != declared.len() || rest.len() != 2 * declared.len() + 3 || !rest.ends_with(&[0, 63, 0]) {
            return None;
        }
        let twice = |i: usize| declared[..i].iter().any(|d| d.id == declared[i].id);
        let component = |(i, named): (usize, &[u8; 2])| {
            let d = declared[i];
            if named[0] != d.id || twice(i) {
                return None;
            }
            Some(Component {
                across: d.across,
                down: d.down,
                factors: (*self.factors.get(d.factors)?)?,
                dc: (*self.dc.get(usize::from(named[1] >> 4))?)?,
                ac: (*self.ac.get(usize::from(named[1] & 15))?)?,
            })
        };
        rest.as_chunks::<2>().0.iter().take(declared.len()).enumerate().map(component).collect()
    }
}

impl Codes<'_> {
    /// Whether the codes make a tree in which no code is all ones, and every symbol is one that 8-bit images have: a run of zeros and
    /// a size of at most 10 bits, or a size of at most 11 bits.
    fn is_sound(&self, dc: bool) -> bool {
        let mut code = 0_u32;
        for (&count, length) in self.lengths.iter().zip(1..) {
            code = (code << 1) + u32::from(count);
            if count > 0 && code >= 1 << length {
                return false;
            }
        }
        self.symbols.len() <= 256 && self.symbols.iter().all(|&s| if dc { s <= 11 } else { s & 15 <= 10 })
    }
}
