//! Searcher: of several responses to a prompt the one that the verifier likes best (best of N).

use espalier_sdk::rewards::TaskSpec;
use espalier_sdk::rollouts::{self, EnvironmentKind};
use espalier_sdk::searcher::{Candidate, SearchReport, Searcher};
use espalier_sdk::{Error, Model, Options, RunInfo, StepInfo};

/// Options under `[searcher.with]`.
#[derive(Options)]
struct Settings {
    /// Responses to each prompt.
    #[option(default = 8, min = 1, max = 4096)]
    samples: u32,
    /// Divides the policy's logits.
    #[option(default = 1.0, min = 0.0)]
    temperature: f64,
}

struct __TYPE__ {
    settings: Settings,
    /// Prompts that the run wants in a step.
    prompts: u32,
    tasks: TaskSpec,
}

impl Searcher for __TYPE__ {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let EnvironmentKind::Tasks(tasks) = rollouts::environment() else {
            return Err(Error::incompatible("this searcher needs prompts to answer"));
        };
        Ok(__TYPE__ {
            settings,
            prompts: run.batch_size,
            tasks,
        })
    }

    fn step(&mut self, _at: &StepInfo) -> SearchReport {
        let prompts = rollouts::prompts(self.prompts);
        if prompts.is_empty() {
            return SearchReport::done();
        }
        // The prompt's number is the key: answers do not depend on how many prompts a step takes.
        let requests: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let samples = self.settings.samples;
                let mut request = rollouts::request(&self.tasks, prompt, samples, &[prompt.id]);
                request.temperature = self.settings.temperature;
                request
            })
            .collect();
        let samples = rollouts::generate(&Model::main(), &requests);
        let ids: Vec<u64> = samples.iter().map(|sample| sample.id).collect();
        let scores = rollouts::verify(&ids).into_iter().map(|v| v.process());
        let scored = samples.into_iter().zip(scores);
        let all = scored.map(|(sample, score)| Candidate {
            prompt: sample.prompt,
            tokens: sample.tokens,
            score,
        });
        SearchReport::of(best(all))
    }
}

/// The first best candidate of each prompt; those of one prompt stand together.
fn best(all: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let mut best: Vec<Candidate> = Vec::new();
    for candidate in all {
        match best.last_mut() {
            Some(last) if last.prompt == candidate.prompt => {
                if candidate.score > last.score {
                    *last = candidate;
                }
            }
            _ => best.push(candidate),
        }
    }
    best
}

espalier_sdk::export!(searcher: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_best_response_of_each_prompt_is_the_answer() {
        let all = [(0, 1, 0.2), (0, 2, 0.9), (0, 3, 0.9), (1, 4, 0.1)];
        let all = all.map(|(prompt, token, score)| Candidate {
            prompt,
            tokens: vec![token],
            score,
        });
        let answers: Vec<(u64, Vec<u32>)> = best(all.into_iter())
            .into_iter()
            .map(|answer| (answer.prompt, answer.tokens))
            .collect();
        assert_eq!(answers, [(0, vec![2]), (1, vec![4])]);
    }
}
