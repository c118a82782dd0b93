//! Where words go: to standard output for people; with `--json` to standard error, so that standard output holds one
//! machine-readable line, the last thing printed.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::OnceLock;

use serde::Serialize;

/// Prints words and the final line. What can't be written stops no training; [`Output::close`] tells of it at the end.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

/// The first failure to write.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

impl Output {
    /// `json`: whether `--json` was given.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people.
    pub fn say(&self, text: impl AsRef<str>) {
        if self.json { Self::warn(text) } else { keep(writeln!(io::stdout().lock(), "{}", text.as_ref())) }
    }

    /// A line on standard error.
    pub fn warn(text: impl AsRef<str>) {
        // There is no other place to tell that standard error is gone.
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// Names images that were left out, one a line, and says how many they are.
    pub fn skipped(images: impl IntoIterator<Item = impl Display>) -> usize {
        images.into_iter().map(|image| Self::warn(format!("skipped {image}"))).count()
    }

    /// The machine-readable line; nothing without `--json`.
    ///
    /// # Errors
    /// A value that JSON can't hold.
    pub fn finish(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            keep(writeln!(io::stdout().lock(), "{}", serde_json::to_string(value)?));
        }
        Ok(())
    }

    /// What can be said once everything is printed.
    ///
    /// # Errors
    /// Standard output could not be written. A reader that had enough (`| head`) is none.
    pub fn close() -> anyhow::Result<()> {
        keep(io::stdout().flush());
        match FAILURE.get() {
            Some(e) if e.kind() != io::ErrorKind::BrokenPipe => anyhow::bail!("standard output can't be written: {e}"),
            _ => Ok(()),
        }
    }
}

fn keep(written: io::Result<()>) {
    if let Err(e) = written {
        // Only the first is told.
        let _ = FAILURE.set(e);
    }
}
