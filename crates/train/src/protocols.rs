//! How an encoder is judged with labels: our own protocol, and those that others print, on features that are computed once.
//!
//! | protocol | what it is |
//! | --- | --- |
//! | `own` | k-NN of the last checkpoint; k and temperature chosen on training images; bootstrap interval over the judged images |
//! | `lightly` | k = 200, T = 0.1 (Wu et al. 2018, as lightly's benchmarks have it); where a run recorded it each epoch, the maximum too |
//! | `dino` | k = 20, T = 0.07 (Caron et al. 2021, section 4.1) |
//! | `simclr` | a linear classifier on frozen features (Chen et al. 2020, section 4), for each share of labels |
//!
//! k-NN is by cosine, that is on L2-normalised backbone features, unless another metric is asked for. Judged are the test images
//! against all training images, with settings chosen on the held-out ones; where there are no test images, the held-out ones against the
//! others, with settings chosen by leaving each of these others out, so that no judged image has a say in its own figure.

use serde::Serialize;
use twinsight_datasets::Dataset;
use twinsight_encoders::Encoder;
use twinsight_knn::{
    Matrix, Metric, Predictions, Setting, Standard, bootstrap, choose, choose_left_out, confusion, search, spread_of_seeds,
    sweep_left_out, vote,
};

use crate::evaluate::{Chosen, Evaluation, Features, effective_rank, encode, pixels, plain};
use crate::linear::{draw_rows, fit_chosen, take, widened};
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
    ProtocolSpec { name: "own", summary: "k-NN, last checkpoint, settings chosen on training images", knn: None },
    ProtocolSpec { name: "lightly", summary: "k-NN with k = 200, T = 0.1", knn: Some((200, 0.1)) },
    ProtocolSpec { name: "dino", summary: "k-NN with k = 20, T = 0.07", knn: Some((20, 0.07)) },
    ProtocolSpec { name: "simclr", summary: "linear classifier on frozen features", knn: None },
];

/// What a protocol found. Accuracies are fractions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The protocol.
    pub protocol: String,
    /// Top-1 accuracy; over several draws their mean.
    pub top1: f64,
    /// Top-5 accuracy; over several draws their mean.
    pub top5: f64,
    /// Ends of the 95 % interval: over judged images (bootstrap), or over draws where there are several.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What the interval is over.
    pub interval: String,
    /// The share of each class's images that was recognised; `None` for a class without judged images. Of the first draw.
    pub per_class: Vec<Option<f64>>,
    /// Labels by row, what they were taken for by column, where there are [`TABLE_CLASSES`] classes at most. Of the first draw.
    pub confusion: Option<Vec<Vec<u64>>>,
    /// k, temperature or penalty, and how they came about.
    pub settings: String,
    /// `test` or `held-out`.
    pub measured_on: String,
}

/// Most training images that settings are chosen on by leaving each out.
pub const LEFT_OUT_ROWS: usize = 20_000;
/// Most classes whose table of confusions is kept.
pub const TABLE_CLASSES: usize = 200;

/// Features of the labelled images that an evaluation needs.
pub struct Encoded {
    /// Training images, those held out included (they come last).
    pub train: Features,
    /// How many of the training images are not held out.
    pub kept: usize,
    /// Test images, where there are any.
    pub test: Option<Features>,
    /// Number of classes of training images.
    pub known: usize,
    /// Number of all classes: test images may be of further ones, and then count as mistaken.
    pub classes: usize,
    /// Whether settings are chosen by leaving training images out, since the held-out ones are what is judged in the end.
    pub left_out: bool,
    /// What nearness means.
    pub metric: Metric,
    /// Images that could not be read, with the reason; test images are marked as such.
    pub bad: Vec<(String, String)>,
}

/// The two sides of a figure.
struct Judged<'a> {
    bank: Matrix<'a>,
    labels: &'a [u32],
    queries: Matrix<'a>,
    query_labels: &'a [u32],
    on: &'static str,
}

impl Encoded {
    /// Encodes all images of `evaluation`.
    ///
    /// # Errors
    /// A failing forward pass, vectors that are not finite, images without a label.
    pub fn new(evaluation: &Evaluation, encoder: &dyn Encoder, device: &candle_core::Device) -> Result<Self> {
        Self::of(evaluation, true, |d| encode(d, encoder, &evaluation.plan, evaluation.config.batch, device))
    }

    /// The same without the test images: what may be looked at while training.
    ///
    /// # Errors
    /// As [`Encoded::new`].
    pub fn without_test(evaluation: &Evaluation, encoder: &dyn Encoder, device: &candle_core::Device) -> Result<Self> {
        Self::of(evaluation, false, |d| encode(d, encoder, &evaluation.plan, evaluation.config.batch, device))
    }

    /// The pixels of all images: the baseline without any encoder.
    ///
    /// # Errors
    /// Images none of which can be read, images without a label.
    pub fn pixels(evaluation: &Evaluation) -> Result<Self> {
        Self::of(evaluation, true, |d| pixels(d, &evaluation.plan))
    }

    fn of(evaluation: &Evaluation, with_test: bool, features: impl Fn(&dyn Dataset) -> Result<Features>) -> Result<Self> {
        let labelled = |d: &dyn Dataset| -> Result<Features> {
            let found = features(d)?;
            match found.labels.len() == found.index.len() {
                true => Ok(found),
                false => Err(Error::Config(format!("{}: accuracy needs a label for each of its images", d.name()))),
            }
        };
        let mut train = labelled(&*evaluation.bank)?;
        let kept = train.index.len();
        train.extend(&labelled(&*evaluation.held_out)?);
        let wanted = evaluation.test.as_ref().filter(|_| with_test);
        let test = wanted.map(|t| labelled(&**t)).transpose()?;
        let known = evaluation.classes;
        let classes = wanted.and_then(|t| t.classes()).map_or(known, |c| c.len().max(known));
        let marked = test.iter().flat_map(|t| &t.bad).map(|(id, reason)| (format!("{id} (test)"), reason.clone()));
        let bad = train.bad.iter().cloned().chain(marked).collect();
        let left_out = evaluation.test.is_none();
        Ok(Self { train, kept, test, known, classes, left_out, metric: Metric::Cosine, bad })
    }

    /// The test images against all training images, or the held-out ones against the others.
    fn judged(&self) -> Judged<'_> {
        match &self.test {
            Some(test) => Judged {
                bank: self.train.matrix(),
                labels: &self.train.labels,
                queries: test.matrix(),
                query_labels: &test.labels,
                on: "test",
            },
            None => {
                let (bank, queries) = self.split();
                let (labels, query_labels) = self.train.labels.split_at(self.kept);
                Judged { bank, labels, queries, query_labels, on: "held-out" }
            }
        }
    }

    fn split(&self) -> (Matrix<'_>, Matrix<'_>) {
        let (dim, rows) = (self.train.dim, self.train.index.len());
        let (bank, held) = self.train.rows.split_at(self.kept * dim);
        (Matrix { data: bank, rows: self.kept, dim }, Matrix { data: held, rows: rows - self.kept, dim })
    }

    /// The held-out images by themselves.
    pub fn held_out(&self) -> Features {
        let (from, train) = (self.kept, &self.train);
        Features {
            rows: train.rows[from * train.dim..].to_vec(),
            dim: train.dim,
            index: train.index[from..].to_vec(),
            labels: train.labels[from..].to_vec(),
            bad: Vec::new(),
        }
    }

    /// `test` or `held-out`: which images the figures are of.
    pub fn measured_on(&self) -> &'static str {
        self.judged().on
    }

    /// Effective rank (RankMe) of the judged images' features.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn effective_rank(&self) -> Result<f64> {
        effective_rank(self.judged().queries)
    }

    /// The most neighbours that can be had where settings are chosen.
    pub fn most_neighbours(&self) -> usize {
        if self.left_out { self.kept.min(LEFT_OUT_ROWS).saturating_sub(1) } else { self.kept }
    }

    /// The predictions of k-NN with these settings, with the labels to judge them by.
    ///
    /// # Errors
    /// More neighbours than training images, features that are not finite.
    pub fn predict_knn(&self, k: usize, temperature: f64) -> Result<(Predictions, &[u32])> {
        let of = self.judged();
        let found = search(of.bank, of.queries, k, self.metric, false)?;
        Ok((vote(&found, of.labels, self.classes, temperature as f32)?, of.query_labels))
    }

    /// Our own k-NN protocol: settings chosen out of `ks` and `temperatures`, and what they reach on the judged images. Numbers of
    /// neighbours beyond [`Encoded::most_neighbours`] are left out; where all are, as many as there are vote.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn own_knn(&self, ks: &[usize], temperatures: &[f64]) -> Result<(Chosen, Measured)> {
        let chosen = self.choose(ks, temperatures)?;
        let (predicted, labels) = self.predict_knn(chosen.k, chosen.temperature)?;
        let how = match (ks.len() * temperatures.len(), chosen.left_out) {
            (1, _) => "given, nothing was chosen".to_string(),
            (_, false) => format!("chosen on held-out images ({:.2} %)", chosen.accuracy * 100.0),
            (_, true) => format!("chosen by leaving each training image out ({:.2} %)", chosen.accuracy * 100.0),
        };
        let settings = format!("k = {}, T = {}, {how}", chosen.k, chosen.temperature);
        Ok((chosen, self.measured("own", &predicted, labels, settings)?))
    }

    /// k and temperature with which the most held-out images are recognised by the other training images; where the held-out images
    /// are the judged ones, those with which the most of the others (up to [`LEFT_OUT_ROWS`] of them, spread evenly) are recognised, each
    /// left out of its own vote.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn choose(&self, ks: &[usize], temperatures: &[f64]) -> Result<Chosen> {
        let most = self.most_neighbours();
        let ks: Vec<usize> = ks.iter().copied().filter(|&k| k <= most).collect();
        let ks = if ks.is_empty() { vec![most] } else { ks };
        let temperatures: Vec<f32> = temperatures.iter().map(|&t| t as f32).collect();
        let (bank, held) = self.split();
        let (labels, held_labels) = self.train.labels.split_at(self.kept);
        let best = if self.left_out && self.kept > LEFT_OUT_ROWS {
            let rows: Vec<usize> = (0..LEFT_OUT_ROWS).map(|i| i * self.kept / LEFT_OUT_ROWS).collect();
            let (rows, labels) = take(bank, labels, &rows);
            let table = Matrix { data: &rows, rows: labels.len(), dim: bank.dim };
            choose_left_out(table, &labels, self.known, &ks, &temperatures, self.metric)?
        } else if self.left_out {
            choose_left_out(bank, labels, self.known, &ks, &temperatures, self.metric)?
        } else {
            choose(bank, labels, held, held_labels, self.known, &ks, &temperatures, self.metric)?
        };
        let (temperature, left_out) = (plain(best.temperature), self.left_out);
        Ok(Chosen { k: best.k, temperature, accuracy: best.accuracy, left_out })
    }

    /// The accuracy of all training images, each predicted by the others, for every pair of `ks` and `temperatures`.
    ///
    /// # Errors
    /// More neighbours than other images, features that are not finite.
    pub fn left_out(&self, ks: &[usize], temperatures: &[f64]) -> Result<Vec<Setting>> {
        let temperatures: Vec<f32> = temperatures.iter().map(|&t| t as f32).collect();
        Ok(sweep_left_out(self.train.matrix(), &self.train.labels, self.known, ks, &temperatures, self.metric)?)
    }

    /// A published k-NN protocol.
    ///
    /// # Errors
    /// Fewer training images than its neighbours; features that are not finite.
    pub fn published_knn(&self, spec: &ProtocolSpec) -> Result<Measured> {
        let (k, temperature) = spec.knn.ok_or_else(|| Error::Config(format!("{}: is no k-NN protocol", spec.name)))?;
        let rows = self.judged().bank.rows;
        if k > rows {
            return Err(Error::Config(format!("protocol {}: k = {k}, but there are {rows} training images", spec.name)));
        }
        let (predicted, labels) = self.predict_knn(k, temperature)?;
        self.measured(spec.name, &predicted, labels, format!("k = {k}, T = {temperature}"))
    }

    /// A linear classifier on `share` of the training labels (each class its share), drawn with each of `seeds`, on features standardised by
    /// the drawn ones. The penalty is chosen on a fifth of the drawn labels; the classifier is then fitted to all of them.
    ///
    /// # Errors
    /// A share or class too small, features that are not finite.
    pub fn linear(&self, share: f64, seeds: &[u64]) -> Result<Measured> {
        let of = self.judged();
        let (mut found, mut penalties, mut remarks): (Vec<Measured>, Vec<String>, Vec<&str>) = Default::default();
        for &seed in seeds {
            let drawn = draw_rows(of.labels, self.known, share, seed);
            let (rows, labels) = take(of.bank, of.labels, &drawn);
            let table = |data| Matrix { data, rows: drawn.len(), dim: of.bank.dim };
            let standard = Standard::of(table(&rows))?;
            let (rows, queries) = (standard.apply(table(&rows)), standard.apply(of.queries));
            let chosen = fit_chosen(table(&rows), &labels, self.known, seed)?;
            let predicted = chosen.fitted.predict(Matrix { data: &queries, ..of.queries })?;
            let predicted = widened(predicted, self.classes);
            penalties.push(format!("{:.4e}", chosen.c));
            remarks.extend(chosen.remarks);
            found.push(self.measured("simclr", &predicted, of.query_labels, String::new())?);
        }
        remarks.sort_unstable();
        remarks.dedup();
        let told: String = remarks.iter().map(|r| format!("; {r}")).collect();
        let settings =
            format!("{} % of the labels, C = {} (chosen on a fifth of them){told}", share * 100.0, penalties.join(", "));
        Ok(Measured { settings, ..over_draws(found, "draws of labels")? })
    }

    /// Judges predictions of the test (or held-out) images.
    ///
    /// # Errors
    /// Labels that are not those of the predictions.
    pub fn measured(&self, protocol: &str, predicted: &Predictions, labels: &[u32], settings: String) -> Result<Measured> {
        measure(protocol, predicted, labels, self.known, settings, self.judged().on)
    }
}

/// Judges predictions by `labels`. Labels from `known` on are of classes that no training image has: they are mistaken whatever is said.
///
/// # Errors
/// Labels that are not those of the predictions.
pub fn measure(
    protocol: &str,
    predicted: &Predictions,
    labels: &[u32],
    known: usize,
    settings: String,
    measured_on: &str,
) -> Result<Measured> {
    let table = confusion(predicted, labels)?;
    let right =
        |q: usize, n: usize| (labels[q] as usize) < known && predicted.row(q).0[..n.min(predicted.classes)].contains(&labels[q]);
    let first: Vec<bool> = (0..labels.len()).map(|q| right(q, 1)).collect();
    let share = |count: usize| count as f64 / labels.len().max(1) as f64;
    let top1 = share(first.iter().filter(|&&r| r).count());
    let interval = bootstrap(&first, 0);
    let row = |label: usize| (0..predicted.classes).map(|p| table.at(label, p)).collect();
    Ok(Measured {
        protocol: protocol.to_string(),
        top1,
        top5: share((0..labels.len()).filter(|&q| right(q, 5)).count()),
        low: interval.map_or(top1, |i| i.low),
        high: interval.map_or(top1, |i| i.high),
        interval: format!("{} images (bootstrap)", labels.len()),
        per_class: (0..predicted.classes).map(|c| table.recall(c)).collect(),
        confusion: (predicted.classes <= TABLE_CLASSES).then(|| (0..predicted.classes).map(row).collect()),
        settings,
        measured_on: measured_on.to_string(),
    })
}

/// One figure of several draws: the means, with Student's interval over them; tables stay those of the first. `what` they are.
///
/// # Errors
/// No draw.
pub fn over_draws(found: Vec<Measured>, what: &str) -> Result<Measured> {
    let mean = |of: fn(&Measured) -> f64| found.iter().map(of).sum::<f64>() / found.len() as f64;
    let figures: Vec<f64> = found.iter().map(|m| m.top1).collect();
    let (top1, top5) = (mean(|m| m.top1), mean(|m| m.top5));
    let Some(first) = found.first().cloned() else {
        return Err(Error::Config("no seed to draw labels with".into()));
    };
    Ok(match spread_of_seeds(&figures) {
        Some(spread) => Measured {
            top1,
            top5,
            low: spread.low,
            high: spread.high,
            interval: format!("{} {what} (Student's t)", figures.len()),
            ..first
        },
        None => first,
    })
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
        let (train, test) = (features(600, 1), Some(features(300, 77_777)));
        Encoded { train, kept: 500, test, known: 3, classes: 3, left_out: false, metric: Metric::Cosine, bad: Vec::new() }
    }

    #[test]
    fn every_protocol_is_far_above_chance_and_says_what_it_did() -> Result<()> {
        let encoded = encoded();
        let (chosen, own) = encoded.own_knn(&[5, 20, 9999], &[0.1])?;
        assert!(own.top1 > 0.55 && own.low < own.top1 && own.top1 < own.high, "{own:?}");
        assert_eq!((own.measured_on.as_str(), own.top5, own.per_class.len()), ("test", 1.0, 3));
        assert!(!chosen.left_out && own.settings.contains("chosen on held-out images"), "{own:?}");
        let given = encoded.own_knn(&[20], &[0.07])?;
        assert!(given.1.settings.contains("nothing was chosen") && given.0.temperature == 0.07, "{given:?}");
        let lightly = encoded.published_knn(&PROTOCOLS[1])?;
        assert!(lightly.top1 > 0.55 && lightly.settings.contains("k = 200"), "{lightly:?}");
        let linear = encoded.linear(1.0, &[0])?;
        let few = encoded.linear(0.02, &[0, 1, 2])?;
        assert!(linear.top1 > few.top1 && few.interval.contains("3 draws"), "{linear:?} {few:?}");
        let each = [0, 1, 2].map(|seed| encoded.linear(0.02, &[seed]));
        let mean = each.into_iter().map(|m| m.map(|m| m.top5)).sum::<Result<f64>>()? / 3.0;
        assert!((few.top5 - mean).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn without_test_images_the_held_out_ones_are_judged_and_choose_nothing() -> Result<()> {
        let mut encoded = Encoded { test: None, left_out: true, ..encoded() };
        let (_, own) = encoded.own_knn(&[20], &[0.1])?;
        assert_eq!((own.measured_on.as_str(), own.interval.as_str()), ("held-out", "100 images (bootstrap)"));
        let grid = (&[1, 3, 10, 50, 400][..], &[0.03, 0.1, 1.0][..]);
        let (chosen, own) = encoded.own_knn(grid.0, grid.1)?;
        assert!(chosen.left_out && own.settings.contains("leaving each training image out"), "{own:?}");
        // Other labels of the judged images change their figure and not what is chosen.
        encoded.train.labels[500..].iter_mut().for_each(|l| *l = (*l + 1) % 3);
        let (again, other) = encoded.own_knn(grid.0, grid.1)?;
        assert_eq!(again, chosen);
        assert!(other.top1 < own.top1);
        let few = Encoded { train: features(100, 1), kept: 90, ..encoded };
        assert_eq!(few.most_neighbours(), 89);
        let told = few.published_knn(&PROTOCOLS[1]).expect_err("too few").to_string();
        assert!(told.contains("k = 200") && told.contains("90 training images"), "{told}");
        Ok(())
    }

    #[test]
    fn test_images_of_unknown_classes_are_mistakes_and_the_others_keep_their_labels() -> Result<()> {
        let mut encoded = Encoded { classes: 4, ..encoded() };
        let whole = encoded.own_knn(&[20], &[0.1])?.1;
        let right = whole.top1 * 300.0;
        let lost: Vec<bool> = {
            let (predicted, labels) = encoded.predict_knn(20, 0.1)?;
            (0..30).map(|q| predicted.best(q) == labels[q]).collect()
        };
        if let Some(test) = &mut encoded.test {
            test.labels[..30].fill(3);
        }
        for measured in [encoded.own_knn(&[20], &[0.1])?.1, encoded.linear(1.0, &[0])?] {
            assert_eq!((measured.per_class.len(), measured.per_class[3]), (4, Some(0.0)));
            assert!(measured.top5 <= 0.9 + 1e-12, "{measured:?}");
        }
        let part = encoded.own_knn(&[20], &[0.1])?.1.top1 * 300.0;
        assert!((right - part - lost.iter().filter(|&&l| l).count() as f64).abs() < 1e-9);
        Ok(())
    }
}
