//! How an encoder is judged with labels: our own protocol, and those that others print, on features that are computed once.
//!
//! | protocol | what it is |
//! | --- | --- |
//! | `own` | k-NN of the last checkpoint; k and temperature chosen on held-out training images; bootstrap interval over the test images |
//! | `lightly` | k = 200, T = 0.1 (Wu et al. 2018, as lightly's benchmarks have it); where a run recorded it each epoch, the maximum too |
//! | `dino` | k = 20, T = 0.07 (Caron et al. 2021, section 4.1) |
//! | `simclr` | a linear classifier on frozen features (Chen et al. 2020, section 4), for each share of labels |
//!
//! k-NN is by cosine, that is on L2-normalised backbone features, everywhere.

use serde::Serialize;
use twinsight_encoders::Encoder;
use twinsight_knn::linear::{Logistic, best_penalty, sweep_penalty};
use twinsight_knn::{Matrix, Metric, Predictions, accuracy, bootstrap, confusion, search, spread_of_seeds, vote};

use crate::evaluate::{Chosen, Evaluation, Features, Score, encode};
use crate::{Error, Result};

/// A protocol of the registry.
#[derive(Debug, Clone, Copy)]
pub struct ProtocolSpec {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// Neighbours and temperature of published k-NN protocols.
    pub knn: Option<(usize, f64)>,
}

/// Every protocol.
pub static PROTOCOLS: &[ProtocolSpec] = &[
    ProtocolSpec { name: "own", summary: "k-NN, last checkpoint, settings chosen on held-out training images", knn: None },
    ProtocolSpec { name: "lightly", summary: "k-NN with k = 200, T = 0.1", knn: Some((200, 0.1)) },
    ProtocolSpec { name: "dino", summary: "k-NN with k = 20, T = 0.07", knn: Some((20, 0.07)) },
    ProtocolSpec { name: "simclr", summary: "linear classifier on frozen features", knn: None },
];

/// What a protocol found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The protocol.
    pub protocol: String,
    /// Top-1 accuracy, as a fraction; over several draws their mean.
    pub top1: f64,
    /// Top-5 accuracy, as a fraction.
    pub top5: f64,
    /// Ends of the 95 % interval: over test images (bootstrap), or over draws where there are several.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What the interval is over.
    pub interval: String,
    /// The share of each class's images that was recognised; `None` for a class without test images. Of the first draw.
    pub per_class: Vec<Option<f64>>,
    /// k, temperature or penalty, and how they came about.
    pub settings: String,
    /// `test` or `held-out`.
    pub measured_on: String,
}

/// Features of the labelled images that an evaluation needs.
pub struct Encoded {
    /// Training images, those held out included (they come last).
    pub train: Features,
    /// How many of the training images are not held out.
    pub kept: usize,
    /// Test images, where there are any.
    pub test: Option<Features>,
    /// Number of classes.
    pub classes: usize,
}

impl Encoded {
    /// Encodes all images of `evaluation`.
    ///
    /// # Errors
    /// A failing forward pass.
    pub fn new(evaluation: &Evaluation, encoder: &dyn Encoder, device: &candle_core::Device) -> Result<Self> {
        let of = |d: &dyn twinsight_datasets::Dataset| encode(d, encoder, &evaluation.plan, evaluation.config.batch, device);
        let mut train = of(&*evaluation.bank)?;
        let kept = train.index.len();
        train.extend(&of(&*evaluation.held_out)?);
        let test = evaluation.test.as_ref().map(|t| of(&**t)).transpose()?;
        Ok(Self { train, kept, test, classes: evaluation.classes })
    }

    /// The bank, its labels, the queries and theirs, and what the queries are: the test images against all training images, or the
    /// held-out ones against the others.
    fn judged(&self) -> (Matrix<'_>, &[u32], Matrix<'_>, &[u32], &'static str) {
        match &self.test {
            Some(test) => (self.train.matrix(), &self.train.labels, test.matrix(), &test.labels, "test"),
            None => {
                let (bank, held) = self.split();
                (bank, &self.train.labels[..self.kept], held, &self.train.labels[self.kept..], "held-out")
            }
        }
    }

    fn split(&self) -> (Matrix<'_>, Matrix<'_>) {
        let (dim, rows) = (self.train.dim, self.train.index.len());
        let (bank, held) = self.train.rows.split_at(self.kept * dim);
        (Matrix { data: bank, rows: self.kept, dim }, Matrix { data: held, rows: rows - self.kept, dim })
    }

    /// The predictions of k-NN with these settings, with the labels to judge them by.
    ///
    /// # Errors
    /// More neighbours than training images, features that are not finite.
    pub fn predict_knn(&self, k: usize, temperature: f64) -> Result<(Predictions, &[u32])> {
        let (bank, labels, queries, query_labels, _) = self.judged();
        let found = search(bank, queries, k, Metric::Cosine, false)?;
        Ok((vote(&found, labels, self.classes, temperature as f32)?, query_labels))
    }

    /// Our own k-NN protocol.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn own_knn(&self, ks: &[usize], temperatures: &[f64]) -> Result<Measured> {
        let best = self.choose(ks, temperatures)?;
        let (predicted, labels) = self.predict_knn(best.k, best.temperature)?;
        let settings =
            format!("k = {}, T = {}, chosen on held-out images ({:.2} %)", best.k, best.temperature, best.accuracy * 100.0);
        self.measured("own", &predicted, labels, settings)
    }

    /// The figures of a run by our own protocol: as [`Evaluation::score`], from features that are there already.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn score(&self, ks: &[usize], temperatures: &[f64]) -> Result<Score> {
        let chosen = self.choose(ks, temperatures)?;
        let test = match &self.test {
            Some(test) => Some(twinsight_knn::top1(&self.predict_knn(chosen.k, chosen.temperature)?.0, &test.labels)),
            None => None,
        };
        Ok(Score { chosen, test, effective_rank: Some(crate::evaluate::effective_rank(self.judged().2)?) })
    }

    /// k and temperature with which the most held-out images are recognised by the other training images.
    fn choose(&self, ks: &[usize], temperatures: &[f64]) -> Result<Chosen> {
        let (bank, held) = self.split();
        let ks: Vec<usize> = ks.iter().copied().filter(|&k| k <= self.kept).collect();
        let ks = if ks.is_empty() { vec![self.kept] } else { ks };
        let temperatures: Vec<f32> = temperatures.iter().map(|&t| t as f32).collect();
        let (labels, held_labels) = self.train.labels.split_at(self.kept);
        let best = twinsight_knn::choose(bank, labels, held, held_labels, self.classes, &ks, &temperatures, Metric::Cosine)?;
        // As it was written: 0.1, not the nearest `f32`.
        let temperature: f64 = best.temperature.to_string().parse().unwrap_or(f64::from(best.temperature));
        Ok(Chosen { k: best.k, temperature, accuracy: best.accuracy })
    }

    /// A published k-NN protocol.
    ///
    /// # Errors
    /// Fewer training images than its neighbours; features that are not finite.
    pub fn published_knn(&self, spec: &ProtocolSpec) -> Result<Measured> {
        let (k, temperature) = spec.knn.ok_or_else(|| Error::Config(format!("{}: is no k-NN protocol", spec.name)))?;
        let rows = self.judged().0.rows;
        if k > rows {
            return Err(Error::Config(format!("protocol {}: k = {k}, but there are {rows} training images", spec.name)));
        }
        let (predicted, labels) = self.predict_knn(k, temperature)?;
        self.measured(spec.name, &predicted, labels, format!("k = {k}, T = {temperature}"))
    }

    /// A linear classifier on `share` of the training labels (each class its share), drawn with each of `seeds`. The penalty is
    /// chosen on a fifth of the drawn labels; the classifier is then fitted to all of them.
    ///
    /// # Errors
    /// A share or class too small, features that are not finite.
    pub fn linear(&self, share: f64, seeds: &[u64]) -> Result<Measured> {
        let (bank, labels, queries, query_labels, _) = self.judged();
        let (mut figures, mut first, mut penalties) = (Vec::new(), None, Vec::new());
        for &seed in seeds {
            let drawn = draw_rows(labels, self.classes, share, seed);
            let (rows, drawn_labels) = take(bank, labels, &drawn);
            let table = Matrix { data: &rows, rows: drawn.len(), dim: bank.dim };
            let held = draw_rows(&drawn_labels, self.classes, 0.2, seed ^ 0x5eed);
            let rest: Vec<usize> = (0..drawn.len()).filter(|i| held.binary_search(i).is_err()).collect();
            let (fit_rows, fit_labels) = take(table, &drawn_labels, &rest);
            let (held_rows, held_labels) = take(table, &drawn_labels, &held);
            let square = rows.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / rows.len().max(1) as f64;
            let c = |strength: f64, n: usize| 1.0 / (strength * n as f64 * square.max(f64::MIN_POSITIVE));
            let mut strength = STRENGTHS[STRENGTHS.len() / 2];
            // With one label a class there is nothing to hold out.
            if drawn.len() >= 2 * self.classes && fit_labels.iter().any(|&l| l != fit_labels[0]) {
                let cs: Vec<f64> = STRENGTHS.iter().map(|&s| c(s, rest.len())).collect();
                let fit = Matrix { data: &fit_rows, rows: rest.len(), dim: bank.dim };
                let held = Matrix { data: &held_rows, rows: held.len(), dim: bank.dim };
                let tried = sweep_penalty(fit, &fit_labels, held, &held_labels, self.classes, &cs, ITERATIONS)?;
                if let Some(best) = best_penalty(&tried) {
                    strength = 1.0 / (best.c * rest.len() as f64 * square.max(f64::MIN_POSITIVE));
                }
            }
            let fitted = Logistic::fit(table, &drawn_labels, self.classes, c(strength, drawn.len()), ITERATIONS, None)?;
            let predicted = fitted.predict(queries)?;
            figures.push(twinsight_knn::top1(&predicted, query_labels));
            penalties.push(format!("{:.4e}", c(strength, drawn.len())));
            first.get_or_insert(predicted);
        }
        let predicted = first.ok_or_else(|| Error::Config("no seed to draw labels with".into()))?;
        let settings = format!("{} % of the labels, C = {} (chosen on a fifth of them)", share * 100.0, penalties.join(", "));
        let mut measured = self.measured("simclr", &predicted, query_labels, settings)?;
        if let Some(spread) = spread_of_seeds(&figures) {
            (measured.top1, measured.low, measured.high) = (spread.mean, spread.low, spread.high);
            measured.interval = format!("{} draws of labels (Student's t)", figures.len());
        }
        Ok(measured)
    }

    /// Judges predictions of the test (or held-out) images.
    ///
    /// # Errors
    /// Labels that are not those of the predictions.
    pub fn measured(&self, protocol: &str, predicted: &Predictions, labels: &[u32], settings: String) -> Result<Measured> {
        let shares = accuracy(predicted, labels)?;
        let right: Vec<bool> = labels.iter().enumerate().map(|(q, &l)| predicted.best(q) == l).collect();
        let interval = bootstrap(&right, 0);
        let table = confusion(predicted, labels)?;
        Ok(Measured {
            protocol: protocol.to_string(),
            top1: shares.top1,
            top5: shares.top5,
            low: interval.map_or(shares.top1, |i| i.low),
            high: interval.map_or(shares.top1, |i| i.high),
            interval: format!("{} images (bootstrap)", labels.len()),
            per_class: (0..self.classes).map(|c| table.recall(c)).collect(),
            settings,
            measured_on: self.judged().4.to_string(),
        })
    }
}

/// Penalties that are tried, as factors of half the squared norm of the weights beside the mean loss, for features whose mean square
/// is 1.
const STRENGTHS: [f64; 6] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
/// Iterations of a fit at most.
const ITERATIONS: u64 = 200;

/// Rows of a balanced share of the labels, in rising order: each class its share, rounded, at least one row, decided by `seed`.
fn draw_rows(labels: &[u32], classes: usize, share: f64, seed: u64) -> Vec<usize> {
    use rand::seq::SliceRandom;
    use rand_chacha::rand_core::SeedableRng;
    let mut groups = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(i, &l)| groups[l as usize].push(i));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut drawn: Vec<usize> = groups
        .into_iter()
        .flat_map(|mut group| {
            let count = ((group.len() as f64 * share).round() as usize).max(1).min(group.len());
            group.shuffle(&mut rng);
            group.truncate(count);
            group
        })
        .collect();
    drawn.sort_unstable();
    drawn
}

/// Some rows of a table with their labels.
fn take(table: Matrix, labels: &[u32], rows: &[usize]) -> (Vec<f32>, Vec<u32>) {
    (rows.iter().flat_map(|&i| table.row(i)).copied().collect(), rows.iter().map(|&i| labels[i]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten-dimensional rows of three classes that overlap somewhat.
    fn features(n: usize, from: u32) -> Features {
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
        let noise = |i: u32| {
            ((i.wrapping_mul(2_654_435_761) ^ from.wrapping_mul(97)).wrapping_mul(2_246_822_519) >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let rows = labels
            .iter()
            .enumerate()
            .flat_map(|(i, &l)| (0..10u32).map(move |d| noise(from + i as u32 * 10 + d) * 1.6 + if d == l { 1.5 } else { 0.0 }));
        Features { rows: rows.collect(), dim: 10, index: (0..n).collect(), labels, bad: Vec::new() }
    }

    fn encoded() -> Encoded {
        Encoded { train: features(600, 1), kept: 500, test: Some(features(300, 77_777)), classes: 3 }
    }

    #[test]
    fn every_protocol_is_far_above_chance_and_says_what_it_did() -> Result<()> {
        let encoded = encoded();
        let own = encoded.own_knn(&[5, 20, 9999], &[0.1])?;
        assert!(own.top1 > 0.55 && own.low < own.top1 && own.top1 < own.high, "{own:?}");
        assert_eq!((own.measured_on.as_str(), own.top5, own.per_class.len()), ("test", 1.0, 3));
        let lightly = encoded.published_knn(&PROTOCOLS[1])?;
        assert!(lightly.top1 > 0.55 && lightly.settings.contains("k = 200"), "{lightly:?}");
        let linear = encoded.linear(1.0, &[0])?;
        let few = encoded.linear(0.02, &[0, 1, 2])?;
        assert!(linear.top1 > few.top1 && few.interval.contains("3 draws"), "{linear:?} {few:?}");
        Ok(())
    }

    #[test]
    fn without_test_images_the_held_out_ones_are_judged() -> Result<()> {
        let encoded = Encoded { test: None, ..encoded() };
        let own = encoded.own_knn(&[20], &[0.1])?;
        assert_eq!((own.measured_on.as_str(), own.interval.as_str()), ("held-out", "100 images (bootstrap)"));
        let few = Encoded { train: features(100, 1), kept: 90, test: None, classes: 3 };
        let told = few.published_knn(&PROTOCOLS[1]).expect_err("too few").to_string();
        assert!(told.contains("k = 200") && told.contains("90 training images"), "{told}");
        Ok(())
    }
}
