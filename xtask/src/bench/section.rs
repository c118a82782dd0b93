//! A section of the benchmark file: a table whose rows a command writes one by one, and the machine that they are of.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A section between two marker lines.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The heading that a new section gets.
    pub heading: &'static str,
    /// Its name in the markers.
    pub name: &'static str,
    /// The command that writes it.
    pub command: &'static str,
}

/// Where measurements were made.
#[derive(Debug, Clone)]
pub struct Machine {
    processor: String,
    cores: usize,
    rustc: String,
}

impl Section {
    /// Puts `row` into the section of the file at `path`, under `head`: see [`Section::replace`]. A missing file is made.
    ///
    /// # Errors
    /// A file that cannot be read or written, and as [`Section::replace`].
    pub fn put(&self, path: &Path, row: &str, head: &str) -> Result<()> {
        let old = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let new = self.replace(&old, row, head).with_context(|| path.display().to_string())?;
        std::fs::write(path, new).with_context(|| path.display().to_string())
    }

    /// `old` with `row` in its section, in the place of the row with the same first cell if there is one; a section is added
    /// at the end where there is none. Rows under another head (machine, threads, rounds) are dropped: they would be read as
    /// this one's.
    ///
    /// # Errors
    /// When only one of the markers is there, or they are in the wrong order.
    fn replace(&self, old: &str, row: &str, head: &str) -> Result<String> {
        let begin_line = format!("<!-- {}: begin (written by `{}`) -->", self.name, self.command);
        let end_line = format!("<!-- {}: end -->", self.name);
        let head = format!("{begin_line}\n{head}");
        let (before, rows, after) = match (old.find(&begin_line), old.find(&end_line)) {
            (Some(begin), Some(end)) if begin < end => {
                let rest = &old[end + end_line.len()..];
                (old[..begin].to_string(), &old[begin..end], rest.strip_prefix('\n').unwrap_or(rest))
            }
            (None, None) if old.trim().is_empty() => (format!("# Benchmarks\n\n## {}\n\n", self.heading), "", ""),
            (None, None) => (format!("{}\n\n## {}\n\n", old.trim_end(), self.heading), "", ""),
            _ => bail!("the lines `{begin_line}` and `{end_line}` must both be there, in this order, or neither"),
        };
        let first = |row: &str| row.split('|').nth(1).map(|cell| cell.trim().to_string());
        let rows = rows.strip_prefix(&head).unwrap_or_default();
        let mut rows: Vec<String> = rows.lines().map(|l| format!("{l}\n")).collect();
        match rows.iter_mut().find(|old| first(old) == first(row)) {
            Some(old) => *old = row.to_string(),
            None => rows.push(row.to_string()),
        }
        Ok(format!("{before}{head}{}{end_line}\n{after}", rows.concat()))
    }
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let rustc = std::process::Command::new("rustc").arg("--version").output();
        Self {
            processor: processor(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            rustc: rustc.map_or("rustc".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_string()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        write!(f, "{}, {} cores ({os}, {arch}), {}", self.processor, self.cores, self.rustc)
    }
}

fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    line.map_or("unknown processor", |(_, name)| name.trim()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: Section = Section { heading: "Speed", name: "s", command: "go" };

    fn machine(processor: &str) -> String {
        format!("{}\n\n| a | b |\n", Machine { processor: processor.into(), cores: 2, rustc: "rustc 1".into() })
    }

    #[test]
    fn rows_replace_their_own_kind_and_leave_the_rest() -> Result<()> {
        let put = |old: &str, row: &str| SECTION.replace(old, row, &machine("Some CPU"));
        let fresh = put("", "| a | 1 |\n")?;
        assert!(
            fresh.starts_with("# Benchmarks\n\n## Speed\n\n<!-- s: begin (written by `go`) -->\nSome CPU, 2 cores"),
            "{fresh}"
        );
        let two = put(&fresh, "| b | 2 |\n")?;
        assert!(two.contains("| a | 1 |\n| b | 2 |\n"), "{two}");
        let again = put(&two, "| a | 3 |\n")?;
        assert!(again.contains("| a | 3 |\n| b | 2 |\n") && !again.contains("| a | 1 |"), "{again}");
        let (begin, end) = ("<!-- s: begin (written by `go`) -->", "<!-- s: end -->");
        let around = put(&format!("before\n{begin}\nold\n{end}\nafter\n"), "| a | 1 |\n")?;
        assert!(around.starts_with("before\n<!--") && around.ends_with("-->\nafter\n") && !around.contains("old"));
        let elsewhere = SECTION.replace(&again, "| b | 9 |\n", &machine("Another CPU"))?;
        assert!(elsewhere.contains("Another CPU") && elsewhere.contains("| b | 9 |") && !elsewhere.contains("| a | 3 |"));
        assert!(put("text", "| a | 1 |\n")?.starts_with("text\n\n## Speed"));
        assert!(put(begin, "| a | 1 |\n").is_err());
        Ok(())
    }

    #[test]
    fn the_processor_is_read_from_linux() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: A B @ 2 GHz\nmodel name\t: C\n"), "A B @ 2 GHz");
        assert_eq!(processor(""), "unknown processor");
    }
}
