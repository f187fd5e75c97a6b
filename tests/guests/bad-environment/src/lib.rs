//! An environment in which a token has to be said again, until it is told to do something else.

use espalier_sdk::rewards::{Prompt, RewardSpec, Segment, TaskSpec, Verdict};
use espalier_sdk::{Choice, Error, Options, Response, RunInfo, Tasks};

/// What it does wrong.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Deed {
    Nothing,
    NanReward,
    RewardOutOfRange,
    UndeclaredTerm,
    SegmentOutside,
    Loop,
    Panic,
    StopOutside,
    NoTrain,
    EndlessTest,
    OtherPrompt,
    LongPrompt,
    UnknownToken,
}

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// What it does wrong.
    #[option(default = Deed::Nothing)]
    deed: Deed,
}

struct Bad(Deed);

impl Tasks for Bad {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings) -> Result<Self, Error> {
        Ok(Bad(options.deed))
    }

    fn spec(&self) -> TaskSpec {
        TaskSpec {
            vocabulary: ["a", "b", "c", "."].map(String::from).to_vec(),
            stop: if self.0 == Deed::StopOutside { 4 } else { 3 },
            max_prompt: 1,
            max_response: 2,
            rewards: RewardSpec::outcome(0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        match self.0 {
            Deed::NoTrain => vec![("test", 3)],
            Deed::EndlessTest => vec![("train", 3), ("test", u64::MAX)],
            _ => vec![("train", 3), ("test", 3)],
        }
    }

    fn prompt(&self, _split: &str, id: u64) -> Prompt {
        let token = id as u32;
        Prompt {
            id: if self.0 == Deed::OtherPrompt {
                id + 1
            } else {
                id
            },
            tokens: match self.0 {
                Deed::LongPrompt => vec![token, token],
                Deed::UnknownToken => vec![77],
                _ => vec![token],
            },
            solution: Some(vec![token]),
            task: String::new(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let mut verdict = Verdict::outcome(response.tokens == [response.prompt as u32, 3]);
        match self.0 {
            Deed::NanReward => verdict.reward = f64::NAN,
            Deed::RewardOutOfRange => verdict.reward = 1.5,
            Deed::UndeclaredTerm => verdict.terms.push(("style".into(), 1.0)),
            Deed::SegmentOutside => verdict.segments.push(Segment {
                start: 0,
                end: 99,
                label: "all".into(),
                reward: None,
                value: None,
            }),
            Deed::Loop => loop {
                std::hint::black_box(());
            },
            Deed::Panic => panic!("no verdict today"),
            _ => {}
        }
        verdict
    }
}

espalier_sdk::export!(tasks: Bad);
