//! A folder of 1,000 files, 40 of them broken in more than twenty ways: each is named once with a reason, and nothing else is lost.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use twinsight_datasets::{OpenOptions, open, verify};
use twinsight_test_support::broken::write_folder;

#[test]
fn forty_broken_files_of_a_thousand_are_named_once_each() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broken = write_folder(dir.path(), 40, 1000)?;
    let path = dir.path().to_str().context("utf-8")?;
    let found = open(path, &OpenOptions::default())?;
    let named: Vec<&str> = found.report.bad_files.iter().map(|b| b.id.as_str()).collect();
    let once: BTreeSet<String> = named.iter().map(ToString::to_string).collect();
    ensure!(once.len() == named.len(), "named twice: {named:?}");
    ensure!(once == broken, "missing {:?}, too many {:?}", broken.difference(&once), once.difference(&broken));
    ensure!(
        found.report.bad_files.iter().all(|b| b.reason.len() > 5 && !b.reason.contains('\n')),
        "{:?}",
        found.report.bad_files
    );
    ensure!(found.train.len() == 960 && verify(&*found.train).is_empty());

    // Not kept in memory: what its header does not betray is found when it is read.
    let later = open(path, &OpenOptions { keep_bytes: 0, ..OpenOptions::default() })?;
    let mut all: BTreeSet<String> = later.report.bad_files.into_iter().map(|b| b.id).collect();
    all.extend(verify(&*later.train).into_iter().map(|(id, _)| id));
    ensure!(all == broken, "missing {:?}, too many {:?}", broken.difference(&all), all.difference(&broken));

    let strict = open(path, &OpenOptions { strict: true, ..OpenOptions::default() });
    let told = strict.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(broken.iter().any(|b| told.contains(b.as_str())), "{told}");
    Ok(())
}
