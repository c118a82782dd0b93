//! What contrastive losses share: a table of cosine similarities, and who belongs together in it.

use candle_core::{DType, Tensor};
use twinsight_kernels::{Similarities, l2_normalize};

use crate::Result;

/// The similarities of 2 N projections, view after view, with each other over a temperature.
pub(crate) struct PairTable {
    /// (2 N, 2 N).
    logits: Similarities,
    /// (2 N): those of a projection and its partner.
    positives: Tensor,
    n: usize,
}

impl PairTable {
    /// The table of `a` and `b`, both (N, D), row i of both from one image.
    pub fn new(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Self> {
        let n = a.dim(0)?;
        let (a, b) = (l2_normalize(a, 1e-12)?, l2_normalize(b, 1e-12)?);
        let z = Tensor::cat(&[&a, &b], 0)?;
        // The temperature divides the rows, not the table, which is larger.
        let logits = Similarities::new(&(&z * (1.0 / temperature))?, &z)?;
        let positives = ((a * b)?.sum(1)? * (1.0 / temperature))?;
        Ok(Self { logits, positives: Tensor::cat(&[&positives, &positives], 0)?, n })
    }

    /// (2 N) similarities of partners.
    pub fn positives(&self) -> &Tensor {
        &self.positives
    }

    /// (2 N): log Σ exp of each row over all others, its partner included.
    pub fn log_sum_all(&self) -> Result<Tensor> {
        Ok(self.logits.log_sum_exp(&self.except(false))?)
    }

    /// (2 N): log Σ exp of each row over the views of other images.
    pub fn log_sum_negatives(&self) -> Result<Tensor> {
        Ok(self.logits.log_sum_exp(&self.except(true))?)
    }

    /// The share of rows that are nearer to their partner than to any other, without a graph.
    pub fn accuracy(&self) -> Result<Tensor> {
        let best = self.logits.row_max(&self.except(true))?;
        Ok(self.positives.detach().gt(&best)?.to_dtype(DType::F32)?.mean_all()?)
    }

    /// The columns that a row is not compared with: itself, and its partner too where `partner`.
    fn except(&self, partner: bool) -> Vec<[u32; 2]> {
        let n = self.n;
        (0..2 * n).map(|i| [i as u32, if partner { (i + n) % (2 * n) } else { i } as u32]).collect()
    }
}

/// The cross-entropy of finding in the rows of `keys` (M, D) those that belong to the `queries` (N ≤ M, D), row i to row i, by cosine
/// similarity over `temperature`: the mean over the queries. Also the share of queries nearest to their own key, without a graph.
pub(crate) fn match_rows(queries: &Tensor, keys: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let (queries, keys) = (l2_normalize(queries, 1e-12)?, l2_normalize(keys, 1e-12)?);
    let n = queries.dim(0)?;
    let own = keys.narrow(0, 0, n)?;
    let queries = (queries * (1.0 / temperature))?;
    let positives = (&queries * own)?.sum(1)?;
    let logits = Similarities::new(&queries, &keys)?;
    let loss = (logits.log_sum_exp(&[])? - &positives)?.mean_all()?;
    let except: Vec<[u32; 2]> = (0..n as u32).map(|i| [i, i]).collect();
    let accuracy = match logits.dims() {
        (_, 1) => Tensor::ones((), DType::F32, loss.device())?,
        _ => positives.detach().gt(&logits.row_max(&except)?)?.to_dtype(DType::F32)?.mean_all()?,
    };
    Ok((loss, accuracy))
}
