//! Environment with tasks: write a word backwards; a part of it is paid for as well.
//!
//! Words are drawn by their number, the held-out ones from numbers of their own. The outcome pays for the whole
//! word; the term `part` says how much of it is right from the front.

use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
use espalier_sdk::{Error, Options, Response, RunInfo, Tasks};

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// How many letters there are.
    #[option(default = 6, min = 2, max = 26)]
    letters: u32,
    /// Letters of a word.
    #[option(default = 3, min = 1, max = 16)]
    length: u32,
    /// Words to learn from.
    #[option(default = 200, min = 1, max = 1000000)]
    train: u64,
    /// Words to be measured on.
    #[option(default = 50, min = 1, max = 10000)]
    test: u64,
    /// What the part that is right is worth beside the whole, from 0 to 1.
    #[option(default = 0, min = 0, max = 1)]
    part_weight: f64,
}

struct __TYPE__(Settings);

impl Tasks for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__(settings))
    }

    fn spec(&self) -> TaskSpec {
        let letters = ('a'..='z').take(self.0.letters as usize).map(String::from);
        TaskSpec {
            vocabulary: letters.chain(["=".to_string(), ".".to_string()]).collect(),
            stop: self.stop(),
            max_prompt: self.0.length + 1,
            max_response: self.0.length + 1,
            rewards: RewardSpec::outcome(0.0, 1.0).term("part", 0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        vec![("train", self.0.train), ("test", self.0.test)]
    }

    fn prompt(&self, split: &str, id: u64) -> Prompt {
        let word = self.word(split, id);
        Prompt {
            id,
            tokens: [word.as_slice(), &[self.0.letters]].concat(),
            solution: Some(word.into_iter().rev().collect()),
            task: String::new(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let mut wanted = self.word(&response.split, response.prompt);
        wanted.reverse();
        let answer = response.tokens.strip_suffix(&[self.stop()]);
        let part = answer.map_or(0.0, |answer| right_part(answer, &wanted));
        let correct = answer == Some(&wanted);
        let weight = self.0.part_weight;
        Verdict {
            reward: (1.0 - weight) * f64::from(u8::from(correct)) + weight * part,
            terms: vec![("part".into(), part)],
            well_formed: answer.is_some(),
            ..Verdict::outcome(correct)
        }
    }
}

impl __TYPE__ {
    fn stop(&self) -> u32 {
        self.0.letters + 1
    }

    /// The word of a number.
    fn word(&self, split: &str, id: u64) -> Vec<u32> {
        let first = if split == "test" { self.0.train } else { 0 };
        let mut state = first + id;
        let mut letter = |_| {
            // SplitMix64 (Steele, Lea and Flood 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % u64::from(self.0.letters)) as u32
        };
        (0..self.0.length).map(&mut letter).collect()
    }
}

/// How much of an answer is right from the front, from 0 to 1. What is too long is not wholly right.
fn right_part(answer: &[u32], wanted: &[u32]) -> f64 {
    let right = answer
        .iter()
        .zip(wanted)
        .take_while(|(a, b)| a == b)
        .count();
    right as f64 / answer.len().max(wanted.len()).max(1) as f64
}

espalier_sdk::export!(tasks: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_counts_from_the_front() {
        assert_eq!(right_part(&[1, 2, 3, 4], &[1, 2, 3, 4]), 1.0);
        assert_eq!(right_part(&[1, 9, 3, 4], &[1, 2, 3, 4]), 0.25);
        assert_eq!(right_part(&[], &[1, 2]), 0.0);
    }

    #[test]
    fn a_number_is_always_the_same_word_and_splits_share_none() {
        let it = __TYPE__(Settings::defaults());
        assert_eq!(it.word("train", 7), it.word("train", 7));
        assert_ne!(it.word("train", 0), it.word("test", 0));
    }
}
