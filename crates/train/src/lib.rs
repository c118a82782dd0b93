//! Training runs: configuration and recipes, the loader, the loop with its checkpoints, k-NN evaluation, the run folder,
//! protocols that judge an encoder with many labels or few, fine-tuning, and the report.
//!
//! The program is a thin shell around this crate: [`RunConfig::resolve`] makes a configuration, [`Trainer::create`] or
//! [`Trainer::resume`] a run, [`Trainer::run`] trains it while an [`observe::Observer`] is told what happens.

pub mod attention;
pub mod bench;
pub mod config;
pub mod data;
pub mod device;
mod error;
pub mod evaluate;
pub mod export;
pub mod few;
pub mod finetune;
mod fit;
pub mod folder;
pub mod health;
pub mod hub;
pub mod init;
pub mod inspect;
pub mod layers;
mod linear;
pub mod loader;
pub mod machine;
mod memory;
pub mod observe;
pub mod picture;
pub mod probe;
pub mod protocols;
pub mod recipe;
pub mod renderer;
pub mod report;
pub mod resident;
pub mod sheet;
pub mod source;
pub mod spread;
pub mod tensorboard;
mod trained;
mod trainer;

pub use config::RunConfig;
pub use error::{Diagnosis, Error, Result};
pub use fit::Free;
pub use folder::RunFolder;
pub use layers::Layer;
pub use recipe::{RECIPES, RecipeSpec, recipe};
pub use source::{Source, encoder_file};
pub use trained::Trained;
pub use trainer::{Outcome, RunResult, Trainer};
