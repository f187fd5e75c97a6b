//! Environment: sums, differences and products modulo a number, as prompts of single characters.
//!
//! A prompt such as `17+58=` is answered by `75.`, one token a character; 1 for the right answer, 0 for any other.
//! The setting of Power et al. 2022 ("Grokking"), with one change: numbers are written in decimal digits, padded with
//! zeros to one width. With a modulus of 100 the rule lives in the digits (the last two of an ordinary sum), so a
//! small transformer generalises to pairs it never saw within seconds; with a prime such as 97 it first memorises
//! and generalises, if at all, after very many steps.
//!
//! Every pair of operands with every operation is one prompt. A seeded shuffle, the same in every run, deals them
//! to `test` and `train`; `a+b` and `b+a` are different prompts and may lie on different sides.

use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
use espalier_sdk::{Error, Options, Response, RunInfo, Tasks};

/// One token a character; the digits are their own numbers.
const VOCABULARY: [&str; 15] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "-", "*", "=", ".",
];
const PLUS: u32 = 10;
const EQUALS: u32 = 13;
const STOP: u32 = 14;

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Answers are taken modulo this.
    #[option(default = 100, min = 2, max = 10000)]
    modulus: u32,
    /// Operands go from 0 to this, not included.
    #[option(default = 100, min = 1, max = 1000)]
    operands: u32,
    /// Signs of the operations: any of + - *
    #[option(default = "+")]
    operations: String,
    /// Whether numbers are filled up with zeros to one width.
    #[option(default = true)]
    padded: bool,
    /// Share of the prompts that is held out as the split `test`.
    #[option(default = 0.1, min = 0, max = 0.9)]
    held_out: f64,
    /// Seed of the shuffle that deals prompts to the splits; the run's own seed does not touch it.
    #[option(default = 0)]
    split_seed: u64,
}

/// One question: operands and the place of the sign after `+`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Question {
    a: u32,
    b: u32,
    sign: u32,
}

struct ModularArithmetic {
    settings: Settings,
    /// All questions; the first `held_out` are the split `test`.
    questions: Vec<Question>,
    held_out: usize,
}

impl Tasks for ModularArithmetic {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let mut questions = Vec::new();
        for sign in signs(&settings.operations)? {
            for a in 0..settings.operands {
                questions.extend((0..settings.operands).map(|b| Question { a, b, sign }));
            }
        }
        shuffle(&mut questions, settings.split_seed);
        let held_out = (questions.len() as f64 * settings.held_out) as usize;
        Ok(ModularArithmetic {
            settings,
            questions,
            held_out,
        })
    }

    fn spec(&self) -> TaskSpec {
        TaskSpec {
            vocabulary: VOCABULARY.map(String::from).to_vec(),
            stop: STOP,
            max_prompt: 2 * width(self.settings.operands) + 2,
            max_response: width(self.settings.modulus) + 1,
            rewards: RewardSpec::outcome(0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        let train = self.questions.len() - self.held_out;
        let test = (self.held_out > 0).then_some(("test", self.held_out as u64));
        [("train", train as u64)].into_iter().chain(test).collect()
    }

    fn prompt(&self, split: &str, id: u64) -> Prompt {
        let question = self.question(split, id);
        let operand = |x| self.digits(x, width(self.settings.operands));
        Prompt {
            id,
            tokens: [
                operand(question.a),
                vec![PLUS + question.sign],
                operand(question.b),
                vec![EQUALS],
            ]
            .concat(),
            solution: Some(self.solution(question)),
            task: VOCABULARY[(PLUS + question.sign) as usize].into(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let answer = response.tokens.strip_suffix(&[STOP]);
        let readable = answer.filter(|digits| !digits.is_empty() && digits.iter().all(|&d| d < 10));
        let question = self.question(&response.split, response.prompt);
        Verdict {
            well_formed: readable.is_some(),
            ..Verdict::outcome(readable == Some(&self.solution(question)))
        }
    }
}

impl ModularArithmetic {
    fn question(&self, split: &str, id: u64) -> Question {
        let first = if split == "test" { 0 } else { self.held_out };
        self.questions[first + id as usize]
    }

    fn solution(&self, question: Question) -> Vec<u32> {
        let modulus = self.settings.modulus;
        self.digits(answer(question, modulus), width(modulus))
    }

    /// Decimal digits, the highest first.
    fn digits(&self, number: u32, width: u32) -> Vec<u32> {
        let padding = if self.settings.padded { width } else { 1 };
        let text = format!("{number:0padding$}", padding = padding as usize);
        text.bytes().map(|digit| u32::from(digit - b'0')).collect()
    }
}

/// The answer, in 0..modulus. Operands are below 1000, so nothing overflows.
fn answer(Question { a, b, sign }: Question, modulus: u32) -> u32 {
    let (a, b) = (i64::from(a), i64::from(b));
    let value = match sign {
        0 => a + b,
        1 => a - b,
        _ => a * b,
    };
    value.rem_euclid(i64::from(modulus)) as u32
}

/// Digits of the largest number below `end`.
fn width(end: u32) -> u32 {
    (end - 1).checked_ilog10().unwrap_or(0) + 1
}

/// Places of the signs in `+-*`, each once.
fn signs(text: &str) -> Result<Vec<u32>, Error> {
    let mut signs = Vec::new();
    for sign in text.chars() {
        match "+-*".find(sign) {
            Some(place) if !signs.contains(&(place as u32)) => signs.push(place as u32),
            Some(_) => {
                let message = format!("`operations` names `{sign}` twice");
                return Err(Error::invalid_option(message));
            }
            None => {
                let message = format!("`operations` may hold + - and *, it holds `{sign}`");
                return Err(Error::invalid_option(message));
            }
        }
    }
    match signs.is_empty() {
        true => Err(Error::invalid_option(
            "`operations` is empty; it may hold + - and *",
        )),
        false => Ok(signs),
    }
}

/// Fisher and Yates, with the numbers of SplitMix64 (Steele, Lea and Flood 2014): the same on every machine.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        items.swap(last, (z % (last as u64 + 1)) as usize);
    }
}

espalier_sdk::export!(tasks: ModularArithmetic);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    fn run() -> RunInfo {
        RunInfo {
            seed: 3,
            stage: 0,
            steps: 1,
            steps_per_epoch: 1,
            batch_size: 8,
            rank: 0,
            world: 1,
        }
    }

    fn environment(change: impl FnOnce(&mut Settings)) -> ModularArithmetic {
        let mut settings = Settings::defaults();
        change(&mut settings);
        ModularArithmetic::new(&run(), settings).unwrap()
    }

    fn text(tokens: &[u32]) -> String {
        tokens.iter().map(|&t| VOCABULARY[t as usize]).collect()
    }

    fn response(split: &str, prompt: u64, tokens: &[u32], finished: bool) -> Response {
        Response {
            split: split.into(),
            prompt,
            tokens: tokens.to_vec(),
            finished,
        }
    }

    fn prompts(environment: &ModularArithmetic, split: &str) -> Vec<Prompt> {
        let splits = environment.splits();
        let (_, count) = splits.iter().find(|(name, _)| *name == split).unwrap();
        (0..*count)
            .map(|id| environment.prompt(split, id))
            .collect()
    }

    #[test]
    fn answers_are_reduced_by_the_modulus() {
        let asked = |a, b, sign| answer(Question { a, b, sign }, 97);
        assert_eq!(
            [asked(58, 60, 0), asked(3, 8, 1), asked(96, 96, 2)],
            [21, 92, 1]
        );
    }

    #[test]
    fn the_splits_share_no_prompt_and_hold_every_pair_once() {
        let environment = environment(|_| ());
        let (train, test) = (
            prompts(&environment, "train"),
            prompts(&environment, "test"),
        );
        assert_eq!((train.len(), test.len()), (9000, 1000));
        let all: BTreeSet<String> = train.iter().chain(&test).map(|p| text(&p.tokens)).collect();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn the_deal_depends_on_the_split_seed_alone() {
        let first = environment(|_| ());
        let other = environment(|settings| settings.split_seed = 1);
        assert_eq!(first.questions, environment(|_| ()).questions);
        assert_ne!(first.questions, other.questions);
    }

    #[test]
    fn padded_numbers_have_one_width_and_others_no_leading_zeros() {
        let padded = environment(|settings| settings.operands = 1000);
        let place = padded
            .questions
            .iter()
            .position(|q| (q.a, q.b) == (7, 95))
            .unwrap();
        let prompt = padded.prompt("train", (place - padded.held_out) as u64);
        assert_eq!(text(&prompt.tokens), "007+095=");
        assert_eq!(text(&prompt.solution.unwrap()), "02");
        assert_eq!(padded.spec().max_prompt as usize, prompt.tokens.len());
        let plain = environment(|settings| settings.padded = false);
        assert_eq!(text(&plain.digits(0, 3)), "0");
        assert_eq!(text(&plain.digits(40, 3)), "40");
    }

    #[test]
    fn the_solution_is_right_in_every_setting() {
        for (modulus, operands, padded) in [(2, 1, true), (97, 97, false), (1000, 40, true)] {
            let environment = environment(|settings| {
                (settings.modulus, settings.operands) = (modulus, operands);
                (settings.padded, settings.held_out) = (padded, 0.5);
                settings.operations = "*-+".into();
            });
            let spec = environment.spec();
            for split in ["train", "test"] {
                for prompt in prompts(&environment, split) {
                    let mut tokens = prompt.solution.unwrap();
                    tokens.push(STOP);
                    assert!(prompt.tokens.len() <= spec.max_prompt as usize);
                    assert!(tokens.len() <= spec.max_response as usize);
                    let verdict = environment.verify(&response(split, prompt.id, &tokens, true));
                    assert!(verdict.correct && verdict.well_formed && verdict.reward == 1.0);
                }
            }
        }
    }

    #[test]
    fn everything_else_is_wrong_and_nothing_panics() {
        let environment = environment(|_| ());
        let right = environment.prompt("train", 5).solution.unwrap();
        let judged = |tokens: &[u32], finished| {
            let verdict = environment.verify(&response("train", 5, tokens, finished));
            assert_eq!(verdict.reward, 0.0);
            (verdict.correct, verdict.well_formed)
        };
        assert_eq!(judged(&[], false), (false, false));
        assert_eq!(judged(&[STOP], true), (false, false));
        assert_eq!(judged(&right, false), (false, false));
        assert_eq!(judged(&[0, right[0], right[1], STOP], true), (false, true));
        assert_eq!(
            judged(&[(right[0] + 1) % 10, right[1], STOP], true),
            (false, true)
        );
        assert_eq!(judged(&[PLUS, EQUALS, STOP], true), (false, false));
        assert_eq!(judged(&[STOP, STOP], true), (false, false));
        assert_eq!(judged(&[u32::MAX; 3], false), (false, false));
    }

    #[test]
    fn operations_are_named_by_their_signs() {
        assert_eq!(signs("*+").unwrap(), [2, 0]);
        for (text, part) in [("", "is empty"), ("+/", "it holds `/`"), ("--", "twice")] {
            assert!(signs(text).unwrap_err().message.contains(part));
        }
    }
}
