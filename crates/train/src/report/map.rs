//! Where images lie on a plane: principal components at once, and t-SNE, which keeps near what is near.

use bhtsne::{Neighbor, tSNE};
use twinsight_knn::{Matrix, Metric, principal_components, search};

use crate::evaluate::Features;
use crate::{Error, Result};

/// Two coordinates an image, in -1 to 1.
pub(super) struct Plane {
    /// What it is called.
    pub name: String,
    /// (x, y) of every image.
    pub points: Vec<(f32, f32)>,
}

/// Components that distances are taken from: the rest is mostly noise, and they make everything after them fast.
const COMPONENTS: usize = 32;
/// Neighbours that t-SNE looks at are three times this.
const PERPLEXITY: usize = 20;
const EPOCHS: usize = 600;

/// L2-normalised rows along their leading components, and the share of variance that these keep.
pub(super) fn reduced(features: &Features) -> Result<(Vec<f32>, usize, f64)> {
    let mut rows = features.rows.clone();
    for row in rows.chunks_exact_mut(features.dim) {
        let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
    let found = principal_components(Matrix { data: &rows, rows: features.index.len(), dim: features.dim }, COMPONENTS)?;
    Ok((found.rows, found.dim, found.explained.iter().sum()))
}

/// The planes of rows of `dim` components: the first two, and t-SNE's where there are rows enough.
///
/// # Errors
/// Rows that are not finite.
pub(super) fn planes(rows: &[f32], dim: usize) -> Result<Vec<Plane>> {
    let count = rows.len() / dim.max(1);
    let at = |row: &[f32], j: usize| row.get(j).copied().unwrap_or(0.0);
    let first = rows.chunks_exact(dim).map(|r| (at(r, 0), at(r, 1))).collect();
    let mut planes = vec![Plane { name: "principal components".into(), points: scaled(first) }];
    // Rows that are all alike have no map.
    if count > 3 * PERPLEXITY + 1 && rows.iter().any(|&v| v != 0.0) {
        planes.insert(0, Plane { name: "t-SNE".into(), points: scaled(t_sne(rows, dim)?) });
    }
    Ok(planes)
}

/// Barnes-Hut t-SNE (van der Maaten 2014) from the first two components, on exact neighbours. One thread: sums in another order would
/// draw another map.
fn t_sne(rows: &[f32], dim: usize) -> Result<Vec<(f32, f32)>> {
    let table = Matrix { data: rows, rows: rows.len() / dim, dim };
    let found = search(table, table, 3 * PERPLEXITY, Metric::Euclidean, true)?;
    let neighbours: Vec<Vec<Neighbor<f32>>> = (0..found.rows())
        .map(|q| {
            let (index, score) = found.row(q);
            index.iter().zip(score).map(|(&i, &s)| Neighbor { index: i as usize, distance: (-s).max(0.0) }).collect()
        })
        .collect();
    let spread = rows.chunks_exact(dim).map(|r| r[0].abs()).fold(f32::MIN_POSITIVE, f32::max);
    let start: Vec<f32> =
        rows.chunks_exact(dim).flat_map(|r| [r[0] / spread * 1e-2, r.get(1).copied().unwrap_or(0.0) / spread * 1e-2]).collect();
    let samples: Vec<&[f32]> = rows.chunks_exact(dim).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|e| Error::Config(format!("cannot start a thread for the map: {e}")))?;
    let flat = pool.install(|| {
        let mut map: tSNE<f32, &[f32], 2> = tSNE::new(&samples);
        map.perplexity(PERPLEXITY as f32).epochs(EPOCHS).initial_embedding(start);
        map.barnes_hut_with_neighbors(0.5, &neighbours);
        map.embedding()
    });
    Ok(flat.as_chunks::<2>().0.iter().map(|p| (p[0], p[1])).collect())
}

/// Moved and scaled to fill -1 to 1 along the longer side.
fn scaled(points: Vec<(f32, f32)>) -> Vec<(f32, f32)> {
    let range = |of: fn(&(f32, f32)) -> f32| {
        let finite = points.iter().map(of).filter(|v| v.is_finite());
        finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let half = ((x1 - x0).max(y1 - y0) / 2.0).max(f32::MIN_POSITIVE);
    let place = |v: f32, low: f32, high: f32| if v.is_finite() { (v - (low + high) / 2.0) / half } else { 0.0 };
    points.iter().map(|&(x, y)| (place(x, x0, x1), place(y, y0, y1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_apart_and_the_map_is_the_same_each_time() -> Result<()> {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65_535.0;
        let rows: Vec<f32> =
            (0..150u32).flat_map(|i| (0..5u32).map(move |d| noise(i * 5 + d) + if i % 3 == d { 8.0 } else { 0.0 })).collect();
        let features = Features { rows, dim: 5, index: (0..150).collect(), ..Features::default() };
        let (rows, dim, kept) = reduced(&features)?;
        assert!(dim == 5 && kept > 0.99);
        let drawn = planes(&rows, dim)?;
        assert_eq!(drawn.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["t-SNE", "principal components"]);
        for plane in &drawn {
            assert!(plane.points.iter().all(|p| p.0.abs() <= 1.001 && p.1.abs() <= 1.001), "{}", plane.name);
            // The nearest point of the plane is of the same group.
            let same = (0..150).filter(|&i| {
                let d = |j: usize| (plane.points[i].0 - plane.points[j].0).hypot(plane.points[i].1 - plane.points[j].1);
                let near = (0..150).filter(|&j| j != i).min_by(|&a, &b| d(a).total_cmp(&d(b)));
                near.is_some_and(|j| j % 3 == i % 3)
            });
            assert!(same.count() > 145, "{}", plane.name);
        }
        assert!(planes(&rows, dim)?[0].points == drawn[0].points);
        Ok(())
    }

    #[test]
    fn few_images_and_one_column_are_no_trouble() -> Result<()> {
        assert_eq!(planes(&[1.0, 2.0], 1)?.len(), 1);
        Ok(())
    }
}
