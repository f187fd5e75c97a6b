//! Environment: chains of good and bad steps, and a verifier of unfinished chains that is sure of itself too early.
//!
//! A synthetic search with an exact value, on which entropic particle filtering (2025, arXiv 2510.05825) and its
//! baselines are compared. A response is a fixed number of steps, one token each; every even word is a good step, every odd one a bad
//! step, and a response is right if enough of its steps are good. For a policy that draws words evenly the chance of
//! success after t steps, g of them good, is a binomial tail V(t, g).
//!
//! The term `process` is what a process reward model would say of a prefix:
//!
//! ```text
//! process = sigmoid((1 - e) logit V(t, g) + overconfidence e b),   e = max(0, 1 - t / reliable-from)
//! b_0 = 0,  b_t = persistence b_(t-1) + N(0, 1)
//! ```
//!
//! with V held within 0.001 to 0.999. So it is wrong and sure early, right late, and its error b belongs to the
//! prefix: it is drawn from a hash of the prompt and the words, the same whenever the same prefix is judged, and
//! another one behind each of the many words for the same kind of step.
//!
//! There is no end token: the stop token that a task must name is an ordinary word here.

use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
use espalier_sdk::{Error, Options, Response, RunInfo, Tasks};

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Steps of a response.
    #[option(default = 12, min = 1, max = 60)]
    steps: u32,
    /// Good steps from which on a response is right.
    #[option(default = 10, min = 0, max = 60)]
    needed: u32,
    /// Words, half of them good steps; an even number.
    #[option(default = 256, min = 2, max = 65536)]
    words: u32,
    /// How far the verifier's early error outweighs what it knows.
    #[option(default = 8.0, min = 0.0, max = 100.0)]
    overconfidence: f64,
    /// Share of the error that a step keeps from the step before.
    #[option(default = 0.7, min = 0.0, max = 1.0)]
    persistence: f64,
    /// Step from which on the verifier makes no error.
    #[option(default = 9, min = 1, max = 60)]
    reliable_from: u32,
    /// Prompts of the split `test`; as many are in `train`.
    #[option(default = 1000, min = 1, max = 100000)]
    problems: u64,
    /// Seed of the verifier's errors; the run's own seed does not touch it.
    #[option(default = 0)]
    verifier_seed: u64,
}

struct CoinSteps {
    settings: Settings,
    /// `value[t][g]`: the chance of success after t steps with g good ones.
    value: Vec<Vec<f64>>,
}

/// Words of a prompt: its number in three digits of base `words`, the lowest first.
const DIGITS: u32 = 3;

impl Tasks for CoinSteps {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        if !settings.words.is_multiple_of(2) {
            return Err(Error::invalid_option(format!(
                "`words` is {}, expected an even number: half of them are good steps",
                settings.words
            )));
        }
        if settings.needed > settings.steps {
            return Err(Error::invalid_option(format!(
                "`needed` is {}, and there are {} steps",
                settings.needed, settings.steps
            )));
        }
        let value = values(settings.steps, settings.needed);
        Ok(CoinSteps { settings, value })
    }

    fn spec(&self) -> TaskSpec {
        let word = |number: u32| match number % 2 {
            0 => format!("good{}", number / 2),
            _ => format!("bad{}", number / 2),
        };
        TaskSpec {
            vocabulary: (0..self.settings.words).map(word).collect(),
            stop: 0,
            max_prompt: DIGITS,
            max_response: self.settings.steps,
            rewards: RewardSpec::outcome(0.0, 1.0).term("process", 0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        vec![
            ("train", self.settings.problems),
            ("test", self.settings.problems),
        ]
    }

    fn prompt(&self, _split: &str, id: u64) -> Prompt {
        let base = u64::from(self.settings.words);
        let digit = |place: u32| (id / base.saturating_pow(place) % base) as u32;
        Prompt {
            id,
            tokens: (0..DIGITS).map(digit).collect(),
            // With the stop token, which is a good step, all steps are good.
            solution: Some(vec![0; self.settings.steps as usize - 1]),
            task: String::new(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let steps = self.settings.steps as usize;
        let tokens = &response.tokens[..response.tokens.len().min(steps)];
        let whole = response.tokens.len() == steps;
        let good = tokens.iter().filter(|&token| is_good(*token)).count();
        let correct = whole && good >= self.settings.needed as usize;
        let problem = mix(&[
            self.settings.verifier_seed,
            u64::from(response.split == "test"),
            response.prompt,
        ]);
        Verdict {
            terms: vec![("process".into(), self.process(problem, tokens))],
            well_formed: whole,
            ..Verdict::outcome(correct)
        }
    }
}

impl CoinSteps {
    /// What the verifier says of a prefix.
    fn process(&self, problem: u64, tokens: &[u32]) -> f64 {
        let good = tokens.iter().filter(|&token| is_good(*token)).count();
        let value = self.value[tokens.len()][good].clamp(1e-3, 1.0 - 1e-3);
        let early = 1.0 - tokens.len() as f64 / f64::from(self.settings.reliable_from);
        let early = early.max(0.0);
        let error = bias(problem, tokens, self.settings.persistence);
        sigmoid((1.0 - early) * logit(value) + self.settings.overconfidence * early * error)
    }
}

fn is_good(token: u32) -> bool {
    token.is_multiple_of(2)
}

/// Chances of `needed` good steps of `steps` in all, after t steps with g good ones: `[t][g]`.
fn values(steps: u32, needed: u32) -> Vec<Vec<f64>> {
    let steps = steps as usize;
    let last = (0..=steps).map(|good| f64::from(u8::from(good >= needed as usize)));
    let mut value = vec![last.collect::<Vec<f64>>()];
    for t in (0..steps).rev() {
        let next = &value[value.len() - 1];
        let here = (0..=t).map(|good| 0.5 * (next[good] + next[good + 1]));
        value.push(here.collect());
    }
    value.reverse();
    value
}

/// The verifier's error on a prefix: each word adds a normal number of its own.
fn bias(problem: u64, tokens: &[u32], persistence: f64) -> f64 {
    let (mut state, mut bias) = (problem, 0.0);
    for token in tokens {
        state = mix(&[state, u64::from(*token)]);
        bias = persistence * bias + normal(state);
    }
    bias
}

/// SplitMix64's last step (Steele, Lea and Flood 2014).
fn scramble(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn mix(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0x636f_696e, |state, word| scramble(state ^ scramble(*word)))
}

/// A standard normal number from a hash, by Box and Muller.
fn normal(hash: u64) -> f64 {
    let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (u, v) = (unit(scramble(hash ^ 1)), unit(scramble(hash ^ 2)));
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

espalier_sdk::export!(tasks: CoinSteps);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn environment(change: impl FnOnce(&mut Settings)) -> CoinSteps {
        let run = RunInfo {
            seed: 3,
            stage: 0,
            steps: 1,
            steps_per_epoch: 1,
            batch_size: 8,
            rank: 0,
            world: 1,
        };
        let mut settings = Settings::defaults();
        change(&mut settings);
        CoinSteps::new(&run, settings).unwrap()
    }

    fn judged(environment: &CoinSteps, tokens: &[u32]) -> Verdict {
        environment.verify(&Response {
            split: "test".into(),
            prompt: 7,
            tokens: tokens.to_vec(),
            finished: false,
        })
    }

    #[test]
    fn values_are_binomial_tails() {
        let value = values(12, 10);
        // (66 + 12 + 1) / 4096 of the paths have 10, 11 or 12 good steps.
        assert_eq!(value[0][0], 79.0 / 4096.0);
        assert_eq!(value[10][8], 0.25);
        assert_eq!(value[11][10], 1.0);
        assert_eq!(value[3][0], 0.0, "nine good steps are the most then");
        assert_eq!((value[12][9], value[12][10]), (0.0, 1.0));
    }

    #[test]
    fn ten_good_steps_of_twelve_are_right_in_any_words() {
        let environment = environment(|_| ());
        let mut tokens = vec![4, 2, 0, 254, 8, 6, 12, 14, 16, 18, 3, 1];
        assert!(judged(&environment, &tokens).correct);
        tokens[0] = 5;
        assert!(!judged(&environment, &tokens).correct);
        assert!(!judged(&environment, &[0; 11]).correct, "a step is missing");
    }

    #[test]
    fn the_verifier_is_right_at_the_end_and_judges_a_prefix_the_same_way_each_time() {
        let environment = environment(|_| ());
        let process = |tokens: &[u32]| judged(&environment, tokens).process();
        assert!((process(&[0; 12]) - 0.999).abs() < 1e-12);
        assert!((process(&[1; 12]) - 0.001).abs() < 1e-12);
        // From step 9 on it is the value itself: 8 good of 10 has a quarter.
        let late = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        assert!((process(&late) - 0.25).abs() < 1e-12);
        assert_eq!(process(&[2, 5]), process(&[2, 5]));
        assert_ne!(
            process(&[2, 5]),
            process(&[4, 5]),
            "other words, other errors"
        );
    }

    #[test]
    fn early_errors_have_the_declared_spread_and_persist() {
        let firsts: Vec<f64> = (0..4000).map(|problem| bias(problem, &[0], 0.7)).collect();
        let mean = firsts.iter().sum::<f64>() / 4000.0;
        let variance = firsts.iter().map(|b| b * b).sum::<f64>() / 4000.0;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.08);
        let (mut both, mut second) = (0.0, 0.0);
        for problem in 0..4000 {
            let (a, b) = (bias(problem, &[0], 0.7), bias(problem, &[0, 3], 0.7));
            both += a * b / 4000.0;
            second += b * b / 4000.0;
        }
        assert!((both - 0.7).abs() < 0.06, "{both}: the error is carried on");
        assert!((second - 1.49).abs() < 0.12, "{second}: 0.7 squared and 1");
    }

    #[test]
    fn settings_that_can_not_be_are_refused_in_words() {
        let run = RunInfo {
            seed: 0,
            stage: 0,
            steps: 1,
            steps_per_epoch: 1,
            batch_size: 1,
            rank: 0,
            world: 1,
        };
        for (words, needed, part) in [(3, 10, "even"), (4, 13, "12 steps")] {
            let mut settings = Settings::defaults();
            (settings.words, settings.needed) = (words, needed);
            let refusal = CoinSteps::new(&run, settings).err().unwrap();
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
    }
}
