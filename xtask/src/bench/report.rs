//! Measurements of our program and of a peer's variants, their medians and ratios.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::section::{Machine, Section};

/// The section of the benchmark file that the rows make.
pub const SECTION: Section = Section { heading: "One training step", name: "peers", command: "cargo xtask bench peers" };

/// What one run of either program printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Name and version of the program, as it calls itself; ours says none.
    pub peer: Option<String>,
    /// Images a second, each counted once.
    pub images_per_s: f64,
    /// Peak memory in MB, where the program knows it.
    pub peak_rss_mb: Option<f64>,
}

/// Medians of the runs of ours and of the peer's variants on one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    case: String,
    peer: String,
    ours: Medians,
    theirs: Vec<(String, Medians)>,
    /// Ours in images a second over the best variant's of the same round: the median of the rounds, the lowest, the highest.
    ratio: [f64; 3],
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Medians {
    images_per_s: f64,
    peak_rss_mb: Option<f64>,
}

impl Measurement {
    /// Reads the last line of `output` that is a JSON object.
    ///
    /// # Errors
    /// When there is none, or it lacks `images_per_s`.
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
            peak_rss_mb: line["peak_rss_mb"].as_f64(),
        })
    }
}

impl Comparison {
    /// Compares runs made in turn: `ours[i]` and every variant's run `i` are a round.
    ///
    /// # Errors
    /// When there are no rounds, no variants, or some have fewer runs.
    pub fn new(case: String, ours: &[Measurement], theirs: &[(&str, Vec<Measurement>)]) -> Result<Self> {
        if ours.is_empty() || theirs.is_empty() || theirs.iter().any(|(_, runs)| runs.len() != ours.len()) {
            bail!("{} runs of ours and {:?} of the peer make no rounds", ours.len(), theirs.iter().map(|t| t.1.len()));
        }
        let best = |round: usize| theirs.iter().map(|(_, runs)| runs[round].images_per_s).fold(0.0, f64::max);
        let mut ratios: Vec<f64> = ours.iter().enumerate().map(|(round, own)| own.images_per_s / best(round)).collect();
        let ratio = [median(&mut ratios), ratios[0], ratios[ratios.len() - 1]];
        let peer = theirs[0].1[0].peer.clone().unwrap_or_else(|| "peer".into());
        let theirs = theirs.iter().map(|(name, runs)| (name.to_string(), medians(runs))).collect();
        Ok(Self { case, peer, ours: medians(ours), theirs, ratio })
    }

    /// Ours over the best variant's of the same round: the median of the rounds, the lowest, the highest.
    pub fn ratio(&self) -> [f64; 3] {
        self.ratio
    }

    /// The table's row.
    pub fn row(&self, version: &str) -> String {
        let [mid, low, high] = self.ratio;
        let theirs: Vec<String> = self.theirs.iter().map(|(name, m)| format!("{name} {:.1}", m.images_per_s)).collect();
        let memory = |m: Option<f64>| m.map_or("–".into(), |m| format!("{m:.0}"));
        let lowest = self.theirs.iter().filter_map(|(_, m)| m.peak_rss_mb).reduce(f64::min);
        format!(
            "| {} | {:.1} | {} | {mid:.2} ({low:.2} to {high:.2}) | {} / {} | {}, {} |\n",
            self.case,
            self.ours.images_per_s,
            theirs.join(", "),
            memory(self.ours.peak_rss_mb),
            memory(lowest),
            version,
            self.peer,
        )
    }
}

/// What stands above the rows: how they were measured, and the table's head.
pub fn head(machine: &Machine, rounds: u32, steps: u32, threads: u32) -> String {
    format!(
        "{machine}, {threads} threads. Ours and the peer's variants in turn, {rounds} rounds after one that warms up, \
         {steps} timed steps a run; medians. The ratio is to the best variant of the same round: median (lowest to highest). \
         Memory is ours and the lowest of the variants'.\n\n\
         | training step | twinsight, images/s | peer, images/s | ratio | peak memory, MB | versions |\n\
         | --- | ---: | --- | ---: | ---: | --- |\n"
    )
}

fn medians(runs: &[Measurement]) -> Medians {
    let mut memory: Vec<f64> = runs.iter().filter_map(|m| m.peak_rss_mb).collect();
    Medians {
        images_per_s: median(&mut runs.iter().map(|m| m.images_per_s).collect::<Vec<_>>()),
        peak_rss_mb: (!memory.is_empty()).then(|| median(&mut memory)),
    }
}

/// The middle value, or the mean of the two middle ones; sorts. There must be one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(images_per_s: f64, peak: Option<f64>) -> Measurement {
        Measurement { peer: Some("torch 2.9".into()), images_per_s, peak_rss_mb: peak }
    }

    #[test]
    fn the_last_json_line_counts() -> Result<()> {
        let output = "words\n{\"images_per_s\": 1}\n{\"peer\":\"torch 2\",\"images_per_s\":80.5,\"peak_rss_mb\":900}\nbye\n";
        let read = Measurement::parse(output)?;
        assert_eq!((read.peer.as_deref(), read.images_per_s, read.peak_rss_mb), (Some("torch 2"), 80.5, Some(900.0)));
        assert!(Measurement::parse("nothing").is_err());
        let error = Measurement::parse("{\"images_per_s\":0}").expect_err("zero").to_string();
        assert!(error.starts_with("images_per_s is 0"), "{error}");
        Ok(())
    }

    #[test]
    fn the_ratio_is_to_the_best_variant_of_the_round() -> Result<()> {
        let ours = [run(100.0, Some(5.0)), run(150.0, None), run(120.0, Some(7.0))];
        let eager = vec![run(50.0, Some(9.0)), run(75.0, None), run(40.0, None)];
        let compiled = vec![run(40.0, Some(8.0)), run(100.0, None), run(30.0, None)];
        let c = Comparison::new("case".into(), &ours, &[("eager", eager.clone()), ("compiled", compiled)])?;
        assert_eq!(c.ratio, [2.0, 1.5, 3.0]);
        let row = c.row("0.1.0");
        for part in ["| case | 120.0 | eager 50.0, compiled 40.0 | 2.00 (1.50 to 3.00) | 6 / 8 |", "0.1.0, torch 2.9"] {
            assert!(row.contains(part), "{part}: {row}");
        }
        assert!(Comparison::new("case".into(), &ours[..2], &[("eager", eager)]).is_err());
        assert!(Comparison::new("case".into(), &ours, &[]).is_err());
        Ok(())
    }
}
