//! A run, or a stage, in which nothing is trained: a searcher answers prompts with the model as it is.
//!
//! ```text
//! until every prompt is answered, the searcher says that it is done, or a budget is used up
//!     searcher.step          takes the next prompts, draws and judges responses, answers some prompts
//!     checkpoint
//! the environment judges the last answer to each prompt
//! ```
//!
//! Every prompt of the split counts in what is measured; one without an answer counts as wrong. A budget of tokens is
//! looked at between steps: the step in which it runs out is still carried out.

use super::*;
use crate::host::bindings::searcher::exports::espalier::plugin::searching::Candidate;
use crate::plan::SearchPlan;
use crate::search::Search;

/// Most tokens in the answers of a search: they stand in every checkpoint.
const MOST_ANSWERED: usize = 1 << 22;

/// The search of a split, if the environment has it.
pub(super) fn begin(plan: &SearchPlan, environment: &Environment) -> Result<Search, Diagnostic> {
    let Environment::Tasks { splits, .. } = environment else {
        return Err(Diagnostic::new("a searcher needs prompts to answer")
            .at("environment")
            .expected("an environment with tasks")
            .found("a world to act in"));
    };
    match splits.iter().find(|(name, _)| *name == plan.split) {
        Some((name, count)) => Ok(Search::new(name, *count)),
        None => {
            let names: Vec<&str> = splits.iter().map(|(name, _)| name.as_str()).collect();
            Err(
                Diagnostic::new(format!("the environment has no split `{}`", plan.split))
                    .at("searcher.split")
                    .expected(crate::diagnostic::one_of(names.iter().copied())),
            )
        }
    }
}

/// What is wrong with an answer, if anything is.
fn unfit(answer: &Candidate, search: &Search, spec: &TaskSpec) -> Option<String> {
    let words = spec.vocabulary.len();
    if answer.prompt >= search.given {
        Some(format!(
            "it answers prompt {}, which it was not given; prompts below {} were",
            answer.prompt, search.given
        ))
    } else if answer.tokens.len() > spec.max_response as usize {
        Some(format!(
            "its answer to prompt {} has {} tokens, the environment reads at most {}",
            answer.prompt,
            answer.tokens.len(),
            spec.max_response
        ))
    } else if let Some(token) = answer.tokens.iter().find(|&&t| t as usize >= words) {
        Some(format!(
            "its answer to prompt {} holds token {token}; the vocabulary has {words}",
            answer.prompt
        ))
    } else if !answer.score.is_finite() {
        Some(format!(
            "the score of its answer to prompt {} is {}, expected a finite number",
            answer.prompt, answer.score
        ))
    } else {
        None
    }
}

impl Runner<'_> {
    fn searcher_name(&self) -> String {
        let session = self.searcher.as_ref();
        session.map_or(String::new(), |session| session.guest().name.clone())
    }

    /// One step of the searcher, and what follows it.
    pub(super) fn search_step(&mut self) -> Result<(), Diagnostic> {
        let began = Instant::now();
        let at = self.at();
        {
            let run = &mut *self.shared.run.borrow_mut();
            run.passes = 0;
            run.rollouts.begin_step();
        }
        profile::step(self.progress.steps_done, self.steps_per_epoch);
        let stepping = profile::part(profile::Part::Steps);
        let report = match self.searcher.as_mut() {
            Some(session) => session.search(at),
            None => return Err(Diagnostic::new("the run has no searcher")),
        };
        drop(stepping);
        self.drain()?;
        let report = report.map_err(|death| death.diagnostic(&self.whereabouts()))?;
        let answered = report.candidates.len() as u64;
        self.take_answers(report.candidates, report.done)?;
        self.progress.steps_done += 1;
        self.progress.round_step += 1;
        self.shared.run.borrow_mut().steps_done = self.progress.steps_done;
        self.tell(Event::Step {
            step: self.progress.steps_done,
            of: self.of(),
            epoch: 0,
            round: self.progress.round.into(),
            loss: None,
            samples: answered,
            seconds: began.elapsed().as_secs_f64(),
        })?;
        if self.search_is_over() {
            self.progress.round_over = true;
        }
        let every = self.plan.checkpoint.every.max(1);
        if self.progress.round_over || self.progress.steps_done.is_multiple_of(every) {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn take_answers(&mut self, answers: Vec<Candidate>, done: bool) -> Result<(), Diagnostic> {
        let wrong = |problem: String| {
            Diagnostic::new(format!(
                "searcher `{}` gave an answer that can't be",
                self.searcher_name()
            ))
            .at(format!("`step`, {}", self.whereabouts()))
            .detail("because", problem)
            .help("mend the plugin")
        };
        let run = &mut *self.shared.run.borrow_mut();
        let Environment::Tasks { spec, .. } = &run.rollouts.environment else {
            return Ok(());
        };
        let Some(search) = run.rollouts.search.as_mut() else {
            return Ok(());
        };
        for answer in answers {
            if let Some(problem) = unfit(&answer, search, spec) {
                return Err(wrong(problem));
            }
            search.answers.insert(answer.prompt, answer.tokens);
        }
        let kept: usize = search.answers.values().map(|tokens| tokens.len() + 1).sum();
        if kept > MOST_ANSWERED {
            return Err(wrong(format!(
                "its answers have {kept} tokens together, at most {MOST_ANSWERED} are kept"
            )));
        }
        search.done = done;
        Ok(())
    }

    fn search_is_over(&self) -> bool {
        let run = self.shared.run.borrow();
        let Some(search) = &run.rollouts.search else {
            return true;
        };
        let plan = self.stage().search.as_ref();
        let tokens = plan.and_then(|plan| plan.max_tokens);
        search.done
            || search.answers.len() as u64 >= search.count
            || tokens.is_some_and(|most| search.tokens >= most)
    }

    /// The last answer to each prompt, judged by the environment, and what the answers have cost.
    pub(super) fn measure_search(&mut self) -> Result<BTreeMap<String, f64>, Diagnostic> {
        let (search, spec) = {
            let run = self.shared.run.borrow();
            match (&run.rollouts.search, &run.rollouts.environment) {
                (Some(search), Environment::Tasks { spec, .. }) => (search.clone(), spec.clone()),
                _ => return Ok(BTreeMap::new()),
            }
        };
        let whereabouts = self.whereabouts();
        let mut sums: BTreeMap<String, f64> = ["success", "reward", "length"]
            .map(|name| (name.to_string(), 0.0))
            .into();
        let mut add = |name: &str, x: f64| *sums.entry(name.to_string()).or_default() += x;
        let unanswered = search.count.saturating_sub(search.answers.len() as u64);
        add("reward", unanswered as f64 * spec.rewards.outcome.min);
        let responses: Vec<Response> = search
            .answers
            .iter()
            .map(|(&prompt, tokens)| Response {
                split: search.split.clone(),
                prompt,
                tokens: tokens.clone(),
                finished: tokens.last() == Some(&spec.stop),
            })
            .collect();
        let together = self.stage().schedule.evaluation_batch.max(1) as usize;
        for responses in responses.chunks(together) {
            let shared = self.shared.clone();
            let mut slot = shared.environment.borrow_mut();
            let Some(environment) = slot.as_mut() else {
                continue;
            };
            let verdicts = environment
                .verify(responses, &spec.rewards)
                .map_err(|death| death.diagnostic(&whereabouts))?;
            for (response, verdict) in responses.iter().zip(&verdicts) {
                add("success", f64::from(u8::from(verdict.correct)));
                add("reward", verdict.reward);
                add("length", response.tokens.len() as f64);
            }
            drop(slot);
            self.drain()?;
        }
        let prompts = search.count.max(1) as f64;
        sums.values_mut().for_each(|sum| *sum /= prompts);
        // What was spent, by prompts that were worked on.
        let given = search.given.max(1) as f64;
        sums.extend(
            [
                ("answered", search.answers.len() as f64 / prompts),
                ("tokens", search.tokens as f64 / given),
                ("generations", search.generations as f64 / given),
                ("verifier-calls", search.verifications as f64 / given),
            ]
            .map(|(name, x)| (name.to_string(), x)),
        );
        Ok(sums)
    }
}
