//! Which patches are hidden from a transformer: drawn for each image by its place in the batch, so that cutting the batch changes none.

use rand::Rng;
use rand::seq::SliceRandom;
use twinsight_nn::DrawKey;

/// Which of `patches` patches stay visible, in random order, and behind them those that are hidden: a random permutation of an
/// image's patches, of which the first ones are seen (He et al. 2022, MAE).
pub(crate) fn random_order(key: DrawKey, image: usize, patches: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..patches as u32).collect();
    order.shuffle(&mut DrawKey { pass: image as u64, ..key }.rng("patches"));
    order
}

/// Hidden patches of an image of `side` × `side` patches, as rectangles until a share drawn from `share` is hidden (Bao et al. 2022, BEiT;
/// Zhou et al. 2022, iBOT); none at all with probability 1 − `probability`.
pub(crate) fn blocks(key: DrawKey, image: usize, side: usize, probability: f64, share: (f64, f64)) -> Vec<bool> {
    let mut rng = DrawKey { pass: image as u64, ..key }.rng("blocks");
    let mut hidden = vec![false; side * side];
    let masked = rng.random::<f64>() < probability;
    let wanted = ((share.0 + rng.random::<f64>() * (share.1 - share.0)) * (side * side) as f64).round() as usize;
    if !masked || wanted == 0 {
        return hidden;
    }
    let mut count = 0;
    // Rectangles of at least one patch and at most what is missing; a few tries that hide nothing new end it patch by patch.
    for _ in 0..100 {
        if count >= wanted {
            break;
        }
        let area = (1.0 + rng.random::<f64>() * (wanted - count) as f64).min((wanted - count) as f64);
        let ratio = (0.3f64.ln() + rng.random::<f64>() * ((1.0 / 0.3f64).ln() - 0.3f64.ln())).exp();
        let height = ((area * ratio).sqrt().round() as usize).clamp(1, side);
        let width = ((area / ratio).sqrt().round() as usize).clamp(1, side);
        let (top, left) = (rng.random_range(0..=side - height), rng.random_range(0..=side - width));
        for y in top..top + height {
            for x in left..left + width {
                if count < wanted && !hidden[y * side + x] {
                    hidden[y * side + x] = true;
                    count += 1;
                }
            }
        }
    }
    for patch in hidden.iter_mut().filter(|p| !**p).take(wanted.saturating_sub(count)) {
        *patch = true;
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DrawKey = DrawKey { seed: 1, step: 2, pass: 0 };

    #[test]
    fn orders_are_permutations_of_their_own() {
        let mut order = random_order(KEY, 3, 16);
        assert_eq!(order, random_order(KEY, 3, 16));
        assert_ne!(order, random_order(KEY, 4, 16));
        order.sort_unstable();
        assert_eq!(order, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn blocks_hide_the_share_that_was_asked_for() {
        for image in 0..200 {
            let hidden = blocks(KEY, image, 8, 1.0, (0.1, 0.5)).iter().filter(|&&h| h).count();
            assert!((6..=32).contains(&hidden), "{hidden}");
        }
        assert!((0..50).all(|image| blocks(KEY, image, 8, 0.0, (0.1, 0.5)).iter().all(|&h| !h)));
        assert_eq!(blocks(KEY, 0, 1, 1.0, (1.0, 1.0)), [true]);
        let masked = (0..400).filter(|&image| blocks(KEY, image, 8, 0.5, (0.1, 0.5)).contains(&true)).count();
        assert!((150..250).contains(&masked), "{masked}");
    }
}
