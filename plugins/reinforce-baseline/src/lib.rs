//! Normaliser: the reward less a baseline. A = R - b.
//!
//! Williams 1992 (REINFORCE with a baseline). b is the mean reward of the rollout's group, the mean of the batch, or
//! 0. A baseline leaves the expected gradient as it is and takes noise out of it; the group's own mean, which each
//! reward is a part of, shrinks it by (m - 1) / m for groups of m.
//!
//! The yardstick of the other normalisers: no scale, no state. A group of one gets 0 from its own mean.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, groups, mean};
use espalier_sdk::{Choice, Error, Normalizer, Options, RunInfo};

/// What a reward is compared with.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Baseline {
    Group,
    Batch,
    None,
}

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// What is taken off a reward: the mean of its group, the mean of the batch, or none.
    #[option(default = Baseline::Group)]
    baseline: Baseline,
}

struct ReinforceBaseline {
    baseline: Baseline,
}

impl Normalizer for ReinforceBaseline {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(ReinforceBaseline {
            baseline: options.baseline,
        })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let compared = match self.baseline {
            Baseline::Group => groups(batch),
            Baseline::Batch => vec![(0..batch.len()).collect()],
            Baseline::None => Vec::new(),
        };
        let mut values: Vec<f64> = batch.iter().map(|rollout| rollout.reward).collect();
        for places in compared {
            // From one of them, so that equal rewards give exactly 0.
            let first = places.first().map_or(0.0, |&i| batch[i].reward);
            let center = first + mean(places.iter().map(|&i| batch[i].reward - first));
            for i in places {
                values[i] -= center;
            }
        }
        Ok(values.into_iter().map(Advantage::of).collect())
    }
}

espalier_sdk::export!(normalizer: ReinforceBaseline);

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

    fn advantages(baseline: Baseline, batch: &[Rollout]) -> Vec<f64> {
        let advantages = ReinforceBaseline { baseline }.normalize(batch).unwrap();
        advantages.iter().map(|a| a.values[0]).collect()
    }

    #[test]
    fn each_baseline_is_taken_off() {
        let batch = [(1, 1.0), (2, 1.0), (1, 0.0), (2, 1.0)].map(|(g, r)| rollout(g, r));
        assert_eq!(advantages(Baseline::Group, &batch), [0.5, 0.0, -0.5, 0.0]);
        assert_eq!(
            advantages(Baseline::Batch, &batch),
            [0.25, 0.25, -0.75, 0.25]
        );
        assert_eq!(advantages(Baseline::None, &batch), [1.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn an_empty_batch_gives_nothing_and_a_group_of_one_nothing_to_learn() {
        assert!(advantages(Baseline::Batch, &[]).is_empty());
        assert_eq!(advantages(Baseline::Group, &[rollout(4, 0.7)]), [0.0]);
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert!(Settings::defaults().baseline == Baseline::Group);
    }
}
