//! Packed files: decoded images of one size in one file, read from their places without decoding anything.
//!
//! The file is a safetensors file, so that other programs can map it: `train_images` (N, H, W, C) `uint8` (`uint16` for bands of 16 bits),
//! `train_labels` (N) `int64` where there are labels, `train_ids` (a JSON list of the images' names, as bytes), the same for `test`; its
//! metadata hold the names of the classes. [`pack`] writes one from any data set. Images are
//! read by position rather than mapped: a copy is made either way, and a file that is cut short meanwhile is an error instead of a
//! crash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use image::imageops::FilterType;
use image::{DynamicImage, GrayImage, RgbImage};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::json;

use crate::bands::MAX_CHANNELS;
use crate::formats::stl10::upright;
use crate::open::BadFile;
use crate::place::OpenFile;
use crate::{BandLevels, Bands, Dataset, Error, Opened, Result, Sample, ScanReport};

/// Largest header of a packed file.
const MOST_HEADER: u64 = 64 << 20;
/// Images that are decoded at a time while packing.
const AT_ONCE: usize = 256;

/// Images of one size in a file: pictures (8 bits, 1 or 3 channels), or bands of 8 or 16 bits.
pub struct PackedFile {
    name: String,
    file: Arc<OpenFile>,
    start: u64,
    count: usize,
    width: u32,
    height: u32,
    channels: usize,
    /// Planes of columns instead of rows of pixels.
    columns: bool,
    /// Two bytes a level, the lower first.
    wide: bool,
    /// The images' names, where the file has them.
    ids: Vec<String>,
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
}

impl PackedFile {
    /// `count` images of (width, height, channels) from byte `start` on.
    ///
    /// # Errors
    /// A file that is too short; channels other than 1 to 16.
    pub(crate) fn new(
        name: impl Into<String>,
        file: Arc<OpenFile>,
        start: u64,
        count: usize,
        (width, height, channels): (u32, u32, usize),
        columns: bool,
    ) -> Result<Self> {
        let (ids, labels, classes) = (Vec::new(), None, Vec::new());
        let name = name.into();
        Self { name, file, start, count, width, height, channels, columns, wide: false, ids, labels, classes }.checked()
    }

    /// This, if all of it lies in the file.
    fn checked(self) -> Result<Self> {
        let Self { start, count, width, height, channels, .. } = self;
        let pixel = channels as u64 * if self.wide { 2 } else { 1 };
        let size = u64::from(width).checked_mul(u64::from(height)).and_then(|n| n.checked_mul(pixel));
        let end = size.and_then(|n| n.checked_mul(count as u64)).and_then(|n| n.checked_add(start));
        let length = self.file.length()?;
        if !(1..=MAX_CHANNELS).contains(&channels) || size == Some(0) || count == 0 || end.is_none_or(|end| end > length) {
            let reason = format!("{count} images of {width} × {height} × {channels} do not lie in its {length} bytes");
            return Err(Error::bad(self.file.path(), reason));
        }
        Ok(self)
    }

    /// Whether the images are bands and no pictures.
    fn is_bands(&self) -> bool {
        self.wide || !matches!(self.channels, 1 | 3)
    }

    /// The bytes of image number `index`.
    fn raw(&self, index: usize) -> Result<Vec<u8>> {
        if index >= self.count {
            return Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.count)));
        }
        let levels = self.width as usize * self.height as usize * self.channels;
        let mut raw = vec![0; levels * if self.wide { 2 } else { 1 }];
        let start = self.start + index as u64 * raw.len() as u64;
        self.file.read_at(&mut raw, start)?;
        Ok(raw)
    }

    fn image_of_bands(&self, index: usize) -> Result<Bands> {
        let raw = self.raw(index)?;
        let levels = match self.wide {
            true => BandLevels::Words(raw.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b)).collect()),
            false => BandLevels::Bytes(raw),
        };
        Bands::new(self.width, self.height, self.channels, levels)
    }
}

impl Dataset for PackedFile {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.count
    }
    fn get(&self, index: usize) -> Result<Sample> {
        if self.is_bands() {
            return Ok(Sample { image: self.image_of_bands(index)?.preview(), label: self.label(index) });
        }
        let mut raw = self.raw(index)?;
        if self.columns {
            let mut rows = vec![0; raw.len()];
            upright(&raw, self.width as usize, self.height as usize, self.channels, &mut rows);
            raw = rows;
        }
        let image = match self.channels {
            1 => GrayImage::from_raw(self.width, self.height, raw).map(DynamicImage::from),
            _ => RgbImage::from_raw(self.width, self.height, raw).map(DynamicImage::from),
        };
        let image = image.ok_or_else(|| Error::bad(self.file.path(), "an image of another size"))?;
        Ok(Sample { image, label: self.label(index) })
    }
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        self.is_bands().then(|| self.image_of_bands(index))
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|_| self.classes.as_slice())
    }
    fn id(&self, index: usize) -> String {
        self.ids.get(index).cloned().unwrap_or_else(|| format!("#{index}"))
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn side(&self) -> Option<(u32, u32)> {
        Some((self.width, self.height))
    }
}

/// Opens a packed file.
///
/// # Errors
/// A file that [`pack`] did not write, or that was cut short.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let bad = |reason: String| Error::bad(path, reason);
    let file = OpenFile::open(path)?;
    let mut head = [0; 8];
    file.read_at(&mut head, 0)?;
    let length = u64::from_le_bytes(head);
    if length > MOST_HEADER || length + 8 > file.length()? {
        return Err(bad("is no safetensors file: its header is longer than the file, or than 64 MiB".into()));
    }
    let mut raw = vec![0; length as usize + 8];
    file.read_at(&mut raw, 0)?;
    let about: Metadata = serde_json::from_slice(&raw[8..]).map_err(|e| bad(format!("is no safetensors file: {e}")))?;
    let tensors = about.tensors();
    let end = tensors.values().map(|t| t.data_offsets.1 as u64).max().unwrap_or(0);
    if length.checked_add(8).and_then(|n| n.checked_add(end)) != Some(file.length()?) {
        return Err(bad(format!("has {} bytes, its header speaks of {end} after itself", file.length()?)));
    }
    let classes: Option<Vec<String>> =
        about.metadata().as_ref().and_then(|m| m.get("classes")).and_then(|c| serde_json::from_str(c).ok());
    let classes = classes.unwrap_or_default();
    let split = |name: &str| -> Result<Option<PackedFile>> {
        let Some(images) = tensors.get(&format!("{name}_images")) else { return Ok(None) };
        let ([count, height, width, channels], Dtype::U8 | Dtype::U16) = (&images.shape[..], images.dtype) else {
            let found = format!("{:?} of {:?}", images.dtype, images.shape);
            return Err(bad(format!("{name}_images is {found}, expected N × H × W × C of uint8 or uint16")));
        };
        let side = |n: usize| u32::try_from(n).map_err(|_| bad(format!("{name}_images has axes {:?}", images.shape)));
        let start = 8 + length + images.data_offsets.0 as u64;
        let title = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let shape = (side(*width)?, side(*height)?, *channels);
        let found = PackedFile::new(title, file.clone(), start, *count, shape, false)?;
        let mut found = PackedFile { wide: images.dtype == Dtype::U16, ..found }.checked()?;
        if let Some(ids) = tensors.get(&format!("{name}_ids")).filter(|t| t.dtype == Dtype::U8) {
            let mut raw = vec![0; ids.data_offsets.1.saturating_sub(ids.data_offsets.0)];
            file.read_at(&mut raw, 8 + length + ids.data_offsets.0 as u64)?;
            found.ids = serde_json::from_slice(&raw).map_err(|e| bad(format!("{name}_ids is no JSON list of names: {e}")))?;
            if found.ids.len() != *count {
                return Err(bad(format!("{name}_ids holds {} names of {count} images", found.ids.len())));
            }
        }
        if let Some(labels) = tensors.get(&format!("{name}_labels")) {
            if labels.dtype != Dtype::I64 || labels.shape != [*count] {
                return Err(bad(format!("{name}_labels is {:?} of {:?}, expected {count} of int64", labels.dtype, labels.shape)));
            }
            let mut raw = vec![0; 8 * count];
            file.read_at(&mut raw, 8 + length + labels.data_offsets.0 as u64)?;
            let numbers = raw.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
            let known: Option<Vec<u32>> =
                numbers.map(|n| u32::try_from(n).ok().filter(|&n| (n as usize) < classes.len())).collect();
            found.labels =
                Some(known.ok_or_else(|| bad(format!("{name}_labels holds numbers past its {} classes", classes.len())))?);
            found.classes.clone_from(&classes);
        }
        Ok(Some(found))
    };
    let train = split("train")?.ok_or_else(|| bad("holds no tensor train_images".into()))?;
    let test = split("test")?;
    let understood = match train.labels {
        Some(_) => format!("labels come with the data set: {} classes", classes.len()),
        None => "no labels: the packed file has none".into(),
    };
    let report = ScanReport { understood, ..ScanReport::default() };
    Ok(Opened { train: Arc::new(train), test: test.map(|t| Arc::new(t) as Arc<dyn Dataset>), report })
}

/// What packing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Images that were written.
    pub images: usize,
    /// Images that can't be read and were left out.
    pub bad: Vec<BadFile>,
}

/// Writes a packed file: every image of `parts` (`train` and perhaps `test`) with its shorter side resized to `size` (antialiased) and the
/// middle square of it. The file appears whole or not at all; one that is there already is left as it is.
///
/// # Errors
/// A file that is there already or can't be written; no readable image in a part; under `strict` the first image that can't be read.
pub fn pack(parts: &[(&str, &dyn Dataset)], size: u32, out: &Path, strict: bool) -> Result<Packed> {
    if !(1..=4096).contains(&size) {
        return Err(Error::BadSetting(format!("images of {size} pixels a side can't be packed: expected 1 to 4096")));
    }
    let taken = || Error::BadSetting(format!("{}: is there already; choose another name", out.display()));
    // Known before the work begins; another process may still be faster, which is told at the end.
    if out.symlink_metadata().is_ok() {
        return Err(taken());
    }
    let io = Error::io;
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut body = BufWriter::new(tempfile::tempfile_in(folder).map_err(io(folder))?);
    let mut packed = Packed::default();
    let mut tensors = BTreeMap::new();
    let mut offset = 0;
    // A test split may have classes behind those of the training split.
    let classes = parts.iter().filter_map(|(_, d)| d.classes()).max_by_key(|c| c.len()).unwrap_or_default();
    for &(name, dataset) in parts {
        let channels = dataset.channels();
        let (mut labels, mut ids, mut count, mut depth) = (Vec::new(), Vec::new(), 0, None);
        for first in (0..dataset.len()).step_by(AT_ONCE) {
            let last = (first + AT_ONCE).min(dataset.len());
            let decoded: Vec<Result<Square>> =
                (first..last).into_par_iter().map(|i| square(dataset, i, size, channels)).collect();
            for (i, image) in (first..last).zip(decoded) {
                let image = image.and_then(|square| match *depth.get_or_insert(square.depth) == square.depth {
                    true => Ok(square.raw),
                    false => Err(Error::BadSetting("has other bits a level than the images before it".into())),
                });
                match image {
                    Ok(pixels) => {
                        body.write_all(&pixels).map_err(io(out))?;
                        ids.push(dataset.id(i));
                        labels.push(dataset.label(i));
                        count += 1;
                    }
                    Err(e) if strict => return Err(e),
                    Err(e) => packed.bad.push(BadFile::new(dataset.id(i), &e)),
                }
            }
        }
        if count == 0 {
            return Err(Error::NotFound(format!("{}: none of its images can be read", dataset.name())));
        }
        let depth = depth.unwrap_or(1);
        let bytes = count * (size * size) as usize * channels * depth;
        let shape = json!([count, size, size, channels]);
        let kind = if depth == 1 { "U8" } else { "U16" };
        tensors
            .insert(format!("{name}_images"), json!({"dtype": kind, "shape": shape, "data_offsets": [offset, offset + bytes]}));
        offset += bytes;
        let labels: Option<Vec<u32>> = labels.into_iter().collect();
        if let Some(labels) = labels.filter(|_| !classes.is_empty()) {
            for label in &labels {
                body.write_all(&i64::from(*label).to_le_bytes()).map_err(io(out))?;
            }
            let end = offset + 8 * labels.len();
            tensors.insert(
                format!("{name}_labels"),
                json!({"dtype": "I64", "shape": [labels.len()], "data_offsets": [offset, end]}),
            );
            offset = end;
        }
        // Spaces after the list, so that numbers behind it lie at whole words.
        let mut text = json!(ids).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        body.write_all(&text).map_err(io(out))?;
        let end = offset + text.len();
        tensors.insert(format!("{name}_ids"), json!({"dtype": "U8", "shape": [text.len()], "data_offsets": [offset, end]}));
        offset = end;
        packed.images += count;
    }
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "twinsight-packed", "classes": json!(classes).to_string()}));
    header.extend(tensors);
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io(folder))?;
    let mut body = body.into_inner().map_err(|e| Error::io(out)(e.into_error()))?;
    body.seek(SeekFrom::Start(0)).map_err(io(out))?;
    let mut write = || -> std::io::Result<()> {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        std::io::copy(&mut body, file.as_file_mut())?;
        file.as_file().sync_all()
    };
    write().map_err(io(out))?;
    open_permissions(file.as_file()).map_err(io(out))?;
    file.persist_noclobber(out).map_err(|e| match e.error.kind() {
        std::io::ErrorKind::AlreadyExists => taken(),
        _ => io(out)(e.error),
    })?;
    Ok(packed)
}

/// Temporary files are their owner's alone; data sets are as readable as other files.
fn open_permissions(file: &File) -> std::io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// The middle square of an image at a size, interleaved.
struct Square {
    raw: Vec<u8>,
    /// Bytes a level.
    depth: usize,
}

/// Makes the square of image number `index`: pictures in 8 bits and `channels` channels, bands each by itself in their own bits.
fn square(dataset: &dyn Dataset, index: usize, size: u32, channels: usize) -> Result<Square> {
    let fit = |image: DynamicImage| match (image.width(), image.height()) == (size, size) {
        true => image,
        false => image.resize_to_fill(size, size, FilterType::Triangle),
    };
    let Some(bands) = dataset.bands(index) else {
        let image = fit(dataset.get(index)?.image);
        let raw = if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
        return Ok(Square { raw, depth: 1 });
    };
    let bands = bands?;
    let planes: Vec<DynamicImage> = bands.planes().into_iter().map(fit).collect();
    let pixels = (size * size) as usize;
    let depth = if matches!(bands.levels(), BandLevels::Words(_)) { 2 } else { 1 };
    // Planes of 16 bits are in this machine's order of bytes, the file has the lower byte first.
    let planes: Vec<Vec<u8>> = planes
        .into_iter()
        .map(|plane| match depth {
            1 => plane.into_luma8().into_raw(),
            _ => plane.into_luma16().into_raw().into_iter().flat_map(u16::to_le_bytes).collect(),
        })
        .collect();
    let raw = (0..pixels).flat_map(|p| planes.iter().flat_map(move |plane| plane[p * depth..(p + 1) * depth].iter().copied()));
    Ok(Square { raw: raw.collect(), depth })
}
