//! JPEGs of random coefficients or of a picture, in any sampling, with restart markers and with codes of every length.

/// What the file holds.
#[derive(Debug, Clone, Copy)]
pub enum Sampling {
    /// One component.
    Gray,
    /// Three, of which luma has this many blocks across and down in a unit.
    Colour(u32, u32),
}

/// A file to be made.
#[derive(Debug, Clone, Copy)]
pub struct Jpeg {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Its components.
    pub sampling: Sampling,
    /// Units between restart markers; 0 for none.
    pub restart: u16,
    /// The quantisation factor of every coefficient.
    pub factor: u16,
    /// How many of 256 coefficients are other than 0.
    pub noise: u32,
    /// Decides the coefficients.
    pub seed: u32,
}

/// The file with an EXIF segment that says how it is turned: `orientation` is 1 (upright) to 8.
pub fn turned(raw: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    [&raw[..2], &exif, &raw[2..]].concat()
}

/// Codes a length from 1 to 16 bits of the table of AC codes; the rest are of 16 bits.
const AC_LENGTHS: [u8; 16] = [0, 1, 1, 2, 3, 4, 5, 8, 10, 12, 20, 30, 0, 0, 0, 66];
/// Twelve codes of 4 bits.
const DC_LENGTHS: [u8; 16] = [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Jpeg {
    /// The bytes of a file of random coefficients.
    pub fn encode(&self) -> Vec<u8> {
        let mut random = u64::from(self.seed) << 1 | 1;
        let mut next = move |below: u32| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as u32 % below
        };
        self.write(&mut |_, _, _| {
            let mut block = [0; 64];
            block[0] = next(2047) as i32 - 1023;
            // Some blocks are flat, some end early.
            let end = [1, 2, 10, 64][next(4) as usize];
            for value in &mut block[1..end] {
                if next(256) < self.noise {
                    let most = 1 << (1 + next(10));
                    let size = 1 + next(most - 1) as i32;
                    *value = if next(2) == 0 { size } else { -size };
                }
            }
            block
        })
    }

    /// The bytes of a file of a picture: `level` gives the level, 0 to 255, of a component (0: luma) at a place, in pixels.
    pub fn picture(&self, level: &dyn Fn(usize, f64, f64) -> f64) -> Vec<u8> {
        let (across, down) = match self.sampling {
            Sampling::Gray => (1, 1),
            Sampling::Colour(across, down) => (across, down),
        };
        let cosine: [[f64; 8]; 8] = std::array::from_fn(|u| {
            let scale = if u == 0 { 0.125_f64.sqrt() } else { 0.5 };
            std::array::from_fn(|x| scale * ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos())
        });
        self.write(&mut |component, column, row| {
            let (wide, high) = if component == 0 { (1.0, 1.0) } else { (f64::from(across), f64::from(down)) };
            let at = |block: u32, i: usize, size: f64| (f64::from(8 * block) + i as f64 + 0.5) * size;
            let levels: [[f64; 8]; 8] = std::array::from_fn(|y| {
                std::array::from_fn(|x| level(component, at(column, x, wide), at(row, y, high)).clamp(0.0, 255.0) - 128.0)
            });
            let term = |u: usize, v: usize| -> f64 {
                (0..64).map(|i| levels[i / 8][i % 8] * cosine[u][i % 8] * cosine[v][i / 8]).sum::<f64>() / f64::from(self.factor)
            };
            // Along the diagonals.
            let mut places: Vec<(usize, usize)> = (0..64).map(|i| (i % 8, i / 8)).collect();
            places.sort_by_key(|&(u, v)| (u + v, if (u + v) % 2 == 0 { u } else { v }));
            std::array::from_fn(|k| (term(places[k].0, places[k].1).round() as i32).clamp(-1023, 1023))
        })
    }

    /// A file of the blocks, in zigzag order, that `next` gives for a component and a place in its plane.
    fn write(&self, next: &mut dyn FnMut(usize, u32, u32) -> [i32; 64]) -> Vec<u8> {
        let (width, height) = self.size;
        let sides: Vec<(u32, u32)> = match self.sampling {
            Sampling::Gray => vec![(1, 1)],
            Sampling::Colour(across, down) => vec![(across, down), (1, 1), (1, 1)],
        };
        let mut raw = vec![0xff, 0xd8];
        let mut segment = |marker: u8, body: &[u8]| {
            raw.extend([0xff, marker]);
            raw.extend((body.len() as u16 + 2).to_be_bytes());
            raw.extend_from_slice(body);
        };
        segment(0xe0, b"JFIF\0\x01\x02\0\0\x01\0\x01\0\0");
        match u8::try_from(self.factor) {
            Ok(factor) => segment(0xdb, &[&[0][..], &[factor; 64]].concat()),
            Err(_) => segment(0xdb, &[&[0x10][..], &self.factor.to_be_bytes().repeat(64)].concat()),
        }
        let count = sides.len() as u8;
        let ids = || (1..).zip(&sides);
        let frame = [&[8][..], &(height as u16).to_be_bytes(), &(width as u16).to_be_bytes(), &[count]].concat();
        let components = ids().flat_map(|(id, &(across, down))| [id, (across << 4 | down) as u8, 0]);
        segment(0xc0, &frame.into_iter().chain(components).collect::<Vec<u8>>());
        let symbols = ac_symbols();
        segment(0xc4, &[&[0][..], &DC_LENGTHS, &(0..12).collect::<Vec<u8>>(), &[0x10], &AC_LENGTHS, &symbols].concat());
        if self.restart > 0 {
            segment(0xdd, &self.restart.to_be_bytes());
        }
        segment(0xda, &[&[count][..], &ids().flat_map(|(id, _)| [id, 0]).collect::<Vec<u8>>(), &[0, 63, 0]].concat());

        let (most_across, most_down) = sides[0];
        let columns = width.div_ceil(8 * most_across);
        let units = columns * height.div_ceil(8 * most_down);
        let (dc, ac) = (codes(&DC_LENGTHS, &(0..12).collect::<Vec<u8>>()), codes(&AC_LENGTHS, &symbols));
        let mut writer = Writer::default();
        let mut before = [0; 3];
        for unit in 0..units {
            if self.restart > 0 && unit > 0 && unit % u32::from(self.restart) == 0 {
                writer.restart(&mut raw, (unit / u32::from(self.restart) - 1) as u8 & 7);
                before = [0; 3];
            }
            for (component, (before, (across, down))) in before.iter_mut().zip(&sides).enumerate() {
                for i in 0..across * down {
                    let place = (unit % columns * across + i % across, unit / columns * down + i / across);
                    let block = next(component, place.0, place.1);
                    writer.number(&mut raw, &dc, 0, block[0] - *before);
                    *before = block[0];
                    let mut run = 0;
                    for &value in &block[1..] {
                        if value == 0 {
                            run += 1;
                            continue;
                        }
                        for _ in 0..run / 16 {
                            writer.code(&mut raw, ac[0xf0]);
                        }
                        writer.number(&mut raw, &ac, run % 16, value);
                        run = 0;
                    }
                    if run > 0 {
                        writer.code(&mut raw, ac[0]);
                    }
                }
            }
        }
        writer.finish(&mut raw);
        raw.extend([0xff, 0xd9]);
        raw
    }
}

/// The end of a block, sixteen zeros, and every run with every size from 1 to 10, frequent ones first.
fn ac_symbols() -> Vec<u8> {
    let mut pairs: Vec<(u8, u8)> = (0..16).flat_map(|run| (1..11).map(move |size| (run, size))).collect();
    pairs.sort_by_key(|&(run, size)| run + size);
    [0, 0xf0].into_iter().chain(pairs.into_iter().map(|(run, size)| run << 4 | size)).collect()
}

/// The code of each symbol and its length.
fn codes(lengths: &[u8; 16], symbols: &[u8]) -> [(u32, u32); 256] {
    let mut all = [(0, 0); 256];
    let (mut code, mut symbols) = (0, symbols.iter());
    for (length, &count) in (1..).zip(lengths) {
        code <<= 1;
        for &symbol in symbols.by_ref().take(usize::from(count)) {
            all[usize::from(symbol)] = (code, length);
            code += 1;
        }
    }
    all
}

/// Writes bits and stuffs bytes.
#[derive(Default)]
struct Writer {
    bits: u64,
    count: u32,
}

impl Writer {
    fn code(&mut self, raw: &mut Vec<u8>, (code, length): (u32, u32)) {
        assert!(length > 0 || code == 0, "a symbol without a code");
        self.bits = self.bits << length | u64::from(code);
        self.count += length;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.bits >> self.count) as u8;
            raw.push(byte);
            if byte == 0xff {
                raw.push(0);
            }
        }
    }

    fn number(&mut self, raw: &mut Vec<u8>, codes: &[(u32, u32); 256], run: u32, value: i32) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        self.code(raw, codes[(run << 4 | size) as usize]);
        let bits = if value < 0 { value - 1 } else { value };
        self.code(raw, (bits as u32 & ((1 << size) - 1), size));
    }

    /// Fills the last byte with ones.
    fn finish(&mut self, raw: &mut Vec<u8>) {
        let rest = (8 - self.count % 8) % 8;
        self.code(raw, ((1 << rest) - 1, rest));
    }

    fn restart(&mut self, raw: &mut Vec<u8>, number: u8) {
        self.finish(raw);
        raw.extend([0xff, 0xd0 | number]);
    }
}
