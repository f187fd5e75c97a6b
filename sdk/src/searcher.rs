//! Inference-time search over a policy and a verifier: the trait of a searcher and what it reports.

use crate::options::Options;
use crate::run::{Error, RunInfo, StepInfo};

pub use crate::bindings::searcher::exports::espalier::plugin::searching::{
    Candidate, SearchReport,
};

impl SearchReport {
    /// Final answers of this step; the search goes on.
    ///
    /// ```no_run
    /// # use espalier_sdk::searcher::{Candidate, SearchReport};
    /// # fn f(best: Candidate) -> SearchReport {
    /// SearchReport::of(vec![best])
    /// # }
    /// ```
    pub fn of(candidates: Vec<Candidate>) -> SearchReport {
        SearchReport {
            candidates,
            done: false,
        }
    }

    /// There is nothing left to search.
    ///
    /// ```no_run
    /// # use espalier_sdk::searcher::SearchReport;
    /// # fn f() -> SearchReport {
    /// SearchReport::done()
    /// # }
    /// ```
    pub fn done() -> SearchReport {
        SearchReport {
            candidates: Vec::new(),
            done: true,
        }
    }
}

/// Which candidate comes next: `espalier_sdk::export!(searcher: T);`.
///
/// A step takes the next prompts with [`rollouts::prompts`](crate::rollouts::prompts): each prompt of the split that
/// is searched comes once, in order, `run.batch_size` being how many the run file wants in a step; none are left
/// when the answer is empty. Prompts have no solutions here. [`rollouts::generate`](crate::rollouts::generate) draws
/// responses from the run's model, or one step more behind `forced` tokens;
/// [`rollouts::verify`](crate::rollouts::verify) asks the verifier about whole responses and prefixes. Where the
/// environment pays a term `process`, that term is all that a verdict holds. The run's parameters can only be read.
///
/// ```no_run
/// use espalier_sdk::rollouts::{self, EnvironmentKind};
/// use espalier_sdk::rewards::TaskSpec;
/// use espalier_sdk::searcher::{Candidate, SearchReport, Searcher};
/// use espalier_sdk::{Error, Model, Options, RunInfo, StepInfo};
///
/// #[derive(Options)]
/// struct Settings {
///     /// Responses to each prompt.
///     #[option(default = 8, min = 1)]
///     samples: u32,
/// }
///
/// /// Of several responses the one that the verifier likes best.
/// struct BestOfN {
///     samples: u32,
///     prompts: u32,
///     tasks: TaskSpec,
/// }
///
/// impl Searcher for BestOfN {
///     type Options = Settings;
///
///     fn new(run: &RunInfo, options: Settings) -> Result<Self, Error> {
///         let EnvironmentKind::Tasks(tasks) = rollouts::environment() else {
///             return Err(Error::incompatible("this searcher needs prompts to answer"));
///         };
///         Ok(BestOfN { samples: options.samples, prompts: run.batch_size, tasks })
///     }
///
///     fn step(&mut self, _at: &StepInfo) -> SearchReport {
///         let prompts = rollouts::prompts(self.prompts);
///         if prompts.is_empty() {
///             return SearchReport::done();
///         }
///         let ask = |prompt| rollouts::request(&self.tasks, prompt, self.samples, &[prompt.id]);
///         let requests: Vec<_> = prompts.iter().map(ask).collect();
///         let samples = rollouts::generate(&Model::main(), &requests);
///         let ids: Vec<u64> = samples.iter().map(|sample| sample.id).collect();
///         let scores = rollouts::verify(&ids).into_iter().map(|verdict| verdict.process());
///         let mut best: Vec<Candidate> = Vec::new();
///         for (sample, score) in samples.into_iter().zip(scores) {
///             let candidate = Candidate { prompt: sample.prompt, tokens: sample.tokens, score };
///             match best.last_mut() {
///                 Some(last) if last.prompt == candidate.prompt => {
///                     if candidate.score > last.score {
///                         *last = candidate;
///                     }
///                 }
///                 _ => best.push(candidate),
///             }
///         }
///         SearchReport::of(best)
///     }
/// }
///
/// espalier_sdk::export!(searcher: BestOfN);
/// ```
pub trait Searcher: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before the first step. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// One step: takes prompts, answers some. Of several answers to a prompt the last one counts.
    fn step(&mut self, at: &StepInfo) -> SearchReport;

    /// Everything to be remembered between steps.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        crate::slots::nothing_saved(state)
    }
}
