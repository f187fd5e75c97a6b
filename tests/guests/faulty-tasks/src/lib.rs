//! An environment with tasks that keeps every law but the one it is told to break.

use std::cell::Cell;

use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
use espalier_sdk::{Choice, Error, Options, Response, RunInfo, Tasks};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    CountsVerdicts,
    PaysTooMuch,
    PromptsInTurn,
    WrongSolutions,
    StopOutside,
    PanicsOnSilence,
}

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    fault: Fault,
    calls: Cell<u32>,
}

const STOP: u32 = 10;

impl Tasks for Faulty {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(Faulty {
            fault: settings.fault,
            calls: Cell::new(0),
        })
    }

    fn spec(&self) -> TaskSpec {
        TaskSpec {
            vocabulary: (0..=STOP).map(|i| i.to_string()).collect(),
            stop: if self.fault == Fault::StopOutside {
                99
            } else {
                STOP
            },
            max_prompt: 2,
            max_response: 2,
            rewards: RewardSpec::outcome(0.0, 1.0),
            budgets: Vec::new(),
        }
    }

    fn splits(&self) -> Vec<(&str, u64)> {
        vec![("train", 10), ("test", 10)]
    }

    fn prompt(&self, _split: &str, id: u64) -> Prompt {
        let call = self.calls.get();
        if self.fault == Fault::PromptsInTurn {
            self.calls.set(call + 1);
        }
        let solution = id as u32 + u32::from(self.fault == Fault::WrongSolutions);
        Prompt {
            id,
            tokens: vec![id as u32, call % 10],
            solution: Some(vec![solution % 10]),
            task: String::new(),
        }
    }

    fn verify(&self, response: &Response) -> Verdict {
        let call = self.calls.get() + 1;
        if self.fault == Fault::CountsVerdicts {
            self.calls.set(call);
        }
        assert!(
            self.fault != Fault::PanicsOnSilence || !response.tokens.is_empty(),
            "somebody always answers"
        );
        let right = response.tokens == [response.prompt as u32, STOP];
        let mut verdict = Verdict::outcome(right);
        match self.fault {
            Fault::CountsVerdicts if call.is_multiple_of(7) => verdict.reward = 0.5,
            Fault::PaysTooMuch if right => verdict.reward = 1.5,
            _ => {}
        }
        verdict
    }
}

espalier_sdk::export!(tasks: Faulty);
