//! Images that lie encoded somewhere, as files or in parts of larger ones, and are decoded when asked for. Sources find the places and
//! labels; what is common to all of them is here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::decode::{HEADS, Header, MAX_BYTES, bands, decode_as, decode_bytes, header, header_of};
use crate::formats::webdataset::windowed;
use crate::labels::Labels;
use crate::levels::{LevelRange, words_of};
use crate::open::BadFile;
use crate::part::{Choose, Part, Wanted};
use crate::place::Place;
use crate::{Bands, Dataset, Error, Result, Sample};

/// From this many encoded bytes on, archives are read from front to back.
const LARGE: u64 = 2 << 30;
/// How many samples a window of such a reading holds.
const BUFFER: usize = 8192;

/// Encoded images, decoded when asked for: pictures in 8 bits and 1 or 3 channels, or [`Bands`] of as many channels each.
pub struct EncodedImages {
    pub(crate) name: String,
    /// What they were found in, for messages.
    pub(crate) root: PathBuf,
    pub(crate) items: Vec<Item>,
    pub(crate) headers: Vec<Header>,
    pub(crate) labels: Option<Labels>,
    pub(crate) channels: usize,
    /// Whether they lie one behind the other in archives, which are then read from front to back when they are large.
    pub(crate) in_windows: bool,
    /// How levels of 16 bits are mapped when they are decoded.
    pub(crate) levels: Option<LevelRange>,
}

/// One image that was found.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// What it is called: its path below the data set, or the like.
    pub(crate) id: String,
    /// Where its bytes lie.
    pub(crate) place: Place,
}

/// What a scan found.
pub struct Scan {
    /// The images.
    pub images: EncodedImages,
    /// Files that should be images and are none.
    pub bad: Vec<BadFile>,
    /// How labels were understood.
    pub understood: String,
}

impl EncodedImages {
    /// Reads the headers of all `items`, in parallel, and leaves out those that are no images: (the rest, which they were, the bad).
    ///
    /// # Errors
    /// Under `strict` the first bad one; no image at all.
    pub(crate) fn probe(name: String, root: PathBuf, items: Vec<Item>, strict: bool) -> Result<(Self, Vec<usize>, Vec<BadFile>)> {
        let probed: Vec<Result<Header>> = items.par_iter().map(|item| item.header(&root)).collect();
        let (mut kept, mut place, mut headers, mut bad) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let kind = most_frequent_kind(&probed);
        for (i, (item, result)) in items.into_iter().zip(probed).enumerate() {
            let result = result.and_then(|header| of_kind(header, kind, &item.path(&root)));
            match result {
                Ok(header) => {
                    kept.push(item);
                    place.push(i);
                    headers.push(header);
                }
                Err(e) if strict => return Err(e),
                Err(e) => bad.push(BadFile::new(item.id, &e)),
            }
        }
        let channels = match kind {
            Some(bands) => bands,
            None if headers.iter().all(|h| h.gray) => 1,
            None => 3,
        };
        Ok((Self { name, root, items: kept, headers, labels: None, channels, in_windows: false, levels: None }, place, bad))
    }

    /// Leaves only the images `index`.
    #[must_use]
    pub fn keep(self, index: &[usize]) -> Self {
        let labels = self.labels.map(|l| Labels { of: index.iter().map(|&i| l.of[i]).collect(), ..l });
        let items = index.iter().map(|&i| self.items[i].clone()).collect();
        Self { items, headers: index.iter().map(|&i| self.headers[i]).collect(), labels, ..self }
    }

    /// Whether the images are bands and no pictures.
    pub(crate) fn is_bands(&self) -> bool {
        self.headers.first().is_some_and(|h| h.bands.is_some())
    }

    /// Bytes that all images take when decoded.
    pub fn decoded_bytes(&self) -> u64 {
        self.headers.iter().map(|h| h.bytes(self.channels)).sum()
    }

    /// The encoded bytes of image number `index`.
    ///
    /// # Errors
    /// An index past the end, a file that can't be read.
    pub fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        match self.items.get(index) {
            Some(item) => item.place.read(MAX_BYTES + 1),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
}

/// The number of bands that most images have; `None` for pictures.
fn most_frequent_kind(headers: &[Result<Header>]) -> Option<usize> {
    let mut counts: std::collections::BTreeMap<Option<usize>, usize> = std::collections::BTreeMap::new();
    headers.iter().flatten().for_each(|h| *counts.entry(h.bands.map(|b| b.0)).or_default() += 1);
    counts.into_iter().max_by_key(|&(kind, count)| (count, std::cmp::Reverse(kind))).and_then(|(kind, _)| kind)
}

/// A data set's images are pictures, or have all as many bands: no network takes both.
fn of_kind(header: Header, kind: Option<usize>, path: &Path) -> Result<Header> {
    let words = |kind: Option<usize>| kind.map_or_else(|| "pictures".to_string(), |n| format!("images of {n} bands"));
    let found = header.bands.map(|b| b.0);
    if found == kind {
        return Ok(header);
    }
    let reason = match found {
        Some(n) => format!("has {n} bands, while most others are {}", words(kind)),
        None => format!("is a picture, while most others are {}", words(kind)),
    };
    Err(Error::BadImage { path: path.to_path_buf(), reason })
}

impl Item {
    /// Reads as little as tells the image's size and colour.
    fn header(&self, root: &Path) -> Result<Header> {
        let name = self.path(root);
        let mut head = self.place.read(HEADS[0])?;
        let mut found = header(&head, &name);
        let format = image::guess_format(&head).ok();
        // What begins as no image does is not read any further.
        if format.is_none() && !bands::is_tiff(&head) {
            return found;
        }
        if format != Some(image::ImageFormat::Jpeg) {
            // These say where the header goes on.
            let more = found.is_err() && head.len() as u64 == HEADS[0];
            return if more { header_of(self.place.reader()?, &name) } else { found };
        }
        for pair in HEADS.windows(2) {
            if found.is_ok() || (head.len() as u64) < pair[0] {
                break;
            }
            head = self.place.read(pair[1])?;
            found = header(&head, &name);
        }
        found
    }

    /// What is told in errors about it.
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        match &self.place {
            Place::File(path) => path.clone(),
            Place::Part { .. } => root.join(&self.id),
        }
    }

    /// The image's bands.
    pub(crate) fn decode_bands(&self, root: &Path, levels: Option<LevelRange>) -> Result<Bands> {
        let bands = bands::decode(self.place.read(MAX_BYTES + 1)?, &self.path(root))?;
        Ok(match levels {
            Some(range) => range.bands(bands),
            None => bands,
        })
    }

    /// The image, in 8 bits.
    pub(crate) fn decode(&self, root: &Path, channels: usize, levels: Option<LevelRange>) -> Result<image::DynamicImage> {
        self.decode_part(root, channels, levels, &mut |_, _| Wanted::all()).map(|part| part.image)
    }

    /// What `choose` wants of the image, in 8 bits.
    fn decode_part(&self, root: &Path, channels: usize, levels: Option<LevelRange>, choose: &mut Choose<'_>) -> Result<Part> {
        decode_as(&self.place.read(MAX_BYTES + 1)?, &self.path(root), channels, levels, choose)
    }
}

/// The levels of an encoded image, alpha aside, where they have 16 bits.
pub(crate) fn stored_words(raw: &[u8], name: &Path) -> Result<Option<Vec<u16>>> {
    let shape = if bands::is_tiff(raw) { bands::shape(std::io::Cursor::new(raw)) } else { None };
    let Some(shape) = shape else { return Ok(words_of(decode_bytes(raw, name)?)) };
    let words = bands::decode(raw.to_vec(), name)?.into_words();
    // Gray and alpha, or bands.
    let step = if shape.is_picture { shape.channels } else { 1 };
    Ok(words.map(|words| words.into_iter().step_by(step).collect()))
}

impl Dataset for EncodedImages {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.items.len()
    }
    fn get(&self, index: usize) -> Result<Sample> {
        match self.items.get(index) {
            Some(item) if self.is_bands() => {
                Ok(Sample { image: item.decode_bands(&self.root, self.levels)?.preview(), label: self.label(index) })
            }
            Some(item) => Ok(Sample { image: item.decode(&self.root, self.channels, self.levels)?, label: self.label(index) }),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> Result<Part> {
        match self.items.get(index) {
            Some(_) if self.is_bands() => Ok(Part::whole(self.get(index)?.image)),
            Some(item) => item.decode_part(&self.root, self.channels, self.levels, choose),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn encoded(&self, index: usize) -> Option<Result<Vec<u8>>> {
        Some(self.bytes(index))
    }
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        self.items.get(index).filter(|_| self.is_bands()).map(|item| item.decode_bands(&self.root, self.levels))
    }
    fn words(&self, index: usize) -> Option<Result<Vec<u16>>> {
        let item = self.items.get(index)?;
        let raw = item.place.read(MAX_BYTES + 1);
        raw.and_then(|raw| stored_words(&raw, &item.path(&self.root))).transpose()
    }
    fn file(&self, index: usize) -> Option<PathBuf> {
        match &self.items.get(index)?.place {
            Place::File(path) => Some(path.clone()),
            Place::Part { .. } => None,
        }
    }
    /// Archives of more than 2 GiB, which may not stay in the system's memory: the order of a stream with a shuffle buffer of 8,192.
    fn order(&self, seed: u64, epoch: u64) -> Option<Vec<u32>> {
        let part = |item: &Item| match &item.place {
            Place::Part { file, length, .. } => Some((Arc::as_ptr(file), *length)),
            Place::File(_) => None,
        };
        let parts: Vec<_> = self.items.iter().map(part).collect::<Option<_>>()?;
        if !self.in_windows || parts.iter().map(|p| p.1).sum::<u64>() < LARGE {
            return None;
        }
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        key[16..24].copy_from_slice(b"windows\0");
        let files: Vec<_> = parts.into_iter().map(|p| p.0).collect();
        Some(windowed(&files, BUFFER, &mut ChaCha8Rng::from_seed(key)))
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.of.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|l| l.classes.as_slice())
    }
    fn id(&self, index: usize) -> String {
        self.items.get(index).map_or_else(|| format!("#{index}"), |item| item.id.clone())
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn side(&self) -> Option<(u32, u32)> {
        let first = self.headers.first()?.size;
        self.headers.iter().all(|h| h.size == first).then_some(first)
    }
}
