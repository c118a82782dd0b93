//! Which row groups of tables hold as many images of each class as are wanted: told by the column of labels, without the images.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use rayon::prelude::*;

use super::{Columns, Take};
use crate::dataset::shares;
use crate::open::{Whole, test_limit};
use crate::sources::{Split, in_order};

/// What is read of each file.
pub(super) struct Choice {
    /// For each file in turn.
    pub(super) takes: Vec<Take>,
    /// The names of all classes, where there are labels.
    pub(super) classes: Option<Vec<String>>,
    /// How many images there are; `None` where all are read.
    pub(super) whole: Option<Whole>,
}

/// The rows of a group by their label.
type Counts = BTreeMap<Option<String>, usize>;

/// A file's groups and the names of its classes.
#[derive(Default)]
struct Survey {
    /// Those before the first one whose labels can't be read: a reader of the whole file comes no further either.
    groups: Vec<Counts>,
    classes: Option<Vec<String>>,
    is_damaged: bool,
}

/// The first groups of `files` that hold `count` training images, spread over the classes as a limit spreads them, and as many test
/// images as go with so many. A file whose labels can't be read is read as far as it goes: what is wrong with it is told then.
pub(super) fn choose(root: &Path, files: &[PathBuf], count: usize) -> Choice {
    let surveys: Vec<Survey> = files.par_iter().map(|path| survey(path)).collect();
    let mut splits: Vec<Split> = files.iter().map(|path| Split::of_path(root, path)).collect();
    if splits.iter().all(|s| *s != Split::Train) {
        splits.fill(Split::Train);
    }
    let labels = surveys.iter().flat_map(|s| &s.groups).flat_map(BTreeMap::keys).flatten().map(String::as_str).collect();
    let named = surveys.iter().find_map(|s| s.classes.clone());
    let classes = named.or_else(|| Some(in_order(&labels)).filter(|c| !c.is_empty()));
    let nothing = |s: &Survey| if s.is_damaged { Take::All } else { Take::Groups(Vec::new()) };
    let mut takes: Vec<Take> = surveys.iter().map(nothing).collect();
    let (mut whole, mut left_any) = (Whole::default(), false);
    let has_test = splits.contains(&Split::Test);
    let tested = if has_test { Split::Test } else { Split::Validation };
    for (split, count) in [(Split::Train, count), (tested, test_limit(count))] {
        let mut total = Counts::new();
        let own = || surveys.iter().enumerate().filter(|(i, _)| splits[*i] == split);
        for (label, rows) in own().flat_map(|(_, s)| &s.groups).flatten() {
            *total.entry(label.clone()).or_default() += rows;
        }
        let rows = total.values().sum();
        match split {
            Split::Train => {
                whole.train = rows;
                whole.classes = total.iter().filter_map(|(label, &rows)| Some((label.clone()?, rows))).collect();
            }
            _ => whole.test = splits.contains(&split).then_some(rows),
        }
        // In the order of the classes, in which a limit goes through them as well.
        let place =
            |label: &Option<String>| classes.as_ref().and_then(|c| c.iter().position(|name| Some(name) == label.as_ref()));
        let mut sizes: Vec<(&Option<String>, usize)> = total.iter().map(|(label, &rows)| (label, rows)).collect();
        sizes.sort_by_key(|(label, _)| place(label));
        let wanted = shares(&sizes.iter().map(|s| s.1).collect::<Vec<_>>(), count);
        let mut wanted: BTreeMap<&Option<String>, usize> = sizes.iter().map(|s| s.0).zip(wanted).collect();
        // What is read in any case counts first.
        own().filter(|(_, s)| s.is_damaged).flat_map(|(_, s)| &s.groups).for_each(|group| take(&mut wanted, group));
        for (i, survey) in own().filter(|(_, s)| !s.is_damaged) {
            let (mut taken, mut first) = (Vec::new(), 0);
            for (number, group) in survey.groups.iter().enumerate() {
                let rows = first..first + group.values().sum::<usize>();
                first = rows.end;
                if group.keys().any(|label| wanted.get(label).is_some_and(|&left| left > 0)) {
                    taken.push((number, rows));
                    take(&mut wanted, group);
                }
            }
            let all = taken.len() == survey.groups.len();
            left_any |= !all;
            takes[i] = if all { Take::All } else { Take::Groups(taken) };
        }
    }
    Choice { takes, classes, whole: left_any.then_some(whole) }
}

/// Counts the rows of `group` off those that are still wanted of each label.
fn take(wanted: &mut BTreeMap<&Option<String>, usize>, group: &Counts) {
    for (label, rows) in group {
        if let Some(left) = wanted.get_mut(label) {
            *left = left.saturating_sub(*rows);
        }
    }
}

/// What the labels of a file say, as far as they can be read.
fn survey(path: &Path) -> Survey {
    let mut survey = Survey::default();
    survey.is_damaged = survey_into(path, &mut survey).is_err();
    survey
}

fn survey_into(path: &Path, survey: &mut Survey) -> Result<(), ParquetError> {
    let file = File::open(path).map_err(|e| ParquetError::External(Box::new(e)))?;
    let reader = SerializedFileReader::new(file)?;
    let columns = Columns::of(&reader, path).map_err(|e| ParquetError::External(Box::new(e)))?;
    survey.classes.clone_from(&columns.classes);
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number)?;
        let mut counts = Counts::new();
        let labels = columns.labels(&*group)?;
        let without = (group.metadata().num_rows().max(0) as usize).saturating_sub(labels.len());
        labels.into_iter().for_each(|label| *counts.entry(label).or_default() += 1);
        if without > 0 {
            *counts.entry(None).or_default() += without;
        }
        survey.groups.push(counts);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use crate::{Dataset, OpenOptions, open};

    /// A table of row groups of four images each, 6 × 4 pixels, with these labels; gives where each group's images and labels lie in the
    /// file.
    fn table(path: &std::path::Path, groups: &[[i64; 4]]) -> anyhow::Result<Vec<[std::ops::Range<usize>; 2]>> {
        let schema = parse_message_type("message t { required binary image; required int64 label; }")?;
        let file = std::fs::File::create(path)?;
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(WriterProperties::builder().build()))?;
        let mut places = Vec::new();
        for (g, labels) in (0_u8..).zip(groups) {
            let mut group = writer.next_row_group()?;
            let images = (0..4).map(|i| -> anyhow::Result<ByteArray> {
                let mut raw = std::io::Cursor::new(Vec::new());
                image::RgbImage::from_pixel(6, 4, image::Rgb([g, i, 7])).write_to(&mut raw, image::ImageFormat::Png)?;
                Ok(raw.into_inner().into())
            });
            let images = images.collect::<anyhow::Result<Vec<_>>>()?;
            let mut column = group.next_column()?.ok_or_else(|| anyhow::anyhow!("no column of images"))?;
            column.typed::<ByteArrayType>().write_batch(&images, None, None)?;
            column.close()?;
            let mut column = group.next_column()?.ok_or_else(|| anyhow::anyhow!("no column of labels"))?;
            column.typed::<Int64Type>().write_batch(labels, None, None)?;
            column.close()?;
            let group = group.close()?;
            places.push([0, 1].map(|column| {
                let (start, length) = group.column(column).byte_range();
                start as usize..(start + length) as usize
            }));
        }
        writer.close()?;
        Ok(places)
    }

    /// An image's name, its label and its last pixel.
    type Seen = (String, Option<u32>, [u8; 3]);

    fn pixels(dataset: &dyn Dataset) -> anyhow::Result<Vec<Seen>> {
        let of = |i: usize| Ok((dataset.id(i), dataset.label(i), dataset.get(i)?.image.to_rgb8().get_pixel(5, 3).0));
        (0..dataset.len()).map(of).collect()
    }

    #[test]
    fn a_limit_touches_no_image_of_groups_that_it_does_not_need() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.parquet");
        let places = table(&path, &[[3, 3, 3, 3], [3, 3, 3, 3], [3, 10, 10, 3], [10, 10, 3, 10]])?;
        let at = path.display().to_string();
        let options = |name: &str| OpenOptions { cache: dir.path().join(name), ..OpenOptions::default() };
        let limited = |name: &str, limit| open(&at, &OpenOptions { limit: Some(limit), ..options(name) });
        let sound = pixels(&*limited("a", 4)?.train)?;
        // The images of the second and the last group are damaged.
        let mut raw = std::fs::read(&path)?;
        raw[places[1][0].clone()].fill(0xff);
        raw[places[3][0].clone()].fill(0xff);
        std::fs::write(&path, raw)?;
        let found = limited("b", 4)?;
        assert_eq!(found.report.bad_files, []);
        assert_eq!(pixels(&*found.train)?, sound);
        let ids: Vec<&str> = sound.iter().map(|s| s.0.as_str()).collect();
        assert_eq!(ids, ["t:#0", "t:#3", "t:#9", "t:#10"]);
        assert_eq!(sound.iter().map(|s| s.1).collect::<Vec<_>>(), [Some(0), Some(0), Some(1), Some(1)]);
        assert_eq!(sound[3].2, [2, 2, 7]);
        // A sample tells how many there are; more than is sound, or all of it, meets the damage.
        let sampled = open(&at, &OpenOptions { sample: Some(4), ..options("c") })?;
        let whole = sampled.report.whole.unwrap_or_default();
        assert_eq!((whole.train, whole.test, whole.classes), (16, None, [("3".into(), 11), ("10".into(), 5)].into()));
        assert!(limited("d", 16)?.report.bad_files.iter().any(|b| b.id == "t.parquet"));
        assert!(!open(&at, &options("e"))?.report.bad_files.is_empty());
        Ok(())
    }

    #[test]
    fn a_limit_takes_the_same_images_from_the_file_and_from_its_copy() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("set");
        std::fs::create_dir(&folder)?;
        table(&folder.join("train-0.parquet"), &[[0, 1, 2, 0], [1, 1, 1, 1], [2, 2, 0, 0]])?;
        table(&folder.join("train-1.parquet"), &[[0, 1, 2, 0], [9, 1, 1, 1]])?;
        table(&folder.join("test-0.parquet"), &[[0, 1, 2, 9], [1, 1, 1, 1]])?;
        let at = folder.display().to_string();
        let options = OpenOptions { cache: dir.path().join("cache"), ..OpenOptions::default() };
        let take = || -> anyhow::Result<_> {
            let found = open(&at, &OpenOptions { limit: Some(8), ..options.clone() })?;
            let test = found.test.ok_or_else(|| anyhow::anyhow!("no test images"))?;
            Ok((pixels(&*found.train)?, pixels(&*test)?, found.train.classes().map(<[String]>::to_vec)))
        };
        let first = take()?;
        assert_eq!((first.0.len(), first.1.len()), (8, 1));
        assert_eq!(first.2, Some(["0", "1", "2", "9"].map(String::from).to_vec()), "numbers stay those of all classes");
        let all = open(&at, &options)?;
        assert_eq!((all.train.len(), all.report.whole), (20, None));
        assert_eq!(take()?, first);
        Ok(())
    }

    #[test]
    fn a_file_with_damaged_labels_counts_as_far_as_it_is_read() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("set");
        std::fs::create_dir(&folder)?;
        let places = table(&folder.join("train-0.parquet"), &[[0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]])?;
        table(&folder.join("train-1.parquet"), &[[0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]])?;
        let damaged = folder.join("train-0.parquet");
        let mut raw = std::fs::read(&damaged)?;
        raw[places[1][1].clone()].fill(0xff);
        std::fs::write(&damaged, raw)?;
        let at = folder.display().to_string();
        let options = |name: &str| OpenOptions { cache: dir.path().join(name), ..OpenOptions::default() };
        // The first group of the damaged file, and all of the other one.
        let all = open(&at, &options("a"))?;
        assert_eq!((all.train.len(), all.report.bad_files.len(), &all.report.whole), (16, 1, &None));
        for sample in [1, 8, 9] {
            let found = open(&at, &OpenOptions { sample: Some(sample), ..options("b") })?;
            let whole = found.report.whole.unwrap_or_default();
            assert_eq!((whole.train, whole.classes), (16, [("0".into(), 6), ("1".into(), 10)].into()), "{sample}");
            assert_eq!(found.report.bad_files, all.report.bad_files);
            assert!(found.train.len() < 16 && found.train.len() >= sample, "{sample}: {}", found.train.len());
        }
        // Whatever is told of fewer than all, there are no more than that.
        std::fs::write(&damaged, "no table")?;
        let found = open(&at, &OpenOptions { sample: Some(2), ..options("c") })?;
        assert_eq!((found.report.whole.unwrap_or_default().train, found.train.len()), (12, 4));
        assert_eq!(found.report.bad_files.len(), 1);
        Ok(())
    }

    #[test]
    fn the_groups_of_a_limit_are_copied_once() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.parquet");
        let places = table(&path, &[[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]])?;
        let at = path.display().to_string();
        let cache = dir.path().join("cache");
        let limited = |limit| open(&at, &OpenOptions { limit: Some(limit), cache: cache.clone(), ..OpenOptions::default() });
        let copies = || -> anyhow::Result<usize> { Ok(std::fs::read_dir(cache.join("copies"))?.count()) };
        let first = pixels(&*limited(4)?.train)?;
        assert_eq!((first.len(), copies()?), (4, 1));
        // A table that looks unchanged, with damaged images: only its copy can give them.
        let time = std::fs::metadata(&path)?.modified()?;
        let sound = std::fs::read(&path)?;
        let rewrite = |raw: &[u8]| -> anyhow::Result<()> {
            std::fs::write(&path, raw)?;
            Ok(std::fs::File::options().write(true).open(&path)?.set_modified(time)?)
        };
        let mut raw = sound.clone();
        raw[places[0][0].clone()].fill(0xff);
        rewrite(&raw)?;
        assert_eq!(pixels(&*limited(4)?.train)?, first);
        // Other groups are copied anew; a table has one copy at a time.
        assert!(limited(8).is_err());
        rewrite(&sound)?;
        let two = pixels(&*limited(8)?.train)?;
        assert_eq!((two.len(), copies()?), (8, 1));
        // A sample, which is for a look, leaves the copy as it is.
        assert_eq!(open(&at, &OpenOptions { sample: Some(4), cache: cache.clone(), ..OpenOptions::default() })?.train.len(), 4);
        rewrite(&raw)?;
        assert_eq!(pixels(&*limited(8)?.train)?, two);
        // The copy of all serves every limit, and takes the place of the others.
        rewrite(&sound)?;
        assert_eq!(limited(12)?.train.len(), 12);
        rewrite(&raw)?;
        assert_eq!((pixels(&*limited(4)?.train)?, pixels(&*limited(8)?.train)?, copies()?), (first, two, 1));
        Ok(())
    }
}
