//! Exact k-nearest-neighbour search over `f32` rows, weighted vote, choice of settings, and health of embeddings.
//!
//! The crate knows no tensor library: a table is a [`Matrix`], borrowed rows of one length. [`search`] finds the nearest
//! rows, [`vote`] turns their labels into ranked classes, [`top1`] and [`accuracy`] judge these, [`choose`] picks the number
//! of neighbours and the temperature on rows held out for that, [`leave_one_out`] and [`choose_left_out`] need no second table, and [`health`]
//! judges embeddings without any labels. [`bootstrap`] says how sure an accuracy is. Features add what a search can do
//! without: `cluster` (k-means, silhouette, agreement of partitions), `linear` (multinomial logistic regression) and `approximate` (a graph of
//! near rows, for millions of them).
//!
//! Results do not depend on the number of threads nor on the instruction set: block products in `f32` only select
//! candidates, with a margin for their rounding, and the candidates' scores are then computed in one fixed order in `f64`.
//!
//! ```
//! use twinsight_knn::{Matrix, Metric, search, vote};
//! let bank = [1.0, 0.0, 0.9, 0.1, 0.0, 1.0];
//! let found = search(Matrix::new(&bank, 3, 2)?, Matrix::new(&[2.0, 0.1], 1, 2)?, 2, Metric::Cosine, false)?;
//! assert_eq!(found.index, [0, 1]);
//! assert_eq!(vote(&found, &[4, 4, 7], 8, 0.1)?.best(0), 4);
//! # Ok::<(), twinsight_knn::Error>(())
//! ```

mod accuracy;
#[cfg(feature = "cluster")]
pub mod agreement;
#[cfg(feature = "approximate")]
pub mod approximate;
mod choose;
#[cfg(feature = "cluster")]
pub mod cluster;
mod error;
mod exact;
pub mod health;
mod interval;
#[cfg(feature = "linear")]
pub mod linear;
mod matrix;
mod pca;
mod product;
mod search;
mod select;
mod standard;
mod vote;

pub use accuracy::{Accuracy, Confusion, accuracy, confusion, top_n, top1};
pub use choose::{Setting, choose, choose_left_out, leave_one_out, sweep, sweep_left_out};
pub use error::{Error, Result};
pub use interval::{Interval, bootstrap, spread_of_seeds};
pub use matrix::Matrix;
pub use pca::{Components, principal_components};
pub use search::{Metric, Neighbours, search};
pub use standard::Standard;
pub use vote::{Predictions, vote};
