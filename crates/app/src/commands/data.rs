//! `data`: list, fetch, info, check, convert, split.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use twinsight_datasets::{Dataset, OpenOptions, duplicates, hold_out, open, packed, shards};

use super::list;
use crate::cli::{ConvertArgs, DataCommand, ListArgs, Listed, SplitArgs};
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// An unknown name, a download that failed, a folder without images.
pub fn run(command: &DataCommand, output: &Output) -> Result<ExitCode> {
    match command {
        DataCommand::List => list::run(&ListArgs { what: Listed::Datasets, method: String::new(), markdown: false }, output),
        DataCommand::Fetch { names, dir } => fetch(names, dir.as_deref(), output),
        DataCommand::Info { data, strict } => info(data, *strict, output),
        DataCommand::Check { data, strict } => check(data, *strict, output),
        DataCommand::Convert(args) => convert(args, output),
        DataCommand::Split(args) => split(args, output),
    }
}

#[cfg(feature = "download")]
fn fetch(names: &[String], dir: Option<&Path>, output: &Output) -> Result<ExitCode> {
    use twinsight_datasets::remote::Network;
    use twinsight_datasets::{data_dir, datasets, download};

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

    let specs = names.iter().map(|name| datasets(name)).collect::<Result<Vec<_>, _>>()?.concat();
    let dir = dir.map_or_else(data_dir, Path::to_path_buf);
    let mut fetched = Vec::new();
    for spec in specs {
        let files = if Network::of_process().offline {
            download::present(spec, &dir)?
        } else {
            let bar = indicatif::ProgressBar::new(0);
            let template = "{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
            if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            let files = download::fetch(spec, &dir, &mut Bar(bar.clone()))?;
            bar.finish_and_clear();
            files
        };
        output.say(format!("{}: {} files in {}", spec.name, files.len(), dir.join(spec.folder()).display()));
        output.say(format!("  licence: {}; cite: {}", spec.licence, spec.citation));
        fetched.push(json!({"name": spec.name, "files": files, "licence": spec.licence, "citation": spec.citation}));
    }
    output.finish(&json!({"fetched": fetched}))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "download"))]
fn fetch(_: &[String], _: Option<&Path>, _: &Output) -> Result<ExitCode> {
    anyhow::bail!("this build of twinsight can't download; build it with the feature `download`")
}

/// Images of a large table that `data info` looks at.
const SAMPLE: usize = 1000;

fn info(data: &str, strict: bool, output: &Output) -> Result<ExitCode> {
    let opened = open(data, &OpenOptions { strict, sample: Some(SAMPLE), ..OpenOptions::default() })?;
    let train = &opened.train;
    let classes = train.classes();
    let (mut images, mut tests) = (train.len(), opened.test.as_ref().map(|t| t.len()));
    let looked_at = images + tests.unwrap_or(0);
    if let Some(whole) = &opened.report.whole {
        (images, tests) = (whole.train, whole.test);
    }
    output.say(format!("{data}: {images} training images, {} test images", tests.unwrap_or(0)));
    output.say(format!(
        "channels: {}; size: {}",
        train.channels(),
        train.side().map_or("differs".into(), |(w, h)| format!("{w} × {h}"))
    ));
    if opened.report.whole.is_some() {
        output.say(format!("channels, size and what can't be read are those of {looked_at} images; `data check` looks at all"));
    }
    output.say(format!("labels: {}", opened.report.understood));
    let mut counts = serde_json::Map::new();
    if let Some(classes) = classes {
        let mut found = vec![0_usize; classes.len()];
        for label in (0..train.len()).filter_map(|i| train.label(i)) {
            found[label as usize] += 1;
        }
        if let Some(whole) = &opened.report.whole {
            found = classes.iter().map(|name| whole.classes.get(name).copied().unwrap_or(0)).collect();
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
        "name": data, "train": images, "test": tests, "looked_at": looked_at, "channels": train.channels(),
        "side": train.side(), "labels": opened.report.understood, "classes": counts,
        "bad_files": opened.report.bad_files.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// The exit code of `data check` when files can't be read.
const BAD_FILES: u8 = 1;

fn check(data: &str, strict: bool, output: &Output) -> Result<ExitCode> {
    // Decoded once here, and not kept.
    let opened = open(data, &OpenOptions { strict, keep_bytes: 0, ..OpenOptions::default() })?;
    let mut bad: Vec<String> = opened.report.bad_files.iter().map(ToString::to_string).collect();
    let mut parts: Vec<(&str, &dyn Dataset)> = vec![("train", &*opened.train)];
    parts.extend(opened.test.as_ref().map(|t| ("test", &**t)));
    let several = parts.len() > 1;
    let named = |part: usize, id: &str| if several { format!("{}: {id}", parts[part].0) } else { id.to_string() };
    let found = duplicates::check(&parts.iter().map(|(_, d)| *d).collect::<Vec<_>>());
    if let (true, Some((_, first))) = (strict, found.bad.first()) {
        bail!("{data}: {first}");
    }
    let images = parts.iter().map(|(_, d)| d.len()).sum::<usize>() - found.bad.len();
    bad.extend(found.bad.iter().map(|(part, b)| named(*part, &b.to_string())));
    // Groups within a split, and those of which some images are trained on and others tested on.
    let divide = |what: &str, groups: &[Vec<duplicates::Place>]| {
        let (mut within, mut across) = (Vec::new(), Vec::new());
        for group in groups {
            let leaks = group.iter().any(|&(part, _)| part != group[0].0);
            let ids: Vec<String> = group.iter().map(|&(part, i)| named(part, &parts[part].1.id(i))).collect();
            let leak = if leaks { ", in training and test images" } else { "" };
            output.say(format!("{what}{leak}: {}", ids.join(", ")));
            if leaks { across.push(ids) } else { within.push(ids) }
        }
        (within, across)
    };
    let (exact, exact_leaks) = divide("the same", &found.exact);
    let (near, near_leaks) = divide("nearly the same", &found.near);
    bad.iter().for_each(|b| output.say(format!("can't be read: {b}")));
    output.say(format!(
        "{data}: {images} images can be read, {} can't; {} groups of the same pixels, {} of nearly the same",
        bad.len(),
        exact.len() + exact_leaks.len(),
        near.len() + near_leaks.len()
    ));
    if several {
        let leaks = exact_leaks.len() + near_leaks.len();
        output.say(format!("{leaks} of these groups have both training and test images"));
    }
    let leaks = json!({"exact": exact_leaks, "near": near_leaks});
    output.finish(&json!({"name": data, "images": images, "bad_files": bad, "exact": exact, "near": near, "leaks": leaks}))?;
    Ok(if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(BAD_FILES) })
}

fn convert(args: &ConvertArgs, output: &Output) -> Result<ExitCode> {
    let opened = open(&args.data, &OpenOptions { strict: args.strict, keep_bytes: 0, ..OpenOptions::default() })?;
    let mut skipped = Output::skipped(&opened.report.bad_files);
    let mut parts: Vec<(&str, &dyn Dataset)> = vec![("train", &*opened.train)];
    parts.extend(opened.test.as_ref().map(|t| ("test", &**t)));
    let (mut images, mut files) = (0, Vec::new());
    if args.out.extension().is_some_and(|e| e == "safetensors") {
        let own = opened.train.side().map(|(w, h)| w.min(h)).filter(|&s| s <= 64);
        let size = args.size.or(own).unwrap_or(256);
        let done = packed::pack(&parts, size, &args.out, args.strict)?;
        skipped += Output::skipped(&done.bad);
        images += done.images;
        files.push(args.out.clone());
    } else if let Some(size) = args.size {
        bail!("--size {size} is for packed files, which end in .safetensors; shards keep the images as they are");
    } else {
        for (split, part) in parts {
            let done = shards::write(part, split, args.shard, &args.out, args.strict)?;
            skipped += Output::skipped(&done.bad);
            images += done.images;
            files.extend(done.files);
        }
    }
    output.say(format!("{images} images in {} files under {}; {skipped} left out", files.len(), args.out.display()));
    output.finish(&json!({"images": images, "files": files, "skipped": skipped}))?;
    Ok(ExitCode::SUCCESS)
}

fn split(args: &SplitArgs, output: &Output) -> Result<ExitCode> {
    let data = args.data.display().to_string();
    if args.out.extension().is_none_or(|e| e != "csv") {
        bail!("{}: expected a file ending in .csv", args.out.display());
    }
    let taken = || format!("{}: is there already; choose another name", args.out.display());
    if args.out.symlink_metadata().is_ok() {
        bail!(taken());
    }
    let opened = open(&data, &OpenOptions { keep_bytes: 0, ..OpenOptions::default() })?;
    if opened.test.is_some() {
        bail!("{data}: has test images already");
    }
    let skipped = Output::skipped(&opened.report.bad_files);
    let (train, test) = hold_out(opened.train.clone(), args.test, args.seed)?;
    // Paths count from the manifest's folder, and are absolute where the images do not lie below it.
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let full = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    let to = full(folder)?;
    let mut table = vec![["path", "label", "split"].map(String::from)];
    for (name, part) in [("train", &train), ("test", &test)] {
        for i in 0..part.len() {
            let label = part.label(i).and_then(|l| part.classes()?.get(l as usize).cloned()).unwrap_or_default();
            let Some(file) = part.file(i) else {
                bail!("{data}: its images are no files ({}); write shards or a packed file with `data convert`", part.id(i));
            };
            // The folder is made whole and the file's own name kept: a link stays a link.
            let parent = full(file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
            let path = parent.join(file.file_name().unwrap_or_default());
            let path = path.strip_prefix(&to).unwrap_or(&path);
            table.push([path.display().to_string(), label, name.into()]);
        }
    }
    let text: String = table.iter().map(|row| row.each_ref().map(|field| quoted(field)).join(",") + "\n").collect();
    write_new(&args.out, text.as_bytes()).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => anyhow::anyhow!(taken()),
        _ => anyhow::Error::new(e).context(args.out.display().to_string()),
    })?;
    output.say(format!("{} training and {} test images in {}", train.len(), test.len(), args.out.display()));
    output.finish(&json!({"train": train.len(), "test": test.len(), "skipped": skipped, "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that is not there yet; nothing is left of one that can't be finished.
fn write_new(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    let written = std::io::Write::write_all(&mut file, text).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

/// A field of a CSV file (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_string() }
}
