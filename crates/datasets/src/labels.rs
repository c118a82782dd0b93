//! When sub-folders are labels.
//!
//! The rule, under `LabelMode::Auto`: every image lies exactly one folder deep, in at least two folders; there are five
//! images a folder or more on average, and more than one in at least half of the folders; and the folders' names are not all
//! dates. So a flat folder, a deeper tree, a folder with one image or a handful each, and an archive by date have no labels:
//! an unlabelled folder must never be taken for one class a file. [`LabelMode::Folder`] takes the first sub-folder for the
//! label whatever the numbers, [`LabelMode::None`] never does.

use std::collections::{BTreeMap, BTreeSet};

use crate::LabelMode;

/// Images a folder, on average, from which on folders are taken for classes.
const LABELLED_FROM: usize = 5;

/// Labels, one an image, and the names of the classes in byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) of: Vec<u32>,
    pub(crate) classes: Vec<String>,
}

/// How the sub-folders of images were understood.
pub(crate) enum Understood {
    /// As labels.
    Labels(Labels),
    /// Not as labels, because.
    Unlabelled(String),
    /// They should be labels and can't be, because.
    Impossible(String),
}

/// Applies the rule to paths (with forward slashes) below the folder of a split.
pub(crate) fn understand(paths: &[String], mode: LabelMode) -> Understood {
    if mode == LabelMode::None {
        return Understood::Unlabelled("no labels, as asked for".into());
    }
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for folder in paths.iter().filter_map(|p| first_folder(p)) {
        *sizes.entry(folder).or_default() += 1;
    }
    let loose = paths.iter().find(|p| first_folder(p).is_none());
    let why_not = match loose {
        Some(_) if sizes.is_empty() => Some("there are no sub-folders".to_string()),
        Some(loose) => Some(format!("images such as {loose} lie beside the sub-folders")),
        None if sizes.len() < 2 => Some("there is one sub-folder only".into()),
        None if mode == LabelMode::Auto => doubt(paths, &sizes),
        None => None,
    };
    match why_not {
        Some(why) if mode == LabelMode::Folder => Understood::Impossible(why),
        Some(why) => Understood::Unlabelled(format!("no labels: {why}")),
        None => {
            let classes: Vec<String> = sizes.into_keys().map(String::from).collect();
            match of_known(paths, &classes) {
                Ok(labels) => Understood::Labels(labels),
                Err(path) => Understood::Impossible(format!("{path} lies in no sub-folder")),
            }
        }
    }
}

/// The labels of images whose classes are known from another split. Folders that are none of these are further classes behind them, so
/// that images of a class that was never seen in training count as what they are. `Err` with the path of an image in no folder, or where
/// no folder is a known class.
pub(crate) fn of_known<'a>(paths: &'a [String], classes: &[String]) -> Result<Labels, &'a str> {
    let folders = paths.iter().map(|p| first_folder(p).ok_or(p.as_str())).collect::<Result<Vec<_>, _>>()?;
    let known: BTreeMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    if let (Some(first), false) = (paths.first(), folders.iter().any(|f| known.contains_key(f))) {
        return Err(first);
    }
    let new: BTreeSet<&str> = folders.iter().copied().filter(|f| !known.contains_key(f)).collect();
    let classes: Vec<String> = classes.iter().cloned().chain(new.iter().map(ToString::to_string)).collect();
    let number: BTreeMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    Ok(Labels { of: folders.iter().map(|f| number[f]).collect(), classes })
}

/// What speaks against labels in folders that could be.
fn doubt(paths: &[String], sizes: &BTreeMap<&str, usize>) -> Option<String> {
    let single = sizes.values().filter(|&&n| n == 1).count();
    if let Some(deep) = paths.iter().find(|p| p.matches('/').count() != 1) {
        Some(format!("images such as {deep} lie more than one folder deep"))
    } else if paths.len() < LABELLED_FROM * sizes.len() || single * 2 > sizes.len() {
        Some(format!(
            "{} images in {} sub-folders ({single} with one image) are too few a folder for classes",
            paths.len(),
            sizes.len()
        ))
    } else if sizes.keys().all(|name| is_date(name)) {
        Some("the sub-folders' names are dates".into())
    } else {
        None
    }
}

fn first_folder(path: &str) -> Option<&str> {
    path.split_once('/').map(|(folder, _)| folder)
}

/// 2021, 2021-03, 2021_03_14, 20210314 and the like.
fn is_date(name: &str) -> bool {
    let digits: String = name.chars().filter(|c| !matches!(c, '-' | '_' | '.' | ' ')).collect();
    matches!(digits.len(), 4 | 6 | 8)
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits.starts_with("19") || digits.starts_with("20"))
        && digits.get(4..6).is_none_or(|month| matches!(month.parse(), Ok(1..=12)))
        && digits.get(6..8).is_none_or(|day| matches!(day.parse(), Ok(1..=31)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(mode: LabelMode, name: impl Fn(usize) -> String) -> bool {
        let paths: Vec<String> = (0..40).map(name).collect();
        matches!(understand(&paths, mode), Understood::Labels(_))
    }

    #[test]
    fn only_what_looks_like_classes_is_taken_for_classes() {
        let auto = |name: &dyn Fn(usize) -> String| labelled(LabelMode::Auto, name);
        assert!(auto(&|i| format!("{}/{i}.jpg", i % 4)), "digits are fine names of classes");
        assert!(!auto(&|i| format!("{i}.jpg")));
        assert!(!auto(&|i| format!("{i}/image.jpg")), "one image a folder");
        assert!(!auto(&|i| format!("{}/{i}.jpg", i / 2)), "two images a folder");
        assert!(!auto(&|i| format!("2021-03-{:02}/{i}.jpg", i % 4 + 1)), "dates");
        assert!(!auto(&|i| format!("{}/{i}.jpg", 2018 + i % 4)), "years");
        assert!(!auto(&|i| format!("2021/{:02}/{i}.jpg", i % 12 + 1)), "a tree of dates");
        assert!(!auto(&|i| format!("{}/x/{i}.jpg", i % 2)), "a deeper tree");
        assert!(!auto(&|i| format!("all/{i}.jpg")), "one folder");
        assert!(!auto(&|i| if i == 9 { "loose.jpg".into() } else { format!("{}/{i}.jpg", i % 2) }));
        assert!(!auto(&|i| if i < 37 { format!("misc/{i}.jpg") } else { format!("{i}/{i}.jpg") }), "mostly single images");
    }

    #[test]
    fn a_person_can_insist() {
        assert!(labelled(LabelMode::Folder, |i| format!("{i}/x/image.jpg")));
        assert!(!labelled(LabelMode::None, |i| format!("{}/{i}.jpg", i % 4)));
        assert!(matches!(understand(&["a.jpg".to_string()], LabelMode::Folder), Understood::Impossible(_)));
    }

    #[test]
    fn another_split_takes_over_the_classes() {
        let classes = ["cat".to_string(), "dog".to_string()];
        let labels = |of: Vec<u32>, more: &[&str]| Labels {
            of,
            classes: classes.iter().cloned().chain(more.iter().map(ToString::to_string)).collect(),
        };
        assert_eq!(of_known(&["dog/1.png".into(), "cat/x/1.png".into()], &classes), Ok(labels(vec![1, 0], &[])));
        // A class that training does not have gets a number of its own, behind the known ones.
        let paths = ["cow/1.png".into(), "dog/1.png".into(), "ape/1.png".into()];
        assert_eq!(of_known(&paths, &classes), Ok(labels(vec![3, 1, 2], &["ape", "cow"])));
        assert_eq!(of_known(&["dog/1.png".into(), "2.png".into()], &classes), Err("2.png"));
        assert_eq!(of_known(&["cow/1.png".into()], &classes), Err("cow/1.png"));
    }
}
