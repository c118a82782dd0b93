//! The figures of a finished run.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::spread::Spread;

/// The figures of a finished run: `result.json`. Accuracies are fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// k-NN accuracy on raw pixels.
    pub knn_pixels: Option<f64>,
    /// k-NN accuracy on the features of the untrained encoder.
    pub knn_random: Option<f64>,
    /// k-NN accuracy on the trained encoder's features.
    pub knn_trained: Option<f64>,
    /// Lower end of its 95 % interval (bootstrap over the judged images).
    #[serde(default)]
    pub knn_low: Option<f64>,
    /// Upper end.
    #[serde(default)]
    pub knn_high: Option<f64>,
    /// The same vote's top-5 accuracy.
    #[serde(default)]
    pub knn_top5: Option<f64>,
    /// Accuracy of the online linear probe on the held-out images, where there was one.
    #[serde(default)]
    pub probe: Option<f64>,
    /// Effective rank of the untrained encoder's features of the judged images, or without labels of the shown ones.
    pub rank_random: Option<f64>,
    /// Effective rank of the trained encoder's features of the same images.
    pub rank_trained: Option<f64>,
    /// How the untrained encoder's features of the shown images are spread.
    #[serde(default)]
    pub spread_random: Option<Spread>,
    /// How the trained encoder's are.
    #[serde(default)]
    pub spread_trained: Option<Spread>,
    /// Clusters of the shown images, by silhouette.
    #[serde(default)]
    pub clusters: Option<usize>,
    /// Their silhouette.
    #[serde(default)]
    pub silhouette: Option<f64>,
    /// Neighbours.
    pub k: Option<usize>,
    /// Vote temperature.
    pub temperature: Option<f64>,
    /// What these two were chosen on: `held-out images`, `training images left out in turn`, or `nothing` where the configuration has one
    /// of each.
    #[serde(default)]
    pub chosen_on: Option<String>,
    /// `test` or `held-out`: which images the accuracies are of.
    pub measured_on: Option<String>,
    /// The last logged loss.
    pub loss: f64,
    /// Steps done.
    pub steps: u64,
    /// Images seen, each counted once a step.
    pub images: u64,
    /// Images that could not be read and were left out.
    pub skipped: usize,
    /// Seconds spent, evaluations and baselines included, summed over resumed parts.
    pub seconds: f64,
    /// What it ran on, and the program.
    #[serde(default)]
    pub machine: Option<Machine>,
}
