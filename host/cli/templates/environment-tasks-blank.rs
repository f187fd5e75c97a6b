//! Environment with tasks: say the letter again.
//!
//! Say here where the tasks come from, what is paid for, and what a random answer earns.

use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
use espalier_sdk::{Error, Options, Response, RunInfo, Tasks};

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// How many letters there are.
    #[option(default = 20, min = 2, max = 26)]
    letters: u32,
}

struct __TYPE__ {
    letters: u32,
}

impl Tasks for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            letters: settings.letters,
        })
    }

    fn spec(&self) -> TaskSpec {
        let letters = ('a'..='z').take(self.letters as usize).map(String::from);
        TaskSpec {
            vocabulary: letters.chain([".".to_string()]).collect(),
            stop: self.letters,
            max_prompt: 1,
            max_response: 2,
            rewards: RewardSpec::outcome(0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        let all = u64::from(self.letters);
        vec![("train", all), ("test", all)]
    }

    fn prompt(&self, _split: &str, id: u64) -> Prompt {
        let letter = id as u32;
        Prompt {
            id,
            tokens: vec![letter],
            solution: Some(vec![letter]),
            task: String::new(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let letter = response.prompt as u32;
        Verdict::outcome(is_right(&response.tokens, letter, self.letters))
    }
}

/// The decision: the letter and the stop token, nothing else.
fn is_right(tokens: &[u32], letter: u32, stop: u32) -> bool {
    tokens == [letter, stop]
}

espalier_sdk::export!(tasks: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_letter_itself_is_right() {
        assert!(is_right(&[3, 20], 3, 20));
        assert!(!is_right(&[4, 20], 3, 20) && !is_right(&[3], 3, 20) && !is_right(&[], 3, 20));
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert_eq!(Settings::defaults().letters, 20);
    }
}
