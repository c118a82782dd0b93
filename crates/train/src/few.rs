//! Few labels: where they come from, and a k-NN classifier on them that says how sure it is.
//!
//! Labels are a CSV file that names images, a folder whose sub-folders are classes, or some images a class of a data set. The number
//! of neighbours and the temperature are chosen by leaving each labelled image out in turn, so that no other labels are needed.

mod images;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use twinsight_datasets::{Dataset, Subset};
use twinsight_knn::{Matrix, Metric, Neighbours, search, vote};

pub use images::ImageFiles;

use crate::evaluate::Features;
use crate::{Error, Result};

/// How many images each class gives to a balanced part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many of each class (all of a class that has fewer).
    PerClass(usize),
    /// This share of each class, 0 to 1, at least one image.
    Fraction(f64),
}

/// A balanced part of a labelled data set, decided by `seed`; the order of the data set is kept.
///
/// # Errors
/// No labels, a share out of range.
pub fn balanced(whole: &Arc<dyn Dataset>, share: Share, seed: u64) -> Result<Subset> {
    let classes = whole.classes().map_or(0, <[String]>::len);
    if classes == 0 {
        return Err(Error::Config(format!("{}: has no labels to take a balanced part of", whole.name())));
    }
    match share {
        Share::PerClass(0) => return Err(Error::Config("0 images a class leave nothing to learn from".into())),
        Share::Fraction(f) if !(f > 0.0 && f <= 1.0) => {
            return Err(Error::Config(format!("a share of {f} of the labels: expected above 0 and at most 1")));
        }
        _ => {}
    }
    let mut groups = vec![Vec::new(); classes];
    for i in 0..whole.len() {
        if let Some(group) = whole.label(i).and_then(|l| groups.get_mut(l as usize)) {
            group.push(i);
        }
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(b"balanced");
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut chosen = Vec::new();
    for mut group in groups {
        let count = match share {
            Share::PerClass(n) => n,
            Share::Fraction(f) => ((group.len() as f64 * f).round() as usize).max(1),
        };
        group.shuffle(&mut rng);
        chosen.extend(group.into_iter().take(count));
    }
    chosen.sort_unstable();
    Ok(Subset::new(whole.clone(), chosen)?)
}

/// A k-NN classifier on few labelled images.
pub struct FewLabels {
    bank: Features,
    classes: Vec<String>,
    /// Neighbours.
    pub k: usize,
    /// Vote temperature.
    pub temperature: f32,
    /// Accuracy of the labelled images, each left out of its own vote.
    pub left_out: f64,
}

/// What an image is taken for.
#[derive(Debug, Clone, PartialEq)]
pub struct Guess {
    /// The class, by number.
    pub class: u32,
    /// Its share of the votes, 0 to 1.
    pub confidence: f32,
    /// The nearest labelled image, by row, and its cosine similarity.
    pub nearest: (u32, f32),
}

/// Numbers of neighbours that are tried. A single neighbour is always sure of itself: its share of the votes would say nothing.
const KS: [usize; 5] = [3, 5, 10, 20, 50];
/// Temperatures that are tried.
const TEMPERATURES: [f32; 4] = [0.03, 0.07, 0.1, 0.2];

impl FewLabels {
    /// A classifier on labelled features. `k` asks for that many neighbours; otherwise number and temperature are those with which the
    /// most labelled images are recognised by the others.
    ///
    /// # Errors
    /// Fewer than two labelled images or classes, more neighbours than labelled images, features that are not finite.
    pub fn new(bank: Features, classes: Vec<String>, k: Option<usize>) -> Result<Self> {
        let rows = bank.index.len();
        if bank.labels.len() != rows {
            return Err(Error::Config(format!("{} labels for {rows} images; every image needs one", bank.labels.len())));
        }
        let first = bank.labels.first().copied();
        if rows < 2 || bank.labels.iter().all(|&l| Some(l) == first) {
            let name = first.and_then(|l| classes.get(l as usize)).map_or(String::new(), |n| format!(" ({n})"));
            return Err(Error::Config(format!(
                "{rows} labelled images of one class{name}: images of at least two classes are needed"
            )));
        }
        if let Some(k) = k.filter(|&k| k == 0 || k > rows) {
            return Err(Error::Config(format!("--k {k}: there are {rows} labelled images; expected 1 to {rows}")));
        }
        let most = rows - 1;
        let ks: Vec<usize> = match k {
            Some(k) => vec![k.min(most)],
            // All the others, where they are too few for that.
            None => KS.iter().copied().filter(|&k| k <= most).chain((most < KS[0]).then_some(most)).collect(),
        };
        let matrix = bank.matrix();
        let largest = ks.iter().copied().max().unwrap_or(1);
        let found = search(matrix, matrix, largest, Metric::Cosine, true)?;
        let mut best = (f64::NEG_INFINITY, 1, TEMPERATURES[0]);
        for &tried in &ks {
            let cut = cut(&found, tried);
            for t in TEMPERATURES {
                let right = twinsight_knn::top1(&vote(&cut, &bank.labels, classes.len(), t)?, &bank.labels);
                // Of equally good settings the larger number of neighbours and temperature: confidences are less extreme.
                if right >= best.0 {
                    best = (right, tried, t);
                }
            }
        }
        let (left_out, chosen, temperature) = best;
        Ok(Self { bank, classes, k: k.unwrap_or(chosen), temperature, left_out })
    }

    /// The names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Which labelled image row `row` is, by index in its data set.
    pub fn labelled_image(&self, row: u32) -> usize {
        self.bank.index[row as usize]
    }

    /// What each row is taken for. `own` says which row of the labelled images a query is itself, where it is one of them: that row has
    /// no vote on it.
    ///
    /// # Errors
    /// No rows, not one entry of `own` a row, rows of another encoder, features that are not finite.
    pub fn classify(&self, rows: Matrix, own: &[Option<u32>]) -> Result<Vec<Guess>> {
        if own.len() != rows.rows {
            return Err(Error::Config(format!("{} entries of `own` for {} rows", own.len(), rows.rows)));
        }
        let labelled = self.bank.index.len();
        let mut found = search(self.bank.matrix(), rows, self.k, Metric::Cosine, false)?;
        let mut guesses = self.guesses(&found)?;
        if own.iter().any(Option::is_some) {
            // One neighbour more, so that as many are left without the row itself (all others, where all vote).
            let k = self.k.min(labelled - 1);
            found = search(self.bank.matrix(), rows, k + 1, Metric::Cosine, false)?;
            let without = (0..found.rows()).map(|q| {
                let (index, score) = found.row(q);
                let place = index.iter().position(|&i| Some(i) == own[q]).unwrap_or(k);
                (0..=k).filter(move |&i| i != place).map(move |i| (index[i], score[i]))
            });
            let (index, score) = without.flatten().unzip();
            let left = self.guesses(&Neighbours { k, index, score })?;
            for (q, guess) in left.into_iter().enumerate().filter(|(q, _)| own[*q].is_some()) {
                guesses[q] = guess;
            }
        }
        Ok(guesses)
    }

    fn guesses(&self, found: &Neighbours) -> Result<Vec<Guess>> {
        let voted = vote(found, &self.bank.labels, self.classes.len(), self.temperature)?;
        Ok((0..found.rows())
            .map(|q| {
                let (index, score) = found.row(q);
                let (ranked, share) = voted.row(q);
                Guess { class: ranked[0], confidence: share[0], nearest: (index[0], score[0]) }
            })
            .collect())
    }

    /// What abstaining is worth, told from the labelled images alone, each left out of its own vote: by rising threshold of the confidence,
    /// the share of images that are kept and how often these are right. The first line keeps all.
    ///
    /// # Errors
    /// None in a classifier that was made.
    pub fn coverage(&self) -> Result<Vec<Kept>> {
        let own: Vec<Option<u32>> = (0..self.bank.index.len() as u32).map(Some).collect();
        let guesses = self.classify(self.bank.matrix(), &own)?;
        let mut sure: Vec<(f32, bool)> =
            guesses.iter().zip(&self.bank.labels).map(|(g, &l)| (g.confidence, g.class == l)).collect();
        sure.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut table = Vec::new();
        for share in COVERAGE {
            let count = ((sure.len() as f64 * share).round() as usize).clamp(1, sure.len());
            let threshold = if count == sure.len() { 0.0 } else { sure[count - 1].0 };
            // All that are as sure as the last are kept with it.
            let kept = sure.iter().filter(|s| s.0 >= threshold);
            let (all, right) = kept.fold((0, 0), |(all, right), s| (all + 1, right + usize::from(s.1)));
            let line = Kept { threshold, coverage: f64::from(all) / sure.len() as f64, accuracy: right as f64 / f64::from(all) };
            if table.last().is_none_or(|l: &Kept| l.threshold < line.threshold) {
                table.push(line);
            }
        }
        Ok(table)
    }

    /// The lowest threshold of [`FewLabels::coverage`] at which `wanted` of the kept images are right, or else that at which the most are.
    ///
    /// # Errors
    /// As [`FewLabels::coverage`].
    pub fn threshold(&self, wanted: f64) -> Result<Kept> {
        let table = self.coverage()?;
        let enough = table.iter().copied().find(|l| l.accuracy >= wanted);
        let best = table.iter().copied().reduce(|a, b| if b.accuracy > a.accuracy { b } else { a });
        enough.or(best).ok_or_else(|| Error::Config("no labelled images".into()))
    }
}

/// A line of what abstaining is worth.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Kept {
    /// Images whose class has at least this share of the votes are kept.
    pub threshold: f32,
    /// The share of images that are kept.
    pub coverage: f64,
    /// The share of the kept images that is right.
    pub accuracy: f64,
}

/// Shares of the labelled images that are kept, in the table of what abstaining is worth.
const COVERAGE: [f64; 6] = [1.0, 0.9, 0.75, 0.5, 0.25, 0.1];

/// Where image `index` of `dataset` lies: the file itself, whatever it is called by, where its name below `root` is one; else its name in
/// the data set that `source` names. Two images with the same answer are one.
pub fn identity(dataset: &dyn Dataset, index: usize, root: Option<&Path>, source: &str) -> String {
    let id = dataset.id(index);
    let file = root.map_or_else(|| PathBuf::from(&id), |r| r.join(&id));
    match file.canonicalize() {
        Ok(path) if path.is_file() => path.display().to_string(),
        _ => format!("{source}\n{id}"),
    }
}

/// The first `k` neighbours of each query.
fn cut(found: &Neighbours, k: usize) -> Neighbours {
    let rows = 0..found.rows();
    let index = rows.clone().flat_map(|q| &found.row(q).0[..k]).copied().collect();
    let score = rows.flat_map(|q| &found.row(q).1[..k]).copied().collect();
    Neighbours { k, index, score }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_datasets::PackedImages;

    fn features(labels: &[u32]) -> Features {
        let rows = labels.iter().enumerate().flat_map(|(i, &l)| [l as f32 * 2.0 - 1.0, 1.0 + 0.01 * i as f32]).collect();
        Features { rows, dim: 2, index: (0..labels.len()).collect(), labels: labels.to_vec(), bad: Vec::new() }
    }

    #[test]
    fn a_handful_of_labels_classifies_and_says_how_sure_it_is() -> Result<()> {
        let few = FewLabels::new(features(&[0, 1, 0, 1, 0, 1]), vec!["left".into(), "right".into()], None)?;
        assert_eq!(few.left_out, 1.0);
        let guesses = few.classify(Matrix::new(&[-1.0, 1.0, 1.0, 1.0, 0.0, 1.0], 3, 2)?, &[None; 3])?;
        assert_eq!((guesses[0].class, guesses[1].class), (0, 1));
        assert!(guesses[0].confidence > guesses[2].confidence);
        Ok(())
    }

    #[test]
    fn two_three_and_four_labels_have_settings_and_a_figure() -> Result<()> {
        for labels in [&[0, 1][..], &[0, 1, 1], &[0, 1, 0, 1]] {
            let few = FewLabels::new(features(labels), vec!["left".into(), "right".into()], None)?;
            assert!((0.0..=1.0).contains(&few.left_out), "{labels:?}: {}", few.left_out);
            assert_eq!(few.k, labels.len() - 1);
            assert!(few.coverage()?[0].coverage == 1.0);
        }
        Ok(())
    }

    #[test]
    fn an_image_has_no_vote_on_itself() -> Result<()> {
        // Row 4 lies among the others' class: alone against itself it would be right.
        let mut bank = features(&[0, 0, 1, 1, 1]);
        (bank.rows[8], bank.rows[9]) = (-1.0, 0.98);
        let few = FewLabels::new(bank.clone(), vec!["left".into(), "right".into()], Some(1))?;
        let query = Matrix { data: &bank.rows[8..], rows: 1, dim: 2 };
        assert_eq!(few.classify(query, &[None])?[0].class, 1);
        let left_out = few.classify(query, &[Some(4)])?;
        assert_eq!((left_out[0].class, left_out[0].nearest.0), (0, 0));
        // Where all labelled images vote, one fewer does.
        let all = FewLabels::new(bank.clone(), vec!["left".into(), "right".into()], Some(5))?;
        assert!(all.classify(query, &[Some(4)])?[0].confidence > 0.0);
        assert!(all.classify(query, &[]).is_err());
        // Of five images left out in turn, four are right; keeping the sure ones can only be told from these.
        let table = few.coverage()?;
        assert_eq!((table[0].threshold, table[0].coverage, table[0].accuracy), (0.0, 1.0, 0.8));
        assert_eq!(few.threshold(0.5)?, table[0]);
        Ok(())
    }

    #[test]
    fn what_can_not_be_learned_from_is_told() {
        let two = || vec!["a".to_string(), "b".to_string()];
        let text = |r: Result<FewLabels>| r.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text(FewLabels::new(features(&[1, 1, 1]), two(), None)).contains("of one class (b)"));
        assert!(text(FewLabels::new(features(&[0, 1]), two(), Some(3))).contains("there are 2 labelled images"));
        let mut nan = features(&[0, 1, 0]);
        nan.rows[2] = f32::NAN;
        assert!(text(FewLabels::new(nan, two(), None)).contains("row 1 holds NaN"));
    }

    #[test]
    fn a_balanced_part_takes_as_many_of_each_class() -> anyhow::Result<()> {
        let labels: Vec<u32> = (0..90).map(|i| u32::from(i % 9 == 0)).collect();
        let classes = vec!["many".to_string(), "few".to_string()];
        let whole: Arc<dyn Dataset> = Arc::new(PackedImages::new("x", vec![0; 90], (1, 1, 1), Some(labels), classes)?);
        let count = |part: &Subset| {
            let few = (0..part.len()).filter(|&i| part.label(i) == Some(1)).count();
            (part.len() - few, few)
        };
        assert_eq!(count(&balanced(&whole, Share::PerClass(4), 0)?), (4, 4));
        assert_eq!(count(&balanced(&whole, Share::PerClass(20), 0)?), (20, 10));
        assert_eq!(count(&balanced(&whole, Share::Fraction(0.01), 0)?), (1, 1));
        let ids = |seed| -> Result<Vec<String>> {
            let part = balanced(&whole, Share::PerClass(4), seed)?;
            Ok((0..8).map(|i| part.id(i)).collect())
        };
        assert!(ids(0)? == ids(0)? && ids(0)? != ids(1)?);
        assert!(balanced(&whole, Share::PerClass(0), 0).is_err() && balanced(&whole, Share::Fraction(1.5), 0).is_err());
        Ok(())
    }
}
