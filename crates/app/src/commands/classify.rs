//! `classify`: classes of images from a few labelled ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_datasets::{Dataset, LabelMode, LevelRange, OpenOptions, Subset, folder, open};
use twinsight_knn::spread_of_seeds;
use twinsight_train::evaluate::Features;
use twinsight_train::few::{FewLabels, Guess, ImageFiles, Share, balanced, identity};

use super::{trained, write_table};
use crate::cli::ClassifyArgs;
use crate::output::Output;

/// Images a forward pass.
const BATCH: usize = 256;
/// The share of kept images that should be right, under `--abstain auto`.
const WANTED: f64 = 0.9;

/// Runs it.
///
/// # Errors
/// Labels that name no image or one class only, nothing to classify, more neighbours than labelled images.
pub fn run(args: &ClassifyArgs, output: &Output) -> Result<ExitCode> {
    let abstain = abstain(&args.abstain)?;
    let trained = trained(&args.run, &args.vectors.on)?.with_features(args.vectors.features.parse()?)?;
    let source = labelled(args, &trained)?;
    let queries = queries(args, &trained)?;
    let mut draws = Vec::new();
    for seed in args.seed..args.seed + args.seeds {
        let dataset = match args.per_class {
            Some(count) => Arc::new(balanced(&source.dataset, Share::PerClass(count), seed)?) as Arc<dyn Dataset>,
            None => source.dataset.clone(),
        };
        let bank = trained.embed(&*dataset, BATCH)?;
        draws.push((Images { dataset, ..source.clone() }, bank));
    }
    let rows = trained.embed(&*queries.dataset, BATCH)?;
    let unreadable = draws.iter().flat_map(|d| &d.1.bad).chain(&rows.bad);
    let skipped = Output::skipped(unreadable.map(|(id, reason)| format!("{id}: {reason}")));
    let mut accuracies = Vec::new();
    let mut first = None;
    for (source, bank) in draws {
        let drawn = Drawn::new(source, bank, args, abstain, &queries, &rows)?;
        let judged = drawn.judge(&queries, &rows);
        accuracies.extend(judged.as_ref().map(|j| j.all));
        first.get_or_insert((drawn, judged));
    }
    let Some((drawn, judged)) = first else { bail!("--seeds 0: expected 1 or more draws") };
    tell(args, &drawn, judged, &accuracies, (&queries, &rows), skipped, output)
}

/// The threshold of `--abstain`; `None` for `auto`.
fn abstain(text: &str) -> Result<Option<f32>> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(Some(share)),
        Err(_) if text == "auto" => Ok(None),
        _ => bail!("--abstain {text}: expected a share of the votes, 0 to 1, or `auto`"),
    }
}

/// Images with what is needed to know each by itself.
#[derive(Clone)]
struct Images {
    dataset: Arc<dyn Dataset>,
    /// The folder that names of images count from.
    root: Option<PathBuf>,
    /// What they were opened as.
    source: String,
}

impl Images {
    fn identity(&self, index: usize) -> String {
        identity(&*self.dataset, index, self.root.as_deref(), &self.source)
    }

    /// Opens a folder, file or data set; `test` asks for its test images.
    fn open(name: &str, labels: LabelMode, levels: Option<LevelRange>, test: bool) -> Result<(Self, String)> {
        let opened = open(name, &OpenOptions { labels, levels, ..OpenOptions::default() })?;
        Output::skipped(&opened.report.bad_files);
        let path = Path::new(name);
        let splits = if path.is_dir() { Some(folder::splits(path)?.0) } else { None };
        let root = match splits {
            Some(splits) if test => splits.test,
            Some(splits) => Some(splits.train),
            None => path.parent().filter(|_| path.is_file()).map(Path::to_path_buf),
        };
        let dataset = match (test, opened.test) {
            (false, _) => opened.train,
            (true, Some(test)) => test,
            (true, None) => bail!("{name} has no test images"),
        };
        let whole = path.canonicalize().map_or_else(|_| name.to_string(), |p| p.display().to_string());
        let source = format!("{whole} {}", if test { "test" } else { "train" });
        Ok((Self { dataset, root, source }, opened.report.understood))
    }
}

/// A draw of labelled images, and what it takes the queries for.
struct Drawn {
    labelled: Images,
    few: FewLabels,
    guesses: Vec<Guess>,
    /// Votes that a class must have.
    least: f32,
    /// How many of the queries are labelled images themselves.
    own: usize,
}

impl Drawn {
    fn new(
        labelled: Images,
        bank: Features,
        args: &ClassifyArgs,
        abstain: Option<f32>,
        queries: &Images,
        rows: &Features,
    ) -> Result<Self> {
        let names = (0..).zip(&bank.index).map(|(row, &i): (u32, _)| (labelled.identity(i), row));
        let known: BTreeMap<String, u32> = names.collect();
        let own: Vec<Option<u32>> = rows.index.iter().map(|&i| known.get(&queries.identity(i)).copied()).collect();
        let classes = labelled.dataset.classes().unwrap_or_default().to_vec();
        let few = FewLabels::new(bank, classes, args.k)?;
        let guesses = few.classify(rows.matrix(), &own)?;
        let least = match abstain {
            Some(least) => least,
            None => few.threshold(WANTED)?.threshold,
        };
        Ok(Self { labelled, few, guesses, least, own: own.iter().flatten().count() })
    }

    fn kept(&self, guess: &Guess) -> bool {
        guess.confidence >= self.least
    }

    /// Judges the guesses where the images have labels themselves, by the classes' names.
    fn judge(&self, queries: &Images, rows: &Features) -> Option<Judged> {
        let (guesses, labels, classes) = (&self.guesses, &rows.labels, self.few.classes());
        let names = queries.dataset.classes().filter(|_| labels.len() == guesses.len())?;
        let right = |i: usize| names.get(labels[i] as usize).is_some_and(|n| *n == classes[guesses[i].class as usize]);
        let kept: Vec<usize> = (0..guesses.len()).filter(|&i| self.kept(&guesses[i])).collect();
        let share = |of: usize, all: usize| if all == 0 { None } else { Some(of as f64 / all as f64) };
        let present = |c: usize| labels.iter().any(|&l| l as usize == c);
        let labelled: std::collections::BTreeSet<&str> = (0..self.labelled.dataset.len())
            .filter_map(|i| self.labelled.dataset.label(i))
            .map(|l| classes[l as usize].as_str())
            .collect();
        let unknown = names.iter().enumerate().filter(|(c, n)| !labelled.contains(n.as_str()) && present(*c));
        Some(Judged {
            all: share((0..guesses.len()).filter(|&i| right(i)).count(), guesses.len())?,
            kept: share(kept.iter().filter(|&&i| right(i)).count(), kept.len()),
            unknown: unknown.map(|(_, n)| n.clone()).collect(),
        })
    }
}

/// How often guesses are right.
struct Judged {
    all: f64,
    /// `None` where none is kept.
    kept: Option<f64>,
    /// Classes of the images that no labelled image has.
    unknown: Vec<String>,
}

fn tell(
    args: &ClassifyArgs,
    drawn: &Drawn,
    judged: Option<Judged>,
    accuracies: &[f64],
    (queries, rows): (&Images, &Features),
    skipped: usize,
    output: &Output,
) -> Result<ExitCode> {
    let Drawn { labelled, few, guesses, least, own } = drawn;
    output.say(format!(
        "{} labelled images of {} classes; k = {}, temperature = {}; left out in turn, {:.1} % of them are recognised",
        labelled.dataset.len(),
        few.classes().len(),
        few.k,
        few.temperature,
        few.left_out * 100.0
    ));
    if *own > 0 {
        output.say(format!(
            "{own} of the images to classify are labelled ones themselves; each is classified without its own label"
        ));
    }
    let coverage = few.coverage()?;
    if args.abstain == "auto" {
        output.say("abstaining, told from the labelled images alone (each left out of its own vote):");
        for line in &coverage {
            output.say(format!(
                "  from {:.2} of the votes: {:5.1} % kept, {:5.1} % of them right",
                line.threshold,
                line.coverage * 100.0,
                line.accuracy * 100.0
            ));
        }
    }
    let name = |class: u32| few.classes()[class as usize].as_str();
    let table = |i: usize| {
        let guess = &guesses[i];
        let class = if drawn.kept(guess) { name(guess.class) } else { "" };
        let nearest = labelled.dataset.id(few.labelled_image(guess.nearest.0));
        vec![queries.dataset.id(rows.index[i]), class.to_string(), format!("{:.4}", guess.confidence), nearest]
    };
    let abstained = guesses.iter().filter(|g| !drawn.kept(g)).count();
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
    if *least > 0.0 {
        output.say(format!("{abstained} of {} images are left to you: less than {least} of the votes", guesses.len()));
    }
    let mut line = json!({
        "images": guesses.len(), "labelled": labelled.dataset.len(), "labelled_queries": own, "k": few.k, "temperature": plain(few.temperature),
        "left_out": few.left_out, "threshold": plain(*least), "coverage": coverage, "abstained": abstained, "skipped": skipped,
        "out": args.out,
    });
    if let Some(judged) = judged {
        for class in &judged.unknown {
            Output::warn(format!("class {class} has no labelled image; its images count as mistaken"));
        }
        let kept = match judged.kept {
            Some(kept) => format!("{:.1} % of the {} kept", kept * 100.0, guesses.len() - abstained),
            None => "none is kept".to_string(),
        };
        output.say(format!("accuracy {:.1} % of all images, {kept}", judged.all * 100.0));
        line["accuracy"] = json!(judged.all);
        line["accuracy_kept"] = json!(judged.kept);
        line["unknown_classes"] = json!(judged.unknown);
        if let Some(spread) = spread_of_seeds(accuracies) {
            output.say(format!(
                "over {} draws of labels: {:.1} % (95 % interval {:.1} to {:.1}, Student's t)",
                accuracies.len(),
                spread.mean * 100.0,
                spread.low * 100.0,
                spread.high * 100.0
            ));
            line["over_draws"] = json!({"draws": accuracies.len(), "mean": spread.mean, "low": spread.low, "high": spread.high, "each": accuracies});
        }
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

/// As it is written: 0.03, not the nearest `f32` in sixteen digits.
fn plain(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The images that labels are taken from.
fn labelled(args: &ClassifyArgs, trained: &twinsight_train::Trained) -> Result<Images> {
    let path = Path::new(&args.labels);
    let manifest = path.is_file() && path.extension().is_none_or(|e| e.eq_ignore_ascii_case("csv"));
    if manifest {
        if args.per_class.is_some() {
            bail!("--per-class takes some of a folder or data set; {} names its images itself", path.display());
        }
        let dataset = Arc::new(ImageFiles::from_csv(path, trained.plan.channels)?.with_levels(trained.levels));
        return Ok(Images { dataset, root: None, source: args.labels.clone() });
    }
    let labels = if path.is_dir() { LabelMode::Folder } else { LabelMode::Auto };
    let (images, understood) = Images::open(&args.labels, labels, trained.levels, false)?;
    if images.dataset.classes().map_or(0, <[String]>::len) < 2 {
        bail!("{}: labels of at least 2 classes are needed ({understood})", args.labels);
    }
    Ok(images)
}

/// The images to classify.
fn queries(args: &ClassifyArgs, trained: &twinsight_train::Trained) -> Result<Images> {
    if let Some(name) = &args.data {
        if !args.images.is_empty() {
            bail!("images were named and --data was given: expected one of the two");
        }
        let (images, _) = Images::open(name, LabelMode::Auto, trained.levels, args.test)?;
        let dataset: Arc<dyn Dataset> = match args.limit {
            Some(limit) => Arc::new(Subset::limited(images.dataset, limit)?),
            None => images.dataset,
        };
        return Ok(Images { dataset, ..images });
    }
    if let [folder] = args.images.as_slice()
        && folder.is_dir()
    {
        return Ok(Images::open(&folder.display().to_string(), LabelMode::None, trained.levels, false)?.0);
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
    let files = ImageFiles::new("images", files, trained.plan.channels).with_levels(trained.levels);
    Ok(Images { dataset: Arc::new(files), root: None, source: "images".into() })
}
