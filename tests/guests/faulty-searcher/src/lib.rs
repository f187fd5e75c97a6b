//! A searcher that keeps every law but the one it is told to break: it answers each prompt with one response.

use espalier_sdk::rewards::TaskSpec;
use espalier_sdk::rollouts::{self, EnvironmentKind};
use espalier_sdk::searcher::{Candidate, SearchReport, Searcher};
use espalier_sdk::{Choice, Error, Model, Options, ParameterSet, RunInfo, StepInfo, Tensor};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    AnswersOthers,
    AnswersTooLong,
    SkipsSome,
    NeverDone,
    Trains,
    Unsaved,
    LeaksHandles,
    PanicsOnOne,
    SeesSolutions,
    SeesVerdicts,
}

/// Options under `[searcher.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    fault: Fault,
    prompts: u32,
    tasks: TaskSpec,
    calls: u64,
    kept: Vec<Tensor>,
}

impl Searcher for Faulty {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let EnvironmentKind::Tasks(tasks) = rollouts::environment() else {
            return Err(Error::incompatible("there is nothing to answer"));
        };
        Ok(Faulty {
            fault: settings.fault,
            prompts: run.batch_size,
            tasks,
            calls: 0,
            kept: Vec::new(),
        })
    }

    fn step(&mut self, _at: &StepInfo) -> SearchReport {
        self.calls += 1;
        assert!(
            self.fault != Fault::PanicsOnOne || self.prompts > 1,
            "one prompt is no search"
        );
        let prompts = rollouts::prompts(self.prompts);
        if prompts.is_empty() {
            return SearchReport {
                candidates: Vec::new(),
                done: self.fault != Fault::NeverDone,
            };
        }
        match self.fault {
            Fault::Trains => {
                let set = ParameterSet::main();
                let name = set.trainable().remove(0);
                set.assign(&name, &set.value(&name));
            }
            Fault::LeaksHandles => self.kept.push(Tensor::zeros(&[2])),
            // What the host must not let through; a panic says that it did.
            Fault::SeesSolutions => {
                assert!(prompts.iter().all(|prompt| prompt.solution.is_none()));
            }
            _ => {}
        }
        let ask = |prompt: &espalier_sdk::rewards::Prompt| {
            let key = match self.fault {
                Fault::Unsaved => vec![self.calls],
                _ => vec![prompt.id],
            };
            rollouts::request(&self.tasks, prompt, 1, &key)
        };
        let requests: Vec<_> = prompts.iter().map(ask).collect();
        let samples = rollouts::generate(&Model::main(), &requests);
        if self.fault == Fault::SeesVerdicts {
            let ids: Vec<u64> = samples.iter().map(|sample| sample.id).collect();
            for verdict in rollouts::verify(&ids) {
                let names: Vec<&str> = verdict
                    .terms
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .collect();
                assert!(!verdict.correct && verdict.reward == 0.0 && names == ["process"]);
            }
        }
        let answers = samples.into_iter().map(|sample| Candidate {
            prompt: match self.fault {
                Fault::AnswersOthers => sample.prompt + 1_000_000,
                _ => sample.prompt,
            },
            tokens: match self.fault {
                Fault::AnswersTooLong => vec![0; self.tasks.max_response as usize + 1],
                _ => sample.tokens,
            },
            score: 0.0,
        });
        let odd = |answer: &Candidate| answer.prompt % 2 == 1;
        SearchReport::of(
            answers
                .filter(|answer| self.fault != Fault::SkipsSome || odd(answer))
                .collect(),
        )
    }
}

espalier_sdk::export!(searcher: Faulty);
