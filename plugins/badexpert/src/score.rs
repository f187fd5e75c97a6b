//! The score of an input, the threshold, and how well scores separate: plain arithmetic.

/// `min(y / (x h), (1 - x) / (h - y))` with both divisors at least 1e-8: small for an input on which the expert is sure of
/// the model's answer (x near 1) and the auxiliary model is not (y near 0). Its level sets are lines through the corners
/// (0, 0) and (1, h).
pub fn score(x: f64, y: f64, h: f64) -> f64 {
    const LEAST: f64 = 1e-8;
    (y / (x * h).max(LEAST)).min((1.0 - x) / (h - y).max(LEAST))
}

/// The score below which inputs are rejected: the order statistic with `fpr` of the scores before it, so that among
/// different scores exactly floor(fpr n) lie strictly below it.
pub fn threshold(scores: &[f64], fpr: f64) -> Option<f64> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (fpr * sorted.len() as f64).floor() as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
}

/// The share of pairs (poisoned, clean) in which the poisoned input has the smaller score; ties count a half.
pub fn auroc(clean: &[f64], poisoned: &[f64]) -> f64 {
    let mut sorted = clean.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins: f64 = poisoned
        .iter()
        .map(|s| {
            let above = sorted.len() - sorted.partition_point(|c| c <= s);
            let below = sorted.partition_point(|c| c < s);
            let equal = sorted.len() - above - below;
            above as f64 + 0.5 * equal as f64
        })
        .sum();
    wins / (clean.len() * poisoned.len()).max(1) as f64
}

/// The share of numbers that satisfy a condition.
pub fn share<T>(all: impl IntoIterator<Item = T>, f: impl Fn(&T) -> bool) -> f64 {
    let (mut yes, mut n) = (0.0, 0.0f64);
    for one in all {
        n += 1.0;
        yes += f64::from(u8::from(f(&one)));
    }
    yes / n.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn the_card_s_points_have_the_card_s_scores() {
        for (x, y, s) in [
            (1.0, 0.0, 0.0),
            (0.9, 0.1, 0.222222),
            (0.98, 0.3, 0.1),
            (0.5, 0.25, 1.0),
            (0.5, 0.5, 2.0),
            (0.1, 0.9, 18.0),
        ] {
            close(score(x, y, 0.5), s);
        }
    }

    #[test]
    fn a_score_grows_with_the_auxiliary_s_confidence_and_falls_with_the_expert_s() {
        let grid: Vec<f64> = (0..=20).map(|i| f64::from(i) / 20.0).collect();
        for h in [0.5, 0.4, 0.2] {
            for pair in grid.windows(2) {
                for &other in &grid {
                    assert!(score(other, pair[1], h) >= score(other, pair[0], h));
                    assert!(score(pair[1], other, h) <= score(pair[0], other, h));
                }
            }
        }
    }

    #[test]
    fn one_model_in_all_three_roles_separates_nothing() {
        // x = y = p: the first term is 2 wherever p is not 0, and the second is never smaller.
        for p in [0.1, 0.3, 0.45, 0.5, 0.8, 1.0] {
            let s = score(p, p, 0.5);
            let second = (1.0 - p) / (0.5f64 - p).max(1e-8);
            close(s, second.min(2.0));
        }
        close(score(0.3, 0.3, 0.5), 2.0);
    }

    #[test]
    fn five_of_a_hundred_scores_lie_strictly_below_the_five_percent_quantile() {
        let scores: Vec<f64> = (1..=100).map(f64::from).collect();
        let t = threshold(&scores, 0.05).unwrap_or_default();
        assert_eq!(scores.iter().filter(|s| **s < t).count(), 5);
        assert_eq!(threshold(&[], 0.05), None);
    }

    #[test]
    fn separated_scores_have_an_area_of_one_and_equal_ones_of_a_half() {
        close(auroc(&[3.0, 4.0], &[1.0, 2.0]), 1.0);
        close(auroc(&[1.0, 2.0], &[3.0]), 0.0);
        close(auroc(&[2.0, 2.0], &[2.0]), 0.5);
        close(auroc(&[1.0, 3.0], &[2.0]), 0.5);
    }
}
