//! Images that lie encoded somewhere, as files or in parts of larger ones, and are decoded when asked for. Sources find the places and
//! labels; what is common to all of them is here.

use std::path::PathBuf;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::decode::{HEAD, Header, MAX_BYTES, decode_as, header};
use crate::formats::webdataset::windowed;
use crate::labels::Labels;
use crate::open::BadFile;
use crate::part::{Choose, Part};
use crate::place::Place;
use crate::{Dataset, Error, Result, Sample};

/// From this many encoded bytes on, archives are read from front to back.
const LARGE: u64 = 2 << 30;
/// How many samples a window of such a reading holds.
const BUFFER: usize = 8192;

/// Encoded images, decoded when asked for in 8 bits and 1 or 3 channels.
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
        for (i, (item, result)) in items.into_iter().zip(probed).enumerate() {
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
        let channels = if headers.iter().all(|h| h.gray) { 1 } else { 3 };
        Ok((Self { name, root, items: kept, headers, labels: None, channels, in_windows: false }, place, bad))
    }

    /// Leaves only the images `index`.
    #[must_use]
    pub fn keep(self, index: &[usize]) -> Self {
        let labels = self.labels.map(|l| Labels { of: index.iter().map(|&i| l.of[i]).collect(), ..l });
        let items = index.iter().map(|&i| self.items[i].clone()).collect();
        Self { items, headers: index.iter().map(|&i| self.headers[i]).collect(), labels, ..self }
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

impl Item {
    fn header(&self, root: &std::path::Path) -> Result<Header> {
        let name = self.path(root);
        let head = self.place.read(HEAD)?;
        match header(&head, &name) {
            // The header may be longer than what was read.
            Err(_) if head.len() as u64 == HEAD => header(&self.place.read(MAX_BYTES)?, &name),
            found => found,
        }
    }

    /// What is told in errors about it.
    pub(crate) fn path(&self, root: &std::path::Path) -> PathBuf {
        match &self.place {
            Place::File(path) => path.clone(),
            Place::Part { .. } => root.join(&self.id),
        }
    }

    /// The image, in 8 bits.
    pub(crate) fn decode(&self, root: &std::path::Path, channels: usize) -> Result<image::DynamicImage> {
        self.decode_part(root, channels, &mut |_, _| Vec::new()).map(|part| part.image)
    }

    /// What `choose` wants of the image, in 8 bits.
    fn decode_part(&self, root: &std::path::Path, channels: usize, choose: &mut Choose<'_>) -> Result<Part> {
        decode_as(&self.place.read(MAX_BYTES + 1)?, &self.path(root), channels, choose)
    }
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
            Some(item) => Ok(Sample { image: item.decode(&self.root, self.channels)?, label: self.label(index) }),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> Result<Part> {
        match self.items.get(index) {
            Some(item) => item.decode_part(&self.root, self.channels, choose),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.len()))),
        }
    }
    fn encoded(&self, index: usize) -> Option<Result<Vec<u8>>> {
        Some(self.bytes(index))
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
