//! Normaliser that tracks the policy: each reward less what its prompt earned before.
//!
//! Put the paper and its equation here, and say where this differs and why.

use std::collections::BTreeMap;

use espalier_sdk::rewards::{Advantage, Drift, RewardSpec, Rollout, mean};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Error, Normalizer, Options, RunInfo, TrackingNormalizer};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// How much of what a prompt earned before is kept at a new answer.
    #[option(default = 0.9, min = 0, max = 1)]
    keep: f64,
}

struct __TYPE__ {
    keep: f64,
    /// What each prompt is expected to earn.
    expected: BTreeMap<u64, f64>,
    /// Rewards of the last batch, until the policy's drift on their prompts is known.
    pending: BTreeMap<u64, Vec<f64>>,
}

impl Normalizer for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(__TYPE__ {
            keep: settings.keep,
            expected: BTreeMap::new(),
            pending: BTreeMap::new(),
        })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        self.pending.clear();
        for rollout in batch {
            self.pending
                .entry(rollout.prompt)
                .or_default()
                .push(rollout.reward);
        }
        // A prompt that comes for the first time is compared with its own mean.
        let baselines: BTreeMap<u64, f64> = self
            .pending
            .iter_mut()
            .map(|(&prompt, rewards)| {
                // In one order, so that rounding does not depend on the batch's.
                rewards.sort_by(f64::total_cmp);
                let first = rewards[0];
                let own = first + mean(rewards.iter().map(|r| r - first));
                (prompt, self.expected.get(&prompt).copied().unwrap_or(own))
            })
            .collect();
        let value = |rollout: &Rollout| {
            let baseline = baselines.get(&rollout.prompt).copied().unwrap_or(0.0);
            Advantage::of(rollout.reward - baseline)
        };
        Ok(batch.iter().map(value).collect())
    }

    fn save(&self) -> Vec<u8> {
        let state = Writer::new(1).u64(self.expected.len() as u64);
        let state = self.expected.iter().fold(state, |state, (prompt, value)| {
            state.u64(*prompt).f64(*value)
        });
        state.finish()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(bytes, 1)?;
        self.expected.clear();
        for _ in 0..state.u64()? {
            let (prompt, value) = (state.u64()?, state.f64()?);
            self.expected.insert(prompt, value);
        }
        state.end()
    }
}

impl TrackingNormalizer for __TYPE__ {
    fn observe(&mut self, _drifts: &[Drift]) {
        for (prompt, rewards) in std::mem::take(&mut self.pending) {
            let now = mean(rewards.iter().copied());
            let before = self.expected.get(&prompt).copied().unwrap_or(now);
            self.expected
                .insert(prompt, renewed(before, now, self.keep));
        }
    }

    fn prompt_weights(&self, prompts: &[u64]) -> Vec<f64> {
        vec![1.0; prompts.len()]
    }
}

/// The decision: what is expected after a new answer.
fn renewed(before: f64, now: f64, keep: f64) -> f64 {
    keep * before + (1.0 - keep) * now
}

espalier_sdk::export!(tracking normalizer: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_moves_towards_what_was_earned() {
        assert_eq!(renewed(1.0, 0.0, 0.75), 0.75);
        assert_eq!(renewed(0.5, 0.5, 0.9), 0.5);
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert_eq!(Settings::defaults().keep, 0.9);
    }
}
