//! Normaliser: relative to a group that also holds an imagined response with the largest reward.
//!
//! NGRPO, Negative-enhanced Group Relative Policy Optimization, 2025 (arXiv 2509.18851). With G rewards R_i of a group,
//! the largest possible reward r and n imagined responses that got it:
//!
//! ```text
//! mu = (sum R_i + n r) / (G + n)
//! s  = sqrt((sum (R_i - mu)^2 + n (r - mu)^2) / (G + n - 1))
//! A_i = (R_i - mu) / (s + epsilon)
//! ```
//!
//! A group in which all fail has a negative advantage for each response, where GRPO has 0; one in which all succeed
//! still has 0. r is the top of the declared range. The imagined responses give no gradient. n = 0 is GRPO.
//!
//! As in the published script, groups whose responses are all right are left out of the update, also where the trainer
//! counts (`drop-all-correct`), and a group of one passes its reward through (mu = 0, s = 1). The method's other half,
//! a clip range of 0.16 downwards and 0.24 upwards, is an option of the trainer.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, groups};
use espalier_sdk::{Error, Normalizer, Options, RunInfo};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Imagined responses of each group that got the largest reward; 0 is GRPO.
    #[option(default = 1, max = 1000)]
    virtual_samples: u32,
    /// Added to the standard deviation, in units of reward.
    #[option(default = 1e-6, min = 1e-12)]
    eps: f64,
    /// Leaves groups whose responses are all right out of the update, also where it counts.
    #[option(default = true)]
    drop_all_correct: bool,
}

struct Ngrpo {
    settings: Settings,
    /// The largest reward that the environment pays.
    top: f64,
}

impl Normalizer for Ngrpo {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings, rewards: &RewardSpec) -> Result<Self, Error> {
        let top = rewards.outcome.max;
        Ok(Ngrpo { settings, top })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let mut advantages = vec![Advantage::of(0.0); batch.len()];
        for places in groups(batch) {
            let rewards: Vec<f64> = places.iter().map(|&i| batch[i].reward).collect();
            let all_correct = places.iter().all(|&i| batch[i].correct);
            let values = calibrated(&rewards, self.top, &self.settings);
            for (i, value) in places.into_iter().zip(values) {
                advantages[i] = match all_correct && self.settings.drop_all_correct {
                    true => Advantage::dropped(),
                    false => Advantage::of(value),
                };
            }
        }
        Ok(advantages)
    }
}

/// The advantages of one group.
fn calibrated(rewards: &[f64], top: f64, settings: &Settings) -> Vec<f64> {
    let eps = settings.eps;
    if let [only] = rewards {
        return vec![only / (1.0 + eps)];
    }
    // Rounding over epsilon must not make something of nothing.
    let imagined = f64::from(settings.virtual_samples);
    let equal = rewards.iter().all(|&r| r == rewards[0]);
    if equal && (imagined == 0.0 || rewards[0] == top) {
        return vec![0.0; rewards.len()];
    }
    let count = rewards.len() as f64 + imagined;
    let mu = (rewards.iter().sum::<f64>() + imagined * top) / count;
    let square = |r: f64| (r - mu) * (r - mu);
    let squares = rewards.iter().map(|&r| square(r)).sum::<f64>() + imagined * square(top);
    let s = (squares / (count - 1.0)).sqrt();
    rewards.iter().map(|r| (r - mu) / (s + eps)).collect()
}

espalier_sdk::export!(normalizer: Ngrpo);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// epsilon as good as 0.
    fn exact(virtual_samples: u32) -> Settings {
        Settings {
            virtual_samples,
            eps: 1e-12,
            ..Settings::defaults()
        }
    }

    /// k right ones first.
    fn zero_one(k: usize, of: usize) -> Vec<f64> {
        (0..of).map(|i| f64::from(u8::from(i < k))).collect()
    }

    fn advantages(k: usize, of: usize) -> Vec<f64> {
        calibrated(&zero_one(k, of), 1.0, &exact(1))
    }

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-6,
            "{found}, expected {expected}"
        );
    }

    #[test]
    fn groups_of_eight_have_the_known_advantages() {
        for a in advantages(0, 8) {
            close(a, -1.0 / 3.0);
        }
        for (k, right, wrong) in [
            (1, 1.763834, -0.503953),
            (4, 0.843274, -1.054093),
            (7, 0.333333, -2.666667),
        ] {
            let a = advantages(k, 8);
            close(a[0], right);
            close(a[7], wrong);
        }
        assert_eq!(advantages(8, 8), [0.0; 8]);
    }

    #[test]
    fn failing_groups_have_minus_one_over_the_root_of_one_more() {
        for size in [2, 4, 16] {
            close(advantages(0, size)[0], -1.0 / f64::sqrt(size as f64 + 1.0));
        }
    }

    #[test]
    fn right_and_wrong_are_antisymmetric() {
        for k in 1..8 {
            close(advantages(k, 8)[0], -advantages(7 - k, 8)[7]);
        }
    }

    #[test]
    fn real_advantages_sum_to_what_the_imagined_one_takes() {
        for k in 0..8 {
            let (g, right) = (8.0, k as f64);
            let mu = (right + 1.0) / (g + 1.0);
            let s = ((right + 1.0) * (g - right) / ((g + 1.0) * g)).sqrt();
            let sum: f64 = advantages(k, 8).iter().sum();
            close(sum, -(1.0 - mu) / s);
            assert!(sum <= 0.0);
        }
    }

    #[test]
    fn without_imagined_responses_it_is_grpo() {
        // mean 1/4, unbiased std 1/2.
        let a = calibrated(&zero_one(1, 4), 1.0, &exact(0));
        for (found, expected) in a.iter().zip([1.5, -0.5, -0.5, -0.5]) {
            close(*found, expected);
        }
        assert_eq!(calibrated(&[0.1; 6], 1.0, &exact(0)), [0.0; 6]);
    }

    #[test]
    fn the_top_of_the_range_is_what_was_imagined() {
        // On a range from -1 to 3 a group of 1s fails by half: the same as 0.5 on 0 to 1.
        let wide = calibrated(&[1.0; 8], 3.0, &exact(1));
        for a in wide {
            close(a, -1.0 / 3.0);
        }
        assert_eq!(calibrated(&[3.0; 8], 3.0, &exact(1)), [0.0; 8]);
        // A reward whose sum does not round to itself.
        assert_eq!(calibrated(&[0.1; 10], 0.1, &exact(1)), [0.0; 10]);
    }

    #[test]
    fn a_group_of_one_passes_its_reward_through() {
        close(calibrated(&[1.0], 1.0, &exact(1))[0], 1.0);
        assert_eq!(calibrated(&[0.0], 1.0, &exact(1)), [0.0]);
    }
}
