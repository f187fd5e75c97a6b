//! Learning from verified responses.

use espalier_sdk::data::Batch;
use espalier_sdk::rewards::{Advantage, Prompt, Segment, TaskSpec, Verdict, mean};
use espalier_sdk::rollouts::{self, Grouped, Sample, SampleRequest, given, request};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{
    Error, Mode, Model, ParameterSet, Prediction, RunInfo, StepInfo, StepReport, Tensor, log,
    no_grad,
};

use crate::loss::{Aggregation, divergence, weights};
use crate::{Learner, Settings, parts};

/// First numbers of keys: what the randomness is for.
const RESPONSES: u64 = 0;
const ORDER: u64 = 1;
const CHECK: u64 = 2;

/// Steps of the warm start between two looks at its success.
const CHECK_EVERY: u64 = 10;
/// Prompts of such a look.
const CHECKED: u32 = 256;

/// A policy that answers prompts.
pub struct Answers {
    model: Model,
    spec: TaskSpec,
    /// Prompts a step.
    prompts: u32,
    /// Steps of the warm start that are done; none once it is over.
    warm_up: Option<u64>,
    /// What the newest step learned from. The host keeps its samples until the next step begins.
    newest: Newest,
}

enum Newest {
    Nothing,
    Solutions(Vec<u64>),
    Responses(Vec<Row>),
}

/// A response, as the loss sees it.
struct Row {
    sample: u64,
    /// Log-probability of each token when it was drawn.
    old: Vec<f64>,
    /// What each token is worth.
    advantages: Vec<f64>,
    correct: bool,
    keep: bool,
}

/// What an update tells.
#[derive(Default)]
struct Update {
    loss: f64,
    norm: f64,
    clipped: f64,
    kl: f64,
}

impl Answers {
    /// Refuses a model without one output a token, and groups that the budgets do not divide.
    pub fn new(run: &RunInfo, settings: &Settings, spec: TaskSpec) -> Result<Answers, Error> {
        let model = Model::main();
        let outputs = model
            .layers()
            .last()
            .and_then(|layer| layer.out_shape.last().copied());
        if outputs != Some(spec.vocabulary.len() as u32) {
            return Err(Error::incompatible(format!(
                "the environment has {} tokens and the model's last layer {} outputs; end the model in \
                 {{ kind = \"tied-linear\" }}, or in a linear layer with one output a token",
                spec.vocabulary.len(),
                outputs.unwrap_or(0)
            )));
        }
        let budgets = spec.budgets.len() as u32;
        if settings.budgets && (budgets == 0 || !settings.group_size.is_multiple_of(budgets)) {
            return Err(Error::invalid_option(match budgets {
                0 => "`budgets` is set, and the environment states none".to_string(),
                n => format!(
                    "`group-size` is {}; with `budgets` it must be a multiple of {n}, the number of budgets",
                    settings.group_size
                ),
            }));
        }
        Ok(Answers {
            model,
            spec,
            prompts: run.batch_size,
            warm_up: (settings.warm_up_steps > 0).then_some(0),
            newest: Newest::Nothing,
        })
    }

    /// A step of the warm start while it lasts, then one of policy gradients.
    pub fn step(&mut self, at: &StepInfo, settings: &Settings, learner: &Learner) -> StepReport {
        if let Some(done) = self.warm_up {
            if let Some(report) = self.imitate(at, settings, learner, done) {
                return report;
            }
            self.warm_up = None;
            // What the optimiser remembers belongs to another loss.
            ParameterSet::main().reset_state(&learner.names);
        }
        self.improve(at, settings, learner)
    }

    /// A supervised step on solutions; none where the warm start is over.
    fn imitate(
        &mut self,
        at: &StepInfo,
        settings: &Settings,
        learner: &Learner,
        done: u64,
    ) -> Option<StepReport> {
        if done >= settings.warm_up_steps {
            return None;
        }
        if done.is_multiple_of(CHECK_EVERY) && settings.warm_up_until < 1.0 {
            let success = self.success(at);
            log::metric("warm-up-success", success);
            if success >= settings.warm_up_until {
                return None;
            }
        }
        let samples = self.solutions(match settings.warm_up_prompts {
            0 => self.prompts,
            n => n,
        });
        if samples.is_empty() {
            log::warn("the environment gives no solutions: there is no warm start");
            return None;
        }
        let loss = imitation(&self.model, &samples);
        let set = ParameterSet::main();
        let lr = settings.warm_up_lr * learner.factor(at);
        learner.update(&[(&set, &learner.names)], &loss, lr);
        self.warm_up = Some(done + 1);
        let count = samples.len() as u32;
        self.newest = Newest::Solutions(samples);
        Some(StepReport::new(loss.item(), count))
    }

    /// Share of right responses among some drawn at temperature 1.
    fn success(&self, at: &StepInfo) -> f64 {
        let ask = |prompt: &Prompt| {
            let key = [CHECK, at.round.into(), at.step, prompt.id];
            request(&self.spec, prompt, 1, &key)
        };
        let requests: Vec<_> = rollouts::prompts(CHECKED).iter().map(ask).collect();
        let samples = ids(&rollouts::generate(&self.model, &requests));
        let right = |verdict: Verdict| f64::from(u8::from(verdict.correct));
        mean(rollouts::verify(&samples).into_iter().map(right))
    }

    /// Solutions with their stop token as samples.
    fn solutions(&self, prompts: u32) -> Vec<u64> {
        let solved = |prompt: &Prompt| {
            let mut tokens = prompt.solution.clone()?;
            tokens.push(self.spec.stop);
            Some(given(prompt, &tokens))
        };
        let requests: Vec<_> = rollouts::prompts(prompts)
            .iter()
            .filter_map(solved)
            .collect();
        ids(&rollouts::generate(&self.model, &requests))
    }

    /// Responses, verdicts, advantages, updates.
    fn improve(&mut self, at: &StepInfo, settings: &Settings, learner: &Learner) -> StepReport {
        if settings.kl > 0.0 {
            // The copy is made once, before the first update; later this finds it.
            self.reference();
        }
        let requests = self.requests(at, settings);
        let samples = rollouts::generate(&self.model, &requests);
        let verdicts = rollouts::verify(&ids(&samples));
        let grouped: Vec<Grouped> = samples
            .iter()
            .map(|sample| self.grouped(sample, settings))
            .collect();
        let advantages = rollouts::advantages(&grouped);
        let rows: Vec<Row> = samples
            .iter()
            .zip(&verdicts)
            .zip(&advantages)
            .map(|((sample, verdict), advantage)| Row {
                sample: sample.id,
                old: sample.logprobs.clone(),
                advantages: spread(advantage, &verdict.segments, sample.tokens.len()),
                correct: verdict.correct,
                keep: advantage.keep,
            })
            .collect();

        let set = ParameterSet::main();
        let lr = settings.lr * learner.factor(at);
        let mut updates: Vec<Update> = Vec::new();
        for epoch in 0..settings.epochs {
            let key = [ORDER, at.round.into(), at.step, epoch.into()];
            for part in parts(rows.len(), settings.minibatches, &key) {
                let part: Vec<&Row> = part.iter().map(|&place| &rows[place]).collect();
                if part.iter().all(|row| !row.keep) {
                    continue;
                }
                let (loss, mut update) = self.loss(&part, settings, learner);
                update.norm = learner.update(&[(&set, &learner.names)], &loss, lr);
                update.loss = loss.item();
                updates.push(update);
            }
        }

        let of = |f: fn(&Update) -> f64| mean(updates.iter().map(f));
        if learner.tells(at) {
            log::metric("reward", mean(verdicts.iter().map(|v| v.reward)));
            let right = |v: &Verdict| f64::from(u8::from(v.correct));
            log::metric("success", mean(verdicts.iter().map(right)));
            log::metric("length", mean(rows.iter().map(|row| row.old.len() as f64)));
            // The mean of -log p over what was drawn estimates the entropy, at temperature 1.
            let drawn = rows.iter().flat_map(|row| &row.old);
            log::metric("entropy", -mean(drawn.copied()));
            log::metric("clipped", of(|update| update.clipped));
            log::metric("gradient-norm", of(|update| update.norm));
            if settings.kl > 0.0 {
                log::metric("kl", of(|update| update.kl));
            }
        }
        let count = rows.len() as u32;
        self.newest = Newest::Responses(rows);
        StepReport::new(of(|update| update.loss), count)
    }

    /// What to draw in a step: each prompt's group at once, or a part of it for each budget.
    fn requests(&self, at: &StepInfo, settings: &Settings) -> Vec<SampleRequest> {
        let mut requests = Vec::new();
        for prompt in rollouts::prompts(self.prompts) {
            let key = [RESPONSES, at.round.into(), at.step, prompt.id];
            let whole = SampleRequest {
                temperature: settings.temperature,
                top_p: settings.top_p,
                ..request(&self.spec, &prompt, settings.group_size, &key)
            };
            if !settings.budgets {
                requests.push(whole);
                continue;
            }
            for (place, (_, stated)) in self.spec.budgets.iter().enumerate() {
                requests.push(SampleRequest {
                    forced: stated.clone(),
                    count: settings.group_size / self.spec.budgets.len() as u32,
                    max_tokens: whole.max_tokens.saturating_sub(stated.len() as u32),
                    key: [&key[..], &[place as u64]].concat(),
                    ..whole.clone()
                });
            }
        }
        requests
    }

    fn grouped(&self, sample: &Sample, settings: &Settings) -> Grouped {
        let states = |(_, stated): &&(u32, Vec<u32>)| sample.tokens.starts_with(stated);
        let budget = self
            .spec
            .budgets
            .iter()
            .find(states)
            .filter(|_| settings.budgets);
        Grouped {
            sample: sample.id,
            group: sample.prompt,
            parent: None,
            tags: budget
                .map(|(budget, _)| ("budget".to_string(), f64::from(*budget)))
                .into_iter()
                .collect(),
            segments: Vec::new(),
        }
    }

    /// The loss of some responses, and how many of its tokens are clipped.
    ///
    /// Responses that are worth nothing (those of a group that agrees, mostly) count where the loss is averaged and
    /// are not passed through the model: their part of the loss and of its gradient is 0.
    fn loss(&self, rows: &[&Row], settings: &Settings, learner: &Learner) -> (Tensor, Update) {
        let kept = |row: &&Row| if row.keep { row.old.len() } else { 0 };
        let right = |row: &&Row| if row.correct { row.old.len() } else { 0 };
        let lengths: Vec<usize> = rows.iter().map(kept).collect();
        let tokens: usize = lengths.iter().sum();
        let policy = weights(&lengths, settings.aggregation);
        let lengths: Vec<usize> = rows.iter().map(right).collect();
        let imitated = weights(&lengths, Aggregation::TokenMean);
        let all_matter = settings.kl > 0.0 || settings.entropy > 0.0;
        let matters = |row: &Row| {
            let worth = all_matter || row.advantages.iter().any(|&worth| worth != 0.0);
            row.keep && worth || row.correct && settings.positive_sft > 0.0
        };
        let mut some: Vec<usize> = (0..rows.len()).filter(|&i| matters(rows[i])).collect();
        if some.is_empty() {
            // A gradient of 0 needs a graph all the same.
            some.push(0);
        }
        let rows: Vec<&Row> = some.iter().map(|&i| rows[i]).collect();
        let policy: Vec<f64> = some.iter().map(|&i| policy[i]).collect();
        let imitated: Vec<f64> = some.iter().map(|&i| imitated[i]).collect();

        let samples: Vec<u64> = rows.iter().map(|row| row.sample).collect();
        let scored = rollouts::score(&self.model, &samples, settings.entropy > 0.0);
        let width = scored.logprobs.size(1) as usize;
        let old = padded(&rows, width, |row, token| row.old[token]);
        let advantages = padded(&rows, width, |row, token| row.advantages[token]);
        let mut losses = learner
            .surrogate
            .losses(&scored.logprobs, &old, &advantages);
        let mut update = Update::default();
        if settings.kl > 0.0 {
            let reference = self.reference();
            let reference = no_grad(|| rollouts::score(&reference, &samples, false).logprobs);
            let far = divergence(&scored.logprobs, &reference);
            let drawn: usize = rows.iter().map(|row| row.old.len()).sum();
            update.kl = (&far * &scored.mask).sum(&[]).item() / drawn.max(1) as f64;
            losses = losses + far * settings.kl;
        }
        if let Some(entropy) = &scored.entropy {
            losses = losses - entropy * settings.entropy;
        }
        let mut loss = (losses * each(&rows, width, &policy)).sum(&[]);
        if settings.positive_sft > 0.0 {
            let likelihood = &scored.logprobs * each(&rows, width, &imitated);
            loss = loss - likelihood.sum(&[]) * settings.positive_sft;
        }
        let cut = clipped(&rows, &scored.logprobs.to_list(), width, learner);
        update.clipped = cut as f64 / tokens.max(1) as f64;
        (loss, update)
    }

    /// The policy as it was when this was first called.
    fn reference(&self) -> Model {
        self.model.copy("reference")
    }

    /// The newest loss, a number.
    pub fn objective(&self, settings: &Settings, learner: &Learner, count: u32) -> Tensor {
        match &self.newest {
            Newest::Responses(rows) => {
                let rows: Vec<&Row> = rows.iter().collect();
                self.loss(&rows, settings, learner).0
            }
            Newest::Solutions(samples) => imitation(&self.model, samples),
            Newest::Nothing => imitation(&self.model, &self.solutions(count)),
        }
    }

    /// The next token's logits at every place.
    pub fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(self.model.forward(batch.fields(), Mode::Eval))
    }

    /// How far the warm start is. Samples do not outlive a step, so nothing else is to be kept.
    pub fn save(&self, state: Writer) -> Writer {
        state.u64(self.warm_up.map_or(0, |done| done + 1))
    }

    /// Takes back what `save` gave.
    pub fn restore(&mut self, state: &mut Reader) -> Result<(), Error> {
        self.warm_up = state.u64()?.checked_sub(1);
        self.newest = Newest::Nothing;
        Ok(())
    }
}

/// Mean negative log-likelihood of the samples' tokens.
fn imitation(model: &Model, samples: &[u64]) -> Tensor {
    let scored = rollouts::score(model, samples, false);
    -(scored.logprobs.sum(&[]) / scored.mask.sum(&[]))
}

fn ids(samples: &[Sample]) -> Vec<u64> {
    samples.iter().map(|sample| sample.id).collect()
}

/// What each token is worth: the one number, or that of the segment it lies in, 0 outside of all.
fn spread(advantage: &Advantage, segments: &[Segment], length: usize) -> Vec<f64> {
    if let [value] = advantage.values[..] {
        return vec![value; length];
    }
    let mut worth = vec![0.0; length];
    for (segment, &value) in segments.iter().zip(&advantage.values) {
        let (start, end) = (segment.start as usize, segment.end as usize);
        if let Some(tokens) = worth.get_mut(start..end.min(length)) {
            tokens.fill(value);
        }
    }
    worth
}

/// A number for each token of each response, 0 behind its end: `[n, width]`.
fn padded(rows: &[&Row], width: usize, f: impl Fn(&Row, usize) -> f64) -> Tensor {
    let mut values = vec![0.0; rows.len() * width];
    for (row, line) in rows.iter().zip(values.chunks_mut(width.max(1))) {
        for (token, value) in line.iter_mut().enumerate().take(row.old.len()) {
            *value = f(row, token);
        }
    }
    Tensor::from_list(&values, &[rows.len() as u32, width as u32])
}

/// The weight of each response at each of its tokens.
fn each(rows: &[&Row], width: usize, weights: &[f64]) -> Tensor {
    let mut values = vec![0.0; rows.len() * width];
    for ((row, line), weight) in rows
        .iter()
        .zip(values.chunks_mut(width.max(1)))
        .zip(weights)
    {
        line[..row.old.len()].fill(*weight);
    }
    Tensor::from_list(&values, &[rows.len() as u32, width as u32])
}

/// How many of the tokens that take part have a gradient that ppo would cut.
fn clipped(rows: &[&Row], now: &[f64], width: usize, learner: &Learner) -> u64 {
    let mut cut = 0;
    for (row, line) in rows.iter().zip(now.chunks(width.max(1))) {
        if row.keep {
            let tokens = line.iter().zip(&row.old).zip(&row.advantages);
            cut += tokens
                .filter(|((now, old), worth)| learner.surrogate.cuts(**now, **old, **worth))
                .count();
        }
    }
    cut as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advantage_of_a_segment_is_that_of_its_tokens() {
        let part = |start, end| Segment {
            start,
            end,
            label: String::new(),
            reward: None,
            value: None,
        };
        let segments = [part(0, 2), part(3, 9)];
        let advantage = |values: &[f64]| Advantage {
            values: values.to_vec(),
            keep: true,
        };
        let whole = spread(&advantage(&[0.5]), &segments, 4);
        assert_eq!(whole, [0.5; 4]);
        let parts = spread(&advantage(&[1.0, -1.0]), &segments, 5);
        assert_eq!(parts, [1.0, 1.0, 0.0, -1.0, -1.0]);
        assert_eq!(spread(&advantage(&[]), &[], 2), [0.0, 0.0]);
        assert_eq!(spread(&advantage(&[1.0, 2.0]), &segments, 2), [1.0, 1.0]);
    }
}
