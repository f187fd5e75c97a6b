//! Learning from a world to act in.
//!
//! Every step plays `horizon` steps in each of `batch-size` instances, then learns from them: generalised advantage
//! estimation (Schulman et al. 2016) on a value network of this plugin's, the policy by the rule that the options
//! name. Episodes go on across steps. A cut-off episode counts the value of where it was cut; a terminated one
//! nothing.

use std::f64::consts::PI;

use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
use espalier_sdk::data::Batch;
use espalier_sdk::model::LayerSpec;
use espalier_sdk::parameters::Kind;
use espalier_sdk::rewards::mean;
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{
    Dtype, Error, Mode, Model, ParameterSet, Prediction, RunInfo, StepInfo, StepReport, Tensor,
    log, no_grad, random, rollouts,
};

use crate::{Learner, Settings, parts};

/// First numbers of keys: what the randomness is for.
const EPISODES: u64 = 0;
const ACTIONS: u64 = 1;
const ORDER: u64 = 2;
const CRITIC: u64 = 3;

/// log(2 pi) / 2.
const LOG_ROOT_TAU: f64 = 0.918_938_533_204_672_8;

/// A policy that acts.
pub struct Actor {
    model: Model,
    critic: Model,
    /// Holds the logarithm of the deviations of continuous actions.
    own: ParameterSet,
    own_names: Vec<String>,
    spec: MdpSpec,
    instances: usize,
    /// What to act on next, instance after instance; empty before the first step.
    observations: Vec<f64>,
    /// Reward so far of each instance's episode, and its steps.
    returns: Vec<f64>,
    lengths: Vec<f64>,
    /// What the newest step learned from.
    newest: Option<Played>,
}

/// Steps of all instances, `[steps * instances]` each, an instance's steps `instances` apart.
struct Played {
    /// `[n, size of an observation]`.
    observations: Tensor,
    /// i64 `[n]`, or f32 `[n, size of an action]` in halves of the ranges.
    actions: Tensor,
    /// Log-probability of each action when it was drawn.
    old: Tensor,
    advantages: Tensor,
    /// What the value network should have said.
    targets: Tensor,
}

/// What one call of `play` collects, in plain numbers.
#[derive(Default)]
struct Trace {
    observations: Vec<f64>,
    actions: Vec<f64>,
    old: Vec<f64>,
    rewards: Vec<f64>,
    ends: Vec<End>,
    /// Where cut-off and ended episodes stood last.
    last: Vec<f64>,
    /// Returns and lengths of the episodes that ended.
    finished: Vec<(f64, f64)>,
    /// Probability-weighted spread of the policy, one an action.
    entropy: Vec<f64>,
}

/// How an instance's step ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The episode goes on.
    Open,
    /// It was cut off.
    Cut,
    /// It came to its end.
    Over,
}

impl Actor {
    /// Refuses a model whose outputs are not one an action (discrete) or one a number of an action (continuous).
    pub fn new(run: &RunInfo, settings: &Settings, spec: MdpSpec) -> Result<Actor, Error> {
        let model = Model::main();
        let outputs = match &spec.action {
            ActionSpace::Discrete(n) => *n,
            ActionSpace::Continuous(ranges) => ranges.len() as u32,
        };
        let found = model.layers().last().map(|layer| layer.out_shape.clone());
        if found.as_deref() != Some(&[outputs]) {
            return Err(Error::incompatible(format!(
                "the world takes {}; the model's last layer gives {:?}, expected [{outputs}]: end the model in \
                 {{ kind = \"linear\", features = {outputs} }}",
                match &spec.action {
                    ActionSpace::Discrete(n) => format!("one of {n} actions"),
                    ActionSpace::Continuous(ranges) =>
                        format!("actions of {} numbers", ranges.len()),
                },
                found.unwrap_or_default()
            )));
        }
        let layer = |kind: &str, features: u32| LayerSpec {
            name: String::new(),
            kind: kind.into(),
            inputs: Vec::new(),
            settings: match features {
                0 => Vec::new(),
                n => vec![("features".into(), f64::from(n))],
            },
        };
        let width = settings.critic_width;
        let layers = [
            layer("linear", width),
            layer("tanh", 0),
            layer("linear", width),
            layer("tanh", 0),
            layer("linear", 1),
        ];
        let critic = Model::build("critic", &layers, &[CRITIC]);
        let own = ParameterSet::own("policy");
        if let ActionSpace::Continuous(ranges) = &spec.action {
            let init = Tensor::full(&[ranges.len() as u32], settings.log_deviation, Dtype::F32);
            own.create("log-deviation", Kind::Bias, &init, true);
        }
        Ok(Actor {
            model,
            critic,
            own_names: own.trainable(),
            own,
            spec,
            instances: run.batch_size as usize,
            observations: Vec::new(),
            returns: vec![0.0; run.batch_size as usize],
            lengths: vec![0.0; run.batch_size as usize],
            newest: None,
        })
    }

    /// Plays, then learns from what was played.
    pub fn step(&mut self, at: &StepInfo, settings: &Settings, learner: &Learner) -> StepReport {
        if self.observations.is_empty() {
            self.observations = rollouts::reset(self.instances as u32, &[EPISODES]);
        }
        let trace = self.play(at, settings);
        let played = self.weigh(&trace, settings);
        let (main, critic) = (ParameterSet::main(), self.critic.parameters());
        let critic_names = critic.trainable();
        let factor = learner.factor(at);
        let (mut losses, mut norms, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let count = trace.old.len();
        for epoch in 0..settings.epochs {
            let key = [ORDER, at.round.into(), at.step, epoch.into()];
            for part in parts(count, settings.minibatches, &key) {
                let part = played.some(&part);
                let loss = self.loss(&part, settings, learner);
                let sets = [
                    (&main, &learner.names[..]),
                    (&self.own, &self.own_names[..]),
                ];
                norms.push(learner.update(&sets, &loss, settings.lr * factor));
                losses.push(loss.item());
                let values = values(&self.critic, &part.observations);
                let error = (values - &part.targets).square().mean(&[]) * 0.5;
                let lr = settings.critic_lr * factor;
                learner.update(&[(&critic, &critic_names)], &error, lr);
                errors.push(error.item());
            }
        }
        if learner.tells(at) {
            if !trace.finished.is_empty() {
                let mean_of = |f: fn(&(f64, f64)) -> f64| mean(trace.finished.iter().map(f));
                log::metric("return", mean_of(|(sum, _)| *sum));
                log::metric("length", mean_of(|(_, steps)| *steps));
            }
            log::metric("entropy", mean(trace.entropy.iter().copied()));
            log::metric("gradient-norm", mean(norms));
            log::metric("value-loss", mean(errors));
        }
        self.newest = Some(played);
        StepReport::new(mean(losses), count as u32)
    }

    /// `horizon` steps of every instance.
    fn play(&mut self, at: &StepInfo, settings: &Settings) -> Trace {
        let size = self.spec.observation_size() as u32;
        let mut trace = Trace::default();
        for time in 0..settings.horizon {
            let key = [ACTIONS, at.round.into(), at.step, time.into()];
            let seen = Tensor::from_list(&self.observations, &[self.instances as u32, size]);
            let outputs = no_grad(|| forward(&self.model, &seen)).to_list();
            let chosen = match &self.spec.action {
                ActionSpace::Discrete(n) => choose(&outputs, *n as usize, &key, &mut trace),
                ActionSpace::Continuous(ranges) => {
                    let deviations = self.own.value("log-deviation").to_list();
                    aim(&outputs, &deviations, ranges, &key, &mut trace)
                }
            };
            let now = rollouts::step(&chosen);
            trace.observations.append(&mut self.observations);
            self.account(&now, &mut trace, settings.reward_scale);
            self.observations = now.observations;
        }
        trace
    }

    /// Rewards and ends of a step, and the returns of episodes that ended in it.
    fn account(&mut self, now: &Transition, trace: &mut Trace, scale: f64) {
        for instance in 0..self.instances {
            let reward = now.rewards[instance];
            trace.rewards.push(reward * scale);
            self.returns[instance] += reward;
            self.lengths[instance] += 1.0;
            let end = match (now.terminated[instance], now.truncated[instance]) {
                (true, _) => End::Over,
                (false, true) => End::Cut,
                (false, false) => End::Open,
            };
            trace.ends.push(end);
            if end != End::Open {
                let ended = (self.returns[instance], self.lengths[instance]);
                trace.finished.push(ended);
                (self.returns[instance], self.lengths[instance]) = (0.0, 0.0);
            }
        }
        trace.last.extend(&now.last_observations);
    }

    /// Values, advantages and targets of what was played.
    fn weigh(&self, trace: &Trace, settings: &Settings) -> Played {
        let size = self.spec.observation_size();
        let count = trace.old.len();
        // One pass of the value network: what was seen, what is seen now, and where episodes ended.
        let all = [&trace.observations[..], &self.observations, &trace.last].concat();
        let all = Tensor::from_list(&all, &[(all.len() / size) as u32, size as u32]);
        let values = no_grad(|| values(&self.critic, &all)).to_list();
        let (here, rest) = values.split_at(count);
        let (now, last) = rest.split_at(self.instances);
        let next = next_values(here, now, last, &trace.ends);
        let (discount, lambda) = (settings.discount, settings.gae_lambda);
        let mut advantages = advantages(
            &trace.rewards,
            here,
            &next,
            &trace.ends,
            self.instances,
            discount,
            lambda,
        );
        let targets: Vec<f64> = advantages.iter().zip(here).map(|(a, v)| a + v).collect();
        if settings.whiten {
            whiten(&mut advantages);
        }
        let n = count as u32;
        Played {
            observations: Tensor::from_list(&trace.observations, &[n, size as u32]),
            actions: match &self.spec.action {
                ActionSpace::Discrete(_) => Tensor::from_list_as(&trace.actions, &[n], Dtype::I64),
                ActionSpace::Continuous(ranges) => {
                    Tensor::from_list(&trace.actions, &[n, ranges.len() as u32])
                }
            },
            old: Tensor::from_list(&trace.old, &[n]),
            advantages: Tensor::from_list(&advantages, &[n]),
            targets: Tensor::from_list(&targets, &[n]),
        }
    }

    /// The policy's loss on what was played, less its entropy.
    fn loss(&self, played: &Played, settings: &Settings, learner: &Learner) -> Tensor {
        let outputs = forward(&self.model, &played.observations);
        let (logprobs, entropy) = match &self.spec.action {
            ActionSpace::Discrete(_) => {
                let all = outputs.log_softmax(-1);
                let taken = all.take_along_axis(&played.actions.expand_dims(-1), -1);
                let entropy = -(all.exp() * &all).sum(&[-1]);
                (taken.squeeze(-1), entropy.mean(&[]))
            }
            ActionSpace::Continuous(ranges) => {
                let deviations = self.own.value("log-deviation");
                let off = (&played.actions - outputs) / deviations.exp();
                let each = off.square() * -0.5 - &deviations - LOG_ROOT_TAU;
                let constant = (0.5 + LOG_ROOT_TAU) * ranges.len() as f64;
                (each.sum(&[-1]), deviations.sum(&[]) + constant)
            }
        };
        let losses = learner
            .surrogate
            .losses(&logprobs, &played.old, &played.advantages);
        match settings.entropy {
            0.0 => losses.mean(&[]),
            coefficient => losses.mean(&[]) - entropy * coefficient,
        }
    }

    /// The loss of the newest step, a number; 0 before the first.
    pub fn objective(&self, settings: &Settings, learner: &Learner, batch: &Batch) -> Tensor {
        match &self.newest {
            Some(played) => self.loss(played, settings, learner),
            None => {
                self.model
                    .forward(batch.fields(), Mode::TrainFrozenStats)
                    .sum(&[])
                    * 0.0
            }
        }
    }

    /// Logits of discrete actions; of continuous ones the mean, in their own units.
    pub fn predict(&self, batch: &Batch) -> Prediction {
        let outputs = self.model.forward(batch.fields(), Mode::Eval);
        let ActionSpace::Continuous(ranges) = &self.spec.action else {
            return Prediction::logits(outputs);
        };
        let (middles, halves): (Vec<f64>, Vec<f64>) = ranges.iter().map(units).unzip();
        let size = [ranges.len() as u32];
        let (middles, halves) = (
            Tensor::from_list(&middles, &size),
            Tensor::from_list(&halves, &size),
        );
        Prediction::values(outputs * halves + middles)
    }

    /// Where every instance stands. The world saves itself.
    pub fn save(&self, state: Writer) -> Writer {
        state
            .f64s(&self.observations)
            .f64s(&self.returns)
            .f64s(&self.lengths)
    }

    /// Takes back what `save` gave.
    pub fn restore(&mut self, state: &mut Reader) -> Result<(), Error> {
        (self.observations, self.returns, self.lengths) =
            (state.f64s()?, state.f64s()?, state.f64s()?);
        self.newest = None;
        let expected = self.instances * self.spec.observation_size();
        let fits = [0, expected].contains(&self.observations.len())
            && [&self.returns, &self.lengths]
                .iter()
                .all(|list| list.len() == self.instances);
        match fits {
            true => Ok(()),
            false => Err(Error::invalid_state(format!(
                "the saved episodes are not those of {} instances",
                self.instances
            ))),
        }
    }
}

impl Played {
    /// Some of it.
    fn some(&self, places: &[usize]) -> Played {
        let places = Tensor::indices(places.iter().map(|&place| place as u64));
        Played {
            observations: self.observations.take(&places, 0),
            actions: self.actions.take(&places, 0),
            old: self.old.take(&places, 0),
            advantages: self.advantages.take(&places, 0),
            targets: self.targets.take(&places, 0),
        }
    }
}

/// A network on observations `[n, size]`.
fn forward(model: &Model, observations: &Tensor) -> Tensor {
    let fields = [("inputs".to_string(), observations.clone())];
    model.forward(&fields, Mode::TrainFrozenStats)
}

/// The value network's word, `[n]`.
fn values(critic: &Model, observations: &Tensor) -> Tensor {
    forward(critic, observations).squeeze(-1)
}

/// Draws a discrete action for each instance from its logits.
fn choose(logits: &[f64], actions: usize, key: &[u64], trace: &mut Trace) -> Vec<f64> {
    let instances = logits.len() / actions;
    let dice = random::uniform_list(key, instances as u32);
    let mut chosen = Vec::with_capacity(instances);
    for (logits, dice) in logits.chunks(actions).zip(dice) {
        let (action, logprob, entropy) = pick(logits, dice);
        chosen.push(action as f64);
        trace.old.push(logprob);
        trace.entropy.push(entropy);
    }
    trace.actions.extend(&chosen);
    chosen
}

/// The action at which the summed probabilities pass `dice`, its log-probability, and the entropy of all.
fn pick(logits: &[f64], dice: f64) -> (usize, f64, f64) {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most;
    let logprobs = || logits.iter().map(|x| x - total);
    let entropy = -logprobs()
        .map(|x| if x.is_finite() { x.exp() * x } else { 0.0 })
        .sum::<f64>();
    let mut below = 0.0;
    for (action, logprob) in logprobs().enumerate() {
        below += logprob.exp();
        if dice < below {
            return (action, logprob, entropy);
        }
    }
    // Rounding left the sum below the dice.
    let last = logits.len() - 1;
    (last, logits[last] - total, entropy)
}

/// Draws a continuous action for each instance: kept in halves of the ranges, given in their own units.
fn aim(
    means: &[f64],
    deviations: &[f64],
    ranges: &[(f64, f64)],
    key: &[u64],
    trace: &mut Trace,
) -> Vec<f64> {
    let size = ranges.len();
    let dice = random::uniform_list(key, 2 * means.len() as u32);
    let constant = (0.5 + LOG_ROOT_TAU) * size as f64;
    let mut chosen = Vec::with_capacity(means.len());
    for (means, dice) in means.chunks(size).zip(dice.chunks(2 * size)) {
        let mut logprob = 0.0;
        for place in 0..size {
            let z = normal(dice[2 * place], dice[2 * place + 1]);
            let action = means[place] + deviations[place].exp() * z;
            logprob += -0.5 * z * z - deviations[place] - LOG_ROOT_TAU;
            let (middle, half) = units(&ranges[place]);
            trace.actions.push(action);
            chosen.push(middle + half * action);
        }
        trace.old.push(logprob);
        trace
            .entropy
            .push(deviations.iter().sum::<f64>() + constant);
    }
    chosen
}

/// A standard normal number from two uniform ones on [0, 1) (Box and Muller 1958).
fn normal(a: f64, b: f64) -> f64 {
    (-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * PI * b).cos()
}

/// Middle and half of a range; 0 and 1 where it is not bounded.
fn units(&(low, high): &(f64, f64)) -> (f64, f64) {
    match low.is_finite() && high.is_finite() {
        true => (0.5 * (low + high), 0.5 * (high - low)),
        false => (0.0, 1.0),
    }
}

/// The value of what followed each step: of the next observation, of the last one where the episode was cut off,
/// 0 where it ended. `last` names cut and ended episodes in the order of `ends`.
fn next_values(here: &[f64], now: &[f64], last: &[f64], ends: &[End]) -> Vec<f64> {
    let following = here.iter().skip(now.len()).chain(now);
    let mut last = last.iter();
    ends.iter()
        .zip(following)
        .map(|(end, following)| match end {
            End::Open => *following,
            End::Cut => last.next().copied().unwrap_or(0.0),
            End::Over => {
                last.next();
                0.0
            }
        })
        .collect()
}

/// Generalised advantage estimation (Schulman et al. 2016, equation 16): d_t + g l d_{t+1} + ... within an episode,
/// d_t = r_t + g V(next) - V(here).
fn advantages(
    rewards: &[f64],
    here: &[f64],
    next: &[f64],
    ends: &[End],
    instances: usize,
    discount: f64,
    lambda: f64,
) -> Vec<f64> {
    let mut advantages = vec![0.0; rewards.len()];
    for place in (0..rewards.len()).rev() {
        let later = match (ends[place], advantages.get(place + instances)) {
            (End::Open, Some(later)) => *later,
            _ => 0.0,
        };
        let surprise = rewards[place] + discount * next[place] - here[place];
        advantages[place] = surprise + discount * lambda * later;
    }
    advantages
}

/// To mean 0 and deviation 1.
fn whiten(values: &mut [f64]) {
    let center = mean(values.iter().copied());
    let variance = mean(values.iter().map(|x| (x - center) * (x - center)));
    for x in values {
        *x = (*x - center) / (variance.sqrt() + 1e-8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn log_root_tau_is_what_it_says() {
        assert!((LOG_ROOT_TAU - 0.5 * (2.0 * PI).ln()).abs() < 1e-15);
    }

    #[test]
    fn advantages_add_up_within_an_episode_only() {
        // Two instances, three steps; the first ends after step 2, the second is cut off after step 1.
        let ends = [
            End::Open,
            End::Cut,
            End::Over,
            End::Open,
            End::Open,
            End::Open,
        ];
        let here = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let next = next_values(&here, &[7.0, 8.0], &[10.0, 20.0], &ends);
        close(&next, &[3.0, 10.0, 0.0, 6.0, 7.0, 8.0]);
        let rewards = [1.0; 6];
        let found = advantages(&rewards, &here, &next, &ends, 2, 0.5, 0.5);
        // Surprises: 1.5, 4, -2, 0, -0.5, -1; a quarter of the next one's where the episode goes on.
        close(&found, &[1.5 - 0.5, 4.0, -2.0, -0.25, -0.5, -1.0]);
    }

    #[test]
    fn lambda_1_gives_returns_less_values_and_lambda_0_one_step() {
        let (ends, here) = ([End::Open, End::Open, End::Over], [0.5, 0.25, 1.0]);
        let next = next_values(&here, &[9.0], &[9.0], &ends);
        let rewards = [1.0, 2.0, 3.0];
        let whole = advantages(&rewards, &here, &next, &ends, 1, 0.9, 1.0);
        close(&whole, &[1.0 + 1.8 + 2.43 - 0.5, 2.0 + 2.7 - 0.25, 2.0]);
        let one = advantages(&rewards, &here, &next, &ends, 1, 0.9, 0.0);
        close(&one, &[1.0 + 0.225 - 0.5, 2.0 + 0.9 - 0.25, 2.0]);
    }

    #[test]
    fn actions_are_picked_in_proportion_to_their_probabilities() {
        let logits = [0.0, 2.0_f64.ln(), f64::NEG_INFINITY];
        let mut counts = [0; 3];
        for i in 0..300 {
            let (action, logprob, entropy) = pick(&logits, f64::from(i) / 300.0);
            counts[action] += 1;
            assert!((logprob.exp() - [1.0 / 3.0, 2.0 / 3.0, 0.0][action]).abs() < 1e-12);
            assert!((entropy - (3.0_f64.ln() - 2.0 / 3.0 * 2.0_f64.ln())).abs() < 1e-12);
        }
        assert_eq!((counts[0].clamp(99, 101), counts[2]), (counts[0], 0));
        assert_eq!(pick(&[f64::NAN, f64::NAN], 0.5).0, 1);
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let n = 200;
        let grid = |i: usize| (i as f64 + 0.5) / n as f64;
        let draws: Vec<f64> = (0..n * n)
            .map(|i| normal(grid(i / n), grid(i % n)))
            .collect();
        assert!(mean(draws.iter().copied()).abs() < 1e-9);
        let variance = mean(draws.iter().map(|x| x * x));
        assert!((variance - 1.0).abs() < 0.01, "{variance}");
        assert!(normal(0.0, 0.3).is_finite() && normal(1.0 - 1e-16, 0.3).is_finite());
    }

    #[test]
    fn whitened_values_have_mean_0_and_deviation_1() {
        let mut values = [1.0, 2.0, 3.0, 6.0];
        whiten(&mut values);
        assert!(mean(values).abs() < 1e-12);
        assert!((mean(values.map(|x| x * x)) - 1.0).abs() < 1e-6);
        let mut equal = [5.0; 3];
        whiten(&mut equal);
        assert_eq!(equal, [0.0; 3]);
    }

    #[test]
    fn a_range_without_ends_keeps_the_units() {
        assert_eq!(units(&(-2.0, 4.0)), (1.0, 3.0));
        assert_eq!(units(&(f64::NEG_INFINITY, 1.0)), (0.0, 1.0));
    }
}
