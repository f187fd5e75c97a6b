//! Environment: chains of one-digit operations whose every step is checked and paid.
//!
//! A prompt such as `3+4*2-5=` is worked out from left to right modulo 10 and answered by one number a step:
//! `7,4,9.` The last number decides the outcome. Each number with its comma (or the stop token) is a segment that
//! pays 1 where it is right, so that normalisers and trainers of step rewards have something to read; the verdict
//! also names two terms, `accuracy` and `format`. Multiplication binds no tighter than addition: the chain is a
//! list of steps, not an expression.
//!
//! The task is an invention for measuring; multi-step arithmetic with checked intermediate results follows
//! Lightman et al. 2023 ("Let's Verify Step by Step") in spirit. Prompts are drawn from a fixed seed, all different,
//! and dealt to `train` and `test` in turn of their numbers of steps.

use std::collections::BTreeSet;

use espalier_sdk::rewards::{Prompt, RewardSpec, Segment, TaskSpec, Verdict};
use espalier_sdk::{Error, Options, Response, RunInfo, Tasks};

/// One token a character; the digits are their own numbers.
const VOCABULARY: [&str; 16] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "-", "*", "=", ",", ".",
];
const PLUS: u32 = 10;
const EQUALS: u32 = 13;
const COMMA: u32 = 14;
const STOP: u32 = 15;

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Fewest operations of a chain.
    #[option(default = 2, min = 1, max = 8)]
    min_steps: u32,
    /// Most operations of a chain.
    #[option(default = 3, min = 1, max = 8)]
    max_steps: u32,
    /// Prompts to train on.
    #[option(default = 4000, min = 1, max = 1000000)]
    train: u32,
    /// Prompts held out as the split `test`.
    #[option(default = 400, min = 0, max = 1000000)]
    test: u32,
    /// Seed of the prompts; the run's own seed does not touch it.
    #[option(default = 0)]
    split_seed: u64,
}

/// The first digit, and what is done to it: places in `+-*` with a digit each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chain {
    first: u32,
    steps: Vec<(u32, u32)>,
}

struct ChainArithmetic {
    settings: Settings,
    /// The prompts of `train`, then those of `test`.
    chains: Vec<Chain>,
}

impl Tasks for ChainArithmetic {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let Settings {
            min_steps,
            max_steps,
            train,
            test,
            ..
        } = settings;
        if min_steps > max_steps {
            return Err(Error::invalid_option(format!(
                "`min-steps` is {min_steps}, more than `max-steps`, which is {max_steps}"
            )));
        }
        // Chains of each length are drawn until they are different, which takes long where nearly all are wanted.
        let kinds = u64::from(max_steps - min_steps + 1);
        let (wanted, room) = (
            u64::from(train) + u64::from(test),
            10 * 30_u64.pow(min_steps),
        );
        if wanted.div_ceil(kinds) > room / 2 {
            return Err(Error::invalid_option(format!(
                "{wanted} prompts are too many: there are {room} chains of {min_steps} steps, and at most half of \
                 them are used; lower `train` or `test`, or raise `min-steps`"
            )));
        }
        let chains = draw(wanted, &settings);
        Ok(ChainArithmetic { settings, chains })
    }

    fn spec(&self) -> TaskSpec {
        TaskSpec {
            vocabulary: VOCABULARY.map(String::from).to_vec(),
            stop: STOP,
            max_prompt: 2 * self.settings.max_steps + 2,
            max_response: 2 * self.settings.max_steps,
            rewards: RewardSpec::outcome(0.0, 1.0)
                .term("accuracy", 0.0, 1.0)
                .term("format", 0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        let test = (self.settings.test > 0).then_some(("test", u64::from(self.settings.test)));
        let train = ("train", u64::from(self.settings.train));
        [train].into_iter().chain(test).collect()
    }

    fn prompt(&self, split: &str, id: u64) -> Prompt {
        let chain = self.chain(split, id);
        let mut tokens = vec![chain.first];
        for &(sign, digit) in &chain.steps {
            tokens.extend([PLUS + sign, digit]);
        }
        tokens.push(EQUALS);
        let values = values(chain);
        let mut solution: Vec<u32> = values.iter().flat_map(|&value| [value, COMMA]).collect();
        solution.pop();
        Prompt {
            id,
            tokens,
            solution: Some(solution),
            task: format!("{}-steps", values.len()),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        judge(
            &values(self.chain(&response.split, response.prompt)),
            &response.tokens,
        )
    }
}

impl ChainArithmetic {
    fn chain(&self, split: &str, id: u64) -> &Chain {
        let first = if split == "test" {
            self.settings.train
        } else {
            0
        };
        &self.chains[first as usize + id as usize]
    }
}

/// The number after each step.
fn values(chain: &Chain) -> Vec<u32> {
    let mut value = chain.first;
    let step = |&(sign, digit): &(u32, u32)| {
        value = match sign {
            0 => value + digit,
            1 => value + 10 - digit,
            _ => value * digit,
        } % 10;
        value
    };
    chain.steps.iter().map(step).collect()
}

/// Compares a response with the right numbers. Each part ends with its comma or stop token; the part without one
/// (of an unfinished response) is read as well. `format`: one digit a step, as many as there are steps, finished.
fn judge(values: &[u32], tokens: &[u32]) -> Verdict {
    let mut segments = Vec::new();
    let (mut start, mut last, mut format) = (0, None, true);
    for part in tokens.split_inclusive(|&token| token == COMMA || token == STOP) {
        let number = match part {
            [digits @ .., COMMA | STOP] | digits => digits,
        };
        let right = matches!(values.get(segments.len()), Some(value) if number == [*value]);
        format &= matches!(number, [digit] if *digit < 10);
        last = Some(number);
        let end = start + part.len() as u32;
        segments.push(Segment {
            start,
            end,
            label: "step".into(),
            reward: Some(f64::from(u8::from(right))),
            value: None,
        });
        start = end;
    }
    let finished = tokens.last() == Some(&STOP);
    let correct =
        finished && matches!((last, values.last()), (Some(last), Some(v)) if last == [*v]);
    let format = format && finished && segments.len() == values.len();
    let one_if = |holds| f64::from(u8::from(holds));
    Verdict {
        reward: one_if(correct),
        terms: vec![
            ("accuracy".into(), one_if(correct)),
            ("format".into(), one_if(format)),
        ],
        correct,
        well_formed: format,
        segments,
    }
}

/// So many different chains; their numbers of steps take turns. SplitMix64 (Steele, Lea and Flood 2014).
fn draw(count: u64, settings: &Settings) -> Vec<Chain> {
    let mut state = settings.split_seed;
    let mut below = |n: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n) as u32
    };
    let kinds = u64::from(settings.max_steps - settings.min_steps + 1);
    let (mut seen, mut chains) = (BTreeSet::new(), Vec::new());
    while (chains.len() as u64) < count {
        let steps = settings.min_steps + (chains.len() as u64 % kinds) as u32;
        let first = below(10);
        let steps = (0..steps).map(|_| (below(3), below(10))).collect();
        let chain = Chain { first, steps };
        if seen.insert(chain.clone()) {
            chains.push(chain);
        }
    }
    chains
}

espalier_sdk::export!(tasks: ChainArithmetic);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn environment(change: impl FnOnce(&mut Settings)) -> Result<ChainArithmetic, Error> {
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
        ChainArithmetic::new(&run, settings)
    }

    fn tokens(text: &str) -> Vec<u32> {
        let token = |c: char| VOCABULARY.iter().position(|v| *v == c.to_string()).unwrap() as u32;
        text.chars().map(token).collect()
    }

    fn paid(verdict: &Verdict) -> Vec<f64> {
        verdict.segments.iter().map(|s| s.reward.unwrap()).collect()
    }

    /// 3+4*2-5: 7, 14, 9 modulo 10.
    const VALUES: [u32; 3] = [7, 4, 9];

    #[test]
    fn a_chain_is_worked_out_from_left_to_right_modulo_10() {
        let chain = Chain {
            first: 3,
            steps: vec![(0, 4), (2, 2), (1, 5)],
        };
        assert_eq!(values(&chain), VALUES);
        let below_zero = Chain {
            first: 1,
            steps: vec![(1, 9), (2, 0)],
        };
        assert_eq!(values(&below_zero), [2, 0]);
    }

    #[test]
    fn every_right_number_is_paid_and_the_last_decides() {
        let verdict = judge(&VALUES, &tokens("7,4,9."));
        assert!(verdict.correct && verdict.well_formed && verdict.reward == 1.0);
        assert_eq!(paid(&verdict), [1.0, 1.0, 1.0]);
        let places: Vec<_> = verdict.segments.iter().map(|s| (s.start, s.end)).collect();
        assert_eq!(places, [(0, 2), (2, 4), (4, 6)]);

        let verdict = judge(&VALUES, &tokens("7,5,9."));
        assert_eq!(
            (verdict.correct, paid(&verdict)),
            (true, vec![1.0, 0.0, 1.0])
        );
        let verdict = judge(&VALUES, &tokens("7,4,8."));
        assert_eq!(
            (verdict.correct, paid(&verdict)),
            (false, vec![1.0, 1.0, 0.0])
        );
    }

    #[test]
    fn accuracy_and_format_are_apart() {
        let terms = |text| {
            let verdict = judge(&VALUES, &tokens(text));
            (verdict.terms[0].1, verdict.terms[1].1, verdict.well_formed)
        };
        assert_eq!(terms("7,4,9."), (1.0, 1.0, true));
        assert_eq!(terms("1,1,1."), (0.0, 1.0, true));
        assert_eq!(terms("9."), (1.0, 0.0, false));
        assert_eq!(terms("7,4,9"), (0.0, 0.0, false));
        assert_eq!(terms("7,4,9,"), (0.0, 0.0, false));
        assert_eq!(terms("7,,9."), (1.0, 0.0, false));
        assert_eq!(terms("7,+,9."), (1.0, 0.0, false));
    }

    #[test]
    fn nonsense_is_judged_without_a_panic() {
        for response in [
            vec![],
            vec![STOP],
            vec![COMMA; 6],
            vec![u32::MAX; 6],
            vec![STOP; 6],
        ] {
            let verdict = judge(&VALUES, &response);
            assert!(!verdict.correct && !verdict.well_formed);
            let covered: u32 = verdict.segments.iter().map(|s| s.end - s.start).sum();
            assert_eq!(covered as usize, response.len());
            assert!(verdict.segments.len() <= 6);
        }
    }

    #[test]
    fn prompts_differ_take_turns_in_length_and_have_right_solutions() {
        let environment = environment(|settings| settings.max_steps = 4).unwrap();
        let again = self::environment(|settings| settings.max_steps = 4).unwrap();
        assert_eq!(environment.chains, again.chains);
        let spec = environment.spec();
        let (mut seen, mut tasks) = (BTreeSet::new(), BTreeSet::new());
        for (split, count) in environment.splits() {
            for id in 0..count {
                let prompt = environment.prompt(split, id);
                let mut response = prompt.solution.unwrap();
                response.push(STOP);
                assert!(prompt.tokens.len() <= spec.max_prompt as usize);
                assert!(response.len() <= spec.max_response as usize);
                assert!(seen.insert(prompt.tokens));
                tasks.insert(prompt.task);
                let verdict = environment.verify(&Response {
                    split: split.into(),
                    prompt: id,
                    tokens: response,
                    finished: true,
                });
                assert!(verdict.correct && verdict.well_formed);
                assert!(paid(&verdict).iter().all(|&reward| reward == 1.0));
                let names: Vec<_> = verdict.terms.iter().map(|(name, _)| name).collect();
                let declared: Vec<_> = spec.rewards.terms.iter().map(|t| &t.name).collect();
                assert_eq!(names, declared);
            }
        }
        assert_eq!(seen.len(), 4400);
        assert_eq!(Vec::from_iter(tasks), ["2-steps", "3-steps", "4-steps"]);
    }

    #[test]
    fn more_prompts_than_half_of_the_chains_are_refused() {
        let error = environment(|settings| {
            (settings.min_steps, settings.max_steps, settings.train) = (1, 1, 500);
        });
        let error = error.err().unwrap();
        assert!(
            error.message.contains("300 chains of 1 steps"),
            "{}",
            error.message
        );
        let error = environment(|settings| settings.min_steps = 5)
            .err()
            .unwrap();
        assert!(error.message.contains("more than `max-steps`"));
    }
}
