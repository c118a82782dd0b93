//! Packed files: decoded images of one size in one file, read from their places without decoding anything.
//!
//! The file is a safetensors file, so that other programs can map it: `train_images` (N, H, W, C) `uint8`, `train_labels` (N) `int64` where
//! there are labels, the same for `test`; its metadata hold the names of the classes. [`pack`] writes one from any data set. Images are
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

use crate::formats::stl10::upright;
use crate::open::BadFile;
use crate::place::OpenFile;
use crate::{Dataset, Error, Opened, Result, Sample, ScanReport};

/// Largest header of a packed file.
const MOST_HEADER: u64 = 64 << 20;
/// Images that are decoded at a time while packing.
const AT_ONCE: usize = 256;

/// Images of one size in a file, 8 bits, 1 or 3 channels.
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
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
}

impl PackedFile {
    /// `count` images of (width, height, channels) from byte `start` on.
    ///
    /// # Errors
    /// A file that is too short; channels other than 1 and 3.
    pub(crate) fn new(
        name: impl Into<String>,
        file: Arc<OpenFile>,
        start: u64,
        count: usize,
        (width, height, channels): (u32, u32, usize),
        columns: bool,
    ) -> Result<Self> {
        let found =
            Self { name: name.into(), file, start, count, width, height, channels, columns, labels: None, classes: Vec::new() };
        let size = u64::from(width).checked_mul(u64::from(height)).and_then(|n| n.checked_mul(channels as u64));
        let end = size.and_then(|n| n.checked_mul(count as u64)).and_then(|n| n.checked_add(start));
        let length = found.file.length()?;
        if !matches!(channels, 1 | 3) || size == Some(0) || count == 0 || end.is_none_or(|end| end > length) {
            let reason = format!("{count} images of {width} × {height} × {channels} do not lie in its {length} bytes");
            return Err(Error::bad(found.file.path(), reason));
        }
        Ok(found)
    }

    fn size(&self) -> usize {
        self.width as usize * self.height as usize * self.channels
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
        if index >= self.count {
            return Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name, self.count)));
        }
        let mut raw = vec![0; self.size()];
        let start = self.start + index as u64 * raw.len() as u64;
        self.file.read_at(&mut raw, start)?;
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
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.get(index).copied())
    }
    fn classes(&self) -> Option<&[String]> {
        self.labels.as_ref().map(|_| self.classes.as_slice())
    }
    fn id(&self, index: usize) -> String {
        format!("#{index}")
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
        let ([count, height, width, channels], Dtype::U8) = (&images.shape[..], images.dtype) else {
            let reason = format!("{name}_images is {:?} of {:?}, expected N × H × W × C of uint8", images.dtype, images.shape);
            return Err(bad(reason));
        };
        let side = |n: usize| u32::try_from(n).map_err(|_| bad(format!("{name}_images has axes {:?}", images.shape)));
        let start = 8 + length + images.data_offsets.0 as u64;
        let title = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let shape = (side(*width)?, side(*height)?, *channels);
        let mut found = PackedFile::new(title, file.clone(), start, *count, shape, false)?;
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
    let report = ScanReport { bad_files: Vec::new(), understood };
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
/// middle square of it. The file appears whole or not at all.
///
/// # Errors
/// No readable image in a part; a file that can't be written; under `strict` the first image that can't be read.
pub fn pack(parts: &[(&str, &dyn Dataset)], size: u32, out: &Path, strict: bool) -> Result<Packed> {
    if !(1..=4096).contains(&size) {
        return Err(Error::BadSetting(format!("images of {size} pixels a side can't be packed: expected 1 to 4096")));
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
        let (mut labels, mut count) = (Vec::new(), 0);
        for first in (0..dataset.len()).step_by(AT_ONCE) {
            let last = (first + AT_ONCE).min(dataset.len());
            let decoded: Vec<Result<Vec<u8>>> =
                (first..last).into_par_iter().map(|i| Ok(square(dataset.get(i)?.image, size, channels))).collect();
            for (i, image) in (first..last).zip(decoded) {
                match image {
                    Ok(pixels) => {
                        body.write_all(&pixels).map_err(io(out))?;
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
        let bytes = count * (size * size) as usize * channels;
        let shape = json!([count, size, size, channels]);
        tensors
            .insert(format!("{name}_images"), json!({"dtype": "U8", "shape": shape, "data_offsets": [offset, offset + bytes]}));
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
    file.persist(out).map_err(|e| Error::io(out)(e.error))?;
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

/// The middle square of an image at a size, as interleaved 8-bit pixels.
fn square(image: DynamicImage, size: u32, channels: usize) -> Vec<u8> {
    let image = if (image.width(), image.height()) == (size, size) {
        image
    } else {
        image.resize_to_fill(size, size, FilterType::Triangle)
    };
    if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() }
}
