//! `classify`: classes of images from a few labelled ones.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_datasets::{Dataset, LabelMode, OpenOptions, Subset, open};
use twinsight_train::Trained;
use twinsight_train::few::{FewLabels, ImageFiles, Share, balanced};

use super::write_table;
use crate::cli::ClassifyArgs;
use crate::output::Output;

/// Images a forward pass.
const BATCH: usize = 256;

/// Runs it.
///
/// # Errors
/// Labels that name no image or one class only, nothing to classify, more neighbours than labelled images.
pub fn run(args: &ClassifyArgs, output: &Output) -> Result<ExitCode> {
    if !(0.0..=1.0).contains(&args.abstain) {
        bail!("--abstain {}: expected a share of the votes, 0 to 1", args.abstain);
    }
    let trained = Trained::load(&args.run)?.with_features(args.features.parse()?)?;
    let channels = trained.plan.channels;
    let labelled = labelled(args, channels)?;
    let queries = queries(args, channels)?;
    let bank = trained.embed(&*labelled, BATCH)?;
    let mut skipped = Output::skipped(bank.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    let classes = labelled.classes().unwrap_or_default().to_vec();
    let few = FewLabels::new(bank, classes, args.k)?;
    let rows = trained.embed(&*queries, BATCH)?;
    skipped += Output::skipped(rows.bad.iter().map(|(id, reason)| format!("{id}: {reason}")));
    let guesses = few.classify(rows.matrix())?;

    output.say(format!(
        "{} labelled images of {} classes; k = {}, temperature = {}; left out in turn, {:.1} % of them are recognised",
        labelled.len(),
        few.classes().len(),
        few.k,
        few.temperature,
        few.left_out * 100.0
    ));
    let name = |class: u32| few.classes()[class as usize].as_str();
    let kept = |confidence: f32| confidence >= args.abstain;
    let table = |i: usize| {
        let guess = &guesses[i];
        let class = if kept(guess.confidence) { name(guess.class) } else { "" };
        let nearest = labelled.id(few.labelled_image(guess.nearest.0));
        vec![queries.id(rows.index[i]), class.to_string(), format!("{:.4}", guess.confidence), nearest]
    };
    let abstained = guesses.iter().filter(|g| !kept(g.confidence)).count();
    let judged = judge(&*queries, &rows.labels, &guesses, few.classes(), args.abstain);
    if let Some(out) = &args.out {
        write_table(out, &["image", "class", "confidence", "nearest"], (0..guesses.len()).map(table))?;
        output.say(format!("{} images classified in {}", guesses.len(), out.display()));
    } else if judged.is_none() {
        for i in 0..guesses.len() {
            let line = table(i);
            let class = if line[1].is_empty() { "unsure" } else { &line[1] };
            output.say(format!("{}  {class}  {}  (like {})", line[0], line[2], line[3]));
        }
    }
    if args.abstain > 0.0 {
        output.say(format!("{abstained} of {} images are left to you: less than {} of the votes", guesses.len(), args.abstain));
    }
    let mut line = json!({
        "images": guesses.len(), "labelled": labelled.len(), "k": few.k, "temperature": few.temperature, "left_out": few.left_out,
        "abstained": abstained, "skipped": skipped, "out": args.out,
    });
    if let Some(judged) = judged {
        for class in &judged.unknown {
            Output::warn(format!("class {class} has no labelled image; its images count as mistaken"));
        }
        output.say(format!(
            "accuracy {:.1} % of all images, {:.1} % of the {} kept",
            judged.all * 100.0,
            judged.kept * 100.0,
            guesses.len() - abstained
        ));
        line["accuracy"] = json!(judged.all);
        line["accuracy_kept"] = json!(judged.kept);
        line["unknown_classes"] = json!(judged.unknown);
    } else if args.out.is_none() {
        line["classes"] = (0..guesses.len())
            .map(|i| {
                let row = table(i);
                json!({"image": row[0], "class": (!row[1].is_empty()).then(|| &row[1]), "confidence": guesses[i].confidence, "nearest": row[3]})
            })
            .collect();
    }
    output.finish(&line)?;
    Ok(ExitCode::SUCCESS)
}

/// The labelled images.
fn labelled(args: &ClassifyArgs, channels: usize) -> Result<Arc<dyn Dataset>> {
    let path = Path::new(&args.labels);
    if path.is_file() {
        if args.per_class.is_some() {
            bail!("--per-class takes some of a folder or data set; {} names its images itself", path.display());
        }
        return Ok(Arc::new(ImageFiles::from_csv(path, channels)?));
    }
    let labels = if path.is_dir() { LabelMode::Folder } else { LabelMode::Auto };
    let opened = open(&args.labels, &OpenOptions { labels, ..OpenOptions::default() })?;
    Output::skipped(&opened.report.bad_files);
    if opened.train.classes().map_or(0, <[String]>::len) < 2 {
        bail!("{}: labels of at least 2 classes are needed ({})", args.labels, opened.report.understood);
    }
    Ok(match args.per_class {
        Some(count) => Arc::new(balanced(&opened.train, Share::PerClass(count), args.seed)?),
        None => opened.train,
    })
}

/// The images to classify.
fn queries(args: &ClassifyArgs, channels: usize) -> Result<Arc<dyn Dataset>> {
    if let Some(name) = &args.data {
        if !args.images.is_empty() {
            bail!("images were named and --data was given: expected one of the two");
        }
        let opened = open(name, &OpenOptions::default())?;
        Output::skipped(&opened.report.bad_files);
        let whole = match (args.test, opened.test) {
            (false, _) => opened.train,
            (true, Some(test)) => test,
            (true, None) => bail!("{name} has no test images"),
        };
        return Ok(match args.limit {
            Some(limit) => Arc::new(Subset::limited(whole, limit)?),
            None => whole,
        });
    }
    if let [folder] = args.images.as_slice()
        && folder.is_dir()
    {
        let name = folder.display().to_string();
        let opened = open(&name, &OpenOptions { labels: LabelMode::None, ..OpenOptions::default() })?;
        Output::skipped(&opened.report.bad_files);
        return Ok(opened.train);
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for path in &args.images {
        if path.is_dir() {
            bail!("{}: is a folder; name one folder, or files", path.display());
        }
        if !path.is_file() {
            bail!("{}: no such image or folder", path.display());
        }
        files.push(path.clone());
    }
    if files.is_empty() {
        bail!("nothing to classify: name images or folders, or a data set by --data");
    }
    Ok(Arc::new(ImageFiles::new("images", files, channels)))
}

/// How often guesses are right.
struct Judged {
    all: f64,
    kept: f64,
    /// Classes of the images that no labelled image has.
    unknown: Vec<String>,
}

/// Judges guesses where the images have labels themselves, by the classes' names.
fn judge(
    queries: &dyn Dataset,
    labels: &[u32],
    guesses: &[twinsight_train::few::Guess],
    classes: &[String],
    least: f32,
) -> Option<Judged> {
    let names = queries.classes().filter(|_| labels.len() == guesses.len())?;
    let right = |i: usize| names.get(labels[i] as usize).is_some_and(|n| *n == classes[guesses[i].class as usize]);
    let kept: Vec<usize> = (0..guesses.len()).filter(|&i| guesses[i].confidence >= least).collect();
    let share = |of: usize, all: usize| if all == 0 { 0.0 } else { of as f64 / all as f64 };
    let present = |c: usize| labels.iter().any(|&l| l as usize == c);
    let unknown = names.iter().enumerate().filter(|(c, n)| !classes.contains(n) && present(*c)).map(|(_, n)| n.clone()).collect();
    Some(Judged {
        all: share((0..guesses.len()).filter(|&i| right(i)).count(), guesses.len()),
        kept: share(kept.iter().filter(|&&i| right(i)).count(), kept.len()),
        unknown,
    })
}
