//! A search: which prompts a searcher has been given, what it may hear of the answer key, what it has spent.
//!
//! Promise: each prompt of the split is given once, in order, without its solution. A verdict that reaches a searcher
//! holds no more than a verifier at inference time could say: where the environment pays a term `process`, that term
//! alone; an environment without one serves as its own verifier, and what was found is then the upper bound that an
//! oracle gives. What an answer is worth is measured by the host, on the environment's whole verdict.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::bindings::trainer::espalier::plugin::rewards::{RewardSpec, Verdict};

/// The term by which an environment judges unfinished responses, and all that a searcher hears.
pub const PROCESS: &str = "process";

/// How far a search has come; part of every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    /// The split that is searched.
    pub split: String,
    /// Its prompts.
    pub count: u64,
    /// Prompts given so far: those numbered from 0 to this.
    pub given: u64,
    /// The last answer to each prompt.
    pub answers: BTreeMap<u64, Vec<u32>>,
    /// Tokens drawn so far; forced ones do not count.
    pub tokens: u64,
    /// Responses drawn, or lengthened, so far.
    pub generations: u64,
    /// Responses shown to the verifier so far.
    pub verifications: u64,
    /// True once the searcher has nothing left to search.
    pub done: bool,
}

impl Search {
    /// A search of a split of so many prompts.
    pub fn new(split: &str, count: u64) -> Search {
        Search {
            split: split.into(),
            count,
            ..Search::default()
        }
    }

    /// Numbers of the next prompts, at most `n`; they count as given.
    pub fn next(&mut self, n: u64) -> Vec<u64> {
        let from = self.given;
        self.given = from.saturating_add(n).min(self.count);
        (from..self.given).collect()
    }
}

/// Whether the environment has a verifier of its own for unfinished responses.
pub fn judges_steps(rewards: &RewardSpec) -> bool {
    rewards.terms.iter().any(|term| term.name == PROCESS)
}

/// A verdict as a searcher may see it.
pub fn blanked(verdict: Verdict, rewards: &RewardSpec) -> Verdict {
    if !judges_steps(rewards) {
        return verdict;
    }
    let mut terms = verdict.terms;
    terms.retain(|(name, _)| name == PROCESS);
    Verdict {
        reward: rewards.outcome.min,
        terms,
        correct: false,
        well_formed: verdict.well_formed,
        segments: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bindings::trainer::espalier::plugin::rewards::{Bounds, Segment};

    fn spec(terms: &[&str]) -> RewardSpec {
        let bounds = |name: &str| Bounds {
            name: name.into(),
            min: -1.0,
            max: 1.0,
        };
        RewardSpec {
            outcome: bounds(""),
            terms: terms.iter().map(|name| bounds(name)).collect(),
        }
    }

    fn right(terms: &[&str]) -> Verdict {
        Verdict {
            reward: 1.0,
            terms: terms.iter().map(|name| (name.to_string(), 0.25)).collect(),
            correct: true,
            well_formed: true,
            segments: vec![Segment {
                start: 0,
                end: 1,
                label: "step".into(),
                reward: Some(1.0),
                value: None,
            }],
        }
    }

    #[test]
    fn every_prompt_is_given_once_and_none_is_left_at_the_end() {
        let mut search = Search::new("test", 5);
        assert_eq!(search.next(3), [0, 1, 2]);
        assert_eq!(search.next(3), [3, 4]);
        assert_eq!(search.next(3), Vec::<u64>::new());
        assert_eq!(search.given, 5);
    }

    #[test]
    fn where_the_environment_judges_steps_nothing_else_reaches_the_searcher() {
        let names = ["accuracy", "process", "format"];
        let seen = blanked(right(&names), &spec(&names));
        assert_eq!(seen.terms, [("process".to_string(), 0.25)]);
        assert_eq!((seen.reward, seen.correct), (-1.0, false));
        assert!(seen.segments.is_empty(), "parts are paid by the answer key");
    }

    #[test]
    fn an_environment_without_process_is_an_oracle() {
        let names = ["accuracy"];
        let seen = blanked(right(&names), &spec(&names));
        assert_eq!((seen.reward, seen.correct), (1.0, true));
        assert_eq!(seen.segments.len(), 1);
    }
}
