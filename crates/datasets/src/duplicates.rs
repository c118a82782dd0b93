//! Images that occur twice: the same pixels, or nearly so.
//!
//! Near duplicates are told by a difference hash of 16 × 16 bits (the sign of each step of brightness along the rows of the image made
//! small; Krawetz 2013, "dHash"), which survives resizing, recompression and changes of brightness, and not crops or turns. Two images are near when
//! at most [`NEAR`] bits differ. Pictures with next to no structure are near to nothing.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use image::DynamicImage;
use image::imageops::{self, FilterType};
use rayon::prelude::*;

use crate::Dataset;
use crate::open::BadFile;

/// Most bits of 256 in which near duplicates differ.
pub const NEAR: u32 = 12;
/// A hash's bytes.
const BYTES: usize = 32;
/// Bands of a hash, more than bits may differ: one of them is the same in both.
const BANDS: u32 = NEAR + 1;

/// An image: the number of its part, and its index there.
pub type Place = (usize, usize);

/// What [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Images that can't be read, and the number of their part.
    pub bad: Vec<(usize, BadFile)>,
    /// Groups of images with the same pixels, in order.
    pub exact: Vec<Vec<Place>>,
    /// Groups of images that are near, without those that are the same (the first of whose group stands for all of a part).
    pub near: Vec<Vec<Place>>,
}

/// What is kept of an image.
struct Print {
    pixels: (u64, u64),
    /// `None` where there is no structure.
    hash: Option<[u8; BYTES]>,
}

/// Decodes every image of `parts` once, in parallel: names the bad ones and groups those that occur twice, within a part or in several.
pub fn check(parts: &[&dyn Dataset]) -> Check {
    let places: Vec<Place> = parts.iter().enumerate().flat_map(|(p, d)| (0..d.len()).map(move |i| (p, i))).collect();
    let prints: Vec<Result<Print, (usize, BadFile)>> = places
        .par_iter()
        .map(|&(part, i)| print(parts[part], i).map_err(|e| (part, BadFile::new(parts[part].id(i), &e))))
        .collect();
    let mut check = Check::default();
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    let mut in_part: HashSet<(usize, (u64, u64))> = HashSet::new();
    let (mut same, mut alike) = (Groups::new(places.len()), Groups::new(places.len()));
    let mut hashes = Vec::new();
    for (i, print) in prints.into_iter().enumerate() {
        match print {
            Err(bad) => check.bad.push(bad),
            Ok(print) => {
                let is_first = in_part.insert((places[i].0, print.pixels));
                match first.entry(print.pixels) {
                    Entry::Occupied(found) => {
                        same.join(*found.get(), i);
                        // What is near one is near the other: one of each part stands for the rest of its part.
                        if is_first {
                            alike.join(*found.get(), i);
                        }
                    }
                    Entry::Vacant(free) => {
                        free.insert(i);
                        hashes.extend(print.hash.map(|hash| (i, hash)));
                    }
                }
            }
        }
    }
    let exact = same.several();
    for band in 0..BANDS {
        let mut buckets: HashMap<u32, Vec<usize>> = HashMap::new();
        for (place, (_, hash)) in hashes.iter().enumerate() {
            buckets.entry(bits(hash, band)).or_default().push(place);
        }
        for bucket in buckets.into_values() {
            for (n, &a) in bucket.iter().enumerate() {
                for &b in &bucket[n + 1..] {
                    if distance(&hashes[a].1, &hashes[b].1) <= NEAR {
                        alike.join(hashes[a].0, hashes[b].0);
                    }
                }
            }
        }
    }
    // A group whose images are all the same was told as such.
    let group_of: HashMap<usize, usize> =
        exact.iter().enumerate().flat_map(|(g, group)| group.iter().map(move |&i| (i, g))).collect();
    let is_told = |group: &Vec<usize>| group_of.get(&group[0]).is_some_and(|g| group.iter().all(|i| group_of.get(i) == Some(g)));
    let placed = |group: Vec<usize>| group.into_iter().map(|i| places[i]).collect();
    check.near = alike.several().into_iter().filter(|group| !is_told(group)).map(placed).collect();
    check.exact = exact.into_iter().map(placed).collect();
    check
}

/// What is kept of image number `index`.
fn print(dataset: &dyn Dataset, index: usize) -> crate::Result<Print> {
    let image = dataset.get(index)?.image;
    let pixels = match dataset.bands(index) {
        Some(bands) => fingerprint((bands?.levels(), image.width(), image.height())),
        None => fingerprint((image.as_bytes(), image.width(), image.height(), image.color().channel_count())),
    };
    Ok(Print { pixels, hash: is_structured(&image).then(|| difference_hash(&image)) })
}

/// One bit a step of brightness along the rows of the image at 17 × 16 pixels: whether it goes up.
fn difference_hash(image: &DynamicImage) -> [u8; BYTES] {
    let small = imageops::resize(&image.to_luma8(), 17, 16, FilterType::Triangle).into_raw();
    let mut hash = [0; BYTES];
    for (row, bits) in small.chunks_exact(17).zip(hash.chunks_exact_mut(2)) {
        for x in 0..16 {
            bits[x / 8] |= u8::from(row[x] < row[x + 1]) << (x % 8);
        }
    }
    hash
}

/// Two hashes of size and pixels; equal ones of different images do not occur.
fn fingerprint(of: impl Hash) -> (u64, u64) {
    let salted = |salt: u8| {
        let mut hash = DefaultHasher::new();
        salt.hash(&mut hash);
        of.hash(&mut hash);
        hash.finish()
    };
    (salted(1), salted(2))
}

/// Whether an image has brightness steps to tell it by: levels with a standard deviation of two or more.
fn is_structured(image: &DynamicImage) -> bool {
    let raw = image.as_bytes();
    let n = raw.len().max(1) as f64;
    let (sum, square) = raw.iter().map(|&v| f64::from(v)).fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
    square / n - (sum / n).powi(2) >= 4.0
}

fn distance(a: &[u8; BYTES], b: &[u8; BYTES]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// The bits of one band: every 13th of the hash.
fn bits(hash: &[u8; BYTES], band: u32) -> u32 {
    (0..8 * BYTES as u32)
        .filter(|i| i % BANDS == band)
        .fold(0, |all, i| all << 1 | u32::from(hash[i as usize / 8] >> (i % 8) & 1))
}

/// Sets that grow together.
struct Groups(Vec<usize>);

impl Groups {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }

    /// The sets of two or more, each in order, by their first.
    fn several(mut self) -> Vec<Vec<usize>> {
        let mut found: std::collections::BTreeMap<usize, Vec<usize>> = std::collections::BTreeMap::new();
        for i in 0..self.0.len() {
            let root = self.root(i);
            found.entry(root).or_default().push(i);
        }
        found.into_values().filter(|group| group.len() > 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, open};
    use image::{Rgb, RgbImage, imageops};

    /// A picture of soft spots that differs from seed to seed.
    fn picture(seed: u32) -> RgbImage {
        let noise = |x: i64, y: i64, c: u32| {
            (((x as u32).wrapping_mul(73_856_093)
                ^ (y as u32).wrapping_mul(19_349_663)
                ^ (seed * 3 + c).wrapping_mul(83_492_791))
            .wrapping_mul(2_654_435_761)
                >> 24) as u8
        };
        let small = RgbImage::from_fn(12, 9, |x, y| Rgb([0, 1, 2].map(|c| noise(x.into(), y.into(), c))));
        imageops::resize(&small, 96, 72, imageops::FilterType::CatmullRom)
    }

    #[test]
    fn copies_are_found_and_other_pictures_are_not() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        for i in 0..30 {
            picture(i).save(at(&format!("{i:02}.png")))?;
        }
        picture(3).save(at("copy-of-03.bmp"))?;
        picture(5).save(at("jpeg-of-05.jpg"))?;
        imageops::resize(&picture(7), 64, 48, imageops::FilterType::Triangle).save(at("small-07.png"))?;
        RgbImage::from_pixel(20, 20, Rgb([9; 3])).save(at("flat-1.png"))?;
        RgbImage::from_pixel(21, 20, Rgb([9; 3])).save(at("flat-2.png"))?;
        std::fs::write(at("bad.png"), b"")?;
        let found = open(dir.path().to_str().unwrap_or_default(), &OpenOptions { keep_bytes: 0, ..OpenOptions::default() })?;
        std::fs::write(at("09.png"), b"gone meanwhile")?;
        let check = check(&[&*found.train]);
        let named = |groups: &[Vec<Place>]| -> Vec<Vec<String>> {
            groups.iter().map(|g| g.iter().map(|&(_, i)| found.train.id(i)).collect()).collect()
        };
        assert_eq!(named(&check.exact), [["03.png", "copy-of-03.bmp"]]);
        assert_eq!(named(&check.near), [["05.png", "jpeg-of-05.jpg"], ["07.png", "small-07.png"]]);
        assert_eq!(check.bad.iter().map(|(_, b)| b.id.as_str()).collect::<Vec<_>>(), ["09.png"]);
        Ok(())
    }

    #[test]
    fn hashes_that_differ_in_few_bits_share_a_band() {
        let (a, mut b) = ([0x5a; BYTES], [0x5a; BYTES]);
        for bit in 0..NEAR as usize {
            b[bit * 2] ^= 1 << (bit % 8);
        }
        assert_eq!(distance(&a, &b), NEAR);
        assert!((0..BANDS).any(|band| bits(&a, band) == bits(&b, band)));
    }
}
