//! Normaliser: each reward less the mean of its group, A = R - mean.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, groups, mean};
use espalier_sdk::{Error, Normalizer, Options, RunInfo};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// What every advantage is multiplied by.
    #[option(default = 1, min = 0)]
    scale: f64,
}

struct __TYPE__ {
    scale: f64,
}

impl Normalizer for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(__TYPE__ {
            scale: settings.scale,
        })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let mut advantages = vec![Advantage::of(0.0); batch.len()];
        for group in groups(batch) {
            let rewards: Vec<f64> = group.iter().map(|&i| batch[i].reward).collect();
            for (i, value) in group.into_iter().zip(centered(&rewards)) {
                advantages[i] = Advantage::of(self.scale * value);
            }
        }
        Ok(advantages)
    }
}

/// The decision: what each reward of a group is worth. Equal ones are worth exactly 0.
fn centered(rewards: &[f64]) -> Vec<f64> {
    let first = rewards.first().copied().unwrap_or(0.0);
    let center = first + mean(rewards.iter().map(|r| r - first));
    rewards.iter().map(|r| r - center).collect()
}

espalier_sdk::export!(normalizer: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_is_worth_what_it_is_above_the_mean() {
        assert_eq!(centered(&[1.0, 0.0, 0.0, 1.0]), [0.5, -0.5, -0.5, 0.5]);
        assert_eq!(centered(&[0.1, 0.1, 0.1]), [0.0, 0.0, 0.0]);
        assert!(centered(&[]).is_empty());
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert_eq!(Settings::defaults().scale, 1.0);
    }
}
