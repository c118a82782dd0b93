//! Where words go: to standard output for people; with `--json` to standard error, so that standard output holds one
//! machine-readable line, the last thing printed.

use serde::Serialize;

/// Prints words and the final line.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// `json`: whether `--json` was given.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people.
    pub fn say(&self, text: impl AsRef<str>) {
        if self.json {
            eprintln!("{}", text.as_ref());
        } else {
            println!("{}", text.as_ref());
        }
    }

    /// The machine-readable line; nothing without `--json`.
    ///
    /// # Errors
    /// A value that JSON can't hold.
    pub fn finish(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(value)?);
        }
        Ok(())
    }
}
