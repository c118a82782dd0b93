//! `data`: list, fetch, info.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use twinsight_datasets::{OpenOptions, open};

use super::list;
use crate::cli::{DataCommand, ListArgs, Listed};
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// An unknown name, a download that failed, a folder without images.
pub fn run(command: &DataCommand, output: &Output) -> Result<ExitCode> {
    match command {
        DataCommand::List => list::run(&ListArgs { what: Listed::Datasets, method: String::new(), markdown: false }, output),
        DataCommand::Fetch { name, dir } => fetch(name, dir.as_deref(), output),
        DataCommand::Info { data, strict } => info(data, *strict, output),
    }
}

#[cfg(feature = "download")]
fn fetch(name: &str, dir: Option<&std::path::Path>, output: &Output) -> Result<ExitCode> {
    use twinsight_datasets::{data_dir, dataset, download};

    struct Bar(indicatif::ProgressBar);
    impl download::Progress for Bar {
        fn start(&mut self, file: &str, total: Option<u64>, already: u64) {
            self.0.set_length(total.unwrap_or(0));
            self.0.set_position(already);
            self.0.set_message(file.to_string());
        }
        fn advance(&mut self, bytes: u64) {
            self.0.inc(bytes);
        }
        fn note(&mut self, text: &str) {
            self.0.suspend(|| eprintln!("{text}"));
        }
    }

    let spec = dataset(name)?;
    let bar = indicatif::ProgressBar::new(0);
    if let Ok(style) = indicatif::ProgressStyle::with_template("{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let dir = dir.map_or_else(data_dir, std::path::Path::to_path_buf);
    let files = download::fetch(spec, &dir, &mut Bar(bar.clone()))?;
    bar.finish_and_clear();
    output.say(format!("{name}: {} files in {}", files.len(), dir.join(name).display()));
    output.finish(&json!({"name": name, "files": files}))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "download"))]
fn fetch(_: &str, _: Option<&std::path::Path>, _: &Output) -> Result<ExitCode> {
    anyhow::bail!("this build of twinsight can't download; build it with the feature `download`")
}

fn info(data: &str, strict: bool, output: &Output) -> Result<ExitCode> {
    let opened = open(data, &OpenOptions { strict, ..OpenOptions::default() })?;
    let train = &opened.train;
    let classes = train.classes();
    output.say(format!("{data}: {} training images, {} test images", train.len(), opened.test.as_ref().map_or(0, |t| t.len())));
    output.say(format!(
        "channels: {}; size: {}",
        train.channels(),
        train.side().map_or("differs".into(), |(w, h)| format!("{w} × {h}"))
    ));
    output.say(format!("labels: {}", opened.report.understood));
    let mut counts = serde_json::Map::new();
    if let Some(classes) = classes {
        let mut found = vec![0_usize; classes.len()];
        for label in (0..train.len()).filter_map(|i| train.label(i)) {
            found[label as usize] += 1;
        }
        for (name, count) in classes.iter().zip(found) {
            output.say(format!("  {name}: {count}"));
            counts.insert(name.clone(), json!(count));
        }
    }
    for bad in &opened.report.bad_files {
        output.say(format!("can't be read: {bad}"));
    }
    output.finish(&json!({
        "name": data, "train": train.len(), "test": opened.test.as_ref().map(|t| t.len()), "channels": train.channels(),
        "side": train.side(), "labels": opened.report.understood, "classes": counts,
        "bad_files": opened.report.bad_files.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }))?;
    Ok(ExitCode::SUCCESS)
}
