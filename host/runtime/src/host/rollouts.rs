//! Interface `rollouts`: the run's environment and normaliser, asked on behalf of the trainer.
//!
//! Samples live here, so that a trainer can neither forge a reward nor score other tokens than those drawn.

use std::cell::RefCell;
use std::collections::BTreeMap;

use espalier_tensor::random::{self, Key};
use serde::{Deserialize, Serialize};
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::bindings::tasks::exports::espalier::plugin::tasks::Response;
use super::bindings::trainer::espalier::plugin::control::{ActionSpace, MdpSpec, Transition};
use super::bindings::trainer::espalier::plugin::rewards::{
    Advantage, Bounds, Prompt, RewardSpec, Rollout, TaskSpec, Verdict,
};
use super::bindings::trainer::espalier::plugin::rollouts::{
    EnvironmentKind, Grouped, Host, Sample, SampleEnd, SampleRequest, Scored,
};
use super::guest::{Guest, misuse, told};
use super::session::{Called, Cause, Death, Session};
use super::state::Shared;
use crate::model::Mode;
use crate::model::generate::Request;
use crate::search::{self, Search};

/// What the run's environment is.
#[derive(Clone, Debug, Default)]
pub enum Environment {
    /// There is none: the run has data.
    #[default]
    None,
    /// Prompts to be answered.
    Tasks {
        /// What they are like.
        spec: TaskSpec,
        /// Splits and how many prompts each has.
        splits: Vec<(String, u64)>,
    },
    /// A world to act in.
    Mdp(MdpSpec),
}

impl TaskSpec {
    /// Most tokens that the policy sees at once.
    pub fn context(&self) -> usize {
        self.max_prompt as usize + self.max_response as usize
    }
}

/// A response that was drawn in this step.
#[derive(Clone, Debug)]
struct Stored {
    prompt: u64,
    context: Vec<u32>,
    tokens: Vec<u32>,
    finished: bool,
    verdict: Option<Verdict>,
}

/// What the policy read and what it answered.
pub type Sequence = (Vec<u32>, Vec<u32>);

/// The last response to a prompt, for a normaliser that asks how far the policy has moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tracked {
    /// What the policy read.
    pub context: Vec<u32>,
    /// What it answered.
    pub tokens: Vec<u32>,
    /// Log-probabilities then, as the bits of f32.
    pub logprobs: Vec<u32>,
}

/// What the run keeps of prompts and responses.
#[derive(Default)]
pub struct Rollouts {
    /// The environment.
    pub environment: Environment,
    /// Instances that the trainer acts in.
    pub instances: u32,
    /// The last response to each prompt.
    pub tracked: BTreeMap<u64, Tracked>,
    /// The search, where a searcher asks and not a trainer.
    pub search: Option<Search>,
    /// Samples of this step.
    samples: BTreeMap<u64, Stored>,
    /// The task of each prompt that was drawn in this step.
    tasks: BTreeMap<u64, String>,
    /// Calls of `prompts` in this step.
    draws: u64,
    /// Samples that the normaliser was asked about in this step; none if it was not.
    asked: Option<Vec<u64>>,
}

/// Most tokens that are kept in a step: they are on nobody's account.
const MOST_TOKENS: usize = 1 << 24;

/// Most prompts of a split whose weights a normaliser can be asked for.
const MOST_WEIGHED: u64 = 1 << 20;

/// Most prompts of a split that is measured: every one of them is answered.
const MOST_MEASURED: u64 = 1 << 20;

/// Most instances of a world side by side.
const MOST_INSTANCES: u32 = 1 << 16;

/// What the host's own randomness is for.
const PROMPTS: u64 = 0x7072_6f6d_7074_0001;
const TOKENS: u64 = 0x746f_6b65_6e73_0001;

/// First number of the key of `reset`: the trainer's episodes and those of a measurement.
pub const TRAINING: u64 = 0;
/// See [`TRAINING`].
pub const EVALUATION: u64 = 1;

impl Rollouts {
    /// Nothing drawn yet from this environment.
    pub fn of(environment: Environment) -> Rollouts {
        Rollouts {
            environment,
            ..Rollouts::default()
        }
    }

    /// A new step begins.
    pub fn begin_step(&mut self) {
        self.samples.clear();
        self.tasks.clear();
        self.draws = 0;
        self.asked = None;
    }

    /// The newest response to each prompt that the normaliser was asked about in this step, in the order in which
    /// the prompts first came; none if it was not asked.
    pub fn take_asked(&mut self) -> Option<Vec<(u64, Sequence)>> {
        let asked = self.asked.take()?;
        let mut newest: Vec<(u64, Sequence)> = Vec::new();
        let mut place: BTreeMap<u64, usize> = BTreeMap::new();
        for sample in asked.iter().filter_map(|id| self.samples.get(id)) {
            let sequence = (sample.context.clone(), sample.tokens.clone());
            match place.get(&sample.prompt) {
                Some(&at) => newest[at].1 = sequence,
                None => {
                    place.insert(sample.prompt, newest.len());
                    newest.push((sample.prompt, sequence));
                }
            }
        }
        Some(newest)
    }

    fn stored(&self, what: &str, id: u64) -> Result<&Stored> {
        match self.samples.get(&id) {
            Some(sample) => Ok(sample),
            None => misuse(format!(
                "{what}: there is no sample {id}; samples are kept until the next step begins"
            )),
        }
    }
}

/// What is wrong with a batch of rollouts, if anything is: rewards that are no numbers, or out of their range.
pub fn unfit(batch: &[Rollout], spec: &RewardSpec) -> Option<String> {
    for (place, rollout) in batch.iter().enumerate() {
        let whose = || format!("rollout {place} (prompt {})", rollout.prompt);
        if let Err(problem) = in_range("the reward", rollout.reward, &spec.outcome) {
            return Some(format!("{}: {problem}", whose()));
        }
        if let Err(problem) = terms(&rollout.terms, spec) {
            return Some(format!("{}: {problem}", whose()));
        }
    }
    None
}

fn in_range(what: &str, x: f64, range: &Bounds) -> std::result::Result<(), String> {
    // Sums of rewards may miss an end of their range by rounding.
    let slack = 1e-9 * (range.max - range.min).abs().max(1.0);
    match x >= range.min - slack && x <= range.max + slack {
        true => Ok(()),
        false => Err(format!(
            "{what} is {x}, its declared range is {} to {}",
            range.min, range.max
        )),
    }
}

fn terms(given: &[(String, f64)], spec: &RewardSpec) -> std::result::Result<(), String> {
    let names = |list: Vec<&str>| match list.is_empty() {
        true => "none".to_string(),
        false => list.join(", "),
    };
    if !given
        .iter()
        .map(|(name, _)| name)
        .eq(spec.terms.iter().map(|range| &range.name))
    {
        return Err(format!(
            "the reward terms are {}, declared are {}",
            names(given.iter().map(|(name, _)| name.as_str()).collect()),
            names(spec.terms.iter().map(|range| range.name.as_str()).collect())
        ));
    }
    given
        .iter()
        .zip(&spec.terms)
        .try_for_each(|((name, x), range)| {
            in_range(&format!("the reward term `{name}`"), *x, range)
        })
}

/// What is wrong with a verdict on a response of `length` tokens.
pub fn unfit_verdict(verdict: &Verdict, length: usize, spec: &RewardSpec) -> Option<String> {
    let check = || {
        in_range("the reward", verdict.reward, &spec.outcome)?;
        terms(&verdict.terms, spec)?;
        for segment in &verdict.segments {
            if segment.start > segment.end || segment.end as usize > length {
                return Err(format!(
                    "a segment is from token {} to {}, the response has {length}",
                    segment.start, segment.end
                ));
            }
            if segment.reward.is_some_and(|reward| !reward.is_finite()) {
                return Err("a segment's reward is not a finite number".to_string());
            }
        }
        Ok(())
    };
    check().err()
}

/// What is wrong with the spec of an environment with tasks.
pub fn unfit_tasks(spec: &TaskSpec, splits: &[(String, u64)]) -> Option<String> {
    let words = spec.vocabulary.len();
    let fine =
        |range: &Bounds| range.min.is_finite() && range.max.is_finite() && range.min <= range.max;
    let known = |tokens: &[u32]| tokens.iter().all(|&token| (token as usize) < words);
    if !(2..=1 << 20).contains(&words) {
        Some(format!(
            "a vocabulary of {words} tokens, expected 2 to {}",
            1 << 20
        ))
    } else if spec.stop as usize >= words {
        Some(format!(
            "the stop token is {}, the vocabulary has {words}",
            spec.stop
        ))
    } else if spec.max_prompt == 0 || spec.max_response == 0 || spec.context() > 1 << 16 {
        Some(format!(
            "prompts of up to {} and responses of up to {} tokens, expected from 1 on and {} together",
            spec.max_prompt,
            spec.max_response,
            1 << 16
        ))
    } else if !fine(&spec.rewards.outcome) || !spec.rewards.terms.iter().all(fine) {
        Some("a reward's range is not from one finite number to a larger one".into())
    } else if let Some((budget, _)) = spec.budgets.iter().find(|(_, tokens)| {
        tokens.is_empty() || !known(tokens) || tokens.len() > spec.max_response as usize
    }) {
        Some(format!(
            "the budget {budget} is stated by tokens that are no beginning of a response"
        ))
    } else if !splits
        .iter()
        .any(|(name, count)| name == "train" && *count > 0)
    {
        Some("there is no split `train` with prompts".into())
    } else if let Some((name, count)) = splits
        .iter()
        .find(|(name, count)| name != "train" && *count > MOST_MEASURED)
    {
        Some(format!(
            "the split `{name}` has {count} prompts, at most {MOST_MEASURED} can be measured"
        ))
    } else {
        None
    }
}

impl Guest {
    /// Asks a session beside the trainer's within the time that this call has left. Nothing of the run may be
    /// borrowed: what is asked may log.
    fn ask<T>(
        &self,
        what: &str,
        missing: &str,
        slot: fn(&Shared) -> &RefCell<Option<Session>>,
        ask: impl FnOnce(&mut Session) -> Called<T>,
    ) -> Result<T> {
        let mut slot = slot(&self.shared).borrow_mut();
        let Some(session) = slot.as_mut() else {
            return misuse(format!("{what}: {missing}"));
        };
        session.shorten(
            self.deadline
                .saturating_duration_since(std::time::Instant::now()),
        );
        ask(session).map_err(wasmtime::Error::new)
    }

    fn ask_environment<T>(
        &self,
        what: &str,
        ask: impl FnOnce(&mut Session) -> Called<T>,
    ) -> Result<T> {
        let missing = "the run has no environment; add [environment] to the run file";
        self.ask(what, missing, |shared| &shared.environment, ask)
    }

    /// What the tasks are like, and how many prompts of its split the plugin may speak of.
    fn tasks(&self, what: &str) -> Result<(TaskSpec, u64)> {
        let rollouts = &self.shared.run.borrow().rollouts;
        match &rollouts.environment {
            Environment::Tasks { spec, splits } => {
                let train = splits.iter().find(|(name, _)| name == "train");
                let count = match &rollouts.search {
                    Some(search) => search.given,
                    None => train.map_or(0, |(_, count)| *count),
                };
                Ok((spec.clone(), count))
            }
            Environment::Mdp(_) => misuse(format!(
                "{what}: the run's environment is a world to act in, it has no prompts"
            )),
            Environment::None => misuse(format!(
                "{what}: the run has no environment; add [environment] to the run file"
            )),
        }
    }

    /// The next prompts of a search, without their solutions; none where no search is on.
    fn searched(&self, n: u32) -> Result<Option<Vec<Prompt>>> {
        let (split, ids) = match &mut self.shared.run.borrow_mut().rollouts.search {
            Some(search) => (search.split.clone(), search.next(n.into())),
            None => return Ok(None),
        };
        let mut prompts =
            self.ask_environment("prompts", |session| session.prompts(&split, &ids))?;
        for prompt in &mut prompts {
            prompt.solution = None;
        }
        Ok(Some(prompts))
    }

    fn world(&self, what: &str) -> Result<MdpSpec> {
        match &self.shared.run.borrow().rollouts.environment {
            Environment::Mdp(spec) => Ok(spec.clone()),
            _ => misuse(format!("{what}: the run has no environment to act in")),
        }
    }
}

impl MdpSpec {
    /// Actions as the environment may see them: whole numbers in range, or numbers clipped to theirs.
    pub fn clip(&self, mut actions: Vec<f64>, n: usize) -> std::result::Result<Vec<f64>, String> {
        let width = match &self.action {
            ActionSpace::Discrete(_) => 1,
            ActionSpace::Continuous(ranges) => ranges.len(),
        };
        if actions.len() != n * width {
            return Err(format!(
                "{} numbers as actions, expected {width} for each of {n} instances",
                actions.len()
            ));
        }
        for (place, x) in actions.iter_mut().enumerate() {
            match &self.action {
                ActionSpace::Discrete(count) => {
                    if x.fract() != 0.0 || !(0.0..f64::from(*count)).contains(x) {
                        return Err(format!(
                            "the action {x}, expected a whole number from 0 to {}",
                            count.saturating_sub(1)
                        ));
                    }
                }
                ActionSpace::Continuous(ranges) => {
                    if !x.is_finite() {
                        return Err(format!("the action {x}, expected a finite number"));
                    }
                    let (low, high) = ranges[place % width];
                    *x = x.max(low).min(high);
                }
            }
        }
        Ok(actions)
    }
}

/// `n` different numbers below `count`, in random order, by the first steps of Fisher and Yates's shuffle.
fn draw_uniform(key: &Key, n: usize, count: u64) -> Vec<u64> {
    let mut moved: BTreeMap<u64, u64> = BTreeMap::new();
    let bits = random::bits(key, n);
    let mut drawn = Vec::with_capacity(n);
    for (at, bits) in (0..count).zip(bits) {
        let other = at + ((u128::from(bits) * u128::from(count - at)) >> 64) as u64;
        let here = moved.get(&at).copied().unwrap_or(at);
        drawn.push(moved.insert(other, here).unwrap_or(other));
    }
    drawn
}

/// `n` different numbers below the length of `weights`, drawn one after another in proportion to what is left
/// (Efraimidis and Spirakis 2006); numbers of weight 0 only when the others are used up.
fn draw_weighted(key: &Key, n: usize, weights: &[f64]) -> Vec<u64> {
    let bits = random::bits(key, weights.len());
    let mut order: Vec<(f64, u64)> = weights
        .iter()
        .zip(bits)
        .zip(0..)
        .map(|((&weight, bits), id)| {
            let unit = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let rank = match weight > 0.0 {
                true => unit.ln() / weight,
                // Below every other, in an order of their own.
                false => f64::MIN * (1.0 - unit / 2.0),
            };
            (rank, id)
        })
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.into_iter().take(n).map(|(_, id)| id).collect()
}

/// A request as the model's generator takes it.
fn request(seed: u64, asked: SampleRequest) -> Request {
    let mut key = vec![seed, TOKENS];
    key.extend(asked.key);
    Request {
        context: asked.context,
        forced: asked.forced,
        count: asked.count as usize,
        stop: asked.stop,
        max_tokens: asked.max_tokens as usize,
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k as usize,
        key,
    }
}

impl Host for Guest {
    fn environment(&mut self) -> Result<EnvironmentKind> {
        Ok(match &self.shared.run.borrow().rollouts.environment {
            Environment::None => EnvironmentKind::None,
            Environment::Tasks { spec, .. } => EnvironmentKind::Tasks(spec.clone()),
            Environment::Mdp(spec) => EnvironmentKind::Mdp(spec.clone()),
        })
    }

    fn prompts(&mut self, n: u32) -> Result<Vec<Prompt>> {
        self.uncapturable("it asks for prompts");
        self.in_time()?;
        let (_, count) = self.tasks("prompts")?;
        if let Some(prompts) = self.searched(n)? {
            return Ok(prompts);
        }
        let n = u64::from(n).min(count) as usize;
        let key = {
            let run = &mut *self.shared.run.borrow_mut();
            run.rollouts.draws += 1;
            Key::new(&[run.seed, PROMPTS, run.steps_done, run.rollouts.draws])
        };
        let tracks = matches!(&*self.shared.normalizer.borrow(), Some(session) if session.tracks());
        let ids = if tracks {
            if count > MOST_WEIGHED {
                return misuse(format!(
                    "prompts: a normaliser that weighs prompts can't choose among {count}; at most {MOST_WEIGHED}"
                ));
            }
            let all: Vec<u64> = (0..count).collect();
            let weights = self.ask(
                "prompts",
                "the run has no normaliser",
                |shared| &shared.normalizer,
                |session| session.prompt_weights(&all),
            )?;
            draw_weighted(&key, n, &weights)
        } else {
            draw_uniform(&key, n, count)
        };
        let prompts = self.ask_environment("prompts", |session| session.prompts("train", &ids))?;
        let tasks = prompts.iter().map(|p| (p.id, p.task.clone()));
        self.shared.run.borrow_mut().rollouts.tasks.extend(tasks);
        Ok(prompts)
    }

    fn generate(
        &mut self,
        m: Resource<rep::Model>,
        requests: Vec<SampleRequest>,
    ) -> Result<Vec<Sample>> {
        self.uncapturable("it generates");
        let (spec, count) = self.tasks("generate")?;
        let id = self.model(&m)?;
        let run = &mut *self.shared.run.borrow_mut();
        if let Some(wrong) = requests.iter().find(|request| request.prompt >= count) {
            return misuse(match &run.rollouts.search {
                None => format!(
                    "generate: there is no prompt {}; the training split has {count}",
                    wrong.prompt
                ),
                Some(search) => format!(
                    "generate: prompt {} of `{}` was not given yet; ask for it with rollouts.prompts",
                    wrong.prompt, search.split
                ),
            });
        }
        let contexts: Vec<(u64, Vec<u32>, usize)> = requests
            .iter()
            .map(|request| {
                (
                    request.prompt,
                    request.context.clone(),
                    request.forced.len(),
                )
            })
            .collect();
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|asked| request(run.seed, asked))
            .collect();
        let tokens: usize = requests
            .iter()
            .map(|r| {
                let length = r
                    .forced
                    .len()
                    .saturating_add(r.max_tokens)
                    .min(spec.context());
                r.count.saturating_mul(length.max(1))
            })
            .fold(0, usize::saturating_add);
        let kept: usize = run
            .rollouts
            .samples
            .values()
            .map(|s| s.tokens.len() + 1)
            .sum();
        if tokens.saturating_add(kept) > MOST_TOKENS {
            return misuse(format!(
                "generate: {tokens} tokens beside the {kept} of this step; at most {MOST_TOKENS}"
            ));
        }
        let (model, set) = super::model::model_and_set(run, &id)?;
        self.affordable("generate", model.generate_macs(&requests, spec.context()))?;
        let responses = told(model.generate(set, &requests, spec.context()))?;
        let run = &mut run.rollouts;
        let mut samples = Vec::with_capacity(responses.len());
        for response in responses {
            let (prompt, context, forced) = contexts[response.request].clone();
            let drawn = response.tokens.len().saturating_sub(forced) as u64;
            if let Some(search) = run.search.as_mut().filter(|_| drawn > 0) {
                search.tokens += drawn;
                search.generations += 1;
            }
            let finished = response.stopped || response.tokens.last() == Some(&spec.stop);
            let number = run.samples.last_key_value().map_or(0, |(id, _)| id + 1);
            samples.push(Sample {
                id: number,
                prompt,
                tokens: response.tokens.clone(),
                logprobs: response.logprobs.iter().map(|&x| f64::from(x)).collect(),
                end: match response.stopped {
                    true => SampleEnd::Stop,
                    false => SampleEnd::Length,
                },
            });
            run.samples.insert(
                number,
                Stored {
                    prompt,
                    context,
                    tokens: response.tokens,
                    finished,
                    verdict: None,
                },
            );
        }
        Ok(samples)
    }

    fn score(
        &mut self,
        m: Resource<rep::Model>,
        samples: Vec<u64>,
        entropy: bool,
    ) -> Result<Scored> {
        self.uncapturable("it scores samples");
        let (spec, _) = self.tasks("score")?;
        let id = self.model(&m)?;
        let (logprobs, mask, entropy) = {
            let run = &mut *self.shared.run.borrow_mut();
            let mut sequences = Vec::with_capacity(samples.len());
            for &sample in &samples {
                let stored = run.rollouts.stored("score", sample)?;
                sequences.push((stored.context.clone(), stored.tokens.clone()));
            }
            let (model, set) = super::model::model_and_set(run, &id)?;
            let longest = sequences.iter().map(|(c, t)| c.len() + t.len()).max();
            let share = longest.unwrap_or(0) as f64 / spec.context() as f64;
            let macs = model.macs(0, model.len()) as f64;
            self.affordable("score", samples.len() as f64 * macs * share)?;
            told(model.logprobs(set, &sequences, entropy, Mode::Eval))?
        };
        Ok(Scored {
            logprobs: self.put(Ok(logprobs))?,
            mask: self.put(Ok(mask))?,
            entropy: entropy.map(|t| self.put(Ok(t))).transpose()?,
        })
    }

    fn verify(&mut self, samples: Vec<u64>) -> Result<Vec<Verdict>> {
        self.uncapturable("it asks for verdicts");
        self.in_time()?;
        let (spec, _) = self.tasks("verify")?;
        let split = {
            let search = &mut self.shared.run.borrow_mut().rollouts.search;
            search.as_mut().map_or("train".to_string(), |search| {
                search.verifications += samples.len() as u64;
                search.split.clone()
            })
        };
        let mut responses = Vec::with_capacity(samples.len());
        for &sample in &samples {
            let run = self.shared.run.borrow();
            let stored = run.rollouts.stored("verify", sample)?;
            responses.push(Response {
                split: split.clone(),
                prompt: stored.prompt,
                tokens: stored.tokens.clone(),
                finished: stored.finished,
            });
        }
        let mut verdicts = self.ask_environment("verify", |session| {
            session.verify(&responses, &spec.rewards)
        })?;
        let run = &mut *self.shared.run.borrow_mut();
        if run.rollouts.search.is_some() {
            let seen = verdicts.into_iter();
            verdicts = seen.map(|v| search::blanked(v, &spec.rewards)).collect();
        }
        for (sample, verdict) in samples.iter().zip(&verdicts) {
            if let Some(stored) = run.rollouts.samples.get_mut(sample) {
                stored.verdict = Some(verdict.clone());
            }
        }
        Ok(verdicts)
    }

    fn advantages(&mut self, samples: Vec<Grouped>) -> Result<Vec<Advantage>> {
        self.uncapturable("it asks for advantages");
        self.in_time()?;
        self.tasks("advantages")?;
        let mut batch = Vec::with_capacity(samples.len());
        let mut asked = Vec::with_capacity(samples.len());
        for grouped in samples {
            let run = self.shared.run.borrow();
            let stored = run.rollouts.stored("advantages", grouped.sample)?;
            let Some(verdict) = &stored.verdict else {
                return misuse(format!(
                    "advantages: sample {} was not verified; call rollouts.verify first",
                    grouped.sample
                ));
            };
            if let Some((tag, x)) = grouped.tags.iter().find(|(_, x)| !x.is_finite()) {
                return misuse(format!(
                    "advantages: the tag `{tag}` is {x}, expected a finite number"
                ));
            }
            let length = stored.tokens.len() as u32;
            if grouped
                .segments
                .iter()
                .any(|s| s.start > s.end || s.end > length)
            {
                return misuse(format!(
                    "advantages: a segment lies outside the {length} tokens of sample {}",
                    grouped.sample
                ));
            }
            asked.push(grouped.sample);
            batch.push(Rollout {
                sample: grouped.sample,
                prompt: stored.prompt,
                group: grouped.group,
                parent: grouped.parent,
                task: run
                    .rollouts
                    .tasks
                    .get(&stored.prompt)
                    .cloned()
                    .unwrap_or_default(),
                reward: verdict.reward,
                terms: verdict.terms.clone(),
                correct: verdict.correct,
                well_formed: verdict.well_formed,
                length,
                tags: grouped.tags,
                segments: match grouped.segments.is_empty() {
                    true => verdict.segments.clone(),
                    false => grouped.segments,
                },
            });
        }
        let missing =
            "the run has no normaliser; add [normalizer] with plugin = \"grpo\" to the run file";
        let advantages = self.ask(
            "advantages",
            missing,
            |shared| &shared.normalizer,
            |session| {
                let answer = session.normalize(&batch)?;
                answer.map_err(|refusal| Death {
                    plugin: session.guest().name.clone(),
                    call: "normalize",
                    cause: Cause::Other,
                    what: "refuses a batch of rollouts".into(),
                    details: vec![("because".into(), super::guest::shown(&refusal.message))],
                    help: Some(
                        "choose another normaliser, or change what the trainer samples".into(),
                    ),
                })
            },
        )?;
        self.shared.run.borrow_mut().rollouts.asked = Some(asked);
        Ok(advantages)
    }

    fn reset(&mut self, n: u32, key: Vec<u64>) -> Result<Vec<f64>> {
        self.uncapturable("it acts in a world");
        self.in_time()?;
        let spec = self.world("reset")?;
        if n == 0 || n > MOST_INSTANCES {
            return misuse(format!(
                "reset: {n} instances, expected 1 to {MOST_INSTANCES}"
            ));
        }
        let key: Vec<u64> = std::iter::once(TRAINING).chain(key).collect();
        let size = spec.observation.len();
        let observations = self.ask_environment("reset", |session| session.reset(n, &key, size))?;
        self.shared.run.borrow_mut().rollouts.instances = n;
        Ok(observations)
    }

    fn step(&mut self, actions: Vec<f64>) -> Result<Transition> {
        self.uncapturable("it acts in a world");
        self.in_time()?;
        let spec = self.world("step")?;
        let n = self.shared.run.borrow().rollouts.instances as usize;
        if n == 0 {
            return misuse("step: no episode has begun; call rollouts.reset first");
        }
        let actions = match spec.clip(actions, n) {
            Ok(actions) => actions,
            Err(problem) => return misuse(format!("step: {problem}")),
        };
        let size = spec.observation.len();
        self.ask_environment("step", |session| session.act(&actions, n, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_prompts_are_different_and_all_come_where_all_are_asked_for() {
        let key = Key::new(&[1]);
        let mut drawn = draw_uniform(&key, 100, 100);
        drawn.sort_unstable();
        assert_eq!(drawn, (0..100).collect::<Vec<u64>>());
        let few = draw_uniform(&key, 50, u64::MAX);
        let different: std::collections::BTreeSet<&u64> = few.iter().collect();
        assert_eq!((few.len(), different.len()), (50, 50));
    }

    #[test]
    fn weights_set_how_often_a_prompt_is_drawn() {
        let weights = [1.0, 3.0, 0.0, 0.0];
        let mut counts = [0u32; 4];
        for step in 0..4000 {
            counts[draw_weighted(&Key::new(&[step]), 1, &weights)[0] as usize] += 1;
        }
        assert_eq!((counts[2], counts[3]), (0, 0));
        let share = f64::from(counts[1]) / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share} is not 3/4");
        // With the others used up, those of weight 0 come, in an order that is not always the same.
        let last: std::collections::BTreeSet<u64> = (0..50)
            .map(|step| draw_weighted(&Key::new(&[step]), 4, &weights)[3])
            .collect();
        assert_eq!(last.len(), 2);
    }
}
