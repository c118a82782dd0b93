//! Values that no run can have.

use super::RunConfig;
use crate::layers::nearest;
use crate::{Error, Result};

impl RunConfig {
    /// Whether every value is one that a run can have.
    ///
    /// # Errors
    /// The first that is not, by its key, with what is allowed.
    pub(super) fn check(&self) -> Result<()> {
        twinsight_encoders::encoder(&self.encoder)?;
        crate::device::check(&self.device)?;
        let one_of = |key: &str, value: &str, allowed: &[&str]| -> Result<()> {
            if allowed.contains(&value) {
                return Ok(());
            }
            let guess = nearest(value, allowed.iter().copied()).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Err(Error::Config(format!("{key} = \"{value}\" is none of {}{guess}", allowed.join(", "))))
        };
        let within = |key: &str, value: f64, low: f64, high: f64| {
            if value >= low && value <= high {
                Ok(())
            } else {
                Err(Error::Config(format!("{key} = {value} is out of range: expected {low} to {high}")))
            }
        };
        one_of("optimizer.kind", &self.optimizer.kind, &["sgd", "adamw", "lars"])?;
        one_of("data.labels", &self.data.labels, &["auto", "folder", "none"])?;
        one_of("data.views_on", &self.data.views_on, &["auto", "cpu", "device"])?;
        self.data.levels()?;
        one_of("log.on_collapse", &self.log.on_collapse, &["stop", "warn"])?;
        within("epochs", self.epochs as f64, 1.0, 1e6)?;
        within("batch", self.batch as f64, 2.0, 1e6)?;
        within("micro_batch", self.micro_batch as f64, 0.0, 1e6)?;
        within("data.image_size", self.data.image_size as f64, 0.0, 4096.0)?;
        within("data.held_out", self.data.held_out, 0.0, 0.5)?;
        within("data.workers", self.data.workers as f64, 0.0, 1024.0)?;
        within("network.drop_path", self.network.drop_path, 0.0, 0.99)?;
        within("network.registers", self.network.registers as f64, 0.0, 1024.0)?;
        within("network.heads", self.network.heads as f64, 0.0, 1024.0)?;
        within("network.layer_scale", self.network.layer_scale, 0.0, 1e3)?;
        within("optimizer.momentum", self.optimizer.momentum, 0.0, 0.9999)?;
        within("optimizer.beta1", self.optimizer.beta1, 0.0, 0.9999)?;
        within("optimizer.beta2", self.optimizer.beta2, 0.0, 0.99999)?;
        within("optimizer.eps", self.optimizer.eps, 0.0, 1.0)?;
        within("optimizer.clip_norm", self.optimizer.clip_norm, 0.0, f64::MAX)?;
        within("schedule.lr", self.schedule.lr, 0.0, 1e3)?;
        within("schedule.lr_end", self.schedule.lr_end, 0.0, 1.0)?;
        within("schedule.warmup_epochs", self.schedule.warmup_epochs, 0.0, self.epochs as f64)?;
        within("schedule.weight_decay", self.schedule.weight_decay, 0.0, 10.0)?;
        within("schedule.weight_decay_end", self.schedule.weight_decay_end, 0.0, 10.0)?;
        within("eval.batch", self.eval.batch as f64, 1.0, 1e6)?;
        within("eval.probe_images", self.eval.probe_images as f64, 0.0, 1e6)?;
        within("log.every", self.log.every as f64, 1.0, 1e9)?;
        if self.eval.k.is_empty() || self.eval.k.contains(&0) {
            return Err(Error::Config("eval.k needs at least one number of neighbours, each 1 or more".into()));
        }
        if self.eval.temperature.is_empty() || self.eval.temperature.iter().any(|&t| t <= 0.0 || !t.is_finite()) {
            return Err(Error::Config("eval.temperature needs at least one number, each above 0".into()));
        }
        if self.data.mean.len() != self.data.std.len() || self.data.std.iter().any(|&s| s <= 0.0 || !s.is_finite()) {
            return Err(Error::Config("data.mean and data.std need one number a channel each, std above 0".into()));
        }
        Ok(())
    }
}
