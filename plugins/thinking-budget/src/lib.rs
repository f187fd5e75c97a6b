//! Environment: questions that need a certain number of thinking tokens, with stated budgets.
//!
//! The toy of Hierarchical Budget Policy Optimization (arXiv 2507.15844): a question of
//! difficulty k is answered rightly after `needs[k]` thinking tokens or more, and by luck with probability `luck`
//! after fewer. A response may begin with a token that states a budget; then it thinks, then it stops. Longer
//! answers are never worse, only longer: what a length is worth is the normaliser's affair.
//!
//! Luck is a hash of the prompt and the length, so that the same response is always judged alike.

use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
use espalier_sdk::{Error, Options, Response, RunInfo, Tasks};

const VOCABULARY: [&str; 10] = [
    "easy", "medium", "hard", "hardest", "think", "stop", "8", "16", "32", "40",
];
const THINK: u32 = 4;
const STOP: u32 = 5;
/// The first of the tokens that state a budget.
const BUDGET: u32 = 6;
const LAST_BUDGET: u32 = 9;
/// Tokens of the response, the budget's own and the stop token included.
const BUDGETS: [u32; 4] = [8, 16, 32, 40];

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Thinking tokens that each difficulty needs, the easiest first.
    #[option(default = [4.0, 8.0, 16.0, 28.0], min = 0, max = 64)]
    needs: Vec<f64>,
    /// Probability that fewer are enough.
    #[option(default = 0.1, min = 0, max = 1)]
    luck: f64,
    /// Most tokens of a response.
    #[option(default = 64, min = 3, max = 1024)]
    max_length: u32,
    /// Prompts to train on; difficulties take turns.
    #[option(default = 256, min = 4, max = 1000000)]
    train: u32,
    /// Prompts of the split `test`, with luck of their own.
    #[option(default = 256, min = 4, max = 1000000)]
    test: u32,
}

struct ThinkingBudget {
    settings: Settings,
    needs: [u32; 4],
}

impl Tasks for ThinkingBudget {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let [a, b, c, d] = settings.needs[..] else {
            return Err(Error::invalid_option(format!(
                "`needs` must be four numbers, one a difficulty, as [4, 8, 16, 28]; there are {}",
                settings.needs.len()
            )));
        };
        let needs = [a, b, c, d].map(|tokens| tokens.ceil() as u32);
        // The longest answer that must fit: a budget, the thoughts and the stop token.
        let most = needs.into_iter().max().unwrap_or(0);
        if most + 2 > settings.max_length {
            return Err(Error::invalid_option(format!(
                "`max-length` is {}; {most} thinking tokens, a budget and the stop token need {}",
                settings.max_length,
                most + 2
            )));
        }
        Ok(ThinkingBudget { settings, needs })
    }

    fn spec(&self) -> TaskSpec {
        let state = |(place, &budget)| (budget, vec![BUDGET + place as u32]);
        TaskSpec {
            vocabulary: VOCABULARY.map(String::from).to_vec(),
            stop: STOP,
            max_prompt: 1,
            max_response: self.settings.max_length,
            rewards: RewardSpec::outcome(0.0, 1.0),
            budgets: BUDGETS.iter().enumerate().map(state).collect(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        let Settings { train, test, .. } = self.settings;
        vec![("train", train.into()), ("test", test.into())]
    }

    /// The solution is a long one that tells nothing of the difficulty: a budget and as many thoughts as the
    /// hardest question needs, or up to a quarter more. A policy that starts from it answers rightly and wastes.
    fn prompt(&self, split: &str, id: u64) -> Prompt {
        let most = self.needs.into_iter().max().unwrap_or(0);
        let spare = (most / 4).min(self.settings.max_length - 2 - most);
        let thoughts = most + (hash(split, id, 1) % (u64::from(spare) + 1)) as u32;
        let budget = BUDGET + (hash(split, id, 0) % 4) as u32;
        let difficulty = (id % 4) as u32;
        Prompt {
            id,
            tokens: vec![difficulty],
            solution: Some([vec![budget], vec![THINK; thoughts as usize]].concat()),
            task: VOCABULARY[difficulty as usize].into(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let Some(thoughts) = thoughts(&response.tokens) else {
            return Verdict {
                well_formed: false,
                ..Verdict::outcome(false)
            };
        };
        // Two numbers of the prompt's own (0 and 1) are its solution's.
        let dice = hash(&response.split, response.prompt, 2 + u64::from(thoughts));
        let lucky = (dice >> 11) as f64 / (1_u64 << 53) as f64;
        let enough = thoughts >= self.needs[(response.prompt % 4) as usize];
        Verdict::outcome(enough || lucky < self.settings.luck)
    }
}

/// Thinking tokens of a response of the form [budget] think* stop; nothing for any other.
fn thoughts(tokens: &[u32]) -> Option<u32> {
    let tokens = tokens.strip_suffix(&[STOP])?;
    let thoughts = match tokens {
        [BUDGET..=LAST_BUDGET, thoughts @ ..] => thoughts,
        all => all,
    };
    let only_thoughts = thoughts.iter().all(|&token| token == THINK);
    only_thoughts.then_some(thoughts.len() as u32)
}

/// A word for a prompt of a split and a number: the finaliser of SplitMix64 (Steele, Lea and Flood 2014) twice.
fn hash(split: &str, prompt: u64, number: u64) -> u64 {
    let mix = |word: u64| {
        let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let split = u64::from(split == "test");
    mix(mix(prompt.wrapping_mul(2) + split).wrapping_add(number))
}

espalier_sdk::export!(tasks: ThinkingBudget);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn environment(change: impl FnOnce(&mut Settings)) -> Result<ThinkingBudget, Error> {
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
        ThinkingBudget::new(&run, settings)
    }

    fn judged(environment: &ThinkingBudget, prompt: u64, tokens: &[u32]) -> Verdict {
        environment.verify(&Response {
            split: "train".into(),
            prompt,
            tokens: tokens.to_vec(),
            finished: tokens.last() == Some(&STOP),
        })
    }

    fn answer(budget: Option<u32>, thoughts: usize) -> Vec<u32> {
        let mut tokens: Vec<u32> = budget.into_iter().collect();
        tokens.extend(vec![THINK; thoughts]);
        tokens.push(STOP);
        tokens
    }

    #[test]
    fn enough_thoughts_are_right_and_one_less_is_wrong_without_luck() {
        let environment = environment(|settings| settings.luck = 0.0).unwrap();
        for (prompt, needs) in [(0, 4), (1, 8), (2, 16), (3, 28), (252, 4)] {
            for budget in [None, Some(BUDGET), Some(BUDGET + 3)] {
                assert!(judged(&environment, prompt, &answer(budget, needs)).correct);
                let short = judged(&environment, prompt, &answer(budget, needs - 1));
                assert!(!short.correct && short.well_formed && short.reward == 0.0);
            }
        }
    }

    #[test]
    fn luck_comes_as_often_as_it_should_and_always_to_the_same_responses() {
        let environment = environment(|settings| settings.train = 40_000).unwrap();
        let lucky = |prompt| judged(&environment, prompt, &answer(None, 3)).correct;
        let share = (0..40_000).filter(|&prompt| lucky(prompt)).count() as f64 / 40_000.0;
        // Four standard deviations of a mean of 40,000 draws.
        assert!((share - 0.1).abs() < 0.006, "{share}");
        assert!((0..100).all(|prompt| lucky(prompt) == lucky(prompt)));
        let other_split = |prompt| {
            let (split, tokens) = ("test".to_string(), answer(None, 3));
            environment
                .verify(&Response {
                    split,
                    prompt,
                    tokens,
                    finished: true,
                })
                .correct
        };
        assert!((0..1000).any(|prompt| lucky(prompt) != other_split(prompt)));
    }

    #[test]
    fn other_forms_are_malformed_and_nothing_panics() {
        let environment = environment(|settings| settings.luck = 1.0).unwrap();
        let think_then_state = [THINK, BUDGET, THINK, STOP];
        let two_budgets = [BUDGET, BUDGET + 1, THINK, STOP];
        let forms: [&[u32]; 7] = [
            &[],
            &[THINK; 40],
            &[0, THINK, STOP],
            &think_then_state,
            &two_budgets,
            &[STOP, STOP],
            &[u32::MAX, STOP],
        ];
        for tokens in forms {
            let verdict = judged(&environment, 0, tokens);
            assert!(!verdict.correct && !verdict.well_formed, "{tokens:?}");
        }
        assert!(judged(&environment, 0, &[STOP]).well_formed);
        assert!(judged(&environment, 0, &[BUDGET, STOP]).well_formed);
    }

    #[test]
    fn solutions_are_right_long_and_blind_to_the_difficulty() {
        let environment = environment(|settings| settings.luck = 0.0).unwrap();
        let spec = environment.spec();
        let mut budgets = [0; 4];
        for (split, count) in environment.splits() {
            for id in 0..count {
                let prompt = environment.prompt(split, id);
                assert_eq!(prompt.tokens, [(id % 4) as u32]);
                let mut tokens = prompt.solution.unwrap();
                budgets[(tokens[0] - BUDGET) as usize] += 1;
                tokens.push(STOP);
                assert!((30..=37).contains(&tokens.len()));
                assert!(tokens.len() <= spec.max_response as usize);
                let split = split.to_string();
                let response = Response {
                    split,
                    prompt: id,
                    tokens,
                    finished: true,
                };
                assert!(environment.verify(&response).correct);
            }
        }
        assert!(budgets.iter().all(|&n| n > 80), "{budgets:?}");
    }

    #[test]
    fn budgets_are_stated_by_their_tokens() {
        let spec = environment(|_| ()).unwrap().spec();
        for (budget, tokens) in spec.budgets {
            assert_eq!(spec.vocabulary[tokens[0] as usize], budget.to_string());
        }
    }

    #[test]
    fn needs_that_do_not_fit_are_refused() {
        let error = environment(|settings| settings.needs = vec![1.0])
            .err()
            .unwrap();
        assert!(error.message.contains("must be four numbers"));
        let error = environment(|settings| settings.max_length = 29)
            .err()
            .unwrap();
        assert!(error.message.contains("need 30"), "{}", error.message);
    }
}
