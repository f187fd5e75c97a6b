//! Normaliser: each reward relative to its group, A = (R - mean) / (std + eps).
//!
//! Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; equal rewards give exactly 0. Put your own paper and equation
//! here, and say where this differs and why.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, deviation, groups, mean};
use espalier_sdk::{Error, Normalizer, Options, RunInfo, log};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Added to the standard deviation of a group, in units of reward.
    #[option(default = 1e-6, min = 1e-12)]
    eps: f64,
    /// Leaves groups whose rewards are all equal out of the update.
    #[option(default = false)]
    drop_constant_groups: bool,
}

struct __TYPE__(Settings);

impl Normalizer for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(__TYPE__(settings))
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let mut advantages = vec![Advantage::of(0.0); batch.len()];
        let mut constant_groups = 0.0;
        for group in groups(batch) {
            let rewards: Vec<f64> = group.iter().map(|&i| batch[i].reward).collect();
            let constant = is_constant(&rewards);
            constant_groups += f64::from(u8::from(constant));
            for (i, value) in group.into_iter().zip(relative(&rewards, self.0.eps)) {
                advantages[i] = match constant && self.0.drop_constant_groups {
                    true => Advantage::dropped(),
                    false => Advantage::of(value),
                };
            }
        }
        log::metric("constant-groups", constant_groups);
        Ok(advantages)
    }
}

fn is_constant(rewards: &[f64]) -> bool {
    rewards.iter().all(|&r| r == rewards[0])
}

/// The advantages of one group.
fn relative(rewards: &[f64], eps: f64) -> Vec<f64> {
    if is_constant(rewards) {
        return vec![0.0; rewards.len()];
    }
    let (center, spread) = (mean(rewards.iter().copied()), deviation(rewards));
    rewards
        .iter()
        .map(|r| (r - center) / (spread + eps))
        .collect()
}

espalier_sdk::export!(normalizer: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_are_measured_in_deviations_from_the_mean() {
        let found = relative(&[1.0, 0.0], 1e-12);
        // Unbiased: sqrt((0.25 + 0.25) / 1) = 0.7071.
        assert!((found[0] - 0.5f64.sqrt()).abs() < 1e-9 && found[0] == -found[1]);
    }

    #[test]
    fn equal_rewards_are_worth_exactly_nothing() {
        assert_eq!(relative(&[0.1; 5], 1e-6), [0.0; 5]);
        assert!(relative(&[], 1e-6).is_empty());
    }
}
