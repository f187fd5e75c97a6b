//! Normaliser: rewards relative to their group.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, deviation, groups, mean};
use espalier_sdk::{Error, Normalizer, Options, RunInfo};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Added to the spread, in units of reward.
    #[option(default = 1e-6, min = 1e-12)]
    eps: f64,
}

/// Each reward less the mean of its group, divided by the group's spread.
struct Relative {
    eps: f64,
}

impl Normalizer for Relative {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Relative { eps: options.eps })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let mut advantages = vec![Advantage::of(0.0); batch.len()];
        for group in groups(batch) {
            let rewards: Vec<f64> = group.iter().map(|&i| batch[i].reward).collect();
            let (center, spread) = (mean(rewards.iter().copied()), deviation(&rewards));
            for (i, reward) in group.into_iter().zip(rewards) {
                advantages[i] = Advantage::of((reward - center) / (spread + self.eps));
            }
        }
        Ok(advantages)
    }
}

espalier_sdk::export!(normalizer: Relative);
