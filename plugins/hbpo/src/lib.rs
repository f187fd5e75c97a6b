//! Normaliser: correct answers are paid by their length and by the token budget that they were told to use.
//!
//! HBPO, Hierarchical Budget Policy Optimization, 2025 (arXiv 2507.15844). With L the tokens of a response (the forced
//! ones that state the budget included), b its budget, M `max-length`:
//!
//! ```text
//! f(L) = 4 cos(pi L / (2 M))                                4 for nothing, 0 at M
//! R = min(f(L) - |b - L| / M, f(b))    right, L <= M
//!     f(L)                             right, L <= M, no budget stated
//!     0                                wrong, or right and longer than M
//!     -1                               no answer could be read
//! inter_j = (R_j - mean R) / (std R + 1e-6)                 over the group, unbiased
//! intra_j = mean{R_k : b_k = b_j} - f(b_j)                  never above 0: how far this budget falls short
//! A_j = inter_j + intra-weight intra_j
//! ```
//!
//! It goes by what the environment says of right, wrong and readable, and by the length; not by the reward it pays.
//! A trainer that states a budget names it in the tag `budget`. A group of one has mean 0, std 1 and intra 0.
//!
//! Where all fail, inter is 0 and intra is not: every token is pushed down. `drop-equal-groups` leaves such groups out.
//! The published code adds intra twice; that is `intra-weight = 2`. One difference: a rollout without a budget has
//! intra 0, since f(M) = 0 in place of f(b) would pay for having stated none.

use std::collections::BTreeMap;
use std::f64::consts::FRAC_PI_2;

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, deviation, groups, mean};
use espalier_sdk::{Error, Normalizer, Options, RunInfo};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Tokens at which a response is worth nothing, no less than any budget; the longest response of the environment.
    #[option(default = 4096, min = 1)]
    max_length: u32,
    /// Weight of the comparison within a budget: 1 is the formula, 2 is the published code.
    #[option(default = 1.0, min = 0)]
    intra_weight: f64,
    /// Leaves groups whose rewards are all equal out of the update, also where it counts.
    #[option(default = false)]
    drop_equal_groups: bool,
}

/// What a response without a readable answer is paid.
const MALFORMED: f64 = -1.0;

impl Settings {
    /// What a right answer of so many tokens is worth.
    fn f(&self, length: f64) -> f64 {
        4.0 * (FRAC_PI_2 * length / f64::from(self.max_length)).cos()
    }

    /// What a right answer is paid.
    fn right(&self, length: f64, budget: Option<f64>) -> f64 {
        let most = f64::from(self.max_length);
        match budget {
            _ if length > most => 0.0,
            None => self.f(length),
            Some(b) => (self.f(length) - (b - length).abs() / most).min(self.f(b)),
        }
    }

    fn reward(&self, rollout: &Rollout) -> f64 {
        match (rollout.well_formed, rollout.correct) {
            (false, _) => MALFORMED,
            (true, false) => 0.0,
            (true, true) => self.right(f64::from(rollout.length), rollout.budget()),
        }
    }

    /// The advantages of one group from its rewards and budgets.
    fn advantages(&self, rewards: &[f64], budgets: &[Option<f64>]) -> Vec<f64> {
        if let [only] = rewards {
            return vec![only / (1.0 + 1e-6)];
        }
        let equal = rewards.iter().all(|&r| r == rewards[0]);
        let (center, spread) = match equal {
            true => (rewards[0], 0.0),
            false => (mean(rewards.iter().copied()), deviation(rewards)),
        };
        let mut told: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (reward, budget) in rewards.iter().zip(budgets) {
            if let Some(b) = budget {
                told.entry(b.to_bits()).or_default().push(*reward);
            }
        }
        let short = |budget: &Option<f64>| match budget {
            None => 0.0,
            Some(b) => told
                .get(&b.to_bits())
                .map_or(0.0, |paid| mean(paid.iter().map(|r| r - self.f(*b)))),
        };
        rewards
            .iter()
            .zip(budgets)
            .map(|(r, budget)| (r - center) / (spread + 1e-6) + self.intra_weight * short(budget))
            .collect()
    }
}

struct Hbpo(Settings);

impl Normalizer for Hbpo {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Hbpo(options))
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let most = self.0.max_length;
        for rollout in batch {
            if let Some(b) = rollout.budget()
                && !(0.0..=f64::from(most)).contains(&b)
            {
                return Err(Error::incompatible(format!(
                    "rollout {} was told to use {b} tokens; a budget lies between 0 and `max-length` ({most})",
                    rollout.sample
                )));
            }
        }
        let mut advantages = vec![Advantage::of(0.0); batch.len()];
        for places in groups(batch) {
            let rewards: Vec<f64> = places.iter().map(|&i| self.0.reward(&batch[i])).collect();
            let budgets: Vec<_> = places.iter().map(|&i| batch[i].budget()).collect();
            let equal = rewards.iter().all(|&r| r == rewards[0]);
            for (i, value) in places
                .into_iter()
                .zip(self.0.advantages(&rewards, &budgets))
            {
                advantages[i] = match equal && self.0.drop_equal_groups {
                    true => Advantage::dropped(),
                    false => Advantage::of(value),
                };
            }
        }
        Ok(advantages)
    }
}

espalier_sdk::export!(normalizer: Hbpo);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BUDGETS: [f64; 4] = [512.0, 1024.0, 2048.0, 2560.0];

    fn paper() -> Settings {
        Settings::defaults()
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found}, expected {expected}"
        );
    }

    fn rollout(length: u32, budget: Option<f64>) -> Rollout {
        Rollout {
            sample: 3,
            prompt: 0,
            group: 0,
            parent: None,
            task: String::new(),
            reward: 0.0,
            terms: Vec::new(),
            correct: true,
            well_formed: true,
            length,
            tags: budget
                .map(|b| ("budget".to_string(), b))
                .into_iter()
                .collect(),
            segments: Vec::new(),
        }
    }

    /// Sixteen rollouts, four a budget, budgets in turn.
    fn sixteen() -> Vec<Option<f64>> {
        (0..16).map(|i| Some(BUDGETS[i % 4])).collect()
    }

    #[test]
    fn the_length_curve_has_the_known_values() {
        for (length, expected) in BUDGETS.into_iter().zip([3.9231, 3.6955, 2.8284, 2.2223]) {
            close(paper().f(length), expected, 5e-5);
        }
        close(paper().f(4096.0), 0.0, 1e-12);
        assert_eq!(paper().f(0.0), 4.0);
    }

    #[test]
    fn right_answers_are_paid_by_length_and_budget() {
        for (length, budget, expected) in [
            (1000.0, 512.0, 3.590_309),
            (3000.0, 512.0, 1.024_755),
            (1000.0, 2560.0, 2.222_281),
            (300.0, 2048.0, 2.828_427),
            (0.0, 512.0, 3.875),
        ] {
            close(paper().right(length, Some(budget)), expected, 1e-6);
        }
        assert_eq!(paper().right(5000.0, Some(512.0)), 0.0);
        close(paper().right(2048.0, None), 2.828_427, 1e-6);
    }

    #[test]
    fn wrong_and_unreadable_answers_are_paid_alike_at_any_length() {
        let mut wrong = rollout(10, Some(512.0));
        wrong.correct = false;
        assert_eq!(paper().reward(&wrong), 0.0);
        wrong.well_formed = false;
        assert_eq!(paper().reward(&wrong), -1.0);
    }

    #[test]
    fn answers_exactly_at_their_budgets_have_the_known_advantages() {
        let budgets = sixteen();
        let rewards: Vec<f64> = budgets
            .iter()
            .map(|b| paper().right(b.unwrap(), *b))
            .collect();
        close(mean(rewards.iter().copied()), 3.167_342, 1e-6);
        close(deviation(&rewards), 0.703_933, 1e-6);
        let a = paper().advantages(&rewards, &budgets);
        let expected = [1.073_679, 0.750_321, -0.481_458, -1.342_542];
        for (i, found) in a.iter().enumerate() {
            close(*found, expected[i % 4], 2e-6);
        }
    }

    #[test]
    fn where_all_fail_every_budget_is_pushed_down() {
        let a = paper().advantages(&[0.0; 16], &sixteen());
        for (i, found) in a.iter().enumerate() {
            assert_eq!(*found, -paper().f(BUDGETS[i % 4]));
        }
        let twice = Settings {
            intra_weight: 2.0,
            ..paper()
        };
        let b = twice.advantages(&[0.0; 16], &sixteen());
        assert_eq!(b[0], 2.0 * a[0]);
    }

    #[test]
    fn without_budgets_it_is_grpo_on_the_length_curve() {
        assert_eq!(paper().advantages(&[0.0; 4], &[None; 4]), [0.0; 4]);
        let a = paper().advantages(&[4.0, 0.0, 0.0, 0.0], &[None; 4]);
        close(a[0], 1.5, 1e-5);
        close(paper().advantages(&[2.0], &[Some(512.0)])[0], 2.0, 1e-5);
    }

    #[test]
    fn equal_groups_are_dropped_only_where_asked() {
        let batch = [rollout(512, Some(512.0)), rollout(512, Some(512.0))];
        assert!(Hbpo(paper()).normalize(&batch).unwrap()[0].keep);
        let drops = Settings {
            drop_equal_groups: true,
            ..paper()
        };
        assert!(!Hbpo(drops).normalize(&batch).unwrap()[0].keep);
    }

    #[test]
    fn a_budget_that_is_none_is_refused() {
        for budget in [-1.0, 4097.0, f64::NAN, f64::INFINITY] {
            let refused = Hbpo(paper()).normalize(&[rollout(1, Some(budget))]);
            assert!(refused.unwrap_err().message.contains("rollout 3"));
        }
    }
}
