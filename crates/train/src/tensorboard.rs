//! TensorBoard event files: scalars and images.
//!
//! A file is a sequence of records, each a little-endian length, its masked CRC-32C, the bytes of an `Event` message and
//! their masked CRC-32C (TensorFlow's `RecordWriter`). The few message fields needed are encoded by hand: `Event` has
//! wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7; `Summary.Value` has tag = 1, simple_value = 2,
//! image = 4; `Summary.Image` has height = 1, width = 2, colorspace = 3, encoded_image_string = 4.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result, RunFolder};

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventFile {
    /// Begins a new event file in the run folder after `step` steps were done. What earlier files hold of later steps is
    /// replaced by it, which is what a resumed run needs.
    ///
    /// # Errors
    /// A place that can't be written.
    pub fn create(folder: &RunFolder, step: u64) -> Result<Self> {
        let seconds = now().floor() as u64;
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.path(&format!("events.out.tfevents.{seconds:010}.twinsight.{number}"));
            match File::create_new(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(e) => return Err(Error::io(path)(e)),
            }
        };
        let mut events = Self { path, out: BufWriter::new(file) };
        events.record(|m| m.bytes(3, b"brain.Event:2"))?;
        // SessionLog { status: START }: readers drop events at or after this step from earlier files.
        events.record(|m| {
            m.varint_field(2, if step == 0 { 0 } else { step + 1 });
            m.message(7, |log| log.varint_field(1, 1));
        })?;
        Ok(events)
    }

    /// Adds scalars of one step.
    ///
    /// # Errors
    /// A full disk.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.record(|m| {
            m.varint_field(2, step);
            m.message(5, |summary| {
                for (tag, value) in values {
                    summary.message(1, |v| {
                        v.bytes(1, tag.as_bytes());
                        v.float(2, *value as f32);
                    });
                }
            });
        })
    }

    /// Adds a PNG picture.
    ///
    /// # Errors
    /// A full disk.
    pub fn image(&mut self, step: u64, tag: &str, width: u32, height: u32, png: &[u8]) -> Result<()> {
        self.record(|m| {
            m.varint_field(2, step);
            m.message(5, |summary| {
                summary.message(1, |v| {
                    v.bytes(1, tag.as_bytes());
                    v.message(4, |image| {
                        image.varint_field(1, u64::from(height));
                        image.varint_field(2, u64::from(width));
                        image.varint_field(3, 3);
                        image.bytes(4, png);
                    });
                });
            });
        })
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// A full disk.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(Error::io(&self.path))
    }

    fn record(&mut self, fill: impl FnOnce(&mut Message)) -> Result<()> {
        let mut event = Message::default();
        event.double(1, now());
        fill(&mut event);
        let length = (event.0.len() as u64).to_le_bytes();
        let mut write = |bytes: &[u8]| self.out.write_all(bytes).map_err(Error::io(&self.path));
        write(&length)?;
        write(&masked_crc(&length).to_le_bytes())?;
        write(&event.0)?;
        write(&masked_crc(&event.0).to_le_bytes())
    }
}

/// A protocol-buffers message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn varint_field(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunConfig;

    #[test]
    fn records_have_the_layout_that_readers_expect() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::create(&dir.path().join("run"), &RunConfig::resolve(&[])?)?;
        let mut events = EventFile::create(&folder, 0)?;
        events.scalars(300, &[("train/loss", 0.5)])?;
        events.flush()?;
        let raw = std::fs::read(&events.path).expect("the file just written");
        let mut at = 0;
        let mut payloads = Vec::new();
        while at < raw.len() {
            let length = u64::from_le_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
            let crc = u32::from_le_bytes(raw[at + 8..at + 12].try_into().expect("4 bytes"));
            assert_eq!(crc, masked_crc(&raw[at..at + 8]));
            payloads.push(&raw[at + 12..at + 12 + length as usize]);
            at += 16 + length as usize;
        }
        assert_eq!(payloads.len(), 3);
        // step = 300 is the varint ac 02; the value 0.5 is 3f000000 as a float of field 2.
        let text = payloads[2];
        assert!(text.windows(3).any(|w| w == [0x10, 0xac, 0x02]));
        assert!(text.windows(10).any(|w| w == b"train/loss"));
        assert!(text.windows(5).any(|w| w == [0x15, 0, 0, 0, 0x3f]));
        // CRC-32C of "123456789" is e3069283 (RFC 3720).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        Ok(())
    }
}
