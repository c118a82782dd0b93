//! `data`: list, fetch, info, check, convert, split.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use twinsight_datasets::{Dataset, OpenOptions, duplicates, hold_out, open, packed, shards};
use twinsight_nn::write_atomic;

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
        DataCommand::Fetch { names, dir, offline } => fetch(names, dir.as_deref(), *offline, output),
        DataCommand::Info { data, strict } => info(data, *strict, output),
        DataCommand::Check { data, strict } => check(data, *strict, output),
        DataCommand::Convert(args) => convert(args, output),
        DataCommand::Split(args) => split(args, output),
    }
}

#[cfg(feature = "download")]
fn fetch(names: &[String], dir: Option<&Path>, offline: bool, output: &Output) -> Result<ExitCode> {
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

    let specs = names.iter().map(|name| dataset(name)).collect::<Result<Vec<_>, _>>()?;
    let dir = dir.map_or_else(data_dir, Path::to_path_buf);
    let mut fetched = Vec::new();
    for spec in specs {
        let files = if offline {
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
fn fetch(_: &[String], _: Option<&Path>, _: bool, _: &Output) -> Result<ExitCode> {
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

fn check(data: &str, strict: bool, output: &Output) -> Result<ExitCode> {
    // Decoded once here, and not kept.
    let opened = open(data, &OpenOptions { strict, keep_bytes: 0, ..OpenOptions::default() })?;
    let mut bad: Vec<String> = opened.report.bad_files.iter().map(ToString::to_string).collect();
    let (mut exact, mut near) = (Vec::new(), Vec::new());
    let mut images = 0;
    for (split, part) in [("train", Some(&opened.train)), ("test", opened.test.as_ref())] {
        let Some(part) = part else { continue };
        let found = duplicates::check(&**part);
        if let (true, Some(first)) = (strict, found.bad.first()) {
            bail!("{data}: {first}");
        }
        images += part.len() - found.bad.len();
        bad.extend(found.bad.iter().map(ToString::to_string));
        let named = |groups: Vec<Vec<usize>>| -> Vec<Vec<String>> {
            groups.into_iter().map(|g| g.into_iter().map(|i| part.id(i)).collect()).collect()
        };
        for (what, groups, all) in
            [("the same", named(found.exact), &mut exact), ("nearly the same", named(found.near), &mut near)]
        {
            for group in groups {
                output.say(format!("{what} ({split}): {}", group.join(", ")));
                all.push(group);
            }
        }
    }
    bad.iter().for_each(|b| output.say(format!("can't be read: {b}")));
    output.say(format!(
        "{data}: {images} images can be read, {} can't; {} groups of the same pixels, {} of nearly the same",
        bad.len(),
        exact.len(),
        near.len()
    ));
    output.finish(&json!({"name": data, "images": images, "bad_files": bad, "exact": exact, "near": near}))?;
    Ok(ExitCode::SUCCESS)
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
    if !args.data.is_dir() {
        bail!("{data}: is no folder; only the files of a folder can be listed in a manifest");
    }
    if args.out.extension().is_none_or(|e| e != "csv") {
        bail!("{}: expected a file ending in .csv", args.out.display());
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
    let (from, to) = (full(&args.data)?, full(folder)?);
    let base = from.strip_prefix(&to).unwrap_or(&from);
    let mut table = vec![["path", "label", "split"].map(String::from)];
    for (name, part) in [("train", &train), ("test", &test)] {
        for i in 0..part.len() {
            let label = part.label(i).and_then(|l| part.classes()?.get(l as usize).cloned()).unwrap_or_default();
            let path = base.join(part.id(i));
            if !from.join(part.id(i)).is_file() {
                bail!("{data}: its images are no files ({}); write shards or a packed file with `data convert`", part.id(i));
            }
            table.push([path.display().to_string(), label, name.into()]);
        }
    }
    let text: String = table.iter().map(|row| row.each_ref().map(|field| quoted(field)).join(",") + "\n").collect();
    write_atomic(&args.out, |out| std::io::Write::write_all(out, text.as_bytes()))?;
    output.say(format!("{} training and {} test images in {}", train.len(), test.len(), args.out.display()));
    output.finish(&json!({"train": train.len(), "test": test.len(), "skipped": skipped, "out": args.out}))?;
    Ok(ExitCode::SUCCESS)
}

/// A field of a CSV file (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_string() }
}
