//! Losses of runs, read from their metrics, and how far two runs' are apart.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A number of steps, by step.
pub type Curve = Vec<(u64, f64)>;

/// The numbers called `key` of the lines of steps in a run's metrics; none where it has not begun to write. A step that was done again after
/// a resume counts as it was done last.
///
/// # Errors
/// A file that can't be read.
pub fn of(run: &Path, key: &str) -> Result<Curve> {
    let path = run.join("metrics.jsonl");
    if !path.exists() {
        return Ok(Curve::new());
    }
    Ok(read(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?, key))
}

fn read(metrics: &str, key: &str) -> Curve {
    // The last line may be in the middle of being written.
    let lines = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let steps = lines.filter(|line| line["event"] == "step");
    let all = steps.filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?)));
    all.collect::<std::collections::BTreeMap<_, _>>().into_iter().collect()
}

/// The largest difference of two curves at the same of these steps, as a share of the first, and how many of them both have.
///
/// # Errors
/// When they have no step in common.
pub fn apart(a: &[(u64, f64)], b: &[(u64, f64)], steps: RangeInclusive<u64>) -> Result<(f64, usize)> {
    let b: std::collections::BTreeMap<u64, f64> = b.iter().copied().collect();
    let common = a.iter().filter(|(step, _)| steps.contains(step)).filter_map(|(step, x)| Some((x, b.get(step)?)));
    let differences: Vec<f64> = common.map(|(x, y)| ((x - y) / x).abs()).collect();
    if differences.is_empty() {
        bail!("the two runs have no step in common");
    }
    // A loss that is not finite is as far as can be.
    let far = |d: &f64| if d.is_finite() { *d } else { f64::INFINITY };
    Ok((differences.iter().map(far).fold(0.0, f64::max), differences.len()))
}

/// The difference of two curves' means over those of these steps that both have, as a share of the first's, and how many there are: for runs
/// whose rounding differs, which go ways of their own after some steps.
///
/// # Errors
/// When they have no step in common.
pub fn means_apart(a: &[(u64, f64)], b: &[(u64, f64)], steps: RangeInclusive<u64>) -> Result<(f64, usize)> {
    let b: std::collections::BTreeMap<u64, f64> = b.iter().copied().collect();
    let common = a.iter().filter(|(step, _)| steps.contains(step)).filter_map(|(step, x)| Some((*x, *b.get(step)?)));
    let (sums, count) = common.fold(([0.0, 0.0], 0), |([p, q], n), (x, y)| ([p + x, q + y], n + 1));
    if count == 0 {
        bail!("the two runs have no step in common");
    }
    let share = ((sums[0] - sums[1]) / sums[0]).abs();
    Ok((if share.is_finite() { share } else { f64::INFINITY }, count))
}

/// The mean of a curve.
pub fn mean(curve: &[(u64, f64)]) -> Option<f64> {
    (!curve.is_empty()).then(|| curve.iter().map(|(_, v)| v).sum::<f64>() / curve.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_the_last_of_each_counts() -> Result<()> {
        let text = "{\"event\":\"baselines\"}\n{\"event\":\"step\",\"step\":1,\"loss\":2.0}\n{\"event\":\"step\",\"step\":2,\"loss\":1.0}\n\
                    {\"event\":\"step\",\"step\":2,\"loss\":1.5}\n{\"event\":\"step\",\"st";
        let curve = read(text, "loss");
        assert_eq!(curve, [(1, 2.0), (2, 1.5)]);
        assert_eq!(mean(&curve), Some(1.75));
        assert_eq!(mean(&[]), None);
        assert_eq!(apart(&curve, &[(2, 1.2), (1, 2.0), (3, 9.0)], 1..=20)?, ((1.5 - 1.2) / 1.5, 2));
        assert_eq!(apart(&curve, &[(1, 2.0), (2, 9.0)], 1..=1)?, (0.0, 1));
        assert_eq!(apart(&curve, &[(1, f64::NAN)], 1..=1)?.0, f64::INFINITY);
        assert!(apart(&curve, &[(7, 1.0)], 1..=20).is_err());
        assert_eq!(apart(&curve, &[(1, 9.0), (2, 1.5)], 2..=20)?, (0.0, 1), "steps before the first do not count");
        assert_eq!(means_apart(&curve, &[(1, 1.5), (2, 2.0), (3, 9.0)], 1..=20)?, (0.0, 2));
        assert_eq!(means_apart(&curve, &[(1, 1.0), (2, 1.5)], 1..=1)?, (0.5, 1));
        assert_eq!(means_apart(&curve, &[(1, f64::NAN)], 1..=1)?.0, f64::INFINITY);
        assert!(means_apart(&curve, &[(7, 1.0)], 1..=20).is_err());
        Ok(())
    }
}
