//! An approximate search for millions of rows: a graph of near rows in layers (HNSW, Malkov & Yashunin 2016, arXiv:1603.09320) by
//! `instant-distance`, whose candidates' scores are computed anew in `f64` as those of the exact search are.
//!
//! It pays where every row of a large table is looked for; what it misses is told by [`recall`] against the exact search of a few rows. The
//! graph is built on one thread, since the order of insertions decides it; searches run on all, and their number changes nothing.

use std::sync::Arc;

use instant_distance::{Builder, Hnsw, Point, Search};
use rayon::prelude::*;

use crate::{Error, Matrix, Metric, Neighbours, Result, exact, search};

/// Candidates that a search keeps for each neighbour asked for.
const BREADTH: usize = 2;
/// Candidates that a search keeps at least, and that an insertion keeps.
const LEAST_BREADTH: usize = 100;

/// A graph over a table, for up to a given number of neighbours.
pub struct Index<'a> {
    bank: Matrix<'a>,
    metric: Metric,
    most: usize,
    graph: Hnsw<Row>,
    /// The row of the bank that each point of the graph is.
    rows: Vec<u32>,
}

/// A row of a shared table.
#[derive(Clone)]
struct Row {
    table: Arc<[f32]>,
    at: usize,
    dim: usize,
}

impl Row {
    fn numbers(&self) -> &[f32] {
        &self.table[self.at..self.at + self.dim]
    }
}

impl Point for Row {
    /// The squared distance; of normalised rows it falls as the cosine rises.
    fn distance(&self, other: &Self) -> f32 {
        const LANES: usize = 16;
        let (a, a_rest) = self.numbers().as_chunks::<LANES>();
        let (b, b_rest) = other.numbers().as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for (x, y) in a.iter().zip(b) {
            for i in 0..LANES {
                sums[i] += (x[i] - y[i]) * (x[i] - y[i]);
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| (x - y) * (x - y)).sum();
        sums.iter().sum::<f32>() + rest
    }
}

/// The rows of a table as points of the graph's space: normalised for the cosine.
fn points(rows: Matrix, metric: Metric, what: &'static str) -> Result<Vec<Row>> {
    let checked = rows.check(what, 1)?;
    let checked = if metric == Metric::Cosine { checked.normalised() } else { checked };
    let table: Arc<[f32]> = checked.data.as_ref().into();
    Ok((0..rows.rows).map(|r| Row { table: table.clone(), at: r * rows.dim, dim: rows.dim }).collect())
}

impl<'a> Index<'a> {
    /// Builds the graph over `bank` for searches of up to `most` neighbours. `seed` decides the rows' layers.
    ///
    /// # Errors
    /// An empty table, a wrong length, NaN and infinities, no neighbours.
    pub fn build(bank: Matrix<'a>, metric: Metric, most: usize, seed: u64) -> Result<Self> {
        let points = points(bank, metric, "bank")?;
        if most == 0 || most > bank.rows {
            return Err(Error::Neighbours { k: most, available: bank.rows, excluded: false });
        }
        // One more, since a row that leaves itself out finds itself first.
        let breadth = ((most + 1) * BREADTH).max(LEAST_BREADTH);
        let builder = Builder::default().ef_search(breadth).ef_construction(LEAST_BREADTH).seed(seed);
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let alone = alone.map_err(|e| Error::Solver(format!("cannot start a thread for the index: {e}")))?;
        let (graph, places) = alone.install(|| builder.build_hnsw(points));
        let mut rows = vec![0; places.len()];
        for (row, place) in (0..).zip(&places) {
            rows[place.into_inner() as usize] = row;
        }
        Ok(Self { bank, metric, most, graph, rows })
    }

    /// As [`search()`], with neighbours that are the nearest in most cases. Where the graph has too few, the exact search steps in.
    ///
    /// # Errors
    /// As [`search()`]; more neighbours than the index was built for.
    pub fn search(&self, queries: Matrix, k: usize, exclude_self: bool) -> Result<Neighbours> {
        let points = points(queries, self.metric, "queries")?;
        if queries.dim != self.bank.dim {
            return Err(Error::Dimension { queries: queries.dim, bank: self.bank.dim });
        }
        if exclude_self && queries.rows != self.bank.rows {
            let (got, expected) = ((queries.rows, queries.dim), (self.bank.rows, self.bank.dim));
            return Err(Error::Shape { what: "queries of a search that leaves each row out of its own", got, expected });
        }
        let available = self.most.min(self.bank.rows - usize::from(exclude_self));
        if k == 0 || k > available {
            return Err(Error::Neighbours { k, available, excluded: exclude_self });
        }
        let found: Vec<Result<Vec<(f32, u32)>>> = points
            .par_iter()
            .enumerate()
            .map_init(Search::default, |place, (q, point)| {
                let skip = exclude_self.then_some(q as u32);
                let near: Vec<u32> = self
                    .graph
                    .search(point, place)
                    .map(|item| self.rows[item.pid.into_inner() as usize])
                    .filter(|&row| Some(row) != skip)
                    .collect();
                let row = Matrix { data: queries.row(q), rows: 1, dim: queries.dim };
                if near.len() < k {
                    let all = search(self.bank, row, (k + 1).min(self.bank.rows), self.metric, false)?;
                    let kept = all.index.iter().zip(&all.score).filter(|(i, _)| Some(**i) != skip);
                    return Ok(kept.map(|(&i, &s)| (s, i)).take(k).collect());
                }
                Ok(self.ranked(queries.row(q), &near, k))
            })
            .collect();
        let (mut index, mut score) = (Vec::with_capacity(points.len() * k), Vec::with_capacity(points.len() * k));
        for row in found {
            for (s, i) in row? {
                index.push(i);
                score.push(s);
            }
        }
        Ok(Neighbours { k, index, score })
    }

    /// The `k` nearest of `candidates`, with scores as the exact search has them.
    fn ranked(&self, query: &[f32], candidates: &[u32], k: usize) -> Vec<(f32, u32)> {
        let others: Vec<&[f32]> = candidates.iter().map(|&c| self.bank.row(c as usize)).collect();
        let mut values = Vec::with_capacity(candidates.len());
        match self.metric {
            Metric::Cosine => {
                exact::products(query, &others, &mut values);
                let norm = |row: &[f32]| {
                    let mut norm = [0.0];
                    exact::norms(row, row.len(), &mut norm);
                    if norm[0] > 0.0 { 1.0 / norm[0] } else { 0.0 }
                };
                let own = norm(query);
                values.iter_mut().zip(&others).for_each(|(v, o)| *v = (*v * own * norm(o)).clamp(-1.0, 1.0));
            }
            Metric::Euclidean => {
                exact::square_distances(query, &others, &mut values);
                values.iter_mut().for_each(|v| *v = -v.sqrt());
            }
        }
        let mut ranked: Vec<(f32, u32)> = values.iter().map(|&v| v as f32 + 0.0).zip(candidates.iter().copied()).collect();
        ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        ranked.truncate(k);
        ranked
    }
}

/// The share of the nearest rows that an approximate search found: of `found`'s neighbours those that are as near as the last of `exact`'s,
/// 0 to 1. Both must be of the same queries and of as many neighbours.
///
/// # Errors
/// Searches that are not of the same shape.
pub fn recall(found: &Neighbours, exact: &Neighbours) -> Result<f64> {
    if found.k != exact.k || found.rows() != exact.rows() || found.rows() == 0 {
        let (got, expected) = ((found.rows(), found.k), (exact.rows(), exact.k));
        return Err(Error::Shape { what: "an approximate search to be compared", got, expected });
    }
    let near = |q: usize| {
        let last = exact.row(q).1[exact.k - 1];
        found.row(q).1.iter().filter(|&&s| s >= last).count()
    };
    Ok((0..found.rows()).map(near).sum::<usize>() as f64 / found.index.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows around 20 centres.
    fn rows(count: u32, dim: u32) -> Vec<f32> {
        let noise =
            |i: u32| (i.wrapping_mul(2_654_435_761) ^ 0x9e37_79b9).wrapping_mul(2_246_822_519) as f32 / u32::MAX as f32 - 0.5;
        (0..count)
            .flat_map(|i| (0..dim).map(move |d| noise(i % 20 * dim + d + 7) * 4.0 + noise(1_000_003 + i * dim + d)))
            .collect()
    }

    #[test]
    fn nearly_all_neighbours_are_found_with_exact_scores_and_the_same_each_time() -> Result<()> {
        let data = rows(3000, 24);
        let table = Matrix::new(&data, 3000, 24)?;
        for metric in [Metric::Cosine, Metric::Euclidean] {
            let index = Index::build(table, metric, 10, 3)?;
            let found = index.search(table, 10, true)?;
            let exact = search(table, table, 10, metric, true)?;
            let share = recall(&found, &exact)?;
            assert!(share > 0.98, "{metric:?}: {share}");
            assert!((0..3000).all(|q| !found.row(q).0.contains(&(q as u32))));
            let same = (0..3000).filter(|&q| found.row(q).0 == exact.row(q).0).find(|&q| found.row(q).1 != exact.row(q).1);
            assert_eq!(same, None, "{metric:?}: scores differ from the exact search's");
            let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
            assert_eq!(alone.install(|| Index::build(table, metric, 10, 3)?.search(table, 10, true))?, found);
        }
        Ok(())
    }

    #[test]
    fn rows_that_are_all_alike_and_few_rows_have_neighbours_too() -> Result<()> {
        let data = [1.0f32; 5 * 3];
        let table = Matrix::new(&data, 5, 3)?;
        let found = Index::build(table, Metric::Cosine, 4, 0)?.search(table, 4, true)?;
        assert!(found.rows() == 5 && found.score.iter().all(|&s| (s - 1.0).abs() < 1e-6));
        let index = Index::build(table, Metric::Cosine, 2, 0)?;
        assert!(matches!(index.search(table, 3, false), Err(Error::Neighbours { available: 2, .. })));
        assert!(Index::build(table, Metric::Cosine, 0, 0).is_err());
        Ok(())
    }
}
