//! Whether training is healthy, told without labels: how far embeddings spread, how evenly prototypes are used, and when to stop with
//! a diagnosis that names the likely cause.

use candle_core::{DType, Tensor};
use twinsight_knn::{Matrix, health};
use twinsight_nn::StateVisitor;
use twinsight_ssl_methods::LossOutput;

use crate::{Diagnosis, Result};

/// Rows of a batch that are measured at most.
const ROWS: usize = 512;

/// How a batch's embeddings are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    /// Mean standard deviation of the dimensions of L2-normalised rows, times √dim: 1 when they fill the sphere, 0 when all
    /// images are mapped to one point (Chen & He 2021, figure 2).
    pub feature_std: f64,
    /// Effective rank of the rows (RankMe, Garrido et al. 2023), between 1 and min(rows, dim).
    pub effective_rank: f64,
    /// The largest that [`Health::effective_rank`] could be.
    pub full_rank: usize,
    /// Log mean exp(−2 d²) over pairs of images (Wang & Isola 2020): 0 for one point, near −4 for an even spread.
    pub uniformity: f64,
    /// Mean squared distance of two views of an image (Wang & Isola 2020): 0 when they fall together, 2 when they have nothing in
    /// common. `None` where the method makes no second view's embedding.
    pub alignment: Option<f64>,
    /// The mean entropy of an image's distribution over prototypes, as a share of its largest value, for methods that have them.
    pub assignment_entropy: Option<f64>,
    /// The share of the prototypes that the batch's images share (perplexity), for methods that have them.
    pub prototype_usage: Option<f64>,
    /// Prototypes, for methods that have them.
    pub prototypes: Option<usize>,
}

impl Health {
    /// Measures what a method made of a batch, or of the first 512 images of it.
    ///
    /// # Errors
    /// Embeddings that are no matrix.
    pub fn of(output: &LossOutput) -> Result<Self> {
        let (first, rows, dim) = table(&output.embedding)?;
        let matrix = Matrix { data: &first, rows, dim };
        let scalar = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.to_dtype(DType::F32)?.to_scalar::<f32>()?)) };
        let finite = first.iter().all(|v| v.is_finite());
        let alignment = match &output.partner {
            Some(partner) if finite => {
                let (second, rows, dim) = table(partner)?;
                let usable = second.iter().all(|v| v.is_finite());
                usable.then(|| health::alignment(matrix, Matrix { data: &second, rows, dim })).transpose()?
            }
            _ => None,
        };
        let std = if finite { health::std_per_dimension(matrix)? } else { vec![f32::NAN; dim] };
        let mean = std.iter().map(|&s| f64::from(s)).sum::<f64>() / dim as f64;
        Ok(Self {
            feature_std: mean * (dim as f64).sqrt(),
            effective_rank: if finite { health::effective_rank(matrix)? } else { f64::NAN },
            full_rank: rows.min(dim),
            uniformity: if finite && rows > 1 { health::uniformity(matrix)? } else { f64::NAN },
            alignment,
            assignment_entropy: output.assignments.as_ref().map(|a| scalar(&a.entropy)).transpose()?,
            prototype_usage: output.assignments.as_ref().map(|a| scalar(&a.usage)).transpose()?,
            prototypes: output.assignments.as_ref().map(|a| a.prototypes),
        })
    }
}

/// The first rows of (N, D) in main memory, how many, and how wide.
fn table(embedding: &Tensor) -> Result<(Vec<f32>, usize, usize)> {
    let (n, dim) = embedding.dims2()?;
    let rows = n.min(ROWS);
    let data = embedding.narrow(0, 0, rows)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok((data, rows, dim))
}

/// Watches losses and health over the steps of a run. Its state is part of the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Watch {
    /// Health measurements in a row that looked collapsed.
    pub collapsed: u64,
    /// The same of embeddings on a line.
    pub flat: u64,
    /// The same of assignments that say nothing.
    pub unassigned: u64,
    /// The same of assignments that are one for all.
    pub single: u64,
    /// The widest spread that was measured.
    pub widest: f64,
    /// Steps that entered [`Watch::start`].
    pub counted: u64,
    /// Mean loss of the first steps.
    pub start: f64,
    /// A moving average of the loss.
    pub average: f64,
}

/// Below this [`Health::feature_std`] the embeddings are one point for all practical purposes (cosine similarity of
/// any two above 0.9996).
const COLLAPSED_STD: f64 = 0.02;
/// Below this they have collapsed if they were ever [`FALL`] times as far apart: some networks start with outputs that are much alike.
const SHRUNK_STD: f64 = 0.05;
/// See [`SHRUNK_STD`].
const FALL: f64 = 5.0;
/// Below this effective rank they lie on a line: healthy runs have tens.
const FLAT_RANK: f64 = 1.5;
/// Beyond this share of its largest value, an assignment's entropy says that all prototypes are alike to every image.
const ALIKE: f64 = 0.9999;
/// Images that share so many prototypes, or fewer, are in truth assigned to one.
const ONE_PROTOTYPE: f64 = 1.05;
/// So many measurements in a row make a collapse: a network starts with similar outputs for all images.
const PATIENCE: u64 = 5;
/// Steps whose mean loss is what a run began with.
const START_STEPS: u64 = 20;

impl Watch {
    /// The diagnosis of a step whose loss is not finite; none for any other.
    pub fn loss(&self, step: u64, loss: f64, lr: f64, method: &str) -> Option<Diagnosis> {
        (!loss.is_finite()).then(|| Diagnosis {
            step,
            finding: format!("the loss of {method} is {loss}"),
            advice: lower_rate(lr),
        })
    }

    /// Takes note of a finite loss. A moving average that has grown far above where the run began is a divergence, named once it lasts.
    pub fn trend(&mut self, step: u64, loss: f64, lr: f64, method: &str) -> Option<Diagnosis> {
        if self.counted < START_STEPS {
            self.start += loss / START_STEPS as f64;
            self.counted += 1;
            self.average = self.start * START_STEPS as f64 / self.counted as f64;
            return None;
        }
        self.average += (loss - self.average) / START_STEPS as f64;
        // Losses may be negative; what they move by is measured by their size.
        let grown = self.average - self.start > 2.0 * self.start.abs().max(1.0);
        grown.then(|| Diagnosis {
            step,
            finding: format!("the loss of {method} grows: {:.3} now, {:.3} at the start", self.average, self.start),
            advice: lower_rate(lr),
        })
    }

    /// The diagnosis of a gradient that is not finite although the loss is: `finding` names the parameter.
    pub fn gradient(&self, step: u64, finding: &str, lr: f64) -> Diagnosis {
        Diagnosis { step, finding: finding.to_string(), advice: lower_rate(lr) }
    }

    /// Judges a health measurement.
    pub fn health(&mut self, step: u64, health: &Health, method: &str) -> Option<Diagnosis> {
        let count = |seen: bool, counter: &mut u64| {
            *counter = if seen { *counter + 1 } else { 0 };
            *counter >= PATIENCE
        };
        let std = health.feature_std;
        self.widest = self.widest.max(std);
        let shrunk = std < SHRUNK_STD && std * FALL < self.widest;
        let point = count(std.is_nan() || std < COLLAPSED_STD || shrunk, &mut self.collapsed);
        let line = count(health.full_rank > 4 && health.effective_rank < FLAT_RANK, &mut self.flat);
        let alike = health.assignment_entropy.is_some_and(|e| e > ALIKE);
        let unassigned = count(alike, &mut self.unassigned);
        let used = health.prototype_usage.zip(health.prototypes).map(|(share, k)| share * k as f64);
        let single = count(used.is_some_and(|used| used <= ONE_PROTOTYPE), &mut self.single);
        let regardless = "A new run with --on-collapse warn trains on regardless";
        if point {
            return Some(Diagnosis {
                step,
                finding: format!(
                    "the embeddings of {method} have collapsed to one point (spread {:.4}, healthy values are 0.1 to 1)",
                    health.feature_std
                ),
                advice: format!("{} {regardless}", cure(method)),
            });
        }
        if line {
            return Some(Diagnosis {
                step,
                finding: format!(
                    "the embeddings of {method} lie on a line (effective rank {:.2} of {})",
                    health.effective_rank, health.full_rank
                ),
                advice: format!("{} {regardless}", cure(method)),
            });
        }
        if single {
            return Some(Diagnosis {
                step,
                finding: format!("{method} assigns all images to one prototype"),
                advice: format!("{} {regardless}", cure(method)),
            });
        }
        unassigned.then(|| Diagnosis {
            step,
            finding: format!("the targets of {method} are the same for all prototypes: images are assigned to nothing"),
            advice: format!("Sharpen them: lower {}, or use fewer prototypes. {regardless}", sharpness(method)),
        })
    }

    /// Shows its counters to `visitor`.
    ///
    /// # Errors
    /// What the visitor says.
    pub fn visit_state(&mut self, visitor: &mut dyn StateVisitor) -> Result<()> {
        visitor.counter("loop.collapsed", &mut self.collapsed)?;
        visitor.counter("loop.flat", &mut self.flat)?;
        visitor.counter("loop.unassigned", &mut self.unassigned)?;
        visitor.counter("loop.single", &mut self.single)?;
        visitor.scalar("loop.widest", &mut self.widest)?;
        visitor.counter("loop.loss_count", &mut self.counted)?;
        visitor.scalar("loop.loss_start", &mut self.start)?;
        Ok(visitor.scalar("loop.loss_average", &mut self.average)?)
    }
}

/// What most likely makes a method collapse, and what to change: every method of the registry, with settings that it has.
fn cure(method: &str) -> &'static str {
    match method {
        "simsiam" => {
            "Lower schedule.lr, keep options.predictor_hidden_dim well below options.projection_dim, or use a larger batch."
        }
        "byol" => "Raise options.momentum, lower schedule.lr, or lengthen schedule.warmup_epochs.",
        "dino" | "ibot" => {
            "Lower schedule.lr, lengthen schedule.warmup_epochs, lower options.teacher_temperature, and check that \
             options.center_momentum is below 1."
        }
        "dinov2" => {
            "Lower schedule.lr, lengthen schedule.warmup_epochs, lower options.teacher_temperature, raise options.koleo_weight, or use \
             a larger batch, over which assignments are balanced."
        }
        "swav" => {
            "Lower schedule.lr, lower options.epsilon, raise options.freeze_prototypes_steps, or give a small batch a queue \
             (options.queue_size)."
        }
        "vicreg" => "Raise options.variance or options.covariance, or lower schedule.lr.",
        "barlow_twins" => "Raise options.lambda, or lower schedule.lr.",
        "lejepa" => "Raise options.lambda or options.slices, or lower schedule.lr.",
        "mae" => "Lower schedule.lr, lengthen schedule.warmup_epochs, or raise options.mask_ratio.",
        "nnclr" => "Raise options.queue_size, lower options.temperature, or use a larger batch.",
        "moco_v2" => "Raise options.queue_size or options.momentum, lower options.temperature, or lower schedule.lr.",
        "moco_v3" => {
            "Lower schedule.lr, raise options.momentum, or use a larger batch (with --micro-batch where memory is short)."
        }
        _ => {
            "Lower schedule.lr or options.temperature, lengthen schedule.warmup_epochs, or use a larger batch (with --micro-batch where \
             memory is short)."
        }
    }
}

/// The setting that sharpens a method's assignments.
fn sharpness(method: &str) -> &'static str {
    if method == "swav" { "options.epsilon" } else { "options.teacher_temperature" }
}

/// What to do when numbers grow beyond all bounds at learning rate `lr`.
fn lower_rate(lr: f64) -> String {
    format!(
        "Most often the learning rate is too high (it is {lr:.3e}): try --set schedule.lr at a third of it, a longer warm-up \
         (schedule.warmup_epochs), or --set optimizer.clip_norm=3"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use twinsight_ssl_methods::Assignments;

    fn output(embedding: Tensor) -> Result<LossOutput> {
        let loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        Ok(LossOutput { loss, partner: Some(embedding.clone()), embedding, assignments: None, metrics: Vec::new() })
    }

    fn spread() -> Result<LossOutput> {
        let values: Vec<f32> = (0..64 * 16).map(|i| ((i * 7919 % 1009) as f32 / 504.5) - 1.0).collect();
        output(Tensor::from_vec(values, (64, 16), &Device::Cpu)?)
    }

    fn verdicts(output: &LossOutput) -> Result<Vec<Option<Diagnosis>>> {
        let (mut watch, health) = (Watch::default(), Health::of(output)?);
        Ok((0..6).map(|step| watch.health(step, &health, "byol")).collect())
    }

    #[test]
    fn one_point_is_a_collapse_and_a_sphere_is_not() -> Result<()> {
        let point = output(Tensor::ones((64, 16), DType::F32, &Device::Cpu)?)?;
        assert!(Health::of(&point)?.feature_std < 1e-3);
        let healthy = Health::of(&spread()?)?;
        assert!((0.8..1.05).contains(&healthy.feature_std), "{healthy:?}");
        assert!(healthy.effective_rank > 8.0 && healthy.uniformity < -1.0, "{healthy:?}");
        assert!(healthy.alignment.is_some_and(|a| a.abs() < 1e-6), "{healthy:?}");
        assert_eq!(verdicts(&point)?.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, false, true, true]);
        assert!(verdicts(&spread()?)?.iter().all(Option::is_none));
        let mut watch = Watch { collapsed: 4, ..Watch::default() };
        assert!(watch.health(7, &healthy, "x").is_none());
        assert_eq!(watch.collapsed, 0);
        Ok(())
    }

    #[test]
    fn a_line_and_targets_without_a_choice_are_named() -> Result<()> {
        let column = Tensor::arange(-32f32, 32.0, &Device::Cpu)?.reshape((64, 1))?;
        let line = output(column.matmul(&Tensor::ones((1, 16), DType::F32, &Device::Cpu)?)?)?;
        let found = verdicts(&line)?.pop().flatten().expect("a diagnosis").to_string();
        assert!(found.contains("on a line") && found.contains("options.momentum"), "{found}");
        let flat = (Tensor::ones((64, 32), DType::F32, &Device::Cpu)? / 32.0)?;
        let alike = LossOutput { assignments: Some(Assignments::of(&flat)?), ..spread()? };
        let found = verdicts(&alike)?.pop().flatten().expect("a diagnosis").to_string();
        assert!(found.contains("same for all prototypes"), "{found}");
        let first: Vec<f32> = (0..64 * 32).map(|i| if i % 32 == 3 { 1.0 } else { 0.0 }).collect();
        let first = Tensor::from_vec(first, (64, 32), &Device::Cpu)?;
        let single = LossOutput { assignments: Some(Assignments::of(&first)?), ..spread()? };
        let found = verdicts(&single)?.pop().flatten().expect("a diagnosis").to_string();
        assert!(found.contains("to one prototype"), "{found}");
        Ok(())
    }

    #[test]
    fn advice_names_settings_that_the_method_has() {
        let words = |text: &str| -> Vec<String> {
            let kept = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
            text.split(|c| !kept(c)).map(|w| w.trim_end_matches('.').to_string()).collect()
        };
        for spec in twinsight_ssl_methods::METHODS {
            let assigning = ["swav", "dino", "ibot", "dinov2"].contains(&spec.name);
            let advice = [cure(spec.name), if assigning { sharpness(spec.name) } else { "" }].join(" ");
            for named in words(&advice).iter().filter_map(|w| w.strip_prefix("options.")) {
                assert!(spec.keys.iter().any(|k| k.key == named), "{} has no {named}", spec.name);
            }
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_or_grows_is_named() {
        let mut watch = Watch::default();
        assert!(watch.loss(3, 1.0, 0.1, "simclr").is_none());
        let text = watch.loss(3, f64::NAN, 0.1, "simclr").expect("diagnosis").to_string();
        assert!(text.contains("step 3") && text.contains("schedule.lr"), "{text}");
        assert!((0..200).all(|step| watch.trend(step, 5.0 - step as f64 * 0.01, 0.1, "simclr").is_none()));
        let found = (200..400).find_map(|step| watch.trend(step, 40.0, 0.1, "simclr")).expect("diagnosis").to_string();
        assert!(found.contains("grows"), "{found}");
    }
}
