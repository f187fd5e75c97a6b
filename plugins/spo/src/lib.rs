//! Normaliser: one response a prompt, against what the prompt's earlier responses earned.
//!
//! SPO, Single-stream Policy Optimization, 2025 (arXiv 2509.13232). Of every prompt x it keeps Beta pseudo-counts
//! alpha and beta, and v = alpha / (alpha + beta), the success to be expected. With r the reward on a scale from 0 to 1
//! (by its declared range):
//!
//! ```text
//! A_i = r_i - v(x_i)                                        v before the update
//! A~_i = (A_i - mean A) / (std A + 1e-8)                    over the batch, unbiased
//! rho = clip(2^(-D / d-half), rho-min, rho-max)             D: mean |log-ratio| on the prompt's earlier response
//! alpha <- rho alpha + r,   beta <- rho beta + 1 - r        after the policy's update
//! weight of x in sampling = sqrt(v (1 - v)) + eps
//! ```
//!
//! A prompt's first visit has no D: rho = rho-max. Responses to one prompt in one batch are applied one after the
//! other, each with the prompt's rho; the published code lets the last one win.
//!
//! What differs: prompts begin with Jeffreys' prior (alpha = beta = 1/2), where the paper first draws 8 responses of
//! each (`Belief::initial` is that rule); no such pass belongs to this interface.

use std::collections::BTreeMap;

use espalier_sdk::rewards::{Advantage, Bounds, Drift, RewardSpec, Rollout, deviation, mean};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Error, Normalizer, Options, RunInfo, TrackingNormalizer, log};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Least of the earlier evidence that an update keeps.
    #[option(default = 0.875, min = 0, max = 0.999999)]
    rho_min: f64,
    /// Most of the earlier evidence that an update keeps.
    #[option(default = 0.96, min = 0, max = 0.999999)]
    rho_max: f64,
    /// Drift, in nats a token, that halves the earlier evidence.
    #[option(default = 0.06, min = 1e-9)]
    d_half: f64,
    /// Added to a prompt's weight in sampling, so that solved prompts still come.
    #[option(default = 0.05, min = 0)]
    eps: f64,
    /// Keeps this much whatever the drift; 0 goes by the drift.
    #[option(default = 0.0, min = 0, max = 0.999999)]
    constant_rho: f64,
}

impl Settings {
    /// How much of the earlier evidence a policy that moved so far leaves.
    fn rho(&self, drift: f64) -> f64 {
        match self.constant_rho {
            0.0 => f64::exp2(-drift / self.d_half)
                .min(self.rho_max)
                .max(self.rho_min),
            rho => rho,
        }
    }
}

/// What is expected of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Belief {
    alpha: f64,
    beta: f64,
}

impl Belief {
    /// After `n` responses of the first policy, `successes` of them right: as if 1 / (1 - rho-min) had been seen.
    /// Without any, Jeffreys' prior.
    fn initial(n: u32, successes: u32, rho_min: f64) -> Belief {
        let (n, successes) = (f64::from(n), f64::from(successes));
        let evidence = match n {
            0.0 => 1.0,
            _ => 1.0 / (1.0 - rho_min),
        };
        Belief {
            alpha: evidence * (successes + 0.5) / (n + 1.0),
            beta: evidence * (n - successes + 0.5) / (n + 1.0),
        }
    }

    /// Expected success, between 0 and 1.
    fn v(&self) -> f64 {
        self.alpha / (self.alpha + self.beta)
    }

    fn update(&mut self, rho: f64, reward: f64) {
        self.alpha = rho * self.alpha + reward;
        self.beta = rho * self.beta + 1.0 - reward;
    }
}

struct Spo {
    settings: Settings,
    range: Bounds,
    beliefs: BTreeMap<u64, Belief>,
    /// Prompts and rewards of the last batch, until the policy's drift on them is known.
    pending: Vec<(u64, f64)>,
}

impl Normalizer for Spo {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings, rewards: &RewardSpec) -> Result<Self, Error> {
        if settings.rho_min > settings.rho_max {
            return Err(Error::invalid_option(format!(
                "`rho-min` ({}) must not be above `rho-max` ({})",
                settings.rho_min, settings.rho_max
            )));
        }
        Ok(Spo {
            settings,
            range: rewards.outcome.clone(),
            beliefs: BTreeMap::new(),
            pending: Vec::new(),
        })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        // Nobody told of any drift since the last batch.
        self.learn(&[]);
        let rewards = batch.iter().map(|rollout| self.range.unit(rollout.reward));
        self.pending = batch
            .iter()
            .map(|rollout| rollout.prompt)
            .zip(rewards)
            .collect();
        let advantages: Vec<f64> = self
            .pending
            .iter()
            .map(|&(prompt, reward)| reward - self.belief(prompt).v())
            .collect();
        log::metric("squared-error", mean(advantages.iter().map(|a| a * a)));
        Ok(whitened(&advantages)
            .into_iter()
            .map(Advantage::of)
            .collect())
    }

    fn save(&self) -> Vec<u8> {
        let state = Writer::new(1).u64(self.beliefs.len() as u64);
        let state = self.beliefs.iter().fold(state, |state, (prompt, belief)| {
            state.u64(*prompt).f64(belief.alpha).f64(belief.beta)
        });
        let state = state.u64(self.pending.len() as u64);
        let state = self.pending.iter().fold(state, |state, (prompt, reward)| {
            state.u64(*prompt).f64(*reward)
        });
        state.finish()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(bytes, 1)?;
        self.beliefs.clear();
        for _ in 0..state.u64()? {
            let (prompt, alpha, beta) = (state.u64()?, state.f64()?, state.f64()?);
            self.beliefs.insert(prompt, Belief { alpha, beta });
        }
        self.pending.clear();
        for _ in 0..state.u64()? {
            self.pending.push((state.u64()?, state.f64()?));
        }
        state.end()
    }
}

impl TrackingNormalizer for Spo {
    fn observe(&mut self, drifts: &[Drift]) {
        self.learn(drifts);
    }

    fn prompt_weights(&self, prompts: &[u64]) -> Vec<f64> {
        let weight = |prompt: &u64| {
            let v = self.belief(*prompt).v();
            (v * (1.0 - v)).max(0.0).sqrt() + self.settings.eps
        };
        prompts.iter().map(weight).collect()
    }
}

impl Spo {
    fn belief(&self, prompt: u64) -> Belief {
        let prior = || Belief::initial(0, 0, self.settings.rho_min);
        self.beliefs.get(&prompt).copied().unwrap_or_else(prior)
    }

    /// Takes the rewards of the last batch into the beliefs. A prompt without a drift has not moved.
    fn learn(&mut self, drifts: &[Drift]) {
        let drifts: BTreeMap<u64, f64> = drifts
            .iter()
            .map(|drift| (drift.prompt, drift.mean_abs_logratio))
            .collect();
        for (prompt, reward) in std::mem::take(&mut self.pending) {
            let drift = drifts.get(&prompt).copied().unwrap_or(0.0);
            let mut belief = self.belief(prompt);
            belief.update(self.settings.rho(drift), reward);
            self.beliefs.insert(prompt, belief);
        }
    }
}

/// Centred and divided by the unbiased standard deviation; zeros where all are equal.
fn whitened(advantages: &[f64]) -> Vec<f64> {
    if advantages.iter().all(|&a| a == advantages[0]) {
        return vec![0.0; advantages.len()];
    }
    let (center, spread) = (mean(advantages.iter().copied()), deviation(advantages));
    advantages
        .iter()
        .map(|a| (a - center) / (spread + 1e-8))
        .collect()
}

espalier_sdk::export!(tracking normalizer: Spo);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spo() -> Spo {
        Spo {
            settings: Settings::defaults(),
            range: RewardSpec::outcome(0.0, 1.0).outcome,
            beliefs: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found}, expected {expected}"
        );
    }

    fn drift(prompt: u64, mean_abs_logratio: f64) -> Drift {
        Drift {
            prompt,
            mean_abs_logratio,
        }
    }

    #[test]
    fn six_of_eight_right_answers_give_the_known_belief() {
        let belief = Belief::initial(8, 6, 0.875);
        close(belief.alpha, 5.777778, 1e-6);
        close(belief.beta, 2.222222, 1e-6);
        close(belief.v(), 0.722222, 1e-6);
        close(belief.alpha + belief.beta, 8.0, 1e-12);
        let unseen = Belief::initial(0, 0, 0.875);
        assert_eq!((unseen.alpha, unseen.beta), (0.5, 0.5));
    }

    #[test]
    fn forgetting_follows_the_drift_between_its_bounds() {
        let settings = Settings::defaults();
        assert_eq!(settings.rho(0.0), 0.96);
        close(settings.rho(0.005), 0.943874, 1e-6);
        assert_eq!(settings.rho(0.06), 0.875);
        assert_eq!(settings.rho(f64::INFINITY), 0.875);
        // The bounds act below 0.0035336 and above 0.0115587.
        assert_eq!(settings.rho(0.003_533), 0.96);
        assert!(settings.rho(0.003_535) < 0.96);
        assert!(settings.rho(0.011_558) > 0.875);
        assert_eq!(settings.rho(0.011_560), 0.875);
        let constant = Settings {
            constant_rho: 0.92,
            ..Settings::defaults()
        };
        assert_eq!(constant.rho(5.0), 0.92);
    }

    #[test]
    fn success_for_ever_fills_the_window_and_is_believed() {
        let mut belief = Belief::initial(0, 0, 0.875);
        let mut failure = 1.0 - belief.v();
        for step in 0..200 {
            let evidence = 0.875 * (belief.alpha + belief.beta) + 1.0;
            let running = belief.v() + (1.0 - belief.v()) / evidence;
            belief.update(0.875, 1.0);
            close(belief.alpha + belief.beta, evidence, 1e-12);
            close(belief.v(), running, 1e-12);
            // Geometric once the window is full: beta shrinks by rho.
            if step > 100 {
                close((1.0 - belief.v()) / failure, 0.875, 1e-3);
            }
            failure = 1.0 - belief.v();
        }
        close(belief.alpha + belief.beta, 8.0, 1e-9);
        close(belief.v(), 1.0, 1e-9);
    }

    #[test]
    fn four_rewards_have_the_known_advantages() {
        let a: Vec<f64> = [1.0, 0.0, 1.0, 1.0]
            .iter()
            .zip([0.5, 0.5, 0.9, 0.1])
            .map(|(r, v)| r - v)
            .collect();
        let expected = [0.418_609_2, -1.255_827_5, -0.251_165_5, 1.088_383_9];
        for (found, expected) in whitened(&a).into_iter().zip(expected) {
            close(found, expected, 1e-7);
        }
    }

    #[test]
    fn nothing_to_compare_gives_zeros() {
        assert_eq!(whitened(&[0.1; 10]), [0.0; 10]);
        assert_eq!(whitened(&[0.3]), [0.0]);
        assert!(whitened(&[]).is_empty());
    }

    #[test]
    fn copies_of_a_prompt_are_applied_one_after_the_other() {
        let mut spo = spo();
        spo.pending = vec![(7, 1.0), (7, 0.0), (9, 1.0)];
        spo.observe(&[drift(7, 0.06)]);
        let seven = spo.belief(7);
        // (0.5 * 0.875 + 1) * 0.875 and (0.5 * 0.875) * 0.875 + 1.
        close(seven.alpha, 1.257_812_5, 1e-12);
        close(seven.beta, 1.382_812_5, 1e-12);
        // No drift is known of a first visit.
        close(spo.belief(9).alpha, 0.5 * 0.96 + 1.0, 1e-12);
        assert!(spo.pending.is_empty());
    }

    #[test]
    fn prompts_in_doubt_are_wanted_most_and_solved_ones_still_come() {
        let mut spo = spo();
        spo.beliefs.insert(
            1,
            Belief {
                alpha: 8.0,
                beta: 0.0,
            },
        );
        spo.beliefs.insert(
            2,
            Belief {
                alpha: 2.0,
                beta: 6.0,
            },
        );
        let weights = spo.prompt_weights(&[1, 2, 3]);
        close(weights[0], 0.05, 1e-12);
        close(weights[1], 0.75_f64.sqrt() / 2.0 + 0.05, 1e-12);
        close(weights[2], 0.55, 1e-12);
    }

    #[test]
    fn state_comes_back_with_what_is_not_yet_learned() {
        let mut before = spo();
        before.beliefs.insert(
            5,
            Belief {
                alpha: 1.25,
                beta: 0.3,
            },
        );
        before.pending = vec![(5, 1.0), (u64::MAX, 0.25)];
        let mut after = spo();
        after.restore(&before.save()).unwrap();
        assert_eq!(after.beliefs, before.beliefs);
        assert_eq!(after.pending, before.pending);
        assert!(after.restore(&before.save()[..20]).is_err());
    }
}
