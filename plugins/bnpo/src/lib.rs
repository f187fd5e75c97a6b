//! Normaliser: the reward less its group's mean, divided by a Beta density of that mean which is fitted to the batch.
//!
//! BNPO, Beta Normalization Policy Optimization, 2025. With p_i the mean reward of question i, mu and s2 the mean and
//! the unbiased variance of all p_i of the batch:
//!
//! ```text
//! nu = mu (1 - mu) / s2 - 1,   a = nu mu,   b = nu (1 - mu)              p ~ Beta(a, b)
//! alpha = max(1, 1 + a / 3),   beta = max(1, 1 + b / 3)
//! f(p) = p^(alpha - 1) (1 - p)^(beta - 1) / B(alpha, beta)
//! A_ij = min(1 / f(p_i), clamp) (R_ij - p_i)
//! ```
//!
//! alpha = beta = 1 is REINFORCE with a baseline; alpha = beta = 3/2 is GRPO times pi / 8. For p ~ Beta(a, b) these
//! alpha and beta make the second moment of the gradient's weight smallest: E over R of ((R - p) / f)^2 is
//! p (1 - p) / f^2, whose mean is B(alpha, beta)^2 B(a + 3 - 2 alpha, b + 3 - 2 beta) / B(a, b), and setting its
//! derivatives to 0 gives alpha = a + 3 - 2 alpha and beta = b + 3 - 2 beta.
//!
//! Rewards are put on a scale from 0 to 1 by their declared range. With `decompose` every reward term is normalised
//! by itself and the advantages are averaged; the outcome is then not looked at.
//!
//! What differs from the published code: p_i that are all equal (s2 = 0) give alpha = beta = 1, where the code divides
//! by zero; a group of one is refused, where the code sets its p to 0; equal rewards give exactly 0.

use espalier_sdk::rewards::{Advantage, Bounds, RewardSpec, Rollout, deviation, groups, mean};
use espalier_sdk::{Error, Normalizer, Options, RunInfo, log};

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// Largest weight 1 / f(p) of a question.
    #[option(default = 1e6, min = 1e-3, max = 1e12)]
    clamp: f64,
    /// Normalises each reward term by itself and averages the advantages; false looks at the outcome alone.
    #[option(default = false)]
    decompose: bool,
}

/// Below this variance of the p_i there is nothing to fit.
const NO_SPREAD: f64 = 1e-12;

struct Bnpo {
    clamp: f64,
    /// The ranges of what is normalised: the terms in their order, or the outcome alone.
    outcome: Bounds,
    terms: Vec<Bounds>,
}

impl Normalizer for Bnpo {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings, rewards: &RewardSpec) -> Result<Self, Error> {
        if options.decompose && rewards.terms.is_empty() {
            return Err(Error::incompatible(
                "`decompose` normalises each reward term, and the environment pays none: \
                 leave it out or choose an environment with terms",
            ));
        }
        Ok(Bnpo {
            clamp: options.clamp,
            outcome: rewards.outcome.clone(),
            terms: match options.decompose {
                true => rewards.terms.clone(),
                false => Vec::new(),
            },
        })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let questions = groups(batch);
        if let Some(one) = questions.iter().find(|places| places.len() == 1) {
            return Err(Error::incompatible(format!(
                "bnpo weighs a response by the mean reward of its group, and group {} has one response alone: \
                 sample at least 2 responses to a prompt, better 8",
                batch[one[0]].group
            )));
        }
        let mut values = vec![0.0; batch.len()];
        let mut add = |bounds: &Bounds, weight: f64, reward: &dyn Fn(&Rollout) -> f64| {
            let rewards: Vec<f64> = batch.iter().map(|r| bounds.unit(reward(r))).collect();
            let (fit, advantages) = advantages(&rewards, &questions, self.clamp);
            report(&bounds.name, &fit);
            for (value, advantage) in values.iter_mut().zip(advantages) {
                *value += weight * advantage;
            }
        };
        match self.terms.len() {
            0 => add(&self.outcome, 1.0, &|rollout| rollout.reward),
            k => {
                for (place, bounds) in self.terms.iter().enumerate() {
                    let term =
                        |rollout: &Rollout| rollout.terms.get(place).map_or(bounds.min, |t| t.1);
                    add(bounds, 1.0 / k as f64, &term);
                }
            }
        }
        Ok(values.into_iter().map(Advantage::of).collect())
    }
}

/// What was found in a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fit {
    /// Mean of the p_i.
    mu: f64,
    /// Their unbiased variance.
    s2: f64,
    alpha: f64,
    beta: f64,
}

impl Fit {
    /// The density by which a batch with these p_i is divided, by the method of moments.
    fn of(p: &[f64]) -> Fit {
        let (mu, s2) = (mean(p.iter().copied()), deviation(p).powi(2));
        let (alpha, beta) = match s2 < NO_SPREAD {
            true => (1.0, 1.0),
            false => {
                let nu = mu * (1.0 - mu) / s2 - 1.0;
                (narrower(nu * mu), narrower(nu * (1.0 - mu)))
            }
        };
        Fit {
            mu,
            s2,
            alpha,
            beta,
        }
    }

    /// min(1 / f(p), clamp), through logarithms.
    fn weight(&self, p: f64, clamp: f64) -> f64 {
        // 0 ln 0 is 0 here: with an exponent of 0 the factor is 1 at the end too.
        let factor = |exponent: f64, x: f64| match exponent {
            0.0 => 0.0,
            _ => exponent * x.ln(),
        };
        let ln_f = factor(self.alpha - 1.0, p) + factor(self.beta - 1.0, 1.0 - p)
            - ln_beta(self.alpha, self.beta);
        (-ln_f).exp().min(clamp)
    }
}

/// The parameter of the density that divides, from that of the distribution.
fn narrower(a: f64) -> f64 {
    (1.0 + a / 3.0).max(1.0)
}

/// ln B(a, b).
fn ln_beta(a: f64, b: f64) -> f64 {
    libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
}

/// Advantages of rewards in [0, 1], in their order.
fn advantages(rewards: &[f64], questions: &[Vec<usize>], clamp: f64) -> (Fit, Vec<f64>) {
    let p: Vec<f64> = questions
        .iter()
        .map(|places| success(places, rewards))
        .collect();
    let fit = Fit::of(&p);
    let mut advantages = vec![0.0; rewards.len()];
    for (places, p) in questions.iter().zip(p) {
        // The clamp comes before the product: 1/f is infinite where p is 0 or 1, and R - p is 0 there.
        let weight = fit.weight(p, clamp);
        for &i in places {
            advantages[i] = weight * (rewards[i] - p);
        }
    }
    (fit, advantages)
}

/// The mean of a group's rewards; of equal ones exactly that reward.
fn success(places: &[usize], rewards: &[f64]) -> f64 {
    let first = rewards[places[0]];
    (first + mean(places.iter().map(|&i| rewards[i] - first))).clamp(0.0, 1.0)
}

/// The fit as metrics, with the term's name before them.
fn report(term: &str, fit: &Fit) {
    let name = |what: &str| match term {
        "" => what.to_string(),
        _ => format!("{term}/{what}"),
    };
    log::metric(&name("alpha"), fit.alpha);
    log::metric(&name("beta"), fit.beta);
    log::metric(&name("mu"), fit.mu);
    log::metric(&name("s2"), fit.s2);
}

espalier_sdk::export!(normalizer: Bnpo);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::f64::consts::FRAC_PI_8;

    fn density(alpha: f64, beta: f64) -> Fit {
        Fit {
            mu: 0.5,
            s2: 0.0,
            alpha,
            beta,
        }
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        let off = (found - expected).abs();
        assert!(off <= tolerance, "{found}, expected {expected}");
    }

    fn in_groups(rewards: &[&[f64]]) -> (Vec<f64>, Vec<Vec<usize>>) {
        let mut start = 0;
        let questions = rewards.iter().map(|group| {
            let places = (start..start + group.len()).collect();
            start += group.len();
            places
        });
        let questions = questions.collect();
        (rewards.concat(), questions)
    }

    fn of_groups(rewards: &[&[f64]]) -> (Fit, Vec<f64>) {
        let (rewards, questions) = in_groups(rewards);
        advantages(&rewards, &questions, 1e6)
    }

    #[test]
    fn three_groups_have_the_known_fit_and_advantages() {
        let (fit, a) = of_groups(&[
            &[1.0, 0.0, 0.0, 0.0],
            &[1.0, 1.0, 0.0, 0.0],
            &[1.0, 1.0, 1.0, 0.0],
        ]);
        close(fit.mu, 0.5, 1e-15);
        close(fit.s2, 0.0625, 1e-15);
        close(fit.alpha, 1.5, 1e-12);
        close(fit.beta, 1.5, 1e-12);
        close(1.0 / fit.weight(0.25, 1e6), 1.1026578, 1e-7);
        close(1.0 / fit.weight(0.5, 1e6), 1.2732395, 1e-7);
        let expected = [
            [0.6801748, -0.2267249, -0.2267249, -0.2267249],
            [FRAC_PI_8, FRAC_PI_8, -FRAC_PI_8, -FRAC_PI_8],
            [0.2267249, 0.2267249, 0.2267249, -0.6801748],
        ];
        for (found, expected) in a.iter().zip(expected.as_flattened()) {
            close(*found, *expected, 1e-7);
        }
    }

    #[test]
    fn one_and_one_is_reinforce_with_a_baseline() {
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            assert_eq!(density(1.0, 1.0).weight(p, 1e6), 1.0);
        }
    }

    #[test]
    fn three_halves_twice_is_grpo_times_pi_over_eight() {
        for p in [0.01, 0.125, 0.5, 0.875] {
            let grpo = 1.0 / f64::sqrt(p * (1.0 - p));
            close(density(1.5, 1.5).weight(p, 1e6), grpo * FRAC_PI_8, 1e-12);
        }
    }

    #[test]
    fn a_fit_of_three_and_six_has_the_known_density() {
        assert_eq!((narrower(3.0), narrower(6.0)), (2.0, 3.0));
        close(density(2.0, 3.0).weight(0.5, 1e6), 2.0 / 3.0, 1e-12);
    }

    #[test]
    fn equal_rewards_give_exactly_zero_whatever_the_weight() {
        let (fit, a) = of_groups(&[&[0.0; 4], &[1.0; 4], &[0.1; 4], &[1.0, 0.0, 0.0, 1.0]]);
        assert!(fit.alpha > 1.0 || fit.beta >= 1.0);
        assert!(a[..12].iter().all(|&a| a == 0.0), "{a:?}");
        let sharp = density(3.0, 3.0);
        assert_eq!(sharp.weight(0.0, 1e6), 1e6);
        assert_eq!(sharp.weight(1.0, 10.0), 10.0);
        assert_eq!(sharp.weight(1.0, 1e6) * (1.0 - 1.0), 0.0);
    }

    #[test]
    fn no_spread_and_too_much_spread_are_reinforce() {
        for p in [
            &[0.25; 5][..],
            &[0.5],
            &[],
            &[0.0, 1.0],
            &[0.0, 0.0, 1.0, 1.0],
        ] {
            let fit = Fit::of(p);
            assert_eq!((fit.alpha, fit.beta), (1.0, 1.0), "{p:?}");
        }
    }

    #[test]
    fn a_question_far_from_all_others_has_the_clamp_for_its_weight() {
        let mut p = vec![0.5; 99];
        p.push(0.02);
        assert_eq!(Fit::of(&p).weight(0.02, 10.0), 10.0);
        assert!(Fit::of(&p).weight(0.5, 10.0) < 1.0);
    }

    /// Numbers uniform on (0, 1): SplitMix64.
    struct Uniform(u64);

    impl Uniform {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        }

        /// Gamma with a whole parameter: a sum of exponentials.
        fn gamma(&mut self, k: u32) -> f64 {
            (0..k).map(|_| -self.next().ln()).sum()
        }
    }

    /// The paper's comparison without training: 65536 questions with p ~ Beta(a, b), one response each, the true p,
    /// and the density of the true a and b. What a batch estimates of them is measured by the example
    /// `bnpo-variance`.
    #[test]
    fn the_second_moment_of_the_weights_is_the_closed_form() {
        let table = [
            ((1, 4), [0.133333, 0.154213, 0.074435]),
            ((3, 3), [0.214286, 0.154213, 0.138889]),
            ((6, 2), [0.166667, 0.154213, 0.077638]),
        ];
        for ((a, b), expected) in table {
            let (x, y) = (f64::from(a), f64::from(b));
            let arms = [
                density(1.0, 1.0),
                density(1.5, 1.5),
                density(narrower(x), narrower(y)),
            ];
            let closed = [
                x * y / ((x + y) * (x + y + 1.0)),
                FRAC_PI_8.powi(2),
                (3.0 * ln_beta(arms[2].alpha, arms[2].beta) - ln_beta(x, y)).exp(),
            ];
            for seed in 0..5 {
                let mut draw = Uniform(seed);
                let mut sums = [0.0; 3];
                for _ in 0..65_536 {
                    let (g, h) = (draw.gamma(a), draw.gamma(b));
                    let p = g / (g + h);
                    let reward = f64::from(u8::from(draw.next() < p));
                    for (sum, arm) in sums.iter_mut().zip(&arms) {
                        *sum += (arm.weight(p, 1e6) * (reward - p)).powi(2);
                    }
                }
                let found = sums.map(|sum| sum / 65_536.0);
                println!("Beta({a}, {b}), seed {seed}: {found:.6?}");
                for ((found, closed), expected) in found.iter().zip(closed).zip(expected) {
                    close(closed, expected, 1e-6);
                    close(found / closed, 1.0, 0.03);
                }
            }
        }
    }

    #[test]
    fn the_fitted_density_has_the_smallest_second_moment() {
        let moment = |a: f64, b: f64, alpha: f64, beta: f64| {
            2.0 * ln_beta(alpha, beta) + ln_beta(a + 3.0 - 2.0 * alpha, b + 3.0 - 2.0 * beta)
        };
        for (a, b) in [(1.0, 4.0), (3.0, 3.0), (6.0, 2.0)] {
            let (alpha, beta) = (narrower(a), narrower(b));
            let least = moment(a, b, alpha, beta);
            for (da, db) in [
                (0.05, 0.0),
                (-0.05, 0.0),
                (0.0, 0.05),
                (0.0, -0.05),
                (0.05, 0.05),
            ] {
                assert!(moment(a, b, alpha + da, beta + db) > least);
            }
        }
    }
}
