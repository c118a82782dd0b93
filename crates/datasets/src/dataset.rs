//! The trait that every source of images implements, and parts of data sets.

use std::path::PathBuf;
use std::sync::Arc;

use image::DynamicImage;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::part::{Choose, Part};
use crate::{Bands, Error, Result};

/// One image with its label, if it has one.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The image, 8 or 16 bits, 1 to 4 channels; a picture for people where the data set has [`Dataset::bands`].
    pub image: DynamicImage,
    /// The class, an index into [`Dataset::classes`].
    pub label: Option<u32>,
}

/// A numbered list of images. Order never changes between calls, runs or machines.
pub trait Dataset: Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> &str;

    /// How many images there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decodes image number `index`.
    ///
    /// # Errors
    /// An index past the end, an image that can't be read.
    fn get(&self, index: usize) -> Result<Sample>;

    /// Decodes of image number `index` at least what `choose` wants of it, and says what that is: readers that need only parts of large
    /// images get them sooner. Pixels are those of [`Dataset::get`], or means of squares of them where `choose` allows that.
    ///
    /// # Errors
    /// As [`Dataset::get`].
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> Result<Part> {
        let _ = choose;
        Ok(Part::whole(self.get(index)?.image))
    }

    /// The encoded content of image number `index`, where it lies encoded: what a copy of the data set can keep as it is.
    fn encoded(&self, index: usize) -> Option<Result<Vec<u8>>> {
        let _ = index;
        None
    }

    /// The levels of image number `index` in all their channels and bits, where the data set is one of other images than pictures (2 or
    /// 4 to 16 channels, or 16 bits): what views are to be made of. `None` for all images or for none.
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        let _ = index;
        None
    }

    /// The levels of image number `index` in no particular order and without alpha, where they have 16 bits: what
    /// [`crate::levels::measure`] counts. They are as they are stored, before [`crate::OpenOptions::levels`] maps them, unless the data set
    /// keeps its images decoded. `None` where they have 8 bits, or are kept in 8.
    fn words(&self, index: usize) -> Option<Result<Vec<u16>>> {
        match self.bands(index)? {
            Ok(bands) => bands.into_words().map(Ok),
            Err(e) => Some(Err(e)),
        }
    }

    /// The file that image number `index` is, where it is one by itself.
    fn file(&self, index: usize) -> Option<PathBuf> {
        let _ = index;
        None
    }

    /// Whether images are kept decoded, so that getting one costs no more than a copy.
    fn is_kept(&self) -> bool {
        false
    }

    /// The order in which epoch `epoch` of a run with `seed` should see the images, where the source has a wish: a permutation that
    /// reads large archives from front to back. `None`: any order is as good.
    fn order(&self, seed: u64, epoch: u64) -> Option<Vec<u32>> {
        let _ = (seed, epoch);
        None
    }

    /// The label of image number `index`, without decoding it.
    fn label(&self, index: usize) -> Option<u32> {
        let _ = index;
        None
    }

    /// The names of the classes; `None` where there are no labels.
    fn classes(&self) -> Option<&[String]> {
        None
    }

    /// What image number `index` is called: its path below the data set, or `#index`.
    fn id(&self, index: usize) -> String {
        format!("#{index}")
    }

    /// What a view should have: 1 when every image is gray, 3 when they are other pictures, else as many as [`Dataset::bands`] has.
    fn channels(&self) -> usize;

    /// Width and height where all images are known to share them.
    fn side(&self) -> Option<(u32, u32)> {
        None
    }
}

/// Decodes every image, in parallel, and names those that can't be: (id, reason).
pub fn verify(dataset: &dyn Dataset) -> Vec<(String, String)> {
    let check = |i: usize| dataset.get(i).err().map(|e| (dataset.id(i), e.to_string()));
    (0..dataset.len()).into_par_iter().filter_map(check).collect()
}

/// Some images of a data set, in a given order.
pub struct Subset {
    whole: Arc<dyn Dataset>,
    index: Vec<usize>,
}

impl Subset {
    /// The images `index` of `whole`.
    ///
    /// # Errors
    /// An index past the end.
    pub fn new(whole: Arc<dyn Dataset>, index: Vec<usize>) -> Result<Self> {
        match index.iter().find(|&&i| i >= whole.len()) {
            Some(i) => Err(Error::BadSetting(format!("{}: image {i} of {} does not exist", whole.name(), whole.len()))),
            None => Ok(Self { whole, index }),
        }
    }

    /// At most `count` images, spread evenly over the classes where there are labels and over the list where there are none.
    /// The order of the data set is kept.
    ///
    /// # Errors
    /// A count of 0.
    pub fn limited(whole: Arc<dyn Dataset>, count: usize) -> Result<Self> {
        let index = spread(&*whole, count)?;
        Self::new(whole, index)
    }
}

/// The images that [`Subset::limited`] takes, in ascending order.
///
/// # Errors
/// A count of 0.
pub fn spread(dataset: &dyn Dataset, count: usize) -> Result<Vec<usize>> {
    let total = dataset.len();
    if count == 0 {
        return Err(Error::BadSetting("a limit of 0 images leaves nothing to train on".into()));
    }
    if count >= total {
        return Ok((0..total).collect());
    }
    let groups = groups(dataset);
    let shares = shares(&groups.iter().map(Vec::len).collect::<Vec<_>>(), count);
    // Within a class, evenly over its list: the first few may be alike (frames of one film, say).
    let even =
        |(group, share): (&Vec<usize>, usize)| -> Vec<usize> { (0..share).map(|i| group[i * group.len() / share]).collect() };
    let mut chosen: Vec<usize> = groups.iter().zip(shares).flat_map(even).collect();
    chosen.sort_unstable();
    Ok(chosen)
}

/// How many of `count` images each class gives, of those that it has: every class gives as many as the smallest can, then the larger
/// ones go on.
pub(crate) fn shares(sizes: &[usize], count: usize) -> Vec<usize> {
    let mut shares = vec![0; sizes.len()];
    let mut left = count.min(sizes.iter().sum());
    while left > 0 {
        let open: Vec<usize> = (0..sizes.len()).filter(|&g| shares[g] < sizes[g]).collect();
        for (place, &g) in open.iter().enumerate() {
            let fair = left.div_ceil(open.len() - place).min(sizes[g] - shares[g]);
            shares[g] += fair;
            left -= fair;
        }
    }
    shares
}

impl Dataset for Subset {
    fn name(&self) -> &str {
        self.whole.name()
    }
    fn len(&self) -> usize {
        self.index.len()
    }
    fn get(&self, index: usize) -> Result<Sample> {
        match self.index.get(index) {
            Some(&i) => self.whole.get(i),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name(), self.len()))),
        }
    }
    fn get_part(&self, index: usize, choose: &mut Choose<'_>) -> Result<Part> {
        match self.index.get(index) {
            Some(&i) => self.whole.get_part(i, choose),
            None => Err(Error::BadSetting(format!("{}: image {index} of {} does not exist", self.name(), self.len()))),
        }
    }
    fn encoded(&self, index: usize) -> Option<Result<Vec<u8>>> {
        self.index.get(index).and_then(|&i| self.whole.encoded(i))
    }
    fn bands(&self, index: usize) -> Option<Result<Bands>> {
        self.index.get(index).and_then(|&i| self.whole.bands(i))
    }
    fn words(&self, index: usize) -> Option<Result<Vec<u16>>> {
        self.index.get(index).and_then(|&i| self.whole.words(i))
    }
    fn file(&self, index: usize) -> Option<PathBuf> {
        self.index.get(index).and_then(|&i| self.whole.file(i))
    }
    fn is_kept(&self) -> bool {
        self.whole.is_kept()
    }
    fn order(&self, seed: u64, epoch: u64) -> Option<Vec<u32>> {
        let whole = self.whole.order(seed, epoch)?;
        let mut places = vec![Vec::new(); self.whole.len()];
        (0..).zip(&self.index).for_each(|(place, &i): (u32, _)| places[i].push(place));
        Some(whole.into_iter().flat_map(|i| std::mem::take(&mut places[i as usize])).collect())
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.index.get(index).and_then(|&i| self.whole.label(i))
    }
    fn classes(&self) -> Option<&[String]> {
        self.whole.classes()
    }
    fn id(&self, index: usize) -> String {
        self.index.get(index).map_or_else(|| format!("#{index}"), |&i| self.whole.id(i))
    }
    fn channels(&self) -> usize {
        self.whole.channels()
    }
    fn side(&self) -> Option<(u32, u32)> {
        self.whole.side()
    }
}

/// Splits off a share of the images, class by class where there are labels, decided by `seed`: (the rest, those held out).
///
/// Each class gives share · size images, rounded, at least one of two or more, and never its last; a share of 0 holds out none.
///
/// # Errors
/// A share outside 0 to 1.
pub fn hold_out(whole: Arc<dyn Dataset>, share: f64, seed: u64) -> Result<(Arc<dyn Dataset>, Arc<dyn Dataset>)> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::BadSetting(format!("a share of {share} can't be held out: expected 0 to 1")));
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(b"hold out");
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut held = Vec::new();
    for mut class in groups(&*whole) {
        let count = ((class.len() as f64 * share).round() as usize).max(usize::from(share > 0.0 && class.len() > 1));
        class.shuffle(&mut rng);
        held.extend(class.iter().take(count.min(class.len().saturating_sub(1))));
    }
    held.sort_unstable();
    let mut is_held = vec![false; whole.len()];
    held.iter().for_each(|&i| is_held[i] = true);
    let rest = (0..whole.len()).filter(|&i| !is_held[i]).collect();
    Ok((Arc::new(Subset::new(whole.clone(), rest)?), Arc::new(Subset::new(whole, held)?)))
}

/// Images by label; one group when there are none.
fn groups(dataset: &dyn Dataset) -> Vec<Vec<usize>> {
    let classes = dataset.classes().map_or(1, |c| c.len().max(1));
    let mut groups = vec![Vec::new(); classes];
    for i in 0..dataset.len() {
        let class = dataset.label(i).map_or(0, |l| l as usize).min(classes - 1);
        groups[class].push(i);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PackedImages;

    /// Images of 1 × 1 pixels whose classes have these sizes, mixed.
    fn uneven(sizes: &[usize]) -> Arc<dyn Dataset> {
        let most = sizes.iter().copied().max().unwrap_or(0);
        let labels: Vec<u32> =
            (0..most).flat_map(|i| (0..sizes.len()).filter(move |&c| i < sizes[c]).map(|c| c as u32)).collect();
        let classes = (0..sizes.len()).map(|c| c.to_string()).collect();
        Arc::new(PackedImages::new("uneven", vec![7; labels.len()], (1, 1, 1), Some(labels), classes).expect("it fits"))
    }

    fn counts(dataset: &dyn Dataset) -> Vec<usize> {
        groups(dataset).iter().map(Vec::len).collect()
    }

    #[test]
    fn a_limit_takes_all_of_small_classes_and_shares_the_rest() -> Result<()> {
        let whole = uneven(&[2, 50, 30]);
        for (limit, want) in
            [(1, [1, 0, 0]), (6, [2, 2, 2]), (20, [2, 9, 9]), (70, [2, 38, 30]), (82, [2, 50, 30]), (500, [2, 50, 30])]
        {
            let part = Subset::limited(whole.clone(), limit)?;
            assert_eq!(counts(&part), want, "limit {limit}");
        }
        assert!(Subset::limited(whole, 0).is_err());
        Ok(())
    }

    #[test]
    fn every_class_holds_something_out_and_keeps_something() -> Result<()> {
        let (rest, held) = hold_out(uneven(&[1, 2, 5, 100]), 0.1, 3)?;
        assert_eq!((counts(&*rest), counts(&*held)), (vec![1, 1, 4, 90], vec![0, 1, 1, 10]));
        let (rest, held) = hold_out(uneven(&[3, 4]), 0.0, 3)?;
        assert_eq!((rest.len(), held.len()), (7, 0));
        assert!(hold_out(uneven(&[3]), f64::NAN, 3).is_err() && hold_out(uneven(&[3]), 1.5, 3).is_err());
        assert!(Subset::new(uneven(&[3]), vec![3]).is_err());
        assert!(verify(&*uneven(&[3])).is_empty());
        Ok(())
    }
}
