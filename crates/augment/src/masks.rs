//! Which patches of a grid are hidden: at random (MAE), or in blocks (BEiT, iBOT).

use crate::draw::Draws;

/// Hides exactly ⌊`share` · n + ½⌋ of the n patches of a `rows` × `columns` grid, each as likely as any other (He et al. 2022, "Masked
/// Autoencoders Are Scalable Vision Learners"). Row by row; true is hidden. Draws one number a hidden patch.
pub fn random_patches(draws: &mut Draws, rows: usize, columns: usize, share: f32) -> Vec<bool> {
    let count = rows * columns;
    let hidden = hidden(count, share);
    let mut order: Vec<usize> = (0..count).collect();
    let mut mask = vec![false; count];
    for i in 0..hidden {
        let other = i + draws.below((count - i) as u32) as usize;
        order.swap(i, other);
        mask[order[i]] = true;
    }
    mask
}

/// Hides exactly ⌊`share` · n + ½⌋ of the n patches of a `rows` × `columns` grid in rectangles (Bao et al. 2022, "BEiT", algorithm 1):
/// each of at least 4 patches (or what is left), height over width uniform in its logarithm from 0.3 to 1/0.3, at a uniform place; what
/// no rectangle of ten tries could fill is hidden patch by patch. Row by row; true is hidden.
///
/// Draws, each try: area, ratio; then top, left if it fits; then one number a patch of the rest.
pub fn block_patches(draws: &mut Draws, rows: usize, columns: usize, share: f32) -> Vec<bool> {
    let count = rows * columns;
    let mut left = hidden(count, share);
    let mut mask = vec![false; count];
    let log_ratio = 0.3_f64.ln();
    while left > 0 {
        let mut filled = 0;
        for _ in 0..10 {
            let area = draws.uniform((left as f64).min(4.0), left as f64);
            let ratio = draws.uniform(log_ratio, -log_ratio).exp();
            let (h, w) = ((area * ratio).sqrt().round() as usize, (area / ratio).sqrt().round() as usize);
            if h == 0 || w == 0 || h > rows || w > columns {
                continue;
            }
            let (top, start) = (draws.below((rows - h + 1) as u32) as usize, draws.below((columns - w + 1) as u32) as usize);
            let places = || (top..top + h).flat_map(|y| (start..start + w).map(move |x| y * columns + x));
            let new = places().filter(|&i| !mask[i]).count();
            if (1..=left).contains(&new) {
                places().for_each(|i| mask[i] = true);
                filled = new;
                break;
            }
        }
        left -= filled;
        if filled == 0 {
            break;
        }
    }
    let mut open: Vec<usize> = (0..count).filter(|&i| !mask[i]).collect();
    for _ in 0..left {
        let i = draws.below(open.len() as u32) as usize;
        mask[open.swap_remove(i)] = true;
    }
    mask
}

fn hidden(count: usize, share: f32) -> usize {
    ((count as f64 * f64::from(share) + 0.5) as usize).min(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DrawKey;

    fn draws(sample: u64) -> Draws {
        Draws::new(DrawKey { seed: 1, epoch: 0, sample, view: 0 })
    }

    #[test]
    fn masks_hide_exactly_their_share() {
        for (rows, columns) in [(1, 1), (1, 9), (8, 8), (14, 14), (16, 5)] {
            for share in [0.0, 0.1, 0.3, 0.5, 0.75, 1.0] {
                for sample in 0..20 {
                    let wanted = hidden(rows * columns, share);
                    for mask in [
                        random_patches(&mut draws(sample), rows, columns, share),
                        block_patches(&mut draws(sample), rows, columns, share),
                    ] {
                        assert_eq!((mask.len(), mask.iter().filter(|&&m| m).count()), (rows * columns, wanted));
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_hang_together_and_random_patches_do_not() {
        // Neighbours to the right that are alike.
        let alike = |mask: &[bool]| (0..196).filter(|i| i % 14 < 13 && mask[*i] && mask[i + 1]).count();
        let (mut blocks, mut random) = (0, 0);
        for sample in 0..100 {
            blocks += alike(&block_patches(&mut draws(sample), 14, 14, 0.3));
            random += alike(&random_patches(&mut draws(sample), 14, 14, 0.3));
        }
        assert!(blocks > 2 * random, "{blocks} and {random}");
        let mut seen = [0; 64];
        (0..4000).for_each(|s| {
            random_patches(&mut draws(s), 8, 8, 0.25).iter().zip(&mut seen).for_each(|(&m, n)| *n += i32::from(m));
        });
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
    }
}
