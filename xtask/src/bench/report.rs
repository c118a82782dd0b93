//! Measurements of two programs, their medians and ratios, and the section of the benchmark file that shows them.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The lines between which the section lies.
const BEGIN: &str = "<!-- peers: begin (written by `cargo xtask bench peers`) -->";
const END: &str = "<!-- peers: end -->";

/// What one run of either program printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Name and version of the program, as it calls itself; ours says none.
    pub peer: Option<String>,
    /// Images a second, each counted once.
    pub images_per_s: f64,
    /// Seconds a step.
    pub step_s: f64,
    /// Peak memory in MB, where the program knows it.
    pub peak_rss_mb: Option<f64>,
}

/// Medians of the runs of both programs on one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    case: String,
    peer: String,
    ours: Medians,
    theirs: Medians,
    /// Ours over theirs in images a second: the median of the pairs' ratios, with the lowest and highest.
    ratio: [f64; 3],
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Medians {
    images_per_s: f64,
    step_s: f64,
    peak_rss_mb: Option<f64>,
}

/// Where the measurements were made, and with which versions of ours.
#[derive(Debug, Clone)]
pub struct Machine {
    processor: String,
    cores: usize,
    version: String,
    rustc: String,
}

impl Measurement {
    /// Reads the last line of `output` that is a JSON object.
    ///
    /// # Errors
    /// When there is none, or it lacks `images_per_s` or `step_s`.
    pub fn parse(output: &str) -> Result<Self> {
        let line = output.lines().rev().find_map(|l| serde_json::from_str::<Value>(l).ok().filter(Value::is_object));
        let line = line.context("the program printed no JSON line")?;
        let number = |key: &str| match line[key].as_f64() {
            Some(v) if v.is_finite() && v > 0.0 => Ok(v),
            _ => bail!("{key} is {} in {line}", line[key]),
        };
        Ok(Self {
            peer: line["peer"].as_str().map(String::from),
            images_per_s: number("images_per_s")?,
            step_s: number("step_s")?,
            peak_rss_mb: line["peak_rss_mb"].as_f64(),
        })
    }
}

impl Comparison {
    /// Compares runs made in turn: `ours[i]` and `theirs[i]` are a pair.
    ///
    /// # Errors
    /// When there are no pairs.
    pub fn new(case: String, ours: &[Measurement], theirs: &[Measurement]) -> Result<Self> {
        if ours.is_empty() || ours.len() != theirs.len() {
            bail!("{} and {} runs make no pairs", ours.len(), theirs.len());
        }
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a.images_per_s / b.images_per_s).collect();
        let ratio = [median(&mut ratios), ratios[0], ratios[ratios.len() - 1]];
        let peer = theirs[0].peer.clone().unwrap_or_else(|| "peer".into());
        Ok(Self { case, peer, ours: medians(ours), theirs: medians(theirs), ratio })
    }
}

impl Machine {
    /// This machine.
    pub fn here(version: &str) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let rustc = std::process::Command::new("rustc").arg("--version").output();
        Self {
            processor: processor(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            version: version.to_string(),
            rustc: rustc.map_or("rustc".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_string()),
        }
    }
}

/// The section, markers included.
pub fn section(machine: &Machine, compared: &[Comparison], pairs: u32, steps: u32) -> String {
    let peer = compared.first().map_or("the peer", |c| &c.peer);
    let mut out = format!(
        "{BEGIN}\n{}, {} cores ({}, {}); twinsight {}, {}; {peer}. Both programs in turn, {pairs} pairs of runs after one that \
         warms up, {steps} timed steps a run; medians, and the range of the pairs' ratios.\n\n\
         | training step | twinsight, images/s | {peer}, images/s | ratio | peak memory, MB | seconds a step |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
        machine.processor,
        machine.cores,
        std::env::consts::OS,
        std::env::consts::ARCH,
        machine.version,
        machine.rustc,
    );
    for c in compared {
        let [mid, low, high] = c.ratio;
        let memory = |m: Option<f64>| m.map_or("–".into(), |m| format!("{m:.0}"));
        let _ = writeln!(
            out,
            "| {} | {:.1} | {:.1} | {mid:.2} ({low:.2} to {high:.2}) | {} / {} | {:.3} / {:.3} |",
            c.case,
            c.ours.images_per_s,
            c.theirs.images_per_s,
            memory(c.ours.peak_rss_mb),
            memory(c.theirs.peak_rss_mb),
            c.ours.step_s,
            c.theirs.step_s,
        );
    }
    out + END + "\n"
}

/// `old` with its section replaced, or with the section at its end where it has none.
///
/// # Errors
/// When only one of the markers is there, or they are in the wrong order.
pub fn replace(old: &str, section: &str) -> Result<String> {
    match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let rest = old[end + END.len()..].strip_prefix('\n').unwrap_or(&old[end + END.len()..]);
            Ok(format!("{}{section}{rest}", &old[..begin]))
        }
        (None, None) if old.trim().is_empty() => Ok(format!("# Benchmarks\n\n## One training step\n\n{section}")),
        (None, None) => Ok(format!("{}\n\n## One training step\n\n{section}", old.trim_end())),
        _ => bail!("the lines `{BEGIN}` and `{END}` must both be there, in this order, or neither"),
    }
}

fn medians(runs: &[Measurement]) -> Medians {
    let of = |value: fn(&Measurement) -> f64| median(&mut runs.iter().map(value).collect::<Vec<_>>());
    let mut memory: Vec<f64> = runs.iter().filter_map(|m| m.peak_rss_mb).collect();
    Medians {
        images_per_s: of(|m| m.images_per_s),
        step_s: of(|m| m.step_s),
        peak_rss_mb: (!memory.is_empty()).then(|| median(&mut memory)),
    }
}

/// The middle value, or the mean of the two middle ones; sorts. There must be one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    line.map_or("unknown processor", |(_, name)| name.trim()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(images_per_s: f64, peak: Option<f64>) -> Measurement {
        Measurement { peer: Some("torch 2.9".into()), images_per_s, step_s: 128.0 / images_per_s, peak_rss_mb: peak }
    }

    #[test]
    fn the_last_json_line_counts() -> Result<()> {
        let output = "words\n{\"images_per_s\": 1, \"step_s\": 1}\n{\"peer\":\"torch 2\",\"images_per_s\":80.5,\"step_s\":1.5,\"peak_rss_mb\":900}\nbye\n";
        let read = Measurement::parse(output)?;
        assert_eq!((read.peer.as_deref(), read.images_per_s, read.peak_rss_mb), (Some("torch 2"), 80.5, Some(900.0)));
        assert!(Measurement::parse("nothing").is_err());
        let error = Measurement::parse("{\"images_per_s\":0,\"step_s\":1}").expect_err("zero").to_string();
        assert!(error.starts_with("images_per_s is 0"), "{error}");
        Ok(())
    }

    #[test]
    fn medians_and_ratios_are_of_pairs() -> Result<()> {
        let ours = [run(100.0, Some(5.0)), run(150.0, None), run(120.0, Some(7.0))];
        let theirs = [run(50.0, None), run(100.0, None), run(40.0, None)];
        let c = Comparison::new("case".into(), &ours, &theirs)?;
        assert_eq!(c.ratio, [2.0, 1.5, 3.0]);
        assert_eq!((c.ours.images_per_s, c.theirs.images_per_s), (120.0, 50.0));
        assert_eq!((c.ours.peak_rss_mb, c.theirs.peak_rss_mb), (Some(6.0), None));
        assert!(Comparison::new("case".into(), &ours, &theirs[..2]).is_err());
        Ok(())
    }

    #[test]
    fn the_section_names_machine_and_versions_and_replaces_itself() -> Result<()> {
        let machine = Machine { processor: "Some CPU".into(), cores: 2, version: "0.1.0".into(), rustc: "rustc 1".into() };
        let c = Comparison::new("simclr, resnet18".into(), &[run(100.0, Some(5.0))], &[run(50.0, None)])?;
        let text = section(&machine, &[c], 3, 5);
        for word in ["Some CPU, 2 cores", "rustc 1", "torch 2.9", "| simclr, resnet18 | 100.0 | 50.0 | 2.00", "5 / –"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let fresh = replace("", &text)?;
        assert!(fresh.starts_with("# Benchmarks"));
        assert_eq!(replace(&fresh, &text)?, fresh);
        let around = replace(&format!("before\n{BEGIN}\nold\n{END}\nafter\n"), &text)?;
        assert!(around.starts_with("before\n<!--") && around.ends_with("-->\nafter\n") && !around.contains("old"));
        assert!(replace("text", &text)?.starts_with("text\n\n## One training step"));
        assert!(replace(BEGIN, &text).is_err());
        Ok(())
    }

    #[test]
    fn the_processor_is_read_from_linux() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: A B @ 2 GHz\nmodel name\t: C\n"), "A B @ 2 GHz");
        assert_eq!(processor(""), "unknown processor");
    }
}
