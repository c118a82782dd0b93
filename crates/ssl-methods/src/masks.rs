//! Which patches are hidden from a transformer: drawn by each image's place in the batch, so that cutting the batch changes none.

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

/// The share of patches to hide in a view: drawn evenly from `range` with probability `probability`, else none (Zhou et al. 2022, iBOT).
pub(crate) fn share_of(key: DrawKey, place: usize, probability: f64, range: (f64, f64)) -> f64 {
    let mut rng = DrawKey { pass: place as u64, ..key }.rng("share");
    let masked = rng.random::<f64>() < probability;
    let share = range.0 + rng.random::<f64>() * (range.1 - range.0);
    if masked { share } else { 0.0 }
}

/// The same for all of `views` views at once, as the program of Oquab et al. 2024 (DINOv2) draws them: `probability` of them, at least one,
/// have something hidden, and their shares are drawn from as many equal parts of `range`.
pub(crate) fn strata(key: DrawKey, views: usize, probability: f64, range: (f64, f64)) -> Vec<f64> {
    let mut rng = key.rng("strata");
    let masked = ((views as f64 * probability) as usize).clamp(1, views.max(1));
    let part = (range.1 - range.0) / masked as f64;
    let mut shares: Vec<f64> =
        (0..views).map(|i| if i < masked { range.0 + (i as f64 + rng.random::<f64>()) * part } else { 0.0 }).collect();
    shares.shuffle(&mut rng);
    shares
}

/// Tries to place a rectangle before the mask is taken as it is.
const TRIES: usize = 10;

/// Hidden patches of a view of `side` × `side` patches: rectangles of `least` patches or more (0: the square of a third of the side) are hidden
/// until about a `share` is, and never more (Bao et al. 2022, BEiT, as iBOT's and DINOv2's programs have it); a rectangle that would hide too
/// much or nothing new is drawn again, and after ten such in a row what is hidden stays as it is. At least one patch where `share` is
/// above 0.
pub(crate) fn blocks(key: DrawKey, image: usize, side: usize, share: f64, least: usize) -> Vec<bool> {
    let mut rng = DrawKey { pass: image as u64, ..key }.rng("blocks");
    let mut hidden = vec![false; side * side];
    if share <= 0.0 {
        return hidden;
    }
    let wanted = ((share * (side * side) as f64) as usize).clamp(1, side * side);
    let least = if least == 0 { (side / 3).pow(2) } else { least }.clamp(1, wanted) as f64;
    let (mut count, mut failed) = (0, 0);
    while count < wanted && failed < TRIES {
        let missing = wanted - count;
        let area = least + rng.random::<f64>() * (missing as f64 - least);
        let ratio = (0.3f64.ln() + rng.random::<f64>() * ((1.0 / 0.3f64).ln() - 0.3f64.ln())).exp();
        let [height, width] = [(area * ratio).sqrt().round() as usize, (area / ratio).sqrt().round() as usize];
        failed += 1;
        if height == 0 || width == 0 || height > side || width > side {
            continue;
        }
        let (top, left) = (rng.random_range(0..=side - height), rng.random_range(0..=side - width));
        let places = || (top..top + height).flat_map(|y| (left..left + width).map(move |x| y * side + x));
        let fresh = places().filter(|&p| !hidden[p]).count();
        if fresh > 0 && fresh <= missing {
            places().for_each(|p| hidden[p] = true);
            (count, failed) = (count + fresh, 0);
        }
    }
    if count == 0 {
        hidden[rng.random_range(0..side * side)] = true;
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

    fn count(hidden: &[bool]) -> usize {
        hidden.iter().filter(|&&h| h).count()
    }

    #[test]
    fn blocks_hide_about_what_was_asked_for_and_never_more() {
        let mut full = 0;
        for image in 0..200 {
            let hidden = count(&blocks(KEY, image, 14, 0.3, 0));
            assert!((16..=58).contains(&hidden), "{hidden} of 58");
            full += usize::from(hidden >= 52);
        }
        assert!(full > 120, "{full} of 200 views came near their share");
        assert!(blocks(KEY, 0, 8, 0.0, 0).iter().all(|&h| !h));
        assert_eq!(blocks(KEY, 0, 1, 1.0, 4), [true]);
        assert!((0..50).all(|image| count(&blocks(KEY, image, 4, 0.05, 4)) == 1));
    }

    #[test]
    fn no_corner_is_hidden_more_than_another() {
        let mut corners = [0; 4];
        for image in 0..2000 {
            let hidden = blocks(KEY, image, 6, 0.4, 0);
            for (corner, place) in corners.iter_mut().zip([0, 5, 30, 35]) {
                *corner += usize::from(hidden[place]);
            }
        }
        let mean = corners.iter().sum::<usize>() as f64 / 4.0;
        assert!(corners.iter().all(|&c| (c as f64 - mean).abs() < 0.2 * mean), "{corners:?}");
    }

    #[test]
    fn shares_are_drawn_alone_or_spread_over_the_batch() {
        let alone: Vec<f64> = (0..400).map(|place| share_of(KEY, place, 0.5, (0.1, 0.5))).collect();
        let masked = alone.iter().filter(|&&s| s > 0.0).count();
        assert!((150..250).contains(&masked), "{masked}");
        assert!(alone.iter().all(|&s| s == 0.0 || (0.1..=0.5).contains(&s)));
        let mut spread = strata(KEY, 20, 0.5, (0.1, 0.5));
        assert_eq!(spread, strata(KEY, 20, 0.5, (0.1, 0.5)));
        spread.sort_by(f64::total_cmp);
        assert!(spread[..10].iter().all(|&s| s == 0.0));
        for (i, share) in spread[10..].iter().enumerate() {
            let low = 0.1 + 0.04 * i as f64;
            assert!((low..=low + 0.04).contains(share), "{spread:?}");
        }
        assert_eq!(strata(KEY, 1, 0.1, (0.2, 0.2)), [0.2]);
    }
}
