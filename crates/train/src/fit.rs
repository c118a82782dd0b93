//! Small data sets: batch and length of a run where nobody said them and the default recipe, which is for some thousand images, would do
//! no more than a few steps.

use crate::layers::{Layer, value_at};
use crate::{RunConfig, loader};

/// What of a configuration may be fitted to the images: what no layer but the method's own small recipe decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Free {
    /// Images a step.
    pub batch: bool,
    /// Passes over the images.
    pub epochs: bool,
    /// Epochs between two evaluations.
    pub every: bool,
}

/// Steps that a run has at least, unless its epochs were asked for.
const STEPS: u64 = 200;
/// Evaluations while training at most, of a run that was made longer.
const EVALUATIONS: u64 = 20;

impl Free {
    /// What `layers` leave open. A recipe among them was chosen, and stays as it is.
    pub(crate) fn of(layers: &[Layer]) -> Self {
        let open = |key: &str| !layers.iter().any(|l| l.recipe || value_at(&l.table, key).is_some());
        Self { batch: open("batch"), epochs: open("epochs"), every: open("eval.every") }
    }
}

/// Fits `config` to so many training images: the batch becomes a power of two that goes into them twice at least, and epochs become as many
/// as make 200 steps. Returns what was changed, in words. Nothing happens where two batches fit and the steps suffice.
pub(crate) fn fit(config: &mut RunConfig, images: usize) -> Option<String> {
    let Free { batch, epochs, every } = std::mem::take(&mut config.free);
    let mut words = Vec::new();
    if batch && images >= 4 && images / 2 < config.batch {
        let fitting = 1 << (images / 2).ilog2();
        words.push(format!("batch {fitting} instead of {}", config.batch));
        config.batch = fitting;
    }
    if let (true, Ok(per_epoch)) = (epochs, loader::steps_per_epoch(images, config.batch))
        && per_epoch * config.epochs < STEPS
    {
        let fitting = STEPS.div_ceil(per_epoch);
        words.push(format!("{fitting} epochs instead of {}", config.epochs));
        config.epochs = fitting;
        if every {
            config.eval.every = config.eval.every.max(fitting.div_ceil(EVALUATIONS));
        }
    }
    (!words.is_empty()).then(|| format!("{} since there are {images} images; --batch and --epochs set others", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::parse_assignment;

    fn fitted(assignments: &[&str], images: usize) -> crate::Result<(RunConfig, Option<String>)> {
        let layers =
            assignments.iter().map(|a| Ok(Layer::new("--set", parse_assignment(a)?))).collect::<crate::Result<Vec<_>>>()?;
        let mut config = RunConfig::resolve(&layers)?;
        let words = fit(&mut config, images);
        Ok((config, words))
    }

    #[test]
    fn a_small_folder_gets_a_batch_and_a_length_of_its_own() -> crate::Result<()> {
        let (config, words) = fitted(&[], 250)?;
        assert_eq!((config.batch, config.epochs, config.eval.every), (64, 67, 4));
        let words = words.unwrap_or_default();
        assert!(
            words.contains("batch 64 instead of 256") && words.contains("67 epochs") && words.contains("250 images"),
            "{words}"
        );
        // The learning rate follows the batch.
        assert!((config.peak_lr() - 0.06 * 64.0 / 128.0).abs() < 1e-12);
        let (least, _) = fitted(&[], 4)?;
        assert_eq!((least.batch, least.epochs), (2, 100));
        // Nothing fits three images; the loader says so.
        assert_eq!(fitted(&[], 3)?.0.batch, 256);
        Ok(())
    }

    #[test]
    fn what_was_asked_for_stays() -> crate::Result<()> {
        let (config, words) = fitted(&["batch=256", "epochs=3"], 250)?;
        assert_eq!((config.batch, config.epochs, words), (256, 3, None));
        let (config, _) = fitted(&["epochs=3"], 250)?;
        assert_eq!((config.batch, config.epochs), (64, 3));
        let (config, words) = fitted(&[], 9000)?;
        let plain = RunConfig::resolve(&[])?;
        assert_eq!((config.batch, config.epochs, words), (plain.batch, plain.epochs, None));
        let recipe = crate::recipe("simclr-lightly-cifar10")?.layer()?;
        let mut config = RunConfig::resolve(&[recipe])?;
        let before = config.batch;
        assert_eq!((fit(&mut config, 100), config.batch), (None, before));
        // Fitted once: a configuration that was read is complete.
        let mut read = RunConfig::parse(&config.to_toml()?)?;
        assert_eq!((fit(&mut read, 100), read.batch), (None, before));
        Ok(())
    }
}
