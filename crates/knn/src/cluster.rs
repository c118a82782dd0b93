//! Clusters of rows without labels: k-means, and the number of clusters by the silhouette.
//!
//! The iterations are `linfa-clustering`'s, started by k-means++; this file restarts them, each from a seed of its own, and judges
//! every outcome by an exact assignment. The silhouette needs all distances, so they are computed once for any number of
//! partitions ([`Distances`]).

use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_clustering::{KMeans, KMeansInit};
use ndarray::ArrayView2;
use rand_xoshiro::Xoshiro256Plus;
use rand_xoshiro::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::{Error, Matrix, Metric, Result, exact, search};

/// How k-means is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeansConfig {
    /// Starts; the outcome with the least inertia is kept.
    pub n_init: usize,
    /// Iterations of a start at most.
    pub max_iter: u64,
    /// Iterations end when all centroids together moved by less than the root of this share of the features' mean variance
    /// (scikit-learn's rule).
    pub tol: f64,
    /// Decides the starts.
    pub seed: u64,
}

impl Default for KMeansConfig {
    fn default() -> Self {
        Self { n_init: 10, max_iter: 300, tol: 1e-4, seed: 0 }
    }
}

/// A partition of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// Numbers a centroid.
    pub dim: usize,
    /// Centroids, one after the other, `dim` numbers each.
    pub centroids: Vec<f32>,
    /// The nearest centroid of each row.
    pub assignment: Vec<u32>,
    /// The distance of each row to it.
    pub distance: Vec<f32>,
    /// The sum of squared distances.
    pub inertia: f64,
}

impl Clusters {
    /// Number of clusters.
    pub fn count(&self) -> usize {
        self.centroids.len().checked_div(self.dim).unwrap_or(0)
    }

    /// The rows of cluster `c`, the most typical (nearest to the centroid) first.
    pub fn members(&self, c: u32) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.assignment.len()).filter(|&i| self.assignment[i] == c).collect();
        rows.sort_by(|&a, &b| self.distance[a].total_cmp(&self.distance[b]));
        rows
    }
}

/// Lloyd's k-means (Lloyd 1982) from k-means++ starts (Arthur & Vassilvitskii 2007), Euclidean.
///
/// The number of threads changes nothing.
///
/// # Errors
/// Fewer rows than clusters, no clusters, no starts, wrong lengths, NaN and infinities.
pub fn k_means(rows: Matrix, clusters: usize, config: KMeansConfig) -> Result<Clusters> {
    let checked = rows.check("rows to cluster", 1)?;
    if clusters == 0 || clusters > rows.rows {
        return Err(Error::Clusters { clusters, rows: rows.rows });
    }
    if config.n_init == 0 {
        return Err(Error::NoSettings("start of k-means (n_init)"));
    }
    drop(checked);
    let view = ArrayView2::from_shape((rows.rows, rows.dim), rows.data).map_err(|e| Error::Solver(e.to_string()))?;
    let data = DatasetBase::from(view);
    let tolerance = (config.tol * mean_variance(rows)).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
    let outcomes: Vec<Result<Clusters>> = (0..config.n_init as u64)
        .into_par_iter()
        .map(|start| {
            let rng = Xoshiro256Plus::seed_from_u64(config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(start));
            let model = KMeans::params_with_rng(clusters, rng)
                .init_method(KMeansInit::KMeansPlusPlus)
                .n_runs(1)
                .max_n_iterations(config.max_iter.max(1))
                .tolerance(tolerance)
                .fit(&data)
                .map_err(|e| Error::Solver(format!("k-means: {e}")))?;
            let centroids: Vec<f32> = model.centroids().iter().copied().collect();
            assign(rows, centroids)
        })
        .collect();
    let mut best: Option<Clusters> = None;
    for outcome in outcomes {
        let outcome = outcome?;
        if best.as_ref().is_none_or(|b| outcome.inertia < b.inertia) {
            best = Some(outcome);
        }
    }
    best.ok_or(Error::NoSettings("start of k-means (n_init)"))
}

/// The partition of `rows` by their nearest centroids (one after the other, as long as a row each).
///
/// # Errors
/// Centroids or rows that are none, have other lengths, or hold NaN or infinities.
pub fn assign(rows: Matrix, centroids: Vec<f32>) -> Result<Clusters> {
    let bank = Matrix { data: &centroids, rows: centroids.len().checked_div(rows.dim).unwrap_or(0), dim: rows.dim };
    let found = search(bank, rows, 1, Metric::Euclidean, false)?;
    let distance: Vec<f32> = found.score.iter().map(|s| -s).collect();
    let inertia = distance.iter().map(|&d| f64::from(d) * f64::from(d)).sum();
    Ok(Clusters { dim: rows.dim, assignment: found.index, distance, inertia, centroids })
}

/// The variance of the numbers of a column, averaged over columns.
fn mean_variance(rows: Matrix) -> f64 {
    let (n, dim) = (rows.rows as f64, rows.dim);
    let mut sums = vec![(0.0f64, 0.0f64); dim];
    for row in rows.data.chunks_exact(dim) {
        for ((sum, square), &v) in sums.iter_mut().zip(row) {
            *sum += f64::from(v);
            *square += f64::from(v) * f64::from(v);
        }
    }
    sums.iter().map(|(s, q)| (q / n - (s / n).powi(2)).max(0.0)).sum::<f64>() / dim as f64
}

/// All distances between rows.
pub struct Distances {
    rows: usize,
    /// The whole square, row by row.
    values: Vec<f32>,
}

impl Distances {
    /// Most rows whose distances are kept: they take 4 bytes a pair.
    pub const MOST: usize = 8192;

    /// The Euclidean distances between all rows.
    ///
    /// # Errors
    /// An empty table, a wrong length, NaN or an infinity, or more than [`Distances::MOST`] rows.
    pub fn new(rows: Matrix) -> Result<Self> {
        let checked = rows.check("rows to compare", 1)?;
        if rows.rows > Self::MOST {
            return Err(Error::TooManyPairs { rows: rows.rows, most: Self::MOST });
        }
        let all: Vec<&[f32]> = (0..rows.rows).map(|i| rows.row(i)).collect();
        let mut values = vec![0.0f32; rows.rows * rows.rows];
        values.par_chunks_mut(rows.rows).enumerate().for_each(|(i, out)| {
            let mut squares = Vec::new();
            exact::square_distances(checked.row(i), &all, &mut squares);
            out.iter_mut().zip(squares).for_each(|(o, s)| *o = s.sqrt() as f32);
        });
        Ok(Self { rows: rows.rows, values })
    }

    /// The mean silhouette of a partition (Rousseeuw 1987), in [-1, 1]: how much nearer rows are to their own cluster than to the
    /// nearest other one. Rows that are alone in their cluster count as 0.
    ///
    /// # Errors
    /// Not one cluster a row, or fewer than two clusters that have rows, or as many as rows.
    pub fn silhouette(&self, assignment: &[u32]) -> Result<f64> {
        if assignment.len() != self.rows {
            return Err(Error::LabelCount { what: "clusters", labels: assignment.len(), rows: self.rows });
        }
        let count = assignment.iter().max().map_or(0, |&m| m as usize + 1);
        let mut sizes = vec![0usize; count];
        assignment.iter().for_each(|&c| sizes[c as usize] += 1);
        let used = sizes.iter().filter(|&&s| s > 0).count();
        if used < 2 || used >= self.rows {
            return Err(Error::Clusters { clusters: used, rows: self.rows });
        }
        let each: Vec<f64> = self
            .values
            .par_chunks(self.rows)
            .zip(assignment)
            .map(|(distances, &own)| {
                let own = own as usize;
                if sizes[own] < 2 {
                    return 0.0;
                }
                let mut sums = vec![0.0f64; count];
                distances.iter().zip(assignment).for_each(|(&d, &c)| sums[c as usize] += f64::from(d));
                let within = sums[own] / (sizes[own] - 1) as f64;
                let others = (0..count).filter(|&c| c != own && sizes[c] > 0).map(|c| sums[c] / sizes[c] as f64);
                let other = others.fold(f64::INFINITY, f64::min);
                let larger = within.max(other);
                if larger > 0.0 { (other - within) / larger } else { 0.0 }
            })
            .collect();
        Ok(each.iter().sum::<f64>() / self.rows as f64)
    }
}

/// The partitions into each of `counts` clusters with their silhouettes, in the order given. The largest silhouette is the
/// number of clusters that the rows themselves suggest.
///
/// # Errors
/// As [`k_means`] and [`Distances::silhouette`].
pub fn sweep_clusters(rows: Matrix, counts: &[usize], config: KMeansConfig) -> Result<Vec<(Clusters, f64)>> {
    let distances = Distances::new(rows)?;
    counts
        .iter()
        .map(|&count| {
            let clusters = k_means(rows, count, config)?;
            let silhouette = distances.silhouette(&clusters.assignment)?;
            Ok((clusters, silhouette))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows around the corners of a square of side 10, 25 each.
    fn corners() -> Vec<f32> {
        (0..100u32)
            .flat_map(|i| {
                let (x, y) = ((i % 2) as f32 * 10.0, (i / 2 % 2) as f32 * 10.0);
                let noise = |n: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(n * 40_503) >> 16 & 255) as f32 / 255.0 - 0.5;
                [x + noise(1), y + noise(2)]
            })
            .collect()
    }

    #[test]
    fn four_groups_are_found_and_counted() -> Result<()> {
        let data = corners();
        let rows = Matrix::new(&data, 100, 2)?;
        let tried = sweep_clusters(rows, &[2, 3, 4, 5, 6], KMeansConfig::default())?;
        let best = tried.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("five tried");
        assert_eq!(best.0.count(), 4);
        assert!(best.1 > 0.85, "{}", best.1);
        for c in 0..4 {
            let members = best.0.members(c);
            assert_eq!(members.len(), 25);
            assert!(members.iter().all(|i| i % 4 == members[0] % 4));
        }
        Ok(())
    }

    #[test]
    fn threads_change_nothing_and_the_seed_decides() -> Result<()> {
        let data = corners();
        let rows = Matrix::new(&data, 100, 2)?;
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads");
        let one = pool(1).install(|| k_means(rows, 7, KMeansConfig::default()))?;
        assert_eq!(pool(3).install(|| k_means(rows, 7, KMeansConfig::default()))?, one);
        Ok(())
    }

    #[test]
    fn what_can_not_be_clustered_is_told() -> Result<()> {
        let data = corners();
        let rows = Matrix::new(&data[..6], 3, 2)?;
        let text = |r: Result<Clusters>| r.expect_err("refused").to_string();
        assert!(text(k_means(rows, 4, KMeansConfig::default())).contains("4 clusters of 3 rows"));
        assert!(text(k_means(rows, 0, KMeansConfig::default())).contains("0 clusters"));
        let nan = [0.0, f32::NAN, 1.0, 2.0];
        assert!(text(k_means(Matrix::new(&nan, 2, 2)?, 1, KMeansConfig::default())).contains("row 0 holds NaN"));
        // Fewer distinct rows than clusters: some clusters stay empty, and nothing fails.
        let same = [1.0f32; 20];
        let clusters = k_means(Matrix::new(&same, 10, 2)?, 3, KMeansConfig::default())?;
        assert_eq!(clusters.inertia, 0.0);
        let told = Distances::new(Matrix::new(&same, 10, 2)?)?.silhouette(&clusters.assignment).expect_err("one cluster");
        assert!(told.to_string().contains("1 clusters of 10 rows"), "{told}");
        Ok(())
    }
}
