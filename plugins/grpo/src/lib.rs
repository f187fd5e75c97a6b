//! Normaliser: rewards relative to their group, A = (R - mean) / (std + epsilon).
//!
//! GRPO: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2, with the unbiased standard deviation (n - 1) as in the
//! published code. Without the division, `scale-by-deviation = false`: Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783),
//! which finds that the spread weighs very easy and very hard prompts too much. Its other half, no division by the
//! response's length, is the trainer's aggregation.
//!
//! Two differences. Equal rewards give exactly 0, where rounding over epsilon would leave a trace. A group of one
//! gives 0, as the formula says; common code passes its reward through.
//!
//! `drop-constant-groups` leaves groups of equal rewards out, also where the trainer counts: the filter of DAPO, Yu
//! et al. 2025 (arXiv 2503.14476), without sampling others in their place.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, deviation, groups, mean};
use espalier_sdk::{Error, Normalizer, Options, RunInfo};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Divides by the standard deviation of the group; false is Dr. GRPO.
    #[option(default = true)]
    scale_by_deviation: bool,
    /// Added to the standard deviation, in units of reward.
    #[option(default = 1e-6, min = 1e-12)]
    eps: f64,
    /// Leaves groups whose rewards are all equal out of the update, also where it counts.
    #[option(default = false)]
    drop_constant_groups: bool,
}

struct Grpo(Settings);

impl Normalizer for Grpo {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Grpo(options))
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let mut advantages = vec![Advantage::of(0.0); batch.len()];
        for places in groups(batch) {
            let rewards: Vec<f64> = places.iter().map(|&i| batch[i].reward).collect();
            let constant = rewards.iter().all(|&r| r == rewards[0]);
            for (i, value) in places.into_iter().zip(relative(&rewards, &self.0)) {
                advantages[i] = match constant && self.0.drop_constant_groups {
                    true => Advantage::dropped(),
                    false => Advantage::of(value),
                };
            }
        }
        Ok(advantages)
    }
}

/// The advantages of one group.
fn relative(rewards: &[f64], settings: &Settings) -> Vec<f64> {
    if rewards.iter().all(|&r| r == rewards[0]) {
        return vec![0.0; rewards.len()];
    }
    let center = mean(rewards.iter().copied());
    let scale = match settings.scale_by_deviation {
        true => deviation(rewards) + settings.eps,
        false => 1.0,
    };
    rewards.iter().map(|r| (r - center) / scale).collect()
}

espalier_sdk::export!(normalizer: Grpo);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rollout(group: u64, reward: f64) -> Rollout {
        Rollout {
            sample: 0,
            prompt: group,
            group,
            parent: None,
            task: String::new(),
            reward,
            terms: Vec::new(),
            correct: reward > 0.5,
            well_formed: true,
            length: 1,
            tags: Vec::new(),
            segments: Vec::new(),
        }
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 2e-6, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn rewards_are_centred_and_divided_by_the_unbiased_spread() {
        // mean 1/4, std 1/2.
        let rewards = [1.0, 0.0, 0.0, 0.0];
        close(
            &relative(&rewards, &Settings::defaults()),
            &[1.4999970, -0.4999990, -0.4999990, -0.4999990],
        );
    }

    #[test]
    fn without_the_spread_only_the_mean_is_taken_off() {
        let plain = Settings {
            scale_by_deviation: false,
            ..Settings::defaults()
        };
        assert_eq!(
            relative(&[1.0, 0.0, 0.0, 0.0], &plain),
            [0.75, -0.25, -0.25, -0.25]
        );
    }

    #[test]
    fn equal_rewards_and_a_group_of_one_give_exactly_zero() {
        for rewards in [vec![0.1; 10], vec![1.0 / 3.0; 7], vec![0.9]] {
            assert!(
                relative(&rewards, &Settings::defaults())
                    .iter()
                    .all(|&a| a == 0.0)
            );
        }
    }

    #[test]
    fn constant_groups_are_dropped_only_where_asked() {
        let batch = [(1, 1.0), (2, 1.0), (1, 1.0), (2, 0.0)].map(|(g, r)| rollout(g, r));
        let keeps = |drop_constant_groups| -> Vec<bool> {
            let mut grpo = Grpo(Settings {
                drop_constant_groups,
                ..Settings::defaults()
            });
            let advantages = grpo.normalize(&batch).unwrap();
            advantages.iter().map(|a| a.keep).collect()
        };
        assert_eq!(keeps(false), [true; 4]);
        assert_eq!(keeps(true), [false, true, false, true]);
    }
}
