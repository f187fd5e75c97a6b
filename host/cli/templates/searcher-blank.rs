//! Searcher: the likeliest response to each prompt.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::rewards::TaskSpec;
use espalier_sdk::rollouts::{self, EnvironmentKind};
use espalier_sdk::searcher::{Candidate, SearchReport, Searcher};
use espalier_sdk::{Error, Model, RunInfo, StepInfo};

struct __TYPE__ {
    /// Prompts that the run wants in a step.
    prompts: u32,
    tasks: TaskSpec,
}

impl Searcher for __TYPE__ {
    type Options = ();

    fn new(run: &RunInfo, _options: ()) -> Result<Self, Error> {
        let EnvironmentKind::Tasks(tasks) = rollouts::environment() else {
            return Err(Error::incompatible("this searcher needs prompts to answer"));
        };
        let prompts = run.batch_size;
        Ok(__TYPE__ { prompts, tasks })
    }

    fn step(&mut self, _at: &StepInfo) -> SearchReport {
        let prompts = rollouts::prompts(self.prompts);
        if prompts.is_empty() {
            return SearchReport::done();
        }
        // The decision: which responses to draw, and which to give as answers.
        let requests: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let mut request = rollouts::request(&self.tasks, prompt, 1, &[prompt.id]);
                request.temperature = 0.0;
                request
            })
            .collect();
        let samples = rollouts::generate(&Model::main(), &requests);
        let answers = samples.into_iter().map(|sample| Candidate {
            prompt: sample.prompt,
            score: sample.logprobs.iter().sum(),
            tokens: sample.tokens,
        });
        SearchReport::of(answers.collect())
    }
}

espalier_sdk::export!(searcher: __TYPE__);
